"""The rows of A's gradient are sums of the layer's inputs: what spans them gives the inputs away.

grad A = s sum_t (B^T delta_t) x_t^T. With one input every row is that input times a number; with T <= r inputs the rows
span exactly them; with more the span is too small to say. At B = 0 the gradient of A is zero and tells nothing; the
gradient of B holds only A x, r numbers of each input.

Source: the derivation is this project's; the check of candidates against the span is that of arXiv:2405.15586 (DAGER).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedlora_lab import passes
from fedlora_lab.attacks.victim import Victim
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.method import Slot
from fedlora_lab.tasks.task import take

CHUNK = 2048


def row_space(
    gradient: Float[Tensor, "r d_in"], rank: int | None = None, tolerance: float = 1e-5
) -> Float[Tensor, "n d_in"]:
    """Orthonormal rows that span the gradient's rows.

    Args:
        rank: how many, where the attacker knows how many inputs there were; ``None``: those whose singular value
            exceeds ``tolerance`` times the largest.

    Guarantees: test_the_span_of_few_inputs_is_exact.
    """
    check_number("tolerance", tolerance, 0, 1)
    _, values, rows = torch.linalg.svd(gradient, full_matrices=False)
    if rank is None:
        return rows[values > tolerance * values[:1].clamp(min=1e-300)]
    check_whole("rank", rank, 1)
    return rows[:rank]


def joined(gradients: "Iterable[Float[Tensor, '_ d_in']]") -> Float[Tensor, "rows d_in"]:
    """The rows of several layers' gradients that are given the same inputs, each layer brought to norm 1.

    Query, key and value of a block are such layers: k of them show k r rows.
    """
    return torch.cat([one / one.norm().clamp(min=1e-300) for one in gradients])


def direction(gradient: Float[Tensor, "r d_in"]) -> Float[Tensor, " d_in"]:
    """The one input, up to its sign and size.

    Guarantees: test_one_input_is_recovered_and_noise_hides_it.
    """
    return row_space(gradient, 1)[0]


def residual(space: Float[Tensor, "n d_in"], vectors: Float[Tensor, "... d_in"]) -> Float[Tensor, "..."]:
    """The share of each vector outside the span, in [0, 1]."""
    size = vectors.square().sum(-1)
    inside = (vectors @ space.mT).square().sum(-1)
    return ((size - inside).clamp(min=0) / size.clamp(min=1e-300)).sqrt()


class _Reached(Exception):
    """The layer was reached; its input is inside."""


def inputs_of(victim: Victim, layer: str, x: Any) -> Float[Tensor, "n tokens d_in"]:
    """What a layer is given for the model's inputs x; nothing behind it is computed."""
    module: nn.Module = victim.adapted.places[Slot("A", layer)][0]

    def stop(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        raise _Reached(given[0])

    hook = module.register_forward_pre_hook(stop)
    try:
        passes.predict(victim.task, victim.adapted, victim.values, x)
    except _Reached as reached:
        found = reached.args[0]
        return found.reshape(len(found), -1, found.shape[-1])
    finally:
        hook.remove()
    raise ValueError(f"layer={layer!r}: expected a layer that the model calls")


def span_check(
    victim: Victim, gradient: Float[Tensor, "r d_in"], layer: str, candidates: Any, rank: int | None = None
) -> Float[Tensor, "n tokens"]:
    """How far each candidate input lies outside the gradient's span, position by position: 0 was there.

    Args:
        layer: full name of the layer whose A this is.
        candidates: inputs of the model whose token at a position does not depend on the others'; see `guesses`.
        rank: of the span, see `row_space`.

    Raises: ``ValueError`` where the gradient is zero.
    Guarantees: test_an_image_is_read_from_one_gradient, test_a_sentence_is_read_from_one_gradient.
    """
    check(bool(gradient.any()), "gradient", "zero", "one that is not zero: B has not moved yet")
    space = row_space(gradient, rank)
    count = len(next(iter(candidates.values()))) if isinstance(candidates, Mapping) else len(candidates)
    parts = torch.arange(count).split(CHUNK)
    return torch.cat([residual(space, inputs_of(victim, layer, take(candidates, part))) for part in parts])
