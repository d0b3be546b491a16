"""What is done to runs and studies in processes of their own: killed, interrupted, out of space, without a permission.

Each scenario runs in one process that forks, so that what is heavy is loaded once. Called by test_faults_runs.py.
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
from fedlora_lab import checkpoint, methods
from fedlora_lab.cli import main
from fedlora_lab.cli.cells import play
from fedlora_lab.comparison import Cell
from fedlora_lab.folder import Folder, read_frame
from fedlora_lab.ledger import Ledger
from fedlora_lab.study import Study, work
from fedlora_lab.study.declared import Case

PLAN = fl.Plan(rounds=50, local_steps=1, batch=3, lr=0.05)
TASK = {"clients": 2, "examples": 6, "test": 4, "d_in": 5, "d_out": 4, "rank": 1}
SHORT = {"--clients": 3, "--local-steps": 1, "--lr": 0.01, "--accountant": "rdp", "--delta": 1e-3}
WORDS = ["run", "regression", "rolora", *(str(word) for pair in SHORT.items() for word in pair)]
SIZES = tokens("head").sizes


def cell() -> Cell:
    """One method on a tiny task, under privacy."""
    return Cell.named("fedlora", tokens("head"), private("example"), PLAN, LORA, 0)


def played(out: Path) -> None:
    """Play the cell in a run folder to its end."""
    with Folder(out) as folder:
        for _ in play(folder, cell()):
            pass


def tiny() -> Study:
    """Two methods; 48 runs of some milliseconds."""
    plan, privacy = (
        {"rounds": 2, "local_steps": 1, "batch": 4},
        {"delta": 1e-2, "accountant": "rdp", "noise_multiplier": 1.0},
    )
    rows = [methods.get(slug) for slug in ("fedlora", "rolora")]
    cases = tuple(Case(row, {}, ("regression", TASK), None, privacy, plan, {"rank": 1}) for row in rows)
    return Study("tiny", "a test", cases, seeds=tuple(range(20)), rates=(0.01, 0.1, 0.3, 1.0), tune_seeds=(97,))


def studied(path: Path) -> None:
    """Play the tiny study to its end, in this process."""
    work.play(tiny(), path, workers=0, bar=False)


def commanded(words: list[str], said: Path) -> None:
    """The command line in this process; what it says goes to files that begin with ``said``."""
    for ending, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{said}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    try:
        said.with_name("ready").touch()
        main(words)
    except SystemExit as error:
        sys.stdout.flush()
        os._exit(error.code if isinstance(error.code, int) else 1)


def child(act: Callable[[], Any], after: float = 0.0, number: int = 0, when: Callable[[], bool] = lambda: True) -> int:
    """Fork, do something there, send it a signal some seconds after ``when`` holds; its status, negative for a signal.

    Moments are told by what has been done, not by the clock alone: a busy machine then comes as far as an idle one.
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

    The work itself is done in children only: PyTorch takes no gradient in a child of a process that took some.
    """
    names = root / "names"
    child(lambda: (act(root / "first"), names.write_text("\n".join(sys.modules))))
    for name in names.read_text().splitlines() if names.exists() else ():
        with suppress(Exception):
            import_module(name)


def spent(rounds: int) -> float:
    """Epsilon of so many rounds of the cell, from a ledger of its own."""
    ledger = Ledger(unit="example", delta=1e-3, accountant="rdp")
    for t in range(rounds):
        rates = [min(1.0, 3 / size) for size in SIZES]
        ledger.record(t + 1, range(len(SIZES)), 1, sample_rate=rates, noise_multiplier=1.0)
    return ledger.epsilon() if rounds else 0.0


def found(state: Path) -> dict[str, Any]:
    """What a killed run left: rounds done, epsilon claimed and spent, and whether ledger and rows fit the state."""
    if not (state.is_dir() and checkpoint.rounds_in(state)):
        return {"done": -1, "rows": -1, "claimed": 0.0, "spent": 0.0, "fits": True}
    done, book, rows = checkpoint.latest(state)[0].round, state / "ledger.json", state / "rounds.csv"
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


def runs(root: Path) -> dict[str, Any]:
    """Thirty kills of a run in its folder, each at a random moment; what was on the disk after each."""
    warmed(played, root)
    draw, seen, number = random.Random(1), [], 0
    while len(seen) < 30:
        out = root / f"run-{number}"
        state, goal = out / "checkpoints" / "fedlora-0", draw.randrange(4)
        before = reached(state)
        code = child(lambda out=out: played(out), draw.uniform(0, 0.03), signal.SIGKILL,
                     lambda state=state, goal=before + goal: reached(state) >= goal)  # fmt: skip
        if code == -signal.SIGKILL:
            seen.append({"folder": number, **found(out / "checkpoints" / "fedlora-0")})
        else:
            number += 1  # it came to its end before the kill
    folders = [*(root / f"run-{index}" for index in range(number + 1)), root / "whole"]
    assert all(child(lambda out=out: played(out)) == 0 for out in folders)
    return {"seen": seen, "folders": number + 1}


def studies(root: Path) -> dict[str, Any]:
    """Thirty kills of a study, each at a random moment; keys on the disk after each."""
    warmed(studied, root)
    draw, seen, number = random.Random(2), [], 0
    while len(seen) < 30:
        path, goal = root / f"study-{number}", draw.randrange(3)
        before = lines(path)
        code = child(lambda path=path: studied(path), draw.uniform(0, 0.03), signal.SIGKILL,
                     lambda path=path, goal=before + goal: lines(path) >= goal)  # fmt: skip
        if code == -signal.SIGKILL:
            seen.append({"study": number, "keys": sorted(work.load(path))})
        else:
            number += 1
    paths = [*(root / f"study-{index}" for index in range(number + 1)), root / "whole"]
    assert all(child(lambda path=path: studied(path)) == 0 for path in paths)
    return {"seen": seen, "studies": number + 1}


def interrupts(root: Path) -> dict[str, Any]:
    """Twenty times Ctrl-C at a random moment of one and the same run."""

    def some(place: Path) -> None:
        list(fl.run(fl.tasks.regression(clients=3), "rolora", None, PLAN, checkpoint=place))

    warmed(some, root)
    draw, out, seen = random.Random(3), root / "out", []
    words, state = [*WORDS, "--rounds", "5000", "--out", str(out)], out / "checkpoints" / "rolora-0"
    for _ in range(20):
        goal = reached(state) + draw.randrange(4)
        code = child(lambda: commanded(words, root / "said"), draw.uniform(0, 0.03), signal.SIGINT,
                     lambda goal=goal: (root / "ready").exists() and reached(state) >= goal)  # fmt: skip
        (root / "ready").unlink()
        seen.append({"code": code, "said": (root / "said.err").read_text(), **found(state)})
    return {"seen": seen}


def limited(act: Callable[[], Any], size: int) -> None:
    """Do something while no file may grow past this size."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    act()


