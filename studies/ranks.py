"""Does each row have the rank that suits it? Own ranks, and ranks of equal upload.

    python -m studies.ranks run digits|sentences   trains what results/ranks.csv lacks, a line a run
    python -m studies.ranks without                the rows without LoRA in every setting
    python -m studies.ranks table                  the means over the reported seeds

The open table trains every row at rank 4. Here validation examples choose the rank, of 2 to 32 by
octaves (to 64 for rows that train a core), together with the rate. One seed tries them: at each
rank the search begins where the table's rate would be if the square of the rate went with 1 / rank,
and climbs by octaves until both neighbours are worse. Seeds 0 to 2 report other examples. A second
view has the largest rank at which a row sends no more than FedLoRA does at rank 4. Without LoRA
there are two more rows: `all-weights`, every map but one, and `head-only`. The settings are the
table's, with examples protected at epsilon = 8; alpha is twice the rank.

Registered before any run on digits; known were Fed-SB .867 at rank 22, RAVAN .823 at 32, FedLoRA
.832 at 4 and all weights .871, in the means over three seeds:

1. At own ranks the six methods end within six points of one another.
2. Fed-SB is among the three best rows with LoRA, at its own rank and at equal upload.
3. No row with LoRA leads all weights by more than two points.
4. At least half of the rows choose a rank of 8 or more.
5. RAVAN at its own rank is less than five points behind FedLoRA; at rank 4 it is twelve.

Registered before any run on sentences, and before the rows without LoRA were run in other settings
than "digits, example, epsilon 8", where all weights had .856 and the head alone .810:

6. Sentences: Fed-SB is among the three best rows with LoRA at its own rank.
7. Sentences: at least half of the rows choose a rank of 8 or more.
8. Sentences: no row with LoRA leads all weights by more than two points.
9. Digits: all weights lead FedLoRA of the table in the mean in all four settings.
10. Digits at epsilon = 1: the head alone ends within three points of FedLoRA, in both units.

Registered when own ranks on sentences were known, before ranks of equal upload were run there:

11. Sentences: Fed-SB is among the three best rows at equal upload, as it is on digits.
12. Sentences: no row is more than two points above all weights at equal upload.
"""

import sys
from functools import cache
from typing import Any

import fedlora_lab as fl
from fedlora_lab import methods
from studies import RESULTS
from studies.frames import TUNING_SEED, Frame, climb
from studies.protocol import SETTINGS, scored_apart, without_lora
from studies.table import load_cards

FRAME = Frame(
    RESULTS / "ranks.csv",
    ("setting", "method", "rank", "lr", "seed"),
    ("validation", "accuracy", "bytes_up"),
)
DIGITS = "digits, example, epsilon 8"
SENTENCES = "sentences, example, epsilon 8"
RANKS = (2, 4, 8, 16, 32)
WITH_A_CORE = ("fed-sb", "ravan")
WITHOUT_LORA = {
    "digits": (("query", "key", "value", "out", "up", "down"), "head", "patch"),
    "sentences": (
        ("query", "key", "value", "output.dense", "intermediate.dense"),
        "classifier",
        "pooler.dense",
    ),
}
"""Task -> the maps that learn where all weights do, the head, and the map that does not learn."""
ALONE = ("all-weights", "head-only")
SEEDS = (0, 1, 2)
MOST_RANK = 64


@cache
def parts(setting: str, seed: int) -> tuple[fl.tasks.Task, fl.Privacy, fl.Plan]:
    """The task with both scores, calibrated privacy and plan of a seed; the plan's rate is 1."""
    task, privacy, plan = SETTINGS[setting].at(seed)
    return scored_apart(task), privacy, plan


def row_of(slug: str, rank: int, task: fl.tasks.Task) -> tuple[fl.tasks.Task, fl.Method, fl.Lora]:
    """A row, its layers and its adapter."""
    if slug not in ALONE:
        return task, methods.get(slug), fl.Lora(rank=rank, alpha=2.0 * rank)
    maps, head, left_out = WITHOUT_LORA[task.name]
    learned = (head,) if slug == "head-only" else (*maps, head)
    return without_lora(slug, task, learned, left_out)


