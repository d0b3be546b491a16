"""Notebook 07: turns inside a round, the low-pass filter, and what a shuffled filter shows."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from frames import limits, scores_frame

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_07 import figures
from fedlora_lab.course.lesson_07.figures import ShuffledFilter
from fedlora_lab.methods.filters import binomial


@pytest.fixture(scope="module")
def record():
    task = fl.tasks.digits(clients=4, seed=3)
    *_, last = fl.run(task, "la-lora", None, fl.Plan(rounds=1, local_steps=2, batch=8, lr=0.1))
    return last


def test_a_coupled_step_is_the_change_of_the_product():
    """The three parts are the change of the product; the third no step of one factor would do."""
    for b, a, lr in ((0.7, 1.9, 0.3), (-1.2, 0.4, 0.8), (0.0, 2.0, 1.0)):
        error = b * a - 1
        next_b, next_a = b - lr * error * a, a - lr * error * b
        one, two, both = theory.coupled_step(b, a, lr)
        assert one + two + both == pytest.approx(next_b * next_a - b * a, abs=1e-12)
        assert one == pytest.approx(next_b * a - b * a, abs=1e-12)
        assert two == pytest.approx(b * next_a - b * a, abs=1e-12)


def test_in_turns_each_step_shrinks_the_error():
    """In turns each step multiplies the error by 1 - lr · peer²; the figure draws both ways."""
    path = theory.two_number_descent((0.0, 1.5), 0.5, 8, turns=True)
    error = path.prod(1) - 1
    for step in range(8):
        peer = path[step, 1 - step % 2]
        assert error[step + 1] == pytest.approx(error[step] * (1 - 0.5 * peer**2), abs=1e-12)
        assert path[step + 1, 1 - step % 2] == peer
    at_once = theory.two_number_descent((0.0, 1.5), 0.5, 8, turns=False)
    assert at_once[1] == pytest.approx([0.5 * 1.5, 1.5])
    drawn: Any = [line.get_xydata() for line in figures.coupling(0.5, steps=8).axes[0].lines]
    assert all(any(np.array_equal(one, xy) for xy in drawn) for one in (path, at_once))


@pytest.mark.parametrize(("taps", "size"), [(1, 2), (3, 5), (5, 64), (9, 2), (9, 64)])
def test_the_filter_response_is_the_librarys_filter(taps, size):
    """Each cosine passes the library's own filter as itself, times the gain."""
    place = (np.arange(size) + 0.5) / size
    waves = torch.from_numpy(np.cos(np.pi * np.outer(np.arange(size), place)))
    passed = torch.from_numpy(theory.filter_response(taps, size))[:, None] * waves
    torch.testing.assert_close(binomial(taps)(waves, "A"), passed, rtol=0, atol=1e-12)


def test_filtered_energy_is_what_the_filter_leaves():
    row = np.random.default_rng(0).standard_normal((3, 40))
    energy = fl.measures.spectrum(row, "A")
    after = float(binomial(5)(torch.from_numpy(row), "A").square().sum())
    assert theory.filtered_energy(energy, 5) == pytest.approx(after / float((row**2).sum()))
    flat = theory.filtered_energy(np.ones(4000), 5)
    assert flat == pytest.approx(theory.filter_gain(5), abs=2e-4)


def test_a_spectrum_adds_up_to_the_energy():
    x = np.random.default_rng(1).standard_normal((7, 12, 3))
    for side in "AB":
        assert fl.measures.spectrum(x, side).sum() == pytest.approx((x**2).sum())
    constant = fl.measures.spectrum(np.ones((9, 4)), "B")
    np.testing.assert_allclose(constant, [36] + [0] * 8, atol=1e-12)


