"""The ledger of a run: every release is recorded before it is used; it alone states epsilon."""

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fedlora_lab._utils import files
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.trust import TRUST
from fedlora_lab._utils.validation import (
    as_plain,
    check,
    check_number,
    check_one_of,
    check_whole,
    refuse,
)
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.accounting import History

PerClient = float | tuple[float, ...]
"""One number for all clients, or a number for each."""
Numbers = Sequence[float] | np.ndarray
MOST_SUMS = 64
"""Ways in which somebody's clients in several runs may meet that are counted one by one."""
Spent = Mapping[tuple[float, float], int]
"""(noise multiplier, sample rate) -> releases."""
MAX_COUNT = 2**53
"""Rounds and releases beyond which a float no longer counts them one by one."""
FORMAT = "fedlora_lab.ledger"
VERSION = 2
RELATION = "zero-out"
"""Neighbours: one unit's contribution is replaced by nothing. How many clients and units there are
is public: sums are divided by numbers of units, and sample rates are made of them."""


class Unit(NamedTuple):
    """What may be protected.

    Args:
        replaced: by what neighbours differ, in words.
        caveat: what a statement has to say beside epsilon.
    """

    replaced: str
    caveat: str


UNITS = {
    "example": Unit(
        "one example of one client",
        "A person with several examples is protected less, as a group of them: "
        "unit='person' protects them together.",
    ),
    "person": Unit(
        "one person's rows at one client",
        "A person with rows at several clients is protected less.",
    ),
    "client": Unit("all data of one client", "Nothing is hidden from the client itself."),
}
"""Name -> unit of privacy."""


class Terms(NamedTuple):
    """What an epsilon is stated for, and why none is; equal in all ledgers of one run.

    Args:
        unit, delta, accountant, trust: see `Privacy`.
        reproducible: the noise follows from a seed, so that it can be drawn again.
        uncertified: why no epsilon covers the releases; ``None``: one does.
    """

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
    check_one_of("unit", unit, tuple(UNITS))
    accounting.check_delta(delta)
    check_one_of("accountant", accountant, tuple(accounting.ACCOUNTANTS))
    if trust is None:
        return "central" if unit == "client" else "local"
    check_one_of("trust", trust, tuple(TRUST))
    local = (
        f"'local' for unit={unit!r}: each client noises its steps, its upload is protected alone"
    )
    check(unit == "client" or TRUST[trust].uploads_are_seen, "trust", trust, local)
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
        _check_ordered(name, value)
        return tuple(_as_float(f"{name}[{k}]", x, high) for k, x in enumerate(value))
    return _as_float(name, value, high)


