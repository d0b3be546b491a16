"""Notebook 04: the runs, matrices and gradients behind its cells."""

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
