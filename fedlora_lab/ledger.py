"""What was released, written down before it is used. The ledger alone may state epsilon."""

import copy
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedlora_lab import accounting, sealed
from fedlora_lab.checks import check, check_one_of
from fedlora_lab.release import Release

FORMAT, VERSION = "fedlora_lab.ledger", 1
Spent = dict[tuple[float, float], int]
"""Releases by (noise multiplier, sample rate)."""


class Uncertified(ValueError):
    """Raised in place of an epsilon when the noise does not match the sensitivity."""


class Ledger:
    """Per-client histories of noised releases, at one unit of privacy and one delta.

    Args:
        unit: "example" or "client". In the client unit every release counts for every client, whether drawn or not:
            who was drawn must stay secret for subsampling to amplify, so it is not even kept.
        delta: in (0, 1).
        accountant: "prv" or "rdp".
        reproducible: the noise can be drawn again from a seed. Such a run may repeat a round (resume): it draws the
            same noise, so an identical entry counts once. Otherwise each entry is a fresh release and counts anew.

    Guarantees:
        test_ledger_round_trip, test_ledger_refuses_any_changed_byte, test_ledger_idempotent_when_reproducible,
        test_ledger_release_mode_counts_again, test_ledger_uncertified.
    """

    def __init__(
        self, *, unit: str = "example", delta: float = 1e-5, accountant: str = "prv", reproducible: bool = True
    ) -> None:
        check_one_of("unit", unit, ("example", "client"))
        accounting.check_delta(delta)
        check_one_of("accountant", accountant, ("prv", "rdp"))
        check(isinstance(reproducible, bool), "reproducible", reproducible, "True or False")
        self._terms = (unit, float(delta), accountant, reproducible)
        self._uncertified: str | None = None
        self._frozen = False
        self._releases: tuple[Release, ...] = ()
        self._rounds: dict[int, Release] = {}
        self._spent: dict[int | None, Spent] = {}

    @property
    def unit(self) -> str:
        """What neighbours differ by; like all terms of a ledger, it cannot be set afterwards."""
        return self._terms[0]

    @property
    def delta(self) -> float:
        """The chance that the promise leaves out."""
        return self._terms[1]

    @property
    def accountant(self) -> str:
        """Who counts."""
        return self._terms[2]

    @property
    def reproducible(self) -> bool:
        """The noise can be drawn again from a seed."""
        return self._terms[3]

    @property
    def terms(self) -> tuple[str, float, str, bool]:
        """Unit, delta, accountant, reproducible: two ledgers of one run agree on all of them."""
        return self._terms

    @property
    def mode(self) -> str:
        """Whether the noise may protect anyone: noise from a known seed can be subtracted."""
        return "reproducible: not for release" if self.reproducible else "release"

    @property
    def releases(self) -> tuple[Release, ...]:
        """Every entry, in the order it was written."""
        return self._releases

    @property
    def uncertified(self) -> str | None:
        """Why no epsilon can be stated; ``None`` when one can."""
        return self._uncertified

    @uncertified.setter
    def uncertified(self, reason: str | None) -> None:
        check(not self._frozen, "ledger", "snapshot", "the run's own ledger: a snapshot takes no entries")
        check(reason is None or (isinstance(reason, str) and bool(reason)), "uncertified", reason, "a reason or None")
        kept = reason is not None or self._uncertified is None
        check(kept, "uncertified", reason, "a reason: what was released without a promise stays so")
        self._uncertified = reason

    def record(
        self, round: int, clients: Sequence[int] | None, count: int = 1, *, sample_rate: Any, noise_multiplier: Any
    ) -> None:
        """Write down ``count`` releases of a round, before any of them is used.

        Args:
            round: counted from 0; one entry a round.
            clients: those who took part (example unit); ``None`` is every client. Not kept in the client unit.
            count: releases by each of them, >= 0.
            sample_rate: q in [0, 1], one number or one per client named.
            noise_multiplier: sigma >= 0 likewise; ``None`` is no noise.

        Raises:
            ValueError: out of range; or, when reproducible, an entry that differs from the one of the same round.
        """
        check(not self._frozen, "ledger", "snapshot", "the run's own ledger: a snapshot takes no entries")
        named = None if self.unit == "client" else clients
        entry = Release.of(round, named, count, sample_rate, noise_multiplier)
        earlier = self._rounds.get(round) if self.reproducible else None
        check(earlier in (None, entry), "round", round, "the entry that this round already has in the ledger")
        if earlier is None:
            self._append(entry)

    def _append(self, entry: Release) -> None:
        self._rounds[entry.round] = entry
        self._releases = (*self._releases, entry)
        for client, pair in entry.rows():
            history = self._spent.get(client, {})
            self._spent[client] = {**history, pair: history.get(pair, 0) + entry.count}

    @property
    def clients(self) -> tuple[int, ...]:
        """Clients that are named in some entry, sorted."""
        return tuple(sorted(k for k in self._spent if k is not None))

    def history(self, client: int | None = None) -> accounting.History:
        """(noise_multiplier, sample_rate, steps) of one client; of ``None``, what counts for every client."""
        total = dict(self._spent.get(None, {}))
        for pair, count in (self._spent.get(client, {}) if client is not None else {}).items():
            total[pair] = total.get(pair, 0) + count
        return tuple((*pair, count) for pair, count in total.items())

    def epsilon(self, client: int | None = None) -> float:
        """Epsilon spent by one client, or the largest over all of them; ``inf`` after a release without noise.

        Raises:
            Uncertified: with the reason, when the ledger was told that a release cannot be certified.
        """
        if self._uncertified is not None:
            raise Uncertified(f"epsilon: not certified: {self._uncertified}")
        return self._epsilon(self._worst() if client is None else client)

    def _epsilon(self, client: int | None) -> float:
        return accounting.epsilon(self.history(client), self.delta, self.accountant)

    def _worst(self) -> int | None:
        """The client that spent most; ``None`` when every client has the common history."""
        return max((None, *self.clients), key=self._epsilon) if self.clients else None

    def spent(self) -> float:
        """Largest epsilon over the clients; ``inf`` where none can be certified."""
        return float("inf") if self._uncertified is not None else self.epsilon()

    def snapshot(self) -> "Ledger":
        """A copy that takes no more entries; shares what cannot change."""
        twin = copy.copy(self)
        twin._rounds, twin._spent, twin._frozen = dict(self._rounds), dict(self._spent), True
        return twin

    def event(self, client: int | None = None) -> Any:
        """The history of one client, or of the one who spent most, as a ``dp_accounting.DpEvent``.

        Guarantees:
            test_ledger_event_gives_the_same_epsilon.
        """
        import dp_accounting as dp

        def one(sigma: float | None, q: float) -> dp.DpEvent:
            if not sigma:
                return dp.NonPrivateDpEvent()
            return dp.GaussianDpEvent(sigma) if q == 1 else dp.PoissonSampledDpEvent(q, dp.GaussianDpEvent(sigma))

        if self._uncertified is not None:
            raise Uncertified(f"event: not certified: {self._uncertified}")
        history = self.history(self._worst() if client is None else client)
        parts: list[dp.DpEvent] = [dp.SelfComposedDpEvent(one(s, q), steps) for s, q, steps in history if steps and q]
        return dp.ComposedDpEvent(parts) if parts else dp.NoOpDpEvent()

    def to_frame(self) -> Any:
        """One row per client: client ("every" for a common history), releases, epsilon (inf where uncertified)."""
        import pandas as pd

        rows = []
        for client in self.clients or (None,):
            spent = float("inf") if self._uncertified is not None else self._epsilon(client)
            count = sum(steps for *_, steps in self.history(client))
            rows.append({"client": "every" if client is None else client, "releases": count, "epsilon": spent})
        return pd.DataFrame(rows)

    def to_json(self) -> str:
        """The whole ledger as one canonical text with a digest of itself; the digest finds damage, not forgery."""
        content = {name: getattr(self, name) for name in ("unit", "delta", "accountant", "reproducible", "uncertified")}
        return sealed.write(FORMAT, VERSION, {**content, "releases": [asdict(entry) for entry in self._releases]})

    @classmethod
    def from_json(cls, text: str, name: str = "ledger") -> "Ledger":
        """The ledger that ``to_json`` wrote; it can be continued.

        Raises:
            ValueError: one line, for anything but a text that ``to_json`` gave.
        """
        content = sealed.read(FORMAT, VERSION, text, name)
        try:
            settings = {key: value for key, value in content.items() if key not in ("uncertified", "releases")}
            ledger = cls(**settings)
            ledger.uncertified = content["uncertified"]
            for fields in content["releases"]:
                ledger._append(Release.of(**fields))
        except (ValueError, TypeError, KeyError, AttributeError):
            ledger = None
        if ledger is None or ledger.to_json() != text:
            raise ValueError(f"{name}: expected the entries of a ledger, found others")
        return ledger

    def save(self, path: str | os.PathLike) -> None:
        """Write to a temporary name in the same folder, then rename: a reader finds the old file or the new one."""
        sealed.save(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Ledger":
        """The ledger in a file that ``save`` wrote; ``ValueError`` in one line when it is damaged."""
        return cls.from_json(sealed.load(path), Path(path).name)