def _check_ordered(name: str, value: Iterable) -> None:
    """Refuses a set: whose a number is would be arbitrary."""
    ordered = not isinstance(value, (Set, Mapping, str))
    check(ordered, name, value, "numbers in the order of the clients")


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
    check_whole(name, value, 0, MAX_COUNT)
    return int(value)


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
            _check_ordered("clients", clients)
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
            fits = not isinstance(value, tuple) or (
                clients is not None and len(value) == len(clients)
            )
            check(fits, name, value, "one number, or as many as clients")
        counts = {name: _as_count(name, getattr(self, name)) for name in ("round", "count")}
        for name, value in {**counts, "clients": clients, **numbers}.items():
            object.__setattr__(self, name, value)

    def at(self, round: int, ids: Sequence[int] | None = None) -> "LedgerEntry":
        """The same releases in another round, by some of the clients.

        Args:
            round: from 1.
            ids: who takes part, by the place in ``clients``; ``None``: all.
        """
        if self.clients is None or ids is None:
            return replace(self, round=round)
        chosen: dict[str, Any] = {}
        for name in ("clients", "sample_rate", "noise_multiplier"):
            value = getattr(self, name)
            if isinstance(value, tuple):
                chosen[name] = tuple(value[k] for k in ids)
        return replace(self, round=round, **chosen)

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
        reproducible: the noise can be drawn again from a seed: nothing may be released.
        trust: whom the noise protects from, see `Privacy`.
        uncertified: why no epsilon can be stated; ``None`` when one can.

    Guarantees: every record counts (test_every_record_counts); nothing that it states can be
        assigned (test_nothing_that_a_ledger_states_can_be_assigned), and without a certificate it
        states nothing (test_an_uncertified_ledger_states_no_epsilon); for an observer of the
        uploads the sampling of clients counts with q = 1
        (test_every_epsilon_names_its_observer); a file gives back the same
        ledger (test_ledger_round_trip), or is refused
        (test_ledger_refuses_any_changed_byte).

    >>> ledger = Ledger(delta=1e-5)
    >>> ledger.record(0, [0, 1], 100, sample_rate=0.1, noise_multiplier=1.0)
    >>> round(ledger.epsilon(), 2)
    7.05
    """

    # Nothing that a ledger states, and no method that states it, can be assigned afterwards.
    __slots__ = ("_closed", "_entries", "_parts", "_spent", "_terms")

    def __init__(
        self,
        *,
        unit: str = "example",
        delta: float = 1e-5,
        accountant: str = "pld",
        reproducible: bool = True,
        trust: str | None = None,
        uncertified: str | None = None,
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

    @classmethod
    def compose(cls, *ledgers: "Ledger") -> "Ledger":
        """Adds up what several runs on the same data have spent, as a closed ledger.

        Who was which client in another run is not asked: the worst case counts, so that the sum
        bounds what each unit has spent, at whichever client it was in each run. Of many different
        clients it is a bound of several together. A person or client has to be the same in all
        runs: of a site that was split or merged in between the sum may be too small. Each run is
        counted under its own trust.

        Args:
            ledgers: one or more, of one unit and one δ.

        Returns: a ledger that takes no more entries; with "rdp" where accountants differ,
            reproducible and uncertified where a part is. Runs of one seed are counted as if each
            had noise of its own, and `privacy.statement` says so.
        Guarantees: releases add up (test_compose_adds_up), and never to less than a client has
            spent, whoever it is in each run (test_a_sum_is_never_below_what_a_client_has_spent);
            other units and other deltas are refused (test_compose_refuses_other_terms).
        """
        units = list(dict.fromkeys(ledger.unit for ledger in ledgers))
        alike = "one unit: nobody knows how many units of the one kind are in one of the other"
        check(len(units) == 1, "unit", units, alike)
        deltas = list(dict.fromkeys(ledger.delta for ledger in ledgers))
        check(len(deltas) == 1, "delta", deltas, "the same in all ledgers: the sum is stated at it")
        # Snapshots: what a part records afterwards must not change a sum that was stated.
        runs = [run.snapshot() for ledger in ledgers for run in ledger.parts or (ledger,)]
        accountants = {run.accountant for run in runs}
        # A promise about the whole needs one about every part.
        reasons = dict.fromkeys(run.uncertified for run in runs if run.uncertified is not None)
        total = cls(unit=units[0])
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
        trusted = any(TRUST[part.trust].server_adds_noise for part in self.parts or (self,))
        return ("released",) if trusted else ("server", "released")

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
        """Clients that are named in some entry, sorted; a composition names none."""
        return tuple(sorted(client for client in self._spent if client is not None))

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
        limit: float | None = None,
    ) -> None:
        """Records ``count`` releases of a round, before any of them is used; see `append`.

        Args:
            round, clients, count, sample_rate, noise_multiplier: see `LedgerEntry`.
            limit: the largest epsilon that may be spent with these releases; ``None``: any.

        Raises: `BudgetExceeded`, and nothing is recorded, where the limit would not hold.
        Guarantees: test_ledger.py::test_a_release_beyond_the_limit_is_refused_and_not_recorded.
        """
        entry = LedgerEntry(round, clients, count, sample_rate, noise_multiplier)
        limit = as_plain(limit)
        if limit is not None:
            check_number("limit", limit, 0, open_low=True)
            spent = self.after([entry]).epsilon_or_inf()
            if spent > limit:
                needed = f"expected at least {round_up(spent, '.4g')}, which would be spent after"
                advice = "it is not recorded, so it must not be released"
                raise BudgetExceeded(f"limit={limit:g}: {needed} round {round}; {advice}")
        self.append(entry)

    def append(self, entry: LedgerEntry) -> None:
        """Records an entry, before any of its releases is used. Every call counts."""
        if self._closed is not None:
            expected = f"the run's own ledger: a {self._closed} takes no entries"
            refuse("ledger", self._closed, expected)
        self._append(self._in_unit(entry))

    def _in_unit(self, entry: LedgerEntry) -> LedgerEntry:
        """The entry as it counts: for every client where who takes part is not to be known."""
        # A draw of clients amplifies only while nobody learns who was drawn: no names are stored.
        # Without a sum around it an upload carries its client's own noise, and its sender is seen:
        # who takes part depends on no data, so each client spends in its own rounds.
        named = TRUST[self.trust].uploads_are_seen or entry.clients is None
        return entry if named else replace(entry, clients=None)

    def _append(self, entry: LedgerEntry) -> None:
        spent = dict(self._spent)
        for client, pair in entry.rows():
            history = spent.get(client, {})
            spent[client] = {**history, pair: history.get(pair, 0) + entry.count}
        # Counted before its value exists: a run that is killed in between has spent it. Before the
        # entry is kept, so that no entry is there that epsilon does not count.
        self._spent = spent
        self._entries += (entry,)

    # ---- what was spent

    def history(self, client: int | None = None) -> History:
        """(noise_multiplier, sample_rate, steps) of a client; ``None``: what counts for all."""
        check(not self.parts, "ledger", "composition", "the ledger of one run")
        if client is not None:
            check_whole("client", client, 0)
        # The draw of examples stays inside their client, so its q counts. Who takes part, or how
        # many do, is hidden by a trusted server alone: else the q of clients is 1.
        tells = self.unit == "client" and not TRUST[self.trust].hides_participants
        total: dict[tuple[float, float], int] = {}
        for one in dict.fromkeys((None, client)):
            for (sigma, q), count in self._spent.get(one, {}).items():
                pair = (sigma, 1.0 if tells else q)
                total[pair] = total.get(pair, 0) + count
        return tuple((*pair, count) for pair, count in total.items())

    def _refuse_uncertified(self, quantity: str) -> None:
        if self.uncertified is not None:
            raise Uncertified(f"{quantity}: not certified: {self.uncertified}")

    def _histories(self) -> list[History]:
        """The histories among which is the one that spends most and is attacked most easily."""
        if not self.parts:
            # What can be promised to everyone is what is promised to the client who spent most.
            return undominated(self.history(client) for client in self.clients or (None,))
        # Somebody may be at any client in each run: the worst way to meet them counts.
        count = max(1, int(MOST_SUMS ** (1 / len(self.parts)) + 1e-9))
        each = [at_most(part._histories(), count) for part in self.parts]
        return undominated({tuple(chain(*histories)) for histories in product(*each)})

    def epsilon(self, client: int | None = None) -> float:
        """Epsilon spent by one client, or the largest over all; ``inf`` after one without noise.

        Args:
            client: its number; ``None`` is the one who spent most, the only answer of a
                composition.

        Raises: `Uncertified` with the reason, when a release cannot be certified.
        Guarantees: the largest over all clients
            (test_a_sum_is_never_below_what_a_client_has_spent).
        """
        self._refuse_uncertified("epsilon")
        histories = self._histories() if client is None else [self.history(client)]
        return max(accounting.epsilon(x, self.delta, self.accountant) for x in histories)

    def epsilon_or_inf(self) -> float:
        """Largest epsilon over the clients; ``inf`` where none can be certified."""
        return math.inf if self.uncertified is not None else self.epsilon()

    def nominal_epsilon(self) -> float:
        """`epsilon` as if the ledger were certified: accounting only, no promise."""
        twin = copy(self)
        twin._terms = self.terms._replace(uncertified=None)
        return twin.epsilon()

    def tradeoff(self, fpr: float | Float[np.ndarray, " n"]) -> Any:
        """The largest share of members that any attacker finds at a false positive rate ``fpr``.

        It follows from the composed privacy loss, with no detour by epsilon and delta.

        Args: fpr: a false positive rate in [0, 1], or an array of them, which gives an array.
        Raises: as `epsilon`.
        Guarantees: that of the worst client at each rate
            (test_the_curve_of_a_ledger_is_that_of_its_worst_client).
        Source: see `accounting.tradeoff_curve`.

        >>> ledger = Ledger()
        >>> ledger.record(0, None, 4, sample_rate=1.0, noise_multiplier=2.0)
        >>> round(ledger.tradeoff(0.01), 4)
        0.0924
        """
        self._refuse_uncertified("tradeoff")
        rates = np.atleast_1d(np.asarray(fpr, float))
        # At each rate by itself: another client may be the most exposed at another rate.
        curves = [accounting.tradeoff_curve(history, rates) for history in self._histories()]
        largest = np.max(curves, axis=0)
        return largest if np.ndim(fpr) else float(largest[0])

    def advantage(self) -> float:
        """The largest difference of `tradeoff` and its false positive rate: 0 hides, 1 tells all.

        Raises: as `epsilon`.
        Guarantees: the largest over all clients
            (test_the_curve_of_a_ledger_is_that_of_its_worst_client).

        >>> ledger = Ledger()
        >>> ledger.record(0, None, 4, sample_rate=1.0, noise_multiplier=2.0)
        >>> round(ledger.advantage(), 4)
        0.3829
        """
        self._refuse_uncertified("advantage")
        return max(map(accounting.advantage, self._histories()))

    # ---- other ledgers made of this one

    def after(self, releases: Iterable[LedgerEntry]) -> "Ledger":
        """Returns what a run's ledger would be after these releases; nothing is recorded."""
        check(not self.parts, "ledger", "composition", "the ledger of one run")
        twin = copy(self)
        for entry in releases:
            twin._append(twin._in_unit(entry))
        return twin

    def snapshot(self) -> "Ledger":
        """A copy that takes no more entries."""
        twin = copy(self)
        twin._closed = self._closed or "snapshot"
        return twin

    def __repr__(self) -> str:
        spent = "uncertified"
        if self.uncertified is None:
            spent = f"{round_up(self.epsilon(), '.4g')} against {' and '.join(self.observers)}"
        mode = "reproducible" if self.reproducible else "release"
        entries = f"{len(self.parts)} ledgers" if self.parts else f"{len(self._entries)} entries"
        return (
            f"Ledger(unit={self.unit!r}, trust={self.trust!r}, relation={RELATION!r}, {mode}, "
            f"{entries}, epsilon: {spent} at delta={round_up(self.delta, 'g')})"
        )

    # ---- on disk

    def to_json(self) -> str:
        """The whole ledger as one line of text with a digest, which finds damage, not forgery."""
        return sealed(_content(self))

    @classmethod
    def from_json(cls, text: str, name: str = "ledger") -> "Ledger":
        """Reads a ledger that ``to_json`` wrote; that of one run can be continued.

        Raises: ``ValueError`` in one line, for anything but a text that ``to_json`` gave.
        """
        try:
            ledger = _from_content(files.parse_json(text, name)["content"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            ledger = None
        # Anyone can compute a digest. What counts is that this ledger would write the same text.
        if ledger is None or ledger.to_json() != text:
            raise ValueError(f"{name}: expected an unaltered ledger of format version {VERSION}")
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


def sealed(content: dict[str, Any]) -> str:
    """Writes the content of a ledger with its digest, as one line of JSON."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode())
    text = {"content": content, "digest": digest.hexdigest(), "format": FORMAT, "version": VERSION}
    return json.dumps(text, sort_keys=True)


def _content(ledger: Ledger) -> dict[str, Any]:
    """A ledger as JSON values."""
    content = {**ledger.terms._asdict(), "relation": RELATION}
    if ledger.parts:
        return {**content, "parts": [_content(part) for part in ledger.parts]}
    return {**content, "releases": [dict(vars(entry)) for entry in ledger.releases]}


def _from_content(content: Mapping[str, Any]) -> Ledger:
    """The ledger whose content this is; any error where it is none's."""
    if "parts" in content:
        return Ledger.compose(*map(_from_content, content["parts"]))
    ledger = Ledger(**{name: content[name] for name in Terms._fields})
    return ledger.after(LedgerEntry(**fields) for fields in content["releases"])


def at_most(histories: Sequence[History], count: int) -> list[History]:
    """At most so many histories, of which each of the given ones is dominated by one."""
    if len(histories) <= count:
        return list(histories)
    # Neighbours in noise have nearly the same rate where each client's noise was calibrated.
    ordered = sorted(histories, key=lambda history: min(sigma or 0.0 for sigma, _, _ in history))
    bounds = [len(ordered) * k // count for k in range(count + 1)]
    return [_bound(ordered[low:high]) for low, high in pairwise(bounds)]


def _bound(histories: Sequence[History]) -> History:
    """A history that spends at least as much as each of these: epsilon never falls with less noise,
    a larger rate or more releases."""
    sigma = min(sigma or 0.0 for sigma, _, _ in chain(*histories))
    rate = max(q for _, q, _ in chain(*histories))
    return ((sigma, rate, max(sum(steps for *_, steps in history) for history in histories)),)


def undominated(histories: Iterable[History]) -> list[History]:
    """The histories that no other dominates: one of them spends most.

    Epsilon never falls with less noise, a larger q or more releases. Entries are compared one by
    one in their order, so histories of different lengths never dominate each other, but the empty
    one, which every other dominates.
    """
    # Written so that each number, if larger, spends at least as much.
    costs = {
        tuple(
            number for sigma, q, steps in history for number in (-(sigma or 0.0), q, steps)
        ): history
        for history in histories
    }
    if len(costs) > 1:
        costs.pop((), None)
    largest: list[tuple[float, ...]] = []
    # The largest first: a later one may fall by an earlier one, and never the other way round.
    for cost in sorted(costs, reverse=True):
        rivals = (zip(rival, cost, strict=True) for rival in largest if len(rival) == len(cost))
        if not any(all(a >= b for a, b in pairs) for pairs in rivals):
            largest.append(cost)
    return [costs[cost] for cost in largest]
