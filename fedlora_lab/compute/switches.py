"""How the work is done: device, products, what is computed again and what is kept. Nothing here changes privacy."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from fedlora_lab.checks import check, check_one_of, check_whole

PRODUCTS = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class Compute:
    """Switches of speed and memory; clip, noise and ledger are the same under all of them.

    Args:
        device: where local steps and evaluation run; ``None``: where the task's model is. The server's part stays on
            the processor, and so do the examples that no step needs.
        products: of the frozen base: "float32"; "tf32" on a GPU that has it; "bfloat16". The factors, their gradients,
            the clip and the noise are float32 throughout.
        frozen_prefix: keep what lies below the first adapted layer, example by example, and compute it once. Equal but
            for rounding, which then depends on what was drawn before.
        recompute: keep the inputs of the model's blocks only, and compute the rest again on the way back.
        chunk_examples: at most so many examples at once; ``None``: all, of texts on a processor sixteen of like length;
            "auto": what half of the free memory holds, but no more texts on a processor than that.

    Raises: ``ValueError`` (name, value, range).
    Guarantees: tests/test_compute.py::test_epsilon_and_noise_are_the_same_under_every_switch, ::test_exact_switches.
    """

    device: "str | torch.device | None" = None
    products: str = "float32"
    frozen_prefix: bool = False
    recompute: bool = False
    chunk_examples: "int | str | None" = None

    def __post_init__(self) -> None:
        check_one_of("products", self.products, PRODUCTS)
        for name in ("frozen_prefix", "recompute"):
            check(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        if self.chunk_examples not in (None, "auto"):
            check(not isinstance(self.chunk_examples, str), "chunk_examples", self.chunk_examples, "a number or 'auto'")
            check_whole("chunk_examples", self.chunk_examples, 1)
        if self.device is not None:
            there = available(self.device)
            check(there, "device", str(self.device), "a device that torch finds here, such as 'cpu' or 'cuda'")


def available(device: Any) -> bool:
    """Whether torch can put a tensor there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ValueError, TypeError):
        return False
    return True


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses now, on the GPU or in the machine; 4 GiB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        names = getattr(os, "sysconf_names", {})
        pages = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in names else 0
        return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else 4 * 2**30
