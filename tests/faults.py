"""What is done to runs and studies in processes of their own: killed, interrupted, out of space,
without a permission.

Each scenario runs in one process that forks, so that what is heavy is loaded once. Called by
test_faults_runs.py.
"""

import json
import os
import random
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from small import LORA, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.cli import main
from fedlora_lab.cli.runs import run_cell
from fedlora_lab.experiments import runner
from fedlora_lab.experiments.studies import Case, Study
from fedlora_lab.federated import checkpoint
from fedlora_lab.federated.comparison import Cell
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.report.run_folder import Folder, read_frame

KILLS, INTERRUPTS = 8, 5
PLAN = fl.Plan(rounds=20, local_steps=1, batch=3, lr=0.05)
TASK = {"clients": 2, "examples": 6, "test": 4, "d_in": 5, "d_out": 4, "rank": 1}
WORDS = "run regression rolora --clients 3 --local-steps 1 --lr 0.01 --accountant rdp --delta 0.001"
SIZES = tokens("head").sizes


def played(out: Path) -> None:
    """Play one method on a tiny task, under privacy, in a run folder to its end."""
    cell = Cell.named("fedlora", tokens("head"), private("example"), PLAN, LORA, 0)
    with Folder(out) as folder:
        for _ in run_cell(folder, cell):
            pass


def tiny() -> Study:
    """Two methods; 20 runs of some milliseconds."""
    plan = {"rounds": 2, "local_steps": 1, "batch": 4}
    privacy = {"delta": 1e-2, "accountant": "rdp", "noise_multiplier": 1.0}
    parts: Any = ({}, ("regression", TASK), None, privacy, plan, {"rank": 1})
    cases = tuple(Case(methods.get(slug), *parts) for slug in ("fedlora", "rolora"))
    seeds: dict[str, Any] = {"seeds": tuple(range(6)), "tune_seeds": (97,)}
    return Study("tiny", "a test", cases, rates=(0.01, 0.1, 0.3, 1.0), **seeds)


def studied(path: Path) -> None:
    """Play the tiny study to its end, in this process."""
    runner.run_study(tiny(), path, workers=0, bar=False)


