"""Find a learning rate for every method on the embedded tasks and write
fedlora_lab/experiments/tuned.json.

    python -m studies.tune digits --work runs/tuning
    python -m studies.tune digits --methods deer-literal   # the other rows stay as they are

Every method tries the same learning rates with the same two seeds, then its three best with two
more; no reported run uses these seeds. It is judged by the mean score after the last round on the
task's validation part. Results are kept one line a run in the work folder, so that an interrupted
search goes on. The search is not private: it looks at many runs on the same private data and no
ledger counts the looks. It fixes a setting for study; on data of your own, tune on public data or
count every look.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab._utils.files import append_line, read_lines, write_atomically
from fedlora_lab.experiments.tuned_rates import FILE
from fedlora_lab.federated.compare import BASELINES, Cell
from fedlora_lab.measures.statistics import headline_measure
from fedlora_lab.report.run_folder import to_json

SEEDS = (1001, 1002)
MORE_SEEDS = (1003, 1004)
FINALISTS = 3
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "plan": {"rounds": 20, "local_steps": 5, "batch": 16},
        "privacy": {"clip_norm": 1.0, "delta": 1e-4},
        "lora": {"rank": 4, "alpha": 8.0},
        "grid": [0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2],
    },
    "regression": {
        "plan": {"rounds": 20, "local_steps": 5, "batch": 16},
        "privacy": {"clip_norm": 1.0, "delta": 1e-4},
        "lora": {"rank": 4, "alpha": 8.0},
        "grid": [0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2],
    },
}
EPSILON = 8.0


def judged_on_validation(task: fl.tasks.Task) -> fl.tasks.Task:
    """The task with its validation part where the test part was; a task without one cannot be
    tuned.
    """
    if task.validation is None:
        raise SystemExit(f"{task.name}: no validation part to tune on")
    return dataclasses.replace(task, test=task.validation, validation=None)


def score(cell: Cell) -> tuple[str, float | None]:
    """Name and last value of the headline measure; ``None`` when it is not finite."""
    frame: Any = cell.frame(cell.run())
    measure = headline_measure(frame)
    last = (
        frame[(frame["layer"] == "all") & (frame["measure"] == measure)]
        .sort_values("round")["value"]
        .iloc[-1]
    )
    return measure, float(last) if math.isfinite(last) else None


def search(name: str, work: Path, slugs: list[str]) -> list[dict[str, Any]]:
    """One entry for each method, learning rate and seed; those in the work folder are not run
    again.
    """
    setting = SETTINGS[name]
    kept_in = work / f"{name}.jsonl"
    task = judged_on_validation(getattr(fl.tasks, name)())
    plan, lora = fl.Plan(**setting["plan"]), fl.Lora(**setting["lora"])
    privacy = fl.Privacy(**setting["privacy"]).calibrate(epsilon=EPSILON, task=task, plan=plan)
    done = {(e["method"], e["lr"], e["seed"]): e for e in read_lines(kept_in)}

    def played(todo: list[tuple[str, float, int]]) -> list[dict[str, Any]]:
        for slug, lr, seed in tqdm(
            [key for key in todo if key not in done], unit="run", mininterval=10
        ):
            measure, value = score(
                Cell.from_name(slug, task, privacy, plan.replace(lr=lr), lora, seed)
            )
            entry = {"method": slug, "lr": lr, "seed": seed, "measure": measure, "score": value}
            append_line(kept_in, entry)
            done[slug, lr, seed] = entry
        return [done[key] for key in todo]

    entries = played(
        [(slug, lr, seed) for slug in slugs for lr in setting["grid"] for seed in SEEDS]
    )
    rates = {
        slug: ranked([e for e in entries if e["method"] == slug])[:FINALISTS] for slug in slugs
    }
    return entries + played(
        [(slug, lr, seed) for slug in slugs for lr in rates[slug] for seed in MORE_SEEDS]
    )


def means(entries: list[dict[str, Any]]) -> dict[float, float | None]:
    """Mean score of each learning rate of one method; ``None`` where a run diverged."""
    rates: dict[float, list[float | None]] = {}
    for entry in entries:
        rates.setdefault(entry["lr"], []).append(entry["score"])
    return {
        lr: None if None in v else round(fmean(x for x in v if x is not None), 5)
        for lr, v in rates.items()
    }


def ranked(entries: list[dict[str, Any]]) -> list[float]:
    """Learning rates of one method that never diverged, best mean first."""
    sign = -1 if entries[0]["measure"] == "loss" else 1
    scores = {lr: value for lr, value in means(entries).items() if value is not None}
    return sorted(scores, key=lambda lr: -sign * scores[lr])


def choose(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """For each method the learning rate with the best mean over all seeds, among those that all
    seeds tried.
    """
    chosen = {}
    for slug in dict.fromkeys(entry["method"] for entry in entries):
        mine = [entry for entry in entries if entry["method"] == slug]
        finalists = {entry["lr"] for entry in mine if entry["seed"] in MORE_SEEDS}
        last = [entry for entry in mine if entry["lr"] in finalists]
        parts = {"grid": [entry for entry in mine if entry["seed"] in SEEDS], "finalists": last}
        scores = {
            part: {str(lr): mean for lr, mean in means(some).items()}
            for part, some in parts.items()
        }
        chosen[slug] = {"lr": ranked(last)[0], **scores}
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=sorted(SETTINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/tuning"))
    known = [*fl.methods.ALL, *(b for b in BASELINES if b not in fl.methods.ALL)]
    parser.add_argument("--methods", nargs="+", choices=known, metavar="SLUG", help="only these")
    arguments = parser.parse_args()
    entries = search(arguments.task, arguments.work, arguments.methods or known)
    setting = {k: v for k, v in SETTINGS[arguments.task].items() if k != "grid"}
    setting |= {
        "epsilon": EPSILON,
        "seeds": [*SEEDS, *MORE_SEEDS],
        "judged_on": "validation",
        "measure": entries[0]["measure"],
    }
    table = json.loads(FILE.read_text()) if FILE.exists() else {}
    chosen = choose(entries)
    kept = table[arguments.task]["methods"] if arguments.methods else {}
    if kept and to_json(table[arguments.task]["setting"]) != to_json(setting):
        raise SystemExit(f"{FILE.name}: {arguments.task} was tuned in another setting")
    table[arguments.task] = {"setting": setting, "methods": kept | chosen}
    write_atomically(FILE, to_json(dict(sorted(table.items()))), shared=True)
    for slug, found in chosen.items():
        rates = list(found["grid"])
        edge = " (at the edge of the grid)" if str(found["lr"]) in (rates[0], rates[-1]) else ""
        print(f"{slug:<20} lr {found['lr']:<7g} {found['finalists'][str(found['lr'])]}{edge}")


if __name__ == "__main__":
    main()
