"""Notebook 08: what the quantiser costs, what it hides, and from whom."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from frames import limits, marked

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_08 import figures
from fedlora_lab.course.lesson_08.server_form import ServerForm
from fedlora_lab.methods.quantization import REACH, normal_float, normal_levels
from fedlora_lab.methods.state import ParamKey, ServerState
from fedlora_lab.tasks.task import concatenate


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("block", [2, 64])
def test_the_quantiser_error_is_the_mean_over_draws(width, block):
    draws = np.random.default_rng(width).standard_normal((400, 64))
    rule = normal_float(width, block)
    off = (rule(torch.from_numpy(draws)).numpy() - draws) ** 2
    closed = theory.quantiser_error(normal_levels(width), block)
    assert closed in theory.mean_band(off.reshape(400, -1).mean(1))


@pytest.mark.slow
def test_the_best_reach_loses_least():
    """And QLoRA's rule for 4 bits, taken to others, is worse than 4 bits' own from 5 bits on."""

    def error(reach, width, block):
        return theory.quantiser_error(theory.normal_float_levels(width, reach).tolist(), block)

    for case in ((2, 16), (3, 64), (8, 64), (4, 256)):
        least = min(error(reach, *case) for reach in np.linspace(0.7, 0.999, 60))
        assert error(theory.best_reach(*case), *case) <= least
    derived = {w: 1 - (2.0**-w + 1 / (2**w - 1)) / 4 for w in (3, 4, 5)}
    assert derived[4] == pytest.approx(REACH, abs=1e-6)
    loss = {w: theory.quantiser_error(normal_levels(w, reach), 64) for w, reach in derived.items()}
    assert loss[3] < theory.quantiser_error(normal_levels(3), 64)
    assert loss[5] > theory.quantiser_error(normal_levels(5), 64)


def test_normal_levels():
    """Derived from quantiles, equal to what is sent; and drawn."""
    for width in range(2, 9):
        np.testing.assert_allclose(
            theory.normal_float_levels(width), normal_levels(width), atol=1e-12
        )
    (marks,) = marked(figures.code_levels(3).axes[0], "o")
    np.testing.assert_allclose(marks.get_xdata() / marks.get_xdata().max(), normal_levels(3))


def test_the_closed_form_holds_the_measurements():
    _, table = figures.quantiser_check((2, 4), (16, 64), seeds=100, size=256)
    assert len(table) == 4
    assert table["inside"].mean() >= 0.9
    assert ((table["measured"] - 1.2 * table["expected"]).abs() > table["half"]).all()


def test_the_quantiser_figure_states_the_measured_error():
    choices: Any = ((2, 8), (8, 256, "a trained factor"))
    row = np.linspace(-3, 1, 300)
    shown: Any = [figures.quantiser(*values, trained=row) for values in choices]
    assert limits(shown[0]) == limits(shown[1])
    off = normal_float(8, 256)(torch.from_numpy(row)).numpy() - row
    error = np.linalg.norm(off) / np.linalg.norm(row)
    assert shown[1].axes[2].lines[1].get_ydata() == pytest.approx([error])
    assert shown[1].axes[2].get_title(loc="left") == f"The error is {error:.1%}"


@pytest.mark.slow
def test_coarser_copies_lie_further_away():
    task, plan = fl.tasks.digits(clients=3, seed=5), fl.Plan(rounds=1, local_steps=1, batch=8)
    held = figures.runs_with_holders(task, (2, 8), None, plan, seeds=(4,))
    part: Any = held[(held["method"] == "received") & (held["measure"] == "distance")]
    far = part.set_index("width")["value"]
    assert float(far[2]) > 10 * float(far[8]) > 0


@pytest.mark.slow
def test_the_gradient_at_rounded_factors():
    """By autograd for one layer; a rule is applied to every factor before."""
    task, plan = fl.tasks.digits(clients=3, seed=5), fl.Plan(rounds=2, local_steps=2, batch=8)
    last: Any = [*fl.run(task, "fedlora", None, plan)][-1]
    state, data = last.source[2], concatenate(task.clients)
    sizes = [x.numel() for x in state.tensors.values()]
    parts = np.split(figures.gradient_at(last, lambda x: x), np.cumsum(sizes)[:-1])
    found = fl.measures.gradients(task, last, "blocks.0.query", data)
    for key, part in zip(state.tensors, parts, strict=True):
        if key.layer == "blocks.0.query":
            np.testing.assert_allclose(part, getattr(found, key.side).flatten(), atol=1e-6)
    zeros = figures.gradient_at(last, torch.zeros_like)
    assert np.abs(zeros).max() == 0, "without A and B no gradient reaches them"


@pytest.mark.slow
def test_accuracy_per_holder():
    """What each party holds after two rounds, against the run's own metrics and direct sums."""
    task = fl.tasks.digits(clients=3, seed=5)
    rule = fl.methods.FedLPP.replace(broadcast=normal_float(2, 64))
    method, seen = fl.measures.record_aggregation(rule)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.1)
    last: Any = [*fl.run(task, method, None, plan)][-1]
    frame = figures.model_protection(last, method, seen, last=2)
    table: Any = frame.pivot_table("value", "method", "measure")
    assert len(frame) == 8
    assert table.loc["server", "accuracy"] == pytest.approx(last.metrics["accuracy"])
    assert table.loc["received", "accuracy"] == pytest.approx(last.metrics["accuracy_received"])
    assert table.loc["server", "distance"] == 0
    server = last.source[2].tensors
    off = [
        ((method.broadcast(x) + seen[-1].sent.tensors[key]) / 2 - x).square().sum()
        for key, x in server.items()
    ]
    relative = (float(sum(off)) / sum(float(x.square().sum()) for x in server.values())) ** 0.5
    assert table.loc["averaged", "distance"] == pytest.approx(relative, rel=1e-4)
    assert table.loc["trained", "distance"] > 0
    with pytest.raises(ValueError, match=r"^last=9"):
        figures.model_protection(last, method, seen, last=9)


