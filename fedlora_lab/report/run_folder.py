"""Run folders: one folder for each cell (a method at a seed), and what all cells share.

A cell's folder holds its rows, its ledger and its checkpoints. Every file is written under a
temporary name and renamed, so a reader never meets half a file and a killed run loses at most the
round in progress. Nothing here loads torch: reports are made of such folders.
"""

import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab._utils import files
from fedlora_lab._utils.files import JsonObject, write_atomically
from fedlora_lab._utils.statistics import COLUMNS
from fedlora_lab._utils.validation import check, error_text
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.statement import statement

Ledgers = dict[str, Ledger | None]
"""Cell -> its ledger; ``None`` of one without privacy."""
CELLS = "checkpoints"
"""Subfolder with a folder for each cell."""
ROWS = "rounds.csv"
"""The tidy frame of a cell so far."""
OWN = (CELLS, "frame.csv", "report.html", "settings.json")
"""What a run leaves beside private/, in the order in which it is cleared: the settings outlive the
cells."""
SPENT = "spent-[0-9]*-*.json"
"""Ledgers of releases whose runs were cleared away, ``null`` of one without privacy: what was
released stays spent. After a dot the name has the keyed fingerprint of the rows, where it is known.
"""
COMMON = ("task", "privacy", "lora")
"""Settings that must be equal before cells may stand in one table."""
BY_METHOD = ("methods", "plans", "privacies")
"""Settings that must be equal method by method."""
COMPARED = ("lora", "methods", "plans", "task", "privacy", "privacies")
"""All of these: what was asked for first, then what follows from it."""
DERIVED = (
    "fingerprint",
    "batch",
    "delta",
    "lr",
    "clip_norm",
    "noise_multiplier",
    "sample_rate",
)
"""Settings that may follow from others, which are named before them."""
KINDS: dict[str, Any] = {
    **dict.fromkeys(("task", "lora", "versions", *BY_METHOD), dict),
    **dict.fromkeys(("seeds", "commands"), list),
    "privacy": (dict, type(None)),
}
"""Setting -> its type in settings.json."""


# ---- files


def read_json(path: Path) -> Any:
    """Reads a JSON file; raises ``ValueError`` with its name when it is none."""
    return files.parse_json(files.read_bytes(path), str(path))


def to_json(value: Any) -> str:
    """Writes indented JSON; infinities and NaN are refused, since not every reader takes them."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_frame(path: Path) -> pd.DataFrame:
    """Reads a tidy frame as `Folder.gather` wrote it, bit by bit; seed is empty if there was none.

    Raises: ``ValueError`` with the file's name when it is none.
    """

    options: Any = {
        "dtype": dict.fromkeys(("task", "method", "layer", "measure"), str),
        # Bit by bit: what pandas does by itself is exact in some versions only.
        "converters": {"value": lambda text: float(text or "nan")},
        "keep_default_na": False,
        "na_values": {"seed": [""]},
    }
    try:
        frame = pd.read_csv(path, **options)
    # Those of pandas' parser and of UTF-8 are ValueErrors; a folder may stand in the file's place.
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a tidy frame ({error_text(error, 120)})") from error
    complete = set(COLUMNS) <= set(frame.columns)
    check(complete, str(path), list(frame.columns), "a tidy frame")
    for column in [frame["round"], frame["seed"].dropna()] if len(frame) else []:
        counted = column.dtype.kind in "if" and bool(((column >= 0) & (column % 1 == 0)).all())
        check(counted, f"{path}, {column.name}", column.dtype.name, "whole numbers >= 0")
    return frame


def differences(old: Any, new: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yields the places where two JSON values differ: the last part of the name, and a sentence.

    Numbers that agree to nine digits are equal: a calibrated noise multiplier is found by search,
    and its last bits depend on how many threads added up.

    Args: old, new: the values. name: dotted, of their place.
    """
    if isinstance(old, list) and isinstance(new, list):
        old = dict(enumerate(old))
        new = dict(enumerate(new))
    same = old == new
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{name}.{key}")
        return
    if isinstance(old, float) and isinstance(new, float):
        same = math.isclose(old, new, rel_tol=1e-9)
    if not same:
        sentence = f"{name} is {json.dumps(old)} there and {json.dumps(new)} now"
        last = re.sub(r"\.\d+$", "", name).rpartition(".")[2]  # of a list the list's own name
        if last == "fingerprint":
            sentence = "other rows, classes, model or max_length"
        yield last, sentence


