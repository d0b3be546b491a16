"""The open table: the same runs for every row, and the card that they leave.

A score says little about a method without the rates at which it is reached. So every row is trained
at the same eight rates; public examples that are not reported choose among them.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedlora_lab import tasks
from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.validation import error_text
from fedlora_lab.federated.compare import Cell, run_cells
from fedlora_lab.federated.config import Execution
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.measures.runs import find_collapsed, t_interval
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.published import FFA
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.recipes.noise_on_outputs import OUTPUT_VARIANCE, noise_on_outputs
from fedlora_lab.recipes.rehearsal import NEAR, plateau_end
from fedlora_lab.tasks.task import Task, concatenate

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

LORA = Lora(rank=4, alpha=8)
SEEDS = (0, 1, 2)
"""Each draws the split, the batches and the noise."""
DIRICHLET = 0.5
"""Concentration of the split: clients' data differ."""
CHOICE = "validation examples, else the first half of the test examples"
"""Which public examples choose the rate, see `scored_apart`."""


@dataclass(frozen=True)
class Setting:
    """What a row is trained on, at every rate and seed.

    Args:
        task, clients: a task of the package, and its clients.
        plan: rounds and so on, without the rate.
        privacy: fields of `Privacy`. A clip norm stands for that at a rate of 1 where
            ``clip_follows``.
        epsilon: what every run may spend.
        rates: learning rates of B and A alike.
        clip_follows: the clip norm is in proportion to the rate. In the client unit neither the
            noise of a release nor the end of the range would depend on the rate otherwise.
    """

    task: str
    clients: int
    plan: Mapping[str, Any]
    privacy: Mapping[str, Any]
    epsilon: float
    rates: tuple[float, ...]
    clip_follows: bool = False

    def at(self, seed: int) -> tuple[Task, Privacy, Plan]:
        """Task, calibrated privacy and plan of a seed; the plan's rate is 1."""
        task = tasks.build(self.task, clients=self.clients, dirichlet=DIRICHLET, seed=seed)
        plan = Plan(**self.plan, lr=1.0)
        privacy = Privacy(**self.privacy).calibrate(epsilon=self.epsilon, task=task, plan=plan)
        return task, privacy, plan

    def scale(self, privacy: Privacy, plan: Plan, rate: float) -> tuple[Privacy, Plan]:
        """Privacy and plan at a rate, from those at a rate of 1."""
        if self.clip_follows:
            privacy = privacy.replace(clip_norm=privacy.clip_norm * rate)
        return privacy, plan.replace(lr=rate)


OCTAVES = tuple(0.025 * 2**step for step in range(8))
EXAMPLE_PLAN = {"rounds": 20, "local_steps": 5, "batch": 16}
CLIENT_PLAN = {"rounds": 40, "local_steps": 2, "batch": None, "participation": 0.2}
BY_EXAMPLE = {"unit": "example", "clip_norm": 1.0, "delta": 1e-4}
BY_CLIENT = {"unit": "client", "clip_norm": 2.0, "delta": 1e-3}
SETTINGS = {
    **{
        f"digits, example, epsilon {epsilon:g}": Setting(
            "digits", 10, EXAMPLE_PLAN, BY_EXAMPLE, epsilon, OCTAVES
        )
        for epsilon in (8.0, 1.0)
    },
    **{
        f"digits, client, epsilon {epsilon:g}": Setting(
            "digits", 100, CLIENT_PLAN, BY_CLIENT, epsilon, tuple(r / 2 for r in OCTAVES), True
        )
        for epsilon in (8.0, 1.0)
    },
    "sentences, example, epsilon 8": Setting(
        "sentences", 8, EXAMPLE_PLAN, BY_EXAMPLE | {"delta": 1e-5}, 8.0, OCTAVES
    ),
}
"""Name -> setting of the open table."""
QUICK = {
    name: replace(setting, plan={**setting.plan, "rounds": 1}, rates=setting.rates[3:5])
    for name, setting in SETTINGS.items()
}
"""The same with one round at two rates: enough to see that a row can be trained everywhere."""


