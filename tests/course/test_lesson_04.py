"""Notebook 04: the draws and figures behind its cells."""

import numpy as np
import pytest
import torch
from torch.func import functional_call

import fedlora_lab as fl
from fedlora_lab import theory
from fedlora_lab.course.lesson_04 import dials, figures


@pytest.mark.slow
def test_the_noise_drawn_again_is_that_of_the_run():
    """In the first round all noise is that round's: the records have the same energies."""
    task = fl.tasks.digits(clients=3, seed=1)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.4)
    privacy = fl.Privacy(noise_multiplier=(1.0, 2.0, 3.0), clip_norm=0.7, delta=1e-4)
    table = figures.gathered_noise(task, privacy, plan, seeds=(3, 4))
    first = table.query("round == 1 and term in ['noise_B', 'noise_A', 'noise_BA']")
    wide = first.pivot_table("value", ["seed", "term"], "kind")
    assert len(wide) == 6
    assert wide["gathered"].to_numpy() == pytest.approx(wide["round"].to_numpy(), rel=1e-4)


@pytest.mark.slow
def test_the_film_is_of_the_run():
    """Two rounds are trained again: what the model says as it is, and without the noise."""
    task = fl.tasks.digits(clients=10, alpha=0.5, seed=0)
    plan = fl.Plan(rounds=20, local_steps=5, batch=16, lr=0.4)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    film = dials.decisions_film()
    scans = [shown["number"] for shown in film["scans"]]
    base: dict[str, torch.Tensor] = dict(task.model.named_parameters())
    runs = figures.split_run(task, privacy, plan.replace(rounds=2), seed=0)
    for record, scaling, layers in runs:
        for kind, noisy in (("noisy", 1), ("clean", 0)):
            weights = base.copy()
            for layer, (a, b, xi_a, xi_b) in layers.items():
                change = scaling * (b + noisy * xi_b) @ (a + noisy * xi_a)
                weights[f"{layer}.weight"] = base[f"{layer}.weight"] + change.float()
            with torch.no_grad():
                said = functional_call(task.model, weights, task.test[0][scans]).softmax(1)
            shown = [scan[kind][record.index] for scan in film["scans"]]
            assert said.numpy() == pytest.approx(np.array(shown), abs=0.01)
    assert [len(shown["noisy"]) for shown in film["scans"]] == [plan.rounds + 1] * len(scans)


def test_the_energies_are_the_theory():
    """At every τ, for an adapter whose B has grown."""
    table = figures.energies_by_noise(rank=2, width=64, alpha=4.0, size_B=0.5)
    B, A = figures.factors_at_start(2, 64, 0.5)
    for tau in table["tau"].unique():
        part = table[table["tau"] == tau]
        terms = theory.noise_terms(B, A, float(tau), float(tau), 2.0)
        assert part["value"].tolist() == pytest.approx(list(terms))
