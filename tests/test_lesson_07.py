"""Notebook 07: turns inside a round, the low-pass filter, and what a shuffled filter shows."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.plots.style import png
from fedlora_lab.rules import binomial
from fedlora_lab.shuffled import Shuffled, shuffled


def test_coupled_step():
    """The three parts are the change of the product, and the third is what a step of each alone would not do."""
    for b, a, lr in ((0.7, 1.9, 0.3), (-1.2, 0.4, 0.8), (0.0, 2.0, 1.0)):
        error = b * a - 1
        after = (b - lr * error * a) * (a - lr * error * b)
        one, two, both = theory.coupled_step(b, a, lr)
        assert one + two + both == pytest.approx(after - b * a, abs=1e-12)
        assert one == pytest.approx((b - lr * error * a) * a - b * a, abs=1e-12)
        assert two == pytest.approx(b * (a - lr * error * b) - b * a, abs=1e-12)


def test_two_number_descent():
    path = theory.two_number_descent((0.2, 1.5), 0.5, 8, turns=True)
    error = path.prod(1) - 1
    for step in range(8):
        peer = path[step, 1 - step % 2]
        assert error[step + 1] == pytest.approx(error[step] * (1 - 0.5 * peer**2), abs=1e-12)
        assert path[step + 1, 1 - step % 2] == peer
    at_once = theory.two_number_descent((0.2, 1.5), 0.5, 1, turns=False)
    assert at_once[1] == pytest.approx([0.2 + 0.5 * 0.7 * 1.5, 1.5 + 0.5 * 0.7 * 0.2])
    assert np.isnan(theory.two_number_descent((5.0, 5.0), 3.0, 40, turns=False)[-1]).all()


@pytest.mark.parametrize("taps", [1, 3, 5, 9])
@pytest.mark.parametrize("size", [2, 5, 64])
def test_filter_response(taps, size):
    """Each cosine passes the library's own filter as itself, times the gain."""
    place = (np.arange(size) + 0.5) / size
    for j, gain in enumerate(theory.filter_response(taps, size)):
        wave = torch.from_numpy(np.cos(np.pi * j * place))
        torch.testing.assert_close(binomial(taps)(wave[None], "A")[0], gain * wave, rtol=0, atol=1e-12)


def test_kept_energy():
    rng = np.random.default_rng(0)
    row = rng.standard_normal((3, 40))
    energy = fl.measures.spectrum(row, "A")
    after = binomial(5)(torch.from_numpy(row), "A").square().sum()
    assert theory.kept_energy(energy, 5) == pytest.approx(float(after) / float((row**2).sum()))
    assert theory.kept_energy(np.ones(4000), 5) == pytest.approx(theory.filter_gain(5), abs=2e-4)
    assert theory.kept_energy(energy, 1) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"^energy="):
        theory.kept_energy(np.zeros(4), 5)


def test_spectrum():
    x = np.random.default_rng(1).standard_normal((7, 12, 3))
    for side in "AB":
        assert fl.measures.spectrum(x, side).sum() == pytest.approx((x**2).sum())
    assert fl.measures.spectrum(x, "B").shape == (12,)
    np.testing.assert_allclose(fl.measures.spectrum(np.ones((4, 9)), "A"), [36] + [0] * 8, atol=1e-12)


@pytest.fixture(scope="module")
def record():
    task = fl.tasks.digits(clients=4, seed=3)
    *_, last = fl.run(task, "la-lora", None, fl.Plan(rounds=1, local_steps=2, batch=8, lr=0.1))
    return last


def test_gradient_spectra(record):
    """With a clip that cuts nothing the energies are those of the gradient of the mean loss."""
    frame: Any = fl.measures.gradient_spectra(record, clip_norm=1e9)
    for side in "AB":
        direct = fl.experiments.example_gradients(record, side).mean(0)
        assert frame[frame["side"] == side]["energy"].sum() == pytest.approx(float((direct**2).sum()), rel=1e-4)
    cut: Any = fl.measures.gradient_spectra(record, clip_norm=0.01)
    assert cut.groupby("side")["energy"].sum().max() <= 0.01**2