def test_the_accuracies_per_holder_are_drawn():
    rows = [
        (w, s, who, "accuracy", 0.5 + 0.01 * s + 0.1 / w)
        for w, s, who in itertools.product((2, 4), (0, 1), figures.HOLDERS)
    ]
    table = pd.DataFrame(rows, columns=["width", "seed", "method", "measure", "value"])
    ax = figures.accuracy_per_holder(table, 0.4, "title").axes[0]
    lines = [line.get_ydata() for line in marked(ax, "o")]
    np.testing.assert_allclose(lines, [[0.555, 0.53]] * len(figures.HOLDERS))


def test_the_cosines_are_drawn():
    rows = [
        (t, s, w, 1 - 0.1 / w - 0.01 * s - t / 100) for t in (1, 5) for s in (0, 1) for w in (2, 4)
    ]
    table = pd.DataFrame(rows, columns=["round", "seed", "width", "cosine"])
    lines = [
        line.get_ydata() for line in marked(figures.gradient_accuracy(table, "t").axes[0], "o")
    ]
    np.testing.assert_allclose(lines, [[0.935, 0.96], [0.895, 0.92]])


def test_the_four_forms_are_drawn():
    traces = {"one": [(0.3, 0.5), (0.4, 1.0)], "two": [(0.1, 0.0), (0.2, 0.0)]}
    for ax, trace in zip(figures.four_forms(traces, 0.6).axes, traces.values(), strict=True):
        sent, held = (np.array(line.get_ydata()).tolist() for line in ax.lines[:2])
        assert list(zip(held, sent, strict=True)) == trace


def test_the_forms_of_fedlpp_by_hand():
    """In round 3 of 10: forms 2 and 3 are the mean of the uploads, form 4 goes 0.7 of the way."""
    key, other = ParamKey("B", "layer"), ParamKey("A", "layer")
    held, received, *sent_up = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0))
    state = ServerState({key: held, other: torch.ones(2, 3)}, round=3, planned=10)
    sent, weights = state.replace_tensors({key: received}), torch.tensor([0.5, 0.2, 0.3])
    mean = sum(w * x for w, x in zip(weights, sent_up, strict=True))
    for form, expected in {2: mean, 3: mean, 4: held + 0.7 * (mean - held)}.items():
        after = ServerForm(form)(state, sent, {key: torch.stack(sent_up)}, weights)
        torch.testing.assert_close(after.tensors[key], expected)
        assert after.tensors[other] is state.tensors[other]


def test_the_forms_are_compared():
    rows = [(f, s, 0.7 + 0.01 * f + 0.02 * s) for f in (1, 2, 3, 4) for s in (0, 1)]
    table = pd.DataFrame(rows, columns=["form", "seed", "accuracy"])
    drawn = marked(figures.accuracy_by_form(table, 0.6, "title").axes[0], "D")
    assert [line.get_xdata()[0] for line in drawn] == pytest.approx([0.72, 0.73, 0.74, 0.75])


def test_the_differences_are_drawn():
    found = [fl.report.PairedDifference(0.001 * i, -0.002, 0.004, 20) for i in range(3)]
    for ax in figures.differences({"a": found, "b": found}, "title").axes:
        (means,) = marked(ax, "o")
        assert list(means.get_xdata()) == [0.0, 0.001, 0.002]
