"""One entry of a ledger: how often, by whom and under how much noise something was released."""

from dataclasses import dataclass
from numbers import Integral
from typing import Any

from fedlora_lab.checks import check, check_number, check_whole, is_number

Numbers = float | tuple[float, ...]
MOST = 2**53
"""Rounds and releases beyond which a float no longer counts them one by one."""


@dataclass(frozen=True)
class Release:
    """One entry: ``count`` noised releases of one round.

    Args:
        round: the round, counted from 0.
        clients: whom it counts for; ``None`` is every client.
        count: number of releases, >= 0.
        sample_rate: q in [0, 1], one number or one per entry of ``clients``.
        noise_multiplier: sigma >= 0, one number or one per entry of ``clients``; 0 is no noise.
    """

    round: int
    clients: tuple[int, ...] | None
    count: int
    sample_rate: Numbers
    noise_multiplier: Numbers

    def __post_init__(self) -> None:
        for name, value in (("round", self.round), ("count", self.count)):
            check_whole(name, value, 0)
            check(value <= MOST, name, value, f"at most {MOST}")
        if self.clients is not None:
            check(isinstance(self.clients, tuple), "clients", self.clients, "a tuple of client numbers, or None")
            for client in self.clients:
                check_whole("clients", client, 0)
            check(len(set(self.clients)) == len(self.clients), "clients", self.clients, "every client once")
        for name, high in (("sample_rate", 1.0), ("noise_multiplier", float("inf"))):
            value = getattr(self, name)
            if isinstance(value, tuple):
                fits = self.clients is not None and len(value) == len(self.clients)
                check(fits, name, value, "one number, or as many as clients")
            for number in value if isinstance(value, tuple) else (value,):
                check_number(name, number, 0, high)
                check(number != float("inf"), name, value, "finite numbers")

    @classmethod
    def of(cls, round: int, clients: Any, count: int, sample_rate: Any, noise_multiplier: Any) -> "Release":
        """From any sequences and number types; a noise multiplier of ``None`` is 0."""
        if hasattr(clients, "__iter__"):
            clients = tuple(_whole(k) for k in clients)
        sigma = 0.0 if noise_multiplier is None else _plain(noise_multiplier)
        return cls(_whole(round), clients, _whole(count), _plain(sample_rate), sigma)

    def rows(self) -> list[tuple[int | None, tuple[float, float]]]:
        """(client, (noise multiplier, sample rate)) for each client it counts for."""
        clients = (None,) if self.clients is None else self.clients
        n = len(clients)
        spread = [v if isinstance(v, tuple) else (v,) * n for v in (self.noise_multiplier, self.sample_rate)]
        return list(zip(clients, zip(*spread, strict=True), strict=True))


def _whole(value: Any) -> Any:
    """A plain int out of any integer type; what is none is left for the checks to refuse."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def _plain(value: Any) -> Any:
    """Floats out of numbers and sequences; what is neither is left for the checks to refuse."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return float(value) if is_number(value) else value
    return tuple(float(v) if is_number(v) else v for v in value)