def protocol_digest(
    settings: Mapping[str, Setting] = SETTINGS, seeds: Sequence[int] = SEEDS
) -> str:
    """A digest of all that the runs of a card have in common; other cards are not comparable."""
    terms = {name: asdict(setting) for name, setting in settings.items()}
    common = [terms, LORA.rank, LORA.alpha, DIRICHLET, list(seeds), NEAR, CHOICE]
    text = json.dumps(common, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- the range of rates


# ---- runs


@dataclass(frozen=True)
class ShareRight:
    """Accuracy on some of the examples that are scored, from ``first`` on, ``last`` left out."""

    first: int
    last: int | None = None

    def __call__(self, outputs: Tensor, y: Tensor) -> float:
        """The share of right answers among them."""
        part = slice(self.first, self.last)
        return float((outputs.argmax(1) == y)[part].double().mean())


def scored_apart(task: Task) -> Task:
    """The task with two scores on public examples: validation, which chooses, and accuracy.

    A task without validation examples gives half of its test examples to the choice.
    """
    parts = [task.test] if task.validation is None else [task.validation, task.test]
    x, y = concatenate(parts)
    chosen = len(y) // 2 if task.validation is None else len(parts[0][1])
    scores = {
        "accuracy": tasks.OverAll(ShareRight(chosen)),
        "validation": tasks.OverAll(ShareRight(0, chosen)),
    }
    return replace(task, held_out=tasks.HeldOut((x, y)), metrics=scores)


def without_lora(
    slug: str, task: Task, learned: Sequence[str], left_out: str
) -> tuple[Task, Method, Lora]:
    """The task, row and adapter of a run in which the modules ``learned`` are trained as a whole.

    The adapter that every run has stands on the map ``left_out``, scaled to nothing.
    """
    row = FFA.replace(name=slug.replace("-", " ").capitalize())
    task = replace(task, layers=tasks.Layers((left_out,), learned))
    return task, row, Lora(rank=1, alpha=1e-9)


def cells_of(row: Method, name: str, setting: Setting, seeds: Iterable[int] = SEEDS) -> list[Cell]:
    """The runs of a row in a setting, rate by rate and seed by seed.

    Raises: ``ValueError`` where the row cannot be trained so.
    """
    cells = []
    for seed in seeds:
        task, private, plan = setting.at(seed)
        task = scored_apart(task)
        for rate in setting.rates:
            privacy, its_plan = setting.scale(private, plan, rate)
            cell = Cell(make_config(task, row, privacy, its_plan, LORA, seed))
            cells.append(replace(cell, setting={"setting": name}))
    return cells


def predicted_end(row: Method, setting: Setting) -> float | None:
    """The rate at which the noise on a layer's output has the variance `OUTPUT_VARIANCE`, before
    any run; ``None`` where it is not defined for the row.
    """
    task, privacy, plan = setting.at(SEEDS[0])
    try:
        return noise_on_outputs(task, row, privacy, plan, LORA).factor(OUTPUT_VARIANCE)
    except ValueError:  # it says which part of the row has no such number
        return None


def run_protocol(
    row: Method,
    *,
    jobs: int | None = None,
    out: "str | Path | None" = None,
    settings: Mapping[str, Setting] = SETTINGS,
    seeds: Sequence[int] = SEEDS,
    bar: "tqdm[Any] | None" = None,
) -> dict[str, Any]:
    """Trains a row in every setting, at all rates and seeds; returns its card.

    Args:
        row: a method.
        jobs, out: see `compare`: runs at once, and a folder that keeps them.
        settings, seeds: of the protocol; others make a card that is not comparable.
        bar: counts rounds.
    Returns: JSON-able: method, name, source, protocol, version, minutes, and by setting what
        `summarize` says, or under "refused" why the row cannot be trained there.
    Guarantees: test_protocol.py::test_a_card_tells_what_its_runs_found.
    """
    from tqdm.auto import tqdm

    started = time.monotonic()
    cells: list[Cell] = []
    found: dict[str, Any] = {}
    for name, setting in settings.items():
        try:
            cells += cells_of(row, name, setting, seeds)
            found[name] = {}
        except ValueError as error:
            found[name] = {"refused": error_text(error, 200)}
    bar = tqdm(disable=True) if bar is None else bar
    bar.total = sum(cell.config.plan.rounds for cell in cells)
    # Only the first and the last round are scored, and a call has one number of rounds.
    for count in {cell.config.plan.rounds for cell in cells}:
        some = [cell for cell in cells if cell.config.plan.rounds == count]
        frame = run_cells(some, Execution(evaluate_every=count), out, jobs, bar)
        for name in frame["setting"].unique():
            part = frame[frame["setting"] == name]
            found[name] = summarize(row, settings[name], part)
    return {
        "method": row.slug,
        "name": row.name,
        "source": row.source,
        "protocol": protocol_digest(settings, seeds),
        "version": __version__,
        "minutes": round((time.monotonic() - started) / 60, 1),
        "settings": found,
    }


def summarize(row: Method, setting: Setting, frame: "pd.DataFrame") -> dict[str, Any]:
    """Tells what the runs of a row in a setting found.

    Args: frame: tidy, with the first and the last round of every run.
    Returns: predicted_end; begin and end of the range of rates by validation, its width in
        octaves, v at its end, and whether an end of the grid cuts it off; the best rate by
        validation; accuracy there by seed, its mean and 95 % interval; the largest epsilon that was
        spent; the mean deviation; bytes up and down of a client that takes part in the last round;
        the mean scores, and runs that collapsed, at every rate.
    """
    whole = frame[frame["layer"] == "all"]
    ends = whole[whole["round"] == whole["round"].max()]
    table = ends.pivot(index=["lr", "seed"], columns="measure", values="value")
    start = whole[(whole["round"] == 0) & (whole["measure"] == "accuracy")]
    gains = table["accuracy"] - start.set_index(["lr", "seed"])["value"]
    collapsed = gains.groupby(level="lr").agg(lambda x: int(find_collapsed(x.to_numpy()).sum()))
    # What could not be scored counts as nothing right.
    scores = table[["validation", "accuracy"]].fillna(0.0).groupby(level="lr").mean()
    best = float(scores["validation"].idxmax())
    end = plateau_end(scores["validation"])
    # A plateau begins where its mirror image ends.
    mirrored = scores["validation"][::-1]
    begin = 1 / plateau_end(mirrored.set_axis(1 / mirrored.index))
    here = table.loc[best]
    mean, half = t_interval(here["accuracy"].to_numpy())
    predicted = predicted_end(row, setting)

    def number(value: float, digits: int = 4) -> float | None:
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None

    return {
        "predicted_end": predicted and number(predicted),
        "begin": number(begin),
        "end": number(end),
        "octaves": number(math.log2(end / begin), 3),
        "cut_off": bool(begin <= min(setting.rates) or end >= max(setting.rates)),
        "output_variance": predicted and number(variance_at(row, setting, end)),
        "rate": best,
        "start": number(float(start["value"].mean())),
        "accuracy": number(mean),
        "low": number(mean - half),
        "high": number(mean + half),
        "by_seed": {str(seed): number(x) for seed, x in here["accuracy"].items()},
        "epsilon": number(float(table["epsilon"].max()), 6),
        "deviation": number(float(here["deviation"].mean())),
        **{
            name: number(float((here[name] / here["participants"]).mean()), 6)
            for name in ("bytes_up", "bytes_down")
        },
        "rates": [
            {"lr": rate, "validation": number(x["validation"]), "accuracy": number(x["accuracy"])}
            | {"collapsed": int(collapsed[rate])}
            for rate, x in scores.iterrows()
        ],
    }


def variance_at(row: Method, setting: Setting, rate: float) -> float:
    """v, the variance of the run's noise on a layer's output, at a rate of the setting."""
    task, privacy, plan = setting.at(SEEDS[0])
    return noise_on_outputs(task, row, *setting.scale(privacy, plan, rate), LORA).value


def card_lines(card: Mapping[str, Any]) -> list[str]:
    """A card in words, a line for each setting."""
    lines = [f"{card['name']}, {card['minutes']:g} minutes"]
    for name, found in card["settings"].items():
        if "refused" in found:
            lines.append(f"  {name}: cannot be trained: {found['refused']}")
            continue
        spread = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
        edge = "or more" if found["cut_off"] else "of the rate"
        lines.append(
            f"  {name}: accuracy {found['accuracy']:.3f}{spread} at the rate {found['rate']:g}; "
            f"within {100 * NEAR:g} points of the best over {found['octaves']:g} octaves {edge}"
        )
    return lines
