"""Notebook 04: the runs, matrices and gradients behind its cells."""

import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_course.lesson_04 import figures


@pytest.mark.slow
def test_the_noise_drawn_again_is_that_of_the_run():
    """In the first round all noise is that round's: the records have the same energies."""
    task = fl.tasks.digits(clients=3, seed=1)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.4)
    privacy = fl.Privacy(noise_multiplier=(1.0, 2.0, 3.0), clip_norm=0.7, delta=1e-4)
    runs = [list(figures.split_run(task, privacy, plan, seed)) for seed in (3, 4)]
    table = figures.gathered_noise(runs)
    first = table.query("round == 1 and term in ['noise_B', 'noise_A', 'noise_BA']")
    wide = first.pivot_table("value", ["seed", "term"], "kind")
    assert len(wide) == 6
    assert wide["gathered"].to_numpy() == pytest.approx(wide["round"].to_numpy(), rel=1e-4)
    # The four parts are those of the adapter that the run holds.
    layer = "blocks.1.value"
    A, B = (x.double().numpy() for x in runs[0][2][0].adapter[layer])
    last = figures.matrix_frames(runs[0], layer)[2]
    expected = pytest.approx(2 * B @ A, abs=1e-6)
    assert last["product"] == expected and sum(last[term] for term in figures.PARTS) == expected


def test_an_end_is_three_points_behind_the_best_mean_and_late_is_above_zero():
    rates = [0.5, 1.0, 2.0]
    scores = [[0.7, 0.8, 0.7], [0.7, 0.8, 0.76]]
    rows = [("a", "fedlora", lr, x) for run in scores for lr, x in zip(rates, run)]
    runs = pd.DataFrame(rows, columns=["cell", "method", "lr", "validation"])
    predicted = pd.DataFrame({"cell": ["a", "b"], "method": "fedlora", "v": [4.0, 1.0]})
    table = figures.ends_found(runs, predicted)
    found = 2.0 ** (0.03 / 0.07)  # the mean falls from 0.80 to 0.73 within an octave
    assert table["found"].tolist() == pytest.approx([found])
    assert figures.octaves_late(table).tolist() == pytest.approx([2 - 0.03 / 0.07])
