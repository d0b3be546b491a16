"""Run folders: finished cells (one method at one seed), their ledgers and their settings.

Every file is written under a temporary name and renamed, so a reader never meets half a file and a
killed run loses at most the cell in progress (whose checkpoint takes it up again).
"""

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedlora_lab import methods
from fedlora_lab._utils import files
from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check, error_text
from fedlora_lab.federated import checkpoint
from fedlora_lab.methods.method import check_names
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:  # they load PEFT, which a folder that is only read does not need
    from fedlora_lab.federated.compare import Cell
    from fedlora_lab.federated.records import Round, Tick

Ledgers = dict[str, Ledger | None]  # cell -> its ledger; None of one without privacy
OWN = "cells checkpoints private frame.csv ledger.json report.html audit.json settings.json"
"""What a run leaves, in the order in which it is cleared: the settings outlive the cells."""
SPENT = "spent-[0-9]*-*.json"
"""Ledgers of releases whose runs were cleared away, ``null`` of one without privacy: what was
released stays spent."""
# What must be equal before cells may stand in one table, and what must be equal method by method.
WHOLE = ("task", "privacy", "lora")
BY_METHOD = ("methods", "plans", "privacies")
# What follows from other settings, and is named only where no other one differs.
DERIVED = ("fingerprint", "noise_multiplier", "sample_rate", "sizes")
FIELDS: dict[str, Any] = {
    **dict.fromkeys(("task", "lora", "versions", *BY_METHOD), dict),
    **dict.fromkeys(("seeds", "commands"), list),
    "privacy": (dict, type(None)),
}


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises ``ValueError`` with its name when it is none."""
    return files.parse_json(path.read_bytes(), str(path))


def to_json(value: Any) -> str:
    """Writes indented JSON; infinities and NaN are refused, since not every reader takes them."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_ledger(content: Any, name: str = "ledger") -> Ledger | None:
    """Reads the ledger of a cell from its JSON value; ``None`` of one without privacy."""
    return None if content is None else Ledger.from_json(json.dumps(content, sort_keys=True), name)


def read_frame(path: Path) -> pd.DataFrame:
    """Reads a tidy frame as `Folder.gather` wrote it, bit by bit; seed is empty if there was none.

    Raises: ``ValueError`` with the file's name when it is none.
    """

    def exact(text: str) -> float:  # what pandas does by itself is exact in some versions only
        return float(text) if text else math.nan

    names = ("task", "method", "layer", "measure")
    options: Any = {"dtype": dict.fromkeys(names, str), "converters": {"value": exact}}
    options |= {"keep_default_na": False, "na_values": {"seed": [""]}}
    try:
        frame = pd.read_csv(path, **options)
    except ValueError as error:  # those of pandas' parser and of UTF-8 are ValueErrors
        why = error_text(error, 120)
        raise ValueError(f"{path}: expected a tidy frame ({why})") from error
    whole = {*names, "seed", "round", "value"} <= set(frame.columns)
    check(whole, str(path), list(frame.columns), "a tidy frame")
    for column in [frame["round"], frame["seed"].dropna()] if len(frame) else []:
        whole = column.dtype.kind in "if" and bool(((column >= 0) & (column % 1 == 0)).all())
        check(whole, f"{path}, {column.name}", column.dtype.name, "whole numbers >= 0")
    return frame


def with_ledger_epsilon(frame: pd.DataFrame, ledger: Ledger | None) -> pd.DataFrame:
    """Raises a cell's last epsilon to what its ledger counts.

    A round that was begun and never recorded, since its process was killed, was released: the
    ledger beside the checkpoints has it, and no record.

    Guarantees: test_attack_spending.py::test_a_table_states_what_killed_rounds_spent.
    """
    if ledger is None:
        return frame
    last = frame["round"] == frame["round"].max()
    there: Any = (frame["layer"] == "all") & (frame["measure"] == "epsilon") & last
    floor = frame["value"].clip(lower=ledger.epsilon_or_inf())
    return frame.assign(value=frame["value"].mask(there, floor))


