"""The page of the speed results: ratios within turns, their spread, and a figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.price import CLIENTS, STEPS, priced
from fedlora_lab._utils.markdown import markdown_table

PEERS = ("stacked", "plain", "opacus")
TIME, MEMORY = 1.25, 1.3
FASTER = {"digits 10 x 16": 2.0, "digits 50 x 8": 3.5, "MiniLM 4 x 8": 1.0}
"""What was asked: at most so many times the plain step's time and memory, at least so many times
Opacus' speed.
"""


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Each turn's ratio of the stacked step to its peers."""
    wide = table.pivot_table(index=["case", "turn"], columns="peer", values="seconds")
    found = {"plain": wide["stacked"] / wide["plain"], "opacus": wide["opacus"] / wide["stacked"]}
    if "plain, padded" in wide:
        found["plain, padded"] = wide["stacked"] / wide["plain, padded"]
    return pd.DataFrame(found)


def spread(values: "np.ndarray | pd.Series | list[float]") -> str:
    """Median and the middle 80 % of repeated measurements."""
    low, middle, high = np.quantile(np.asarray(values), [0.1, 0.5, 0.9])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def steps(table: pd.DataFrame) -> str:
    """The private step beside its peers, one line for each case."""
    found = ratios(table)
    rows = [
        [
            "step",
            "private, stacked / plain, non-private",
            "asked",
            "Opacus by client / private, stacked",
            "asked",
        ]
    ]
    for case in table["case"].unique():
        part, asked = found.loc[case], f"at least {FASTER[case]:g}" if case in FASTER else ""
        rows.append(
            [case, spread(part["plain"]), f"at most {TIME:g}", spread(part["opacus"]), asked]
        )
    return markdown_table(rows)


def padded(table: pd.DataFrame) -> str:
    """The private step beside a plain one that pads all texts to the longest of them."""
    found = ratios(table)
    if "plain, padded" not in found:
        return ""
    part = found.dropna(subset="plain, padded")
    rows = [["step", "private, stacked / plain, all texts in one batch"]]
    for case in part.index.unique("case"):
        rows.append([case, spread(part.loc[case, "plain, padded"])])
    return "With all texts in one batch, the plain step pads them to the longest of all:\n\n" + (
        markdown_table(rows)
    )


def above(table: pd.DataFrame) -> str:
    """Names the cases whose step takes longer than was asked."""
    found = ratios(table)["plain"].groupby("case", sort=False).median()
    over = [f"{case} ({value:.2f})" for case, value in found.items() if value > TIME]
    return f"Above the {TIME:g} that was asked: {', '.join(over)}." if over else ""


def sizes(memory: dict[str, dict[str, list[float]]]) -> str:
    """Peak memory of the peers, one line for each case."""
    rows = [["peak memory, MiB (growth by models and steps)", *PEERS, "stacked / plain", "asked"]]
    for case, found in memory.items():
        cells = [f"{found[peer][0]:.0f} ({found[peer][1]:.0f})" for peer in PEERS]
        ratio = found["stacked"][0] / found["plain"][0]
        rows.append([case, *cells, f"{ratio:.2f}", f"at most {MEMORY:g}"])
    return markdown_table(rows)


def prices(price: dict[str, Any]) -> str:
    """What a smaller epsilon costs at the same noise in the mean, one line for each batch."""
    rows = [["batch", "σ", "ε", "s of the run", "s more for each halving of ε"]]
    for i, row in priced(price["seconds"], price["examples"]).iterrows():
        more = f"{row['halving']:.1f}" if i else ""
        numbers = (
            f"{row['batch']:.0f}",
            f"{row['sigma']:.2f}",
            f"{row['epsilon']:.2f}",
            f"{row['seconds']:.1f}",
            more,
        )
        rows.append(list(numbers))
    return f"""The time that a smaller ε costs: {CLIENTS} clients of {price["examples"]} examples on
`digits`, {STEPS} private steps. σ grows in proportion to the batch, so the mean of a step is
equally noisy in every line while ε falls.

{markdown_table(rows)}"""


def beside(found: dict[str, dict[str, list[float]]]) -> str:
    """A step with all threads and with one, alone and beside a busy program; medians."""
    ms = {
        (where, name): f"{1000 * np.median(x):.0f}"
        for where, by in found.items()
        for name, x in by.items()
    }
    return (
        f"A step of `digits` 10 x 16 takes {ms['alone', 'all']} ms with all threads and "
        f"{ms['alone', 'one']} with one; beside another\nprogram that keeps one core busy "
        f"{ms['busy', 'all']} and {ms['busy', 'one']}: all wait for the thread that has lost its "
        "core.\nThe environment's `OMP_NUM_THREADS` says how many there are."
    )


