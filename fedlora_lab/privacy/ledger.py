"""The ledger of a run: every release is recorded before it is used; it alone states epsilon."""

import math
import os
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils import files
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.run_settings import TRUST, UNITS
from fedlora_lab._utils.validation import (
    as_plain,
    check,
    check_number,
    check_one_of,
    check_whole,
    refuse,
)
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.same_clients import Spent, add_up, as_history, worst_histories

PerClient = float | tuple[float, ...]
"""One number for all clients, or a number for each."""
Numbers = Sequence[float] | np.ndarray
MAX_COUNT = 2**53
"""Rounds and releases beyond which a float no longer counts them one by one."""
MAX_ROWS = 10**6
"""Rows of one person."""
FORMAT = "fedlora_lab.ledger"
VERSION = 2
RELATION = "zero-out"
"""Neighbours: one unit's contribution is replaced by nothing. How many clients and units there are
is public: sums are divided by numbers of units, and sample rates are made of them."""


class Terms(NamedTuple):
    """What an epsilon is stated for, and why none is; equal in all ledgers of one run."""

    unit: str
    delta: float
    accountant: str
    reproducible: bool
    trust: str
    uncertified: str | None


def check_terms(unit: str, delta: float, accountant: str, trust: str | None = None) -> str:
    """Refuses terms that no accountant covers; returns the trust, by default that of the unit.

    Args:
        unit, delta, accountant, trust: see `Privacy`.
    """
    check_one_of("unit", unit, UNITS)
    accounting.check_delta(delta)
    check_one_of("accountant", accountant, tuple(accounting.ACCOUNTANTS))
    if trust is None:
        return "central" if unit == "client" else "local"
    check_one_of("trust", trust, TRUST)
    local = (
        f"'local' for unit={unit!r}: each client noises its steps, its upload is protected alone"
    )
    check(unit == "client" or trust == "local", "trust", trust, local)
    return trust


