"""The same private federation written by hand with Flower, PEFT and Opacus, and with this library:
how long each takes from the command to the adapter, and what each can tell afterwards.

    python -m benchmarks.end_to_end               minutes; writes results/end_to_end.csv and .md
    python -m benchmarks.end_to_end --rounds 2 --times 1 --out FOLDER    a look

Both sides take turns, each time in a fresh process, which trains the federation twice: cold, the
imports included, and warm, in the same process. Seconds are the clock's, and those of all
processors of the process and its children, which other work on the machine disturbs less.
"""

import ast
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import pandas as pd

from benchmarks.__main__ import HERE, processor
from benchmarks.page import spread
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table

SIDES = {"by_library": "this library", "by_hand": "Flower, PEFT and Opacus"}
GOAL = 10
TELLS = (
    ("ε of each client, composed over the run", "yes", "yes, where one writes it (as here)"),
    ("ε after every round", "`record.epsilon`", "no"),
    ("what several runs on the same data spend together", "`Ledger.compose`", "no"),
    ("how far averaging A and B misses the mean of B A", "`record.deviation`", "no"),
    ("noise in the product, by its three terms", "`record.rows`", "no"),
    ("the share of gradients that were clipped", "`record.clipped`", "no"),
    ("bytes up and down", "`record.uploads`", "no"),
    ("a killed run goes on", "`checkpoint=`", "no"),
    ("a loss that mixes examples is refused before training", "yes", "no"),
)


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank nor comment nor docstring."""
    text = path.read_text()
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(
        bool(x.strip()) and not x.strip().startswith("#") and i not in skipped for i, x in lines
    )


def one(side: str, out: Path, rounds: int) -> None:
    """In a process of its own: the federation twice, a line of JSON after each."""
    federate = importlib.import_module(f"benchmarks.{side}").federate
    for start in ("cold", "warm"):
        begun = time.perf_counter()
        found = federate(out / start, rounds)
        seconds = time.perf_counter() - begun
        click.echo(json.dumps({"start": start, "seconds": seconds, **found}))
        sys.stdout.flush()


class ProcessorTime:
    """Adds up what a process and all its children have used of the processors, as they go."""

    def __init__(self, pid: int) -> None:
        self.pid, self.used, self.ended = pid, dict[tuple[int, float], float](), threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()

    def _watch(self) -> None:
        while not self.ended.wait(0.25):
            self.look()

    def look(self) -> float:
        """Seconds so far; of a child that has ended, those when it was last seen."""
        import psutil

        try:
            whole = psutil.Process(self.pid)
            everyone = [whole, *whole.children(recursive=True)]
        except psutil.Error:
            everyone = []
        for process in everyone:
            try:
                times = process.cpu_times()
                self.used[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue
        return sum(self.used.values())


def measured(side: str, rounds: int) -> list[dict[str, Any]]:
    """Cold and warm in a fresh process: clock, processor, accuracy, ε as said and as recomputed."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.end_to_end", "--one", side]
    # Ray's processes may take long to start beside other work.
    env = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "RAY_raylet_start_wait_time_s": "600"}
    env |= {"RAY_agent_register_timeout_ms": "600000"}
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        command += [folder, "--rounds", str(rounds)]
        begun, before = time.perf_counter(), 0.0
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        child: Any = subprocess.Popen(command, text=True, cwd=HERE.parent, env=env, **pipes)
        meter, said = ProcessorTime(child.pid), []
        drain = threading.Thread(target=lambda: said.append(child.stderr.read()))
        drain.start()
        for line in child.stdout:
            if not line.startswith('{"start"'):
                continue
            clock, found, used = time.perf_counter() - begun, json.loads(line), meter.look()
            warm = found["start"] == "warm"
            adapter = Path(folder) / found["start"] / "adapter_model.safetensors"
            if not adapter.is_file():
                raise RuntimeError(f"{side}: no adapter was saved")
            rows.append(
                {
                    "side": side,
                    "start": found["start"],
                    "clock": found["seconds"] if warm else clock,
                    "processor": used - before,
                    "accuracy": found["accuracy"][-1],
                    "epsilon": max(client["epsilon"] for client in found["clients"]),
                    "recomputed": recomputed(found["clients"], rounds),
                }
            )
            before = used
        child.wait()
        meter.ended.set()
        drain.join()
        if child.returncode or len(rows) != 2:
            raise RuntimeError(f"{side} ended with {child.returncode}: {said[0][-2000:]}")
    return rows


def recomputed(clients: list[dict[str, float]], rounds: int) -> float:
    """The largest ε of a client by this library's accountant, from its noise, rate and steps."""
    from benchmarks.by_library import DELTA, STEPS
    from fedlora_lab.privacy.accounting import epsilon

    found = [epsilon(((c["sigma"], c["rate"], rounds * STEPS),), DELTA) for c in clients]
    return max(found)


