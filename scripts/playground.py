"""Make the tables of the playground, and count over seeds whether its stories are true.

    python scripts/playground.py runs       writes results/playground.csv, by training in the page
    python scripts/playground.py tables     writes fedlora_course/playground/tables.json
    python scripts/playground.py page       writes docs/playground.html, to be opened as a file

The tables hold what the page cannot compute for itself: the digits and who owns them, the weights
of a small network that was taught printed digits, the rows of the methods, the noise multipliers
and the spent epsilon of every setting as the accountant states them, and of how many seeds each
story is true. The runs take half an hour and need Chromium.
"""

import argparse
import base64
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from page_blocks import describe_schedule
from pretrain import printed, seed_of
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_course import playground
from fedlora_course.drawing import on_screen
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.methods.filters import identity
from fedlora_lab.methods.quantization import full, normal_levels
from fedlora_lab.plots.style import look
from fedlora_lab.privacy.ledger import per_client
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.digits import SMALLEST_CLIENT, TEST, VALIDATION, handwritten_digits
from fedlora_lab.tasks.task import Task

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests" / "helpers")]  # whose browser is used
RUNS = ROOT / "results" / "playground.csv"
PAGE = ROOT / "docs" / "playground.html"
TABLES = playground.HERE / "tables.json"
SIZE, DELTA, SCALING = 64, 1e-4, 2.0
CLIENTS, STEPS = (5, 10, 20), (1, 2, 4)
PLAN = fl.Plan(rounds=60, batch=8, lr=1.0)
METHODS = ("fedlora", "ffa-lora", "rolora", "la-lora", "fedex-lora", "fedlpp")
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
LIKENESS = {"alike": None, "rather alike": 2.0, "unlike": 0.5, "very unlike": 0.1}
"""Words -> concentration of the Dirichlet split, see `fl.tasks.digits`."""
BITS = (1, 2, 3, 4)
HELP = {
    "B": (
        "B is the left factor of the adapter: 64 rows, r columns. It starts at zero.",
        "01_what_does_lora_change",
    ),
    "A": (
        "A is the right factor: r rows, 64 columns. It starts at random, and FFA-LoRA leaves it "
        "so.",
        "05_what_if_a_never_moves",
    ),
    "ε": (
        "ε bounds what the uploads tell about one digit. A smaller ε hides more and needs more "
        "noise.",
        "03_what_is_promised",
    ),
    "C": (
        "C is the largest length that one digit's gradient may have: longer ones are cut. The "
        "noise grows with C.",
        "03_what_is_promised",
    ),
    "r": (
        "r is the rank: B has r columns and A has r rows. A larger r can learn more and takes up "
        "more noise.",
        "01_what_does_lora_change",
    ),
}
"""Symbol -> what it means, and the lesson on it."""
STORIES: list[dict[str, Any]] = [
    {
        "title": "Four times the rate",
        "acts": [
            {
                "set": {"methods": ["fedlora", "ffa-lora"], "rate": 6},
                "say": "A learning rate of 0.4: FedLoRA, which moves both factors, is ahead",
                "true": lambda one, two, _: one.accuracy > two.accuracy,
            },
            {
                "set": {"methods": ["fedlora", "ffa-lora"], "rate": 10},
                "say": "Four times that rate, the same ε: FedLoRA loses at least ten points of "
                "what it reached, FFA-LoRA stays within five",
                "true": lambda one, two, before: (
                    (one.accuracy < before[0].accuracy - 0.1)
                    & (two.accuracy > before[1].accuracy - 0.05)
                ),
            },
            {
                "set": {"methods": ["fedlora", "ffa-lora"], "rate": 6, "noise": 1},
                "say": "The first rate again, at ε = 1: FedLoRA ends more than 20 points below "
                "where it began, FFA-LoRA does not",
                "true": lambda one, two, _: (
                    (one.accuracy < one.start - 0.2) & (two.accuracy > two.start - 0.2)
                ),
            },
        ],
    },
    {
        "title": "A and B take turns",
        "acts": [
            {
                "set": {"methods": ["fedlora", "la-lora"], "rate": 6},
                "say": "A learning rate of 0.4: LA-LoRA, which moves one factor at a time, learns "
                "more slowly",
                "true": lambda one, two, _: one.accuracy > two.accuracy,
            },
            {
                "set": {"methods": ["fedlora", "la-lora"], "rate": 10},
                "say": "Four times that rate: LA-LoRA, which also filters the noise, is ahead by "
                "at least five points",
                "true": lambda one, two, _: two.accuracy > one.accuracy + 0.05,
            },
            {
                "set": {"methods": ["rolora", "la-lora"], "rate": 10},
                "say": "RoLoRA takes turns too, from round to round and without a filter: it is "
                "behind LA-LoRA",
                "true": lambda one, two, _: one.accuracy < two.accuracy,
            },
        ],
    },
    {
        "title": "Two bits a number: FedLPP",
        "acts": [
            {
                "set": {"methods": ["fedlora", "fedlpp"], "rate": 6, "noise": 6},
                "say": "FedLPP's clients receive two bits of each number, here without noise: the "
                "copy that they see reads within ten points of FedLoRA",
                "true": lambda one, two, _: two.received > one.accuracy - 0.1,
            },
            {
                "set": {"methods": ["fedlora", "fedlpp"], "rate": 10, "noise": 6},
                "say": "Four times the rate: FedLoRA gains, FedLPP's server ends lower than "
                "before. Its numbers only steer the copies, which read "
                "{two.received:.0%} and the server {two.accuracy:.0%}, the means of 20 seeds",
                "true": lambda one, two, before: (
                    (one.accuracy > before[0].accuracy) & (two.accuracy < before[1].accuracy)
                ),
            },
        ],
    },
]
"""What each act sets, as places of the sliders, beside the standard setting; what it says; and
whether that is true of the runs of both methods, given those of the act before."""


