"""Run the largest cells of the studies on one GPU in bfloat16, beside what the processor measured.

    python scripts/gpu_studies.py --estimate
    python scripts/gpu_studies.py --minutes 40 --workers 12

A case that the processor has tuned (results/runs/NAME.jsonl) is reported at the setting chosen
there, with the same seeds, so that differences are between pairs; any other case is tuned here as
its study says. Every cell gets its first five seeds before any cell gets the others. Lines,
settings and comparison go to results/runs/DEVICE-PRODUCTS/, never among the processor's; the same
command goes on from there. `sentiment-wide` adapts all six layers at rank 16: the processor has no
line of it.

A machine without a network needs a FEDLORA_LAB_CACHE in which `fl.tasks.sentiment()` and
`fl.tasks.mnist()` have put their files.
"""

import argparse
import math
import platform
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from fedlora_lab import methods
from fedlora_lab._utils.files import lock_folder, parse_json, write_atomically
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.experiments import STUDIES
from fedlora_lab.experiments.runner import (
    PACKAGES,
    Done,
    OutOfTime,
    best_setting,
    finish_study,
    load_results,
    worker_pool,
)
from fedlora_lab.experiments.studies import Case, Study
from fedlora_lab.federated.compute import PRODUCTS, Compute
from fedlora_lab.measures.statistics import t_interval
from fedlora_lab.report.run_folder import to_json
from fedlora_lab.report.summary_table import format_number, markdown_table

RESULTS = Path(__file__).resolve().parent.parent / "results"
FIRST_SEEDS = 5
RESERVE = 0.02
"""Share of the time that is kept to end the processes and write the comparison."""


def wide_sentiment() -> Study:
    """Query and value of all six layers at rank 16, with and without privacy."""
    slugs = "fedlora", "ffa-lora", "rolora", "la-lora", "balanced-lora"
    plan, own = {"rounds": 5, "local_steps": 5, "batch": 32}, {"clip_norm": 1.0, "delta": 1e-5}
    parts: Any = own, plan, {"rank": 16, "alpha": 32.0}
    cases = [
        Case(methods.get(slug), {"epsilon": e}, ("sentiment", {}), e, *parts)
        for e in (8.0, None)
        for slug in slugs
    ]
    how: dict[str, Any] = {"rates": (0.05, 0.2, 0.8, 3.2), "tune_seeds": (1001, 1002)}
    how |= {"finalists": 2, "extends": True}
    return Study("sentiment-wide", "texts, all layers, rank 16", tuple(cases), **how)


class Part(NamedTuple):
    """Cells of a study at some budgets, and what a run is assumed to take."""

    study: Study
    budgets: tuple[float | None, ...]
    # Seconds of a run on one processor core where no line tells, and by how much one of the
    # processes on the GPU is assumed to be faster: small models wait for the next kernel, which a
    # processor core launches; only wide ones gain.
    seconds: float
    faster: float


def parts() -> list[Part]:
    """What is run, in the order in which a reader wants it: what the processor cannot do first,
    then the middle budget of every large study, then the others."""
    mnist = [STUDIES[name] for name in ("mnist-client", "mnist-example")]
    client, sentiment = STUDIES["digits-client"], STUDIES["sentiment"]
    return [
        Part(wide_sentiment(), (8.0, None), 24, 4),
        *(Part(study, (8.0,), 20, 1) for study in mnist),
        Part(client, (8.0,), 12, 1),
        Part(sentiment, (8.0,), 26, 4),
        *(Part(study, (3.0,), 20, 1) for study in mnist),
        Part(client, (3.0, 20.0), 12, 1),
        Part(sentiment, (1.0, 3.0, None), 26, 4),
    ]


def on_device(part: Part, compute: dict[str, Any], seeds: int | None) -> Study:
    """The part as a study of its own: same keys, since switches of speed are no part of them."""
    cases = [case for case in part.study.cases if case.epsilon in part.budgets]
    cases = tuple(replace(case, compute={**case.compute, **compute}) for case in cases)
    return replace(part.study, cases=cases, seeds=part.study.seeds[:seeds])


