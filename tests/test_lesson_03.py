"""Notebook 03: the gradients, releases, figures and widgets behind its cells."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

import fedlora_lab as fl
from fedlora_lab import passes, theory
from fedlora_lab.plots import clipping, promise
from fedlora_lab.plots.style import png
from fedlora_lab.tasks.task import take, together


@pytest.fixture(scope="module")
def heavy() -> Any:
    """Gradients with lengths over two orders of magnitude, (200, 20)."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((200, 20)) * np.exp(rng.standard_normal((200, 1))) + 0.1


@pytest.fixture(scope="module")
def record():
    """A small federation after one round: both factors are non-zero."""
    task = fl.tasks.digits(clients=4, seed=3)
    *_, last = fl.run(task, "fedlora", None, fl.Plan(rounds=1, local_steps=2, batch=8, lr=0.1))
    return last


def test_example_gradients_average_to_the_gradient(record):
    """The mean row is the gradient of the mean loss, by finite differences along a random direction."""
    task, lora, state = record.source
    rows = fl.experiments.example_gradients(record)
    assert rows.shape == (sum(task.sizes), sum(tensor.numel() for tensor in state.tensors.values()))
    from fedlora_lab import adapters

    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    x, y = together(task.clients)
    rng, step, slopes = torch.Generator().manual_seed(1), 1e-2, []
    way = {slot: torch.randn(tensor.shape, generator=rng) for slot, tensor in state.tensors.items()}
    flat = torch.cat([way[slot].flatten() for slot in adapted.places]).double().numpy()
    way = {slot: tensor / float(np.linalg.norm(flat)) for slot, tensor in way.items()}
    for sign in (1, -1):
        values = {slot: tensor + sign * step * way[slot] for slot, tensor in state.tensors.items()}
        outputs = passes.predict(task, adapted, values, take(x, torch.arange(len(y))))
        slopes.append(float(task.loss(outputs, y).double().mean()))
    expected = rows.astype(float).mean(0) @ (flat / np.linalg.norm(flat))
    assert (slopes[0] - slopes[1]) / (2 * step) == pytest.approx(expected, abs=2e-3)


def test_sides_of_the_gradient(record):
    both = fl.experiments.example_gradients(record)
    a, b = (fl.experiments.example_gradients(record, side) for side in "AB")
    assert a.shape[1] + b.shape[1] == both.shape[1]
    np.testing.assert_allclose(np.sum(a**2, 1) + np.sum(b**2, 1), np.sum(both**2, 1), rtol=1e-4)
    with pytest.raises(ValueError, match=r"^sides='C': expected one of"):
        fl.experiments.example_gradients(record, "C")


def test_releases_follow_the_closed_form(heavy):
    """Twelve cells of 200 releases each lie within 4 standard errors of `theory.clip_terms`."""
    errors = fl.experiments.release_errors(heavy, [0.3, 1, 3, 10], [0.0, 0.5, 2.0], batch=50, seeds=200)
    for (sigma, clip), part in errors.groupby(["noise_multiplier", "clip_norm"]):
        assert theory.clip_terms(heavy, clip, sigma, 50).total in theory.mean_band(part["value"].to_numpy())
    assert errors["value"].nunique() == len(errors)  # no two releases share their random numbers


def test_a_release_without_draw_and_noise_is_the_clipped_mean(heavy):
    norms = np.linalg.norm(heavy, axis=1)
    expected = (heavy * np.minimum(1, 2.0 / norms)[:, None]).mean(0)
    np.testing.assert_allclose(fl.experiments.released_mean(heavy, 2.0, 0.0, len(heavy)), expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"^batch=201: expected"):
        fl.experiments.released_mean(heavy, 1.0, 1.0, 201)


def test_the_clip_figure_shows_the_terms(heavy):
    clip = clipping.Clip(heavy)
    assert clip.counts.sum() == len(heavy)
    figure, words = clip(clip_norm=2.0, noise_multiplier=0.5, batch=64)
    lines = figure.axes[1].get_lines()
    total, bias, noise = (np.asarray(line.get_ydata()) for line in lines[:3])
    for i in (0, 12, 30):
        terms = theory.clip_terms(heavy, float(clip.thresholds[i]), 0.5, 64)
        assert [bias[i] ** 2, noise[i] ** 2] == pytest.approx([terms.bias, terms.noise])
        assert total[i] ** 2 == pytest.approx(terms.bias + terms.noise)
    cut = np.mean(np.linalg.norm(heavy, axis=1) > 2)
    assert f"{cut:.0%} of 200 gradients are cut" in words
    bars: Any = figure.axes[0].collections[0]
    boxes = [path.get_extents() for path in bars.get_paths()]
    coloured = [to_hex(colour).upper() == clipping.BIAS for colour in bars.get_facecolors()]
    assert [box.x0 >= 2 for box in boxes] == coloured
    assert [box.height for box in boxes] == clip.counts.tolist()


