"""What a server rule may say of itself beside what it computes."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, ClassVar

from fedlora_lab.method import Global, Slot

if TYPE_CHECKING:
    from torch import Tensor


class Rule:
    """A server rule that is more than a mean of what was sent. Every part has the answer of a plain mean as default.

    Attributes:
        writes: sides of the state that the rule may change although no client sent them.
    """

    writes: ClassVar[tuple[str, ...]] = ()

    def open(self, state: Global) -> Global:
        """The state before the first round, with what the rule keeps there."""
        return state

    def up(self, shapes: "Mapping[Slot, Sequence[int]]", slots: Sequence[Slot]) -> list[int]:
        """Sizes of the arrays that one client sends in place of these slots, from the shapes of all."""
        return [prod(shapes[slot]) for slot in slots]

    def extra_down(self, shapes: "Mapping[Slot, Sequence[int]]") -> list[int]:
        """Sizes of the arrays that one client receives in a round beside the state."""
        return []


def received(sent: Global, state: Global, slot: Slot) -> "Tensor":
    """What the clients received for a slot, (1 or clients, ...)."""
    tensor = sent.tensors[slot]
    return tensor if tensor.dim() > state.tensors[slot].dim() else tensor[None]


def held(state: Global, sent: Global, uploads: "Mapping[Slot, Tensor]", slot: Slot) -> "Tensor":
    """What the clients hold of a slot at the end of the round, (1 or clients, ...)."""
    return uploads[slot] if slot in uploads else received(sent, state, slot)
