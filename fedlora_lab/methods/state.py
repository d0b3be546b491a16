"""The server's state, and what each kind of tensor in it does in a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check

if TYPE_CHECKING:
    from numpy.random import Generator

MODES = "BA"
"""What moves in a layer whose mode is 0, and whose mode is 1."""


@dataclass(frozen=True)
class TensorKind:
    """What one kind of tensor does in a run: a row of `KINDS`.

    A new kind also needs what it does in `Adapter` of lora/adapters.py, and a method that starts
    with it.

    Args:
        trained: clients train it: its gradient (or change) is clipped and noised with the others.
        scheduled: it moves when a word of the schedule has its letter; if not, at every step.
        sent_up, sent_down: clients send it, where the method shares it; and receive it when it has
            changed.
        of_the_product: it is a factor of its layer's product.
        filtered: what is noised of it passes the method's filter.
        quantized: it goes down by the method's broadcast rule; if not, in full.
        shape: ``(d_out, d_in, rank) -> shape``, for kinds of which each layer has at most one.
    """

    trained: bool = False
    scheduled: bool = False
    sent_up: bool = False
    sent_down: bool = False
    of_the_product: bool = False
    filtered: bool = False
    quantized: bool = False
    shape: Callable[[int, int, int], tuple[int, ...]] | None = None


_FACTOR = TensorKind(
    trained=True,
    scheduled=True,
    sent_up=True,
    sent_down=True,
    of_the_product=True,
    filtered=True,
    quantized=True,
)
_WHOLE = TensorKind(trained=True, sent_up=True, sent_down=True)
KINDS: dict[str, TensorKind] = {
    # Public before training, and noised from the first step on.
    "A": replace(_FACTOR, shape=lambda d_out, d_in, rank: (rank, d_in)),
    "B": replace(_FACTOR, shape=lambda d_out, d_in, rank: (d_out, rank)),
    # A core between both factors: B R A. It has no long axis to filter along.
    "R": replace(_FACTOR, filtered=False, shape=lambda d_out, d_in, rank: (rank, rank)),
    # Of a core's blocks; like a head it moves at every step, whatever the schedule says.
    "gain": replace(_WHOLE, of_the_product=True, shape=lambda d_out, d_in, rank: (1,)),
    "head": _WHOLE,
    # Written by a server rule and trained by no client: nothing private is in it to clip or noise.
    "W": TensorKind(sent_down=True, shape=lambda d_out, d_in, rank: (d_out, d_in)),
    # Which factor a layer moves: chosen by the server's rule, from released values.
    "mode": TensorKind(sent_down=True),
}
"""Every kind of tensor, except what a server rule remembers for itself (`MEMORY`). What a
new kind does to its layer's output stands in `lora.adapters.Adapter`."""
MEMORY = TensorKind()
"""What a server rule remembers: it never leaves the server."""


class ParamKey(NamedTuple):
    """The address of one tensor.

    Args:
        name: its kind, a name of `KINDS`: "A" or "B", the factors of a product, or another.
        layer: the name of its layer.
    """

    name: str
    layer: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.name}"

    @property
    def kind(self) -> TensorKind:
        """What tensors of this name do in a run."""
        return KINDS.get(self.name, MEMORY)


Keys = tuple[ParamKey, ...]
Tensors = Mapping[ParamKey, Tensor]
TensorDict = dict[ParamKey, Tensor]


@dataclass(frozen=True)
class ServerState:
    """What the server holds, by `ParamKey`: A is (r, d_in), B (d_out, r).

    A layer's weight is its frozen weight plus scaling times the product B A. With a core the
    product is B R A, R (r, r), or (r, r / h) where it is h blocks on the diagonal; a gain (h,)
    multiplies each block. A residual W (d_out, d_in) is added to the product.

    Args:
        tensors: one for each key.
        round, planned: rounds done, and rounds there will be.
        streams: where a server rule's own random numbers come from.
    """

    tensors: Tensors
    round: int = 0
    planned: int = 0
    streams: Streams | None = field(default=None, compare=False, repr=False)

    def named(self, name: str) -> dict[str, Tensor]:
        """Returns the tensors of one name, "A" say, by their layer."""
        return {key.layer: tensor for key, tensor in self.tensors.items() if key.name == name}

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the adapted layers, in the model's order."""
        return tuple(self.named("B"))

    def replace_tensors(self, changes: Tensors) -> "ServerState":
        """Returns a copy in which some tensors are others."""
        # Keys keep their order: one draw of noise is split over the tensors in it.
        return replace(self, tensors={**self.tensors, **changes})

    def without_core(self) -> "ServerState":
        """Returns a state of the same products from A and B alone: each core multiplied into B."""
        tensors = {key: x for key, x in self.tensors.items() if key.name not in ("R", "gain")}
        gains = self.named("gain")
        for layer, core in self.named("R").items():
            key = ParamKey("B", layer)
            tensors[key] = times_core(tensors[key], core, gains.get(layer))
        return replace(self, tensors=tensors)

    def random(self, layer: str) -> "Generator":
        """Opens the server's random numbers for a layer in this round, which hide nothing.

        From a seed anyone can draw them again, without one nobody.
        """
        # A fixed seed in the place of the run's would make a release in part predictable.
        check(self.streams is not None, "streams", None, "the random streams of the run")
        assert self.streams is not None
        return self.streams.numpy(f"server {layer}", self.round)


def add_all(tensors: Tensors, others: Tensors) -> TensorDict:
    """Adds to each tensor the other one of its key; on a GPU one kernel serves many of them."""
    return dict(
        zip(tensors, torch._foreach_add([*tensors.values()], [others[key] for key in tensors]))
    )


def times_core(b: Tensor, core: Tensor, gain: Tensor | None = None) -> Tensor:
    """Multiplies B by a core: (..., d_out, r).

    Args:
        b: (..., d_out, r).
        core: (..., r, r), or (..., r, r / h): h blocks, one below the other, that stand on the
            diagonal.
        gain: (..., h), a factor of each block.

    >>> times_core(torch.ones(1, 2), torch.tensor([[2.0], [3.0]]), torch.tensor([1.0, 10.0]))
    tensor([[ 2., 30.]])
    """
    rank, width = core.shape[-2:]
    if width == rank and gain is None:
        return b @ core
    blocks = core.reshape(*core.shape[:-2], rank // width, width, width)
    if gain is not None:
        blocks = blocks * gain[..., None, None]
    # (..., h, d_out, r / h) times (..., h, r / h, r / h): each block meets its own columns of B.
    columns = b.reshape(*b.shape[:-1], rank // width, width).transpose(-2, -3)
    product = (columns @ blocks).transpose(-2, -3)
    return product.reshape(*product.shape[:-2], rank)


def pad_to_rank(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Pads both factors with zeros up to the rank: the product stays as it is.

    Args: a: (r, d_in). b: (d_out, r). rank: at least r.
    """
    missing = rank - len(a)
    a = torch.nn.functional.pad(a, (0, 0, 0, missing))
    return a, torch.nn.functional.pad(b, (0, missing))


def with_signs(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Turns pairs of singular vectors so that each row of V^T has a sum of at least zero.

    A pair is given up to its common sign, and libraries choose it differently on different
    processors. The product does not change; but noise, which is drawn for the entries of a factor,
    falls on the other side of it, and a run would end elsewhere.

    Args: u: (d_out, k). v: V^T, (k, d_in).
    """
    sign = torch.where(v.sum(1) < 0, -1.0, 1.0).to(v)
    return u * sign, v * sign.unsqueeze(1)
