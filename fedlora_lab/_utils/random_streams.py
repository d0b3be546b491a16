"""Random streams, one for each (seed, purpose, indices).

The draw for client 3 in round 7 does not depend on who else takes part, on the order of the work
or on the engine that does it.
"""

import hashlib
import json
import operator
import os
from typing import TYPE_CHECKING

import numpy as np

from fedlora_lab._utils.validation import check

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[int, ...]


def key(seed: int, purpose: str, *indices: int) -> int:
    """The 128-bit key of a stream: a hash of the whole seed, the purpose and the indices.

    Args:
        seed: a whole number.
        purpose: what is drawn, such as "noise".
        indices: whole numbers that tell streams of one purpose apart: round, client, step.
    Guarantees: test_attack_randomness.py::test_every_name_has_a_key_of_its_own.
    """
    # JSON writes each list in one way only, and quotes text: ("a/1") and ("a", 1) differ.
    name = json.dumps([operator.index(seed), purpose, *map(operator.index, indices)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=16).digest(), "big")


class Streams:
    """The random streams of one run.

    Args:
        seed: a whole number >= 0; each stream is then a counter-based generator (Philox) with a key
            of 128 bits. ``None``: `uniform` and `normal` take every number from the operating
            system's entropy; nothing is kept, and nobody can draw it again.

    Guarantees: no two streams share a key, every bit of the seed counts, and without a seed no
        generator makes a number that protects anybody (tests/privacy/test_attack_randomness.py).
    """

    def __init__(self, seed: int | None) -> None:
        whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
        check(seed is None or (whole and seed >= 0), "seed", seed, "None or a whole number >= 0")
        self.seed = None if seed is None else int(seed)

    def numpy(self, purpose: str, *indices: int) -> np.random.Generator:
        """A NumPy generator, for numbers that hide nothing: public draws of the server, a start.

        Without a seed its key is 128 bits of the operating system's entropy.

        Args:
            purpose, indices: as for `key`.
        """
        if self.seed is None:
            bits = int.from_bytes(os.urandom(16), "big")
        else:
            bits = key(self.seed, purpose, *indices)
        return np.random.Generator(np.random.Philox(key=bits))

    def public(self, purpose: str, *indices: int) -> np.random.Generator:
        """A NumPy generator that all sides of a run open alike, for numbers that are no secret.

        Without a seed it is that of the seed 0.

        Args:
            purpose, indices: as for `key`.
        """
        return Streams(self.seed or 0).numpy(purpose, *indices)

    def uniform(self, shape: Shape, purpose: str, *indices: int) -> "Tensor":
        """Independent uniform numbers in [0, 1), float64, of 53 random bits each.

        Args:
            shape: of the tensor.
            purpose, indices: as for `key`.
        """
        import torch

        # The top 53 bits are as many as a float64 below 1 can hold.
        if self.seed is None:
            return torch.from_numpy((_words(shape) >> np.uint64(11)) * 2.0**-53)
        return torch.from_numpy(self.numpy(purpose, *indices).random(shape))

    def normal(self, shape: Shape, purpose: str, *indices: int) -> "Tensor":
        """Independent standard normal numbers: float64 without a seed, float32 with one.

        Without a seed each is the inverse distribution function of 52 fresh bits, never 0 or 1.
        Float32's coarser grid would leave the last digits of a float64 sum in sight. The gaps
        between representable values are not hidden (Mironov 2012; Haney et al. 2022).

        Args:
            shape: of the tensor.
            purpose, indices: as for `key`.
        Guarantees: test_attack_clip.py::test_noise_is_as_fine_as_what_it_hides.
        """
        import torch

        if self.seed is None:
            from scipy.special import ndtri

            # The half keeps both ends out, where the inverse is infinite.
            return torch.from_numpy(ndtri(((_words(shape) >> np.uint64(12)) + 0.5) * 2.0**-52))
        generator = self.numpy(purpose, *indices)
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def _words(shape: Shape) -> np.ndarray:
    """64 bits of the operating system's entropy for each entry."""
    return np.frombuffer(os.urandom(8 * int(np.prod(shape))), dtype=np.uint64).reshape(shape)