# ---- the digits


def split_digits() -> tuple[Tensor, Tensor]:
    """Places of the clients' scans and of the test scans, as the task `digits` has them."""
    _, y = handwritten_digits()
    order = torch.from_numpy(Streams(0).numpy("digits split").permutation(len(y)))
    test, _, private = order.split([TEST, VALIDATION, len(y) - TEST - VALIDATION])
    return private, test


def letters(values: Tensor) -> str:
    """A letter for each whole number from 0 to 16: half as long as base64, and read in one line."""
    return bytes((65 + values.flatten()).to(torch.uint8).tolist()).decode()


def scans(places: Tensor) -> dict[str, str]:
    x, y = handwritten_digits()
    return {"pixels": letters((16 * x[places]).round()), "labels": letters(y[places])}


def owners(alpha: float | None, clients: int) -> Tensor:
    """The client of each private scan."""
    private, _ = split_digits()
    _, y = handwritten_digits()
    owner = torch.zeros(len(private), dtype=torch.int64)
    for k, part in enumerate(partition.dirichlet(y[private], clients, alpha, 0, SMALLEST_CLIENT)):
        owner[torch.from_numpy(part)] = k
    return owner


# ---- the network


def network() -> nn.Sequential:
    """64 pixels, 64 hidden units, ten classes; the first of its two maps gets the adapter."""
    return nn.Sequential(nn.Linear(SIZE, SIZE), nn.Tanh(), nn.Linear(SIZE, 10))


def pretrain() -> nn.Sequential:
    """Trains it on printed digits only, as scripts/pretrain.py trains the course's transformer."""
    torch.set_num_threads(1)
    epochs = 12
    batch = 128
    x, y = printed(20_000, "examples")
    # Twice the usual pixels: their mean square is one, as the theory of the output's noise has it.
    x = 2 * x.flatten(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of("playground start"))
        model = network()
    order = torch.Generator().manual_seed(seed_of("playground order"))
    noise = torch.Generator().manual_seed(seed_of("playground pixels"))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=order).split(batch):
            images = x[chosen] + 0.4 * torch.randn(len(chosen), SIZE, generator=noise)
            outputs = model[0](images)
            loss = F.cross_entropy(model[1:](outputs), y[chosen], label_smoothing=0.1)
            # The layer's own outputs have mean square one: what noise adds is read beside that.
            loss = loss + (outputs.square().mean() - 1) ** 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def packed(model: nn.Module) -> str:
    """All weights as float32, one after the other, in base64."""
    numbers = torch.cat([x.detach().flatten() for x in model.state_dict().values()])
    return base64.b64encode(numbers.numpy().astype("<f4").tobytes()).decode()


# ---- what the library says


