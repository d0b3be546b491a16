"""Examples that touch each other have no gradient of their own: models in which they do are found and refused."""

import weakref

import torch

from fedlora_lab.adapters import Adapted
from fedlora_lab.checks import check
from fedlora_lab.mechanism import row_norms
from fedlora_lab.passes import per_example_gradients
from fedlora_lab.tasks.task import Task, take

PROBES = 3
_SEPARABLE: "weakref.WeakSet[Task]" = weakref.WeakSet()


def check_separable(task: Task, adapted: Adapted, products: str = "float32") -> None:
    """Refuse a model in which examples touch each other: gradients of a batch against those of batches of one.

    Three public examples (again and again the same where there are fewer), each with factors of its own. Finds batch
    statistics, attention across the batch, and layers whose input does not come batch first. Done once for a task.

    Raises: ``ValueError`` with the reason.
    Guarantees: tests/test_engine.py::test_models_that_mix_examples_are_refused.
    """
    if task in _SEPARABLE:
        return
    random = torch.Generator().manual_seed(0)
    owner = torch.arange(PROBES)
    index = owner % len(task.test[1])
    shapes, data = adapted.shapes, (take(task.test[0], index), task.test[1][index])
    like = next(iter(adapted.given.values()))
    bank = {slot: 0.1 * torch.randn(PROBES, *shape, generator=random).to(like) for slot, shape in shapes.items()}
    together = per_example_gradients(task, adapted, bank, tuple(shapes), data, owner)
    gaps = []
    for i in range(PROBES):
        one = (take(data[0], owner[i : i + 1]), data[1][i : i + 1])
        alone = per_example_gradients(task, adapted, bank, tuple(shapes), one, owner[i : i + 1])
        gap = row_norms({slot: together[slot][i : i + 1] - alone[slot] for slot in shapes})
        gaps.append(float(gap / row_norms(alone).clamp(min=1e-12)))
    # Written so that a gap that is not a number is refused as well: a batch of one has no variance to divide by.
    like = like if products == "float32" else like.bfloat16()  # the type in which the products round
    mixing = [gap for gap in gaps if not gap <= 10 * torch.finfo(like.dtype).eps ** 0.5]
    expected = f"examples that do not mix, batch first (they differ by {max(mixing, default=0):.1g})"
    check(not mixing, "model", type(task.model).__name__, expected)
    _SEPARABLE.add(task)
