"""Inputs read from one update, exactly, from the span of A's gradient.

First a victim whose updates an attacker sees, then spans and what lies in them.

>>> gradient = torch.outer(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0]))  # of A, one input
>>> similarity(input_from_a_gradient(gradient), torch.tensor([3.0, 4.0])) > 0.999
True
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.federated.records import Round
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.plan import Lora, lora_of
from fedlora_lab.methods.state import ParamKey, TensorDict, Tensors
from fedlora_lab.privacy.privatizer import clip_sum, gaussian_noise
from fedlora_lab.tasks.task import Examples, Inputs, Task, take

CHUNK = 2048
"""Candidates that go through the model at once."""
Upload = TensorDict

# ---- the victim


@dataclass(frozen=True)
class Victim:
    """A model at values that the attacker knows: whoever receives the broadcast does.

    Args: values: key -> tensor, one for all examples.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=1, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> victim = Victim.from_task(task, fl.Lora(rank=2))
    >>> [key.name for key in victim.upload(task.clients[0], "AB")]
    ['A', 'B']
    """

    task: Task
    adapted: adapters.AdaptedModel
    values: Tensors

    @classmethod
    def from_task(cls, task: Task, lora: "Lora | None" = None, spread: float = 0.02) -> "Victim":
        """Gives the task's model an adapter that has moved: A as it starts, B normal.

        Args:
            task, lora: what is trained, and with which adapter (default: `Lora()`).
            spread: standard deviation of B, >= 0; at 0 the gradient of A is zero.
        """
        check_number("spread", spread, 0)
        adapted = adapters.adapt(task, lora_of(lora))
        streams = Streams(0)
        values = adapters.initial_values(adapted, streams, start_scale=lora_of(lora).start_scale)
        for number, (key, value) in enumerate(values.items()):
            # At B = 0, where training begins, nothing of an input reaches the gradient of A.
            if key.name == "B":
                drawn = streams.normal(value.shape, "attacked adapter", number)
                values[key] = value + (spread * drawn).to(value)
        return cls(task, adapted, values)

    @classmethod
    def from_record(cls, record: Round) -> "Victim":
        """Takes the server's model after a round of a run."""
        task, lora, state = require_source(record)
        return cls(task, adapters.adapt(task, lora), state.tensors)

    def upload(
        self,
        examples: Examples,
        factors: str = "A",
        *,
        clip_norm: float = math.inf,
        noise_multiplier: float = 0.0,
        draw: int = 0,
    ) -> Upload:
        """Returns one step's release: the sum of the examples' clipped gradients plus noise.

        Args:
            examples: (x, y).
            factors: which of "A", "B" and "head" is sent: "A", "AB", "AB head", ...
            clip_norm: C, over all that is sent; ``inf``: no clip.
            noise_multiplier: standard deviation of the noise in units of C.
            draw: another number draws other noise.
        """
        check_number("noise_multiplier", noise_multiplier, 0)
        bounded = 0 <= clip_norm < math.inf or (noise_multiplier == 0 and clip_norm == math.inf)
        check(bounded, "clip_norm", clip_norm, ">= 0, and finite where noise is added")
        # The library's own clip and noise: what is attacked is what a run would send.
        owner = torch.zeros(len(examples[1]), dtype=torch.int64)
        sums, _ = clip_sum(self._rows(examples, factors), clip_norm, owner, 1)
        std = noise_multiplier * clip_norm if noise_multiplier else 0.0  # 0 * inf is no number
        shapes = {key: x.shape[1:] for key, x in sums.items()}
        xi = gaussian_noise(shapes, [std], Streams(draw), [(0, 0, 0)])
        return {key: (x + xi[key].to(x))[0] for key, x in sums.items()}

    def traces(
        self, examples: Examples, factors: str = "A", clip_norm: float = math.inf
    ) -> Float[Tensor, "n numbers"]:
        """Returns what each example alone adds to such an upload: its clipped gradient, flat.

        Args: examples, factors, clip_norm: see `upload`.
        Guarantees: test_lesson_11.py::test_an_upload_is_the_sum_of_the_traces.
        """
        rows = torch.cat([x.flatten(1) for x in self._rows(examples, factors).values()], 1)
        return rows * (clip_norm / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)).clamp(max=1)

    def _rows(self, examples: Examples, factors: str) -> Upload:
        """Each example's gradient of the factors named, key -> (n, ...)."""
        keys = tuple(key for key in self.values if key.name in factors)
        check(bool(keys), "factors", factors, 'some of "A", "B" and "head" that this model has')
        return per_example.gradients_at(self.task, self.adapted, self.values, keys, examples)

    def layer(self, upload: Upload, factor: str = "A", name: str = "") -> ParamKey:
        """Finds the key of one factor: the first layer's, or the one whose name ends so.

        Args: upload: in which to look. factor: "A", "B" or "head". name: end of the layer's name.
        """
        keys = [key for key in upload if key.name == factor and key.layer.endswith(name)]
        check(bool(keys), "layer", name, "the end of the name of a layer in this upload")
        return keys[0]


