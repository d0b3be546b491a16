"""The ledger of a run: every release is recorded before it is used; it alone states epsilon."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from html import escape
from numbers import Integral
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedlora_lab._utils import files
from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.validation import check, check_number, check_one_of, check_whole
from fedlora_lab.privacy import accounting

PerClient = float | tuple[float, ...]
"""One number for all clients, or a number for each."""
Totals = dict[int | None, dict[tuple[float, float], int]]
"""Client, or ``None`` for all -> (noise multiplier, sample rate) -> releases."""
MOST = 2**53
"""Rounds and releases beyond which a float no longer counts them one by one."""

RELATION = "zero-out"
"""Neighbours: one unit's contribution is replaced by nothing; number and sizes are public."""


class Terms(NamedTuple):
    """What an epsilon is stated for; equal in all ledgers of one run."""

    unit: str
    delta: float
    accountant: str
    reproducible: bool
    trust: str
    relation: str


UNITS = ("example", "person", "client")


def check_terms(
    unit: Any,
    delta: Any,
    accountant: Any,
    trust: Any = None,
    relation: Any = RELATION,
) -> str:
    """Raises for terms that no epsilon here covers; gives the trust, the unit's own for ``None``.

    Args:
        unit, delta, accountant, trust, relation: see `Privacy`.
    """
    check_one_of("unit", unit, UNITS)
    accounting.check_delta(delta)
    check_one_of("accountant", accountant, tuple(accounting.ACCOUNTANTS))
    more = {
        "add-or-remove": "; sums are divided by n_k q and q is batch / n_k, so a size that differs "
        "would show; sizes are public here",
        "replace-one": "; replacing one unit is two of these changes: read epsilon for groups of "
        "two",
    }.get(str(relation), "")
    expected = f"{RELATION!r}, one unit's contribution replaced by nothing{more}"
    check(relation == RELATION, "relation", relation, expected)
    if trust is None:
        return "central" if unit == "client" else "local"
    check_one_of("trust", trust, ("local", "secagg", "central"))
    why = f"'local' for unit={unit!r}: each client noises its own steps, so its upload is protected"
    check(unit == "client" or trust == "local", "trust", trust, f"{why} alone")
    return trust


def as_floats(name: str, value: Any, high: float = math.inf) -> PerClient:
    """Makes one finite float in [0, ``high``], or a tuple of them, of any types of numbers.

    Args:
        name: for errors.
        value: a number or a sequence of them.
        high: the largest that is taken.
    """
    several = hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
    entries: tuple[Any, ...] = tuple(value) if several else (value,)
    for k, entry in enumerate(entries):
        own = f"{name}[{k}]" if several else name
        check_number(own, entry, 0, high)
        check(entry < math.inf, own, entry, "a finite number")
    return tuple(map(float, entries)) if several else float(value)


def per_client(value: PerClient, count: int = 1) -> tuple[float, ...]:
    """A number for each client: as given, or one number ``count`` times."""
    return value if isinstance(value, tuple) else (float(value),) * count


def map_numbers(function: Callable[[float], float], value: PerClient | None) -> Any:
    """Applies a function to one number, or to each of several; ``None`` stays ``None``."""
    if value is None:
        return None
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


@dataclass(frozen=True)
class LedgerEntry:
    """``count`` noised releases of one round, from any sequence and number types.

    Args:
        round, count: counted from 0; number of releases, >= 0.
        clients: whom it counts for; ``None`` is every client.
        sample_rate: q in [0, 1], one number or one per entry of ``clients``.
        noise_multiplier: sigma >= 0 likewise; 0 and ``None`` are no noise.

    >>> LedgerEntry(1, [0, 2], 5, 0.1, [1, 2]).noise_multiplier
    (1.0, 2.0)
    """

    round: int
    clients: Any  # of `record` and the constructor any sequence; then a tuple or None
    count: int
    sample_rate: Any
    noise_multiplier: Any

    def __post_init__(self) -> None:
        def whole(name: str, value: Any) -> int:
            plain = isinstance(value, Integral) and not isinstance(value, bool)
            check_whole(name, int(value) if plain else value, 0)
            check(value <= MOST, name, value, f"at most {MOST}")
            return int(value)

        clients, plain = self.clients, dict(vars(self))
        if clients is not None:
            check(hasattr(clients, "__iter__"), "clients", clients, "client numbers, or None")
            clients = plain["clients"] = tuple(whole("clients", client) for client in clients)
            check(len(set(clients)) == len(clients), "clients", clients, "every client once")
        for name in ("round", "count"):
            plain[name] = whole(name, plain[name])
        # Noise that is not given is no noise, whose epsilon is infinite: it never looks private.
        if self.noise_multiplier is None:
            plain["noise_multiplier"] = 0.0
        numbers = {"sample_rate": 1.0, "noise_multiplier": math.inf}
        for name, high in numbers.items():
            value = plain[name] = as_floats(name, plain[name], high)
            fits = not isinstance(value, tuple) or len(value) == len(clients or ())
            check(fits, name, value, "one number, or as many as clients")
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    def rows(self) -> list[tuple[int | None, tuple[float, float]]]:
        """(client, (noise multiplier, sample rate)) for each client it counts for."""
        clients = (None,) if self.clients is None else self.clients
        both = (self.noise_multiplier, self.sample_rate)
        columns = (per_client(v, len(clients)) for v in both)
        return list(zip(clients, zip(*columns, strict=True), strict=True))


