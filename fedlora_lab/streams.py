"""Random numbers: one stream for every purpose, so that equal integers never give equal numbers.

A stream is named by (seed, purpose, indices) and derived from them by a hash. What is drawn for client 3 in round 7
does not depend on who else takes part, on the order of the work or on the engine that does it.
"""

import hashlib
import secrets
from typing import Any

import numpy as np

from fedlora_lab.checks import check


def integer(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit integer that belongs to (seed, purpose, indices) alone."""
    text = "/".join([str(int(seed)), purpose, *(str(int(i)) for i in indices)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Streams:
    """The random streams of one run.

    Args:
        seed: a whole number >= 0, or ``None``: every stream then comes from the operating system's entropy, nothing of
            it is kept, and nobody can draw it again.
    """

    def __init__(self, seed: int | None) -> None:
        ok = seed is None or (isinstance(seed, (int, np.integer)) and not isinstance(seed, bool) and seed >= 0)
        check(ok, "seed", seed, "None or a whole number >= 0")
        self.seed = None if seed is None else int(seed)

    def _integer(self, purpose: str, *indices: int) -> int:
        return secrets.randbits(63) if self.seed is None else integer(self.seed, purpose, *indices)

    def numpy(self, purpose: str, *indices: int) -> np.random.Generator:
        """A NumPy generator for this purpose."""
        return np.random.default_rng(self._integer(purpose, *indices))

    def generator(self, purpose: str, *indices: int) -> Any:
        """A torch CPU generator for this purpose."""
        import torch

        return torch.Generator().manual_seed(self._integer(purpose, *indices))