def whole(run: dict[str, list[float]], rounds: dict[str, list[float]]) -> str:
    """A run on `digits`, and a round of it through Flower."""
    ratio = np.median(rounds["flower"]) / np.median(rounds["loop"])
    return f"""A `digits` run (10 clients, 20 rounds, 5 steps, RoLoRA at ε = 8):
{spread(run["seconds"])} s. A share of
{spread(run["share"])} of it is spent outside the engine's steps (asked: at most 0.25).

A round of it takes {spread(rounds["flower"])} s by the clock in Flower's simulation with two
processes, and {spread(rounds["loop"])} s in the library's own loop: {ratio:.1f} times less."""


def page(table: pd.DataFrame, found: dict[str, Any]) -> str:
    """The results in words and tables.

    Args:
        table: case, peer, turn, seconds.
        found: what results.json holds beside it.
    """

    def described(machine: dict[str, Any]) -> str:
        threads = machine["threads"]
        counted = "one thread, processor time" if threads == 1 else f"{threads} threads, clock time"
        return (
            f"{machine['cores']} cores, {machine['system']}, torch {machine['torch']},\n"
            f"{machine['turns']} turns, {counted}"
        )

    anew: dict[str, list[str]] = {}
    for case, machine in found.get("again", {}).items():
        anew.setdefault(described(machine), []).append(case)
    again = "".join(
        f"\n\nSteps and memory of {' and '.join(cases)} were measured anew: {words}."
        for words, cases in anew.items()
    )
    return f"""# Speed

Time and memory of a private step beside PEFT's plain step and beside Opacus. Rebuilt by
`make bench`. Numbers are medians, with the middle 80 % of the turns in brackets.

- *Private, stacked*: this library's step, all clients in one batch.
- *Plain*: PEFT's model on the same examples, without clients, clip and noise.
- *Opacus by client*: Opacus' hooks, one client after the other.
- *10 x 16*: ten clients with sixteen examples each. *Asked*: the goal of this project.

Machine: {described(found["machine"])}.{again}

{steps(table)}

{above(table)}

The private and the plain step group texts of similar length, sixteen at once, and pad a group to
its longest text. For Opacus the eight texts of a client are one such group.

{padded(table)}

{sizes(found["memory_MiB"])}

{whole(found["run"], found["rounds"])}

{beside(found["beside"])}

{prices(found["price"])}

A whole federation beside one written by hand with Flower, PEFT and Opacus:
[end to end](end_to_end.md).

Not measured on a GPU; `python -m benchmarks.gpu` does it.

`import fedlora_lab`: {spread([1000 * s for s in found["import"]])} ms (asked: at most 300).

![ratios](speed.png)
"""


def figure(table: pd.DataFrame, path: Path) -> None:
    """Every turn's ratio, and the lines that were asked for."""
    import seaborn as sns
    from matplotlib.figure import Figure

    found = ratios(table).reset_index()
    picture = Figure(figsize=(10, 3.4), dpi=110, layout="constrained")
    axes = picture.subplots(1, 2)
    cases = list(table["case"].unique())
    words = {
        "plain": ("time of a private step / plain step", dict.fromkeys(cases, TIME)),
        "opacus": (
            "times faster than Opacus by client",
            {case: FASTER[case] for case in cases if case in FASTER},
        ),
    }
    for ax, (peer, (label, asked)) in zip(axes, words.items(), strict=True):
        sns.stripplot(
            found, x=peer, y="case", order=cases, ax=ax, color="#0072b2", alpha=0.4, size=4
        )
        sns.pointplot(
            found, x=peer, y="case", order=cases, ax=ax,
            estimator="median", errorbar=None, color="#d55e00", linestyle="none",
        )  # fmt: skip
        for (
            case,
            line,
        ) in asked.items():  # a mark in the line of each case that something is asked of
            middle = cases.index(case)
            ax.vlines(line, middle - 0.4, middle + 0.4, color="#22252b", lw=1.5, ls="--")
        ax.axvline(1, color="#c9ccd3", lw=1)
        ax.set(xlabel=label, ylabel="", xlim=(0, None))
    axes[1].set_yticklabels([])
    picture.savefig(path, metadata={"Software": None})
