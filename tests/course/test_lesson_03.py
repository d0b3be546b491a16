"""Notebook 03: the gradients, releases, figures and widgets behind its cells."""

from typing import Any

import numpy as np
import pytest
import torch
from frames import limits, scores_frame, words
from matplotlib.colors import to_hex

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_03 import figures
from fedlora_lab.lora import peft, per_example
from fedlora_lab.tasks.task import concatenate, take


@pytest.fixture(scope="module")
def heavy() -> Any:
    """Gradients with lengths over two orders of magnitude, (200, 20)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((200, 20)) * np.exp(rng.standard_normal((200, 1))) + 0.1


@pytest.mark.slow
def test_example_gradients_average_to_the_gradient():
    """The mean row is the gradient of the mean loss, by differences along a random direction."""
    task = fl.tasks.digits(clients=4, seed=3)
    *_, record = fl.run(task, "fedlora", None, fl.Plan(rounds=1, local_steps=2, batch=8, lr=0.1))
    source: Any = record.source
    task, lora, state = source
    rows = figures.example_gradients(record)
    assert rows.shape == (sum(task.sizes), sum(tensor.numel() for tensor in state.tensors.values()))
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
    x, y = concatenate(task.clients)
    rng, step, slopes = torch.Generator().manual_seed(1), 1e-2, []
    way = {key: torch.randn(tensor.shape, generator=rng) for key, tensor in state.tensors.items()}
    flat = torch.cat([way[key].flatten() for key in adapted.places]).double().numpy()
    way = {key: tensor / float(np.linalg.norm(flat)) for key, tensor in way.items()}
    for sign in (1, -1):
        values = {key: tensor + sign * step * way[key] for key, tensor in state.tensors.items()}
        outputs = per_example.model_outputs(task, adapted, values, take(x, torch.arange(len(y))))
        slopes.append(float(task.loss(outputs, y).double().mean()))
    expected = rows.astype(float).mean(0) @ (flat / np.linalg.norm(flat))
    assert (slopes[0] - slopes[1]) / (2 * step) == pytest.approx(expected, abs=2e-3)


def test_the_clip_figure_shows_length_and_direction(heavy):
    figure: Any = figures.clip_cost(heavy, clip_norm=2.0, noise_multiplier=0.5, batch=64)
    (at, length), (_, turned), (_, released) = (x.get_data() for x in figure.axes[1].lines[:3])
    norms, mean = np.linalg.norm(heavy, axis=1), heavy.mean(0)
    for i in (0, 12, 30, 47):
        clipped = (heavy * np.minimum(1, at[i] / norms)[:, None]).mean(0)
        size, terms = np.linalg.norm(clipped), theory.clip_terms(heavy, float(at[i]), 0.5, 64)
        assert length[i] == pytest.approx(size / np.linalg.norm(mean))
        cosine = clipped @ mean / size / np.linalg.norm(mean)
        assert turned[i] == pytest.approx(cosine)
        whole = np.sqrt(size**2 + terms.sampling + terms.noise)
        assert released[i] == pytest.approx(cosine * size / whole)
        # The dial has the draw's part from the mean squared length alone.
        square = figures.clip_effect(heavy).square[i]
        assert (1 - 64 / 200) / 64 * square == pytest.approx(terms.sampling)
    assert f"cut down to C: {np.mean(norms > 2):.0%}" in words(figure)
    bars: Any = figure.axes[0].patches
    coloured = [to_hex(bar.get_facecolor()).upper() == figures.BIAS for bar in bars]
    assert [bar.get_x() >= 2 for bar in bars] == coloured
    assert sum(bar.get_height() for bar in bars) == len(heavy)


def test_the_two_normals_are_those_of_the_worlds():
    rng = np.random.default_rng(0)
    worlds: Any = [centre + 2 * rng.standard_normal((700, 2)) for centre in ([1, 0], [0, 0])]
    figure: Any = figures.two_normals(worlds[0], worlds[1], 2.0)
    for line, centre in zip(figure.axes[1].lines, (0, 1), strict=True):
        x, y = line.get_data()
        assert np.trapezoid(x * y, x) == pytest.approx(centre, abs=0.01)


@pytest.mark.parametrize(("sigma", "epsilon"), [(1.0, 1.0), (2.0, 0.5), (0.5, 3.0)])
def test_the_shaded_area_is_delta(sigma, epsilon):
    figure: Any = figures.neighbouring_outputs(sigma, epsilon)
    (x, out), (_, into) = (line.get_data() for line in figure.axes[0].lines[:2])
    area = np.trapezoid(np.maximum(0, into - np.exp(epsilon) * out), x)
    assert area == pytest.approx(theory.gdp_delta(theory.gaussian_mu(sigma), epsilon), rel=2e-3)
    assert f"δ = {area:.3f}" in words(figure)


def test_composition_ends_at_the_accountants():
    """Two of them by numbers from elsewhere; 3.77 is what PRV and Rényi bound from above."""
    table = figures.composition_table(3.0, 0.1, 1e-6, [512]).set_index("way")["epsilon"]
    plan = fl.Privacy(noise_multiplier=3.0, sample_rate=0.1, delta=1e-6)
    assert table["prv"] == plan.ledger(512).epsilon()
    assert (table["rdp"], table["clt"]) == pytest.approx((4.052, 3.668), abs=2e-3)
    assert table["clt"] < 3.77 < table["prv"] < table["rdp"] < table["sum"]
    assert "no bound 3.67" in words(figures.composition())


def test_the_planner_states_the_ledgers_epsilon():
    """Turning a knob leaves the axes where they are."""
    seen = set()
    for unit, drawn, of in (("example", 16, 120), ("client", 5, 20)):
        figure, text = figures.privacy_plan(unit, 1.5, drawn, of, releases=30)
        plan: Any = {"unit": unit, "sample_rate": drawn / of, "delta": 1e-4}
        ledger = fl.Privacy(noise_multiplier=1.5, **plan).ledger(30)
        assert f"promised ε = {ledger.epsilon():.2f} at" in text
        found = ledger.tradeoff(1e-3)
        assert f"at most {found:.1%} of the members" in text
        seen.add(limits(figure))
    assert len(seen) == 1


def test_the_budgets_curves_are_the_ledgers():
    plans = {f"σ = {s:g}": fl.Privacy(noise_multiplier=s, sample_rate=1.0) for s in (2.0, 8.0)}
    ledgers = {name: plan.ledger(4) for name, plan in plans.items()}
    ledgers["σ = 0"] = fl.Privacy(noise_multiplier=0.0, sample_rate=1.0).ledger(4)
    figure: Any = figures.attacks_by_budget(ledgers)
    solid = [line for line in figure.axes[0].lines if line.get_linewidth() == 2]
    for line, ledger in zip(solid, ledgers.values(), strict=True):
        fpr, tpr = line.get_data()
        assert tpr == pytest.approx(ledger.tradeoff(fpr))
    shown = words(figure)
    assert f"{ledgers['σ = 2'].tradeoff(0.01):.1%}" in shown
    assert "100.0%" in shown


def test_the_accuracies_are_the_means():
    frames = {f"ε = {x}": scores_frame({"ffa-lora": [x / 10, 0.9]}) for x in (2, 8)}
    figure: Any = figures.accuracy_by_setting(
        {"one": frames, "other": frames}, {"one": "One", "other": "Other"}, 0.6
    )
    for ax in figure.axes:
        dots = [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]
        assert dots == pytest.approx([(x / 10 + 0.9) / 2 for x in (2, 8)])
