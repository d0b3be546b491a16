"""Secure aggregation in one process: masks that cancel in a sum, and one client that is lost.

Every pair of clients shares a secret seed, from which both draw the same mask; one adds it, the
other subtracts it. It shows what the server sees. It is no protection: a protocol needs keys that
the pairs agree on through the server, shares of every secret for clients that are lost, and a
generator made for cryptography (arXiv:2012.05422).

What is opened is a sum of values that each client rounded for itself. It is no function of the sum
of the noised values, so that sum's epsilon is not proven for it: see `theory.rounded_epsilon`.
"""

import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from fedlora_lab._utils.validation import check, check_number, check_whole

ClientPair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Writes real numbers as integers, whose sums are taken modulo ``modulus``.

    Args:
        clipping_range: > 0; numbers in [-clipping_range, clipping_range] are cut into levels,
            larger ones are cut off, entry by entry.
        levels: steps in that range, in [1, 2^31).
        modulus: a power of two in [2, 2^32].

    Guarantees: test_secagg_demo.py::test_the_error_keeps_to_its_bound, ::test_a_sum_never_wraps.
    """

    clipping_range: float
    levels: int = 2**16
    modulus: int = 2**24

    def __post_init__(self) -> None:
        check_number("clipping_range", self.clipping_range, 0, 1e30, open_low=True)
        check_whole("levels", self.levels, 1, 2**31 - 1)
        check_whole("modulus", self.modulus, 2, 2**32)
        check(self.modulus & (self.modulus - 1) == 0, "modulus", self.modulus, "a power of two")

    @property
    def step(self) -> float:
        """Distance of neighbouring levels."""
        return 2 * self.clipping_range / self.levels

    def max_error(self, clients: int) -> float:
        """The largest rounding error of a sum of so many clients, cut-off entries aside."""
        return clients * self.step

    def quantize(
        self, values: Float[np.ndarray, " d"], rng: np.random.Generator
    ) -> Int[np.ndarray, " d"]:
        """Rounds at random to a neighbouring level, right on average."""
        inside = np.clip(values, -self.clipping_range, self.clipping_range)
        exact = (inside + self.clipping_range) / self.step
        # Up with the chance of the rest, so that no sum of many is off to one side.
        return np.floor(exact + rng.random(exact.shape)).clip(max=self.levels).astype(np.int64)

    def dequantize(self, total: Int[np.ndarray, " d"], clients: int) -> Float[np.ndarray, " d"]:
        """Turns the sum of so many clients' levels back into real numbers."""
        return total * self.step - clients * self.clipping_range


def pair_seeds(clients: int) -> dict[ClientPair, int]:
    """A secret seed of 128 bits for every pair of clients."""
    return {pair: secrets.randbits(128) for pair in itertools.combinations(range(clients), 2)}


def pair_mask(seed: int, modulus: int, size: int) -> Int[np.ndarray, " d"]:
    """The numbers that both clients of a pair draw from their seed.

    Args: seed: which only the two know. modulus: numbers are in [0, modulus). size: how many.
    """
    return np.random.default_rng(seed).integers(0, modulus, size)


def masked_upload(
    k: int, levels: Int[np.ndarray, " d"], seeds: Mapping[ClientPair, int], modulus: int
) -> Int[np.ndarray, " d"]:
    """What client k sends: its levels plus one mask for every other client.

    Args: k: the client. levels: its numbers on the grid. seeds: of all pairs. modulus: of the sums.
    """
    total = levels.copy()
    for (first, second), seed in seeds.items():
        if k in (first, second):
            mask = pair_mask(seed, modulus, len(levels))
            # Opposite signs at the two ends of a pair: the mask drops out of the sum.
            total += mask if k == first else -mask
    return total % modulus


@dataclass(frozen=True)
class SecAggResult:
    """What secure aggregation let the server see.

    Args:
        total: (d,), the sum of the updates that arrived, as real numbers; arrived: whose.
        uploads: (arrived, d), integers as the server received them, masks on.
        grid: how numbers were written.
    """

    total: Float[np.ndarray, " d"]
    arrived: tuple[int, ...]
    uploads: Int[np.ndarray, "arrived d"]
    grid: Grid


def aggregate(
    updates: Float[np.ndarray, "clients d"], grid: Grid, *, dropped: int | None = None
) -> SecAggResult:
    """Masks every update, loses one client's, and opens the sum of the others.

    Args:
        updates: one row a client, noised already where noise is wanted.
        grid: how numbers are written.
        dropped: the client whose upload is lost, after the pairs agreed on their seeds.

    Raises:
        ValueError: for values out of range, and for a modulus that the sum could pass.

    Guarantees: the sum equals that of the clients that arrived, within `Grid.max_error`, whoever is
        lost (test_secagg_demo.py::test_the_sum_is_opened_whoever_is_lost).
    """
    finite = updates.ndim == 2 and bool(np.isfinite(updates).all())
    check(finite, "updates", updates.shape, "finite, one row a client")
    count, size = updates.shape
    # Past the modulus the sum would wrap unnoticed.
    above = f"above {count} clients x {grid.levels} levels"
    check(count * grid.levels < grid.modulus, "modulus", grid.modulus, above)
    if dropped is not None:
        check_whole("dropped", dropped, 0, count - 1)
    rng = np.random.default_rng(secrets.randbits(128))
    levels = [grid.quantize(row, rng) for row in updates]
    seeds = pair_seeds(count)
    arrived = tuple(k for k in range(count) if k != dropped)
    uploads = np.stack([masked_upload(k, levels[k], seeds, grid.modulus) for k in arrived])
    total = uploads.sum(0)
    if dropped is not None:
        # The masks that the others share with the lost client stayed in the sum: they tell the
        # server these seeds. The lost client's own numbers would cancel them, and never arrive.
        lost = {pair: seed for pair, seed in seeds.items() if dropped in pair}
        total = total + masked_upload(dropped, np.zeros(size, np.int64), lost, grid.modulus)
    opened = grid.dequantize(total % grid.modulus, len(arrived))
    return SecAggResult(opened, arrived, uploads, grid)
