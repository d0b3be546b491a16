"""Measure side by side what the library promises about speed; write one table.

    python -m benchmarks    some minutes on two quiet cores

Peers take turns, so a noisy machine disturbs all of them alike; the ratio of each turn counts, in
processor time, which leaves out what others compute.
"""

import os
import platform
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from scipy.stats import quantile_test
from torch.nn.utils.rnn import pad_sequence
from transformers import BertConfig, BertForSequenceClassification

import fedlora_lab as fl
from benchmarks import peers
from fedlora_lab._utils.files import write_atomically
from scripts.page_blocks import markdown_table

RESULTS = Path(__file__).parent / "results"
STEPS = {
    "digits 10 x 16": ("digits", 10, 16, 4),
    "digits 10 x 16, rank 16": ("digits", 10, 16, 16),
    "digits 50 x 8": ("digits", 50, 8, 4),
    "MiniLM 4 x 8": ("text", 4, 8, 8),
}
"""Name of a case -> task, clients, examples of each, rank."""
MINILM: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
MINILM |= {"intermediate_size": 1536, "vocab_size": 30_522}
COMPARISON = "12 runs on digits"
TURNS = {COMPARISON: 6, "MiniLM 4 x 8": 12}
"""Case -> turns, where they are not `MOST_TURNS`: six are the fewest that give an interval."""
MOST_TURNS = 60
FEW = {"opacus": 12}
"""Peer -> turns at most: it takes several times as long as the others."""
WORDS = ("good", "great", "fine", "poor", "awful", "dull", "film", "book", "day", "very", "not")

# Words, case, whose time is divided by whose, and what was asked of the ratio.
RATIOS = (
    ("private step / plain step", "digits 10 x 16", "private", "plain", "at most 1"),
    ("private step / plain step", "digits 10 x 16, rank 16", "private", "plain", "at most 1.15"),
    ("private step / plain step", "digits 50 x 8", "private", "plain", "at most 1"),
    ("private step / plain step", "MiniLM 4 x 8", "private", "plain", "at most 1"),
    ("without a seed / plain step", "digits 10 x 16", "unseeded", "plain", ""),
    ("without a seed / plain step", "digits 10 x 16, rank 16", "unseeded", "plain", ""),
    ("Opacus by client / private step", "digits 10 x 16", "opacus", "private", "at least 2"),
    ("Opacus by client / private step", "digits 50 x 8", "opacus", "private", "at least 3.5"),
    ("Opacus by client / private step", "MiniLM 4 x 8", "opacus", "private", "at least 1.5"),
    ("one by one / jobs=2", COMPARISON, "one by one", "two processes", "at least 1.6"),
)


