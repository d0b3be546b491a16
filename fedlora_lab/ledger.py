"""What was released, written down before it is used. The ledger alone may state epsilon."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedlora_lab import accounting, sealed
from fedlora_lab.checks import check, check_one_of
from fedlora_lab.release import Release

FORMAT, VERSION = "fedlora_lab.ledger", 2
Spent = dict[tuple[float, float], int]
"""Releases by (noise multiplier, sample rate)."""

OBSERVERS: dict[str, tuple[str, ...]] = {
    "local": ("server", "released"),
    "secagg": ("server", "released"),
    "central": ("released",),
}
"""Trust -> whom an epsilon can be stated against, the default first. The "server" sees the uploads, or under secure
aggregation their sum, and who sends; "released" is whoever sees the released models only."""

RELATION = "zero-out"
"""Neighbours: one unit's contribution is replaced by nothing; how many units there are, and how large, is public."""


def check_relation(relation: Any) -> None:
    """Refuse a relation of neighbours that no epsilon here covers."""
    why = {
        "add-or-remove": "sums are divided by n_k q and q is batch / n_k, so a size that differs would show; sizes are "
        "public here",
        "replace-one": "replacing one unit is two of these changes: read epsilon for groups of two",
    }
    words = f"{RELATION!r}, one unit's contribution replaced by nothing"
    check(relation == RELATION, "relation", relation, words + (f"; {why[relation]}" if relation in why else ""))


def undominated(histories: Iterable[accounting.History]) -> list[accounting.History]:
    """Those histories of which one spends most: epsilon never falls with less noise, a larger q or more releases.

    Entries are compared one by one in their order, so two histories of different lengths keep each other.
    """
    kept: list[accounting.History] = []
    # the largest first, so that most of the others fall at the first comparison
    for one in sorted(set(histories), key=lambda h: [(sigma, -q, -steps) for sigma, q, steps in h]):
        if not any(_dominates(other, one) for other in kept):
            kept = [*(other for other in kept if not _dominates(one, other)), one]
    return kept


def _dominates(one: accounting.History, other: accounting.History) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(
        (a[0] or 0) <= (b[0] or 0) and a[1] >= b[1] and a[2] >= b[2] for a, b in pairs
    )


class Uncertified(ValueError):
    """Raised in place of an epsilon when the noise does not match the sensitivity."""


