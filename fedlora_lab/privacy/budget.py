"""A budget of several runs on the same data: one file that every release is written to before it
exists, and that refuses a run for which too little is left.

Beside the file, in ``private/``, lie the folder's secret key and, for each budget, a record of
whose data it is of and how often it was written: an edited file, a copy, an older copy put back,
and the same data under a second budget are found by them.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from fedlora_lab._utils import files
from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.methods.plan import Plan
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.privacy.ledger import Ledger, Totals, check_terms

KIND, VERSION = "fedlora_lab.budget", 1
SKETCH = 256
"""How many keyed digests of examples, the smallest ones, are stored to find overlapping data."""
OVERLAP = 0.1
"""Two data sets that have at least this share of their examples in common count as the same."""
PATIENCE = 60.0
"""Seconds that a process waits for another that writes the same budget."""


class DataId(NamedTuple):
    """Whose data a task holds, by digests that tell nothing without the folder's key.

    Args:
        split: of all examples, client by client.
        whole: of all examples, in any order and split.
        sketch: the smallest digests of single examples.
    """

    split: str
    whole: str
    sketch: tuple[str, ...]


_KNOWN: "WeakKeyDictionary[Any, dict[Any, DataId]]" = WeakKeyDictionary()


def _digests(x: Any, y: Any, key: bytes) -> list[bytes]:
    """A keyed digest of every example, whatever the precision of its numbers."""
    inputs = sorted(x.items()) if hasattr(x, "items") else [("x", x)]
    columns = []
    for name, value in [*inputs, ("y", y)]:
        wide = value.double() if value.is_floating_point() else value.long()
        rows = np.ascontiguousarray(wide.detach().cpu().numpy()).reshape(len(y), -1)
        columns.append((name.encode() + b"\0", rows))
    # Keyed: without the folder's key nobody can test whether a known example is among the data.
    rows = (b"".join(name + own[i].tobytes() for name, own in columns) for i in range(len(y)))
    return [hashlib.blake2b(row, key=key, digest_size=32).digest() for row in rows]


def identify_data(task: Any, folder: Path, unit: str) -> DataId:
    """The identity of a task's examples under the secret key of a folder.

    Args:
        task: with ``clients``, and ``persons`` where it has some.
        folder, unit: of the budget; whose an example is counts for unit="person" only.
    """
    key, known = files.secret_key(folder), _KNOWN.setdefault(task, {})
    if (key, unit) not in known:
        clients = [_digests(x, y, key) for x, y in task.clients]
        # A sum does not depend on the order of the examples, and repeated ones count.
        sums = [sum(int.from_bytes(row, "big") for row in rows) % 2**256 for rows in clients]
        persons = _plain(getattr(task, "persons", None)) if unit == "person" else None
        split = json.dumps([[len(rows) for rows in clients], sums, persons], default=str)
        whole = f"{sum(map(len, clients))} {sum(sums) % 2**256}"
        smallest = sorted({row.hex()[:16] for rows in clients for row in rows})[:SKETCH]
        one, other = (hashlib.blake2b(x.encode(), key=key).hexdigest() for x in (split, whole))
        known[key, unit] = DataId(one, other, tuple(smallest))
    return known[key, unit]


def _plain(value: Any) -> Any:
    """Numbers and names of persons, client by client, as JSON values."""
    if isinstance(value, (tuple, list)):
        return [_plain(x) for x in value]
    return value.tolist() if hasattr(value, "tolist") else value


def overlap(one: "tuple[str, ...] | list[str]", other: "tuple[str, ...] | list[str]") -> float:
    """About which share of the smaller data set two sketches have in common."""
    if not one or not other:
        return 0.0
    # Compare only up to where both sketches have every digest. One that is not full has all of
    # them: its end is "g", which sorts behind every hexadecimal digit.
    end = min(max(one) if len(one) >= SKETCH else "g", max(other) if len(other) >= SKETCH else "g")
    mine, theirs = ({x for x in sketch if x <= end} for sketch in (one, other))
    return len(mine & theirs) / max(1, min(len(mine), len(theirs)))


class Budget:
    """What all runs on the same data may spend together, in a file that outlives them.

    Give it to `run`, `compare` or `finetune`. Every release is written to the file
    before it exists; a run that would overdraw is refused before anything is trained; a run that
    goes on reserves what it will need, so that two at once cannot overdraw together. Runs with a
    seed cost what others cost, as in `Ledger.compose`.

    Args:
        path: of the file, such as "project.json"; made if it is not there. Its folder also gets
            ``private/``, without which no budget in it can be used.
        epsilon, delta: what may be spent; delta in [1e-12, 1), default 1e-5. Of a file that is
            there: as it says, or left out.
        unit: "example" (default), "client" or "person": of all runs.
        accountant: a name in `accounting.ACCOUNTANTS`; default "prv".

    The first run decides whose data it is of. In the example unit other splits of overlapping data
    count for every client; otherwise other data, or another split, are refused. Data of one budget
    are refused by every other budget in the same folder. Across folders nothing can be compared,
    since each has its own key.

    Raises: ``ValueError`` in one line for a damaged, edited, copied or older file.
    Guarantees: tests/privacy/test_budget.py.

    >>> import tempfile
    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=40, d_in=3, d_out=3, rank=1, test=4)
    >>> plan = fl.Plan(rounds=2, local_steps=2, batch=4)
    >>> budget = fl.Budget(tempfile.mkdtemp() + "/project.json", epsilon=4, delta=1e-3)
    >>> privacy = fl.Privacy(delta=1e-3).calibrate(epsilon=3, task=task, plan=plan)
    >>> [record.index for record in fl.run(task, "rolora", privacy, plan, budget=budget)]
    [0, 1, 2]
    >>> round(budget.spent(), 1), len(budget.runs())
    (3.0, 1)
    """

    def __init__(
        self,
        path: "str | Path",
        epsilon: float | None = None,
        delta: float | None = None,
        unit: str | None = None,
        accountant: str | None = None,
    ) -> None:
        named = isinstance(path, (str, PurePath)) and str(path) not in ("", ".")
        check(named, "budget", path, "the path of a file, such as 'project.json'")
        self.path = Path(path).expanduser().absolute()
        check(not self.path.is_dir(), "budget", str(path), "a file, not a folder")
        new = not self.path.exists()
        words = (
            f"a number > 0: {path} is not there, and a new budget needs its total (--epsilon of "
        )
        words += "`fedlora-lab budget`)"
        check(not new or epsilon is not None, "epsilon", None, words)
        given = {"epsilon": epsilon, "delta": delta, "unit": unit, "accountant": accountant}
        if epsilon is not None:
            check_number("epsilon", epsilon, 0, 1e9, open_low=True)
        check_terms(unit or "example", 1e-5 if delta is None else delta, accountant or "prv")
        with self._locked():
            # Another process may have made it since the look above.
            if not self.path.exists():
                self._create(given)
            content = self._read()
        for name, value in given.items():
            found = content[name]
            own = f"{found!r}, as {self.path.name} says; or leave it out"
            check(value is None or value == found, name, value, own)
        self.id: str = content["id"]
        self.epsilon: float = content["epsilon"]
        self.delta: float = content["delta"]
        self.unit: str = content["unit"]
        self.accountant: str = content["accountant"]
        self._granted: dict[str, Totals] = {}  # what runs of this object have reserved

    # ---- the file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        name, what = f".{self.path.name}.lock", f"budget={self.path.name!r}"
        with files.lock_folder(self.path.parent, name, PATIENCE, what):
            yield

    def _create(self, given: dict[str, Any]) -> None:
        terms = {"epsilon": float(given["epsilon"]), "delta": float(given["delta"] or 1e-5)}
        terms |= {"unit": given["unit"] or "example", "accountant": given["accountant"] or "prv"}
        content = {**terms, "id": secrets.token_hex(8), "written": 0, "data": None, "runs": []}
        self._write(content)

    def _record_path(self, id: str) -> Path:
        return files.private_folder(self.path.parent) / f"budget-{id}.json"

    def _write(self, content: dict[str, Any]) -> None:
        """Writes the file, then the record of how often it was written."""
        content = {**content, "written": content["written"] + 1}
        content.pop("seal", None)
        plain = json.dumps(content, sort_keys=True, allow_nan=False)
        content["seal"] = files.keyed_digest(self.path.parent, plain)
        files.write_atomically(self.path, files.dump_checksummed(KIND, VERSION, content) + "\n")
        # The file first: a process that ends in between leaves a file newer than its record, which
        # is accepted. In the other order the file would be refused as an older copy.
        record = {"name": self.path.name, "written": content["written"], "data": content["data"]}
        files.write_atomically(self._record_path(content["id"]), json.dumps(record))

    def _read(self) -> dict[str, Any]:
        """The file's content, sealed with the folder's key and the newest that was written.

        Raises: ``ValueError`` in one line.
        """
        name, folder = self.path.name, self.path.parent
        check(self.path.exists(), "budget", str(self.path), "the file that was written there")
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        cut = text.removesuffix("\n") if text.endswith("\n") else text + "<cut>"
        content = files.load_checksummed(KIND, VERSION, cut, name)
        whole = "the folder's private/ as it was beside it; a copy in another folder is no budget"
        check(files.has_key(folder), "budget", name, whole)
        seal = content.get("seal")
        plain = {key: value for key, value in content.items() if key != "seal"}
        ours = files.keyed_digest(folder, json.dumps(plain, sort_keys=True, allow_nan=False))
        own = (
            "a file that this folder's key has sealed; it was edited, or comes from another folder"
        )
        check(seal == ours, "budget", name, own)
        record = self._record(content["id"])
        check(record is not None, "budget", name, whole)
        assert record is not None
        # An older copy put back would free what was spent since.
        newest = f"the newest state ({record['written']} writes), this is an older copy"
        check(content["written"] >= record["written"], "budget", name, newest)
        # Two copies in use would each count only their own runs.
        moved = record["name"] == name or not (folder / record["name"]).exists()
        check(moved, "budget", name, f"{record['name']}, of which this is a copy")
        return plain

    def _record(self, id: str) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            return files.parse_json(self._record_path(id).read_bytes(), "private/budget")
        return None

    def _others(self, content: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The records of the other budgets of this folder that are bound to data."""
        for path in sorted(files.private_folder(self.path.parent).glob("budget-*.json")):
            if path != self._record_path(content["id"]):
                record = files.parse_json(path.read_bytes(), path.name)
                if record["data"] is not None:
                    yield {**record, "id": path.stem.removeprefix("budget-")}

    def _is_there(self, record: dict[str, Any]) -> bool:
        path = self.path.parent / record["name"]
        return path.exists() and record["id"].encode() in path.read_bytes()

    # ---- whose data

    def _bound(self, content: dict[str, Any], data: DataId) -> tuple[dict[str, Any], bool]:
        """The content bound to the data, and whether the split is the first one's.

        Raises: ``ValueError`` for other data, and for data that another budget here is of.
        """
        # Two budgets of the same data could each be spent whole.
        for other in self._others(content):
            share = overlap(data.sketch, other["data"]["sketch"])
            there = f"{other['name']}, which is of these data (about {share:.0%} of the examples)"
            gone = "" if self._is_there(other) else " and is gone from there"
            check(share < OVERLAP, "budget", self.path.name, there + gone)
        known = content["data"]
        if known is None:
            fields = {"split": data.split, "whole": data.whole, "sketch": list(data.sketch)}
            return {**content, "data": fields}, True
        if data.split == known["split"]:
            return content, True
        share = 1.0 if data.whole == known["whole"] else overlap(data.sketch, known["sketch"])
        name, common = self.path.name, f"about {share:.0%} of the examples are the same"
        check(share >= OVERLAP, "budget", name, f"one for these data: it is of others ({common})")
        same = f"the same examples and split in every run for unit={self.unit!r} ({common})"
        check(self.unit == "example", "budget", name, same)
        # Of all data so far: a later run is compared with everything that something was spent on.
        sketch = sorted({*known["sketch"], *data.sketch})[:SKETCH]
        return {**content, "data": {**known, "sketch": sketch}}, False

    # ---- what was spent

    def _restated(self, ledger: Ledger, everyone: bool) -> Ledger:
        """A run's ledger at this budget's delta and accountant, in few entries."""
        terms = ledger.terms._replace(delta=self.delta, accountant=self.accountant)
        # Releases add up, epsilons do not: a run's own delta and accountant play no part here.
        return Ledger.of_totals(terms, (ledger.for_everyone() if everyone else ledger).totals)

    def _together(self, content: dict[str, Any], *more: Ledger, without: str = "") -> float:
        """Epsilon of all runs, at what those that go on have reserved, and of further ledgers."""
        others = [run for run in content["runs"] if run["token"] != without]
        # A run that goes on counts with all it may still spend, lest two at once overdraw together.
        found = [run["reserved"] if self._runs_now(run) else run["ledger"] for run in others]
        ledgers = [*(Ledger._of(one) for one in found if one is not None), *more]
        return Ledger.compose(*ledgers).epsilon() if ledgers else 0.0

    def _alive(self, token: str) -> Any:
        from filelock import FileLock

        path = files.private_folder(self.path.parent) / f".budget-run-{token}.lock"
        return FileLock(path, timeout=0, mode=0o600, thread_local=False)

    def _runs_now(self, run: dict[str, Any]) -> bool:
        """Whether a process holds this run's lock; what a dead one had reserved is free again."""
        if run["reserved"] is None:
            return False
        if run["token"] in self._granted:
            return True
        from filelock import Timeout

        lock = self._alive(run["token"])
        try:
            lock.acquire()
        except Timeout:
            return True
        # Nobody held it, so the process that reserved has ended.
        lock.release()
        return False

    def _content(self) -> dict[str, Any]:
        with self._locked():
            return self._read()

    def spent(self) -> float:
        """Epsilon of all releases so far together, at the budget's delta."""
        found = self._ledgers(self._content())
        return Ledger.compose(*found).epsilon() if found else 0.0

    @staticmethod
    def _ledgers(content: dict[str, Any]) -> list[Ledger]:
        """Of all runs that have spent something."""
        return [Ledger._of(run["ledger"]) for run in content["runs"] if run["ledger"] is not None]

    def left(self) -> float:
        """The budget's epsilon less what is spent, and reserved by runs that go on; >= 0.

        A run whose own epsilon is larger may fit: epsilons of several runs do not add up, their
        releases do. `calibrate` finds the noise.
        """
        return max(0.0, self.epsilon - self._together(self._content()))

    def ledger(self) -> Ledger:
        """The composition of all that was spent. Raises ``ValueError`` where nothing was."""
        found = self._ledgers(self._content())
        check(bool(found), "budget", self.path.name, "one from which something was spent")
        return Ledger.compose(*found)

    def runs(self) -> Any:
        """One row for each run, tuning and score: kind, what it was, when it began, its mode,
        whether it goes on, its own epsilon, and epsilon of all up to it together."""
        import pandas as pd

        content, rows, so_far = self._content(), [], []
        spending = [run for run in content["runs"] if run["ledger"] is not None]
        for number, (run, ledger) in enumerate(zip(spending, self._ledgers(content)), 1):
            so_far.append(ledger)
            state = "goes on" if self._runs_now(run) else "ended"
            mode = "reproducible" if ledger.reproducible else "release"
            own = {"epsilon": ledger.epsilon(), "together": Ledger.compose(*so_far).epsilon()}
            about = {name: run[name] for name in ("kind", "what", "begun")}
            rows.append({"run": number, **about, "mode": mode, "state": state, **own})
        columns = ["run", "kind", "what", "begun", "mode", "state", "epsilon", "together"]
        return pd.DataFrame(rows, columns=columns)

    def statement(self) -> str:
        """What was spent, by whom, and what is left, in a few sentences."""
        content = self._content()
        ledgers = self._ledgers(content)
        spent = Ledger.compose(*ledgers).epsilon() if ledgers else 0.0
        seeded = sum(ledger.reproducible for ledger in ledgers)
        reserved = sum(self._runs_now(run) for run in content["runs"])
        kinds = [run["kind"] for run in content["runs"] if run["ledger"] is not None]
        counts = [
            f"{kinds.count(kind)} {kind}{'s' * (kinds.count(kind) > 1)}"
            for kind in dict.fromkeys(kinds)
        ]
        text = (
            f"Of epsilon = {self.epsilon:g} at delta = {self.delta:g} for each {self.unit} "
            f"{spent:.4g} is spent ({', '.join(counts) or 'no run yet'}); "
            f"{max(0.0, self.epsilon - spent):.4g} is left."
        )
        if reserved:
            text += f" Runs that go on ({reserved}) have reserved more."
        if seeded:
            text += (
                f" Of these runs {seeded} took their noise from a seed: nothing is promised to "
                "whoever knows it."
            )
        return text

    def __repr__(self) -> str:
        spent = f"{self.spent():.4g} of epsilon={self.epsilon:g} spent at delta={self.delta:g}"
        return f"Budget({str(self.path)!r}, unit={self.unit!r}, {spent})"

    def _repr_html_(self) -> str:
        frame = self.runs()
        rows = [
            [f"{x:.3g}" if isinstance(x, float) else str(x) for x in row]
            for row in frame.itertuples(index=False)
        ]
        table = html_table(rows, tuple(frame.columns)) if rows else ""
        return f"<p>{escape(self.statement())}</p>{table}"

    # ---- what fits

    def calibrate(self, privacy: Privacy, *, task: Any, plan: Plan) -> Privacy:
        """Sets the smallest noise with which a whole run fits into what is left.

        Args:
            privacy: its noise multiplier, if it has one, is not used.
            task, plan: of the run.

        Raises: ``ValueError`` where nothing fits any more.
        Guarantees: test_the_noise_that_fits_fits.
        """
        content = self._content()
        free = privacy.replace(noise_multiplier=None)
        most = free.calibrate(epsilon=self.epsilon, task=task, plan=plan)
        account = self.account(task, "run", "a plan", most.ledger(reproducible=False))

        def total(factor: float) -> float:
            ledger = _scaled(most, factor).ledger(most.releases or 0, reproducible=False)
            return self._together(content, account.restated(ledger))

        factor = _smallest(total, self.epsilon)
        check(
            factor is not None, "budget", self.path.name, f"something left: {self._left(content)}"
        )
        return _scaled(most, factor or 1.0)

    def _left(self, content: dict[str, Any], without: str = "") -> str:
        spent = self._together(content, without=without)
        reserved = any(self._runs_now(r) for r in content["runs"] if r["token"] != without)
        words = "spent or reserved" if reserved else "spent"
        return (
            f"{max(0.0, self.epsilon - spent):.3g} of epsilon={self.epsilon:g} is left at "
            f"delta={self.delta:g} ({spent:.4g} {words})"
        )

    def account(
        self, task: Any, kind: str, what: str, ledger: Ledger, token: str | None = None
    ) -> "Account":
        """Opens what one run draws from. Nothing is written.

        Args:
            task: whose data are spent on.
            kind, what: for `runs`.
            ledger: of the run, with what it has spent before.
            token: of a run that goes on; default: a new one.

        Raises: ``ValueError`` for another unit, other data, or releases that no epsilon covers.
        """
        words = f"{self.unit!r}, the unit of {self.path.name}"
        check(ledger.unit == self.unit, "unit", ledger.unit, words)
        why = ledger.uncertified
        check(why is None, "budget", self.path.name, f"a run with an epsilon; this has none: {why}")
        content, data = self._content(), identify_data(task, self.path.parent, self.unit)
        _, same = self._bound(content, data)
        token = token or secrets.token_hex(8)
        account = Account(self, data, not same, kind, what, token, ledger.snapshot())
        account.begin(content)
        return account

    def spend(self, task: Any, kind: str, what: str, ledger: Ledger) -> None:
        """Draws a whole ledger at once, before any of its values exists.

        Args: as for `account`. Raises: ``ValueError`` where too little is left.
        """
        empty = Ledger(**ledger.terms._asdict())
        with self.account(task, kind, what, empty).charge(ledger):
            pass

    def check_runs(self, plans: "list[tuple[Any, Ledger]]", what: str) -> None:
        """Refuses, in one line, several runs that would overdraw together.

        Args:
            plans: the task and the ledger at its end of each run.
            what: what they are called.
        """
        content = self._content()
        ends = [
            self.account(task, "run", what, Ledger(**end.terms._asdict())).restated(end)
            for task, end in plans
        ]
        # A part in 10^9 is left for rounding: a run calibrated to what is left must fit.
        total = self._together(content, *ends)
        if total > self.epsilon * (1 + 1e-9):
            fits = largest_that_fits(
                lambda k: self._together(content, *ends[:k]) <= self.epsilon, len(ends)
            )
            text = f"{what} that fit: {self._left(content)}; with them {total:.4g} would be spent; "
            text += f"the first {fits} of {len(ends)} would fit"
            check(False, "budget", self.path.name, text)


