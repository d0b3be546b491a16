"""Compare correlated with independent noise at equal epsilon; write results/correlated*.csv.

    python scripts/correlated_noise.py --predict      noise of every case, from closed forms alone
    python scripts/correlated_noise.py                the runs; goes on where it was stopped

Four clients with 314 whole scans each, every example protected, 100 local steps in 20 rounds of 5,
batches of 13, so that 25 steps see every example once. A small network of random weights has
adapters on both layers ("scans"); the vision transformer of `fl.tasks.digits` is the check
("digits"). Every case tries the same learning rates, on validation data and seeds of their own; the
test score after the last round is kept for each reported seed.

The prediction is of the noise in the sum of a factor's steps, per step and client, as a multiple of
independent noise's; nothing but this file's settings enters it.

A later study on the transformer ("correlated-matched") has strategies that are optimised for
training that forgets, and tunes the clip norm too. Its prediction is of the noise in a run that
retains a share of what it has at each step, averaged over the steps.
"""

import argparse
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from fedlora_lab import methods, tasks, theory
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check
from fedlora_lab.experiments.runner import best_setting, load_results, run_study, study_frame
from fedlora_lab.experiments.studies import Case, Stage, Study
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.config import Correlated

OUT = Path(__file__).resolve().parent.parent / "results"
ROWS, BUDGETS, EXAMPLES = ("fedlora", "ffa-lora", "rolora"), (1.0, 3.0, 8.0, 20.0), 314
PLAN: dict[str, Any] = {"rounds": 20, "local_steps": 5, "batch": 13}
LARGER, WHOLE = {"local_steps": 1, "batch": 65}, {"local_steps": 1, "batch": None}
CLIP: dict[str, Any] = {"clip_norm": 1.0, "delta": 1e-4}
TASKS: dict[str, Any] = {
    "scans": (("scans", {"clients": 4}), {"rank": 8, "alpha": 16.0}),
    "digits": (("digits", {"clients": 4, "alpha": None, "seed": 0}), {"rank": 4, "alpha": 8.0}),
}
GROUPS = {"strategy": "banded", "bands": 25}