def _dominates(one: accounting.History, other: accounting.History) -> bool:
    """Whether ``one`` spends at least as much as ``other``, as entry by entry shows."""
    pairs = list(zip(one, other))
    less = all((a[0] or 0) <= (b[0] or 0) and a[1] >= b[1] and a[2] >= b[2] for a, b in pairs)
    return less and len(one) == len(other)


def _undominated(histories: Iterable[accounting.History]) -> list[accounting.History]:
    """The histories that no other dominates: one of them spends most.

    Epsilon never falls with less noise, a larger q or more releases. Entries are compared one by
    one in their order, so histories of different lengths never dominate each other.
    """

    def key(history: accounting.History) -> list[tuple[float, float, int]]:
        return [(sigma, -q, -steps) for sigma, q, steps in history]

    kept: list[accounting.History] = []
    # The largest first, so that most of the others fall at the first comparison.
    for one in sorted(set(histories), key=key):
        if not any(_dominates(other, one) for other in kept):
            kept = [*(other for other in kept if not _dominates(one, other)), one]
    return kept


class Uncertified(ValueError):
    """Raised in place of an epsilon when the noise does not match the sensitivity.

    >>> ledger = Ledger()
    >>> ledger.uncertified = "noise added before the clip"
    >>> ledger.epsilon()
    Traceback (most recent call last):
    fedlora_lab.privacy.ledger.Uncertified: epsilon: not certified: noise added before the clip
    """


