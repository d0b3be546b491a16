"""The doctor's table of models: by the formulas of the cost, at a speed that was measured."""

import re
import time

import pytest
import torch
import toy_hubs
import transformers
from commands import call

import fedlora_lab as fl
from fedlora_lab.cli import doctor
from fedlora_lab.federated.cost import cost


@pytest.mark.slow
def test_the_table_follows_from_the_formulas_of_cost():
    """Finds a line whose clients, memory or time are not those that `cost` states; also where it is
    counted on two and three layers of all."""
    config = transformers.AutoConfig.from_pretrained(toy_hubs.folder("bert"))
    config.num_hidden_layers = 4
    plan = fl.Plan(rounds=1, local_steps=doctor.STEPS, batch=doctor.BATCH)
    task = doctor._texts_task(doctor._model(config, "meta"), 1)
    counted = cost(task, fl.methods.FedLoRA, fl.Lora(), plan)
    free, speed = 1e8, 1e9
    found = doctor.capacity("toy", config, speed, free, alike=True)
    assert found.parameters == sum(p.numel() for p in task.model.parameters())
    assert found.memory == counted.memory(doctor.AT_ONCE, 1)
    assert counted.memory(doctor.AT_ONCE, found.most) <= free
    assert counted.memory(doctor.AT_ONCE, found.most + 1) > free
    steps = doctor.STEPS * doctor.BATCH * counted.step_flops
    assert found.seconds == pytest.approx(steps / speed)
    assert found.cells()[-1] == doctor._duration(100 * found.seconds)
    assert found._replace(free=1e5).cells()[3] == "none"


@pytest.mark.slow
def test_the_speed_is_that_of_a_private_step(monkeypatch):
    """Finds a speed of bare products: the step counted takes the time that it says."""
    monkeypatch.setattr(
        doctor,
        "SIZES",
        {
            "toy": (
                "bert",
                {
                    "hidden_size": 96,
                    "vocab_size": 99,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 64,
                },
            )
        },
    )
    before, begun = torch.random.get_rng_state(), time.perf_counter()
    speed = doctor.measured_speed(seconds=0.2)
    took = time.perf_counter() - begun
    config = transformers.AutoConfig.for_model("bert", **doctor.SIZES["toy"][1])
    plan = fl.Plan(rounds=1, local_steps=1, batch=doctor.BATCH)
    task = doctor._texts_task(doctor._model(config, "meta"), 1)
    step = doctor.BATCH * cost(task, fl.methods.FedLoRA, fl.Lora(), plan).step_flops / speed
    assert 0 < step < took, "a step takes less than all of them together"
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.slow
def test_the_whole_table_is_made():
    """Finds an architecture that no longer builds."""
    lines = []
    doctor.capacity_lines(None, lines.append)
    assert sum(line.startswith(tuple(doctor.SIZES)) for line in lines) == len(doctor.SIZES)


@pytest.mark.slow
def test_a_model_of_ones_own_has_its_line(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "measured_speed", lambda: 1e9)  # the other test measures it
    assert call("doctor", "--model", toy_hubs.folder("gpt2")) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^  gpt2 +0 M +0\.0 GiB +[\d,]+ +[\d.]+ s", shown, re.M)
    assert call("doctor", "--model", "no/such/model") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--model='no/such/model': expected a Hugging Face" in error
