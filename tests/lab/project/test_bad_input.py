"""Bad calls as an impatient user makes them: each is refused in one line that names the thing and
its value. Those of the command line: test_mistakes_are_one_line.
"""

# pyrefly: ignore-errors[bad-argument-type, unexpected-keyword]
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from calls import refused
from toy_tasks import LORA, PLAN, play, private, regression, tokens

import fedlora_course as course
import fedlora_lab as fl
from fedlora_lab.methods import filters, quantization
from fedlora_lab.methods.optimizers import OPTIMIZERS, SGD

# ---- sound calls but for the options that are given


def method(**options):
    return fl.Method("mine", "a test", **options)


def run(**options):
    given = {"task": tokens(), "method": "fedlora", "privacy": private("example")}
    return fl.run(**given | {"plan": PLAN, "lora": LORA} | options)


def compare(methods=("fedlora",), **options):
    given = {"privacy": None, "plan": PLAN, "seeds": [0], "progress": False}
    return fl.compare(tokens(), methods, **given | options)


def calibrate(**options):
    return fl.Privacy(delta=1e-3).calibrate(
        **{"epsilon": 8, "task": tokens(), "plan": PLAN} | options
    )


# More of plans, adapters and schedules: test_properties.py.
OPTIONS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (fl.Plan, {"lr": math.inf}),
    (method, {"broadcast": abs}),
    (method, {"exact": "yes"}),
    (quantization.normal_float, {"width": 9}),
    (filters.binomial, {"taps": 4}),
    (run, {"method": ["fedlora"]}),
    (compare, {"seeds": 3}),
    (compare, {"plan": {"rolora": PLAN}}),
    (calibrate, {"epsilon": math.nan}),
    (calibrate, {"task": "digits"}),
    (calibrate, {"plan": {}}),
]


class Quiet(fl.Privacy):
    """Says one thing of its noise to the ledger, and could do another at work."""


class Longer(fl.Plan):
    """Says one number of rounds to the ledger, and could make more."""


@dataclass
class Unfrozen:
    def __call__(self, x, name):
        return x


def last():
    return play(regression(), "rolora", None)[-1]


CALLS: dict[str, tuple[Callable[[], object], str]] = {
    # rules of a method that give something else
    **{
        line: (lambda rule=rule: run(method=method(**rule)), line)
        for line, rule in (
            (r"schedule\(0, 0\)='C'", {"schedule": lambda t, s: "C"}),
            ("schedule, round 1=.*moves at each", {"schedule": lambda t, s: "R"}),
            ("filter.*each client's part", {"filter": lambda x, name: x.mT}),
            ("filter.*each client's", {"filter": lambda x, name: x.roll(1, 0)}),
            ("filter.*linear", {"filter": lambda x, name: x.sign()}),
            ("clip_groups: expected a number", {"clip_groups": lambda key: [key.name]}),
            (r"schedule\(1, 0\): expected letters", {"schedule": lambda t, s: ["B"][t]}),
            ("filter=.*a function, or a frozen dataclass", {"filter": Unfrozen()}),
        )
    },
    **{
        line: (lambda made=made: run(method=method(initial_factors=lambda *_: made)), line)
        for line, made in (
            (r"initial_factors\(\.\.\.\)=None: expected a mapping", None),
            (r"initial_factors\(\.\.\.\)='head'", {"head": torch.ones(3)}),
            (r"initial_factors.*'A'.*shape=\(5, 2\): expected \(2, 5\)", {"A": torch.ones(5, 2)}),
            (r"initial_factors.*'R'.*shape=\(2, 3\): expected \(2, 2\)", {"R": torch.ones(2, 3)}),
            (
                "initial_factors.*'gain'.*: expected .2,",
                {"R": torch.ones(2, 1), "gain": torch.ones(3)},
            ),
        )
    },
    "seed": (lambda: compare(seeds=["a"]), "seed='a': expected None or a whole number"),
    "subclass": (lambda: run(privacy=Quiet(noise_multiplier=1.0)), "privacy=.*no subclass"),
    "subclass of a plan": (lambda: run(plan=Longer()), "plan=.*no subclass"),
    **{
        line: (lambda metric=metric: [*run(task=replace(tokens(), metrics=metric))], line)
        for line, metric in (
            ("metrics=.'epsilon'.*other names", {"epsilon": lambda out, y: y}),
            (r"metrics, own=\(2,\): expected \(", {"own": lambda out, y: out[0, :2]}),
        )
    },
    # two options that do not go together
    "rank": (lambda: run(lora=fl.Lora(rank=100_000)), "rank=100000: expected at most 96"),
    "weights": (
        lambda: run(privacy=private("client"), plan=PLAN.replace(client_weights="size")),
        "client_weights='size': expected 'uniform'",
    ),
    # a trained model
    "inputs": (lambda: fl.predict(regression(), last(), torch.zeros(2, 99).double()), r"x=\(2, 99"),
    "lesson": (lambda: course.lesson(99), "number=99"),
}


for entry, option in OPTIONS:
    (name,) = option
    CALLS[f"{entry.__name__} {name}"] = (partial(entry, **option), f"{name}=.*: expected ")


@pytest.mark.parametrize(("call", "begins"), CALLS.values(), ids=CALLS)
def test_a_bad_call_is_refused_in_one_line(call, begins):
    """At the call itself, not at the first look at what it returns."""
    with refused(f"^{begins}"):
        call()


def test_a_call_trains_nothing_before_its_iterator_is_read():
    """A sound call returns at once and leaves training to the iterator."""
    seen = []
    rule = fl.methods.FedLoRA.aggregate
    row = fl.methods.FedLoRA.replace(aggregate=lambda *given: seen.append(1) or rule(*given))
    records = run(method=row)
    next(records)
    assert not seen
    next(records)
    assert len(seen) == 1


@dataclass(frozen=True)
class Own(SGD):
    name: str = field(default="own", init=False, repr=False)


class Centred(Own):
    def step(self, grad, moments, param, lr):
        return -lr * (grad - grad.mean(0, keepdim=True)), moments


def test_an_optimiser_that_mixes_clients_is_refused(monkeypatch):
    """In the client unit it sees what has no noise yet, of all clients that train together."""
    monkeypatch.setitem(OPTIMIZERS, "own", Centred)
    with refused("^optimizer=.*: expected steps .*its own client"):
        run(plan=PLAN.replace(optimizer=Centred()), privacy=private("client"))