def first_difference(
    old: Any, new: Any, name: str = "", without: tuple[str, ...] = ()
) -> str | None:
    """Finds the first place where two JSON values differ: its dotted name and both values.

    Numbers that agree to nine digits are equal: a calibrated noise multiplier is found by search,
    and its last bits depend on how many threads added up.

    Args: old, new: the values. name: dotted, of their place. without: keys that are passed over.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new} - {*without})
        pairs = ((f"{name}.{key}".strip("."), old.get(key), new.get(key)) for key in keys)
        found = (first_difference(a, b, path, without) for path, a, b in pairs)
        return next((place for place in found if place), None)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        same = all(first_difference(a, b) is None for a, b in zip(old, new))
    elif isinstance(old, float) and isinstance(new, float):
        same = math.isclose(old, new, rel_tol=1e-9)
    else:
        same = old == new
    return None if same else f"{name} is {json.dumps(old)} there and {json.dumps(new)} now"


class Folder:
    """A run folder, made when it is not there, and held by one process at a time.

    Raises: ``ValueError`` on entry when another process holds the folder, or when it holds files
        that are not a run's.
    Guarantees: two processes never write in one folder
        (test_two_runs_in_one_folder_refuse_each_other); a killed run leaves whole files only
        (test_kills_of_a_run_lose_nothing).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as path, Folder(path) as folder:
    ...     folder.is_done("rolora", seed=0)
    False
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).expanduser()
        self._lock: Any = None

    def __enter__(self) -> "Folder":
        check(not self.path.is_file(), "out", str(self.path), "a folder, not a file")
        names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        names -= {path.name for path in (*self.path.glob(SPENT), *self.path.glob(".*.part"))}
        known = "settings.json" in names or names <= {".lock", "cells", "checkpoints", "private"}
        expected = "an empty or new folder, or one made by this command"
        check(known, "out", str(self.path), expected)
        self._lock = files.lock_folder(self.path)
        self._lock.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)

    def keyed_fingerprint(self, fingerprint: str) -> str:
        """Makes the keyed digest of a private fingerprint, which may stand in the settings.

        Raises: ``ValueError`` where the folder holds a run and its key is gone.
        """
        whole = files.has_key(self.path) or not (self.path / "settings.json").exists()
        check(whole, "folder", str(self.path), "a run folder with its subfolder private/ as it was")
        return files.keyed_digest(self.path, fingerprint)

    @property
    def settings(self) -> dict[str, Any]:
        """What reproduces the runs in this folder."""
        path = self.path / "settings.json"
        check(path.is_file(), "folder", str(self.path), "a run folder (with settings.json)")
        settings = read_json(path)
        known = isinstance(settings, dict) and settings.get("format") == 1
        check(known, "settings.json", str(path), "format 1")
        for name, kind in FIELDS.items():
            right = isinstance(settings.get(name, ...), kind)
            check(right, "settings.json", str(path), f"the settings of a run, with {name}")
        right = all(set(settings[part]) == set(settings["methods"]) for part in BY_METHOD)
        right &= all(seed is None or type(seed) is int for seed in settings["seeds"])
        right &= all(isinstance(line, str) for line in settings["commands"])
        check(right, "settings.json", str(path), "the settings of a run")
        return settings

    def claim(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Writes the settings, joined with those of the cells that are here already.

        More methods or seeds may join a folder; another task, plan, privacy or adapter may not.
        What is returned are the settings as they were first written: run with those, not with newly
        calibrated ones.

        Raises: ``ValueError`` in one line, naming the first setting that differs.
        """
        settings = json.loads(to_json(settings))
        if (self.path / "settings.json").exists():
            old = self.settings
            pairs = [(key, old[key], settings[key]) for key in WHOLE]
            for key in BY_METHOD:
                common = [slug for slug in old[key] if slug in settings[key]]
                pairs += [(f"{key}.{slug}", old[key][slug], settings[key][slug]) for slug in common]
            for without in (DERIVED, ()):
                for name, was, now in pairs:
                    if found := first_difference(was, now, name, without):
                        raise ValueError(
                            f"{self.path} holds a run with other settings ({found}): "
                            f"expected the same settings, another --out, or --fresh"
                        )
            settings |= {key: settings[key] | old[key] for key in BY_METHOD}
            settings |= {key: old[key] for key in WHOLE}
            seeds = {*old["seeds"], *settings["seeds"]}
            settings["seeds"] = sorted(seeds, key=lambda seed: -1 if seed is None else seed)
            settings["commands"] = list(dict.fromkeys([*old["commands"], *settings["commands"]]))
        write_atomically(self.path / "settings.json", to_json(settings))
        return settings

    # ---- cells

    def _name(self, slug: str, seed: int | None) -> str:
        return f"{slug}-{'release' if seed is None else seed}"

    def _cell(self, slug: str, seed: int | None, ending: str) -> Path:
        return self.path / "cells" / f"{self._name(slug, seed)}.{ending}"

    def checkpoint(self, slug: str, seed: int | None) -> Path:
        """Returns the path where the run of one cell keeps its state."""
        return self.path / "checkpoints" / self._name(slug, seed)

    def is_done(self, slug: str, seed: int | None) -> bool:
        """Whether a cell is finished or was stopped; its frame is renamed into place last."""
        return self._cell(slug, seed, "csv").exists()

    def last_round(self, slug: str, seed: int | None) -> int:
        """Returns the last round of a finished cell."""
        frame: Any = self.read(slug, seed)
        return int(frame["round"].max())

    def _finished(self) -> list[tuple[str, int | None]]:
        """Slug and seed of the finished cells, in the order of the settings."""
        settings = self.settings
        pairs = ((slug, seed) for slug in settings["methods"] for seed in settings["seeds"])
        return [pair for pair in pairs if self.is_done(*pair)]

    def stopped_cells(self) -> list[str]:
        """Names the finished cells that ended before their plan's last round."""
        found = []
        for slug, seed in self._finished() if (self.path / "settings.json").exists() else []:
            rounds, last = self.settings["plans"][slug]["rounds"], self.last_round(slug, seed)
            if last < rounds:
                name = f"{slug}, seed {'none' if seed is None else seed}"
                found.append(f"{name}: stopped after round {last} of {rounds}.")
        return found

    def read(self, slug: str, seed: int | None) -> pd.DataFrame:
        """The frame of one finished cell."""
        return read_frame(self._cell(slug, seed, "csv"))

    def save(self, slug: str, seed: int | None, frame: pd.DataFrame, ledger: Any) -> None:
        """Keeps one finished cell: its tidy frame, and its ledger as a JSON value, or ``None``.

        Args: slug, seed: of the cell. frame, ledger: what is kept.
        """
        write_atomically(self._cell(slug, seed, "json"), to_json(ledger))
        write_atomically(self._cell(slug, seed, "csv"), frame.to_csv(index=False))

    def gather(self) -> pd.DataFrame:
        """Writes frame.csv and ledger.json from all finished cells; returns the frame.
        Cells stand in the order of the settings.
        """
        cells = self._finished()
        check(bool(cells), "folder", str(self.path), "at least one finished cell")
        frame = pd.concat([self.read(*cell) for cell in cells], ignore_index=True)
        ledgers = {self._name(*cell): read_json(self._cell(*cell, "json")) for cell in cells}
        frame, ledgers = self.add_spending(frame, ledgers)
        write_atomically(self.path / "ledger.json", to_json(ledgers))
        write_atomically(self.path / "frame.csv", frame.to_csv(index=False))
        return frame

    # ---- what was spent

    def _books(self) -> Ledgers:
        """Lists the ledgers of the cells, finished or cut short."""
        found: Ledgers = {}
        for path in sorted((self.path / "checkpoints").glob("*/round-*.json")):
            if not self._private(path.parent.name):
                found[path.parent.name] = None
        for path in sorted((self.path / "cells").glob("*.json")):
            found[path.stem] = to_ledger(read_json(path), str(path))
        # At least as long as the one kept when the cell was finished.
        for path in sorted((self.path / "checkpoints").glob("*/ledger.json")):
            found[path.parent.name] = Ledger.load(path)
        return found

    def _private(self, name: str) -> bool:
        """Tells whether the settings plan this cell with privacy; not where they cannot be read."""
        try:
            return self.settings["privacies"][name.rpartition("-")[0]] is not None
        except (ValueError, KeyError):
            return False

    def ledgers(self) -> Ledgers:
        """Collects every ledger in the folder by name, of all cells and of runs cleared away.
        They are fit to be added up.

        A run that was cleared away may have split the same data otherwise, sizes being equal or
        not: its releases are counted for every client.

        Raises: ``ValueError`` for one that cannot be read.
        Guarantees: test_attack_spending.py::test_a_split_of_equal_sizes_is_not_taken_for_the_same.
        """
        found = self._books()
        for path in sorted(self.path.glob(SPENT)):
            found[path.stem] = None if read_json(path) is None else Ledger.load(path)
        for name, ledger in found.items():
            if ledger is not None and name.startswith(("central-", "spent-")):
                found[name] = ledger.for_everyone()
        return found

    def add_spending(
        self, frame: pd.DataFrame, ledgers: Mapping[str, Any]
    ) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Adds to finished cells what was spent since, to frame and ledgers.
        A stopped cell may have gone on and been killed.
        """
        later = {name: book for name, book in self._books().items() if book is not None}
        whole = {n: json.loads(later[n].to_json()) if n in later else x for n, x in ledgers.items()}
        parts = []
        for (slug, seed), part in frame.groupby(["method", "seed"], sort=False, dropna=False):  # type: ignore[misc]
            text = whole.get(self._name(slug, None if math.isnan(seed) else int(seed)))
            parts.append(with_ledger_epsilon(part, to_ledger(text)))
        return pd.concat(parts).sort_index(), whole

    def clear(self) -> None:
        """Removes what earlier runs left here, and nothing else.
        Ledgers of releases are kept, as spent-*.json, and of a run without privacy that there was
        one.

        Raises: ``ValueError`` for a ledger that cannot be read: what it holds may have been
            released.
        Guarantees: test_attack_spending.py::test_a_fresh_start_forgets_no_release,
            ::test_a_run_without_privacy_is_never_forgotten; killed on its way it leaves no cell
            without its settings
            (test_killed_runs.py::test_a_clearing_that_was_killed_leaves_no_cell_of_another_run).
        """
        for name, ledger in self._books().items():
            if ledger is None or not ledger.reproducible:
                numbers = (int(path.name.split("-")[1]) for path in self.path.glob(SPENT))
                path = self.path / f"spent-{1 + max(numbers, default=0):03d}-{name}.json"
                write_atomically(path, ("null" if ledger is None else ledger.to_json()) + "\n")
        for path in (self.path / "cells").glob("*.csv"):  # without its frame a cell is not there
            path.unlink()
        for name in OWN.split():
            path = self.path / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


# ---- runs that write into it

VERSIONED_PACKAGES = "torch peft opacus dp-accounting numpy scipy pandas transformers"
RunCell = Callable[..., Iterator[Any]]
"""Runs a cell, with options as of `fl.run`; a `Tick` passes to whoever shows the progress."""


def _finished_rows(folder: Path, rows: Path) -> Any:
    """Returns the rows of the rounds done and a checkpoint right after them, else ``None``.

    The loop writes its state before it yields a round, and the rows are written after. A run that
    was killed in between has one round too many in the checkpoint: it is taken back and run
    again. Without a seed that is a new release, and the ledger, left as it is, counts both.
    """
    frame: Any = read_frame(rows) if rows.exists() else None
    for index in checkpoint.rounds_in(folder):
        if frame is None or index > frame["round"].max():
            checkpoint.remove(folder, index)
    found = next(checkpoint.whole_checkpoints(folder), None)
    return None if found is None or frame is None else frame[frame["round"] <= found[0].round]


def run_rounds(
    start: RunCell, state: Path, rows: Path, to_frame: Callable[..., pd.DataFrame] | None = None
) -> "Iterator[Round | Tick]":
    """Runs the rounds that are left of a run; writes each one's rows, then yields it.

    Args:
        start: begins or resumes the run, with ``checkpoint`` and ``resume`` as of `fl.run`.
        state: folder of its checkpoints and ledger.
        rows: CSV file of all its rounds. Beside ``state``, rounds without rows are another run's.
        to_frame: records -> tidy frame; ``None``: `federated.records.to_frame`.
    """
    from fedlora_lab.federated import records

    to_frame = to_frame or records.to_frame
    spent, earlier = (state / "ledger.json").exists(), None
    if ours := rows.exists() or rows.parent == state:
        earlier = _finished_rows(state, rows)
    if earlier is not None and not spent and not earlier["round"].max():
        earlier = None  # nothing was done or spent yet: the start is run again
    parts = [] if earlier is None else [earlier]
    for part in parts:  # rows without a checkpoint are taken back
        write_atomically(rows, part.to_csv(index=False))
    where = {"resume": state} if parts or (ours and spent) else {}
    for record in start(checkpoint=state, **where):
        if isinstance(record, records.Tick):
            yield record
            continue
        # Begun anew, rows of an earlier start are of another run.
        parts = [*(parts if record.index else []), to_frame([record])]
        frame = pd.concat(parts, ignore_index=True)
        write_atomically(rows, frame.to_csv(index=False))
        yield record


def run_cell(
    folder: Folder,
    cell: "Cell",
    stop_at: float | None = None,
    engine: RunCell | None = None,
    **options: Any,
) -> "Iterator[Round | Tick]":
    """Runs a cell to its end, or from where it was left; keeps its frame and ledger in the folder.

    Args:
        folder, cell: where, and what is run.
        stop_at, options: as of `fl.run`.
        engine: runs the cell, with options as of `fl.run`; default: the cell's own loop.

    Guarantees: killed at any moment and started again, the cell's frame is that of an undisturbed
        run, but for the seconds (test_killed_runs.py::test_kills_of_a_run_lose_nothing);
        the ledger holds every release of every start (test_attack_spending.py).
    """
    from fedlora_lab.federated.records import Round

    state, name, ledger = folder.checkpoint(cell.slug, cell.seed), (cell.slug, cell.seed), None
    limit: dict[str, Any] = {} if cell.privacy is None else {"stop_at": stop_at}
    start = partial(engine or cell.run, **limit, **options)
    for record in run_rounds(start, state, state / "rounds.csv", cell.frame):
        ledger = record.ledger if isinstance(record, Round) else ledger
        yield record
    if ledger is None and cell.privacy is not None:
        # No round was left to run, or none that may be spent.
        ledger = Ledger.load(state / "ledger.json")
    frame: Any = read_frame(state / "rounds.csv")
    if folder.is_done(*name) and folder.last_round(*name) > frame["round"].max():
        frame = folder.read(*name)  # stopped, begun anew and stopped again, earlier
    text = None if ledger is None else json.loads(ledger.to_json())
    folder.save(*name, with_ledger_epsilon(frame, ledger), text)


def run_settings(
    folder: Folder, task: Task, privacy: Privacy | None, cells: "Sequence[Cell]", command: str
) -> dict[str, Any]:
    """Returns what all runs of a folder share, what they ran with, and plans and rows by name.

    Args:
        folder, task, privacy, cells: of the runs.
        command: what was called.

    Guarantees: test_finetune.py::test_nothing_handed_on_tells_how_many_rows_a_person_has.
    """
    check_names((cell.slug, cell.method) for cell in cells)
    # The report shows them. How many examples a person has is not public.
    by_person = privacy is not None and privacy.unit == "person"
    system = f"{platform.system()} {platform.machine()}"
    ours = {"fedlora-lab": __version__, "Python": platform.python_version(), "system": system}
    return {
        "format": 1,
        "commands": [command],
        "begun": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "task": {
            "name": task.name,
            "info": dict(task.info),
            "sizes": list(task.person_counts if by_person else task.sizes),
            # Of rows that are not scored: made up, or a number of private rows.
            "test": len(task.test[1]) if task.public_test or privacy is None else None,
            "fingerprint": folder.keyed_fingerprint(task.fingerprint),
        },
        "privacy": privacy and privacy.settings(),
        "lora": cells[0].lora.settings(),
        "versions": {**ours, **{name: version(name) for name in VERSIONED_PACKAGES.split()}},
        "plans": {cell.slug: asdict(cell.plan) for cell in cells},
        "privacies": {cell.slug: cell.privacy and cell.privacy.settings() for cell in cells},
        "methods": {cell.slug: row_settings(cell) for cell in cells},
        "seeds": list(dict.fromkeys(cell.seed for cell in cells)),
    }


def row_settings(cell: "Cell") -> dict[str, Any]:
    """Converts a cell's row of the table to JSON values; what was not measured is null."""
    row = methods.table([cell.method]).drop(columns=["note"]).loc[cell.method.slug].to_dict()
    return {str(name): None if x != x else x for name, x in row.items()}
