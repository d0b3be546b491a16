"""Differences of the loss along public directions, in the place of gradients."""

import math
from typing import Any

import pytest
import torch
from calls import refused
from toy_tasks import LORA, PLAN, anywhere, other_data, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab.federated.local_training import directions
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.methods.directions import Differences

ROW = fl.methods.FedZO
TURNS = ROW.replace(name="in turns", schedule=fl.Cycle(("B A",)))


@pytest.mark.parametrize("seed", [0, 3, None])
def test_directions_are_public_and_the_same_for_all_clients(seed):
    """Whatever the examples are, anyone can draw them from the number of the run's seed, or without
    one. That a round moves along them: test_noise_is_sigma_c_on_what_moves.
    """

    def drawn(task, seed):
        config = make_config(task, ROW, None, PLAN, LORA, seed)
        params = {key: x[None] for key, x in anywhere(task, ROW).tensors.items()}
        basis: Any = directions(config, params, 0, 0)
        return basis.rows

    task = tokens("head")
    assert torch.equal(drawn(task, seed), drawn(other_data(task), seed))
    assert not torch.allclose(drawn(task, seed), drawn(task, 7))


def test_an_upload_is_a_few_numbers_and_so_is_what_comes_down():
    """J numbers a step; a client that missed rounds catches up, or receives the tensors where they
    are fewer. What no mean of numbers tells, as of AdamW's steps, goes down whole.
    """
    task = tokens("head")
    row = ROW.replace(name="two", differences=Differences(directions=2))
    whole = sum(x.numel() for key, x in anywhere(task, row).tensors.items() if key.kind.trained)
    plan = PLAN.replace(rounds=3)
    for optimizer, down in ((fl.SGD(), 3 * 4), (fl.AdamW(), 3 * whole)):
        traffic = play(task, row, None, plan.replace(optimizer=optimizer))[-1].traffic
        assert traffic == (3 * 4, 4 * 3 * 4, down, 4 * down)
    late = play(task, row, None, plan.replace(rounds=60, participation=0.02))
    assert max(r.traffic.numbers_down / max(r.participants, 1) for r in late) <= whole
    assert {r.traffic.numbers_up % 4 for r in late} == {0}


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({"optimizer": fl.AdamW()}, "optimizer=.*: expected sgd: in the client unit"),
        ({"lr": {"A": 0.1, "B": 0.2}}, "lr=.*: expected one number: in the client unit"),
    ],
)
def test_what_has_no_numbers_along_the_directions_is_refused(changes, begins):
    with refused(f"^{begins}"):
        play(tokens("head"), ROW, private("client"), PLAN.replace(**changes))


def test_unequal_rates_train_where_a_step_stays_along_its_directions():
    """A and B by turns; and any rates where each step is noised and nothing is projected."""
    unequal = PLAN.replace(rounds=1, lr={"A": 0.1, "B": 0.2})
    assert len(play(tokens(), TURNS, private("client"), unequal)) == 2
    assert len(play(tokens(), ROW, private("example"), unequal)) == 2


def test_a_row_clips_in_one_kind_of_coordinates():
    for changes, begins in (
        ({"precondition": fl.methods.DEeR.precondition}, "precondition=.*: expected None: diff"),
        ({"clip_groups": lambda key: key.name}, "clip_groups=.*: expected None: differences"),
        ({"differences": 16}, "differences=16: expected None or fl.methods.Differences"),
    ):
        with refused(f"^{begins}"):
            ROW.replace(name="mine", **changes)
    with refused("^directions=0"):
        Differences(directions=0)
    with refused("^step=0"):
        Differences(step=0.0)


def test_the_noise_of_an_update_is_not_forecast_along_directions():
    """In the client unit; in the others it is forecast as of any row, see test_amplification.py."""
    number = fl.noise_amplification(regression(), ROW, private("client"), PLAN)
    assert math.isnan(number.mean) and "along the directions of its round" in str(number.unknown)