@pytest.mark.slow
def test_gradient_spectra_are_those_of_the_mean_gradient(record):
    """With a clip that cuts nothing the energies are those of the gradient of the mean loss."""
    frame: Any = fl.measures.gradient_spectra(record, clip_norm=1e9)
    direct = fl.course.lesson(3).example_gradients(record).mean(0)
    assert frame["energy"].sum() == pytest.approx(float((direct**2).sum()), rel=1e-4)
    cut: Any = fl.measures.gradient_spectra(record, clip_norm=0.01)
    assert cut.groupby("side")["energy"].sum().max() <= 0.01**2
    picture = figures.gradient_spectra(frame)
    for ax, side in zip(picture.axes, "BA", strict=True):
        energy = frame[frame["side"] == side].groupby("frequency")["energy"].sum().to_numpy()
        kept = f"{side}: {theory.filtered_energy(energy, 5):.0%} of"
        assert kept in ax.get_title(loc="left")


def test_shuffling_changes_neighbours_and_nothing_else():
    plain, mixed = binomial(5), ShuffledFilter(binomial(5), 1)
    x = torch.randn(500, 4, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slow = torch.cos(torch.arange(64, dtype=torch.float64) * math.pi / 64).expand(4, 64)
    for side, y, wave in (("A", x, slow), ("B", x.mT, slow.mT)):
        found, energy = mixed(y, side), float(plain(y, side).square().mean())
        assert float(found.square().mean()) == pytest.approx(energy, rel=0.03)
        torch.testing.assert_close(found.sum(), y.sum())
        assert torch.equal(found, ShuffledFilter(binomial(5), 1)(y, side))
        assert not torch.equal(found, ShuffledFilter(binomial(5), 2)(y, side))
        assert float(mixed(wave, side).norm()) < 0.8 * float(plain(wave, side).norm())
    assert ShuffledFilter(lambda t, side: t)(x, "A").equal(x)


@pytest.mark.slow
def test_a_shuffled_filter_costs_no_privacy(record):
    """The ledger does not see the filter."""
    task, plan = record.source[0], fl.Plan(rounds=1, local_steps=2, batch=8)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    row = fl.methods.LALoRA.replace(name="Shuffled filter", filter=ShuffledFilter(binomial(5)))
    rows = row, fl.methods.LALoRAUnfiltered
    assert len({[*fl.run(task, one, privacy, plan)][-1].epsilon for one in rows}) == 1


def test_the_closed_form_holds_the_measurements():
    checked: Any = figures.response_check((3, 5), 32, seeds=100)
    picture, table = checked
    assert len(table) == 64
    assert table["inside"].mean() >= 0.9
    assert table.eval("low <= 1.5 * measured <= high").mean() < 0.9
    assert f"{table['inside'].mean():.0%} of 64" in picture.axes[1].get_title(loc="left")


@pytest.mark.slow
def test_sharpness_is_the_top_of_flatness():
    task = fl.tasks.regression(clients=2, examples=16)
    record: Any = [*fl.run(task, "la-lora", None, fl.Plan(rounds=1, local_steps=2, batch=8))][-1]
    frame = fl.measures.sharpness([record])
    top = fl.measures.flatness(record.source[0], record).top
    assert frame["value"].tolist() == pytest.approx([top], rel=0.02)
    assert list(frame[["method", "layer", "measure"]].iloc[0]) == ["la-lora", "all", "sharpness"]


def test_final_values():
    frame = scores_frame({"fedlora": [0.3, 0.4], "mine": [0.6, 0.8]})
    ax: Any = fl.plots.final_values(frame).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["FedLoRA", "mine"]
    means = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
    assert means == pytest.approx([0.35, 0.7])


def test_the_filter_explorer_says_what_the_filter_does():
    """Its axes stand still; the words are those of a filter that helps, and of none."""
    choices: Any = ((5, 0.6, 1.0, False), (15, 0.0, 2.0, True), (1, 1.0, 0.0))
    pictures, words = zip(*(figures.low_pass(*values) for values in choices), strict=True)
    assert len(set(map(limits, pictures))) == 1
    assert "tells them apart" in words[0] and "no filter" in words[2]
