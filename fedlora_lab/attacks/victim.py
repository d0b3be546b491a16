"""Who is attacked: a task's model with an adapter that has moved, and what it lets out for a few examples."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedlora_lab import adapters, passes
from fedlora_lab.checks import check, check_number
from fedlora_lab.mechanism import clip_sum, noise
from fedlora_lab.method import Slot
from fedlora_lab.plan import Lora
from fedlora_lab.record import Round, origin
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Examples, Task

Upload = dict[Slot, Tensor]


@dataclass(frozen=True)
class Victim:
    """A model at values that the attacker knows: whoever receives the broadcast does.

    Args: values: slot -> tensor, one for all examples.
    """

    task: Task
    adapted: adapters.Adapted
    values: Mapping[Slot, Tensor]

    @classmethod
    def of(cls, task: Task, lora: Lora | None = None, seed: int = 0, spread: float = 0.02) -> "Victim":
        """An adapter that has moved: A as it starts, B normal with standard deviation ``spread``.

        Raises: ``ValueError`` for a spread < 0. At 0 the gradient of A is zero.
        """
        check_number("spread", spread, 0)
        adapted = adapters.adapt(task.model, task.targets, task.head, lora or Lora())
        values = adapters.start(adapted, Streams(seed))
        streams = Streams(seed)
        for number, (slot, value) in enumerate(values.items()):
            if slot.side == "B":
                values[slot] = value + (spread * streams.normal(value.shape, "attacked adapter", number)).to(value)
        return cls(task, adapted, values)

    @classmethod
    def after(cls, record: Round) -> "Victim":
        """The server's model after a round of a run."""
        task, lora, state = origin(record)
        return cls(task, adapters.adapt(task.model, task.targets, task.head, lora), state.tensors)

    def upload(
        self, examples: Examples, sides: str = "A", *, clip_norm: float = math.inf, noise_multiplier: float = 0.0,
        draw: int = 0,
    ) -> Upload:  # fmt: skip
        """One step's release for these examples: the sum of their clipped gradients plus noise, slot -> tensor.

        Args:
            sides: which of "A", "B" and "head" is sent, joined by blanks or not: "A", "AB", "AB head".
            clip_norm: C, over all that is sent; ``inf``: no clip.
            noise_multiplier: standard deviation of the noise in units of C.
            draw: another number draws other noise.
        """
        check_number("noise_multiplier", noise_multiplier, 0)
        check(noise_multiplier == 0 or clip_norm < math.inf, "clip_norm", clip_norm, "finite where noise is added")
        letters = sides.replace("head", "")
        slots = tuple(
            s for s in self.values if (s.side == "head" and "head" in sides) or s.side in set(letters) & set("AB")
        )
        check(bool(slots), "sides", sides, 'some of "A", "B" and "head" that this model has')
        bank = {slot: value[None] for slot, value in self.values.items()}
        count = len(examples[1])
        owner = torch.zeros(count, dtype=torch.int64)
        rows = passes.per_example_gradients(self.task, self.adapted, bank, slots, examples, owner)
        sums, _ = clip_sum(rows, clip_norm, owner, 1)
        std = noise_multiplier * clip_norm if noise_multiplier else 0.0
        shapes = {slot: x.shape[1:] for slot, x in sums.items()}
        xi = noise(shapes, [std], Streams(draw), [(0, 0, 0)])
        return {slot: (x + xi[slot].to(x))[0] for slot, x in sums.items()}

    def loss(self, examples: Examples) -> Tensor:
        """Each example's loss, (n,)."""
        outputs = passes.predict(self.task, self.adapted, self.values, examples[0])
        return self.task.loss(outputs, examples[1])

    def layer(self, upload: Upload, side: str = "A", name: str | None = None) -> Slot:
        """The slot of one side: the first layer's, or the one whose name ends so."""
        found = [slot for slot in upload if slot.side == side and (name is None or slot.layer.endswith(name))]
        check(bool(found), "layer", name, "the end of the name of a layer in this upload")
        return found[0]


def similarity(one: Any, other: Any) -> float:
    """|cosine| of two tensors, 1 where they differ by a factor only."""
    one, other = one.flatten().double(), other.flatten().double()
    return float((one @ other).abs() / (one.norm() * other.norm()).clamp(min=1e-300))
