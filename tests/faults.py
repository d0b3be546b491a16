"""Runs and studies in processes of their own that are killed, or out of space.

All scenarios run in one process that forks, so that what is heavy is loaded once. Called by
test_killed_runs.py.
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
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
from toy_tasks import LORA, play, private, tokens
from wait_for_thread import until

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.cli import main
from fedlora_lab.experiments import runner
from fedlora_lab.experiments.studies import STUDIES, Case, Study
from fedlora_lab.federated import checkpoint
from fedlora_lab.federated.compare import Cell
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.report.run_folder import Folder, read_frame, run_cell

KILLS = 8
PLAN = fl.Plan(rounds=20, local_steps=1, batch=3, lr=0.05)
TASK = {"clients": 2, "examples": 6, "test": 4, "d_in": 5, "d_out": 4, "rank": 1}
WORDS = "run regression rolora --clients 3 --local-steps 1 --lr 0.01 --accountant rdp --delta 0.001"
SIZES = tokens("head").sizes


def played(out: Path) -> None:
    """Trains one private cell in a run folder to its end."""
    cell = Cell.from_name("fedlora", tokens("head"), private("example"), PLAN, LORA, 0)
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
    """Runs the tiny study to its end, in this process."""
    runner.run_study(tiny(), path, workers=0, bar=False)


def said_to(path: Path) -> None:
    """What this process says goes to the file, but for results."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)


def commanded(said: Path, out: Path, *more: object) -> None:
    """The command line in this process; what it says goes to the file ``said``."""
    said_to(said)
    try:
        main([*WORDS.split(), "--out", str(out), *map(str, more)])
    except SystemExit as error:
        os._exit(error.code if isinstance(error.code, int) else 1)


def child(act: Callable[[], Any], ripe: Callable[[], bool] | None = None, after: float = 0) -> int:
    """Forks and acts there; kills the child some seconds after ``ripe``, if given; its status.

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
    while ripe is not None and not ripe():
        over, status = os.waitpid(pid, os.WNOHANG)
        if over:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    if ripe is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up(act: Callable[[Path], Any], root: Path) -> None:
    """Imports here what some work imports, so that no child spends its time on that.

    The work itself is done in children only: PyTorch takes no gradient in a child of a process that
    took some.
    """
    names = root / "names"
    child(lambda: (act(root / "first"), names.write_text("\n".join(sys.modules))))
    for name in names.read_text().splitlines():
        with suppress(Exception):
            import_module(name)


def spent(rounds: int) -> float:
    """Epsilon of so many rounds of the cell, from a ledger of its own."""
    ledger = Ledger(unit="example", delta=1e-3, accountant="rdp")
    rates = [min(1.0, 3 / size) for size in SIZES]
    for t in range(rounds):
        ledger.record(t + 1, range(len(SIZES)), 1, sample_rate=rates, noise_multiplier=1.0)
    return ledger.epsilon()


def reached(state: Path) -> int:
    """The newest round that stands in a folder of checkpoints; -1: none."""
    return max(checkpoint.rounds_in(state), default=-1) if state.is_dir() else -1


def left(state: Path) -> dict[str, Any]:
    """What a run left: rounds done, epsilon claimed and spent, and whether all that fits."""
    if reached(state) < 0:
        return {"done": -1, "rows": -1, "claimed": 0.0, "spent": 0.0, "fits": True}
    done, book, rows = (
        checkpoint.read_latest(state)[0].round,
        state / "ledger.json",
        state / "rounds.csv",
    )
    ledger = Ledger.load(book) if book.exists() else Ledger()
    known = {entry.round for entry in ledger.releases}
    table: Any = read_frame(rows) if rows.exists() else None
    last = -1 if table is None else int(table["round"].max())
    fits = set(range(1, done + 1)) <= known <= set(range(1, done + 2)) and last <= done
    claimed = ledger.epsilon() if known else 0.0
    return {"done": done, "rows": last, "claimed": claimed, "spent": spent(done), "fits": fits}


def killed(
    act: Callable[[Path], Any], root: Path, count: Callable[[Path], int], look: Callable
) -> dict[str, Any]:
    """Kills at random moments, some steps of ``count`` further each; what ``look`` finds then.

    A work that ends before its kill is followed by the next, 0, 1, …; all of them, and one that
    nobody kills, are then done to their end.
    """
    warm_up(act, root)
    draw, seen, number = random.Random(1), [], 0
    while len(seen) < KILLS:
        path = root / str(number)
        goal = count(path) + draw.randrange(3)
        code = child(partial(act, path), lambda: count(path) >= goal, draw.uniform(0, 0.03))  # noqa: B023
        if code == -signal.SIGKILL:
            seen.append({"number": number, **look(path)})
        else:
            number += 1
    for name in (*range(number + 1), "whole"):
        assert child(partial(act, root / str(name))) == 0
    return {"seen": seen, "count": number + 1}


def stopped(root: Path) -> dict[str, Any]:
    """The command of a study with a worker, whose second method never ends: stopped by Ctrl-C as a
    terminal sends it, to the whole group, and by a kill of the command alone.
    """
    short, other = (one := tiny()).cases
    endless = replace(one, cases=(short, replace(other, plan={**other.plan, "rounds": 10**6})))
    ways = {"ctrl-c": (signal.SIGINT, os.killpg), "kill": (signal.SIGKILL, os.kill)}
    found: dict[str, Any] = {}
    for name, (sign, stop) in ways.items():
        said, lines = root / f"{name}.said", root / name / "runs" / "tiny.jsonl"
        pid = os.fork()
        if not pid:
            os.setsid()
            signal.alarm(600)  # whatever becomes of the parent
            said_to(said)
            STUDIES["tiny"] = endless
            main(["study", "tiny", "--workers", "1", "--out", str(root / name)])
        command = psutil.Process(pid)
        until(lambda at=lines: at.exists() and at.read_text().count("\n") >= 2, 3600)
        workers, deaf = command.children(recursive=True), []
        for status in (Path(f"/proc/{worker.pid}/status") for worker in workers):
            if status.exists():
                masks = dict(line.split(":", 1) for line in status.read_text().splitlines())
                # It starts with the signal blocked and ignores it once it has imported the package.
                ignored = int(masks["SigBlk"], 16) | int(masks["SigIgn"], 16)
                deaf.append(bool(ignored & 1 << signal.SIGINT - 1))
        stop(pid, sign)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        alive = [str(worker) for worker in psutil.wait_procs(workers, timeout=300)[1]]
        seen = {"code": code, "workers": len(workers), "deaf": deaf, "alive": alive}
        found[name] = {**seen, "said": said.read_text(), "before": lines.read_text()}
    lines = root / "kill" / "runs" / "tiny.jsonl"
    with lines.open("a") as torn:
        torn.write('{"key": "half a li')
    assert child(partial(studied, lines)) == 0
    return {**found, "after": lines.read_text()}


def runs(root: Path) -> dict[str, Any]:
    """Kills of a run in its folder."""
    state = Path("checkpoints", "fedlora-0")
    return killed(played, root, lambda out: reached(out / state), lambda out: left(out / state))


def studies(root: Path) -> dict[str, Any]:
    """Kills of a study; keys on the disk after each."""

    def lines(path: Path) -> int:
        return path.read_bytes().count(b"\n") if path.exists() else 0

    return killed(studied, root, lines, lambda path: {"keys": sorted(runner.load_results(path))})


def limited(act: Callable[[], Any], size: int) -> None:
    """Acts while no file may grow past this size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    act()


