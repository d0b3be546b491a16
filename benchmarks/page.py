"""The page of the speed results: ratios within turns, their spread, and a figure."""

from pathlib import Path

import numpy as np
import pandas as pd

PEERS = ("stacked", "plain", "opacus")
TARGETS = {
    ("time", "plain"): "at most 1.25",
    ("memory", "plain"): "at most 1.3",
    ("time", "opacus", "digits 10 x 16"): "at least 2 times faster",
    ("time", "opacus", "digits 50 x 8"): "at least 3.5 times faster",
    ("time", "opacus", "MiniLM 4 x 8"): "not slower",
}


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Each turn's ratio of the stacked step to its peers."""
    wide = table.pivot_table(index=["case", "turn"], columns="peer", values="seconds")
    found = {"plain": wide["stacked"] / wide["plain"], "opacus": wide["opacus"] / wide["stacked"]}
    if "kept" in wide:
        found["kept"] = wide["stacked"] / wide["kept"]
    return pd.DataFrame(found)


def spread(values: "np.ndarray | pd.Series | list[float]") -> str:
    """Median and the middle 80 % of repeated measurements."""
    low, middle, high = np.quantile(np.asarray(values), [0.1, 0.5, 0.9])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def page(
    table: pd.DataFrame,
    memory: dict,
    run: dict,
    imports: list[float],
    machine: dict,
    rounds: dict[str, list[float]],
    products: dict[str, dict[str, list[float]]],
) -> str:
    """The results in words and tables."""
    found = ratios(table)
    lines = ["# Speed", "", "Rebuilt by `make bench`; medians and, in brackets, the middle 80 % of the turns.", ""]
    lines += [
        f"Machine: {machine['cores']} cores, {machine['system']}, torch {machine['torch']}, {machine['turns']} turns,",
        "one thread, processor time." if machine["threads"] == 1 else f"{machine['threads']} threads, clock time.",
        "",
    ]
    lines += ["| step | private, stacked / plain, non-private | asked | Opacus by client / private, stacked | asked |"]
    lines += ["|---|---|---|---|---|"]
    for case in table["case"].unique():
        part = found.loc[case]
        asked = TARGETS.get(("time", "opacus", case), "")
        lines.append(
            f"| {case} | {spread(part['plain'])} | {TARGETS['time', 'plain']} | {spread(part['opacus'])} | {asked} |"
        )
    lines += [
        "",
        "The plain step is PEFT's model under torch's own products; the private one's frozen maps are multiplied by",
        "oneDNN (below).",
    ]
    head = "| peak memory, MiB (growth by models and steps) | stacked | plain | Opacus | stacked / plain | asked |"
    lines += ["", head, "|---|---|---|---|---|---|"]
    for case, sizes in memory.items():
        cells = " | ".join(f"{sizes[peer][0]:.0f} ({sizes[peer][1]:.0f})" for peer in PEERS)
        ratio = sizes["stacked"][0] / sizes["plain"][0]
        lines.append(f"| {case} | {cells} | {ratio:.2f} | {TARGETS['memory', 'plain']} |")
    lines += [
        "",
        f"A `digits` run (10 clients, 20 rounds, 5 steps, RoLoRA at ε = 8): {spread(run['seconds'])} s, of which",
    ]
    lines += [f"{spread(run['share'])} is not the engine's steps (asked: at most 0.25)."]
    if "kept" in found:
        kept = found["kept"].dropna()
        words = f"The frozen prefix kept, adapters in layers 4 and 5 of 6: a step is {spread(kept)} times faster."
        lines += ["", words] if len(kept) else []
    ratio = np.median(rounds["flower"]) / np.median(rounds["loop"])
    lines += [
        "",
        f"A round of it through Flower's simulation, two processes: {spread(rounds['flower'])} s of the clock, in the",
        f"loop {spread(rounds['loop'])} s: {ratio:.1f} times less.",
        "",
        "On a GPU: not measured.",
        "",
        "A frozen map's product by either library, GFLOP/s on one core (decision 0018):",
        "",
        "| map | torch's own | oneDNN | times faster |",
        "|---|---|---|---|",
    ]
    for name, rates in products.items():
        quicker = np.divide(rates["onednn"], rates["torch"])
        lines.append(f"| {name} | {spread(rates['torch'])} | {spread(rates['onednn'])} | {spread(quicker)} |")
    lines += ["", f"`import fedlora_lab`: {spread(imports)} s (asked: at most 0.3).", "", "![ratios](speed.png)", ""]
    return "\n".join(lines)


def figure(table: pd.DataFrame, path: Path) -> None:
    """Every turn's ratio, and the lines that were asked for."""
    import seaborn as sns
    from matplotlib.figure import Figure

    found = ratios(table).reset_index()
    picture = Figure(figsize=(10, 3.4), dpi=110, layout="constrained")
    axes = picture.subplots(1, 2)
    words = {
        "plain": ("time of a private step / plain step", 1.25),
        "opacus": ("times faster than Opacus by client", 2.0),
    }
    for ax, (peer, (label, line)) in zip(axes, words.items(), strict=True):
        sns.stripplot(found, x=peer, y="case", ax=ax, color="#0072b2", alpha=0.4, size=4)
        sns.pointplot(
            found, x=peer, y="case", ax=ax, estimator="median", errorbar=None, color="#d55e00", linestyle="none"
        )
        ax.axvline(line, color="#22252b", lw=1, ls="--")
        ax.axvline(1, color="#c9ccd3", lw=1)
        ax.set(xlabel=label, ylabel="", xlim=(0, None))
    axes[1].set_yticklabels([])
    picture.savefig(path, metadata={"Software": None})