def method_row(slug: str) -> dict[str, Any]:
    """What the page needs of a row of the table of methods."""
    row: Any = fl.methods.get(slug)  # Any: that of its rules which have settings
    filtered = row.filter is not identity
    taps = row.filter.taps if filtered else 1
    light, dark = on_screen(look(slug).colour)
    return {
        "slug": slug,
        "name": row.name,
        "light": light,
        "dark": dark,
        "moves": moves_of(row),
        "rounds": list(row.schedule.rounds),
        "filter": [math.comb(taps - 1, i) / 2 ** (taps - 1) for i in range(taps)],
        "residual": "W" in getattr(row.aggregate, "writes", ()),
        "quantised": row.broadcast is not full,
    }


def moves_of(row: Any) -> str:
    """What the method trains, and what else it does, in words."""
    schedule = describe_schedule({"schedule": "|".join(row.schedule.rounds)})
    schedule += " alone" if schedule in ("A", "B") else ""
    more = [
        (row.filter is not identity, "filters the noise"),
        ("W" in getattr(row.aggregate, "writes", ()), "the server adds what averaging misses"),
        (row.broadcast is not full, "clients receive few bits"),
    ]
    return "; ".join([schedule, *(words for holds, words in more if holds)])


def sized(sizes: list[int]) -> Task:
    """A task of these sizes: the accountant asks for nothing else."""
    zeros = [(torch.zeros(n, SIZE), torch.zeros(n, dtype=torch.int64)) for n in sizes]
    return fl.tasks.classification(network(), zeros, test=zeros[0], targets=["0"])


def noise_table(sizes: list[int], steps: int) -> list[dict[str, Any]]:
    """For every epsilon each client's sigma, and what is spent after 0, 1, 2, ... rounds."""
    task, plan = sized(sizes), PLAN.replace(local_steps=steps)
    rows = []
    for epsilon in EPSILONS:
        privacy = fl.Privacy(delta=DELTA).calibrate(epsilon=epsilon, task=task, plan=plan)
        sigma = list(per_client(privacy.noise_multiplier or 0.0, len(sizes)))
        spent = [0.0]
        for t in range(1, PLAN.rounds + 1):
            ledger = privacy.ledger(releases=t * steps)
            spent.append(float(round_up(ledger.epsilon(), ".3g")))
        rows.append({"epsilon": epsilon, "sigma": sigma, "spent": spent})
    return rows


def settings() -> dict[str, Any]:
    """The part of the tables for which nothing is trained or accounted."""
    private, test = split_digits()
    return {
        "rounds": PLAN.rounds,
        "clients": list(CLIENTS),
        "steps": list(STEPS),
        "batch": PLAN.batch,
        "delta": DELTA,
        "scaling": SCALING,
        "methods": [method_row(slug) for slug in METHODS],
        "levels": {bits: list(normal_levels(bits)) for bits in BITS},
        "splits": [
            {"words": words, "owners": [letters(owners(alpha, count)) for count in CLIENTS]}
            for words, alpha in LIKENESS.items()
        ],
        "help": {symbol: {"say": say, "lesson": lesson} for symbol, (say, lesson) in HELP.items()},
        "private": scans(private),
        "test": scans(test),
    }


# ---- the stories, and of how many seeds they are true

SEEDS = range(100, 120)
"""None of them is the seed that the page begins with."""
RATES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)
RUN = ["method", "epsilon", "rate", "bits", "seed"]
FINAL = """(settings, seeds) => seeds.map(seed => {
    const run = new pg.Run(pg.problem, {...settings, seed});
    while (run.round < pg.problem.rounds) run.roundAtOnce();
    const scores = run.history.map(record => record.accuracy);
    const {accuracy, received} = run.history.at(-1);
    return [seed, accuracy, received, Math.max(...scores), scores[0]];
})"""
"""Trains in the page; the standard setting but for what is given."""
Cell = tuple[str, float, float, int]
"""Method, epsilon, rate, bits."""


def cells() -> list[Cell]:
    """What is run: each method over the rates, what else the stories show, and what notebook 05
    says of the rates at ε = 1.
    """
    swept = [(slug, 8.0, rate, 2) for slug in METHODS for rate in RATES]
    swept += [(slug, 1.0, rate, 2) for slug in ("fedlora", "ffa-lora") for rate in RATES]
    shown = [
        (slug, epsilon_of(act), rate_of(act), 2)
        for story in STORIES
        for act in story["acts"]
        for slug in act["set"]["methods"]
    ]
    return list(dict.fromkeys([*shown, *swept]))


