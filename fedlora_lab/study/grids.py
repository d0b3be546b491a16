"""The studies of the course. Each is data: which methods, in which settings."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from fedlora_lab import methods
from fedlora_lab.method import Cycle, Method
from fedlora_lab.rules import binomial, identity, product_space
from fedlora_lab.study.declared import RATES, TUNE_SEEDS, Case, Study

MAIN = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp", "fedsvd", "fedex-lora")
BUDGETS = (1.0, 3.0, 8.0, None)
WORK = {"rounds": 20, "local_steps": 5, "batch": 16}
CLIP = {"clip_norm": 1.0, "delta": 1e-4}
RANK4 = {"rank": 4, "alpha": 8.0}
SMALLER = (0.0012, 0.003, *RATES)  # rows that keep a factor, and clients with few examples, learn by small steps
CROWD = {"rounds": 40, "local_steps": 2, "batch": None, "participation": 0.2}


def digits(
    rows: Iterable[Method],
    labels: Mapping[str, Any],
    *,
    epsilon: float | None,
    alpha: float = 0.5,
    clients: int = 10,
    privacy: Mapping[str, Any] = CLIP,
    plan: Mapping[str, Any] = WORK,
    lora: Mapping[str, Any] = RANK4,
    **split: Any,
) -> list[Case]:
    """One case for each row on handwritten digits; ``split`` is what else `tasks.digits` takes."""
    task = ("digits", {"clients": clients, "alpha": alpha, "seed": 0, **split})
    labels = {**labels, "epsilon": epsilon}
    return [Case(row, labels, task, epsilon, privacy, plan, lora) for row in rows]


def main_rows() -> list[Method]:
    """The eight methods that every study compares."""
    return [methods.ALL[slug] for slug in MAIN]


def every_row() -> list[Method]:
    """The whole table and its variants, but for rows without a certified epsilon."""
    return [row for row in (methods.ALL | methods.VARIANTS).values() if row.slug != "deer-literal"]


def composed() -> list[Method]:
    """Who moves when x what the server does x whitening x smoothing: 36 rows, most of them unpublished."""
    cycles = {"both": ("AB",), "B only": ("B",), "turns by round": ("B", "A"), "turns by step": ("B A",)}
    servers = {"mean": methods.FedLoRA, "residual": methods.FedExLoRA, "svd": methods.FlexLoRA}
    rules = {"plain": (None, identity), "whitened": (product_space, identity), "filtered": (None, binomial(5))}
    return [
        methods.FedLoRA.replace(
            name=f"{cycle}, {server}, {rule}",
            source="composed",
            train=Cycle(cycles[cycle]),
            aggregate=servers[server].aggregate,
            whiten=rules[rule][0],
            smooth=rules[rule][1],
            note="composed from ingredients",
        )
        for cycle, server, rule in product(cycles, servers, rules)
    ]


def sweep(name: str, note: str, values: Iterable[Any], setting: Any, rates: tuple[float, ...] = RATES) -> Study:
    """One knob turned: ``setting(value)`` gives what `digits` takes for it; five reported seeds, two that tune."""
    rows = [methods.ALL[slug] for slug in MAIN[:5]]
    cases = [case for value in values for case in digits(rows, {name: value}, **{"epsilon": 8.0, **setting(value)})]
    return Study(f"digits-{name}", note, tuple(cases), seeds=tuple(range(5)), rates=rates, tune_seeds=TUNE_SEEDS[:2])


def _whole() -> Study:
    others = [row for row in every_row() if row.slug not in MAIN]
    cases = [case for epsilon in BUDGETS for case in digits(main_rows(), {"alpha": 0.5}, epsilon=epsilon)]
    for alpha in (0.1, 1000.0):
        cases += digits(main_rows(), {"alpha": alpha}, epsilon=3.0, alpha=alpha)
    cases += [case for epsilon in BUDGETS for case in digits(others, {"alpha": 0.5}, epsilon=epsilon)]
    return Study(
        "digits", "all methods over budgets; the main ones over splits", tuple(cases), rates=SMALLER, guides=True
    )


def _clients() -> Study:
    crowd: dict[str, Any] = {
        "clients": 100,
        "plan": CROWD,
        "privacy": {"unit": "client", "clip_norm": 0.5, "delta": 1e-3},
    }
    cases = [case for epsilon in (3.0, 8.0, 20.0) for case in digits(main_rows(), {}, epsilon=epsilon, **crowd)]
    return Study("digits-clients", "client-level privacy with 100 clients, 20 % of them in a round", tuple(cases),
                 guides=True)  # fmt: skip


def _sentiment() -> Study:
    task = ("sentiment", {"targets": ("layer.4.attention.self.query", "layer.4.attention.self.value",
                                      "layer.5.attention.self.query", "layer.5.attention.self.value")})  # fmt: skip
    rows = [methods.ALL[slug] for slug in MAIN]
    plan, privacy = {"rounds": 5, "local_steps": 5, "batch": 32}, {"clip_norm": 1.0, "delta": 1e-5}
    quick = {"frozen_prefix": True, "products": "bfloat16"}
    cases = [Case(row, {"epsilon": e}, task, e, privacy, plan, RANK4, quick) for e in BUDGETS for row in rows]
    return Study("sentiment", "real language model, natural domains", tuple(cases),
                 rates=(0.05, 0.2, 0.8, 3.2, 12.8), tune_seeds=(1001,), guides=True)  # fmt: skip


def _factorial() -> Study:
    cases = [case for epsilon in (1.0, 8.0) for case in digits(composed(), {}, epsilon=epsilon)]
    return Study(
        "digits-factorial", "which ingredient does the work", tuple(cases), seeds=tuple(range(5)), rates=SMALLER
    )


def _flat() -> Study:
    rows = [methods.ALL[slug] for slug in ("fedlora", "rolora", "la-lora-unfiltered", "la-lora")]
    cases = [case for epsilon in (1.0, 8.0) for case in digits(rows, {}, epsilon=epsilon)]
    return Study("digits-flat", "curvature where training ended", tuple(cases), flat=True)


def _local(steps: int) -> dict[str, Any]:
    return {"plan": {**WORK, "local_steps": steps, "rounds": max(100 // steps, 1)}}


def _crowd(clients: int) -> dict[str, Any]:
    return {"clients": clients} | ({"min_size": 2} if clients > 100 else {})  # six each is the mean of two hundred


def _noise(sigma: float) -> dict[str, Any]:
    return {"epsilon": None, "privacy": {**CLIP, "noise_multiplier": sigma}}


STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        _whole(),
        _clients(),
        _sentiment(),
        _factorial(),
        _flat(),
        sweep("rank", "rank 1 to 32, alpha twice the rank", (1, 2, 4, 8, 16, 32),
              lambda r: {"lora": {"rank": r, "alpha": 2.0 * r}}),
        sweep("steps", "local steps 1 to 40, 100 steps in all", (1, 5, 20, 40), _local),
        sweep("crowd", "the same data over 2 to 200 clients", (2, 10, 50, 200), _crowd, rates=SMALLER),
        sweep("clip", "clip norm", (0.1, 0.3, 1.0, 3.0, 10.0), lambda c: {"privacy": {**CLIP, "clip_norm": c}},
              rates=(*RATES, 12.5)),  # a step is at most the rate times the clip
        sweep("noise", "noise alone: sigma at a fixed clip", (0.0, 0.5, 1.0, 2.0, 4.0), _noise),
        sweep("scale", "alpha over rank", (0.5, 1.0, 2.0, 4.0, 8.0), lambda s: {"lora": {"rank": 4, "alpha": 4.0 * s}}),
    )
}  # fmt: skip
