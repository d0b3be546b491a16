"""Ten to ten thousand clients in one batch: time and memory of a private run, each in a fresh
process.

    python -m benchmarks.crowd            a hundred rounds each; writes results/crowd.csv, .md, .png
    python -m benchmarks.crowd --quick    three rounds each, written nowhere

Every client holds sixteen handwritten digits, drawn with replacement from the private ones of the
task `digits`. Seconds are the processor's, with one thread, so that other work on the machine does
not count.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table

if TYPE_CHECKING:
    from fedlora_lab.tasks.task import Task

HERE = Path(__file__).parent
SIZES = (10, 100, 1_000, 10_000)
EACH, CHUNK = 16, 128
SHARES = {
    "1 % of the clients": lambda clients: 0.01,
    "10 clients a round": lambda clients: min(1.0, 10 / clients),
}


def crowd(clients: int, seed: int = 0) -> "Task":
    """The task `digits` with so many clients of sixteen examples each."""
    import torch

    import fedlora_lab as fl

    digits = fl.tasks.digits(clients=10)
    x, y = digits.pooled().clients[0]
    index = torch.from_numpy(np.random.default_rng(seed).integers(len(y), size=(clients, EACH)))
    pairs = [(x[row], y[row]) for row in index]
    return fl.tasks.classification(
        digits.model,
        pairs,
        test=digits.test,
        targets=digits.targets,
        name=f"digits, {clients} clients",
    )


def high_water() -> float:
    """MiB, the largest resident size of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def one(clients: int, share: str, rounds: int) -> dict[str, float]:
    """A run in this process: client-level privacy, Poisson participation, one step a round."""
    import torch

    import fedlora_lab as fl

    torch.set_num_threads(1)
    task = crowd(clients)
    plan = fl.Plan(
        rounds=rounds, local_steps=1, batch=16, lr=0.3, participation=SHARES[share](clients)
    )
    privacy = fl.Privacy(
        unit="client", clip_norm=0.5, noise_multiplier=1.0, delta=1e-5, accountant="rdp"
    )
    before, begun, part, last = high_water(), time.process_time(), 0, None
    for record in fl.run(
        task, "fedlora", privacy, plan, chunk_examples=CHUNK, evaluate_every=max(rounds, 1)
    ):
        part, last = part + record.participants, record
    seconds = time.process_time() - begun
    found = {
        "clients": clients,
        "rounds": rounds,
        "took part": part,
        "seconds": seconds,
        "MiB": high_water(),
    }
    return {**found, "MiB before": before, "epsilon": last.epsilon if last else 0.0}


def measured(sizes: tuple[int, ...], rounds: int) -> pd.DataFrame:
    """Every number of clients under every way to take part, each in a process of its own."""
    rows = []
    for share in SHARES:
        for clients in sizes:
            command = [
                sys.executable,
                "-m",
                "benchmarks.crowd",
                "--one",
                str(clients),
                share,
                str(rounds),
            ]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=HERE.parent
            )
            rows.append({"who": share, **json.loads(done.stdout.splitlines()[-1])})
            click.echo(rows[-1])
    return pd.DataFrame(rows)


def page(table: pd.DataFrame) -> str:
    """The results in words and one table."""
    more: Any = (table["MiB"] - table["MiB before"]).groupby(table["clients"]).max()
    low, high = more.loc[1_000], more.loc[10_000]
    head = (
        "who takes part",
        "clients",
        "rounds",
        "took part in all",
        "s",
        "ms for each that took part",
        "peak MiB",
    )
    rows: list[tuple] = [(*head, "of it before the run")]
    for row in table.to_dict("records"):
        each = 1000 * row["seconds"] / max(row["took part"], 1)
        counts = (
            f"{row['clients']:,}",
            row["rounds"],
            f"{row['took part']:,}",
            f"{row['seconds']:.1f}",
            f"{each:.1f}",
        )
        rows.append((row["who"], *counts, f"{row['MiB']:.0f}", f"{row['MiB before']:.0f}"))
    return f"""# Ten to ten thousand clients

Rebuilt by `python -m benchmarks.crowd`. FedLoRA on `digits`, client-level privacy, one local step
of sixteen examples, at most {CHUNK} at once; one thread, the processor's seconds; each line a
fresh process.

{markdown_table(rows)}

With 1 % of the clients, the number that takes part grows with the federation. With ten a round only
the data grow, which this machine holds for all clients. A run keeps state, and a copy of the
examples, only for clients that take part: beyond the memory before it, at most {low:.0f} MiB with a
thousand clients and {high:.0f} MiB with ten thousand, in either case.

![time and memory](crowd.png)
"""


def figure(table: pd.DataFrame, path: Path) -> None:
    """Seconds and memory against the number of clients."""
    import seaborn as sns
    from matplotlib.figure import Figure

    picture = Figure(figsize=(9, 3.4), dpi=110, layout="constrained")
    axes = picture.subplots(1, 2)
    for ax, (measure, label) in zip(
        axes, {"seconds": "processor time of the run, s", "MiB": "peak memory, MiB"}.items()
    ):
        sns.lineplot(
            table,
            x="clients",
            y=measure,
            hue="who",
            marker="o",
            ax=ax,
            palette=["#0072b2", "#d55e00"],
        )
        ax.set(xscale="log", xlabel="clients in the federation", ylabel=label)
        ax.legend(title="who takes part", frameon=False)
    axes[0].set_yscale("log")
    axes[0].set_yticks([3, 10, 30, 100], ["3", "10", "30", "100"])
    axes[0].set_yticks([], minor=True)
    before: dict[str, Any] = {
        "y": "MiB before",
        "label": "before the run, data included",
        "color": "#8b8b8b",
        "linestyle": ":",
    }
    sns.lineplot(table, x="clients", ax=axes[1], errorbar=None, **before)
    axes[1].set_ylim(0, 1.15 * table["MiB"].max())
    axes[1].legend(title="who takes part", frameon=False)
    picture.savefig(path, metadata={"Software": None})


@click.command()
@click.option("--quick", is_flag=True, help="Three rounds each, nothing is written.")
@click.option("--one", "single", nargs=3, hidden=True)
def main(quick: bool, single: tuple[str, str, str] | None) -> None:
    """Measure every number of clients and write crowd.csv, crowd.md and crowd.png."""
    if single:
        click.echo(json.dumps(one(int(single[0]), single[1], int(single[2]))))
        return
    table = measured(SIZES, 3 if quick else 100)
    click.echo(page(table))
    if not quick:
        out = HERE / "results"
        write_atomically(
            out / "crowd.csv", table.to_csv(index=False, float_format="%.4g"), shared=True
        )
        write_atomically(out / "crowd.md", page(table), shared=True)
        figure(table, out / "crowd.png")


if __name__ == "__main__":
    main()