def rate_of(act: dict[str, Any]) -> float:
    """The slider of the rate moves in half octaves."""
    return round(0.05 * 2 ** (act["set"]["rate"] / 2), 6)


def epsilon_of(act: dict[str, Any]) -> float:
    return (*EPSILONS, math.inf)[act["set"].get("noise", EPSILONS.index(8.0))]


def run_cells() -> None:
    """Trains what is not in the file yet, cell by cell."""
    from jupyter_lab import FLAGS, chromium
    from playwright.sync_api import sync_playwright

    done = pd.read_csv(RUNS) if RUNS.exists() else pd.DataFrame(columns=RUN)
    known = set(done[RUN[:-1]].itertuples(index=False, name=None))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        path = Path(folder) / "playground.html"
        path.write_text(playground.page(), encoding="utf-8")
        page = browser.new_page()
        page.set_default_timeout(0)
        page.goto(path.as_uri())
        page.evaluate("window.pg = document.querySelector('[data-fedlora-playground]').playground")
        for cell in cells():
            if cell in known:
                continue
            slug, epsilon, rate, bits = cell
            noise = -1 if math.isinf(epsilon) else EPSILONS.index(epsilon)
            settings = {"method": slug, "noise": noise, "rate": rate, "bits": bits}
            settings |= {"clip": 1, "rank": 8, "split": list(LIKENESS).index("unlike")}
            settings |= {"clients": CLIENTS.index(10), "steps": STEPS.index(2)}
            rows = page.evaluate(f"given => ({FINAL})(...given)", [settings, list(SEEDS)])
            frame = pd.DataFrame(rows, columns=["seed", "accuracy", "received", "best", "start"])
            frame = pd.DataFrame([cell] * len(rows), columns=RUN[:-1]).join(frame)
            done = pd.concat([done, frame]) if len(done) else frame
            done.to_csv(RUNS, index=False, float_format="%.5g")
            print(cell, frame["accuracy"].mean(), flush=True)
        browser.close()


def runs_of(frame: pd.DataFrame, slug: str, act: dict[str, Any]) -> pd.DataFrame:
    """The runs of a method in an act, seed by seed."""
    cell = (slug, epsilon_of(act), rate_of(act), 2)
    found = frame[(frame[RUN[:-1]] == pd.Series(cell, RUN[:-1])).all(axis=1)]
    return found.set_index("seed").loc[list(SEEDS)]


def stories() -> list[dict[str, Any]]:
    """The stories as the page has them, with the number of seeds of which each act is true."""
    frame = pd.read_csv(RUNS)
    told = []
    for story in STORIES:
        before: list[pd.DataFrame] = []
        acts = []
        for act in story["acts"]:
            both = [runs_of(frame, slug, act) for slug in act["set"]["methods"]]
            count = int(act["true"](*both, before).sum())
            one, two = (runs.mean(numeric_only=True) for runs in both)
            say = act["say"].format(one=one, two=two).replace("%", " %")
            acts.append({"set": act["set"], "say": say, "seeds": [count, len(SEEDS)]})
            before = both
        told.append({"title": story["title"], "acts": acts})
    return told


def means() -> dict[str, list[list[float]]]:
    """Method -> [rate, mean accuracy over the seeds] in the standard setting."""
    frame = pd.read_csv(RUNS).query("epsilon == 8 and bits == 2")
    found = frame.groupby(["method", "rate"])["accuracy"].mean().round(4)
    return {
        slug: [[rate, value] for rate, value in found[slug].items()]
        for slug in METHODS
        if slug in found
    }


def tables() -> dict[str, Any]:
    """All of it; takes some minutes."""
    made = settings()
    for split, alpha in zip(made["splits"], LIKENESS.values(), strict=True):
        split["noise"] = [
            [noise_table(owners(alpha, count).bincount().tolist(), steps) for steps in STEPS]
            for count in CLIENTS
        ]
    return {**made, "weights": packed(pretrain()), "stories": stories(), "means": means()}


def write_tables() -> None:
    text = json.dumps(tables(), separators=(",", ":")) + "\n"
    TABLES.write_text(text, encoding="utf-8")


def write_page() -> None:
    PAGE.write_text(playground.page(), encoding="utf-8")


MADE = {"runs": run_cells, "tables": write_tables, "page": write_page}


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("what", choices=list(MADE))
    MADE[parser.parse_args().what]()


if __name__ == "__main__":
    main()
