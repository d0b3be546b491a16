"""Random streams, one for each (seed, purpose, indices).

The draw for client 3 in round 7 does not depend on who else takes part, on the order of the work
or on the engine that does it.
"""

import hashlib
import json
import math
import operator
import os
import threading
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
        generator makes a number that protects anybody (test_attack_randomness.py).
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
        generator = _reused_generator(key(self.seed, purpose, *indices))
        return torch.from_numpy(generator.random(shape))

    def normal(self, shape: Shape, purpose: str, *indices: int) -> "Tensor":
        """Independent standard normal numbers: float64 without a seed, float32 with one.

        Without a seed each is the inverse distribution function of a fresh random number, which
        has as many bits as its place in the tail takes: the noise has no largest value, as the
        Gaussian that an accountant composes has none. Float32's coarser grid would leave the last
        digits of a float64 sum in sight. The gaps between representable values are not hidden
        (Mironov 2012; Haney et al. 2022).

        Args:
            shape: of the tensor.
            purpose, indices: as for `key`.
        Guarantees: test_attack_clip.py::test_noise_is_as_fine_as_what_it_hides;
            test_attack_randomness.py::test_noise_reaches_beyond_what_any_delta_can_see.
        """
        import torch

        if self.seed is None:
            return torch.from_numpy(_normal_from_entropy(shape))
        generator = _reused_generator(key(self.seed, purpose, *indices))
        return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


# ---- from a seed

_PER_THREAD = threading.local()


def _reused_generator(bits: int) -> np.random.Generator:
    """This thread's generator with a new key: to draw from at once, and never to keep.

    A run makes many small draws, and a new Philox costs more than most of them.
    """
    if not hasattr(_PER_THREAD, "generator"):
        _PER_THREAD.generator = np.random.Generator(np.random.Philox(key=0))
        _PER_THREAD.start = _PER_THREAD.generator.bit_generator.state
    # The rest of the state (counter, buffers) is that of a Philox from which nothing was drawn.
    _PER_THREAD.start["state"]["key"] = (bits & (2**64 - 1), bits >> 64)
    _PER_THREAD.generator.bit_generator.state = _PER_THREAD.start
    return _PER_THREAD.generator


# ---- from the operating system's entropy

_FULL = 2**53
"""A whole number from here on fills all bits of a float64."""


def _words(shape: Shape) -> np.ndarray:
    """64 bits of the operating system's entropy for each entry."""
    return np.frombuffer(os.urandom(8 * int(np.prod(shape))), dtype=np.uint64).reshape(shape)


def _normal_from_entropy(shape: Shape) -> np.ndarray:
    """Independent standard normal numbers, float64, without an end and without a coarse tail.

    One bit of a word is the sign, and 63 bits tell where in its half the number lies. Towards the
    tail they would soon be too few: the last values would lie far apart, and none beyond 9.1. A
    neighbour's release behind the end, or between two such values, would be known for certain, and
    no accountant counts that. So a number near the tail (one of 1,024) takes more words.
    """
    from scipy.special import ndtri, ndtri_exp

    words = _words(shape).ravel()
    places = words >> np.uint64(1)
    # The half keeps zero out, where the inverse is infinite.
    lower = ndtri((places + 0.5) * 2.0**-64)
    for i in np.flatnonzero(places < _FULL):
        place = int(places[i])
        length = 64
        while place < _FULL:
            place = place << 64 | int.from_bytes(os.urandom(8), "big")
            length += 64
        # By its logarithm: far out the probability itself is no float.
        lower[i] = ndtri_exp(math.log(place + 0.5) - length * math.log(2))
    sign = 1.0 - 2.0 * (words & np.uint64(1))
    return (sign * lower).reshape(shape)
