"""Demonstrates secure aggregation: masked uploads look random, and only their sum can be opened.

The protocol is SecAgg+ in one process, built from Flower's own key agreement, secret sharing, mask
generator and quantiser. Clients stand in a ring and share masks with some neighbours, or with all
others, which is the older SecAgg. It shows what the server sees, and what that costs. It is no
protection: Flower 1.41 draws a mask from a seed of 32 bits, of which a pair's shared key fills 28
at most, with a generator that is no cryptographic one
(test_secagg_demo.py::test_a_seed_of_a_pair_is_short).

What is opened is a sum of values that each client rounded for itself. It is no function of the sum
of the noised values, so that sum's epsilon is not proven for it: see `theory.rounded_epsilon`.
"""

import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fedlora_lab._utils.validation import check, check_number, check_whole


@cache
def load_flower() -> SimpleNamespace:
    """Loads Flower's primitives; raises ``ImportError`` with the command that adds them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr.common.secure_aggregation import quantization, secaggplus_utils
        from flwr.common.secure_aggregation.crypto import shamir, symmetric_encryption
        from flwr.supercore.primitives import asymmetric

        import fedlora_lab.flower  # noqa: F401 - switches telemetry off, says what to install

    modules = (quantization, secaggplus_utils, shamir, symmetric_encryption, asymmetric)
    names = {name: value for module in modules for name, value in vars(module).items()}
    return SimpleNamespace(**names)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Writes real numbers as integers, whose sums are taken modulo ``modulus``.

    Args:
        clipping_range: > 0; numbers in [-clipping_range, clipping_range] are cut into levels,
            larger ones are cut off, entry by entry.
        levels: steps in that range, in [1, 2^31): Flower's quantiser holds levels in 32 bits.
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

    def quantize(self, values: Float[np.ndarray, " d"]) -> Int[np.ndarray, " d"]:
        """Rounds at random to a neighbouring level, right on average (NumPy's global generator)."""
        return (
            load_flower().quantize([values], self.clipping_range, self.levels)[0].astype(np.int64)
        )

    def dequantize(self, total: Int[np.ndarray, " d"], clients: int) -> Float[np.ndarray, " d"]:
        """Turns the sum of so many clients' levels back into real numbers."""
        return total * self.step - clients * self.clipping_range


@dataclass
class Client:
    """Plays one client's side of the protocol.

    Args:
        index: its place among the clients; grid: how numbers are written.
        update: (d,), what it uploads.
        seed: of the mask that is its own.
        shares: client -> shares of its two secrets that this client keeps.
    """

    index: int
    grid: Grid
    update: Float[np.ndarray, " d"]
    seed: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    shares: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._mask_key, self.mask_public = load_flower().generate_key_pairs()
        self._post_key, self.post_public = load_flower().generate_key_pairs()

    def encrypt_shares(self, near: "Sequence[Client]", threshold: int) -> dict[int, bytes]:
        """Shares both secrets: one encrypted letter for each neighbour, through the server."""
        secrets = self.seed, load_flower().private_key_to_bytes(self._mask_key)
        split = [
            load_flower().create_shares(secret, threshold, len(near) + 1) for secret in secrets
        ]
        kept, *pairs = zip(*split, strict=True)
        self.shares[self.index], letters = kept, {}
        for other, pair in zip(near, pairs, strict=True):
            key = load_flower().generate_shared_key(self._post_key, other.post_public)
            plain = load_flower().share_keys_plaintext_concat(self.index, other.index, *pair)
            letters[other.index] = load_flower().encrypt(key, plain)
        return letters

    def decrypt_shares(self, sender: "Client", letter: bytes) -> None:
        """Opens a letter and keeps the two shares in it."""
        key = load_flower().generate_shared_key(self._post_key, sender.post_public)
        plain = load_flower().decrypt(key, letter)
        source, target, *shares = load_flower().share_keys_plaintext_separate(plain)
        ours = (source, target) == (sender.index, self.index)
        check(ours, "letter", (source, target), "one for this client")
        self.shares[source] = (shares[0], shares[1])

    def upload(self, near: "Sequence[Client]") -> Int[np.ndarray, " d"]:
        """The quantised update plus masks: one of its own, and one with every neighbour."""
        total = self.grid.quantize(self.update)
        total = total + mask(self.seed, self.grid.modulus, len(total))
        for other in near:
            total = total + _pair_mask(self._mask_key, self, other)
        return total % self.grid.modulus


def mask(seed: bytes, modulus: int, size: int) -> Int[np.ndarray, " d"]:
    """Draws the numbers that Flower draws from a seed.

    Args: seed: any bytes; modulus: above all numbers, which are >= 0; size: how many.
    """
    return load_flower().pseudo_rand_gen(seed, modulus, [(size,)])[0]


def _pair_mask(key: Any, own: Client, other: Client) -> Int[np.ndarray, " d"]:
    """Draws what one client, whose private key is given, adds for its pair with another."""
    seed = load_flower().generate_shared_key(key, other.mask_public)
    # Opposite signs at the two ends of a pair: the common mask drops out of the sum.
    return np.sign(own.index - other.index) * mask(seed, own.grid.modulus, len(own.update))


def _nearest(index: int, count: int, width: int) -> list[int]:
    """The neighbours of a client in a ring: ``width``, half on either side, or all others."""
    if width == count - 1:
        return [k for k in range(count) if k != index]
    steps = range(1, width // 2 + 1)
    return [(index + sign * step) % count for step in steps for sign in (-1, 1)]


@dataclass(frozen=True)
class SecAggResult:
    """What secure aggregation let the server see, and what it cost.

    Args:
        total: (d,), the sum of the updates that arrived, as real numbers; arrived: whose.
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
    updates: Float[np.ndarray, "clients d"],
    grid: Grid,
    *,
    threshold: int,
    dropped: Sequence[int] = (),
    neighbours: int | None = None,
) -> SecAggResult:
    """Plays the four stages: keys, letters with shares, masked uploads, opening.

    Args:
        updates: one row a client, noised already where noise is wanted.
        grid: how numbers are written.
        threshold: shares that open a secret, in [2, neighbours + 1]; where fewer of a client's
            neighbours and itself upload, nothing is opened.
        dropped: clients whose upload is lost, after they sent their letters.
        neighbours: of each client in the ring, an even number; ``None``: all others.

    Raises:
        ValueError: for values out of range, a modulus that the sum could pass, too few uploads.

    Guarantees: the sum equals that of the clients that arrived, within `Grid.max_error`, whoever is
        lost (test_secagg_demo.py::test_the_sum_is_opened_whoever_is_lost).

    Source: arXiv:2012.05422 (SecAgg+); ACM CCS 2017, Bonawitz et al., section 4.
    """
    count, lost = len(updates), set(dropped)
    finite = updates.ndim == 2 and bool(np.isfinite(updates).all())
    check(finite, "updates", updates.shape, "finite, one row a client")
    width = count - 1 if neighbours is None else neighbours
    check_whole("neighbours", width, 1, count - 1)
    check(width == count - 1 or width % 2 == 0, "neighbours", width, "an even number, or all")
    check_whole("threshold", threshold, 2, width + 1)
    # Past the modulus the sum would wrap unnoticed.
    above = f"above {count} clients x {grid.levels} levels"
    check(count * grid.levels < grid.modulus, "modulus", grid.modulus, above)
    check(lost <= set(range(count)), "dropped", sorted(lost), f"clients in [0, {count})")
    near = {k: _nearest(k, count, width) for k in range(count)}
    fewest = min(len({k, *near[k]} - lost) for k in range(count))
    most = f"so few that {threshold} uploads around each client arrive: else nothing opens"
    check(fewest >= threshold, "dropped", sorted(lost), most)
    begun, clients = time.perf_counter(), [Client(k, grid, row) for k, row in enumerate(updates)]
    keys = (key for one in clients for key in (one.mask_public, one.post_public))
    size = sum(len(load_flower().public_key_to_bytes(key)) for key in keys)
    for one in clients:
        circle = [clients[k] for k in near[one.index]]
        for target, letter in one.encrypt_shares(circle, threshold).items():
            clients[target].decrypt_shares(one, letter)
            size += len(letter)
    there = [one for one in clients if one.index not in lost]
    uploads = np.stack([one.upload([clients[k] for k in near[one.index]]) for one in there])
    size += uploads.size * ((grid.modulus.bit_length() + 6) // 8)  # whole bytes a number
    total = uploads.sum(0)
    for owner in clients:
        # Of a client that arrived the server opens its mask's seed, of a lost one the key of its
        # pairs; never both, for both together would open a single update.
        circle = [one for one in there if one.index in (owner.index, *near[owner.index])]
        shares = [one.shares[owner.index][owner.index in lost] for one in circle[:threshold]]
        size += sum(map(len, shares))
        secret = load_flower().combine_shares(shares)
        if owner.index not in lost:
            total = total - mask(secret, grid.modulus, len(total))
            continue
        key = load_flower().bytes_to_private_key(secret)
        for one in circle:  # the masks that the others share with the lost one stayed in the sum
            total = total + _pair_mask(key, owner, one)
    return SecAggResult(
        total=grid.dequantize(total % grid.modulus, len(there)),
        arrived=tuple(one.index for one in there),
        uploads=uploads,
        grid=grid,
        bytes_up=size,
        bytes_plain=4 * uploads.size,
        seconds=time.perf_counter() - begun,
    )
