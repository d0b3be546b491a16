"""Attack every certified row at equal epsilon and accuracy, and write results/league.csv.

    python scripts/league.py [--seeds 5] [--minutes 8]

Whole scans through a small network, five clients, every example protected, nothing sampled: the
trade-off curve is that of Gaussian noise. Each row takes the learning rate at which a run on all
examples ends at the accuracy, within 0.015 on seeds of their own ("tuned"): the first rate of a
grid that reaches it, then halving on the logarithm. A row that never does takes its best rate.
Then a fair coin decides of each example whether it takes part, ten runs a seed, and four attacks
find out how it fell:

- "likelihood ratio": the released model's confidence beside that of the other runs (LiRA);
- "canaries": loud examples with wrong labels, looked for in each noised sum along their gradient;
- "span": how much of the input lies in the leading directions of what A became, or where A rests
  of what B became, seen through A;
- "projection residual": the same in the update of the product. Its paper (arXiv:2604.21197) could
  be read in the abstract only: what it projects and on how many directions is a reconstruction.

A threshold is set on half of the examples, by the share of others it accuses there; shares of
members found and of others accused are counted on the other half. The command goes on where it was
stopped, and at the end says whether a point lies above the curve beyond chance.
"""

import argparse
import time
from collections import deque
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.attacks import reconstruction
from fedlora_lab.attacks.membership_inference import likelihood_ratio
from fedlora_lab.audit.canary_audit import canaries as audit
from fedlora_lab.audit.instruments import (
    LEFT_OUT,
    Recorder,
    encode_marks,
    mark_examples,
    ordinary_marks,
)
from fedlora_lab.federated.records import Round
from fedlora_lab.methods.state import ParamKey, times_core
from fedlora_lab.privacy.mechanism import uncertified_reason

OUT = Path(__file__).resolve().parent.parent / "results" / "league.csv"
EPSILON, DELTA, RUNS, CANARIES, LORA = 8.0, 1e-4, 10, 400, fl.Lora(8, 8.0)
PLAN = fl.Plan(rounds=6, local_steps=2, batch=None)
RATES, TARGET, TUNING = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), 0.35, (900, 901, 902, 903)
NEAR, HALVINGS = 0.015, 6  # of the accuracy; how often the step between two rates is halved
RATES_OF_ERROR = (0.01, 0.1)
ATTACKS = ("likelihood ratio", "canaries", "span", "projection residual")


def the_task() -> Any:
    """Five clients with 100 whole scans each."""
    return reconstruction.flattened_digits_task(clients=5, examples=100)