def scans(clients: int = 4) -> Any:
    """Real scans, 64 pixels in a row, for a network of random weights with two adapted layers."""
    task = tasks.digits(clients=clients, alpha=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    parts: Any = {"test": task.test, "validation": task.validation, "labels": task.labels}
    return tasks.classification(model, task.clients, targets=["1", "3"], name="scans", **parts)


def drawn(slug: str) -> dict[str, Any]:
    """Four bands, groups as few as the amplification theorem allows for the row's schedule."""
    cycle = 9 if slug == "rolora" else 4
    return {"strategy": "banded", "bands": 4, "sampling": "poisson", "cycle": cycle}


def case(
    slug: str, label: str, e: float | None, noise: Any = None, task: str = "scans", **plan: Any
) -> Case:
    """One row under one kind of noise."""
    own = {} if e is None else CLIP | ({} if noise is None else {"noise": noise})
    labels, (where, adapter) = {"task": task, "noise": label, "epsilon": e}, TASKS[task]
    return Case(methods.get(slug), labels, where, e, own, PLAN | plan, adapter)


def studies() -> tuple[Study, Study]:
    """The whole comparison on the small network; a few of its cases on the transformer."""
    cases = [case(slug, "independent", e) for e in (8.0, 3.0, 20.0, 1.0, None) for slug in ROWS]
    cases += [case(s, "banded fixed", e, GROUPS) for e in (8.0, 3.0, 20.0, 1.0) for s in ROWS]
    # Every example in every step: no matrix can be ahead of independent noise.
    cases.append(case("fedlora", "whole batches", 8.0, **WHOLE))
    few = {"strategy": "banded", "bands": 4}
    cases.append(case("fedlora", "whole batches banded", 8.0, few, **WHOLE))
    cases += [case(s, "larger batches", e, **LARGER) for e in BUDGETS for s in ROWS]
    turns = ("fedlora", "rolora")
    cases += [case(s, "banded drawn", e, drawn(s)) for e in (8.0, 20.0) for s in turns]
    cases.append(case("fedlora", "banded drawn", 3.0, drawn("fedlora")))
    how: dict[str, Any] = {"rates": (0.08, 0.16, 0.32, 0.64, 1.28, 2.56), "extends": True}
    how |= {"tune_seeds": (1001, 1002, 1003), "finalists": 2}
    main = Study("correlated", "noise at equal ε", tuple(cases), seeds=tuple(range(12)), **how)
    both = (("independent", None), ("banded fixed", GROUPS))
    check = [case(s, label, 8.0, n, "digits") for s in ("fedlora", "rolora") for label, n in both]
    how |= {"rates": (0.16, 0.32, 0.64, 1.28), "tune_seeds": (1001,), "finalists": 1}
    return main, Study(
        "correlated-digits", "the check", tuple(check), seeds=tuple(range(10)), **how
    )


def matched(slug: str) -> dict[str, Any]:
    """Kinds of noise by their names; the number is the retention that they are the best for."""
    kinds: dict[str, Any] = {"independent": None}
    for kept in (1.0, 0.9, 0.7):
        kinds[f"banded drawn {kept:g}"] = drawn(slug) | {"retention": kept}
    kinds["one step 0.9"] = {"strategy": "one-step", "retention": 0.9}
    kinds["blt 0.9"] = {"strategy": "blt", "retention": 0.9}
    return kinds | {"square root": {"strategy": "square-root"}}


def matched_study() -> Study:
    """Noise that fades as training forgets, on the transformer: rates and clip norms tuned."""
    cases = [
        case(slug, label, e, noise, "digits")
        for e in (8.0, 20.0)
        for slug in ROWS
        for label, noise in matched(slug).items()
    ]
    few = "independent", "banded drawn 1", "banded drawn 0.9"
    cases += [case(s, label, 3.0, matched(s)[label], "digits") for s in ROWS for label in few]
    how: dict[str, Any] = {"rates": (0.16, 0.32, 0.64, 1.28), "extends": True, "finalists": 2}
    how |= {"stages": (Stage("clip", (0.4, 2.5), 1),), "tune_seeds": (1001, 1002)}
    note = "noise at equal ε, fading as training forgets"
    return Study("correlated-matched", note, tuple(cases), seeds=tuple(range(12)), **how)


def confirming_study(path: Path) -> Study:
    """A BLT that fades beside independent noise, at the settings chosen before, on fresh seeds.

    Args: path: runs of `matched_study`, all of them.
    """
    earlier, done = matched_study(), load_results(path)
    kinds = "independent", "blt 0.9"
    cases = [one for one in earlier.cases if dict(one.labels)["noise"] in kinds]
    cases = [one for one in cases if one.epsilon != 3.0]
    found = {one.key: best_setting(earlier, one, done) for one in cases}
    settings = {key: setting for key, setting in found.items() if setting is not None}
    check(len(settings) == len(cases), "path", str(path), f"all runs of {earlier.name}")
    note = "noise at equal ε, fading as training forgets, at given settings"
    seeds = tuple(range(100, 120))
    return Study("correlated-confirmed", note, tuple(cases), seeds=seeds, settings=settings)


def noise_level(one: Case, retention: float | None = None) -> float:
    """Standard deviation of one client's noise in the sum of a factor's steps, per step, in C.

    Args:
        one: a private case.
        retention: what a step leaves of the sum so far: the root mean square over the steps then,
            and not the last.
    """
    plan, noise = {**one.plan}, one.privacy.get("noise")
    steps = product(range(plan["rounds"]), range(plan["local_steps"]))
    sides = [one.method.sides_at_step(t, s) for t, s in steps]
    moves = tuple("".join("01"[side == "*" or key in side] for side in sides) for key in "AB")
    own = max(text.count("1") for text in moves)
    batch, spent = plan["batch"] or EXAMPLES, (float(one.epsilon or math.inf), CLIP["delta"])

    def in_the_sum(c: np.ndarray) -> float:
        errors = theory.prefix_error(c, own, 1.0 if retention is None else retention)
        return math.sqrt(errors[-1] if retention is None else errors.mean()) / batch / own

    if noise is None:
        sigma = accounting.noise_multiplier(*spent, batch / EXAMPLES, len(sides))
        return sigma * in_the_sum(np.ones(1))
    kind = Correlated(**noise)
    stream = kind.stream(moves, kind.cycles((EXAMPLES,), plan["batch"]))
    (rate,) = kind.rates((EXAMPLES,), plan["batch"])
    scales = np.array(stream.scales)
    if stream.decays is None:
        c = np.concatenate([[1.0], scales])
    else:
        c = theory.buffered_coefficients(scales, np.array(stream.decays), own)
    sigma = accounting.noise_multiplier(*spent, rate, kind.releases(len(sides)))
    return sigma * stream.sensitivity[0] * in_the_sum(c)


def prediction() -> pd.DataFrame:
    """Noise of every private case of the small network over independent noise's."""
    rows = [
        {"method": one.method.slug, **one.labels, "final_noise": noise_level(one)}
        for one in studies()[0].cases
        if one.epsilon is not None
    ]
    frame = pd.DataFrame(rows)
    same = frame[frame["noise"] == "independent"].set_index(["method", "epsilon"])["final_noise"]
    keys = pd.MultiIndex.from_frame(frame[["method", "epsilon"]])
    return frame.assign(ratio=frame["final_noise"].to_numpy() / same.loc[keys].to_numpy())


FILES = {
    "correlated.csv": ("correlated", "correlated-digits"),
    "correlated-matched.csv": ("correlated-matched", "correlated-confirmed"),
}
"""Frame -> the studies whose runs it holds."""


def declared(name: str, matched_runs: Path) -> Study:
    """The study of this name; the last takes its settings from the runs of the one before."""
    if name == "correlated-confirmed":
        return confirming_study(matched_runs)
    return next(study for study in (*studies(), matched_study()) if study.name == name)


def matched_prediction() -> pd.DataFrame:
    """Noise of the later study over independent noise's, for what training may retain a step."""
    retained = (0.5, 0.8, 0.9, 0.95, 1.0)
    rows = []
    for one in matched_study().cases:
        alone = case(one.method.slug, "independent", one.epsilon, None, "digits")
        ratios = {f"{a:g}": noise_level(one, a) / noise_level(alone, a) for a in retained}
        rows.append({"method": one.method.slug, **one.labels, **ratios})
    return pd.DataFrame(rows)


def main() -> None:
    """Write the prediction, or run what is missing and write the frame."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    tasks.register("scans", scans)
    if given.predict:
        for name, frame in (("", prediction()), ("-matched", matched_prediction())):
            path = given.out / f"correlated{name}-prediction.csv"
            if not path.exists():  # what was predicted before the runs stays as it is
                text = frame.to_csv(index=False, float_format="%.4f")
                write_atomically(path, text, shared=True)
        return
    runs = given.out / "runs"
    for file, names in FILES.items():
        frames = []
        for name in names:
            study = declared(name, runs / "correlated-matched.jsonl")
            run_study(study, runs / f"{name}.jsonl", workers=0)
            frames.append(study_frame(study, runs / f"{name}.jsonl"))
            text = pd.concat(frames).to_csv(index=False, float_format="%.6g")
            write_atomically(given.out / file, text, shared=True)


if __name__ == "__main__":
    main()