def _changed_rules(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the rules that are others than they were, as `differences` does; methods may join."""
    joining = {f"methods.{slug}" for slug in new["methods"].keys() - old["methods"].keys()}
    for place, rules in new["rules"].items():
        before = rules if place in joining else old["rules"].get(place, {})
        for name, digest in rules.items():
            if before.get(name) != digest:
                yield name, f"{place}.{name} is other code, or reads other values"


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(x, dict) for x in value.values())


def _cell_name(slug: str, seed: float | None) -> str:
    released = seed is None or math.isnan(seed)
    return f"{slug}-{'release' if released else int(seed)}"


class Folder:
    """A run folder, made when it is not there, and held by one process at a time.

    Raises: ``ValueError`` on entry when another process holds the folder, or when it holds files
        that are not a run's.
    Guarantees: two processes never write in one folder
        (test_two_runs_in_one_folder_refuse_each_other); a killed run leaves whole files only
        (test_kills_of_a_run_lose_nothing); where nothing was done the place is as it was before
        (test_finetune.py::test_what_does_not_begin_leaves_the_place_as_it_was).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as path, Folder(path) as folder:
    ...     folder.ledgers()
    {}
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).expanduser()

    def __enter__(self) -> "Folder":
        check(not self.path.is_file(), "out", str(self.path), "a folder, not a file")
        names = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        names -= {path.name for path in (*self.path.glob(SPENT), *self.path.glob(".*.part"))}
        ours = "settings.json" in names or names <= {".lock", CELLS, "private"}
        check(ours, "out", str(self.path), "an empty or new folder, or one made by this command")
        places = (self.path, *self.path.parents)
        self._made = [place for place in places if not place.exists()]
        # What is removed again where nothing comes of it; a run that is there already stays.
        self._is_free = not names - {".lock"}
        self._kept = set(self.path.iterdir()) if self.path.is_dir() else set()
        self._lock = files.lock_folder(self.path)
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)
        if error[0] is not None and self._is_free and not self._holds_work():
            self._leave_nothing()

    def _holds_work(self) -> bool:
        """Whether a round was done, or may have been released."""
        ledgers = self.path.glob(f"{CELLS}/*/ledger.json")
        tables = self.path.glob(f"{CELLS}/*/{ROWS}")
        return any(ledgers) or any(read_frame(table)["round"].max() > 0 for table in tables)

    def _leave_nothing(self) -> None:
        """Removes what was made since the folder was taken, with folders that are then empty."""
        for path in {*self.path.iterdir()} - self._kept:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        for place in self._made:
            # Somebody else may have put something there by now.
            if any(place.iterdir()):
                break
            place.rmdir()

    # ---- settings

    def keyed_fingerprint(self, fingerprint: str) -> str:
        """Makes the keyed digest of a private fingerprint, which may stand in the settings.

        Raises: ``ValueError`` where the folder holds a run and its key is gone.
        """
        usable = files.has_key(self.path) or not (self.path / "settings.json").exists()
        check(
            usable, "folder", str(self.path), "a run folder with its subfolder private/ as it was"
        )
        return files.keyed_digest(self.path, fingerprint)

    @property
    def settings(self) -> JsonObject:
        """What reproduces the runs in this folder."""
        path = self.path / "settings.json"
        check(path.is_file(), "folder", str(self.path), "a run folder (with settings.json)")
        settings = read_json(path)
        right = (
            isinstance(settings, dict)
            and _is_table(settings.get("rules", {}))
            and settings.get("format") == 1
            and all(isinstance(settings.get(name, ...), kind) for name, kind in KINDS.items())
            and all(settings[name].keys() == settings["methods"].keys() for name in BY_METHOD)
            and {*map(type, settings["seeds"])} <= {int, type(None)}
            and {*map(type, settings["commands"])} <= {str}
        )
        check(right, "settings.json", str(path), "the settings of a run, in format 1")
        return settings

    def claim(self, settings: JsonObject) -> JsonObject:
        """Writes the settings, joined with those of the cells that are here already.

        More methods or seeds may join a folder; another task, plan, privacy or adapter may not, nor
        a method or task of which a rule was changed.
        What is returned are the settings as they were first written: run with those, not with newly
        calibrated ones.

        Raises: ``ValueError`` in one line, naming the first setting that differs.
        """
        settings = json.loads(to_json(settings))
        for name in OWN[1:]:
            # Found now, and not when hours of training are to be written down.
            is_folder = (self.path / name).is_dir()
            check(not is_folder, "out", str(self.path), f"a folder in which {name} is a file")
        if (self.path / "settings.json").exists():
            old = self.settings
            self._require_same(old, settings)
            settings |= {key: settings[key] | old[key] for key in BY_METHOD}
            settings |= {key: old[key] for key in (*COMMON, "begun")}
            seeds = {*old["seeds"], *settings["seeds"]}
            settings["rules"] = old["rules"] | settings["rules"]
            settings["seeds"] = sorted(seeds, key=lambda seed: -1 if seed is None else seed)
            settings["commands"] = list(dict.fromkeys([*old["commands"], *settings["commands"]]))
        write_atomically(self.path / "settings.json", to_json(settings))
        return settings

    def note(self, sentences: Sequence[str]) -> None:
        """Keeps what is said of other runs for the report, which sees this folder alone."""
        write_atomically(self.path / "settings.json", to_json(self.settings | {"notes": sentences}))

    def noted(self) -> list[str]:
        """What `note` kept."""
        notes = self.settings.get("notes", [])
        return [str(sentence) for sentence in notes] if isinstance(notes, list) else []

    def continues(self, settings: JsonObject) -> bool:
        """Whether a run with these settings would go on with what the folder holds."""
        try:
            self._require_same(self.settings, json.loads(to_json(settings)))
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
        return True

    def _require_same(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        """Refuses other settings, and names the first that differs; methods may join."""
        found = []
        for name in COMPARED:
            before = old[name]
            now = new[name]
            if name in BY_METHOD:
                now = {slug: now[slug] for slug in before if slug in now}
                before = {slug: before[slug] for slug in now}
            found += differences(before, now, name)
        # A file that was renamed holds the same rows.
        found = [pair for pair in found if pair[0] != "data"]
        # What was asked for comes first, and then what follows from it.
        found.sort(key=lambda pair: DERIVED.index(pair[0]) if pair[0] in DERIVED else -1)
        # A row that reads otherwise says more than that its code does.
        found += _changed_rules(old, new) if "rules" in old else []
        held, same = "of a version that did not keep what its rules are", "that version"
        if found:
            held, same = f"with other settings ({found[0][1]})", "the same settings"
        if found or "rules" not in old:
            raise ValueError(
                f"{self.path} holds a run {held}: "
                f"expected {same}, another folder as out (--out), or fresh (--fresh)"
            )

    # ---- cells

    def cell(self, slug: str, seed: float | None) -> Path:
        """Returns the folder of one cell, where its run keeps its rows, ledger and state."""
        return self.path / CELLS / _cell_name(slug, seed)

    def read(self, slug: str, seed: int | None) -> pd.DataFrame:
        """Reads the frame of a cell so far."""
        return read_frame(self.cell(slug, seed) / ROWS)

    def last_round(self, slug: str, seed: int | None) -> int:
        """Returns the last round of a cell, -1 before any."""
        begun = (self.cell(slug, seed) / ROWS).exists()
        return int(self.read(slug, seed)["round"].max()) if begun else -1

    def begun(self) -> list[tuple[str, int | None]]:
        """Lists slug and seed of the cells that have rows, in the order of the settings."""
        settings = self.settings
        pairs = itertools.product(settings["methods"], settings["seeds"])
        return [pair for pair in pairs if (self.cell(*pair) / ROWS).exists()]

    def stopped_cells(self) -> list[str]:
        """Names the cells that ended before their plan's last round."""
        sentences = []
        for slug, seed in self.begun():
            rounds = self.settings["plans"][slug]["rounds"]
            last = self.last_round(slug, seed)
            if last < rounds:
                name = f"{slug}, seed {'none' if seed is None else seed}"
                sentences.append(f"{name}: stopped after round {last} of {rounds}.")
        return sentences

    def gather(self) -> pd.DataFrame:
        """Writes frame.csv from all cells, in the order of the settings; returns the frame."""
        cells = self.begun()
        check(bool(cells), "folder", str(self.path), "a run with at least one round")
        frame = pd.concat([self.read(*cell) for cell in cells], ignore_index=True)
        frame = self.with_spending(frame)
        write_atomically(self.path / "frame.csv", frame.to_csv(index=False))
        return frame

    # ---- what was spent

    def shown(self, frame: pd.DataFrame) -> Ledgers:
        """Returns the ledgers of the runs in a table; one that released nothing has none."""
        names = {*map(_cell_name, frame["method"], frame["seed"])}
        return {name: book for name, book in self._ledgers_of_cells().items() if name in names}

    def ledgers(self) -> Ledgers:
        """Collects every ledger in the folder by name, of all cells and of runs cleared away.

        Raises: ``ValueError`` for one that cannot be read.
        Guarantees: test_attack_spending.py::test_a_run_cut_short_is_kept_by_a_fresh_start.
        """
        ledgers = self._ledgers_of_cells()
        for path in sorted(self.path.glob(SPENT)):
            ledgers[path.stem] = None if read_json(path) is None else Ledger.load(path)
        return ledgers

    def _fingerprint(self) -> str:
        """The keyed fingerprint of the rows of now; "" where it cannot be read."""
        try:
            return self.settings["task"]["fingerprint"]
        except (ValueError, KeyError):
            return ""

    def _has_good_key(self) -> bool:
        try:
            return files.has_key(self.path) and bool(files.secret_key(self.path))
        except ValueError:  # damaged: the next run makes another one
            return False

    def _ledgers_of_cells(self) -> Ledgers:
        """Lists the ledgers of the cells, finished or cut short.

        Raises: ``ValueError`` for one that is lost or cannot be read.
        """
        ledgers: Ledgers = {}
        for cell in sorted((self.path / CELLS).glob("*")):
            path = cell / "ledger.json"
            is_private = self._is_private(cell.name)
            # Rounds from 1. Left out, what they released would be missing from every sum.
            lost = is_private and any(cell.glob("round-*[1-9]*.json"))
            if lost or os.path.lexists(path):
                ledgers[cell.name] = Ledger.load(path)
            # A private run without a ledger has released nothing yet.
            elif not is_private:
                ledgers[cell.name] = None
        return ledgers

    def _is_private(self, name: str) -> bool:
        """Tells whether the settings plan this cell with privacy; not where they cannot be read."""
        try:
            return self.settings["privacies"][name.rpartition("-")[0]] is not None
        except (ValueError, KeyError):
            return False

    def with_spending(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Raises each cell's last epsilon to what its ledger counts now.

        A round that was begun and never recorded, since its process was killed, was released: the
        ledger beside the checkpoints has it, and no record.

        Guarantees: test_attack_spending.py::test_a_table_states_what_killed_rounds_spent.
        """
        ledgers = self._ledgers_of_cells()
        spent = {name: book.epsilon_or_inf() for name, book in ledgers.items() if book is not None}
        names = map(_cell_name, frame["method"], frame["seed"])
        counted = pd.Series([spent.get(name, math.nan) for name in names], frame.index)
        runs = frame.groupby(["method", "seed"], dropna=False)
        last = frame["round"] == runs["round"].transform("max")
        rows = last & (frame["layer"] == "all") & (frame["measure"] == "epsilon")
        raised = pd.Series(np.fmax(frame["value"], counted), frame.index)
        return frame.assign(value=frame["value"].mask(rows, raised))

    def statements(self, frame: pd.DataFrame) -> list[str]:
        """States which runs of a table were stopped, and what all of the folder spend together."""
        return [*self.stopped_cells(), *total_statements(self.ledgers(), self.shown(frame))]

    def clear(self) -> None:
        """Removes what earlier runs left here, and nothing else.

        Ledgers of releases are kept, as spent-*.json, and of a run without privacy that there was
        one.

        Raises: ``ValueError`` for a ledger that cannot be read: what it holds may have been
            released.
        Guarantees: killed on its way it leaves no cell without its settings
            (test_killed_runs.py::test_a_clearing_that_was_killed_leaves_no_cell_of_another_run).
        """
        mark = f".{self._fingerprint()}".rstrip(".")
        for name, ledger in self._ledgers_of_cells().items():
            if ledger is None or not ledger.reproducible:
                numbers = [int(path.name.split("-")[1]) for path in self.path.glob(SPENT)]
                number = 1 + max(numbers, default=0)
                path = self.path / f"spent-{number:03d}-{name}{mark}.json"
                write_atomically(path, ("null" if ledger is None else ledger.to_json()) + "\n")
        for path in (self.path / CELLS).glob(f"*/{ROWS}"):  # without its rows a cell is not there
            if not path.is_dir():
                path.unlink()
        private = files.private_folder(self.path)
        # The key stays: it tells whether the next run is on the same rows.
        secrets = [private]
        if self._has_good_key():
            secrets = [path for path in private.iterdir() if path.name != "key"]
        places = [self.path / name for name in OWN]
        places[1:1] = secrets
        for path in places:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def run_folders(home: Path) -> list[Path]:
    """A run folder, or those in the folder of a sweep, one for each of its settings."""
    is_run = (home / "settings.json").is_file()
    inner = [] if is_run else sorted(file.parent for file in home.glob("*/settings.json"))
    return inner or [home]


def total_statements(
    ledgers: Mapping[str, Ledger | None], shown: Iterable[str], where: str = "here"
) -> list[str]:
    """States what runs on the same data spend together; nothing for a single one.

    Runs with recorded seeds are not for release: of those the sentences state what they would spend
    if they were.

    Args:
        ledgers: of all runs by name.
        shown: names that a table shows; a single release that it does not is told too.
        where: the runs lie.
    Guarantees: test_promise.py::test_runs_on_the_same_data_are_added_up.
    """
    private = [ledger for ledger in ledgers.values() if ledger is not None]
    released = {
        name: ledger
        for name, ledger in ledgers.items()
        if ledger is not None and not ledger.reproducible
    }
    gone = "including interrupted and deleted ones"
    sums: dict[str, list[Ledger]] = {}
    if len(released) > 1 or released.keys() - set(shown):
        sums[f"Runs without a seed ({len(released)} {where}, {gone}), together"] = [
            *released.values()
        ]
    if len(private) > max(1, len(released)):
        sums[f"All {len(private)} runs together, if they were all released"] = private
    sentences = []
    for title, summands in sums.items():
        try:
            sentence = statement(Ledger.compose(*summands))
        except ValueError as error:
            sentence = f"no epsilon can be stated ({error})."
        sentences.append(f"{title}: {sentence}")
    if count := len(ledgers) - len(private):
        sentences.append(
            f"Runs without privacy ({count} {where}, {gone}) promise nothing: no ε covers what "
            f"they reveal about the data."
        )
    return sentences
