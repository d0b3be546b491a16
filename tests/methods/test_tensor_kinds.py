"""A new kind of trained tensor is one row of `KINDS` and a method whose ``start`` makes it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy_tasks import LORA, PLAN, play, regression

import fedlora_lab as fl
from fedlora_lab.federated.run import Run
from fedlora_lab.lora import adapters
from fedlora_lab.lora.independence import check_batch_independence
from fedlora_lab.methods.method import Cycle
from fedlora_lab.methods.state import KINDS, ParamKey, TensorKind

KEY, A, B = (ParamKey(side, "map") for side in ("S", "A", "B"))


@pytest.fixture
def row(monkeypatch):
    """A method that trains a shift S of each layer's output beside B; A rests."""
    kind = TensorKind(
        trained=True,
        scheduled=True,
        sent_up=True,
        sent_down=True,
        shape=lambda d_out, d_in, rank: (d_out,),
        output=lambda y, shift: y + shift.unsqueeze(1),
    )
    monkeypatch.setitem(KINDS, "S", kind)

    def start(weight, rank):
        return {"S": weight.new_zeros(len(weight))}

    return fl.methods.FFA.replace(name="shift", train=Cycle(("BS",)), start=start)


def shifted():
    """The regression task with 1 added to every target."""
    task = regression()
    clients = tuple((x, y + 1) for x, y in task.clients)
    return replace(task, clients=clients, test=(task.test[0], task.test[1] + 1))


def ended(row, privacy, plan=PLAN) -> Any:
    run = Run.open(shifted(), row, privacy, plan, lora=LORA, seed=3)
    records = list(run.events())
    return run.state.server.tensors, records[-1]


def test_a_new_kind_is_trained_sent_and_counted(row):
    task = shifted()
    (tensors, last) = ended(row, None)
    (start, _) = ended(row, None, PLAN.replace(rounds=0))
    assert tensors[KEY].abs().max() > 0.01 and not start[KEY].any()
    assert torch.equal(tensors[A], start[A])
    plain = play(task, "ffa-lora", None, seed=3)[-1]
    assert last.metrics["loss"] < plain.metrics["loss"]
    assert last.uploads.numbers_up - plain.uploads.numbers_up == len(task.clients) * 5
    assert last.uploads.numbers_down - plain.uploads.numbers_down == len(task.clients) * 5


def test_a_new_kind_is_probed_for_mixing_and_not_lost_on_the_way_out(row, tmp_path):
    task = regression()
    adapted = adapters.adapt(task.model, task.targets, task.head, LORA)
    mixes = row.replace(penalty=lambda own, start: own[KEY].sum() + 0 * own[B].flatten(1).sum(1))
    with pytest.raises(ValueError, match="penalty"):
        check_batch_independence(task, adapted, method=mixes, plan=PLAN)
    _, last = ended(row, None, PLAN.replace(rounds=1))
    with pytest.raises(ValueError, match="no place"):
        fl.save_adapter(last, tmp_path / "adapter")