def full(root: Path) -> dict[str, Any]:
    """Runs and a study whose files may not grow past some bytes, the study then without limit."""
    seen, said = [], root / "said"
    for size in (300, 6000, 9000):
        out = root / f"out-{size}"
        code = child(partial(limited, partial(commanded, said, out, "--rounds", 12), size))
        state = out / "checkpoints" / "rolora-0"
        book, drafts = state / "ledger.json", [path.name for path in out.rglob("*.part")]
        known = len(Ledger.load(book).releases) if book.exists() else 0
        found = {"code": code, "said": said.read_text(), "drafts": drafts, "known": known}
        seen.append({**found, **left(state)})
    study = partial(studied, root / "study")
    code, kept = child(partial(limited, study, 2000)), len(runner.load_results(root / "study"))
    assert child(study) == 0
    return {"seen": seen, "study": (code, kept, len(runner.load_results(root / "study")))}


def writers(root: Path) -> list[list[str]]:
    """Writers of one adapter, killed in the middle of their work; the names that stand after each.

    Last of all: this process trains.
    """
    record, path, found = play(tokens("head"), "fedlora", None)[-1], root / "adapter", []
    fl.save_adapter(record, path)

    def write() -> None:
        while True:
            fl.save_adapter(record, path)

    for seed in range(4):
        assert child(write, lambda: True, 0.05 + 0.02 * random.Random(seed).random()) < 0
        found.append(sorted(part.name for part in path.iterdir()) if path.exists() else [])
    return found


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    seen = {}
    for scenario in (runs, studies, full, stopped, writers):
        folder = Path(sys.argv[1]) / scenario.__name__
        folder.mkdir()
        seen[scenario.__name__] = scenario(folder)
    print(json.dumps(seen))