def _scaled(privacy: Privacy, factor: float) -> Privacy:
    """With so many times the noise; in four digits, rounded up."""
    sigma = privacy.noise_multiplier

    def more(one: float) -> float:
        return float(f"{one * factor * (1 + 5e-4):.4g}") if one and factor != 1 else one

    own = tuple(map(more, sigma)) if isinstance(sigma, tuple) else more(sigma or 0.0)
    target, releases = privacy.target, privacy.releases
    changed = privacy.replace(noise_multiplier=own)
    return changed if factor > 1 else changed.replace(target=target, releases=releases)


def _smallest(
    total: Callable[[float], float], most: float, width: float = 0.01, highest: float = 2000.0
) -> float | None:
    """The smallest factor in [1, ``highest``] of the noise at which ``total`` is at most ``most``,
    up to a share ``width``; ``None`` where none is."""
    low, high = 1.0, 1.0
    while total(high) > most:
        low, high = high, 2 * high
        if high > highest:
            return None
    while high / low > 1 + width:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if total(middle) <= most else (middle, high)
    return high


def largest_that_fits(fits: Callable[[int], bool], most: int) -> int:
    """The largest whole number up to ``most`` that fits; 0 is taken to."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class RemainingRun(NamedTuple):
    """What is left of a run: its ledger after some further rounds, at so many times its noise."""

    after: Callable[[int, float], Ledger]
    rounds: int
    noise: float | tuple[float, ...] = 0.0

    @property
    def end(self) -> Ledger:
        """The ledger after all rounds."""
        return self.after(self.rounds, 1.0)

    def fitting(self, allowed: Callable[[Ledger], bool]) -> str:
        """What of it, or at which noise all of it, is allowed, in words; nothing of no rounds."""
        if not self.rounds:
            return ""
        rounds = largest_that_fits(lambda r: allowed(self.after(r, 1.0)), self.rounds)
        first = f"{rounds} of its {self.rounds} rounds would fit" if rounds else "no round fits"
        least = _smallest(lambda f: not allowed(self.after(self.rounds, f)), 0.5, 0.05, 50)
        if least is None:
            return f"{first}, all of them with no noise below 50 times this one"
        several = isinstance(self.noise, tuple)
        noise = "" if several else f"noise_multiplier={float(self.noise) * least * 1.001:.3g}"  # type: ignore[arg-type]
        return f"{first}, all of them with {noise or f'{least:.3g} times the noise'}"


@dataclass
class Account:
    """What one run draws from a budget, see `Budget.account`.

    ``opened`` is what the run's own ledger held when the account was opened, ``base`` that or what
    stood in the file; what the ledger grows by since is added to it. So releases that the ledger
    has forgotten stay spent.
    """

    budget: Budget
    data: DataId
    everyone: bool
    kind: str
    what: str
    token: str
    start: Ledger
    opened: Totals = field(default_factory=dict)
    base: Totals = field(default_factory=dict)

    def begin(self, content: dict[str, Any]) -> None:
        """Takes what the run's own ledger held, and what the file says, as spent before."""
        self.opened = self.totals(self.start)
        # The larger of both: a lost ledger, or a lost write of this file, frees nothing.
        self.base = _largest(self.opened, self.stored(content))

    def _bound(self, content: dict[str, Any]) -> dict[str, Any]:
        """The content bound to the data of this run. A run of another split that was opened later
        may have begun earlier: then this one's releases count for everyone too.

        Guarantees: test_another_split_counts_for_everyone_whichever_run_begins_first.
        """
        content, same = self.budget._bound(content, self.data)
        if not same and not self.everyone:
            self.everyone = True
            self.begin(content)
        return content

    def restated(self, ledger: Ledger) -> Ledger:
        """A ledger as the budget counts it."""
        return self.budget._restated(ledger, self.everyone)

    def totals(self, ledger: Ledger) -> Totals:
        """Its releases as the budget counts them."""
        return self.restated(ledger).totals

    def stored(self, content: dict[str, Any]) -> Totals:
        """What the file says of this run."""
        mine = self._mine(content)
        return {} if mine is None or mine["ledger"] is None else Ledger._of(mine["ledger"]).totals

    def _mine(self, content: dict[str, Any]) -> dict[str, Any] | None:
        return next((run for run in content["runs"] if run["token"] == self.token), None)

    def _after(self, content: dict[str, Any], ledger: Ledger) -> Ledger:
        """What stands in the file for this run once its own ledger is ``ledger``."""
        self._bound(content)  # may find that this run's releases count for everyone
        if ledger.selection is not None:
            return self.restated(ledger)
        now = _grown(self.base, self.opened, self.totals(ledger))
        terms = ledger.terms._replace(delta=self.budget.delta, accountant=self.budget.accountant)
        return Ledger.of_totals(terms, _largest(now, self.stored(content)))

    def _total(self, content: dict[str, Any], ledger: Ledger) -> float:
        after = self._after(content, ledger)
        return self.budget._together(content, after, without=self.token)

    def check(self, plans: RemainingRun) -> None:
        """Refuses, in one line, a run that would overdraw, and says what would fit."""
        self._check(self.budget._content(), plans)

    def _check(self, content: dict[str, Any], plans: RemainingRun) -> None:
        budget, total = self.budget, self._total(content, plans.end)
        if total > budget.epsilon * (1 + 1e-9):
            instead = plans.fitting(lambda one: self._total(content, one) <= budget.epsilon)
            left = budget._left(content, without=self.token)
            text = f"a {self.kind} that fits: {left}; with it {total:.4g} would be spent"
            text += f"; {instead}" if instead else ""
            check(False, "budget", budget.path.name, text)

    def allows(self, ledger: Ledger) -> bool:
        """Whether the run's ledger may become this one."""
        return self._allows(self.budget._content(), ledger)

    def _allows(self, content: dict[str, Any], ledger: Ledger) -> bool:
        granted = self.budget._granted.get(self.token)
        # What was reserved is this run's: whatever others have spent since, it was left for it.
        if granted is not None and _covers(granted, self._after(content, ledger).totals):
            return True
        return self._total(content, ledger) <= self.budget.epsilon * (1 + 1e-9)

    @contextmanager
    def reserve(self, plans: RemainingRun) -> Iterator[None]:
        """Keeps what the run will need from other runs while the block goes on.

        Raises: ``ValueError`` as `check`.
        """
        # The system frees this lock however the process ends, so others see that the run is over.
        budget, lock = self.budget, self.budget._alive(self.token)
        lock.acquire()
        try:
            with budget._locked():
                content = budget._read()
                self._check(content, plans)
                after = self._after(content, plans.end)
                budget._write(self._entered(content, reserved=after._content()))
                budget._granted[self.token] = after.totals
            yield
        finally:
            # What was reserved and not spent is given back.
            if budget._granted.pop(self.token, None) is not None:
                with budget._locked():
                    budget._write(self._entered(budget._read(), reserved=None))
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)

    def _entered(
        self, content: dict[str, Any], ledger: Ledger | None = None, **changes: Any
    ) -> dict[str, Any]:
        """The content with this run in it, changed so."""
        content = self._bound(content)
        mine = self._mine(content)
        if ledger is not None:
            changes["ledger"] = self._after(content, ledger)._content()
        if mine is None:
            begun = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            mine = {"token": self.token, "kind": self.kind, "what": self.what, "begun": begun}
            mine |= {"ledger": None, "reserved": None}
            content = {**content, "runs": [*content["runs"], mine]}
        runs = [{**run, **changes} if run is mine else run for run in content["runs"]]
        return {**content, "runs": runs}

    @contextmanager
    def charge(self, ledger: Ledger) -> Iterator[None]:
        """Charges the budget while the block writes the run's own ledger, ``ledger`` from then on;
        both are on the disk before any released value exists.

        Raises: ``ValueError`` where too little is left.
        """
        budget = self.budget
        with budget._locked():
            content = budget._read()
            if not self._allows(content, ledger):
                self._check(content, RemainingRun(lambda rounds, noise: ledger, 0))
            yield
            # Still before any value exists. If the process ends just before this line, the run's
            # own ledger has the release, and `begin` counts it when the run goes on.
            budget._write(self._entered(content, ledger))


def _grown(base: Totals, start: Totals, now: Totals) -> Totals:
    """What stood in the file, and what came since the run was opened."""
    whole = {client: dict(history) for client, history in base.items()}
    for client, history in now.items():
        for pair, count in history.items():
            if new := count - start.get(client, {}).get(pair, 0):
                mine = whole.setdefault(client, {})
                mine[pair] = mine.get(pair, 0) + new
    return whole


def _largest(one: Totals, other: Totals) -> Totals:
    """The larger of two counts, release by release."""
    whole = {client: dict(history) for client, history in one.items()}
    for client, history in other.items():
        mine = whole.setdefault(client, {})
        for pair, count in history.items():
            # Both count the same releases, so adding them would count twice.
            mine[pair] = max(count, mine.get(pair, 0))
    return whole


def _covers(most: Totals, less: Totals) -> bool:
    """Whether no count is larger than that in ``most``."""
    return all(
        count <= most.get(client, {}).get(pair, 0)
        for client, history in less.items()
        for pair, count in history.items()
    )
