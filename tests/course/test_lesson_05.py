"""Notebook 05: what freezing A does, and the figures that show it."""

import numpy as np
import pandas as pd
import pytest

import fedlora_lab as fl
from fedlora_lab.course.lesson_05 import figures


def test_a_silent_task_moves_only_by_noise():
    task = fl.tasks.zero_signal(fl.tasks.regression(clients=2, examples=8))
    plan = fl.Plan(rounds=2, local_steps=2, batch=4)
    *_, still = fl.run(task, "fedlora", None, plan)
    assert all(float(b.norm()) == 0 for _, b in still.adapter.values())
    *_, moved = fl.run(task, "fedlora", fl.Privacy(noise_multiplier=1.0, delta=1e-3), plan)
    assert all(float(b.norm()) > 0 for _, b in moved.adapter.values())
    assert still.metrics["loss"] > 0  # the metrics are those of the task itself


def test_settings_are_lined_up_at_their_best_rate():
    """Two knobs with a common centre: FedLoRA best at 0.2, FFA-LoRA at 0.4."""
    rows = [
        (method, knob, value, lr, accuracy - 0.1 * abs(place - best) + 0.01 * value)
        for knob, values in (("α / r", (1, 2)), ("rank r", (2, 4)))
        for value in values
        for method, best in (("fedlora", 1), ("ffa-lora", 2))
        for place, (lr, accuracy) in enumerate([(0.1, 0.6), (0.2, 0.7), (0.4, 0.7)])
    ]
    trials = pd.DataFrame(rows, columns=["method", "knob", "value", "lr", "accuracy"])
    means = figures.from_best_rate(trials).groupby(["method", "step"])["loss"].mean()
    assert means["fedlora", 1] == pytest.approx(-0.1) == means["ffa-lora", -1]
    assert (means.xs(0, level="step") == 0).all()


def test_a_spread_has_its_interval():
    """The interval of a normal sample holds the true spread in 95 % of all samples."""
    rng, hits = np.random.default_rng(0), []
    for i in range(400):
        runs = pd.DataFrame({"accuracy": rng.normal(0.8, 0.02, 20)}).assign(setting="s", method="m")
        row = figures.spreads(runs, ("m",)).iloc[0]
        assert i or row["mean"] == pytest.approx(runs["accuracy"].std())
        hits.append(row["low"] <= 0.02 <= row["high"])
    assert 0.92 <= np.mean(hits) <= 0.98


def test_gap_is_the_paired_interval():
    difference = fl.report.paired_difference

    def scores(fedlora, ffa):
        rows = [("fedlora", *pair) for pair in enumerate(fedlora)]
        rows += [("ffa-lora", *pair) for pair in enumerate(ffa)]
        return pd.DataFrame(rows, columns=["method", "seed", "accuracy"])

    frame = scores([0.60, 0.70, 0.80], [0.65, 0.76, 0.84])
    gap = difference(frame, "ffa-lora", "fedlora")
    half = 4.302652729911275 * np.std([0.05, 0.06, 0.04], ddof=1) / np.sqrt(3)
    assert gap[:3] == pytest.approx((0.05, 0.05 - half, 0.05 + half))
    assert -gap == pytest.approx(difference(frame, "fedlora", "ffa-lora"))
    assert (gap.seeds, gap.holds, (-gap).holds) == (3, "yes", "no")
    assert difference(scores([0.5, 0.7], [0.6, 0.6]), "fedlora", "ffa-lora").holds == "cannot tell"
    with pytest.raises(ValueError, match=r"^seeds=1: expected at least two"):
        difference(frame[frame["seed"] == 0], "fedlora", "ffa-lora")
