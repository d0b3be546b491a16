"""The order and the number of the rows that are given decide no verdict."""

import itertools

import numpy as np
import pytest
from gradient_steps import CLAIMS, NUMBERS, UNSEEDED, step_of, total, unseeded

import dp_review
from dp_review.mistakes import MISTAKES

STEPS = [name for name, mistake in MISTAKES.items() if mistake.checks and mistake.steps]


def orders(rows):
    """Six orders of rows: turned round, sorted by label, and at random."""
    rng = np.random.default_rng(0)
    places = range(len(rows))
    by_label = sorted(places, key=lambda i: repr(rows[i][-1])[:12])
    return [places[::-1], by_label, *(rng.permutation(len(rows)) for _ in range(4))]


def outcome(found):
    epsilon = None if found.epsilon is None else float(f"{found.epsilon:.6g}")
    return found.broken, found.not_as_claimed, epsilon


@pytest.mark.every(8)
@pytest.mark.slow
@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_a_verdict_is_the_same_in_six_orders_of_the_rows(name, sound):
    """Fault: the first few rows that decide."""
    function, data, claims, loader = MISTAKES[name].subject(sound=sound)
    rows = data()
    given = [rows, *([rows[i] for i in order] for order in orders(rows))]
    found = [dp_review.step(function, x, claims, loader=loader, draws=16) for x in given]
    assert len({outcome(review) for review in found}) == 1, found


def heavier(kinds):
    """A step whose rows count so much after the clip: (gradients, labels) -> weights."""

    def step(examples, seed):
        rows = np.array([x for x, _ in examples], float).reshape(-1, NUMBERS)
        weights = kinds(rows, np.array([label for _, label in examples]))
        return step_of(lambda _: total(rows, weights))(examples, seed)

    return step


HEAVIER = {
    "a rare class": heavier(lambda rows, labels: 1 + 2.0 * (labels == 3)),
    "a rare flag": heavier(lambda rows, labels: 1 + 1.0 * (rows[:, 0] == 1.25)),
}


def rows_with_one(count, place):
    """So many rows of three classes, and among them one of a fourth that has a mark."""
    rng = np.random.default_rng(count)
    rows = [(rng.normal(size=NUMBERS), int(rng.integers(3))) for _ in range(count - 1)]
    marked = rng.normal(size=NUMBERS)
    marked[0] = 1.25
    return [*rows[:place], (marked, 3), *rows[place:]]


@pytest.mark.parametrize(("count", "place"), [(32, 0), (32, 9), (48, 47), (200, 121)])
@pytest.mark.parametrize("name", HEAVIER)
def test_a_row_that_counts_more_is_found_wherever_it_stands(name, count, place):
    """Fault: a row that is given, and never left out."""
    found = dp_review.step(HEAVIER[name], rows_with_one(count, place), CLAIMS, draws=16)
    assert "sensitivity" in found.broken and "of which each was left out" in str(found), found


def test_of_more_rows_than_are_tried_each_class_is_among_them():
    """Fault: the first rows of many, which are of one class where they are sorted."""
    rows = sorted(rows_with_one(600, 300), key=lambda row: row[1])
    found = dp_review.step(HEAVIER["a rare class"], rows, CLAIMS, draws=16)
    assert "sensitivity" in found.broken and "than 256 of 600 that were left out" in str(found)


@pytest.mark.slow
def test_one_row_of_many_is_found_without_a_seed():
    """Fault: one row alone that is estimated, where moves hide in the noise."""
    step = unseeded(HEAVIER["a rare class"])
    found = dp_review.step(step, rows_with_one(32, 21), UNSEEDED, batch=8, draws=64)
    assert "sensitivity" in found.broken, found


def test_rows_that_no_clip_cuts_are_named():
    """Fault: a weight after the clip of a row that never reaches it, passed without a word."""
    rows = [*itertools.repeat((1e-3 * np.ones(NUMBERS), 0), 12)]
    short = step_of(lambda rows: 0.3 * total(rows))
    assert "move where the clip cuts them" in str(dp_review.step(short, rows, CLAIMS, draws=16))
