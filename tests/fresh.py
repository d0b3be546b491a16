"""Are the outputs in git those of a new run? The rule that compares, and a pytest plugin that applies it.

    pytest -p tests.fresh --nbmake notebooks/*.ipynb

runs every notebook once, by nbmake, and then holds the text of each cell's outputs against the committed one. A
notebook fails when a cell fails, or when the two texts differ.

Words must be equal. Numbers may differ by one unit in the last place that is printed, plus RELATIVE of their size; a
fraction (an accuracy, or the gap between two) by SHARE: training amplifies the last bits of another processor's
arithmetic. Two numbers below ROUNDING are both rounding errors. What must hold to more places is asserted in its cell.
Not compared: pictures (only that there is one), what goes to the error stream, widgets, addresses in memory, and
numbers before a unit of time.
"""

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbmake.nb_run import NotebookRun
from nbmake.pytest_items import NotebookFailedException, NotebookItem

RELATIVE, SHARE, ROUNDING = 0.02, 0.03, 1e-5
GIVES_WAY = 19  # what the last worker is niced by
LAST: pytest.StashKey[pytest.Item] = pytest.StashKey()
VIEW = "application/vnd.jupyter.widget-view+json"
TIME = r"(?:\s?(?:ns|µs|us|ms|s|sec|seconds?|min|minutes?)\b(?!\*))"
NUMBER = re.compile(rf"(?<![\w.])([-+−]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?)({TIME})?")


def text(outputs: list[Any]) -> str:
    """What a cell's outputs say, and where they hold a picture."""
    parts, printing = [], False
    for output in outputs:
        data = output.get("data", {})
        if VIEW in data or output.get("name") == "stderr":
            continue
        if printing and output["output_type"] == "stream":  # one print may arrive in pieces
            parts[-1] += output["text"]
            continue
        printing = output["output_type"] == "stream"
        parts.append(output.get("text") or data.get("text/plain") or "")
        parts += ["[picture]"] if "image/png" in data else []
        parts += [f"[{output['ename']}]"] if output["output_type"] == "error" else []
    return re.sub(r"0x[0-9a-f]+", "0x", "\n".join(part.rstrip() for part in parts if part.strip()))


def same_number(old: str, new: str) -> bool:
    """Whether two printed numbers may stand for one."""
    values = [float(word.replace(",", "").replace("−", "-")) for word in (old, new)]
    size = max(map(abs, values))
    slack = SHARE if size <= 1 and "." in old + new and "e" not in (old + new).lower() else 0.0
    return size < ROUNDING or abs(values[0] - values[1]) <= max(slack, max(unit(old), unit(new)) + RELATIVE * size)


def unit(word: str) -> float:
    """One unit in the last place of a printed number: 0.01 for 1.25, 1 for 1,250, 1e-9 for 3.1e-8."""
    mantissa, _, exponent = word.lower().replace(",", "").partition("e")
    return 1.0001 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def different(old: str, new: str) -> str | None:
    """Where two texts say different things, in one line; ``None`` where they do not."""
    for line, (before, after) in enumerate(zip((old + "\n").splitlines(), (new + "\n").splitlines())):
        words = [re.sub(r"\s+", " ", NUMBER.sub("#", text)).strip() for text in (before, after)]
        numbers = [NUMBER.findall(text) for text in (before, after)]
        if words[0] != words[1] or len(numbers[0]) != len(numbers[1]):
            return f"line {line + 1}: {before.strip()!r} is now {after.strip()!r}"
        for (a, timed), (b, _) in zip(*numbers):
            if not timed and not same_number(a, b):
                return f"line {line + 1}: {a} is now {b} in {after.strip()!r}"
    counts = [len(text.splitlines()) for text in (old, new)]
    return f"{counts[0]} lines are now {counts[1]}" if counts[0] != counts[1] else None


def stale(committed: Any, executed: Any) -> list[str]:
    """One line for every cell whose committed outputs are not those of the new run."""
    found = []
    for index, (old, new) in enumerate(zip(committed.cells, executed.cells, strict=True)):
        if old.cell_type == "code":
            difference = different(text(old.outputs), text(new.outputs))
            found += [f"cell {index}: {difference}"] if difference else []
    return found


class Stale(AssertionError):
    """The notebook ran, and says other things than what is committed."""


class FreshItem(NotebookItem):
    """A notebook that has to run, and to say again what it says in git."""

    def runtest(self) -> None:
        option, path = self.config.option, Path(self.filename)
        result = NotebookRun(path, option.nbmake_timeout, kernel=option.nbmake_kernel).execute()
        if result.error is not None:
            raise NotebookFailedException(result)
        found = stale(nbformat.read(path, as_version=4), result.nb)
        if found:
            raise Stale("\n".join([f"{path.name}: outputs in git are not those of a new run", *found]))

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        return str(excinfo.value) if isinstance(excinfo.value, Stale) else super().repr_failure(excinfo, style)


def spare(workers: int) -> bool:
    """Whether one of the workers is for the time that the others leave."""
    return workers > 2


def pytest_collection_modifyitems(config: Any, items: list[pytest.Item]) -> None:
    """Every notebook that nbmake found is held against its committed outputs as well; what takes long is first."""
    for i, item in enumerate(items):
        if type(item) is NotebookItem and item.parent is not None:
            items[i] = FreshItem.from_parent(item.parent, filename=item.filename)
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    items[:] = ordered(items, workers)
    if spare(workers):
        config.stash[LAST] = items[-len(items) // workers]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Who begins the last of three stretches or more gives way to the others, with all that it starts."""
    if item is item.config.stash.get(LAST, None) and hasattr(os, "nice"):  # Windows has none
        os.nice(GIVES_WAY)


def ordered(items: list[Any], workers: int) -> list[Any]:
    """Equal stretches, one for each worker as pytest-xdist deals them, each with its share of what takes long first.

    A notebook takes as long as hundreds of tests, and so does a file with a test that is marked slow; begun last, it
    would keep one worker busy and the others waiting. Half of the workers begin with these. The others begin with
    what waits for browsers, servers and processes, and leaves the processors to the first half; the last of three or
    more takes the time that is left then, and has neither. The tests of a file, or of one kind of waiting, follow each
    other, the rest keeps its order.
    """
    books = [[item] for item in items if isinstance(item, NotebookItem)]
    tests = [item for item in items if not isinstance(item, NotebookItem)]
    slow = dict.fromkeys(item.path for item in tests if item.get_closest_marker("slow"))
    files = [[item for item in tests if item.path == path] for path in slow]
    tests = [item for item in tests if item.path not in slow]
    waits = {item: mark.args[0] for item in tests if (mark := item.get_closest_marker("waits"))}
    kinds = [[item for item in waits if waits[item] == kind] for kind in dict.fromkeys(waits.values())]
    rest, found = [item for item in tests if item not in waits], []
    ahead = workers - spare(workers)
    busy = range(max(ahead // 2, 1))
    others = range(len(busy), ahead) or busy
    for w in range(workers):
        mine = [*books[w :: len(busy)], *files[w :: len(busy)]] if w in busy else []
        mine += kinds[w - others.start :: len(others)] if w in others else []
        took = max(0, (len(items) - len(found)) // (workers - w) - sum(map(len, mine)))
        found += [item for group in mine for item in group] + rest[:took]
        rest = rest[took:]
    return found
