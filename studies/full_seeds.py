"""Does training all weights beat low rank at the same epsilon on digits? Twenty seeds decide.

    python -m studies.full_seeds run      trains what results/full-seeds.csv lacks, a line a run
    python -m studies.full_seeds judge    the differences from FedLoRA and FFA-LoRA, seed by seed

The study full-model tuned the rates of all weights and of the head alone on validation scans and
reports three seeds each. Here seeds 3 to 19 follow at the same rates. FedLoRA and FFA-LoRA are
those of the study digits-example, at their best rate, clip norm and ratio of rates, with twenty
seeds. The split, the unit and the work are the same.

Registered before these runs, on what three seeds had shown (4.3 and 5.2 points): over twenty seeds
all weights lead FedLoRA at epsilon = 8 and at 1, with 95 % intervals (Student's, of the differences
seed by seed) that leave out zero; the head alone does not lead FedLoRA at either.
"""

import sys

import pandas as pd

from fedlora_lab.measures.runs import t_interval
from studies import RESULTS
from studies.declared import Job, Setting, full_model
from studies.runner import run_job

FRAME = RESULTS / "full-seeds.csv"
FIRST = RESULTS / "full-model.csv"
SEEDS = range(3, 20)


def run() -> None:
    """Trains what is missing, the larger budget first."""
    first = pd.read_csv(FIRST)
    done = pd.read_csv(FRAME) if FRAME.exists() else first[:0]
    known = {*zip(done["method"], done["epsilon"], done["seed"], strict=True)}
    study = full_model()
    for case in sorted(study.cases, key=lambda case: -(case.epsilon or 0)):
        slug = case.method.slug
        here = first[(first["method"] == slug) & (first["epsilon"] == case.epsilon)]
        rate = float(here["lr"].iloc[0])
        for seed in SEEDS:
            if (slug, case.epsilon, seed) in known:
                continue
            values = run_job(Job(case, Setting(rate), seed, tune=False))["values"]
            row = {"method": slug, "epsilon": case.epsilon, "lr": rate, "seed": seed}
            row |= {"accuracy": values["accuracy"], "seconds": values["seconds"]}
            table = pd.DataFrame([row])
            is_new = not FRAME.exists()
            table.to_csv(FRAME, mode="a", header=is_new, index=False, float_format="%.6g")


def judge() -> pd.DataFrame:
    """Mean difference in points, its 95 % interval and its number of seeds, by budget and pair."""
    columns = ["method", "epsilon", "seed", "accuracy"]
    tables = [pd.read_csv(path)[columns] for path in (FIRST, FRAME)]
    tables.append(pd.read_csv(RESULTS / "digits-example.csv")[columns])
    runs = pd.concat(tables).dropna(subset="epsilon")
    scores = runs.set_index(["method", "epsilon", "seed"])["accuracy"].sort_index()
    rows = []
    for epsilon in (8.0, 1.0):
        for slug in ("all-weights", "head-only"):
            for other in ("fedlora", "ffa-lora"):
                gap = 100 * (scores[slug, epsilon] - scores[other, epsilon]).dropna()
                mean, half = t_interval(gap.to_numpy())
                row = {"epsilon": epsilon, "method": slug, "over": other, "points": mean}
                row |= {"low": mean - half, "high": mean + half, "seeds": len(gap)}
                rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run()
    else:
        print(judge().round(2).to_string(index=False))