def similarity(a: Tensor, b: Tensor) -> float:
    """|cosine| of two tensors, 1 where they differ by a factor only.

    >>> similarity(torch.tensor([3.0, 4.0]), torch.tensor([-3.0, -4.0]))
    1.0
    """
    a = a.flatten().double()
    b = b.flatten().double()
    return float((a @ b).abs() / (a.norm() * b.norm()).clamp(min=1e-300))


# ---- spans


def row_space(
    gradient: Float[Tensor, "*updates r d_in"], rank: int
) -> Float[Tensor, "*updates n d_in"]:
    """Finds orthonormal rows that span the gradient's rows.

    Args: gradient: of A. rank: how many; the attacker knows how many inputs there were.
    """
    check_whole("rank", rank, 1)
    # The gradient of A is a sum of outer products with the inputs: its rows lie in their span.
    return torch.linalg.svd(gradient, full_matrices=False)[2][..., :rank, :]


def stack_gradients(gradients: "Iterable[Float[Tensor, '_ d_in']]") -> Float[Tensor, "rows d_in"]:
    """Stacks gradients of layers with equal inputs, as query and value, each scaled to norm 1."""
    return torch.cat([x / x.norm().clamp(min=1e-300) for x in gradients])


def input_from_a_gradient(gradient: Float[Tensor, "r d_in"]) -> Float[Tensor, " d_in"]:
    """Recovers the one input from the gradient of A, up to its sign and size.

    Guarantees: the direction that notebook 11 compares with its closed form.

    >>> input_from_a_gradient(torch.tensor([[0.0, 2.0], [0.0, 4.0]])).abs()
    tensor([0., 1.])
    """
    return row_space(gradient, 1)[0]


def residual_share(
    space: Float[Tensor, "*updates n d_in"], vectors: Float[Tensor, "*vectors d_in"]
) -> Float[Tensor, "..."]:
    """Returns the share of each vector outside each span of orthonormal rows, in [0, 1]."""
    size = vectors.square().sum(-1)
    # By Pythagoras: what lies in the span is the projection on its orthonormal rows. One product
    # for all spans: the vectors are many, and are read once.
    projected = (vectors @ space.flatten(0, -2).mT).unflatten(-1, space.shape[:-1])
    inside = projected.square().sum(-1)
    if space.dim() > 2:
        inside = inside.movedim(-1, 0)
    return ((size - inside).clamp(min=0) / size.clamp(min=1e-300)).sqrt()


class _Reached(Exception):
    """Carries a layer's input out of the model."""


