"""What the knobs of the bench stand for: a run, and what is known of it before."""

import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import fedlora_lab as fl
from fedlora_lab.methods.method import Method
from fedlora_lab.tasks.task import Task

TABLE = Path(__file__).with_name("knobs.toml")
Values = Mapping[str, str]
"""Knob -> its value as a text."""


class Recipe(NamedTuple):
    """One run but for its seed; ``privacy`` is calibrated."""

    task: Task
    method: Method
    privacy: fl.Privacy | None
    plan: fl.Plan
    lora: fl.Lora


def text_of(value: object) -> str:
    """Formats the value of a knob."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def first_values(first: Recipe, beside: str, epsilon: float | None) -> dict[str, str]:
    """The values with which the knobs begin."""
    privacy = first.privacy or fl.Privacy()
    values: dict[str, Any] = {
        "method": first.method.slug,
        "beside": beside,
        "protection": "none" if epsilon is None else "noise",
        "epsilon": 8.0 if epsilon is None else float(epsilon),
        "lr": float(first.plan.rate("B")),
        "unit": privacy.unit,
        "clip_norm": float(privacy.clip_norm),
        "rank": first.lora.rank,
        "rounds": first.plan.rounds,
        "seeds": 1,
    }
    return {name: text_of(value) for name, value in values.items()}


def knobs(values: Values, rows: Mapping[str, Method]) -> list[dict[str, Any]]:
    """Describes the knobs for the page.

    Args: values: what they begin with; rows: slug -> method on offer.
    """
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    offered = [[slug, row.name] for slug, row in rows.items()]
    table["method"]["options"] = offered
    table["beside"]["options"] += offered
    described = []
    for key, knob in table.items():
        if "values" in knob:  # a run may begin between two stops
            stops = {*knob["values"], values[key]}
            knob["values"] = sorted(stops, key=float)
        described.append({"key": key, **knob})
    return described


def recipe_of(first: Recipe, values: Values, method: Method, lr: float) -> Recipe:
    """The run that the knobs stand for.

    Args: first: what no knob changes; values: of the knobs; method, lr: of this run.
    Raises: ``ValueError`` for settings that no run could have.
    """
    rates: Any = lr
    if isinstance(first.plan.lr, Mapping):  # A's rate keeps its ratio to B's
        rates = {side: rate * lr / first.plan.rate("B") for side, rate in first.plan.lr.items()}
    plan = first.plan.replace(rounds=int(values["rounds"]), lr=rates)
    lora = replace(first.lora, rank=int(values["rank"]))
    privacy = (first.privacy or fl.Privacy()).replace(
        unit=values["unit"], clip_norm=float(values["clip_norm"])
    )
    calibrated: fl.Privacy | None = None
    if values["protection"] == "clip":
        calibrated = privacy.replace(noise_multiplier=0.0)
    elif values["protection"] == "noise":
        epsilon = float(values["epsilon"])
        calibrated = privacy.calibrate(epsilon=epsilon, task=first.task, plan=plan)
    return Recipe(first.task, method, calibrated, plan, lora)


def forecast(recipe: Recipe) -> dict[str, str]:
    """What is known of a run before it is trained, term -> words; empty where nothing is noised.

    Raises: ``ValueError`` for a run that could not begin.
    """
    task, method, privacy, plan, lora = recipe
    known = fl.noise_amplification(task, method, privacy, plan, lora)
    if privacy is None or not privacy.noise_multiplier:
        return {}
    try:
        suggested = fl.suggest_lr(task, method, privacy, plan, lora)
        advice = f"C = {suggested.clip_norm:.2g}"
        if privacy.releases_steps:
            advice = f"η = {suggested.lr:.2g}"
    except ValueError:  # a row whose noise is not known before a run
        advice = "–"
    return {"ρ": _short(known.mean), "v": _short(known.output_variance), "suggested": advice}


def _short(value: float) -> str:
    return f"{value:.2g}" if value == value else "not known"
