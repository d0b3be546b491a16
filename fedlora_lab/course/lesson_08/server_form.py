"""The forms of FedLPP's server step that the library's row does not take, for notebook 08."""

from dataclasses import dataclass

from torch import Tensor

from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.methods.aggregation import Uploads
from fedlora_lab.methods.state import ServerState


@dataclass(frozen=True)
class ServerForm:
    """Makes FedLPP's server step in one of the forms that `MeanUpdate`, the first, is not.

    2: Q(psi) + mean_k psi_k - Q(psi); 3: psi + mean_k psi_k - psi; 4: as 3, times (T - t) / T in
    round t of T, counted from 0. With all weights there, 2 and 3 are the mean of the uploads.

    Args:
        form: 2, 3 or 4.

    Source: a later release by an author of arXiv:2406.10976, which has all four; see docs/methods.
    Guarantees: test_lesson_08.py::test_the_forms_of_fedlpp_by_hand.
    """

    form: int

    def __post_init__(self) -> None:
        check_whole("form", self.form, 2, 4)

    def __call__(
        self, state: ServerState, sent: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        base = sent if self.form == 2 else state
        rate = 1.0
        if self.form == 4:
            rate -= state.round / max(state.planned, 1)
        changed = {}
        for key, upload in uploads.items():
            old = base.tensors[key]
            alike = old.shape == state.tensors[key].shape
            check(alike, "ranks", len(old), "one rank for all clients: form 2 sets out from theirs")
            # As in the plain mean: a fixed denominator, what did not arrive changes nothing.
            change = weights.to(upload.dtype) @ (upload - old).flatten(1)
            changed[key] = old + rate * change.view_as(old)
        return state.replace_tensors(changed)
