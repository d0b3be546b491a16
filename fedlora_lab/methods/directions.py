"""Public random directions: what a release holds where a row measures a loss along few of them.

A row with `Differences` never has an example's gradient. It has the differences of the example's
loss along J directions, J numbers, which are clipped, summed and noised in the gradient's place.
The directions are drawn from a public seed and the numbers of round and step. That seed is the
run's, or 0 in a run without one: all runs without a seed share their directions.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_number, check_whole
from fedlora_lab.methods.state import ParamKey, TensorDict, Tensors

ALONG = ParamKey("along", "the directions")
"""The key of a release in the coordinates of its directions."""


@dataclass(frozen=True)
class Differences:
    """Measures a gradient by central differences of the loss along random public directions.

    Along v_1, ..., v_J an example has the numbers c_j = (loss(w + h v_j) - loss(w - h v_j)) / 2h,
    and its gradient is estimated by sum_j c_j v_j. The v_j are orthogonal, and each has the squared
    norm d / J where d numbers move. Over the draw of the directions the estimate has then the
    gradient as its mean, and c its mean square: a clip norm and a learning rate mean what they mean
    in other rows.

    Args:
        directions: J >= 1, drawn anew for every step; at most as many as numbers that move.
        step: h > 0.

    Source: arXiv:2310.09639, arXiv:2401.04343: one direction, and a clip of the difference.
    Guarantees: the directions depend on no example
        (test_directions.py::test_directions_are_public_and_the_same_for_all_clients).
    """

    directions: int = 8
    step: float = 0.01

    def __post_init__(self) -> None:
        check_whole("directions", self.directions, 1)
        check_number("step", self.step, 0, 1e6, open_low=True)


class Basis(NamedTuple):
    """Directions in the space of some tensors: a release in them has one number for each.

    Args:
        shapes: of the tensors that move, in order.
        rows: (k, numbers), orthonormal.
        scale: by which the numbers of a release count in the tensors.
    """

    shapes: Mapping[ParamKey, torch.Size]
    rows: Float[Tensor, "k numbers"]
    scale: float = 1.0

    def tensors(self, values: Tensors) -> TensorDict:
        """Rebuilds tensors, key -> (n, ...), from numbers along the directions, (n, k)."""
        flat = self.scale * values[ALONG] @ self.rows.to(values[ALONG].dtype)
        parts = flat.split([shape.numel() for shape in self.shapes.values()], 1)
        return {
            key: part.reshape(-1, *shape)
            for (key, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def along(self, tensors: Tensors) -> TensorDict:
        """The numbers of tensors along the directions, (n, k): what `tensors` was given."""
        flat = torch.cat([tensors[key].flatten(1) for key in self.shapes], 1)
        return {ALONG: flat @ self.rows.to(flat.dtype).T / self.scale}

    def zeros(self, owners: int) -> TensorDict:
        """A release of nothing, (owners, k)."""
        return {ALONG: self.rows.new_zeros(owners, len(self.rows))}

    def each(self) -> Iterator[TensorDict]:
        """Yields every direction as tensors."""
        for one in torch.eye(len(self.rows), dtype=self.rows.dtype, device=self.rows.device):
            yield {key: x[0] for key, x in self.tensors({ALONG: one[None]}).items()}


def step_basis(
    rule: Differences,
    shapes: Mapping[ParamKey, torch.Size],
    streams: Streams,
    where: tuple[int, int],
) -> Basis:
    """Draws the directions of a step, float64: the same for all clients, nothing of any example.

    Args:
        rule: of the row.
        shapes: of the tensors that move in the step.
        streams: of the run, whose seed counts.
        where: round and step, from 0.
    """
    count = sum(shape.numel() for shape in shapes.values())
    # Directions hide nothing, so clients and server draw the same ones, also without a seed.
    public = streams.public("directions", *where)
    drawn = public.standard_normal((count, min(rule.directions, count)))
    rows = torch.linalg.qr(torch.from_numpy(drawn))[0].T
    return Basis(shapes, rows, (count / len(rows)) ** 0.5)


def joint_basis(bases: Iterable[Basis], shapes: Mapping[ParamKey, torch.Size]) -> Basis:
    """Orthonormal directions of the same span as the directions of several steps.

    Args:
        bases: of the steps of a round.
        shapes: of the tensors that are sent, in which alone the span is looked at.
    """
    rows = []
    for basis in bases:
        sizes = [shape.numel() for shape in basis.shapes.values()]
        parts = dict(zip(basis.shapes, basis.rows.split(sizes, 1), strict=True))
        # A tensor that rests in the step has zeros in its directions.
        rest = basis.rows.new_zeros(len(basis.rows), 1)
        every = [parts.get(key, rest.expand(-1, x.numel())) for key, x in shapes.items()]
        rows.append(torch.cat(every, 1))
    return Basis(shapes, torch.linalg.qr(torch.cat(rows).T)[0].T)