def test_shuffling_changes_neighbours_and_nothing_else():
    rule = shuffled(binomial(5), seed=1)
    x = torch.randn(500, 4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for side, y in (("A", x), ("B", x.mT)):
        plain, mixed = binomial(5)(y, side), rule(y, side)
        assert float(mixed.square().mean()) == pytest.approx(float(plain.square().mean()), rel=0.03)
        torch.testing.assert_close(mixed.sum(), y.sum())
        assert torch.equal(mixed, Shuffled(binomial(5), 1)(y, side))
        assert not torch.equal(mixed, shuffled(binomial(5), seed=2)(y, side))
        axis = -1 if side == "A" else -2
        slow = torch.cos(torch.arange(64, dtype=torch.float64) * math.pi / 64).expand(4, 64)
        slow = slow if side == "A" else slow.mT
        assert float(binomial(5)(slow, side).norm()) > 0.99 * float(slow.norm())
        assert float(rule(slow, side).norm()) < 0.8 * float(slow.norm())
        torch.testing.assert_close(rule(torch.ones_like(y), side).sum(axis), torch.ones_like(y).sum(axis))
    assert shuffled(lambda t, side: t)(x, "A").equal(x)
    with pytest.raises(ValueError, match=r"^rule=5"):
        shuffled(5)  # type: ignore[arg-type]


def test_a_shuffled_filter_costs_no_privacy(record):
    """The ledger does not see the filter."""
    task = record.source[0]
    plan = fl.Plan(rounds=1, local_steps=2, batch=8)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    row = fl.methods.LALoRA.replace(name="Shuffled filter", smooth=shuffled(binomial(5)))
    spent = {m.name: list(fl.run(task, m, privacy, plan))[-1].epsilon for m in (row, fl.methods.LALoRAUnfiltered)}
    assert len(set(spent.values())) == 1


def test_the_closed_form_holds_the_measurements():
    table: Any
    picture, table = fl.plots.response_check((3, 5), 32, seeds=100)
    assert len(table) == 64
    assert table["inside"].mean() >= 0.9
    assert not table.assign(e=1.5 * table["expected"]).eval("low <= 1.5 * measured <= high").mean() >= 0.9
    assert f"{table['inside'].mean():.0%} of 64" in picture.axes[1].get_title(loc="left")


def test_the_coupling_figure_draws_the_descent():
    picture = fl.plots.coupling(0.8, steps=6)
    drawn: Any = [line.get_xydata() for line in picture.axes[0].lines]
    for turns in (False, True):
        path = theory.two_number_descent((0.0, 1.5), 0.8, 6, turns)
        assert any(xy.shape == path.shape and np.allclose(xy, path) for xy in drawn)


def test_the_spectra_figure(record):
    frame: Any = fl.measures.gradient_spectra(record)
    picture = fl.plots.gradient_spectra(frame)
    for ax, side in zip(picture.axes, "BA", strict=True):
        energy = frame[frame["side"] == side].groupby("frequency")["energy"].sum()
        assert f"{side}: {theory.kept_energy(energy.to_numpy(), 5):.0%} of" in ax.get_title(loc="left")


def test_sharpness(record):
    frame = fl.measures.sharpness([record])
    top = fl.measures.flatness(record.source[0], record).top
    assert frame["value"].tolist() == pytest.approx([top], rel=0.02)
    assert list(frame[["method", "layer", "measure"]].iloc[0]) == ["la-lora", "all", "sharpness"]


def test_finals():
    cells = [(slug, seed, r) for slug in ("fedlora", "mine") for seed in (0, 1) for r in (0, 3)]
    rows = [("t", *cell, "all", "accuracy", 0.1 * cell[2] + 0.01 * cell[1]) for cell in cells]
    frame = pd.DataFrame(rows, columns=["task", "method", "seed", "round", "layer", "measure", "value"])
    ax: Any = fl.plots.finals(frame).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["FedLoRA", "mine"]
    assert [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1] == pytest.approx([0.305, 0.305])


def test_the_explorer():
    choices: Any = ((5, 0.6, 1.0, False), (15, 0.0, 2.0, True), (1, 1.0, 0.0))
    pictures = [fl.plots.filter_explorer(*values) for values in choices]
    limits = [[(ax.get_xlim(), ax.get_ylim()) for ax in picture.axes] for picture, _ in pictures]
    assert limits[0] == limits[1] == limits[2]
    assert len({png(picture) for picture, _ in pictures}) == 3
    smooth, rough = (fl.plots.filter_explorer(shuffle=mixed)[1] for mixed in (False, True))
    assert "tells them apart" in smooth
    assert "look alike" in rough
    assert "no filter" in pictures[2][1]


def test_the_widget_says_what_it_shows():
    widget = fl.widgets.filter_explorer()
    before, words = widget.picture.value, widget.sentence.value
    widget.knobs["shuffle"].value = True
    assert widget.settle()
    assert widget.picture.value != before
    assert "tells them apart" in words
    assert "look alike" in widget.sentence.value
    widget.reset()
    assert widget.settle()
    assert widget.picture.value == before
    widget.close()
