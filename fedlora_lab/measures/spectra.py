"""How what is released is spread over frequencies along the channels, which is all that a filter can act on."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab import adapters, passes
from fedlora_lab.checks import check, check_number, check_one_of
from fedlora_lab.mechanism import clip_sum
from fedlora_lab.tasks.task import take, together

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.record import Round


def spectrum(tensor: "Tensor | np.ndarray", side: str) -> Float[np.ndarray, " n"]:
    """Energy at each frequency along a factor's long axis, slow ones first; sums to the squared Frobenius norm.

    Frequencies are those of the cosine transform (DCT-II), the eigenvectors of a filter that mirrors the edges.

    Args: tensor: A (r, n), B (n, r), or several of them (..., r, n); side: "A" or "B".
    Guarantees: test_lesson_07.py::test_spectrum.
    """
    from scipy.fft import dct

    check_one_of("side", side, ("A", "B"))
    rows = np.moveaxis(np.asarray(tensor, float), -1 if side == "A" else -2, -1)
    return np.square(np.asarray(dct(rows, norm="ortho", axis=-1))).reshape(-1, rows.shape[-1]).sum(0)


def gradient_spectra(record: "Round", clip_norm: float = 1.0) -> "pd.DataFrame":
    """Spectrum of the mean clipped gradient over all private examples, layer by layer: what one step wants to say.

    One factor moves at a time, as in LA-LoRA, and the clip takes all its layers together. It reads private values and
    adds no noise: for the laboratory, never for a release.

    Returns: columns layer, side, frequency (0 to 1), energy.

    Guarantees: test_lesson_07.py::test_gradient_spectra.
    """
    import pandas as pd

    check(record.source is not None, "record", "a copy without its task", "a record as run() yields it")
    check_number("clip_norm", clip_norm, 0, open_low=True)
    frames = []
    for side in "AB":
        for layer, mean in _clipped_means(record, side, clip_norm).items():
            energy = spectrum(mean, side)
            place = np.arange(len(energy)) / len(energy)
            frames.append(pd.DataFrame({"layer": layer, "side": side, "frequency": place, "energy": energy}))
    return pd.concat(frames, ignore_index=True)


def _clipped_means(record: "Round", side: str, clip_norm: float) -> dict[str, Tensor]:
    task, lora, state = record.source  # type: ignore[misc]
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    moving = tuple(slot for slot in adapted.places if slot.side == side)
    bank = {slot: tensor[None] for slot, tensor in state.tensors.items()}
    x, y = together(task.clients)
    totals = {slot: torch.zeros_like(state.tensors[slot]) for slot in moving}
    for index in torch.arange(len(y)).split(256):
        owner = torch.zeros_like(index)
        rows = passes.per_example_gradients(task, adapted, bank, moving, (take(x, index), y[index]), owner)
        sums, _ = clip_sum(rows, clip_norm, owner, 1)
        totals = {slot: total + sums[slot][0] for slot, total in totals.items()}
    return {slot.layer: total / len(y) for slot, total in totals.items()}
