"""The rule that finds stale outputs, and the plugin that applies it to a notebook."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fresh
import nbformat
import pytest
from fresh import different, same_number, stale
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("accuracy 0.788", "accuracy 0.789"),
        ("3,276,800 bytes", "3,276,800 bytes"),
        ("linked 6e-08", "linked 2e-07"),
        ("took 12.1 s and 3 minutes", "took 98 s and 1 minutes"),
        ("gap −1.2 points", "gap -1.2 points".replace("-", "−")),
        ("<Thing at 0x7f>", "<Thing at 0x7f>"),
        ("a  b   1.0", "a b 1.0"),
        ("nothing", "nothing"),
    ],
)
def test_the_same_may_look_a_little_different(old: str, new: str) -> None:
    assert different(old, new) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("accuracy 0.738", "accuracy 0.788"),
        ("3,276,800 bytes", "1,638,400 bytes"),
        ("miss 6e-08", "miss 0.2"),
        ("gap 1.2 points", "gap −1.2 points"),
        ("rolora is ahead", "deer is ahead"),
        ("one line", "one line\nand another"),
        ("", "something"),
        ("something", ""),
        ("1 2", "1 2 3"),
        ("12 of 60 inside", "13 of 60 inside, barely"),
        ("from 8 s* on", "from 12 s* on"),
    ],
)
def test_other_numbers_and_words_are_found(old: str, new: str) -> None:
    assert different(old, new) is not None


def test_the_last_printed_place_counts() -> None:
    assert same_number("0.5", "0.6")
    assert not same_number("0.50", "0.60")
    assert same_number("1e-3", "2e-3")
    assert not same_number("1.0e-3", "2.0e-3")
    assert same_number("2", "2.9"), "the coarser of the two decides"
    assert not same_number("1.002", "1.030"), "no fraction: the slack of fractions is not for it"


def notebook(printed: str, code: str = "print('ε = 8.00'); 1 / 3"):
    cell = new_code_cell(code)
    cell.outputs = [
        new_output("stream", name="stdout", text=printed),
        new_output("stream", name="stderr", text="progress 1 of 3"),
        new_output("execute_result", data={"text/plain": "0.3333333333333333"}),
    ]
    return new_notebook(cells=[cell])


def test_progress_bars_are_not_compared_and_pictures_must_be_there() -> None:
    old, new = notebook("ε = 8.00\n"), notebook("ε = 8.00\n")
    new.cells[0].outputs.pop(1)
    assert stale(old, new) == []
    new.cells[0].outputs[-1].data["image/png"] = "..."
    assert stale(old, new) == ["cell 0: 2 lines are now 3"]


def test_every_cell_is_compared() -> None:
    """Two cells that differ are two lines, an error is told, prose has no outputs, a cell more is no comparison."""
    old, new = notebook("ε = 8.00\n"), notebook("ε = 7.00\n")
    for each, seen in ((old, "1"), (new, "2.5")):
        each.cells += [new_markdown_cell("prose"), new_code_cell(outputs=[new_output("stream", text=seen)])]
        each.cells.append(new_code_cell())
    new.cells[-1].outputs = [new_output("error", ename="ValueError")]
    assert [line.split(":")[0] for line in stale(old, new)] == ["cell 0", "cell 2", "cell 3"]
    assert "ValueError" in stale(old, new)[-1]
    with pytest.raises(ValueError, match="zip"):
        stale(old, notebook("ε = 8.00\n"))


def test_the_plugin_runs_notebooks_and_compares(tmp_path: Path) -> None:
    kinds = {
        "same": ("ε = 8.00\n", "print('ε = 8.00'); 1 / 3"),
        "stale": ("ε = 7.00\n", "print('ε = 8.00'); 1 / 3"),
        "broken": ("ε = 8.00\n", "print('ε = 8.00'); 1 / 0"),
    }
    for name, kind in kinds.items():
        nbformat.write(notebook(*kind), tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "tests.fresh", "-p", "no:cacheprovider", "--nbmake"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 1 passed" in done.stdout
    assert "7.00 is now 8.00" in done.stdout and "ZeroDivisionError" in done.stdout


def test_a_print_in_pieces_is_one_print() -> None:
    whole, pieces = notebook("a\nb\n"), notebook("a")
    pieces.cells[0].outputs.insert(1, new_output("stream", text="\nb\n"))
    assert stale(whole, pieces) == [] == stale(pieces, whole)


class Listed:
    """A test of which only the file and its markers are asked."""

    def __init__(self, path: str, **marks: str) -> None:
        self.path, self.marks = path, marks

    def get_closest_marker(self, name: str) -> Any:
        return pytest.mark.waits(self.marks[name]).mark if name in self.marks else None


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 46, 60])
def test_what_takes_long_is_begun_first(workers: int) -> None:
    """Half of the stretches begin with notebooks and whole slow files, the others with what waits; nothing is lost."""
    books = [fresh.NotebookItem.__new__(fresh.NotebookItem) for _ in range(5)]
    marks = dict.fromkeys((4, 17, 40), {"slow": "yes"}) | {31: {"waits": "a"}, 50: {"waits": "b"}, 60: {"waits": "a"}}
    tests = [Listed(f"file {i // 3}", **marks.get(i, {})) for i in range(81)]
    files = [[item for item in tests if item.path == tests[i].path] for i in (4, 17, 40)]
    kinds = [[tests[31], tests[60]], [tests[50]]]
    long, waits = [item for file in files for item in file], [item for kind in kinds for item in kind]
    found = fresh.ordered([*tests[:20], *books, *tests[20:]], workers)
    assert sorted(map(id, found)) == sorted(map(id, [*books, *tests]))
    plain = [item for item in tests if item not in long + waits]
    assert [item for item in found if item in plain] == plain
    for group in (*files, *kinds):
        first = found.index(group[0])
        assert found[first : first + len(group)] == group
    left = list(found)
    for w in range(workers if workers < 5 else 0):
        size = len(left) // (workers - w)  # as pytest-xdist deals them
        stretch, left = left[:size], left[size:]
        order = [3 if item in books else 2 if item in long else int(item in waits) for item in stretch]
        assert order == sorted(order, reverse=True)
        ahead = workers - (workers > 2)
        assert order[0] == (3 if w < max(ahead // 2, 1) else 1 if w < ahead else 0)
        assert workers == 1 or {1, 3} - set(order)


NICE = """
import os
given = []
os.nice = lambda step: given.append(step) or sum(given)  # however nice who runs this is already
"""
SLOW = """
import os, time, pytest
@pytest.mark.parametrize("i", range(18))
def test_one(i):
    with open({seen!r}, "a") as file:
        print(os.getpid(), os.nice(0), i, file=file)
    time.sleep(0.1)
"""


def test_the_last_of_three_workers_gives_way(tmp_path: Path) -> None:
    """Which processes ran tests, and how nice each was: from the first test of its stretch on, or never."""
    assert fresh.spare(3) and not fresh.spare(2)
    seen = tmp_path / "seen"
    (tmp_path / "conftest.py").write_text(NICE)
    (tmp_path / "test_slow.py").write_text(SLOW.format(seen=str(seen)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.fresh", "-p", "no:cacheprovider"]
    command += ["-n", "3", "--dist", "worksteal", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [tuple(map(int, line.split())) for line in seen.read_text().splitlines()]
    ran = {process: [(level, i) for who, level, i in lines if who == process] for process, _, _ in lines}
    assert len(lines) == 18 and len(ran) == 3
    assert all(len({level for level, _ in tests}) == 1 for tests in ran.values())
    niced = [tests[0] for tests in ran.values() if tests[0][0]]
    assert niced == [(fresh.GIVES_WAY, 12)], "the last stretch begins with number 12"


def test_make_test_uses_it() -> None:
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if "--nbmake" in line)
    assert "-p tests.fresh" in line