def full(root: Path) -> dict[str, Any]:
    """Runs whose files may not grow past some bytes; and a study likewise, then without the limit."""
    seen = []
    for size in (300, 2500, 6000, 9000):
        out = root / f"out-{size}"
        words = [*WORDS, "--rounds", "12", "--out", str(out)]
        code = child(lambda size=size, words=words: limited(lambda: commanded(words, root / "said"), size))
        state = out / "checkpoints" / "rolora-0"
        drafts = [path.name for path in out.rglob("*.part")]
        seen.append({"code": code, "said": (root / "said.err").read_text(), "drafts": drafts, **found(state)})
        book = state / "ledger.json"
        seen[-1]["known"] = len(Ledger.load(book).releases) if book.exists() else 0
    path = root / "study"
    code = child(lambda: limited(lambda: studied(path), 2000))
    kept = len(work.load(path))
    assert child(lambda: studied(path)) == 0
    return {"seen": seen, "study": (code, kept, len(work.load(path)))}


def closed(root: Path) -> dict[str, Any]:
    """A run joins a folder that has become read-only; root first becomes somebody without privileges."""
    out, said = root / "out", root / "said"
    said.mkdir()
    said.chmod(0o777)
    first = child(lambda: commanded([*WORDS, "--rounds", "2", "--out", str(out)], said / "first"))
    (said / "ready").unlink()  # it is root's
    for path in (out, *out.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def plain() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        commanded([*WORDS, "--rounds", "2", "--seed", "1", "--out", str(out)], said / "second")

    before = contents()
    second = child(plain)
    same = contents() == before
    for path in (out, *out.rglob("*")):
        path.chmod(0o755)
    return {"codes": [first, second], "said": (said / "second.err").read_text(), "same": same}


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    name, folder = sys.argv[1:]
    print(json.dumps(globals()[name](Path(folder))))
