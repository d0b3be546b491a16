"""What does the rate of `fl.suggest_lr` cost on `fl.tasks.sentences`, on which nothing was chosen?

    python -m studies.suggested_sentences    trains what the store lacks, and says the costs

Four methods run in the text setting of the open table at ε = 8 and 1. Each has its suggested rate
and the four that lie one and two octaves below and above it; A and B have the same rate. Three
seeds redraw the split, the test sentences, the batches and the noise. One half of the test
sentences chooses the best of the five rates, by its mean over the seeds, and the other half is
scored.

Registered before any of these runs, both in the mean of three seeds on the scored half:

1. The suggested rate costs at most 4 points against the best, in each of the eight cases.
2. Four times the suggested rate costs more than 3 points, in each of the eight cases.

Seen before: one run each of FedLoRA, FFA-LoRA and RoLoRA at the suggested rate at ε = 8, with 70 or
71 % of the sentences right, and what notebooks 05 and 14 and the first steps show of sentences.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd

import fedlora_lab as fl
from fedlora_lab.recipes import protocol
from studies import RESULTS

FILE = RESULTS / "suggested-sentences.csv"
STORE = RESULTS / "runs" / "suggested-sentences.jsonl"
METHODS = ("fedlora", "ffa-lora", "rolora", "la-lora")
OCTAVES = (-2, -1, 0, 1, 2)


def runs_of(epsilon: float, slug: str, seed: int) -> pd.DataFrame:
    """Runs a method at its five rates; what the store has is not run again."""
    setting = replace(protocol.SETTINGS["sentences, example, epsilon 8"], epsilon=epsilon)
    task, privacy, plan = setting.at(seed)
    suggested = fl.suggest_lr(task, slug, privacy, plan, protocol.LORA).lr
    octaves = {float(f"{suggested * 2.0**octave:.4g}"): octave for octave in OCTAVES}
    options: Any = {"lora": protocol.LORA, "store": STORE, "jobs": 1, "progress": False}
    options |= {"evaluate_every": plan.rounds, "lr": list(octaves)}
    frame = fl.compare(protocol.scored_apart(task), [slug], privacy, plan, [seed], **options)
    last = frame[(frame["round"] == plan.rounds) & (frame["layer"] == "all")]
    table = last.pivot(index="lr", columns="measure", values="value").reset_index()
    labels = {"method": slug, "budget": epsilon, "seed": seed, "octave": table["lr"].map(octaves)}
    return table[["lr", "epsilon", "validation", "accuracy"]].assign(**labels)


def costs(runs: pd.DataFrame) -> pd.DataFrame:
    """Points lost at each octave against the best rate: a row a method and budget."""
    rows = {}
    for case, part in runs.groupby(["budget", "method"]):
        mean = part.groupby("octave")[["validation", "accuracy"]].mean()
        best = mean["accuracy"][mean["validation"].idxmax()]
        rows[case] = 100 * (best - mean["accuracy"])
    return pd.DataFrame(rows).T


def main() -> None:
    """Writes the frame of all runs."""
    cases = product((8.0, 1.0), METHODS, protocol.SEEDS)
    runs = pd.concat(runs_of(*case) for case in cases)
    runs.to_csv(FILE, index=False, float_format="%.6g")
    print(costs(runs).round(1))


if __name__ == "__main__":
    main()
