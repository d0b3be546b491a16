"""Another device than the CPU: every tensor is where it is used, and the numbers are the same."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import flower_runs
import pytest
import torch
import toy_hubs
from calls import Options
from other_device import DEVICE, There, other_device
from toy_tasks import KEEPS_B, LORA, PLAN, gap, people, play, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.lora.source import require_source
from fedlora_lab.measures.gradients import private_gradients

pytestmark = pytest.mark.slow
SETTINGS = {
    "a trusted server": (tokens("head"), private("client", trust="central"), PLAN, {}),
    "persons": (people(), private("person"), PLAN, {}),
    "two examples at once": (tokens("head"), private("example"), PLAN, {"chunk_examples": 2}),
    "some clients": (tokens(), private("client"), PLAN.replace(participation=0.7), {}),
    "clients with Adam": (tokens(), None, PLAN.replace(optimizer=fl.AdamW()), {}),
}


def test_tensors_of_two_devices_do_not_meet():
    """What the other tests stand on."""
    with other_device():
        here, there = torch.ones(2, 3), torch.ones(2, 3).to(DEVICE)
        assert there.device == DEVICE and there.cpu().equal(here)
        assert isinstance(there[0] + 1, There) and float((there * 2).sum()) == 12
        for mixed in (lambda: here + there, lambda: there @ here.T, lambda: here[there[0].long()]):
            with pytest.raises(RuntimeError, match="device"):
                mixed()


@pytest.mark.every(3)
@pytest.mark.parametrize("row", [*methods.ALL.values(), KEEPS_B], ids=lambda row: row.slug)
def test_a_row_runs_on_another_device(row):
    """Fault: the server's first state lay on the device, and no run on a GPU got beyond it."""
    given = tokens("head"), row, private("example")
    with other_device():
        there = play(*given, device=DEVICE)[-1]
    assert gap(play(*given)[-1], there) < 1e-12


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_runs_on_another_device(name):
    task, privacy, plan, options = SETTINGS[name]
    given = task, "la-lora", privacy, plan
    with other_device():
        there = play(*given, device=DEVICE, **options)[-1]
    assert gap(play(*given, **options)[-1], there) < 1e-12


def test_a_run_is_resumed_on_another_device(tmp_path):
    given = tokens("head"), "fedsa-lora", private("example"), PLAN.replace(rounds=3)
    options: Options = {"lora": LORA, "seed": 0, "device": DEVICE}
    with other_device():
        whole = play(*given, **options)[-1]
        run = fl.run(*given, out=tmp_path, **options)
        for _ in range(2):
            next(run)
        run.close()
        resumed = play(*given, out=tmp_path, **options)[-1]
    assert gap(whole, resumed) == 0


def tokens_on(model=None):
    return replace(tokens("head"), model=model or tokens("head").model)


@pytest.mark.filterwarnings(toy_hubs.NO_PAD)
@pytest.mark.parametrize(
    "make",
    [
        tokens_on,
        partial(toy_hubs.fresh, "bert"),
        pytest.param(partial(toy_hubs.fresh_answers, "llama"), marks=pytest.mark.further),
    ],
)
def test_a_model_may_lie_on_another_device(make):
    """Without ``device`` a run is where the model is; the data may stay on the CPU. Fault: a model
    of transformers was refused, since it was tried on inputs that lay on the CPU."""
    here = make()
    given = "rolora", private("example"), fl.Plan(rounds=1, local_steps=1)
    with other_device():
        there = play(make(model=deepcopy(here.model).to(DEVICE)), *given)[-1]
    assert gap(play(here, *given)[-1], there) < 1e-5


# ---- what is not a run


def test_measures_of_a_model_on_another_device():
    """Fault: they put the model's inputs on the CPU."""

    def measured(task):
        row, given = fl.measures.record_aggregation(fl.methods.FedLoRA)
        *_, end = play(task, row, None)
        layer = given[0].state.layers[0]
        slope = fl.measures.gradients(task, end, layer).W
        return [
            float(slope.norm()),
            float(fl.measures.full_updates(task, steps=2)[layer].norm()),
            *(float(x.norm()) for x in next(private_gradients(require_source(end))).values()),
            float(fl.predict(task, end, task.test[0]).double().square().mean()),
        ]

    with other_device():
        moved = replace(tokens(), model=deepcopy(tokens().model).to(DEVICE))
        there = measured(moved)
    assert there == pytest.approx(measured(tokens()), rel=1e-6)


@pytest.mark.parametrize("slug", ["fedlora", "fedsa-lora"])
def test_an_audit_runs_on_another_device(slug):
    """Fault: canaries' traces were taken on the CPU."""
    task, privacy = tokens(), private("example", 0.5)
    given = task, slug, privacy, PLAN
    options: Options = {"canaries": 20, "lora": LORA, "seed": 0}
    here = fl.audit.run_audit(*given, **options)
    with other_device():
        there = fl.audit.run_audit(*given, device=DEVICE, **options)
    assert str(there) == str(here)


def test_sites_of_a_federation_may_train_on_another_device():
    """Over Flower's messages, which carry tensors of the CPU."""
    terms = methods.get("fedsa-lora"), flower_runs.protected("example")
    here = flower_runs.by_messages(tokens("head"), *terms)
    with other_device():
        moved = replace(tokens("head"), model=deepcopy(tokens("head").model).to(DEVICE))
        there = flower_runs.by_messages(moved, *terms)
    assert flower_runs.apart(here, there) < 1e-12