def passes(chosen: list[Part], compute: dict[str, Any]) -> Iterator[tuple[Part, Study]]:
    """Every part with its first seeds, then every part with all."""
    for seeds in (FIRST_SEEDS, None):
        yield from ((part, on_device(part, compute, seeds)) for part in chosen)


def device_name(device: str) -> str:
    """What the device is called; of a processor the kind alone."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.device(device).type} {platform.machine()}"


def settings(device: str, products: str, workers: int) -> dict[str, Any]:
    """What the lines of a folder were made with."""
    return {
        "device": device_name(device),
        "products": products,
        "chunk_examples": "auto",
        "workers": workers,
        "cuda": torch.version.cuda,
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
    }


def require_same(path: Path, now: dict[str, Any]) -> None:
    """Raises ``ValueError`` where the lines in the folder were made with another torch."""
    if path.is_file():
        before = parse_json(path.read_bytes(), path.name)["versions"]["torch"]
        found = now["versions"]["torch"]
        check(found == before, "torch", found, f"{before}, as the lines in {path.parent.name}")


def processor_lines(study: Study, folder: Path) -> Done:
    """What the processor measured of a study."""
    return load_results(folder / "runs" / f"{study.name}.jsonl")


def comparison(chosen: list[Part], here: Path, folder: Path) -> pd.DataFrame:
    """One row for each case: how many seeds, mean accuracy here and on the processor over the same
    seeds, and the mean of the differences with its 95 % half-width.

    Args: chosen: the parts. here: the device's lines. folder: of the results.
    """
    rows = []
    for part in chosen:
        measured, tuned = load_results(here / f"{part.study.name}.jsonl"), {}
        tuned = processor_lines(part.study, folder)
        for case in on_device(part, {}, None).cases:
            setting = best_setting(part.study, case, tuned)
            there = setting is not None
            setting = setting or best_setting(part.study, case, measured)
            jobs = [] if setting is None else part.study.report_jobs(case, setting)
            keys = [job.key for job in jobs if job.key in measured]
            row = {"study": part.study.name, "epsilon": case.epsilon, "method": case.method.slug}
            row |= {"seeds": len(keys), "tuned": "processor" if there else "here"}
            row["here"] = t_interval(_accuracies(measured, keys))[0]
            keys = [key for key in keys if key in tuned]
            row["processor"] = t_interval(_accuracies(tuned, keys))[0]
            gap, half = t_interval(_accuracies(measured, keys) - _accuracies(tuned, keys))
            rows.append(row | {"difference": gap, "interval": half})
    return pd.DataFrame(rows)


def _accuracies(lines: Done, keys: list[str]) -> np.ndarray:
    """Of a run that diverged, or has no accuracy, NaN."""
    return np.array([lines[key]["values"].get("accuracy") for key in keys], dtype=float)


def table(frame: pd.DataFrame) -> str:
    """The comparison in words."""
    rows: list[tuple[str, ...]] = [
        ("study", "ε", "method", "seeds", "tuned", "here", "processor", "difference")
    ]
    for row in frame[frame["seeds"] > 0].to_dict("records"):
        gap = "–"
        if not math.isnan(row["difference"]):
            gap = f"{row['difference']:+.4f} ± {format_number(row['interval'], 4)}"
        budget = "none" if pd.isna(row["epsilon"]) else f"{row['epsilon']:g}"
        means = (format_number(row[name], 4) for name in ("here", "processor"))
        names = row["study"], budget, row["method"], str(row["seeds"]), row["tuned"]
        rows.append((*names, *means, gap))
    return markdown_table(rows)


def estimate(chosen: list[Part], folder: Path, workers: int) -> str:
    """How the time of a first call would be used: runs, what the processor took for one, and
    minutes by what each part assumes."""
    rows: list[tuple[str, ...]] = [
        ("study", "ε", "seeds", "runs", "s on a core", "assumed faster", "minutes", "in all")
    ]
    planned, whole = set[tuple[str, int]](), 0.0
    for part, study in passes(chosen, {}):
        tuned = processor_lines(study, folder)
        before = len(planned)
        for case in study.cases:
            there = best_setting(study, case, tuned) is not None
            runs = (0 if there else study.tries) + len(study.seeds)
            planned |= {(case.key, i) for i in range(runs)}
        left = len(planned) - before
        own = [x["values"].get("seconds") or math.nan for x in tuned.values()]
        each = float(pd.Series(own, dtype=float).median()) if own else part.seconds
        minutes = left * each / part.faster / workers / 60
        whole += minutes
        budgets = ", ".join("none" if e is None else f"{e:g}" for e in part.budgets)
        size = str(len(study.seeds)), str(left)
        numbers = (
            f"{each:.1f}{'' if own else ' (assumed)'}",
            f"{part.faster:g}",
            f"{minutes:.1f}",
            f"{whole:.1f}",
        )
        rows.append((study.name, budgets, *size, *numbers))
    return markdown_table(rows)


def run_all(
    chosen: list[Part],
    *,
    device: str,
    products: str = "bfloat16",
    minutes: float = 40.0,
    workers: int = 12,
    folder: Path = RESULTS,
) -> Path:
    """Runs what is missing until all is done or the time is over; the folder of the lines.

    Args:
        chosen: what is run, in order.
        device, products: see `fedlora_lab.federated.compute.Compute`.
        minutes: all of it, with the start of the processes and the comparison.
        workers: processes on the one device; 0: this one.
        folder: of the results.
    """
    begun = monotonic()
    check_number("minutes", minutes, 0, open_low=True)
    check_whole("workers", workers)
    compute = {"device": device, "products": products, "chunk_examples": "auto"}
    Compute(**compute)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{device_name(device)} {products}".lower())
    here, now = folder / "runs" / slug, settings(device, products, workers)
    until = begun + 60 * minutes * (1 - RESERVE)
    with lock_folder(here):
        require_same(here / "settings.json", now)
        write_atomically(here / "settings.json", to_json(now), shared=True)
        bar = tqdm(unit="run", mininterval=5)
        with suppress(OutOfTime), bar, worker_pool(workers, until) as run:
            for _, study in passes(chosen, compute):
                bar.set_description(f"{study.name}, {len(study.seeds)} seeds")
                how: Any = {"size": 4 * max(workers, 1), "tuned": processor_lines(study, folder)}
                path = here / f"{study.name}.jsonl"
                try:
                    finish_study(study, path, run, shown=bar.update, **how)
                except (RuntimeError, ValueError, TypeError, OSError) as error:
                    # One failure, such as of memory, does not cost the rest of the time.
                    words = f"{type(error).__name__}: {error}".splitlines()[0]
                    tqdm.write(f"{study.name} was given up for now: {words}")
        frame = comparison(chosen, here, folder)
        content = frame.to_csv(index=False, float_format="%.6g")
        write_atomically(here / "comparison.csv", content, shared=True)
    lines = sum(len(load_results(path)) for path in here.glob("*.jsonl"))
    reported = sum(len(on_device(part, {}, None).cases) * len(part.study.seeds) for part in chosen)
    print(table(frame))
    print(f"\n{now['device']}, torch {now['versions']['torch']}, {products}: ", end="")
    print(
        f"{frame['seeds'].sum()} of {reported} reported runs, {lines} with those that tune, ",
        end="",
    )
    print(f"{(monotonic() - begun) / 60:.1f} of {minutes:g} minutes; lines in {here}")
    return here


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="such as cuda or cuda:1")
    parser.add_argument("--products", default="bfloat16", choices=PRODUCTS)
    parser.add_argument("--minutes", default=40.0, type=float, help="in all")
    parser.add_argument("--workers", default=12, type=int, help="processes on the device")
    parser.add_argument("--estimate", action="store_true", help="say how the time would be used")
    given = vars(parser.parse_args())
    if given.pop("estimate"):
        print(estimate(parts(), RESULTS, max(given["workers"], 1)))
    else:
        run_all(parts(), **given)
