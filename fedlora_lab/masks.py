"""Secure aggregation with real masks: clients upload integers that look random, and only their sum can be opened.

The protocol is that of Flower's SecAgg+, every client a neighbour of every other, in one process, built from
Flower's own primitives: key agreement, Shamir's secret sharing, the generator of masks, the quantiser. It shows what
the server can and cannot see, and what that costs. It is no protection: Flower 1.41 draws a mask from a seed of 32
bits, of which a pair's shared key fills 28 at most, and its generator is no cryptographic one
(test_masks.py::test_a_seed_of_a_pair_is_short).

What the server opens is a sum of values that each client rounded for itself. It is no function of the sum of the noised
values, so the epsilon of that sum is not proven for it: see `theory.rounded_epsilon`.
"""

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

import numpy as np
from jaxtyping import Float, Int

from fedlora_lab.checks import check, check_number, check_whole

LARGEST = 2**31 - 1  # Flower's quantiser holds levels in 32 bits


@cache
def flower() -> SimpleNamespace:
    """Flower's primitives, loaded when first wanted. Raises ``ImportError`` with the command that adds them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr.common.secure_aggregation import quantization, secaggplus_utils
        from flwr.common.secure_aggregation.crypto import shamir, symmetric_encryption
        from flwr.supercore.primitives import asymmetric

        import fedlora_lab.flower  # noqa: F401 - says no to telemetry, and says what to install

    found: dict[str, object] = {}
    for module in (quantization, secaggplus_utils, shamir, symmetric_encryption, asymmetric):
        found |= vars(module)
    return SimpleNamespace(**{name: value for name, value in found.items() if not name.startswith("_")})


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Real numbers as integers: [-reach, reach] cut into ``levels`` steps, sums taken modulo ``modulus``.

    Args:
        reach: > 0; larger numbers are cut off, entry by entry.
        levels: in [1, 2^31).
        modulus: a power of two in [2, 2^32].

    Guarantees: test_masks.py::test_the_error_keeps_to_its_bound, ::test_a_sum_never_wraps.
    """

    reach: float
    levels: int = 2**16
    modulus: int = 2**24

    def __post_init__(self) -> None:
        check_number("reach", self.reach, 0, 1e30, open_low=True)
        check_whole("levels", self.levels, 1, LARGEST)
        check_whole("modulus", self.modulus, 2, 2**32)
        check(self.modulus & (self.modulus - 1) == 0, "modulus", self.modulus, "a power of two")

    @property
    def step(self) -> float:
        """Distance of neighbouring levels."""
        return 2 * self.reach / self.levels

    def check_room(self, clients: int) -> None:
        """Refuse a modulus that the sum of so many clients could pass: it would wrap, and nobody would notice."""
        room = clients * self.levels < self.modulus
        check(room, "modulus", self.modulus, f"above {clients} clients x {self.levels} levels")

    def error(self, clients: int) -> float:
        """Largest error of a sum of so many clients, cut-off entries aside: every one is rounded by a step at most."""
        return clients * self.step

    def whole(self, values: Float[np.ndarray, " d"]) -> Int[np.ndarray, " d"]:
        """Rounded at random to one of the two levels beside each value, right on average (NumPy's global generator)."""
        return flower().quantize([values], self.reach, self.levels)[0].astype(np.int64)

    def real(self, total: Int[np.ndarray, " d"], clients: int) -> Float[np.ndarray, " d"]:
        """The sum of so many clients' values back in real numbers."""
        return total * self.step - clients * self.reach


@dataclass
class Client:
    """One client's side of the protocol: its update, two pairs of keys, and the shares it keeps for others."""

    index: int
    grid: Grid
    update: Float[np.ndarray, " d"]
    seed: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    held: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        (self._mask_key, self.mask_public), (self._post_key, self.post_public) = (
            flower().generate_key_pairs() for _ in "12"
        )

    def letters(self, others: "Sequence[Client]", threshold: int) -> dict[int, bytes]:
        """Shares of both secrets, one encrypted letter for each other client; the server only carries them."""
        secrets = self.seed, flower().private_key_to_bytes(self._mask_key)
        pairs = list(zip(*(flower().create_shares(secret, threshold, len(others)) for secret in secrets), strict=True))
        self.held[self.index] = pairs[self.index]
        sent = {}
        for other in others:
            if other is not self:
                key = flower().generate_shared_key(self._post_key, other.post_public)
                sent[other.index] = flower().encrypt(
                    key, flower().share_keys_plaintext_concat(self.index, other.index, *pairs[other.index])
                )
        return sent

    def receive(self, sender: "Client", letter: bytes) -> None:
        """Open a letter and keep the two shares in it."""
        key = flower().generate_shared_key(self._post_key, sender.post_public)
        source, target, *shares = flower().share_keys_plaintext_separate(flower().decrypt(key, letter))
        check((source, target) == (sender.index, self.index), "letter", (source, target), "one for this client")
        self.held[source] = (shares[0], shares[1])

    def upload(self, others: "Sequence[Client]") -> Int[np.ndarray, " d"]:
        """The update on the grid, plus a mask of its own, plus one with every other client that the other takes off."""
        total = self.grid.whole(self.update) + mask(self.seed, self.grid.modulus, len(self.update))
        for other in others:
            if other is not self:
                key = flower().generate_shared_key(self._mask_key, other.mask_public)
                sign = 1 if self.index > other.index else -1
                total = total + sign * mask(key, self.grid.modulus, len(self.update))
        return total % self.grid.modulus


