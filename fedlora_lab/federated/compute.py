"""Where a run computes, in which precision, and how many examples go through the model at once."""

from dataclasses import dataclass

import torch

from fedlora_lab._utils.validation import check, check_one_of, check_whole

PRODUCTS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Compute:
    """Switches of speed and memory; clip, noise and ledger are the same under all of them.

    Args:
        device: of local steps and evaluation; ``None``: where the task's model is. The server's
            part, and the examples that no step needs, stay on the processor.
        products: of the frozen base: "float32"; "tf32" on a GPU that has it; "bfloat16". The
            factors, their gradients, the clip and the noise are float32 throughout.
        chunk_examples: at most so many examples at once; ``None``: all, of texts on a processor
            sixteen of like length.

    Raises: ``ValueError`` (name, value, range).
    Guarantees: test_compute.py::test_epsilon_and_noise_are_the_same_under_every_switch.
    """

    device: "str | torch.device | None" = None
    products: str = "float32"
    chunk_examples: int | None = None

    def __post_init__(self) -> None:
        check_one_of("products", self.products, PRODUCTS)
        if self.chunk_examples is not None:
            check_whole("chunk_examples", self.chunk_examples, 1)
        try:
            # "meta" is a device on which tensors hold no values.
            usable = torch.empty(0, device=self.device).device.type != "meta"
        except (RuntimeError, AssertionError, ValueError, TypeError):
            usable = False
        expected = "a device that torch finds here, such as 'cpu' or 'cuda'"
        check(usable, "device", str(self.device), expected)