def page(table: pd.DataFrame, rounds: int, machine: str) -> str:
    """The measurements in words and tables.

    Args: table: side, start, time and what `measured` found. rounds: of a run. machine: in words.
    """
    rows = [["", "start", *SIDES.values(), "times quicker"]]
    quicker: dict[tuple[str, str], list[float]] = {}
    for measure, words in (("clock", "s by the clock"), ("processor", "s of the processors")):
        wide = table.pivot_table(index=["start", "time"], columns="side", values=measure)
        for start in ("cold", "warm"):
            part = wide.loc[start]
            ratio = (part["by_hand"] / part["by_library"]).tolist()
            quicker[measure, start] = ratio
            rows.append([words, start, *(spread(part[side]) for side in SIDES), spread(ratio)])
    met = [start for start in ("cold", "warm") if np.median(quicker["clock", start]) >= GOAL]
    goal = f"met {' and '.join(met)}" if met else "not met"
    said = [["", *SIDES.values()]]
    by = table.groupby("side")
    lines = {side: code_lines(HERE / f"{side}.py") for side in SIDES}
    said.append(["lines of code", *(f"{lines[side]}" for side in SIDES)])
    for name, words in (
        ("accuracy", "accuracy after the last round"),
        ("epsilon", "largest ε of a client, as each side reports it"),
        ("recomputed", "the same by this library's accountant"),
    ):
        said.append([words, *(spread(by.get_group(side)[name]) for side in SIDES)])
    count = int(table["time"].nunique())
    return f"""# End to end, beside what one would write by hand

How long a whole private federation takes with this library, and in a script that uses Flower, PEFT
and Opacus directly. Rebuilt by `python -m benchmarks.end_to_end`. `digits`, 10 clients, {rounds}
rounds of 5 steps of 16 scans, rank 4 on query and value, ε = 8 by example at δ = 1e-4, an adapter
for PEFT at the end, noise from fresh entropy. By hand: Flower's simulation with two processes,
FedAvg over the LoRA tensors, Opacus' `PrivacyEngine` with Poisson batches, noise calibrated once
for each client (`benchmarks/by_hand.py`). With this library: `fl.run` and `fl.save_adapter`
(`benchmarks/by_library.py`). Both score the test examples after every round.

Each side ran {count} times, in turns; medians and the middle 80 %. *Cold* is a fresh process, from
the command to the adapter. *Warm* is a second run in the same process: the script starts Ray anew,
and this library remembers the noise that it has calibrated. {machine}.

{markdown_table(rows)}

Asked: {GOAL} times quicker by the clock; {goal}. Three things make the difference: one process
instead of Ray's, all clients in one batch instead of one after the other, and a quicker
calibration. Flower's simulation is made for larger clients than these: with a large model the first
and the last matter less. In that simulation this library, too, takes several times as long as in
its own loop ([speed](README.md)).

{markdown_table(said)}

Opacus' loader draws each example with probability 1 / number of batches, so its batches are
slightly smaller than 16 in the mean, and its noise is calibrated for that rate.

What the two programs report and do as they are written; most of what the script lacks could be
added by hand:

{markdown_table([["", *SIDES.values()], *map(list, TELLS)])}
"""


@click.command()
@click.option("--rounds", default=20, type=click.IntRange(1), help="Of a run.  [20]")
@click.option("--times", default=5, type=click.IntRange(1), help="Of each side.  [5]")
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results", help="Folder.")
@click.option("--one", "single", nargs=2, hidden=True)
def main(rounds: int, times: int, out: Path, single: tuple[str, str] | None) -> None:
    """Measure and write end_to_end.csv and end_to_end.md."""
    if single:
        one(single[0], Path(single[1]), rounds)
        return
    found: list[dict[str, Any]] = []
    out.mkdir(parents=True, exist_ok=True)
    for turn in range(times):
        for side in SIDES:
            found += [{"time": turn, **row} for row in measured(side, rounds)]
            click.echo(found[-2:])
    import torch

    table = pd.DataFrame(found)
    load = "" if not hasattr(os, "getloadavg") else f", load average {os.getloadavg()[2]:.1f}"
    machine = f"Machine: {os.cpu_count()} cores, {processor()}, torch {torch.__version__}{load}"
    text = page(table, rounds, machine)
    click.echo(text)
    numbers = table.to_csv(index=False, float_format="%.5g")
    write_atomically(out / "end_to_end.csv", numbers, shared=True)
    write_atomically(out / "end_to_end.md", text, shared=True)


if __name__ == "__main__":
    main()