def score(setting: str, slug: str, rank: int, rate: float, seed: int) -> float:
    """The validation score of a run, which is trained unless the frame has it."""

    def train() -> list[float]:
        task, privacy, plan = parts(setting, seed)
        privacy, plan = SETTINGS[setting].scale(privacy, plan, rate)
        task, row, lora = row_of(slug, rank, task)
        options: Any = {"lora": lora, "seed": seed, "evaluate_every": plan.rounds}
        last = list(fl.run(task, row, privacy, plan, **options))[-1]
        sent = last.traffic.bytes_up / last.participants
        return [last.metrics["validation"], last.metrics["accuracy"], sent]

    return FRAME.score(train, setting, slug, rank, rate, seed)


def best_rate(setting: str, slug: str, rank: int) -> float:
    """Climbs from the first rate by octaves until its neighbours score no better."""

    def tuned(rate: float) -> float:
        return score(setting, slug, rank, rate, TUNING_SEED)

    if slug in ALONE:
        return climb(tuned, max(SETTINGS[setting].rates, key=tuned))
    return climb(tuned, first_rate(setting, slug, rank))


def first_rate(setting: str, slug: str, rank: int) -> float:
    """The table's rate at rank 4, carried to another rank, at the nearest octave of the table."""
    card = next(card for card in load_cards() if card["method"] == slug)
    table_rate = card["settings"][setting]["rate"]
    halvings = {2: 0, 4: 0, 8: 1, 16: 1, 32: 2, 64: 2}
    nearest = min(halvings, key=lambda known: abs(known - rank))
    return table_rate / 2.0 ** halvings[nearest]


def ranks_of(slug: str) -> tuple[int, ...]:
    """The ranks that a row is tried at."""
    if slug in ALONE:
        return (1,)
    return (*RANKS, MOST_RANK) if slug in WITH_A_CORE else RANKS


def sent_at(setting: str, slug: str, rank: int) -> float:
    """Bytes that a client sends in a round."""
    task, _, plan = parts(setting, SEEDS[0])
    task, row, lora = row_of(slug, rank, task)
    short = plan.replace(rounds=1, lr=0.01)  # turns within a round send less in one step
    last = list(fl.run(task, row, None, short, lora=lora, seed=0))[-1]
    return last.traffic.bytes_up / last.participants


@cache
def rank_of_equal_upload(setting: str, slug: str) -> int:
    """The largest rank at which a row sends no more than FedLoRA at rank 4."""
    allowed = sent_at(setting, "fedlora", 4)
    tried = range(MOST_RANK, 0, -1)  # RAVAN may send less at a larger rank, where it has two heads
    return next(rank for rank in tried if sent_at(setting, slug, rank) <= allowed)


def choice(setting: str, slug: str) -> tuple[int, float]:
    """Rank and rate of the best validation score; of ties the smallest rank."""
    rates = {rank: best_rate(setting, slug, rank) for rank in ranks_of(slug)}
    return max(rates.items(), key=lambda pair: score(setting, slug, *pair, TUNING_SEED))


def slugs() -> list[str]:
    """The rows with an epsilon, those without LoRA and the seeds' first."""
    first = [*ALONE, "fedlora", "ffa-lora", "rolora", "fed-sb", "ravan", "deer", "la-lora"]
    first += ["fedlpp"]
    others = [slug for slug in methods.ALL if slug not in first]
    return first + [slug for slug in others if slug not in ("deer-literal", "local")]


def report(setting: str, slug: str, rank: int, rate: float) -> None:
    """Trains the reported seeds."""
    for seed in SEEDS:
        score(setting, slug, rank, rate, seed)


def run(setting: str) -> None:
    """Trains what is missing of the own ranks."""
    for slug in slugs():
        report(setting, slug, *choice(setting, slug))


def run_equal_upload(setting: str) -> None:
    """Trains what is missing of the ranks of equal upload."""
    for slug in slugs():
        if slug in ALONE or slug == "fed-zo":
            continue
        rank = rank_of_equal_upload(setting, slug)
        report(setting, slug, rank, best_rate(setting, slug, rank))


def run_without_lora() -> None:
    """Trains what is missing of the rows without LoRA, in every setting."""
    for setting in SETTINGS:
        for slug in ALONE:
            report(setting, slug, *choice(setting, slug))


def main(act: str, task: str = "") -> None:
    if act == "table":
        print(FRAME.summary().round(3).to_string(index=False))
    elif act == "without":
        run_without_lora()
    else:
        setting = SENTENCES if task == "sentences" else DIGITS
        run(setting)
        run_equal_upload(setting)


if __name__ == "__main__":
    main(*sys.argv[1:])
