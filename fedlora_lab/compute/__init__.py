"""How and where the work is done: device, products, what is kept and what is computed again. Privacy is untouched."""

from fedlora_lab.compute.switches import Compute, available, free_memory

__all__ = ["Compute", "available", "free_memory"]