def layer_inputs(victim: Victim, layer: str, x: Inputs) -> Float[Tensor, "n tokens d_in"]:
    """Returns what a layer is given for the model's inputs; nothing behind it is computed.

    Args:
        victim, layer: the model, and the full name of an adapted layer that it calls.
        x: inputs as the task has them: a tensor (n, ...) or a mapping of tensors.
    """
    module: nn.Module = victim.adapted.places[ParamKey("A", layer)][0]

    def stop(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        raise _Reached(given[0])

    # The rest of the model is not run: candidates are many, and the layer is near the input.
    hook = module.register_forward_pre_hook(stop)
    try:
        per_example.model_outputs(victim.task, victim.adapted, victim.values, x)
    except _Reached as reached:
        inputs = reached.args[0]
        return inputs.reshape(len(inputs), -1, inputs.shape[-1])
    finally:
        hook.remove()
    raise ValueError(f"layer={layer!r}: expected a layer that the model calls")


def span_check(
    victim: Victim,
    gradient: Float[Tensor, "*updates r d_in"],
    layer: str,
    candidates: Inputs,
    rank: int,
) -> Float[Tensor, "*updates n tokens"]:
    """Measures how far each candidate lies outside the gradient's span at each position; 0: inside.

    Args:
        victim, layer: the model, and the full name of a layer.
        gradient: of the layer's A, or a stack with one for each update.
        candidates: inputs whose token at a position does not depend on the others'.
        rank: of the span, see `row_space`.

    Guarantees: notebook 11 reads eight scans exactly, and none of noised uploads.
    """
    check(bool(gradient.any()), "gradient", "zero", "one that is not zero: B has not moved yet")
    space = row_space(gradient, rank)
    first = next(iter(candidates.values())) if isinstance(candidates, Mapping) else candidates
    # In parts, since all candidates of a scan would not fit into memory.
    parts = [
        residual_share(space, layer_inputs(victim, layer, take(candidates, index)))
        for index in torch.arange(len(first)).split(CHUNK)
    ]
    return torch.cat(parts, -2)


def input_from_b_gradient(
    gradient: Float[Tensor, "d_out r"], A: Float[Tensor, "r d_in"]
) -> Float[Tensor, " d_in"]:
    """Recovers the one input's part in the rows of A from the gradient of B, up to size and sign.

    The gradient of B is s delta (A x)^T, so r numbers A x are all that it holds of x.

    Guarantees: notebook 11 finds the right one of 1,257 scans by it.

    >>> input_from_b_gradient(torch.tensor([[2.0], [1.0]]), torch.tensor([[0.0, 0.5, 0.0]])).abs()
    tensor([0., 2., 0.])
    """
    check(bool(gradient.any()), "gradient", "zero", "one that is not zero")
    # The pseudo-inverse gives back the input's part in the rows of A, the only one that is sent.
    return torch.linalg.pinv(A) @ row_space(gradient, 1)[0]


def match_b_gradient(
    gradient: Float[Tensor, "d_out r"],
    A: Float[Tensor, "r d_in"],
    candidates: Float[np.ndarray, "n d_in"],
) -> Float[np.ndarray, " n"]:
    """Compares each candidate's A x with the one in the gradient of B: |cosine|, 1 for the input.

    Args:
        gradient: of B, for one input; not zero.
        A: at which it was taken.
        candidates: inputs of the layer that the attacker thinks possible.

    Guarantees: notebook 11 finds the right one of 1,257 scans by it.

    >>> gradient, A = torch.tensor([[3.0, 4.0]]), torch.eye(2)
    >>> match_b_gradient(gradient, A, np.array([[3.0, 4.0], [4.0, -3.0]])).round(6)
    array([1., 0.])
    """
    seen = row_space(gradient.double(), 1)[0].numpy()
    # Of A x only the direction is seen: its size is mixed with that of the error signal.
    shadows = candidates @ A.double().numpy().T
    return np.abs(shadows @ seen) / np.linalg.norm(shadows, axis=1).clip(min=1e-300)