def test_the_clip_check_judges(heavy):
    """It finds right dots inside the band, and dots that are 20 % off outside."""
    errors = fl.experiments.release_errors(heavy, [0.5, 2, 8], [0.2, 1.0], batch=50, seeds=60)
    figure, table = fl.plots.clip_check(errors, heavy, 50)
    assert table["inside"].mean() >= 0.8
    assert len(table) == 6
    assert len(png(figure)) > 5000
    wrong = errors.assign(value=errors["value"] * 1.2)
    assert fl.plots.clip_check(wrong, heavy, 50)[1]["inside"].mean() < 0.5


@pytest.mark.parametrize(("sigma", "epsilon"), [(1.0, 1.0), (2.0, 0.5), (0.5, 3.0)])
def test_the_shaded_area_is_delta(sigma, epsilon):
    x, out, into = promise.densities(sigma)
    area = np.trapezoid(np.maximum(0, into - np.exp(epsilon) * out), x)
    assert area == pytest.approx(theory.gdp_delta(theory.gaussian_mu(sigma), epsilon), rel=2e-3)
    figure = fl.plots.worlds(sigma, epsilon)
    assert f"δ = {area:.3f}" in " ".join(text.get_text() for text in figure.axes[0].texts)


def test_composition_ends_at_the_accountants():
    table = promise.composed(3.0, 0.1, 1e-6, [512]).set_index("way")["epsilon"]
    plan = fl.Privacy(noise_multiplier=3.0, sample_rate=0.1, delta=1e-6)
    assert table["prv"] == plan.ledger(512).epsilon()
    assert table["rdp"] == pytest.approx(4.052, abs=2e-3)
    assert table["clt"] == pytest.approx(3.668, abs=2e-3)
    assert table["clt"] < 3.77 < table["prv"] < table["rdp"] < table["old"] < table["sum"]
    texts = " ".join(text.get_text() for text in fl.plots.composition().axes[0].texts)
    assert "no bound 3.67" in texts


def test_the_planner_states_the_ledgers_epsilon():
    seen = []
    for unit, drawn, of in (("example", 16, 120), ("client", 5, 20), ("example", 64, 20)):
        figure, words = fl.plots.planner(unit, 1.5, drawn, of, releases=30)
        q = min(1.0, drawn / of)
        spent = fl.Privacy(unit=unit, noise_multiplier=1.5, sample_rate=q, delta=1e-4).ledger(30).epsilon()
        assert f"promised ε = {spent:.2f} at" in words
        found = theory.membership_bound(np.array([1e-3]), spent, 1e-4).item()
        assert f"at most {found:.1%} of the members" in words
        seen.append([ax.get_xlim() + ax.get_ylim() for ax in figure.axes])
    assert seen[0] == seen[1] == seen[2]  # turning a knob leaves the axes where they are


def test_promises_draw_the_means():
    task = fl.tasks.digits(clients=3, seed=1)
    plan = fl.Plan(rounds=1, local_steps=1, batch=8)
    frames = {
        target: fl.compare(
            task,
            ["ffa-lora"],
            fl.Privacy(delta=1e-4).calibrate(epsilon=target, task=task, plan=plan),
            plan,
            seeds=range(2),
            progress=False,
        )
        for target in (2.0, 8.0)
    }
    figure = fl.plots.promises(frames)
    for line, frame in zip(figure.axes[0].get_lines(), frames.values(), strict=False):
        part = frame[(frame["measure"] == "accuracy") & (frame["round"] == 1)]
        assert np.asarray(line.get_ydata())[-1] == pytest.approx(part["value"].mean())


def test_the_widgets_follow_their_controls(heavy):
    for dial, knob, value, words in (
        (fl.widgets.privacy_planner(), "noise_multiplier", 4.0, "σ = 4:"),
        (fl.widgets.privacy_planner(), "unit", "client", "one client, with all its examples"),
        (fl.widgets.clip_explorer(heavy), "clip_norm", 10.0, "C = 10:"),
    ):
        image, sentence = dial.picture.value, dial.sentence.value
        dial.knobs[knob].value = value
        assert dial.settle(30)
        assert words in dial.sentence.value
        assert dial.picture.value != image
        dial.reset()
        assert dial.settle(30)
        assert (dial.picture.value, dial.sentence.value) == (image, sentence)
        dial.close()