class Ledger:
    """Per-client histories of noised releases, at one unit of privacy and one delta.

    Args:
        unit: "example" or "client". In the client unit every release counts for every client, whether drawn or not:
            who was drawn must stay secret for subsampling to amplify, so it is not even kept.
        delta: in [1e-12, 1).
        accountant: "prv" or "rdp".
        reproducible: the noise can be drawn again from a seed. Only such a run may repeat a round (resume): it draws
            the same noise, see ``record``.
        trust: whom the noise protects from, see ``Privacy``; ``None``: "local" for the example unit, else "central".
        relation: "zero-out", the only one there is: one unit's contribution is replaced by nothing, the number of
            units and their sizes are public.

    Participation amplifies only where nobody learns who takes part: in the client unit q counts under trust "central"
    alone. Under "local" the uploads tell, and under "secagg" the server sees who sends and the noise of the released
    sum tells everybody how many did. In the example unit the batch is drawn inside the client, and its q counts.

    Guarantees:
        test_ledger_round_trip, test_ledger_refuses_any_changed_byte, test_every_record_counts,
        test_a_replay_counts_once, test_ledger_release_mode_counts_again, test_ledger_uncertified,
        test_the_aggregator_is_not_amplified_against, test_compose_adds_up.
    """

    def __init__(
        self,
        *,
        unit: str = "example",
        delta: float = 1e-5,
        accountant: str = "prv",
        reproducible: bool = True,
        trust: str | None = None,
        relation: str = RELATION,
    ) -> None:
        check_one_of("unit", unit, ("example", "client"))
        accounting.check_delta(delta)
        check_one_of("accountant", accountant, ("prv", "rdp"))
        check(isinstance(reproducible, bool), "reproducible", reproducible, "True or False")
        trust = ("local" if unit == "example" else "central") if trust is None else trust
        check_one_of("trust", trust, ("local",) if unit == "example" else tuple(OBSERVERS))
        check_relation(relation)
        self._terms = (unit, float(delta), accountant, reproducible, trust, relation)
        self._uncertified: str | None = None
        self._frozen: str | None = None
        self._parts: tuple[Ledger, ...] = ()
        self._entries: list[Release] = []  # only ever appended to, so that snapshots share it
        self._count = 0
        self._rounds: dict[int, Release] = {}
        self._spent: dict[int | None, Spent] = {}

    @classmethod
    def compose(cls, *ledgers: "Ledger") -> "Ledger":
        """What several runs on the same data have spent together: a ledger that takes no more entries.

        Args:
            ledgers: of one task, so that client 3 is the same client in all; same unit, delta and relation. Each part
                is counted under its own trust. The accountant is "rdp" where a part's is.

        Returns: reproducible where a part is; uncertified where a part is. Runs of one seed share their noise: what
            two of them spend together is what they would have spent with noise of their own, and `statement` says so.

        Raises:
            ValueError: no ledger; ledgers whose epsilons cannot be added up.

        Guarantees: test_compose_adds_up, test_compose_refuses_other_terms.
        """
        check(bool(ledgers) and all(isinstance(one, Ledger) for one in ledgers), "ledgers", ledgers, "Ledgers, >= 1")
        parts = tuple(part for one in ledgers for part in one._parts or (one.snapshot(),))
        first = parts[0]
        for name in ("unit", "delta", "relation"):
            values = list(dict.fromkeys(getattr(part, name) for part in parts))
            check(len(values) == 1, name, values, "the same in all ledgers: only then their releases add up")
        trusts = sorted({part.trust for part in parts})
        accountant = "rdp" if any(part.accountant == "rdp" for part in parts) else "prv"
        whole = cls(unit=first.unit, delta=first.delta, accountant=accountant, relation=first.relation)
        whole._terms = (*whole._terms[:3], any(part.reproducible for part in parts), " and ".join(trusts), RELATION)
        reasons = dict.fromkeys(part.uncertified for part in parts if part.uncertified is not None)
        whole._uncertified = "; ".join(reasons) or None
        whole._parts, whole._frozen = parts, "composition"
        return whole

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
    def trust(self) -> str:
        """Whom the noise protects from; of a composition all of its parts' kinds of trust."""
        return self._terms[4]

    @property
    def relation(self) -> str:
        """How neighbours differ in a unit."""
        return self._terms[5]

    @property
    def terms(self) -> tuple[str, float, str, bool, str, str]:
        """Unit, delta, accountant, reproducible, trust, relation: two ledgers of one run agree on all of them."""
        return self._terms

    @property
    def observers(self) -> tuple[str, ...]:
        """Whom an epsilon can be stated against, the default first."""
        if not self._parts:
            return OBSERVERS[self.trust]
        common = [part.observers for part in self._parts]
        return tuple(name for name in common[0] if all(name in names for names in common))

    @property
    def parts(self) -> tuple["Ledger", ...]:
        """The ledgers that a composition adds up; empty for a ledger of one run."""
        return self._parts

    @property
    def mode(self) -> str:
        """Whether the noise may protect anyone: noise from a known seed can be subtracted."""
        return "reproducible: not for release" if self.reproducible else "release"

    @property
    def releases(self) -> tuple[Release, ...]:
        """Every entry, in the order it was written."""
        if self._parts:
            return tuple(entry for part in self._parts for entry in part.releases)
        return tuple(self._entries[: self._count])

    @property
    def uncertified(self) -> str | None:
        """Why no epsilon can be stated; ``None`` when one can."""
        return self._uncertified

    @uncertified.setter
    def uncertified(self, reason: str | None) -> None:
        self._check_open()
        check(reason is None or (isinstance(reason, str) and bool(reason)), "uncertified", reason, "a reason or None")
        kept = reason is not None or self._uncertified is None
        check(kept, "uncertified", reason, "a reason: what was released without a promise stays so")
        self._uncertified = reason

    def _check_open(self) -> None:
        check(self._frozen is None, "ledger", self._frozen, f"the run's own ledger: a {self._frozen} takes no entries")

    def record(
        self,
        round: int,
        clients: Sequence[int] | None,
        count: int = 1,
        *,
        sample_rate: Any,
        noise_multiplier: Any,
        repeats: bool = False,
    ) -> None:
        """Write down ``count`` releases of a round, before any of them is used. Every call counts.

        Args:
            round: counted from 0.
            clients: those who took part (example unit); ``None`` is every client. Not kept in the client unit.
            count: releases by each of them, >= 0.
            sample_rate: q in [0, 1], one number or one per client named; in the client unit the chance of taking part.
            noise_multiplier: sigma >= 0 likewise; ``None`` is no noise.
            repeats: the run plays its own round again from its seed: the noise is the same, so an entry that the round
                already has counts once. Only for a reproducible ledger.

        Raises:
            ValueError: out of range; with ``repeats``, an entry that differs from the one of the same round.
        """
        self._check_open()
        named = None if self.unit == "client" else clients
        entry = Release.of(round, named, count, sample_rate, noise_multiplier)
        check(not repeats or self.reproducible, "repeats", repeats, "False in release mode: the noise is fresh")
        earlier = self._rounds.get(round) if repeats else None
        check(earlier in (None, entry), "round", round, "the entry that this round already has in the ledger")
        if earlier is None:
            self._append(entry)

    def _append(self, entry: Release) -> None:
        self._rounds[entry.round] = entry
        self._entries.append(entry)
        self._count += 1
        for client, pair in entry.rows():
            history = self._spent.get(client, {})
            self._spent[client] = {**history, pair: history.get(pair, 0) + entry.count}

    @property
    def clients(self) -> tuple[int, ...]:
        """Clients that are named in some entry, sorted."""
        if self._parts:
            return tuple(sorted({client for part in self._parts for client in part.clients}))
        return tuple(sorted(k for k in self._spent if k is not None))

    def history(self, client: int | None = None, observer: str | None = None) -> accounting.History:
        """(noise_multiplier, sample_rate, steps) of one client; of ``None``, what counts for every client.

        Args:
            observer: "server" or "released"; default as for ``epsilon``.
        """
        self._check_observer(observer)
        total: Spent = {}
        for part in self._parts or (self,):
            seen = part._tells_who_takes_part
            for key in (None,) if client is None else (None, client):
                for (sigma, q), count in part._spent.get(key, {}).items():
                    pair = (sigma, 1.0 if seen else q)
                    total[pair] = total.get(pair, 0) + count
        return tuple((*pair, count) for pair, count in total.items())

    @property
    def _tells_who_takes_part(self) -> bool:
        """Whether a round lets observers learn who, or how many, took part, so that no sampling of clients counts."""
        if self.unit == "example":
            return False  # examples are drawn inside their client; who takes part amplifies nothing there
        # Under secure aggregation everyone who sends adds noise: its size in the released sum tells how many did.
        return self.trust != "central"

    def _check_observer(self, observer: str | None) -> None:
        why = ""
        if "central" in self.trust:
            why = " for trust='central': a trusted server sees the updates themselves"
        names = " or ".join(map(repr, self.observers)) or "None (each part has its own)"
        check(observer is None or observer in self.observers, "observer", observer, names + why)

    def epsilon(self, client: int | None = None, observer: str | None = None) -> float:
        """Epsilon spent by one client, or the largest over all of them; ``inf`` after a release without noise.

        Args:
            client: one client's number; ``None`` is the one who spent most.
            observer: "server", who sees the uploads (under secure aggregation their sum) and who sends, or "released",
                who sees the released models only. Default: "server" for trust "local" and "secagg", "released" for
                "central"; of a composition each part's own.

        Raises:
            Uncertified: with the reason, when the ledger was told that a release cannot be certified.
            ValueError: an observer whom this trust does not protect from.

        Guarantees: test_the_aggregator_is_not_amplified_against, test_the_worst_client_is_found_among_many.
        """
        self._check_observer(observer)
        if self._uncertified is not None:
            raise Uncertified(f"epsilon: not certified: {self._uncertified}")
        return self.nominal(observer) if client is None else self._epsilon(client, observer)

    def _epsilon(self, client: int | None, observer: str | None = None) -> float:
        return self._spends(self.history(client, observer))

    def _spends(self, history: accounting.History) -> float:
        return accounting.epsilon(history, self.delta, self.accountant)

    def _largest(self, observer: str | None) -> list[accounting.History]:
        """The histories of which one spends most: those that no other dominates."""
        found = (self.history(client, observer) for client in (None, *self.clients))
        return undominated(found)

    def _worst(self, observer: str | None = None) -> accounting.History:
        """The history that spends most."""
        return max(self._largest(observer), key=self._spends, default=())

    def spent(self) -> float:
        """Largest epsilon over the clients; ``inf`` where none can be certified."""
        return float("inf") if self._uncertified is not None else self.epsilon()

    def for_everyone(self) -> "Ledger":
        """The same releases, each counted for every client, with the least noise and the largest q of any client in it.

        An upper bound for whoever's data may lie with any client: in runs that split the same data in other ways.

        Guarantees: test_ledgers_over_other_splits_are_bounded (test_attack_spending.py).
        """
        unit, delta, accountant, reproducible, trust, relation = self._terms
        check(not self._parts, "ledger", "composition", "the ledger of one run")
        whole = Ledger(
            unit=unit, delta=delta, accountant=accountant, reproducible=reproducible, trust=trust, relation=relation
        )
        whole.uncertified = self._uncertified
        for entry in self.releases:
            pairs = [pair for _, pair in entry.rows()]
            if pairs:
                sigma, q = min(sigma for sigma, _ in pairs), max(q for _, q in pairs)
                whole._append(Release.of(entry.round, None, entry.count, q, sigma))
        return whole

    def foreseen(self, releases: Sequence[Release]) -> float:
        """What `spent` would say if these were released too; nothing is recorded. Of a composition ask a part."""
        check(not self._parts, "ledger", "composition", "the ledger of one run")
        twin = self.snapshot()
        twin._entries = []  # snapshots share the list, and this one is written to
        for entry in releases:
            twin._append(entry)
        return twin.spent()

    def nominal(self, observer: str | None = None) -> float:
        """What `epsilon` would be if the ledger were certified: the accounting of the same releases, and no promise."""
        self._check_observer(observer)
        return max((self._spends(history) for history in self._largest(observer)), default=0.0)

    def snapshot(self) -> "Ledger":
        """A copy that takes no more entries; shares what cannot change."""
        twin = self._twin()
        twin._rounds, twin._spent, twin._frozen = {}, dict(self._spent), self._frozen or "snapshot"
        return twin

    def __copy__(self) -> "Ledger":
        """A ledger of its own with the same entries (test_ledger.py::test_a_copy_is_a_ledger_of_its_own)."""
        twin = self._twin()
        twin._entries = self._entries[: self._count]
        twin._rounds, twin._spent = dict(self._rounds), dict(self._spent)
        return twin

    def _twin(self) -> "Ledger":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def statement(self, observer: str | None = None) -> str:
        """Epsilon, delta, unit, relation of neighbours, whom it holds against; and that noise came from a seed."""
        self._check_observer(observer)
        unit = {"example": "one example of one client", "client": "all data of one client"}[self.unit]
        own = sorted({part.observers[0] for part in self._parts or (self,)})
        name = observer or (own[0] if len(own) == 1 else None)
        if name == "server":
            uploads = {"secagg": "the sum of the uploads", "local": "every upload"}.get(self.trust, "uploads or sums")
            who = f"the server, which sees {uploads} and who sends"
        elif name == "released":
            who = "whoever sees the released models only"
        else:
            who = f"each part's own observer ({' or '.join(own)})"
        seeded = [part for part in self._parts or (self,) if part.reproducible]
        drawn = ""
        if seeded:
            sees = " or sees two runs of one seed, which share their noise" if len(seeded) > 1 else ""
            drawn = f" The noise came from a seed: nothing is promised to whoever knows it{sees}."
        what = f"not certified: {self._uncertified}," if self._uncertified else f"{self.epsilon(None, observer):.4g}"
        return (
            f"epsilon = {what} at delta = {self.delta:g} against {who}, for neighbours that differ by {unit} replaced "
            f"by nothing ({self.relation}: how many clients and examples there are is public).{drawn}"
        )

    def __repr__(self) -> str:
        names: tuple[str | None, ...] = self.observers or (None,)
        if self._uncertified is not None:
            spent = "uncertified"
        else:
            spent = ", ".join(f"{name or 'each part'} {self.epsilon(None, name):.4g}" for name in names)
        mode = "reproducible" if self.reproducible else "release"
        entries = f"{len(self._parts)} ledgers" if self._parts else f"{self._count} entries"
        return (
            f"Ledger(unit={self.unit!r}, trust={self.trust!r}, relation={self.relation!r}, {mode}, {entries}, "
            f"epsilon: {spent} at delta={self.delta:g})"
        )

    def event(self, client: int | None = None, observer: str | None = None) -> Any:
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
        history = self._worst(observer) if client is None else self.history(client, observer)
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
        return sealed.write(FORMAT, VERSION, self._content())

    def _content(self) -> dict[str, Any]:
        names = ("unit", "delta", "accountant", "reproducible", "trust", "relation", "uncertified")
        content = {name: getattr(self, name) for name in names}
        if self._parts:
            return {**content, "parts": [part._content() for part in self._parts]}
        return {**content, "releases": [dict(vars(entry)) for entry in self.releases]}

    @classmethod
    def _of(cls, content: dict[str, Any]) -> "Ledger":
        if "parts" in content:
            return cls.compose(*(cls._of(part) for part in content["parts"]))
        settings = {key: value for key, value in content.items() if key not in ("uncertified", "releases")}
        ledger = cls(**settings)
        ledger.uncertified = content["uncertified"]
        for fields in content["releases"]:
            ledger._append(Release.of(**fields))
        return ledger

    @classmethod
    def from_json(cls, text: str, name: str = "ledger") -> "Ledger":
        """The ledger that ``to_json`` wrote; that of one run can be continued.

        Raises:
            ValueError: one line, for anything but a text that ``to_json`` gave.
        """
        content = sealed.read(FORMAT, VERSION, text, name)
        try:
            ledger = cls._of(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
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