def mask(seed: bytes, modulus: int, size: int) -> Int[np.ndarray, " d"]:
    """The numbers in [0, modulus) that Flower draws from a seed."""

    return flower().pseudo_rand_gen(seed, modulus, [(size,)])[0]


@dataclass(frozen=True)
class Unmasked:
    """What secure aggregation let the server see, and what it cost.

    Args:
        total: (d,), the sum of the updates that arrived, as real numbers.
        arrived: whose.
        uploads: (arrived, d), integers as the server received them, masks on.
        grid: how numbers were written.
        bytes_up: of all clients together: keys, letters, uploads, shares for the opening.
        bytes_plain: the same updates as float32, without masks.
        seconds: that all parties took, one after the other.
    """

    total: Float[np.ndarray, " d"]
    arrived: tuple[int, ...]
    uploads: Int[np.ndarray, "arrived d"]
    grid: Grid
    bytes_up: int
    bytes_plain: int
    seconds: float


def aggregate(
    updates: Float[np.ndarray, "clients d"], grid: Grid, *, threshold: int, dropped: Sequence[int] = ()
) -> Unmasked:
    """Play the four stages: keys, letters with shares, masked uploads, opening.

    Args:
        updates: one row a client, noised already where noise is wanted.
        threshold: shares that open a secret, in [2, clients]; with fewer uploads nothing is opened.
        dropped: clients whose upload is lost, after they sent their letters.

    Raises: ``ValueError`` for values out of range, a modulus that the sum could pass, too few uploads.
    Guarantees: the sum equals that of the clients that arrived, within `Grid.error`, whoever of the others is lost
        (test_masks.py::test_the_sum_is_opened_whoever_is_lost).
    Source: arXiv:2012.05422 (SecAgg+); ACM CCS 2017, Bonawitz et al., section 4.
    """
    clients = len(updates)
    check(updates.ndim == 2 and bool(np.isfinite(updates).all()), "updates", updates.shape, "finite, one row a client")
    check_whole("threshold", threshold, 2, clients)
    grid.check_room(clients)
    lost = set(dropped)
    check(lost <= set(range(clients)), "dropped", sorted(lost), f"clients in [0, {clients})")
    check(clients - len(lost) >= threshold, "dropped", sorted(lost), f"{clients - threshold} at most: nothing opens")
    begun, everyone = time.perf_counter(), [Client(k, grid, row) for k, row in enumerate(updates)]
    size = sum(len(_public(key)) for one in everyone for key in (one.mask_public, one.post_public))
    for one in everyone:
        for target, letter in one.letters(everyone, threshold).items():
            everyone[target].receive(one, letter)
            size += len(letter)
    there = [one for one in everyone if one.index not in lost]
    uploads = np.stack([one.upload(everyone) for one in there])
    size += uploads.size * ((grid.modulus.bit_length() + 6) // 8)  # whole bytes a number
    total, shares = _opened(uploads.sum(0), everyone, there, grid, threshold)
    spent = time.perf_counter() - begun
    real = grid.real(total, len(there))
    return Unmasked(real, tuple(one.index for one in there), uploads, grid, size + shares, 4 * uploads.size, spent)


def _public(key: object) -> bytes:

    return flower().public_key_to_bytes(key)  # type: ignore[arg-type]


def _opened(
    total: Int[np.ndarray, " d"], everyone: list[Client], there: list[Client], grid: Grid, threshold: int
) -> tuple[Int[np.ndarray, " d"], int]:
    """The server's part: one secret of every client is put together, its mask's seed or a lost one's key."""

    size, arrived = 0, {one.index for one in there}
    for owner in everyone:
        alive = owner.index in arrived
        shares = [one.held[owner.index][0 if alive else 1] for one in there[:threshold]]
        size += sum(map(len, shares))
        secret = flower().combine_shares(shares)
        if alive:
            total = total - mask(secret, grid.modulus, len(total))
            continue
        key = flower().bytes_to_private_key(secret)
        for one in there:  # the masks that the others share with the lost one stayed in the sum
            pair = mask(flower().generate_shared_key(key, one.mask_public), grid.modulus, len(total))
            total = total - (1 if one.index > owner.index else -1) * pair
    return total % grid.modulus, size
