"""Secure aggregation in one process: a grid for real numbers, and masks that cancel in a sum.

Notebook 13 masks and opens with what its exercises build. It shows what a server sees. It is no
protection: a protocol needs keys that the pairs agree on through the server, shares of every secret
for clients that are lost, and a generator made for cryptography (ePrint 2020/704).

What is opened is a sum of values that each client rounded for itself. It is no function of the sum
of the noised values, so that sum's epsilon is not proven for it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from fedlora_lab._utils.validation import check, check_number, check_whole


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Writes real numbers as integers, whose sums are taken modulo ``modulus``.

    Args:
        clipping_range: > 0; numbers in [-clipping_range, clipping_range] are cut into levels,
            larger ones are cut off, entry by entry.
        levels: steps in that range, in [1, 2^31).
        modulus: a power of two in [2, 2^32].

    Guarantees: test_lesson_13.py::test_the_grid_rounds_right_on_average,
        ::test_a_sum_never_wraps.
    """

    clipping_range: float
    levels: int = 2**16
    modulus: int = 2**24

    def __post_init__(self) -> None:
        check_number("clipping_range", self.clipping_range, 0, 1e30, open_low=True)
        check_whole("levels", self.levels, 1, 2**31 - 1)

    @property
    def step(self) -> float:
        """Distance of neighbouring levels."""
        return 2 * self.clipping_range / self.levels

    def quantize(
        self, values: Float[np.ndarray, " d"], rng: np.random.Generator
    ) -> Int[np.ndarray, " d"]:
        """Rounds at random to a neighbouring level, right on average."""
        inside = np.clip(values, -self.clipping_range, self.clipping_range)
        exact = (inside + self.clipping_range) / self.step
        # Up with the chance of the rest, so that no sum of many is off to one side.
        return np.floor(exact + rng.random(exact.shape)).clip(max=self.levels).astype(np.int64)

    def dequantize(self, total: Int[np.ndarray, " d"], clients: int) -> Float[np.ndarray, " d"]:
        """Turns the sum of so many clients' levels back into real numbers.

        Raises: ValueError: where the largest sum would pass the modulus.
        """
        # Past the modulus the sum would wrap unnoticed.
        check(
            clients * self.levels < self.modulus,
            "modulus",
            self.modulus,
            f"above {clients} clients x {self.levels} levels",
        )
        return total * self.step - clients * self.clipping_range


def pair_masks(
    clients: int, size: int, modulus: int, rng: np.random.Generator
) -> Int[np.ndarray, "clients clients d"]:
    """Draws the masks that pairs of clients agree on: one for [k, j] and [j, k], uniform.

    Args: clients: >= 2; size: numbers in a mask; modulus: numbers are in [0, modulus).
    """
    masks = rng.integers(0, modulus, (size, clients, clients))
    above = np.triu(masks, 1)
    return np.moveaxis(above + np.swapaxes(above, 1, 2), 0, -1)
