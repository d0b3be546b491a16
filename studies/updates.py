"""Runs on digits for the measures that no study records; writes results/updates.csv.

    python -m studies claims --measure

They are a run's learning curve, how alike the clients' updates are, what a quantised broadcast does
to accuracy, and the curvature at the end.
"""

from itertools import product
from statistics import fmean
from typing import Any

import pandas as pd
import torch

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.measures.deviation import AggregationInput
from fedlora_lab.methods import aggregation
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.quantization import normal_float
from studies import RESULTS
from studies.runner import select_rows

FILE = RESULTS / "updates.csv"
TWO_BITS = fl.methods.FedLPP.replace(name="FedLPP 2 bits", broadcast=normal_float(2, block=64))
RUNS = (
    *product(("fedlora", "la-lora", "la-lora-unfiltered"), (1.0,)),
    *product(("fedlora", "la-lora", "fedlpp", TWO_BITS), (None,)),
    *product(("fedlora", "rolora", "as-lora"), (3.0,)),
    *product(("fedlora", "la-lora"), (8.0,)),
)
"""Method and budget; each at ten seeds."""


def measure(method: Method, epsilon: float | None, seed: int, lr: float) -> dict[str, Any]:
    """The measures of one run.

    Args: method, epsilon, seed, lr: of the run; no ε is no privacy.
    """
    task = fl.tasks.digits(clients=10, alpha=0.5, seed=0)
    plan = fl.Plan(rounds=20, local_steps=5, batch=16, lr=lr)
    lora = fl.Lora(rank=4, alpha=8.0)
    privacy = None
    if epsilon is not None:
        privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=epsilon, task=task, plan=plan)
    recorded: list[AggregationInput] = []
    row = method
    if isinstance(method.aggregate, aggregation.MeanUpdate):
        row, recorded = fl.measures.record_aggregation(method)
    records = list(fl.run(task, row, privacy, plan, lora=lora, seed=seed))
    last = records[-1]
    scores = [record.metrics["accuracy"] for record in records]
    values = {"before_accuracy": scores[0], "accuracy": scores[-1], "curve": fmean(scores[1:])}
    values["accuracy_received"] = last.metrics.get("accuracy_received", float("nan"))
    if recorded:
        values["alignment"] = fmean(map(fl.measures.alignment, recorded))
    values["sharpness"] = fl.measures.flatness(task, last)
    head = {"study": "updates", "method": method.slug, "epsilon": epsilon, "lr": lr}
    return {**head, "at_edge": False, "seed": seed, **values}


def main(seeds: range = range(10)) -> None:
    """Adds the runs that the file lacks, one by one, at the tuned rates."""
    torch.set_num_threads(1)
    done = pd.read_csv(FILE)
    for seed, (name, epsilon) in product(seeds, RUNS):
        method = fl.methods.get(name)
        if len(select_rows(done, seed=seed, method=method.slug, epsilon=epsilon)):
            continue
        tuned = "fedlpp" if method is TWO_BITS else method.slug
        rate = fl.tuned_rate("digits", tuned, epsilon)
        new = pd.DataFrame([measure(method, epsilon, seed, rate)])
        done = pd.concat([done, new], ignore_index=True)
        write_atomically(FILE, done.to_csv(index=False), shared=True)