def as_floats(name: str, value: object, high: float = math.inf) -> PerClient:
    """Makes one finite float in [0, ``high``], or a tuple of them, of any types of numbers.

    Args:
        name: for errors.
        value: a number or a sequence of them.
        high: the largest that is taken.
    """
    value = as_plain(value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        ordered = not isinstance(value, (Set, Mapping))
        check(ordered, name, value, "numbers in the order of the clients: a set has none")
        return tuple(_as_float(f"{name}[{k}]", x, high) for k, x in enumerate(value))
    return _as_float(name, value, high)


def _as_float(name: str, value: Any, high: float) -> float:
    check_number(name, value, 0, high)
    check(value < math.inf, name, value, "a finite number")
    return float(value)


def per_client(value: PerClient, count: int = 1) -> tuple[float, ...]:
    """A number for each client: as given, or one number ``count`` times."""
    return value if isinstance(value, tuple) else (float(value),) * count


def _as_count(name: str, value: Any) -> int:
    """A whole number of any type, small enough to be counted one by one."""
    value = as_plain(value)
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    in_range = whole and 0 <= int(value) <= MAX_COUNT
    check(in_range, name, value, f"a whole number in [0, {MAX_COUNT}]")
    return int(value)


def _as_names(names: Sequence[str] | None) -> tuple[str, ...] | None:
    """Clients' names, each a text that stands there once."""
    if names is None:
        return None
    right = isinstance(names, Sequence) and not isinstance(names, str)
    right = right and all(isinstance(name, str) and name for name in names)
    check(right and len({*names}) == len(names), "client_names", names, "texts, each once")
    return tuple(names)


@dataclass(frozen=True)
class LedgerEntry:
    """``count`` noised releases of one round. Any sequence or numeric type is accepted.

    Args:
        round: as records count them: the first round is 1.
        count: number of releases, >= 0.
        clients: whom it counts for; ``None`` is every client.
        sample_rate: q in [0, 1], one number or one per entry of ``clients``.
        noise_multiplier: sigma >= 0 likewise; 0 and ``None`` are no noise.

    >>> LedgerEntry(1, [0, 2], 5, 0.1, [1, 2]).noise_multiplier
    (1.0, 2.0)
    """

    round: int
    clients: Collection[int] | None  # of any sequence; then a tuple
    count: int
    sample_rate: PerClient | Numbers
    noise_multiplier: PerClient | Numbers | None

    def __post_init__(self) -> None:
        clients = self.clients
        if clients is not None:
            check(isinstance(clients, Iterable), "clients", clients, "client numbers, or None")
            clients = tuple(_as_count("clients", client) for client in clients)
            check(len(set(clients)) == len(clients), "clients", clients, "every client once")
        # Noise that is not given is no noise, whose epsilon is infinite: it never looks private.
        sigma = 0.0 if self.noise_multiplier is None else self.noise_multiplier
        numbers = {
            "sample_rate": as_floats("sample_rate", self.sample_rate, 1.0),
            "noise_multiplier": as_floats("noise_multiplier", sigma),
        }
        for name, value in numbers.items():
            # Without clients not even an empty list fits: such an entry would count for nobody.
            # The order of a set is arbitrary: a number would be any client's.
            ordered = not isinstance(value, tuple) or not isinstance(self.clients, Set)
            check(ordered, "clients", self.clients, f"a sequence, in the order of {name}")
            fits = not isinstance(value, tuple) or (
                clients is not None and len(value) == len(clients)
            )
            check(fits, name, value, "one number, or as many as clients")
        counts = {name: _as_count(name, getattr(self, name)) for name in ("round", "count")}
        for name, value in {**counts, "clients": clients, **numbers}.items():
            object.__setattr__(self, name, value)

    def at(self, round: int, ids: Sequence[int] | None = None) -> "LedgerEntry":
        """The same releases in another round, by some of the clients; they are checked already.

        A single client may hold the pooled data of several clients of another run, with which this
        run is composed. So its releases count for everybody.

        Args:
            round: from 1.
            ids: who takes part, by the place in ``clients``; ``None``: all.

        Guarantees: test_pooled_data_are_spent_for_every_client.
        """
        changes: dict[str, Any] = {"round": round}
        if self.clients is not None:
            clients = tuple(self.clients)
            ids = range(len(clients)) if ids is None else ids
            pooled = len(clients) == 1 and len(ids) == 1
            changes["clients"] = None if pooled else tuple(clients[k] for k in ids)
            for name in ("sample_rate", "noise_multiplier"):
                value = getattr(self, name)
                if isinstance(value, tuple):
                    changes[name] = value[0] if pooled else tuple(value[k] for k in ids)
        entry = copy(self)
        for name, value in changes.items():
            object.__setattr__(entry, name, value)
        return entry

    def rows(self) -> list[tuple[int | None, tuple[float, float]]]:
        """(client, (noise multiplier, sample rate)) for each client it counts for."""
        clients = (None,) if self.clients is None else tuple(self.clients)
        sigmas = per_client(self.noise_multiplier, len(clients))  # type: ignore[arg-type]
        rates = per_client(self.sample_rate, len(clients))  # type: ignore[arg-type]
        return list(zip(clients, zip(sigmas, rates, strict=True), strict=True))


class Uncertified(ValueError):
    """Raised in place of an epsilon when the noise does not match the sensitivity.

    >>> Ledger(uncertified="noise added before the clip").epsilon()
    Traceback (most recent call last):
    fedlora_lab.privacy.ledger.Uncertified: epsilon: not certified: noise added before the clip
    """


class BudgetExceeded(ValueError):
    """Raised in place of recording a release that would spend more than its limit.

    >>> ledger = Ledger()
    >>> ledger.record(1, None, sample_rate=1.0, noise_multiplier=1.0, limit=2.0)
    Traceback (most recent call last):
    fedlora_lab.privacy.ledger.BudgetExceeded: limit=2: expected at least 4.378, ...
    """


class Ledger:
    """Records the noised releases of every client, and computes the privacy loss epsilon from them.

    One ledger has one unit of privacy and one delta.

    Args:
        unit: "example", "person" or "client". In the client unit q is the chance of taking part. A
            release then counts for every client, whether drawn or not; with trust="local", where
            the senders are seen, for those it names.
        delta: in [1e-12, 1).
        accountant: one of `accounting.ACCOUNTANTS`, see `accounting.epsilon`.
        reproducible: the noise can be drawn again from a seed; only such a run repeats rounds.
        trust: whom the noise protects from, see `Privacy`.
        uncertified: why no epsilon can be stated; ``None`` when one can.
        client_names: of client 0, 1, ...; each once. ``None``: clients are numbers, which say
            nothing about another run. A run takes the names of its task, unless they are the
            numbers that a task without names has. An adapter's ledger, which is handed on, has
            none.

    Guarantees: every record counts (test_every_record_counts); a round that is played again from
        its seed counts once (test_a_replay_counts_once); nothing that it states can be assigned
        (test_nothing_that_a_ledger_states_can_be_assigned), and without a certificate it states
        nothing (test_an_uncertified_ledger_states_no_epsilon); for an observer of the uploads the
        sampling of clients counts with q = 1 (test_the_aggregator_is_not_amplified_against); a
        file gives back
        the same ledger (test_ledger_round_trip), or is refused
        (test_ledger_refuses_any_changed_byte).

    >>> ledger = Ledger(delta=1e-5)
    >>> ledger.record(0, [0, 1], 100, sample_rate=0.1, noise_multiplier=1.0)
    >>> round(ledger.epsilon(), 2)
    7.05
    """

    # Nothing that a ledger states, and no method that states it, can be assigned afterwards.
    __slots__ = ("_client_names", "_closed", "_entries", "_parts", "_spent", "_terms")

    def __init__(
        self,
        *,
        unit: str = "example",
        delta: float = 1e-5,
        accountant: str = "pld",
        reproducible: bool = True,
        trust: str | None = None,
        uncertified: str | None = None,
        client_names: Sequence[str] | None = None,
    ) -> None:
        trust = check_terms(unit, delta, accountant, trust)
        check(isinstance(reproducible, bool), "reproducible", reproducible, "True or False")
        has_reason = uncertified is None or (isinstance(uncertified, str) and bool(uncertified))
        check(has_reason, "uncertified", uncertified, "a reason or None")
        self._terms = Terms(unit, float(delta), accountant, reproducible, trust, uncertified)
        self._parts: tuple[Ledger, ...] = ()
        self._closed: str | None = None
        # Replaced and never changed in place: copies and snapshots may share them.
        self._entries: tuple[LedgerEntry, ...] = ()
        # Client, or None for all -> (noise multiplier, sample rate) -> releases.
        self._spent: Mapping[int | None, Spent] = {}
        self._client_names = _as_names(client_names)

    @property
    def terms(self) -> Terms:
        """What its epsilon is stated for."""
        return self._terms

    @property
    def parts(self) -> "tuple[Ledger, ...]":
        """The ledgers that a composition is made of; of a run's own none."""
        return self._parts

    @property
    def unit(self) -> str:
        """What is protected: "example", "person" or "client"."""
        return self._terms.unit

    @property
    def delta(self) -> float:
        """The delta at which epsilon is stated."""
        return self._terms.delta

    @property
    def accountant(self) -> str:
        """How the privacy loss is composed."""
        return self._terms.accountant

    @property
    def reproducible(self) -> bool:
        """Whether a seed draws the noise again: then nothing may be released."""
        return self._terms.reproducible

    @property
    def trust(self) -> str:
        """Whom the noise protects from; of a composition the trusts of its parts, with "and"."""
        return self._terms.trust

    @property
    def client_names(self) -> tuple[str, ...] | None:
        """The clients' names, by number; ``None`` where they have none, or only in some parts."""
        if not self._parts:
            return self._client_names
        # A part that counts for everybody needs no names.
        parts = [part for part in self._parts if part._client_names is not None or part.clients]
        each = [part._client_names for part in parts]
        if not each or any(names is None for names in each):
            return None
        return tuple(dict.fromkeys(name for names in each for name in names or ()))

    def with_client_names(self, names: Sequence[str] | None = None) -> "Ledger":
        """A copy that knows its clients by these names, by number; ``None``: by none.

        Runs on the same task, whose clients have no names, are counted client by client once they
        have: `compose` takes equal names for the same client.

        >>> ledger = Ledger(client_names=["Bonn", "Trier"])
        >>> ledger.with_client_names(None).client_names is None
        True
        """
        check(not self.parts, "ledger", "composition", "the ledger of one run")
        twin = copy(self)
        twin._client_names = _as_names(names)
        for entry in self._entries:
            twin._check_clients(entry)
        return twin

    @classmethod
    def compose(cls, *ledgers: "Ledger") -> "Ledger":
        """Adds up what several runs on the same data have spent, as a closed ledger.

        Clients of equal names are one client, in whatever order they stand, and a client that joins
        counts what it spent itself. A name that a run lacks may be a client of that run under
        another name, which no other run explains, and clients without names may be any: then the
        worst way to match them counts, an upper bound. So names have to mean the same in all runs;
        of runs of one task without names, `with_client_names` says who is who.

        The data of a run of one client count for every client. Unit and delta must be the same;
        each run is counted under its own trust. Where runs split the data among clients in other
        ways, compose what `for_everyone` makes of their ledgers, in the example unit.

        Returns: a ledger that takes no more entries; with "rdp" where accountants differ,
            reproducible and uncertified where a part is. Runs of one seed are counted as if each
            had noise of its own, and `privacy.statement` says so.
        Guarantees: releases add up, client by client (test_compose_adds_up), by name
            (test_clients_are_known_by_name_wherever_they_stand) and else never too little
            (test_a_sum_is_never_below_what_a_client_has_spent), pooled data for every
            client (test_pooled_data_are_spent_for_every_client); other units and deltas are refused
            (test_compose_refuses_other_terms).
        """
        right = bool(ledgers) and all(isinstance(ledger, Ledger) for ledger in ledgers)
        check(right, "ledgers", ledgers, "Ledgers, one or more, as in compose(*ledgers)")
        # Snapshots: what a part records afterwards must not change a sum that was stated.
        runs = [run.snapshot() for ledger in ledgers for run in ledger.parts or (ledger,)]
        for name in ("unit", "delta"):
            values = list(dict.fromkeys(getattr(run, name) for run in runs))
            equal = "the same in all ledgers: only then their releases add up"
            check(len(values) == 1, name, values, equal)
        accountants = {run.accountant for run in runs}
        # A promise about the whole needs one about every part.
        reasons = dict.fromkeys(run.uncertified for run in runs if run.uncertified is not None)
        total = cls(unit=runs[0].unit, delta=runs[0].delta)
        total._terms = runs[0].terms._replace(
            # A bound by Renyi divergences holds for every history, whichever accountant it had.
            accountant="rdp" if len(accountants) > 1 else runs[0].accountant,
            reproducible=any(run.reproducible for run in runs),
            trust=" and ".join(sorted({run.trust for run in runs})),
            uncertified="; ".join(reasons) or None,
        )
        total._parts = tuple(runs)
        total._closed = "composition"
        return total

    @property
    def observers(self) -> tuple[str, ...]:
        """Observers that an epsilon can be stated against, the default first.

        "server": the uploads (under secure aggregation their sum) and who sends; "released": the
        released models alone. Both have the same epsilon: the released models are made of what
        the server sees, and the sampling of clients is counted for neither.
        """
        return ("released",) if "central" in self.trust else ("server", "released")

    @property
    def mode(self) -> str:
        """Says "release", or that nothing may be released: noise from a seed can be subtracted."""
        return "reproducible: not for release" if self.reproducible else "release"

    @property
    def releases(self) -> tuple[LedgerEntry, ...]:
        """Every entry, in the order it was written."""
        return self._entries + tuple(entry for part in self.parts for entry in part.releases)

    @property
    def clients(self) -> tuple[int, ...]:
        """Clients that are named in some entry, sorted; of a composition by `client_names`."""
        names = self.client_names if self.parts else None
        numbers = {client for client in self._spent if client is not None}
        for part in self.parts:
            own = part._client_names
            numbers |= {
                client if names is None or own is None else names.index(own[client])
                for client in part.clients
            }
        return tuple(sorted(numbers))

    @property
    def uncertified(self) -> str | None:
        """Why no epsilon can be stated; ``None`` when one can."""
        return self._terms.uncertified

    def record(
        self,
        round: int,
        clients: Sequence[int] | None,
        count: int = 1,
        *,
        sample_rate: PerClient | Numbers,
        noise_multiplier: PerClient | Numbers | None,
        repeats: bool = False,
        limit: float | None = None,
        earlier: "Sequence[Ledger]" = (),
    ) -> None:
        """Records ``count`` releases of a round, before any of them is used; see `append`.

        Args:
            round, clients, count, sample_rate, noise_multiplier: see `LedgerEntry`.
            repeats: as of `append`.
            limit: the largest epsilon that may be spent with these releases; ``None``: any.
            earlier: ledgers of other runs on the same data, which count towards the limit as in
                `compose`.

        Raises: `BudgetExceeded`, and nothing is recorded, where the limit would not hold.
        Guarantees: test_ledger.py::test_a_release_beyond_the_limit_is_refused_and_not_recorded.
        """
        entry = LedgerEntry(round, clients, count, sample_rate, noise_multiplier)
        runs = isinstance(earlier, (tuple, list)) and all(isinstance(x, Ledger) for x in earlier)
        check(runs, "earlier", earlier, "a list of Ledgers, such as earlier=[ledger]")
        limit = as_plain(limit)
        if limit is not None:
            check_number("limit", limit, 0, open_low=True)
            # A replay spends nothing; what `append` refuses of it is refused there.
            replayed = repeats and any(known.round == round for known in self._entries)
            after = self.after([] if replayed else [entry])
            spent = Ledger.compose(*earlier, after).epsilon_or_inf()
            if spent > limit:
                needed = f"expected at least {round_up(spent, '.4g')}, which would be spent after"
                advice = "it is not recorded, so it must not be released"
                raise BudgetExceeded(f"limit={limit:g}: {needed} round {round}; {advice}")
        else:
            check(not earlier, "earlier", earlier, "a limit towards which they count")
        self.append(entry, repeats=repeats)

    def append(self, entry: LedgerEntry, repeats: bool = False) -> None:
        """Records an entry, before any of its releases is used. Every call counts, but a repeat.

        Args:
            entry: of one round.
            repeats: the run plays its own round again from its seed: the noise is the same, so an
                entry that the round already has counts once, and a different one is refused. Only
                for a reproducible ledger.
        """
        if self._closed is not None:
            expected = f"the run's own ledger: a {self._closed} takes no entries"
            refuse("ledger", self._closed, expected)
        entry = self._in_unit(entry)
        if not repeats:
            self._append(entry)
            return
        if not self._terms.reproducible:
            refuse("repeats", repeats, "False in release mode: the noise is fresh")
        # A round that is drawn again from its seed has the same noise, so it releases nothing new.
        earlier = [e for e in self._entries if e.round == entry.round]
        if not earlier:
            self._append(entry)
        elif earlier[-1] != entry:
            refuse("round", entry.round, "the entry that this round already has in the ledger")

    def _in_unit(self, entry: LedgerEntry) -> LedgerEntry:
        """The entry as it counts: for every client where who takes part is not to be known."""
        # A draw of clients amplifies only while nobody learns who was drawn: no names are stored.
        # Without a sum around it an upload carries its client's own noise, and its sender is seen:
        # who takes part depends on no data, so each client spends in its own rounds.
        hidden = self._terms.unit == "client" and self._terms.trust != "local"
        return replace(entry, clients=None) if hidden and entry.clients is not None else entry

    def _check_clients(self, entry: LedgerEntry) -> None:
        """Refuses a client that has no name where the others have."""
        if self._client_names is not None and entry.clients:
            count = len(self._client_names)
            expected = f"clients below {count}, the number of client_names"
            check(max(entry.clients) < count, "clients", entry.clients, expected)

    def _append(self, entry: LedgerEntry) -> None:
        self._check_clients(entry)
        spent = dict(self._spent)
        for client, pair in entry.rows():
            history = spent.get(client, {})
            spent[client] = {**history, pair: history.get(pair, 0) + entry.count}
        # Counted before its value exists: a run that is killed in between has spent it. Before the
        # entry is kept, so that no entry is there that epsilon does not count.
        self._spent = spent
        self._entries += (entry,)

    # ---- what was spent

    def history(
        self, client: int | str | None = None, observer: str | None = None
    ) -> accounting.History:
        """(noise_multiplier, sample_rate, steps) of one client; ``None``: what counts for all only.

        ``observer`` as for `epsilon`. Raises ``ValueError`` where it depends on who a client is in
        another run; `epsilon` counts the worst then.
        """
        self._check_observer(observer)
        runs, common = self._spent_by_label()
        if client is None:
            return as_history(common)
        labels = self._labels(client)
        own = add_up(common, *(run[label] for run in runs for label in labels if label in run))
        worst = {h for label in labels for h in worst_histories(runs, common, label)}
        if self.parts and not labels:
            worst = {*worst_histories(runs, common)}
        sure = all({(sigma, q): n for sigma, q, n in history} == own for history in worst)
        expected = "a client that all runs know by one name: see with_client_names"
        check(sure, "client", client, expected)
        return as_history(own)

    def _spent_by_label(self) -> tuple[list[Mapping[Hashable, Spent]], Spent]:
        """What each client has spent in each run, by what tells who it is; and what all have."""
        runs: list[Mapping[Hashable, Spent]] = []
        common: Spent = {}
        for number, part in enumerate(self.parts or (self,)):
            # The draw of examples stays inside their client, so its q counts. Who takes part, or
            # how many do, is hidden by a trusted server alone: else the q of clients is 1.
            tells = part.unit == "client" and part.trust != "central"
            # Clients without spending count as well: a name that is there is nobody else's.
            run: dict[Hashable, Spent] = dict.fromkeys(part._client_names or (), {})
            for client, spent in part._spent.items():
                counted = add_up(
                    *({(sigma, 1.0 if tells else q): n} for (sigma, q), n in spent.items())
                )
                if client is None:  # entries that name no client count for every client
                    common = add_up(common, counted)
                else:
                    run[part._label(number, client)] = counted
            runs.append(run)
        return runs, common

    def _label(self, number: int, client: int) -> Hashable:
        """What tells who a client of this run is; without a name its place, in no other run."""
        names = self._client_names
        return (number, client) if names is None else names[client]

    def _labels(self, client: int | str) -> list[Hashable]:
        """The labels of one client; of a number in runs without names it may be several."""
        names = self.client_names
        if isinstance(client, str):
            everyone = [*{n for part in self.parts or (self,) for n in part._client_names or ()}]
            expected = f"one of {sorted(everyone)}" if everyone else "a number: it has no names"
            check(client in everyone, "client", client, expected)
            return [client]
        check_whole("client", client, 0, None if names is None else len(names) - 1)
        if names is not None:
            return [names[client]]
        return [
            part._label(number, client)
            for number, part in enumerate(self.parts or (self,))
            if client in part._spent or client < len(part._client_names or ())
        ]

    def _check_observer(self, observer: str | None) -> None:
        allowed = " or ".join(map(repr, self.observers))
        if "central" in self.trust:
            allowed += " for trust='central': a trusted server sees the updates themselves"
        check(observer is None or observer in self.observers, "observer", observer, allowed)

    def _histories(
        self, quantity: str, client: int | str | None, observer: str | None
    ) -> list[accounting.History]:
        """The histories among which is the one that spends most and is attacked most easily.

        Raises: `Uncertified`, naming the ``quantity`` that was asked for.
        """
        self._check_observer(observer)
        if self.uncertified is not None:
            raise Uncertified(f"{quantity}: not certified: {self.uncertified}")
        runs, common = self._spent_by_label()
        labels = [] if client is None else self._labels(client)
        # What can be promised to everyone is what is promised to the client who spent most. A
        # number that no run of a composition names may be any client of another run.
        if client is None or (self.parts and not labels):
            return worst_histories(runs, common)
        histories = (h for label in labels for h in worst_histories(runs, common, label))
        return [*dict.fromkeys(histories)] or [as_history(common)]

    def epsilon(
        self,
        client: int | str | None = None,
        observer: str | None = None,
        rows_per_person: int = 1,
    ) -> float:
        """Epsilon spent by one client, or the largest over all; ``inf`` after one without noise.

        Args:
            client: one client's name, or its number in `client_names`; ``None`` is the one who
                spent most. Of a composition it is an upper bound where a run lacks the name, see
                `compose`.
            observer: one of `observers`; default: the first, of a composition each part's own.
            rows_per_person: in the example unit, how many rows a person has at most, all with one
                client; neighbours then differ by all of them, replaced by nothing together. Each
                row is drawn by itself. Where rows of a person may lie with several clients, ask
                what `for_everyone` makes of the ledger. More rows than one are counted by "pld".

        Raises: `Uncertified` with the reason, when a release cannot be certified; ``ValueError``
            for an observer whom this trust does not protect from, and for several rows in a unit
            that protects all of them already.
        Guarantees: the largest over all clients (test_the_worst_client_is_found_among_many);
            for several rows never below what an attack finds, nor above the bound for groups
            (test_several_rows.py).

        >>> ledger = Ledger()
        >>> ledger.record(1, None, 50, sample_rate=0.1, noise_multiplier=2.0)
        >>> [round(ledger.epsilon(rows_per_person=k), 1) for k in (1, 2, 3)]
        [1.7, 3.6, 5.8]
        """
        check_whole("rows_per_person", rows_per_person, 1, MAX_ROWS)
        expected = f"1: unit={self.unit!r} already protects a person with all rows at one client"
        one = self.unit == "example" or rows_per_person == 1
        check(one, "rows_per_person", rows_per_person, expected)
        histories = self._histories("epsilon", client, observer)
        # Also of one row: "rdp" may state more for it than "pld" for several.
        return max(
            accounting.epsilon(history, self.delta, self.accountant, rows)
            for history in histories
            for rows in {1, rows_per_person}
        )

    def epsilon_or_inf(self) -> float:
        """Largest epsilon over the clients; ``inf`` where none can be certified."""
        return math.inf if self.uncertified is not None else self.epsilon()

    def nominal_epsilon(self) -> float:
        """`epsilon` as if the ledger were certified: accounting only, no promise."""
        twin = copy(self)
        twin._terms = self.terms._replace(uncertified=None)
        return twin.epsilon()

    def tradeoff(
        self,
        fpr: float | Float[np.ndarray, " n"],
        client: int | str | None = None,
        observer: str | None = None,
    ) -> Any:
        """The largest share of members that any attacker finds at a false positive rate ``fpr``.

        It follows from the composed privacy loss, with no detour by epsilon and delta.

        Args:
            fpr: a false positive rate in [0, 1], or an array of them, which gives an array.
            client, observer: as for `epsilon`; ``None`` is whoever is found most easily.

        Raises: as `epsilon`.
        Guarantees: that of the worst client at each rate
            (test_the_curve_of_a_ledger_is_that_of_its_worst_client).
        Source: see `accounting.tradeoff_curve`.

        >>> ledger = Ledger()
        >>> ledger.record(0, None, 4, sample_rate=1.0, noise_multiplier=2.0)
        >>> round(ledger.tradeoff(0.01), 4)
        0.0924
        """
        rates = np.atleast_1d(np.asarray(fpr, float))
        histories = self._histories("tradeoff", client, observer)
        # At each rate by itself: another client may be the most exposed at another rate.
        largest = np.max([accounting.tradeoff_curve(h, rates) for h in histories], axis=0)
        return largest if np.ndim(fpr) else float(largest[0])

    def advantage(self, client: int | str | None = None, observer: str | None = None) -> float:
        """The largest difference of `tradeoff` and its false positive rate: 0 hides, 1 tells all.

        Args: client, observer: as for `epsilon`.
        Raises: as `epsilon`.
        Guarantees: the largest over all clients
            (test_the_curve_of_a_ledger_is_that_of_its_worst_client).

        >>> ledger = Ledger()
        >>> ledger.record(0, None, 4, sample_rate=1.0, noise_multiplier=2.0)
        >>> round(ledger.advantage(), 4)
        0.3829
        """
        return max(map(accounting.advantage, self._histories("advantage", client, observer)))

    # ---- other ledgers made of this one

    def after(self, releases: Iterable[LedgerEntry]) -> "Ledger":
        """Returns what a run's ledger would be after these releases; nothing is recorded."""
        check(not self.parts, "ledger", "composition", "the ledger of one run")
        twin = copy(self)
        for entry in releases:
            twin._append(twin._in_unit(entry))
        return twin

    def for_everyone(self) -> "Ledger":
        """Counts each release for every client, at its least noise and largest q.

        An upper bound for runs in the example unit that split the same data in other ways. In the
        other units another split, or grouping, makes other clients or persons: no epsilon is
        certified then.

        Guarantees: at least what any client has spent, however the data were dealt out
            (test_attack_spending.py::test_ledgers_over_other_splits_are_bounded).
        """
        check(not self.parts, "ledger", "composition", "the ledger of one run")
        # In another split somebody's data may lie with any client.
        other = f"one {self.unit} of this run may be several, or a part of one, in another split"
        reason = self.uncertified if self.unit == "example" else other
        ledger = Ledger(**self.terms._replace(uncertified=reason)._asdict())
        for entry in self._entries:
            if rows := entry.rows():
                sigmas, rates = zip(*(pair for _, pair in rows), strict=True)
                entry = LedgerEntry(entry.round, None, entry.count, max(rates), min(sigmas))
                ledger._append(entry)
        return ledger

    def snapshot(self) -> "Ledger":
        """A copy that takes no more entries."""
        twin = copy(self)
        twin._closed = self._closed or "snapshot"
        return twin

    def __repr__(self) -> str:
        spent = "uncertified"
        if self.uncertified is None:
            spent = ", ".join(
                f"{name} {round_up(self.epsilon(None, name), '.4g')}" for name in self.observers
            )
        mode = "reproducible" if self.reproducible else "release"
        entries = f"{len(self.parts)} ledgers" if self.parts else f"{len(self._entries)} entries"
        return (
            f"Ledger(unit={self.unit!r}, trust={self.trust!r}, relation={RELATION!r}, {mode}, "
            f"{entries}, epsilon: {spent} at delta={round_up(self.delta, 'g')})"
        )

    # ---- on disk

    def to_json(self) -> str:
        """The whole ledger as one line of text with a digest, which finds damage, not forgery."""
        return files.dump_checksummed(FORMAT, VERSION, _content(self))

    @classmethod
    def from_json(cls, text: str, name: str = "ledger") -> "Ledger":
        """Reads a ledger that ``to_json`` wrote; that of one run can be continued.

        Raises: ``ValueError`` in one line, for anything but a text that ``to_json`` gave.
        """
        content = files.load_checksummed(FORMAT, VERSION, text, name)
        try:
            ledger = _from_content(content)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            ledger = None
        # Anyone can compute a digest. What counts is that this ledger would write the same text.
        if ledger is None or ledger.to_json() != text:
            raise ValueError(f"{name}: expected the entries of a ledger, found others")
        return ledger

    def save(self, path: str | os.PathLike) -> None:
        """Writes the ledger atomically: a reader finds the old file or the new one."""
        files.write_atomically(path, self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Ledger":
        """Reads a file that `save` wrote; ``ValueError`` when it is damaged or cannot be read."""
        text = files.read_bytes(Path(path)).decode("utf-8", errors="replace")
        # Without its line end the file was cut off, so `from_json` must refuse it.
        text = text.removesuffix("\n") if text.endswith("\n") else text + "<cut>"
        return cls.from_json(text, Path(path).name)


def _content(ledger: Ledger) -> dict[str, Any]:
    """A ledger as JSON values."""
    content = {**ledger.terms._asdict(), "relation": RELATION}
    if ledger.parts:
        return {**content, "parts": [_content(part) for part in ledger.parts]}
    # Files of earlier versions have no names: without them the text is theirs.
    if ledger.client_names is not None:
        content["client_names"] = list(ledger.client_names)
    return {**content, "releases": [dict(vars(entry)) for entry in ledger.releases]}


def _from_content(content: Mapping[str, Any]) -> Ledger:
    """The ledger whose content this is; any error where it is none's."""
    if "parts" in content:
        return Ledger.compose(*map(_from_content, content["parts"]))
    names = content.get("client_names")
    ledger = Ledger(**{name: content[name] for name in Terms._fields}, client_names=names)
    return ledger.after(LedgerEntry(**fields) for fields in content["releases"])