class Ledger:
    """Counts the noised releases of each client, at one unit of privacy and one delta.

    Args:
        unit: "example", "person" or "client". In the client unit every release counts for every
            client, whether drawn or not, and q is the chance of taking part.
        delta: in [1e-12, 1).
        accountant: a name in `accounting.ACCOUNTANTS`: "pld" or "rdp".
        reproducible: the noise can be drawn again from a seed; only such a run repeats rounds.
        trust, relation: whom the noise protects from, and how neighbours differ, see `Privacy`.

    Guarantees: test_ledger_round_trip, test_ledger_refuses_any_changed_byte,
        test_every_record_counts, test_a_replay_counts_once,
        test_an_uncertified_ledger_states_no_epsilon,
        test_nothing_that_a_ledger_states_can_be_assigned,
        test_the_aggregator_is_not_amplified_against, test_compose_adds_up.

    >>> ledger = Ledger(delta=1e-5)
    >>> ledger.record(0, [0, 1], 100, sample_rate=0.1, noise_multiplier=1.0)
    >>> round(ledger.epsilon(), 2)
    7.06
    """

    # Nothing that a ledger states, and no method that states it, can be assigned afterwards.
    __slots__ = ("_closed", "_entries", "_parts", "_spent", "_terms", "_uncertified")

    terms = property(attrgetter("_terms"))
    parts = property(attrgetter("_parts"))
    # Of a composition `trust` names all parts'.
    unit = property(attrgetter("terms.unit"))
    delta = property(attrgetter("terms.delta"))
    accountant = property(attrgetter("terms.accountant"))
    reproducible = property(attrgetter("terms.reproducible"))
    trust = property(attrgetter("terms.trust"))
    relation = property(attrgetter("terms.relation"))

    def __init__(
        self,
        *,
        unit: str = "example",
        delta: float = 1e-5,
        accountant: str = "pld",
        reproducible: bool = True,
        trust: str | None = None,
        relation: str = RELATION,
    ) -> None:
        trust = check_terms(unit, delta, accountant, trust, relation)
        check(isinstance(reproducible, bool), "reproducible", reproducible, "True or False")
        self._terms = Terms(unit, float(delta), accountant, reproducible, trust, relation)
        self._parts: tuple[Ledger, ...] = ()
        self._uncertified: str | None = None
        self._closed: str | None = None
        # Replaced and never changed in place: copies and snapshots may share them.
        self._entries: tuple[LedgerEntry, ...] = ()
        self._spent: Totals = {}

    @classmethod
    def compose(cls, *ledgers: "Ledger") -> "Ledger":
        """Adds up what several runs on the same data have spent, as a closed ledger.

        They are of one task, so that client 3 is the same client in all, or of its pooled data,
        which count for every client; and of one unit, delta and relation. Each is counted under its
        own trust. Runs in which the data were dealt to other clients: `for_everyone` first.

        Returns: a ledger that takes no more entries; with "rdp" where accountants differ,
            reproducible and uncertified where a part is. Runs of one seed are counted as if each
            had noise of its own, and `statement` says so.
        Guarantees: test_compose_adds_up, test_compose_refuses_other_terms,
            test_pooled_data_are_spent_for_every_client.
        """
        some = bool(ledgers) and all(isinstance(one, Ledger) for one in ledgers)
        check(some, "ledgers", ledgers, "Ledgers, >= 1")
        # Snapshots: what a part records afterwards must not change a sum that was stated.
        parts = tuple(part.snapshot() for one in ledgers for part in one.parts or (one,))
        for name in ("unit", "delta", "relation"):
            values = list(dict.fromkeys(getattr(part, name) for part in parts))
            why = "the same in all ledgers: only then their releases add up"
            check(len(values) == 1, name, values, why)
        first, accountants = parts[0], {part.accountant for part in parts}
        whole = cls(unit=first.unit, delta=first.delta)
        whole._terms = first.terms._replace(
            # A bound by Renyi divergences holds for every history, whichever accountant it had.
            accountant="rdp" if len(accountants) > 1 else first.accountant,
            reproducible=any(part.reproducible for part in parts),
            trust=" and ".join(sorted({part.trust for part in parts})),
        )
        # A promise about the whole needs one about every part.
        reasons = dict.fromkeys(part.uncertified for part in parts if part.uncertified is not None)
        whole._uncertified = "; ".join(reasons) or None
        whole._parts, whole._closed = parts, "composition"
        return whole

    @property
    def observers(self) -> tuple[str, ...]:
        """Observers that an epsilon can be stated against, the default first.

        "server": the uploads (under secure aggregation their sum) and who sends; "released": the
        released models alone.
        """
        return ("released",) if "central" in self.trust else ("server", "released")

    @property
    def mode(self) -> str:
        """Whether the noise may protect anyone: noise from a known seed can be subtracted."""
        return "reproducible: not for release" if self.reproducible else "release"

    @property
    def releases(self) -> tuple[LedgerEntry, ...]:
        """Every entry, in the order it was written."""
        return self._entries + tuple(entry for part in self.parts for entry in part.releases)

    @property
    def uncertified(self) -> str | None:
        """Why no epsilon can be stated; ``None`` when one can."""
        return self._uncertified

    @uncertified.setter
    def uncertified(self, reason: str | None) -> None:
        self._check_open()
        words = reason is None or (isinstance(reason, str) and bool(reason))
        check(words, "uncertified", reason, "a reason or None")
        # What was released without a promise stays released: a reason cannot be taken back.
        kept = reason is not None or self._uncertified is None
        check(kept, "uncertified", reason, "a reason: what was released without a promise stays so")
        self._uncertified = reason

    def _check_open(self) -> None:
        why = f"the run's own ledger: a {self._closed} takes no entries"
        check(self._closed is None, "ledger", self._closed, why)

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
        """Records ``count`` releases of a round, before any of them is used. Every call counts.

        Args:
            round, clients, count, sample_rate, noise_multiplier: see `LedgerEntry`.
            repeats: the run plays its own round again from its seed: the noise is the same, so an
                entry that the round already has counts once, and a different one is refused. Only
                for a reproducible ledger.
        """
        self._check_open()
        # A draw of clients amplifies only while nobody learns who was drawn: no names are stored.
        named = None if self.unit == "client" else clients
        entry = LedgerEntry(round, named, count, sample_rate, noise_multiplier)
        fresh = "False in release mode: the noise is fresh"
        check(not repeats or self.reproducible, "repeats", repeats, fresh)
        # A round that is drawn again from its seed has the same noise, so it releases nothing new.
        same = [one for one in self._entries if one.round == entry.round] if repeats else []
        why = "the entry that this round already has in the ledger"
        check(same[-1:] in ([], [entry]), "round", round, why)
        if not same:
            self._append(entry)

    def _append(self, entry: LedgerEntry) -> None:
        # Counted before its value exists: a run that is killed in between has spent it.
        self._entries += (entry,)
        self._spent = dict(self._spent)
        for client, pair in entry.rows():
            history = self._spent.get(client, {})
            self._spent[client] = history | {pair: history.get(pair, 0) + entry.count}

    @property
    def clients(self) -> tuple[int, ...]:
        """Clients that are named in some entry, sorted."""
        named = {client for part in self.parts for client in part.clients} | {*self._spent}
        return tuple(sorted(client for client in named if client is not None))

    def history(self, client: int | None = None, observer: str | None = None) -> accounting.History:
        """(noise_multiplier, sample_rate, steps) of one client, or of ``None`` what counts for all.

        ``observer`` as for `epsilon`.
        """
        self._check_observer(observer)
        total: dict[tuple[float, float], int] = {}
        for part in self.parts or (self,):
            # The draw of examples stays inside their client, so its q counts. Who takes part, or
            # how many do, is hidden by a trusted server alone: else the q of clients is 1.
            tells = part.unit == "client" and part.trust != "central"
            # Entries that name no client count for every client.
            for key in (None,) if client is None else (None, client):
                for (sigma, q), count in part._spent.get(key, {}).items():
                    pair = (sigma, 1.0 if tells else q)
                    total[pair] = total.get(pair, 0) + count
        return tuple((*pair, count) for pair, count in total.items())

    def _check_observer(self, observer: str | None) -> None:
        central = " for trust='central': a trusted server sees the updates themselves"
        names = " or ".join(map(repr, self.observers))
        names += central if "central" in self.trust else ""
        check(observer is None or observer in self.observers, "observer", observer, names)

    def epsilon(self, client: int | None = None, observer: str | None = None) -> float:
        """Epsilon spent by one client, or the largest over all; ``inf`` after one without noise.

        Args:
            client: one client's number; ``None`` is the one who spent most.
            observer: one of `observers`; default: the first, of a composition each part's own.

        Raises: `Uncertified` with the reason, when a release cannot be certified; ``ValueError``
            for an observer whom this trust does not protect from.
        Guarantees: test_the_aggregator_is_not_amplified_against,
            test_the_worst_client_is_found_among_many.
        """
        # What can be promised to everyone is what is promised to the client who spent most.
        spent = map(self._epsilon_of, self._certified("epsilon", client, observer))
        return max(spent, default=0.0)

    def _epsilon_of(self, history: accounting.History) -> float:
        return accounting.epsilon(history, self.delta, self.accountant)

    def _largest(self, observer: str | None) -> list[accounting.History]:
        """The histories of which one spends most."""
        return _undominated(self.history(client, observer) for client in (None, *self.clients))

    def nominal_epsilon(self, observer: str | None = None) -> float:
        """`epsilon` as if the ledger were certified: accounting only, no promise."""
        return max(map(self._epsilon_of, self._largest(observer)), default=0.0)

    def tradeoff(self, fpr: Any, client: int | None = None, observer: str | None = None) -> Any:
        """The largest share of members that any attacker finds at a false positive rate ``fpr``.

        It follows from the composed privacy loss, with no detour by epsilon and delta.

        Args:
            fpr: a false positive rate in [0, 1], or an array of them, which gives an array.
            client, observer: as for `epsilon`; ``None`` is whoever is found most easily.

        Raises: as `epsilon`.
        Guarantees: test_the_curve_of_a_ledger_is_that_of_its_worst_client,
            test_an_uncertified_ledger_states_no_epsilon.
        Source: see `accounting.tradeoff_curve`.

        >>> ledger = Ledger()
        >>> ledger.record(0, None, 4, sample_rate=1.0, noise_multiplier=2.0)
        >>> round(ledger.tradeoff(0.01), 4)
        0.0924
        """
        rates = np.atleast_1d(np.asarray(fpr, float))
        histories = self._certified("tradeoff", client, observer)
        # At each rate by itself: another client may be the most exposed at another rate.
        largest = np.max([accounting.tradeoff_curve(h, rates) for h in histories], axis=0)
        return largest if np.ndim(fpr) else float(largest[0])

    def advantage(self, client: int | None = None, observer: str | None = None) -> float:
        """The largest difference of `tradeoff` and its false positive rate: 0 hides, 1 tells all.

        Args: client, observer: as for `epsilon`.
        Raises: as `epsilon`.
        Guarantees: test_the_curve_of_a_ledger_is_that_of_its_worst_client.

        >>> ledger = Ledger()
        >>> ledger.record(0, None, 4, sample_rate=1.0, noise_multiplier=2.0)
        >>> round(ledger.advantage(), 4)
        0.3829
        """
        return max(map(accounting.advantage, self._certified("advantage", client, observer)))

    def _certified(
        self, what: str, client: int | None, observer: str | None
    ) -> list[accounting.History]:
        """The histories of which one spends most, and is attacked most easily; raises as `epsilon`.

        Less noise, a larger q and more releases help every attacker.
        """
        self._check_observer(observer)
        if self._uncertified is not None:
            raise Uncertified(f"{what}: not certified: {self._uncertified}")
        return self._largest(observer) if client is None else [self.history(client, observer)]

    def epsilon_or_inf(self) -> float:
        """Largest epsilon over the clients; ``inf`` where none can be certified."""
        return math.inf if self._uncertified is not None else self.epsilon()

    def after(self, releases: Sequence[LedgerEntry]) -> "Ledger":
        """Returns what a run's ledger would be after these releases; nothing is recorded."""
        check(not self.parts, "ledger", "composition", "the ledger of one run")
        twin = copy(self)
        for entry in releases:
            twin._append(entry)
        return twin

    def for_everyone(self) -> "Ledger":
        """Counts each release for every client, at its least noise and largest q.

        An upper bound for runs that split the same data in other ways.

        Guarantees: test_ledgers_over_other_splits_are_bounded (test_attack_spending.py).
        """
        check(not self.parts, "ledger", "composition", "the ledger of one run")
        # In another split somebody's data may lie with any client.
        whole = Ledger(**self.terms._asdict())
        whole.uncertified = self._uncertified
        for entry in self._entries:
            pairs = [pair for _, pair in entry.rows()]
            if pairs:
                sigma, q = min(pair[0] for pair in pairs), max(pair[1] for pair in pairs)
                whole._append(LedgerEntry(entry.round, None, entry.count, q, sigma))
        return whole

    def snapshot(self) -> "Ledger":
        """A copy that takes no more entries."""
        twin = copy(self)
        twin._closed = self._closed or "snapshot"
        return twin

    def statement(self, observer: str | None = None) -> str:
        """One sentence: epsilon, delta, unit, neighbours, observer, and noise from a seed."""
        self._check_observer(observer)
        parts = self.parts or (self,)
        own = sorted({part.observers[0] for part in parts})
        name = observer or (own[0] if len(own) == 1 else None)
        views = {"secagg": "the sum of the uploads", "local": "every upload"}
        view = views.get(self.trust, "uploads or sums")
        against = {
            "server": f"the server, which sees {view} and who sends",
            "released": "whoever sees the released models only",
            None: f"each part's own observer ({' or '.join(own)})",
        }[name]
        unit = {
            "example": "one example of one client",
            "person": "one person's rows at one client",
            "client": "all data of one client",
        }[self.unit]
        counted = "persons of each" if self.unit == "person" else "examples"
        seeded = sum(part.reproducible for part in parts)
        twice = " or sees two runs of one seed, which share their noise" if seeded > 1 else ""
        warning = f" The noise came from a seed: nothing is promised to whoever knows it{twice}."
        why = self._uncertified
        value = f"not certified: {why}," if why else f"{self.epsilon(None, observer):.4g}"
        found = "" if why else f" {self._attack(observer)}."
        warning = warning if seeded else ""
        return (
            f"epsilon = {value} at delta = {self.delta:g} against {against}, for neighbours that "
            f"differ by {unit} replaced by nothing ({self.relation}: how many clients "
            f"and {counted} there are is public).{found}{warning}"
        )

    def _attack(self, observer: str | None) -> str:
        """What the best attacker reaches, in words."""
        one, tenth = (format(self.tradeoff(fpr, None, observer), ".2g") for fpr in (0.01, 0.001))
        return (
            f"Then no attacker finds more than a share {one} of the members where 1 % of the "
            f"others are accused (0.1 %: {tenth}); advantage at most "
            f"{self.advantage(None, observer):.2g}"
        )

    def __repr__(self) -> str:
        spent, attack = "uncertified", ""
        if self._uncertified is None:
            spent = ", ".join(f"{one} {self.epsilon(None, one):.4g}" for one in self.observers)
            attack = (
                f", advantage {self.advantage():.2g}, TPR {self.tradeoff(0.01):.2g} at FPR 0.01"
            )
        mode = "reproducible" if self.reproducible else "release"
        entries = f"{len(self.parts)} ledgers" if self.parts else f"{len(self._entries)} entries"
        return (
            f"Ledger(unit={self.unit!r}, trust={self.trust!r}, relation={self.relation!r}, {mode}, "
            f"{entries}, epsilon: {spent} at delta={self.delta:g}{attack})"
        )

    def _repr_html_(self) -> str:
        head = ("against", "ε", "advantage", "TPR at FPR 1 %", "TPR at FPR 0.1 %")
        rows = []
        for one in self.observers if self._uncertified is None else ():
            rates = [self.tradeoff(fpr, None, one) for fpr in (0.01, 0.001)]
            numbers = self.epsilon(None, one), self.advantage(None, one), *rates
            rows.append((one, *(f"{number:.3g}" for number in numbers)))
        return f"<p>{escape(self.statement())}</p>{html_table(rows, head) if rows else ''}"

    def event(self, client: int | None = None, observer: str | None = None) -> Any:
        """The history of one client, or of the one who spent most, as a ``dp_accounting.DpEvent``.

        Guarantees: test_ledger_event_gives_the_same_epsilon.
        """
        worst = max(self._certified("event", client, observer), key=self._epsilon_of)
        return accounting.event_of(worst)

    def to_frame(self) -> Any:
        """One row per client: client ("every" for a common history), releases, epsilon."""
        import pandas as pd

        uncertified = self._uncertified is not None
        rows = []
        for client in self.clients or (None,):
            history = self.history(client)
            releases = (n for *_, n in history)
            name, count = "every" if client is None else client, sum(releases)
            spent = math.inf if uncertified else self.epsilon(client)
            rows.append({"client": name, "releases": count, "epsilon": spent})
        return pd.DataFrame(rows)

    def to_json(self) -> str:
        """The whole ledger as one line of text with a digest, which finds damage, not forgery."""
        return files.dump_checksummed("fedlora_lab.ledger", 2, self._content())

    def _content(self) -> dict[str, Any]:
        content = {**self.terms._asdict(), "uncertified": self._uncertified}
        if self.parts:
            return {**content, "parts": [part._content() for part in self.parts]}
        return {**content, "releases": [dict(vars(entry)) for entry in self._entries]}

    @classmethod
    def _of(cls, content: dict[str, Any]) -> "Ledger":
        if "parts" in content:
            return cls.compose(*(cls._of(part) for part in content["parts"]))
        terms = dict(content)
        reason, entries = terms.pop("uncertified"), terms.pop("releases")
        ledger = cls(**terms)
        ledger.uncertified = reason
        for fields in entries:
            ledger._append(LedgerEntry(**fields))
        return ledger

    @classmethod
    def from_json(cls, text: str, name: str = "ledger") -> "Ledger":
        """Reads a ledger that ``to_json`` wrote; that of one run can be continued.

        Raises: ``ValueError`` in one line, for anything but a text that ``to_json`` gave.
        """
        content = files.load_checksummed("fedlora_lab.ledger", 2, text, name)
        try:
            ledger = cls._of(content)
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
        """Reads a file that `save` wrote; ``ValueError`` when it is damaged."""
        text = Path(path).read_bytes().decode("utf-8", errors="replace")
        # Without its line end the file was cut off, so `from_json` must refuse it.
        text = text.removesuffix("\n") if text.endswith("\n") else text + "<cut>"
        return cls.from_json(text, Path(path).name)
