"""How many examples go through the model at once: as many as are asked for, or as the free memory holds."""

import torch
from torch import Tensor

from fedlora_lab.compute import Compute, free_memory
from fedlora_lab.engine import Setting, moving_slots
from fedlora_lab.passes import TEXTS, per_example_gradients
from fedlora_lab.separable import widest
from fedlora_lab.tasks.task import Examples, mask_of, take

PROBED = (2, 4)
SHARE = 0.5


def example_bytes(setting: Setting, examples: Examples) -> int:
    """Bytes that one more example in a step needs: what autograd keeps of it, twice, and its own copies of the factors.

    Args: examples: four at least, as long as the longest.
    Source: what autograd says that it keeps of two and of four of them.

    Guarantees: tests/test_cost.py::test_bytes_of_an_example_grow_with_the_model.
    """
    x, y = examples
    bank = {slot: tensor[None] for slot, tensor in setting.adapted.given.items()}
    moving = moving_slots(bank, "ABR")
    sizes = []
    for count in PROBED:
        index = torch.arange(count)
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor, kept: dict[int, torch.UntypedStorage] = kept) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage  # held, so that no other storage takes its number
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            per_example_gradients(
                setting.task, setting.adapted, bank, moving, (take(x, index), y[index]), torch.zeros_like(index)
            )
        sizes.append(sum(storage.nbytes() for storage in kept.values()))
    activations = max(sizes[1] - sizes[0], 0) // (PROBED[1] - PROBED[0])
    factors = sum(bank[slot].numel() * bank[slot].element_size() for slot in moving)
    return max(2 * activations + 4 * factors, 1)


def chunk(compute: Compute, setting: Setting) -> int | None:
    """Examples at once, as the switches say."""
    if compute.chunk_examples != "auto":
        return compute.chunk_examples  # type: ignore[return-value]  # a number or None
    device = setting.adapted.device
    held = max(1, int(SHARE * free_memory(device)) // example_bytes(setting, widest(setting.task, setting.adapted)))
    return min(held, TEXTS) if device.type == "cpu" and mask_of(setting.task.test[0]) is not None else held
