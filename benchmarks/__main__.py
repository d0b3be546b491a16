"""Measure, side by side in one run, what the library promises about speed; write results and one
page with a figure.

    python -m benchmarks            everything, about ten minutes on two quiet cores
    python -m benchmarks --quick    a look in a minute
    python -m benchmarks --again MiniLM    steps and memory of these cases; the rest stays

Peers take turns step by step, so a noisy machine disturbs all of them alike; the ratio of each turn
is what counts. With one thread (`--threads 1`) the processor's time is counted instead of the
clock's: that is the figure for a machine that others use as well.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pandas as pd

from benchmarks import price
from benchmarks.page import PEERS, figure, page

if TYPE_CHECKING:
    from fedlora_lab.tasks.task import Task

HERE = Path(__file__).parent
CASES = {
    "digits 10 x 16": ("digits", 10, 16, 4),
    "digits 50 x 8": ("digits", 50, 8, 4),
    "digits 10 x 64": ("digits", 10, 64, 4),
    "digits 10 x 16, rank 16": ("digits", 10, 16, 16),
    "MiniLM 4 x 8": ("text", 4, 8, 8),
    "MiniLM 4 x 8, layers 4 and 5": ("upper", 4, 8, 8),
}
MORE = {
    "MiniLM 4 x 8": ("plain, padded",),
    "MiniLM 4 x 8, layers 4 and 5": ("plain, padded",),
}
"""Peers measured beside the others, for this case: the plain step on one batch of all texts,
padded to the longest."""
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
MINILM |= {"intermediate_size": 1536, "vocab_size": 30_522}
WORDS = [
    "good",
    "great",
    "fine",
    "poor",
    "awful",
    "dull",
    "film",
    "book",
    "song",
    "day",
    "very",
    "not",
]
UPPER = tuple(f"layer.{i}.attention.self.{name}" for i in (4, 5) for name in ("query", "value"))


def clock() -> float:
    """Seconds: of the processor with one thread, of the clock with more."""
    import torch

    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def task_of(name: str, clients: int) -> "Task":
    """The benchmark's task; the texts are made up, and their model has MiniLM's size."""
    import fedlora_lab as fl

    if name == "digits":
        return fl.tasks.digits(clients=clients)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(8, 40))) for _ in range(800)]
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
    folder = fl.tasks.tiny("bert", Path(tempfile.mkdtemp()) / "model", texts, **MINILM)
    whole = fl.tasks.hub(folder, rows, text="text", label="label", clients=clients)
    return replace(whole, targets=UPPER) if name == "upper" else whole


def turns(case: str, count: int, inner: int) -> pd.DataFrame:
    """Seconds a step of every peer, ``count`` turns; peers follow each other within a turn."""
    from benchmarks import peers

    name, clients, batch, rank = CASES[case]
    task = task_of(name, clients)
    names = [*PEERS, *MORE.get(case, ())]
    steps = {peer: peers.PEERS[peer](task, batch, rank) for peer in names}
    return in_turns(steps, count, inner).assign(case=case)


def in_turns(steps: dict[str, Callable[[], None]], count: int, inner: int) -> pd.DataFrame:
    """Columns peer, turn, seconds (a step's mean over ``inner``); the first turn warms up and is
    left out.
    """
    rows = []
    for turn in range(-1, count):
        for peer, step in steps.items():
            begun = clock()
            for _ in range(inner):
                step()
            rows.append({"peer": peer, "turn": turn, "seconds": (clock() - begun) / inner})
    return pd.DataFrame(rows[len(steps) :])


def peak(case: str, peer: str) -> list[float]:
    """MiB in a fresh process that builds a peer and makes five steps: largest resident size, and
    its growth.
    """
    command = [sys.executable, "-m", "benchmarks", "--peak", case, peer]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent)
    return json.loads(done.stdout.strip().splitlines()[-1])


def one_peak(case: str, peer: str) -> None:
    """In a process of its own: five steps, then both numbers of `peak`."""

    def high_water() -> float:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    from benchmarks import peers

    name, clients, batch, rank = CASES[case]
    task = task_of(name, clients)
    Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew at the present size
    before = high_water()
    step = peers.PEERS[peer](task, batch, rank)
    for _ in range(5):
        step()
    click.echo(json.dumps([high_water(), high_water() - before]))


def step_by_batch(count: int, inner: int) -> dict[str, Any]:
    """Seconds of the private step for each batch of `benchmarks.price`, the batches in turns; a
    client's examples.
    """
    from benchmarks.peers import stacked

    task = task_of("digits", price.CLIENTS)
    steps = {str(batch): stacked(task, batch, price.RANK) for batch in price.BATCHES}
    found = in_turns(steps, count, inner).groupby("peer")["seconds"]
    seconds = {batch: found.get_group(batch).tolist() for batch in steps}
    return {"examples": sum(task.sizes) // price.CLIENTS, "seconds": seconds}


def whole_run(repeats: int) -> dict[str, list[float]]:
    """Share of a `digits` run's wall time that is not the engine's local steps: set-up, evaluation,
    epsilon.
    """
    import fedlora_lab as fl
    from fedlora_lab.federated import local_training

    task, plan = fl.tasks.digits(clients=10), fl.Plan()
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    spent, step = [0.0], local_training.local_step

    def timed(*arguments: Any, **named: Any) -> None:
        begun = clock()
        step(*arguments, **named)
        spent[0] += clock() - begun

    shares, seconds = [], []
    local_training.local_step = timed
    try:
        for _ in range(repeats):
            spent[0], begun = 0.0, clock()
            for record in fl.run(task, fl.methods.RoLoRA, privacy, plan):
                _ = record.metrics["accuracy"], record.epsilon, record.deviation
            seconds.append(clock() - begun)
            shares.append(1 - spent[0] / seconds[-1])
    finally:
        local_training.local_step = step
    return {"share": shares, "seconds": seconds}


def through_flower(repeats: int) -> dict[str, list[float]]:
    """Clock seconds of a round of `digits` (10 clients, 5 steps of 16) in the loop and through
    Flower's simulation.
    """
    import fedlora_lab as fl
    from fedlora_lab.flower.simulators import simulate

    task, plan = fl.tasks.digits(clients=10), fl.Plan(rounds=repeats + 1)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    runs = {
        "loop": fl.run(task, "rolora", privacy, plan),
        "flower": simulate(task, "rolora", privacy, plan, workers=2),
    }
    # The first round of either warms up.
    return {
        name: [record.seconds for record in run if record.index > 1] for name, run in runs.items()
    }


def import_seconds(repeats: int) -> list[float]:
    """Seconds that ``import fedlora_lab`` takes in a fresh interpreter."""
    code = (
        "import time; t = time.perf_counter(); import fedlora_lab; print(time.perf_counter() - t)"
    )
    command = [sys.executable, "-c", code]
    return [float(subprocess.check_output(command, text=True)) for _ in range(repeats)]


def processor() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine()
    )


@click.command()
@click.option("--quick", is_flag=True, help="Few turns, the small cases only.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Threads of torch; 1 counts processor time.  [torch's own]",
)
@click.option(
    "--turns", "count", type=click.IntRange(2), default=25, help="Turns of every case.  [25]"
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=HERE / "results", help="Where the results go."
)
@click.option("--again", help="Steps and memory of the cases whose name begins so; the rest stays.")
@click.option("--peak", "one", nargs=2, hidden=True)
def main(
    quick: bool,
    threads: int | None,
    count: int,
    out: Path,
    again: str | None,
    one: tuple[str, str] | None,
) -> None:
    """Measure and write results.json, turns.csv, speed.png and README.md."""
    warnings.simplefilter("ignore")  # Opacus warns of every hook; nothing here is tested
    if one:
        one_peak(*one)
        return
    import torch

    from benchmarks.beside import beside

    torch.set_num_threads(threads or torch.get_num_threads())
    count = 4 if quick else count
    cases = [case for case in CASES if not (quick and "MiniLM" in case)]
    cases = [case for case in cases if case.startswith(again or "")]
    table = pd.concat(
        [turns(case, count, 1 if "MiniLM" in case else 3) for case in cases], ignore_index=True
    )
    memory = {case: {peer: peak(case, peer) for peer in PEERS} for case in cases}
    machine = {
        "cores": os.cpu_count(),
        "system": processor(),
        "torch": torch.__version__,
        "turns": count,
        "threads": torch.get_num_threads(),
    }
    if again:
        found = json.loads((out / "results.json").read_text())
        rest = pd.read_csv(out / "turns.csv")
        table = pd.concat([rest[~rest["case"].isin(cases)], table], ignore_index=True)
        found["memory_MiB"] |= memory
        found.setdefault("again", {}).update(dict.fromkeys(cases, machine))
        write(out, table, found)
        return
    run, imports, rounds = (
        whole_run(3 if quick else 7),
        import_seconds(5),
        through_flower(3 if quick else 15),
    )
    by_batch = step_by_batch(count, 3)
    found = {
        "memory_MiB": memory,
        "run": run,
        "rounds": rounds,
        "import": imports,
    }
    found |= {"machine": machine, "price": by_batch, "beside": beside(3 if quick else 7)}
    write(out, table, found)


def write(out: Path, table: pd.DataFrame, found: dict[str, Any]) -> None:
    """Writes turns.csv, results.json, the figure and the page.

    Args: out: the folder. table: case, peer, turn, seconds. found: what results.json holds.
    """
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "turns.csv", index=False, float_format="%.6f")
    (out / "results.json").write_text(json.dumps(found, indent=1))
    figure(table, out / "speed.png")
    text = page(table, found)
    (out / "README.md").write_text(text)
    click.echo(text)


if __name__ == "__main__":
    main()
