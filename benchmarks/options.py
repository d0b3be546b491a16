"""A private step with what fine-tuning people bring (AdamW, dropout, all linear maps, a decoder),
beside the plain PEFT step and beside Opacus, in one run.

    python -m benchmarks.options            minutes; writes results/options.csv and .md
    python -m benchmarks.options --quick    few turns

Peers take turns step by step, so that other work on the machine disturbs all of them alike; the
ratio within each turn is what counts. With one thread (`--threads 1`, the default) the processor's
time is counted.
"""

import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pandas as pd

from benchmarks.__main__ import HERE, in_turns, processor, task_of
from benchmarks.page import spread
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.report.summary_table import markdown_table

if TYPE_CHECKING:
    from fedlora_lab.tasks.task import Task

PEERS = ("stacked", "plain", "opacus", "ghost")
DECODER = "decoder, 4 x 8"
CASES: dict[str, tuple[str, int, int, int, dict[str, Any]]] = {
    "SGD, query and value": ("digits", 10, 16, 4, {}),
    "AdamW": ("digits", 10, 16, 4, {"optimizer": "adamw"}),
    "lora_dropout=0.1": ("digits", 10, 16, 4, {"options": {"lora_dropout": 0.1}}),
    "all-linear": ("digits", 10, 16, 4, {"options": {"target_modules": "all-linear"}}),
    DECODER: ("decoder", 4, 8, 8, {}),
    f"{DECODER}, AdamW, dropout, all-linear": (
        "decoder",
        4,
        8,
        8,
        {
            "optimizer": "adamw",
            "options": {"lora_dropout": 0.1, "target_modules": "all-linear"},
        },
    ),
}
"""Name -> task, clients, examples of each, rank, and how a step is made."""
SIZES = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def decoder(clients: int, **sizes: int) -> "Task":
    """A Llama-like decoder of random weights that learns to add numbers, on prompts and answers.

    Args: clients: how many. sizes: fields of its configuration.
    """
    import fedlora_lab as fl

    words = [str(n) for n in range(100)]
    rows = [
        {"prompt": f"what is {a} plus {b} ?", "answer": words[a + b]}
        for a in range(40)
        for b in range(0, 40, 4)
    ]
    texts = [*words, *(row["prompt"] for row in rows)]
    with tempfile.TemporaryDirectory() as folder:
        model = fl.tasks.tiny("llama", Path(folder) / "llama", texts, **(sizes or SIZES))
        return fl.tasks.prompts(
            model, rows, prompt="{prompt}", answer=" {answer}", clients=clients, public_test=True
        )


def measured(case: str, count: int, inner: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """Seconds a step of every peer in turns, and why a peer is not there.

    Args: case: of `CASES`. count: turns. inner: steps of each turn.
    """
    from benchmarks import peers

    name, clients, batch, rank, given = CASES[case]
    task = decoder(clients) if name == "decoder" else task_of(name, clients)
    steps, refused = {}, {}
    for peer in PEERS:
        try:
            step = peers.PEERS[peer](task, batch, rank, how=peers.How(**given))
            step()
        except (NotImplementedError, ValueError, RuntimeError, AttributeError) as error:
            refused[peer] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        else:
            steps[peer] = step
    return in_turns(steps, count, inner).assign(case=case), refused


def page(table: pd.DataFrame, refused: dict[str, dict[str, str]], machine: str) -> str:
    """The ratios in words and one table.

    Args: table: case, peer, turn, seconds. refused: case -> peer -> why. machine: in words.
    """
    wide = table.pivot_table(index=["case", "turn"], columns="peer", values="seconds")
    head = [
        "step",
        "private, stacked / plain",
        "Opacus, hooks / private",
        "Opacus, ghost / private",
    ]
    rows = [[*head, "private, ms"]]
    for case in table["case"].unique():
        part = wide.loc[case]
        cells = [spread(part["stacked"] / part["plain"])]
        for peer in ("opacus", "ghost"):
            there = peer in part and part[peer].notna().all()
            cells.append(spread(part[peer] / part["stacked"]) if there else "refused")
        rows.append([case, *cells, f"{1000 * part['stacked'].median():.0f}"])
    reasons = [
        f"- {case}, {peer}: {why}" for case, by in refused.items() for peer, why in by.items()
    ]
    words = "Refused:\n\n" + "\n".join(reasons) if reasons else "Opacus refused none of them."
    return f"""# Common options: AdamW, dropout, all-linear, a decoder

Time of this library's private step (all clients in one batch: *stacked*) beside PEFT's plain step
and beside Opacus, with options that users choose. Rebuilt by `python -m benchmarks.options`;
medians and, in brackets, the middle 80 % of the turns.
{machine}.

{markdown_table(rows)}

The first four are `digits`, 10 clients of 16 scans, rank 4. The decoder is Llama-like with random
weights (four blocks, 128 wide), 4 clients of 8 prompts with answers, rank 8; the loss is that of
the answer. The plain step is PEFT's model on the same examples at once, without clients, clip and
noise. Opacus takes client after client: per-example gradients by its hooks, or ghost clipping with
a second backward pass. All multiply frozen weights alike.

{words}

What differs: with dropout the private step draws each example's mask from a stream of its own, so
that no mask depends on who else was drawn or on how a batch was cut, which costs time; PEFT and
Opacus draw one mask for the batch from torch's generator. With AdamW all three step by the noised
mean; in a run the private step's moments begin anew in each round.
"""


@click.command()
@click.option("--quick", is_flag=True, help="Four turns of each.")
@click.option("--case", "only", help="The cases whose name begins so.")
@click.option("--turns", "count", type=click.IntRange(2), default=25, help="Of every case.  [25]")
@click.option("--threads", type=click.IntRange(1), default=1, help="Of torch.  [1]")
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results", help="Folder.")
def main(quick: bool, only: str | None, count: int, threads: int, out: Path) -> None:
    """Measure and write options.csv and options.md."""
    warnings.simplefilter("ignore")  # Opacus warns of every hook; nothing here is tested
    import torch

    torch.set_num_threads(threads)
    count, tables, refused = 4 if quick else count, [], {}
    for case in CASES:
        if case.startswith(only or ""):
            table, refused[case] = measured(case, count, 1)
            tables.append(table)
    kind = "one thread, processor time" if threads == 1 else f"{threads} threads, clock time"
    machine = f"{os.cpu_count()} cores, {processor()}, torch {torch.__version__}"
    table = pd.concat(tables, ignore_index=True)
    text = page(table, refused, f"Machine: {machine},\n{count} turns, {kind}")
    click.echo(text)
    numbers = table.to_csv(index=False, float_format="%.6f")
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "options.csv", numbers, shared=True)
    write_atomically(out / "options.md", text, shared=True)


if __name__ == "__main__":
    main()