def build_task(name: str, clients: int) -> fl.tasks.Task:
    """Builds a case's task; the texts are made up, and their model has MiniLM's size.

    Args: name: "digits" or "text". clients: how many.
    """
    if name == "digits":
        return fl.tasks.digits(clients=clients)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(8, 40))) for _ in range(800)]
    numbers = {word: number for number, word in enumerate(WORDS, start=3)}
    rows = [
        {"input_ids": [1, *(numbers[word] for word in text.split()), 2], "label": i % 2}
        for i, text in enumerate(texts)
    ]
    config = BertConfig(**MINILM)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    sites = [i % clients for i in range(len(rows))]
    return fl.tasks.from_trainer(model, rows, by=sites, data_collator=padded)


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Collates texts into tensors of one width."""
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


def comparisons() -> dict[str, Callable[[], Any]]:
    """The same twelve runs on digits, one by one and on two cores."""
    task = fl.tasks.digits()
    plan = fl.Plan(rounds=10, local_steps=4, batch=16, lr=0.1)
    privacy = fl.Privacy(delta=1e-5, noise_multiplier=1.0, accountant="rdp")
    rows = ["fedlora", "ffa-lora", "rolora", "fedlpp"]

    def compare(jobs: int) -> None:
        fl.compare(task, rows, privacy, plan, jobs=jobs, progress=False)

    return {
        "one by one": lambda: compare(1),
        "two processes": lambda: compare(2),
    }


def in_turns(
    case: str,
    steps: Mapping[str, Callable[[], Any]],
    clock: Callable[[], float] = process_time,
) -> pd.DataFrame:
    """Times peers one after the other, turn by turn; a turn before the first warms up.

    Args:
        case: its name.
        steps: peer -> what is timed.
        clock: of this process, or of the wall where others work for it.
    Returns: columns case, peer, turn, seconds.
    """
    rows = []
    for turn in range(-1, TURNS.get(case, MOST_TURNS)):
        for peer, step in steps.items():
            if turn >= FEW.get(peer, MOST_TURNS):
                continue
            begun = clock()
            step()
            rows.append((case, peer, turn, clock() - begun))
    table = pd.DataFrame(rows, columns=["case", "peer", "turn", "seconds"])
    return table[table["turn"] >= 0]


def measure() -> pd.DataFrame:
    """Measures everything; a row for each case, peer and turn."""
    # First, so that no thread of a peer has an effect on it.
    tables = [in_turns(COMPARISON, comparisons(), perf_counter)]
    for case, (name, clients, batch, rank) in STEPS.items():
        task = build_task(name, clients)
        makers = {peer: peers.PEERS[peer] for peer in ("private", "plain", "opacus")}
        makers["unseeded"] = partial(peers.stacked, seed=None)
        steps = {peer: make(task, batch, rank) for peer, make in makers.items()}
        tables.append(in_turns(case, steps))
    return pd.concat(tables, ignore_index=True)


def spread(values: Any) -> str:
    """The median of repeated measurements, with its 95 % interval whatever their law."""
    ratios = np.asarray(values)
    low, high = quantile_test(ratios).confidence_interval(0.95)
    return f"{np.median(ratios):.3g} ({low:.3g} to {high:.3g})"


def page(table: pd.DataFrame, machine: str) -> str:
    """The page of the results.

    Args: table: see `measure`. machine: in words.
    """
    seconds = table.set_index(["case", "peer", "turn"])["seconds"].sort_index()
    rows = [["ratio of times", "of a", "measured", "asked"]]
    for label, case, one, reference, goal in RATIOS:
        # An older file of turns may lack a peer.
        if not {(case, one), (case, reference)} <= set(seconds.index.droplevel("turn")):
            continue
        # Turn by turn: what disturbs a turn disturbs both of its peers.
        ratio = (seconds[case, one] / seconds[case, reference]).dropna()
        rows.append([label, case, spread(ratio), goal])
    return f"""# Speed

Rebuilt by `make bench`. Ratios of processor times, turn by turn: median, with its 95 % interval in
brackets. Rank 4, of MiniLM 8, where no other is named.

{machine}

{markdown_table(rows)}

- *Private step*: this library's, all clients in one batch. *Without a seed*: the same, with every
  random number from the operating system.
- *Plain step*: PEFT's model on the same examples, with one pair of factors for all of them, and
  neither clients nor clip nor noise.
- *Opacus by client*: Opacus' hooks, one client after the other.
- *10 x 16*: ten clients with sixteen examples each.
- *One by one*: `fl.compare(..., jobs=1)`, each run with one thread, by the clock on the wall.

On a GPU: `python -m benchmarks.gpu`, as [on an H200](gpu-nvidia-h200.md). With `--rows` every row
of the table trains there and on the CPU, with the same noise: on the H200 the factors end within
3e-5 of the CPU's for Fed-ZO, and within 1e-6 for all others ([frame](gpu-nvidia-h200-rows.csv)).
FedPower came later and was not run there.
"""


def processor() -> str:
    """What the system calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@click.command(help=__doc__)
def main() -> None:
    warnings.simplefilter("ignore")  # Opacus warns of every hook; nothing here is tested
    table = measure()
    threads = f"threads: {torch.get_num_threads()}"
    machine = f"{os.cpu_count()} cores, {processor()}, torch {torch.__version__}, {threads}."
    text = page(table, machine)
    write_atomically(RESULTS / "turns.csv", table.to_csv(index=False), shared=True)
    write_atomically(RESULTS / "README.md", text, shared=True)
    click.echo(text)


if __name__ == "__main__":
    main()
