"""Runs on digits for the measures that no study records; writes results/updates.csv.

    python -m studies.updates

They are a run's learning curve, how alike the clients' updates are, what a quantised broadcast does
to accuracy, and the curvature at the end.
"""

from dataclasses import replace
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
from studies.declared import STUDIES, Job
from studies.runner import job_arguments, load_results, reported_settings, select_rows

FILE = RESULTS / "updates.csv"
TWO_BITS = fl.methods.FedLPP.replace(name="FedLPP 2 bits", broadcast=normal_float(2, block=64))
RUNS = (
    *product(("fedlora", "la-lora", "la-lora-unfiltered"), (1.0,)),
    *product(("fedlora", "la-lora", "fedlpp", TWO_BITS), (None,)),
    *product(("fedlora", "rolora", "as-lora"), (3.0,)),
    *product(("fedlora", "la-lora"), (8.0,)),
)
"""Method and budget; each at ten seeds."""


def job_of(method: Method, epsilon: float | None, seed: int) -> Job:
    """The run of a method at the setting that digits-example tuned; two bits take that of four.

    Args: method, epsilon, seed: of the run; no ε is no privacy.
    """
    study = STUDIES["digits-example"]
    slug = "fedlpp" if method is TWO_BITS else method.slug
    (case,) = (x for x in study.cases if (x.method.slug, x.epsilon) == (slug, epsilon))
    done = load_results(RESULTS / "runs" / f"{study.name}.jsonl")
    (setting,) = reported_settings(study, case, done)
    return Job(replace(case, method=method), setting, seed, False)


def measure(job: Job) -> dict[str, Any]:
    """The measures of one run."""
    task, method, privacy, plan, lora = job_arguments(job)
    recorded: list[AggregationInput] = []
    row = method
    if isinstance(method.aggregate, aggregation.MeanUpdate):
        row, recorded = fl.measures.record_aggregation(method)
    records = list(fl.run(task, row, privacy, plan, lora=lora, seed=job.seed))
    last = records[-1]
    scores = [record.metrics["accuracy"] for record in records]
    values = {"before_accuracy": scores[0], "accuracy": scores[-1], "curve": fmean(scores[1:])}
    values["accuracy_received"] = last.metrics.get("accuracy_received", float("nan"))
    if recorded:
        values["alignment"] = fmean(map(fl.measures.alignment, recorded))
    values["sharpness"] = fl.measures.flatness(task, last)
    labels = {"method": method.slug, "epsilon": job.case.epsilon, **job.setting._asdict()}
    return {"study": "updates", **labels, "seed": job.seed, **values}


def main(seeds: range = range(10)) -> None:
    """Adds the runs that the file lacks, one by one."""
    torch.set_num_threads(1)
    done = pd.read_csv(FILE)
    for seed, (name, epsilon) in product(seeds, RUNS):
        job = job_of(fl.methods.get(name), epsilon, seed)
        method = job.case.method.slug
        if not len(select_rows(done, seed=seed, method=method, epsilon=epsilon)):
            done = pd.concat([done, pd.DataFrame([measure(job)])], ignore_index=True)
            write_atomically(FILE, done.to_csv(index=False), shared=True)


if __name__ == "__main__":
    main()