def commanded(root: Path, out: Path, *more: object) -> None:
    """The command line in this process; what it says goes to said.out and said.err."""
    for ending, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(root / f"said.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    try:
        (root / "ready").touch()
        main([*WORDS.split(), "--out", str(out), *map(str, more)])
    except SystemExit as error:
        sys.stdout.flush()
        os._exit(error.code if isinstance(error.code, int) else 1)


def child(
    act: Callable[[], Any],
    after: float = 0.0,
    number: int = 0,
    when: Callable[[], bool] = lambda: True,
) -> int:
    """Fork, do something there, send it a signal some seconds after ``when`` holds; its status.

    Moments are told by what has been done, not by the clock alone: a busy machine then comes as far
    as an idle one. The status is negative for a signal.
    """
    pid = os.fork()
    if not pid:
        status = 1
        signal.alarm(600)  # whatever becomes of the parent
        try:
            act()
            status = 0
        except OSError as error:
            status = 3 if "\n" not in str(error) else 4
        finally:  # nothing of the parent's work goes on in the child
            os._exit(status)
    while number and not when():
        over, status = os.waitpid(pid, os.WNOHANG)
        if over:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    time.sleep(after)
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warmed(act: Callable[[Path], Any], root: Path) -> None:
    """Load here what some work loads, so that no child spends its time on that.

    The work itself is done in children only: PyTorch takes no gradient in a child of a process that
    took some.
    """
    names = root / "names"
    child(lambda: (act(root / "first"), names.write_text("\n".join(sys.modules))))
    for name in names.read_text().splitlines() if names.exists() else ():
        with suppress(Exception):
            import_module(name)


def spent(rounds: int) -> float:
    """Epsilon of so many rounds of the cell, from a ledger of its own."""
    ledger = Ledger(unit="example", delta=1e-3, accountant="rdp")
    rates = [min(1.0, 3 / size) for size in SIZES]
    for t in range(rounds):
        ledger.record(t + 1, range(len(SIZES)), 1, sample_rate=rates, noise_multiplier=1.0)
    return ledger.epsilon()


def found(state: Path) -> dict[str, Any]:
    """What a killed run left: rounds done, epsilon claimed and spent, and whether all that fits."""
    if not (state.is_dir() and checkpoint.rounds_in(state)):
        return {"done": -1, "rows": -1, "claimed": 0.0, "spent": 0.0, "fits": True}
    done, book, rows = (
        checkpoint.latest(state)[0].round,
        state / "ledger.json",
        state / "rounds.csv",
    )
    ledger = Ledger.load(book) if book.exists() else None
    known = {entry.round for entry in ledger.releases} if ledger else set()
    table: Any = read_frame(rows) if rows.exists() else None
    last = -1 if table is None else int(table["round"].max())
    fits = set(range(1, done + 1)) <= known <= set(range(1, done + 2)) and last <= done
    claimed = ledger.epsilon() if ledger else 0.0
    return {"done": done, "rows": last, "claimed": claimed, "spent": spent(done), "fits": fits}


def reached(state: Path) -> int:
    """The newest round that stands in a folder of checkpoints."""
    return max(checkpoint.rounds_in(state), default=-1) if state.is_dir() else -1


def lines(path: Path) -> int:
    """Whole lines in a file."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(
    act: Callable[[Path], Any], root: Path, name: str, count: Callable, left: Callable
) -> dict[str, Any]:
    """Kills, each at a random moment; what was on the disk after each.

    A work that comes to its end before the kill is followed by the next, name-0, name-1, …; all of
    them, and one that nobody kills, are then played to their end.
    """
    warmed(act, root)
    draw, seen, number = random.Random(1), [], 0
    while len(seen) < KILLS:
        path = root / f"{name}-{number}"
        goal = count(path) + draw.randrange(3)

        def far(path: Path = path, goal: int = goal) -> bool:
            return count(path) >= goal

        code = child(lambda path=path: act(path), draw.uniform(0, 0.03), signal.SIGKILL, far)
        if code == -signal.SIGKILL:
            seen.append({"number": number, **left(path)})
        else:
            number += 1
    paths = [*(root / f"{name}-{index}" for index in range(number + 1)), root / "whole"]
    assert all(child(lambda path=path: act(path)) == 0 for path in paths)
    return {"seen": seen, "count": number + 1}


def runs(root: Path) -> dict[str, Any]:
    """Kills of a run in its folder."""

    def state(out: Path) -> Path:
        return out / "checkpoints" / "fedlora-0"

    return killed(
        played, root, "run", lambda out: reached(state(out)), lambda out: found(state(out))
    )


def studies(root: Path) -> dict[str, Any]:
    """Kills of a study; keys on the disk after each."""

    def left(path: Path) -> dict[str, Any]:
        return {"keys": sorted(runner.load(path))}

    return killed(studied, root, "study", lines, left)


def interrupts(root: Path) -> dict[str, Any]:
    """Ctrl-C again and again, at a random moment of one and the same run."""

    def some(place: Path) -> None:
        list(fl.run(fl.tasks.regression(clients=3), "rolora", None, PLAN, checkpoint=place))

    warmed(some, root)
    draw, out, seen = random.Random(3), root / "out", []
    state = out / "checkpoints" / "rolora-0"
    for _ in range(INTERRUPTS):
        goal = reached(state) + draw.randrange(4)

        def far(goal: int = goal) -> bool:
            return (root / "ready").exists() and reached(state) >= goal

        act, after = (lambda: commanded(root, out, "--rounds", 5000)), draw.uniform(0, 0.03)
        code = child(act, after, signal.SIGINT, far)
        (root / "ready").unlink()
        seen.append({"code": code, "said": (root / "said.err").read_text(), **found(state)})
    return {"seen": seen}


def limited(act: Callable[[], Any], size: int) -> None:
    """Do something while no file may grow past this size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    act()


def full(root: Path) -> dict[str, Any]:
    """Runs and a study whose files may not grow past some bytes, the study then without limit."""
    seen = []
    for size in (300, 6000, 9000):
        out = root / f"out-{size}"

        def act(out: Path = out) -> None:
            commanded(root, out, "--rounds", 12)

        code = child(lambda act=act, size=size: limited(act, size))
        state = out / "checkpoints" / "rolora-0"
        said, book = (root / "said.err").read_text(), state / "ledger.json"
        known = len(Ledger.load(book).releases) if book.exists() else 0
        drafts = [path.name for path in out.rglob("*.part")]
        seen.append({"code": code, "said": said, "drafts": drafts, "known": known, **found(state)})
    path = root / "study"
    code = child(lambda: limited(lambda: studied(path), 2000))
    kept = len(runner.load(path))
    assert child(lambda: studied(path)) == 0
    return {"seen": seen, "study": (code, kept, len(runner.load(path)))}


def closed(root: Path) -> dict[str, Any]:
    """A run joins a read-only folder; root first becomes somebody without privileges."""
    out, first, second = root / "out", root / "first", root / "second"
    for said in (first, second):
        said.mkdir()
        said.chmod(0o777)
    codes = [child(lambda: commanded(first, out, "--rounds", 2))]
    for path in (out, *out.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def plain() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        commanded(second, out, "--rounds", 2, "--seed", 1)

    before = contents()
    codes.append(child(plain))
    same = contents() == before
    for path in (out, *out.rglob("*")):
        path.chmod(0o755)
    return {"codes": codes, "said": (second / "said.err").read_text(), "same": same}


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    name, folder = sys.argv[1:]
    print(json.dumps(globals()[name](Path(folder))))
