"""What the knobs of the bench stand for: a run, what is known of it before, and its code."""

import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.methods.method import Method
from fedlora_lab.tasks.task import Task

TABLE = Path(__file__).with_name("knobs.toml")
Values = Mapping[str, str]
"""Knob -> its value as a text; ∞ is none."""


class Recipe(NamedTuple):
    """One run but for its seed; ``privacy`` is calibrated."""

    task: Task
    method: Method
    privacy: fl.Privacy | None
    plan: fl.Plan
    lora: fl.Lora


def text_of(value: object) -> str:
    """Formats the value of a knob."""
    if value is None:
        return "∞"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def number_of(text: str) -> float | int | None:
    """Reads a number; a whole one is an integer, and ∞ is none."""
    if text == "∞":
        return None
    return int(text) if text.isdecimal() else float(text)


def first_values(first: Recipe, beside: str, epsilon: float | None) -> dict[str, str]:
    """The values with which the knobs begin; clients are among them if data can be dealt anew."""
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
    task = first.task
    dealt = task.origin.arguments
    if {"clients", "dirichlet"} <= dealt.keys() and (
        fl.tasks.build(task.name, **dealt).fingerprint == task.fingerprint
    ):
        values |= {name: dealt[name] for name in ("clients", "dirichlet")}
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
        if key not in values:
            continue
        if "values" in knob:  # a run may begin between two stops
            stops = {*knob["values"], values[key]}
            knob["values"] = sorted(stops, key=lambda text: number_of(text) or float("inf"))
        described.append({"key": key, **knob})
    return described


def recipe_of(first: Recipe, values: Values, method: Method, lr: float) -> Recipe:
    """The run that the knobs stand for.

    Args: first: what no knob changes; values: of the knobs; method, lr: of this run.
    Raises: ``ValueError`` for settings that no run could have.
    """
    task = first.task
    if "clients" in values:
        dealt = {name: number_of(values[name]) for name in ("clients", "dirichlet")}
        if not dealt.items() <= task.origin.arguments.items():
            task = fl.tasks.build(task.name, **{**task.origin.arguments, **dealt})
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
        calibrated = privacy.calibrate(epsilon=epsilon, task=task, plan=plan)
    return Recipe(task, method, calibrated, plan, lora)


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


def code_of(recipe: Recipe, epsilon: str, seeds: list[int]) -> str:
    """Writes the code that repeats the runs of a row.

    Guarantees: test_bench.py::test_the_code_of_a_row_repeats_it.
    """
    task, method, privacy, plan, lora = recipe
    made = "...  # your task"
    if task.origin.arguments:
        made = f"fl.tasks.{task.name}({_arguments(task.origin.arguments)})"
    row = repr(method.slug) if method in methods.ALL.values() else f"...  # {method.name}"
    protection = "None"
    if privacy is not None and privacy.target_epsilon is None:
        protection = _call(privacy)
    elif privacy is not None:
        plain = privacy.replace(noise_multiplier=None, sample_rate=None, target_epsilon=None)
        protection = f"{_call(plain)}.calibrate(epsilon={epsilon}, task=task, plan=plan)"
    return f"""import fedlora_lab as fl

task = {made}
method = {row}
plan = {_call(plan)}
privacy = {protection}
lora = {_call(lora)}
runs = [fl.run(task, method, privacy, plan, lora=lora, seed=seed) for seed in {seeds}]
records = [record for run in runs for record in run]"""


def _call(settings: Any) -> str:
    """Writes the call that makes a record of settings: its fields off their defaults."""
    usual = type(settings)()
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}
    changed = {name: value for name, value in given.items() if value != getattr(usual, name)}
    return f"fl.{type(settings).__name__}({_arguments(changed)})"


def _arguments(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_text(value)}" for name, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    return _call(value) if is_dataclass(value) else repr(value)
