"""Compare ways to choose a learning rate at ε = 8: privately on the data, on public data, and from
public numbers alone. Fills the table of docs/budget.md.

    python scripts/private_tuning.py                    five seeds, about ten minutes on one core
    python scripts/private_tuning.py --seeds 2 --out F  fewer, with the lines kept in F

Each line of the file is one way at one seed; lines that are there are not run again.
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

import fedlora_lab as fl
from fedlora_lab._utils.files import append_line, read_lines

EPSILON, TRIALS = 8.0, 6
RATES = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4]
PLAN = fl.Plan(rounds=20, local_steps=5, batch=32)
METHODS = ("ffa-lora", "rolora")


def accuracy(task: Any, record: Any) -> float:
    """On the test examples, which no choice looked at."""
    x, y = task.test
    return float((fl.predict(task, record, x).argmax(1) == y).double().mean())


def last(task: Any, method: str, privacy: Any, lr: float, seed: int) -> Any:
    """The last record of a run at a rate."""
    options: dict[str, Any] = {"seed": seed, "evaluate_every": PLAN.rounds}
    return [*fl.run(task, method, privacy, PLAN.replace(lr=lr), **options)][-1]


def public_task(task: Any) -> Any:
    """The validation examples as if they were clients' data: two thirds train, one third judges."""
    x, y = task.validation
    cut, clients = 2 * len(y) // 3, len(task.sizes)
    parts = fl.partition.iid(cut, clients, 0)
    own = tuple((x[:cut][part], y[:cut][part]) for part in parts)
    return replace(task, clients=own, client_names=(), test=(x[cut:], y[cut:]), validation=None)


def privately(task: Any, method: str, privacy: Any, seed: int, distribution: str) -> Any:
    """The whole search at ε = 8."""
    how: dict[str, Any] = {"trials": TRIALS, "distribution": distribution, "seed": seed}
    best = fl.tune(task, method, privacy, PLAN, {"lr": RATES}, epsilon=EPSILON, **how)
    candidate: Any = best.candidate
    return candidate["lr"], accuracy(task, best.record), best.epsilon


def publicly(task: Any, method: str, privacy: Any, seed: int) -> Any:
    """Rates tried on public examples under the noise of the run; then one run."""
    other, sigma = public_task(task), max(privacy.noise_multiplier)
    noised = privacy.replace(noise_multiplier=sigma, sample_rate=None, delta=1e-3)
    scores = {lr: last(other, method, noised, lr, seed + 100).metrics["accuracy"] for lr in RATES}
    lr = max(scores, key=lambda lr: scores[lr])
    record = last(task, method, privacy, lr, seed)
    return lr, accuracy(task, record), record.epsilon


def suggested(task: Any, method: str, privacy: Any, seed: int) -> Any:
    """The rate of `fl.suggest_lr`; one run."""
    lr = fl.suggest_lr(task, method, privacy, PLAN).lr
    record = last(task, method, privacy, lr, seed)
    return lr, accuracy(task, record), record.epsilon


def uncounted(task: Any, method: str, privacy: Any, seed: int) -> Any:
    """Every rate tried on the data at ε = 8 each, the best by validation; the sum is stated."""
    judged = replace(task, test=task.validation, validation=None)
    records = {lr: last(judged, method, privacy, lr, seed + i) for i, lr in enumerate(RATES)}
    lr = max(records, key=lambda lr: records[lr].metrics["accuracy"])
    together = fl.Ledger.compose(*(record.ledger for record in records.values()))
    return lr, accuracy(task, records[lr]), together.epsilon()


WAYS = {
    "privately, geometric": partial(privately, distribution="geometric"),
    "privately, logarithmic": partial(privately, distribution="logarithmic"),
    "on public data": publicly,
    "suggest_lr": suggested,
    "every rate, not counted": uncounted,
}


def main() -> None:
    """Run what is missing; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/private_tuning.jsonl"))
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    given = parser.parse_args()
    task = fl.tasks.digits()
    free = fl.Privacy(delta=1e-5)
    privacy = free.calibrate(epsilon=EPSILON, task=task, plan=PLAN)
    done = {(x["way"], x["method"], x["seed"]) for x in read_lines(given.out)}
    for seed in range(given.seeds):
        for method in given.methods:
            for way in given.ways:
                if (way, method, seed) not in done:
                    lr, score, epsilon = WAYS[way](task, method, privacy, seed)
                    entry = {"way": way, "method": method, "seed": seed, "lr": lr}
                    append_line(given.out, {**entry, "accuracy": score, "epsilon": epsilon})
    frame = pd.DataFrame(read_lines(given.out))
    grouped = frame.groupby(["method", "way"], sort=False)
    table = grouped.agg(
        accuracy=("accuracy", "mean"), sd=("accuracy", "std"), lowest=("accuracy", "min"),
        epsilon=("epsilon", "max"), rates=("lr", lambda x: sorted(x.round(2).unique())),
    )  # fmt: skip
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