def leading_share(update: torch.Tensor, inputs: torch.Tensor) -> np.ndarray:
    """How much of each input lies in the leading half of an update's row space, in [0, 1]."""
    if not bool(update.any()):
        return np.zeros(len(inputs))
    space = reconstruction.row_space(update.double(), max(1, min(update.shape) // 2))
    return 1 - reconstruction.residual_share(space, inputs.double()).numpy()


def traces(run: Recorder, x: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """Of the round just made: span and projection residual of each example, client by client."""
    assert run.everyone is not None and run.outcome is not None
    now, sent = run.everyone.params, run.outcome.sent.tensors
    found: dict[str, list[np.ndarray]] = {"span": [], "projection residual": []}
    layer = run.outcome.sent.layers[0]
    keys = {side: ParamKey(side, layer) for side in ("A", "B", "R", "gain")}
    old = {side: sent[key] for side, key in keys.items() if key in sent}
    for i, inputs in enumerate(x):
        new = {side: now[key][i] if key in now else old[side] for side, key in keys.items()
               if key in sent}  # fmt: skip

        def whole(part: dict[str, torch.Tensor]) -> torch.Tensor:
            core = part.get("R")
            b = part["B"] if core is None else times_core(part["B"], core, part.get("gain"))
            return b @ part["A"]

        moved = whole(new) - whole(old)
        rested = torch.equal(new["A"], old["A"])
        if not rested:
            span = leading_share(new["A"] - old["A"], inputs)
        else:  # A x is all that B's update, or the core's, holds of an input
            change = new["R"] - old["R"] if "R" in old else new["B"] - old["B"]
            if change.shape[1] < len(old["A"]):  # blocks, one below the other
                change = times_core(torch.eye(len(old["A"])).to(change), change)
            span = leading_share(change, inputs.double() @ old["A"].double().T)
        found["span"].append(span)
        found["projection residual"].append(leading_share(moved, inputs))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def coin_runs(
    task: Any, slug: str, privacy: Any, plan: Any, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scores of members and of others for each attack but the canaries."""
    rng = np.random.default_rng([seed, 7])
    there = rng.random((RUNS, sum(task.sizes))) < 0.5
    plain = [(x, encode_marks(y)) for x, y in task.clients]
    inputs = [x.flatten(1) for x, _ in task.clients]
    confidences, seen = [], {"span": [], "projection residual": []}
    for i, included in enumerate(there):
        marks = ordinary_marks(task)
        for mark, part in zip(marks, np.split(included, np.cumsum(task.sizes)[:-1])):
            mark[~torch.from_numpy(part)] = LEFT_OUT
        marked = mark_examples(task, marks)
        run = Recorder.open(marked, slug, privacy, plan, lora=LORA, seed=1000 * seed + i,
                            evaluate_every=plan.rounds)  # fmt: skip
        total: dict[str, Any] = dict.fromkeys(seen, 0.0)
        last: Any = None
        for event in run.events():
            if isinstance(event, Round):
                last = event
                if event.index:
                    for name, share in traces(run, inputs).items():
                        total[name] = total[name] + share
        losses = torch.cat([marked.loss(fl.predict(marked, last, x), y) for x, y in plain])
        losses = losses.double().clamp(1e-12, 700)
        confidences.append((-losses - torch.log(-torch.expm1(-losses))).numpy())
        for name, value in total.items():
            seen[name].append(value)
    matrix, ratios = np.stack(confidences), []
    for target in range(RUNS):
        others = np.arange(RUNS) != target
        ratios.append(likelihood_ratio(matrix[target], matrix[others], there[others]))
    scores = {"likelihood ratio": np.stack(ratios)}
    if not np.ptp(matrix, axis=0).any():  # FedSA-LoRA: without a B of its own the server's model
        scores["likelihood ratio"][:] = 0.0  # stays as it was, and rounding is no score
    scores |= {name: np.stack(values) for name, values in seen.items()}
    split = {}
    for name, values in scores.items():
        usable = ~np.isnan(values)
        split[name] = (values[there & usable], values[~there & usable])
    return split


def counts(members: np.ndarray, others: np.ndarray, rate: float) -> tuple[int, int, int, int]:
    """Others accused of how many, members found of how many, on the half that set no threshold."""
    fit, held = others[::2], others[1::2]
    threshold = np.quantile(fit, 1 - rate, method="higher")
    found = members[1::2]
    return int((held > threshold).sum()), len(held), int((found > threshold).sum()), len(found)


def accuracy(task: Any, slug: str, privacy: Any, lr: float, seed: int) -> float:
    """Of a run on all examples."""
    plan: Any = PLAN.replace(lr=lr)
    options: dict[str, Any] = {"lora": LORA, "seed": seed, "evaluate_every": PLAN.rounds}
    (last,) = deque(fl.run(task, slug, privacy, plan, **options), maxlen=1)
    return last.metrics["accuracy"]


def tuned(task: Any, slug: str, privacy: Any) -> tuple[float, float]:
    """The rate at which the row ends nearest the accuracy, else its best; and its accuracy."""
    tried: dict[float, float] = {}

    def score(lr: float) -> float:
        tried[lr] = float(np.mean([accuracy(task, slug, privacy, lr, seed) for seed in TUNING]))
        return tried[lr]

    high = next((lr for lr in RATES if score(lr) >= TARGET), None)
    if high is None:
        return max(tried.items(), key=lambda pair: pair[1])
    low = max((lr for lr in RATES if lr < high), default=high / 3)
    for _ in range(HALVINGS):
        if min(abs(x - TARGET) for x in tried.values()) <= NEAR:
            break
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if score(middle) >= TARGET else (middle, high)
    return min(tried.items(), key=lambda pair: abs(pair[1] - TARGET))


def one(
    task: Any, slug: str, privacy: Any, seed: int, lr: float, reached: float
) -> list[dict[str, Any]]:
    """All attacks on one row at one seed, two false positive rates each."""
    plan = PLAN.replace(lr=lr)
    scores = coin_runs(task, slug, privacy, plan, seed)
    loud = audit(task, slug, privacy, plan, canaries=CANARIES, lora=LORA, seed=seed)
    view = loud.scores.get("update", loud.scores.get("loss"))
    assert view is not None and loud.invalid is None, f"{slug}: {loud.invalid}"
    scores["canaries"] = (view[loud.included], view[~loud.included])
    sigma = float(np.max(np.asarray(privacy.noise_multiplier)))
    key = {"method": slug, "seed": seed, "epsilon": EPSILON, "noise_multiplier": sigma, "lr": lr}
    key |= {"tuned": reached}
    return [
        {**key, "attack": attack, "rate": rate}
        | dict(zip(("accused", "others", "found", "members"), counts(*scores[attack], rate)))
        for attack, rate in product(ATTACKS, RATES_OF_ERROR)
    ]


def main() -> None:
    """Fill the file, then say what stands in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed to begin with")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rows", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    began, task = time.monotonic(), the_task()
    asked = {"epsilon": EPSILON, "task": task, "plan": PLAN}
    privacy = fl.Privacy(delta=DELTA).calibrate(**asked)
    sigma = float(np.max(np.asarray(privacy.noise_multiplier)))
    fixed = fl.Privacy(delta=DELTA, noise_multiplier=sigma)
    certified = [
        slug for slug, row in fl.methods.ALL.items()
        if uncertified_reason(row.precondition, row.clip_groups) is None and row.share != ""
    ]  # fmt: skip
    rows = pd.read_csv(given.out).to_dict("records") if given.out.exists() else []
    done = {(row["method"], row["seed"]) for row in rows}
    rates = {row["method"]: (row["lr"], row["tuned"]) for row in rows}
    for seed, slug in product(range(given.first, given.seeds), given.rows or certified):
        if (slug, seed) in done or time.monotonic() - began > 60 * given.minutes:
            continue
        if slug not in rates:
            rates[slug] = tuned(task, slug, fixed)
        rows += one(task, slug, fixed, seed, *rates[slug])
        write_atomically(given.out, pd.DataFrame(rows).to_csv(index=False), shared=True)
        print(f"{slug}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    frame = pd.DataFrame(rows)
    ledger = fl.Ledger(delta=DELTA)
    ledger.record(1, None, PLAN.rounds * PLAN.local_steps, sample_rate=1.0, noise_multiplier=sigma)
    over = fl.audit.attacks_above(frame, ledger.tradeoff)
    print(f"{len(frame)} points, {len(over)} above the curve beyond chance")
    print(over.to_string(index=False) if len(over) else "")


if __name__ == "__main__":
    main()
