"""The room that knows PEFT: where factors start, that nothing of the user's is touched, and folders PEFT can read."""

import copy
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import peft
import pytest
import torch
from small import LORA, PLAN, Tokens, examples, play, private, tensors, tokens

import fedlora_lab as fl
from fedlora_lab import adapters
from fedlora_lab.method import Slot
from fedlora_lab.streams import Streams


def adapted(name="digits", head=False, lora=LORA):
    task = models.task(name, head)
    return task, adapters.adapt(task.model, task.targets, task.head, lora)


@pytest.mark.parametrize("name", ["digits", *models.MODELS])
@pytest.mark.parametrize("head", [False, True], ids=["factors", "with head"])
def test_every_target_has_its_two_factors(name, head):
    """Shapes (r, d_in) and (d_out, r), also for transposed linear maps; a head has its weights and biases."""
    task, model = adapted(name, head)
    layers = {slot.layer for slot in model.shapes if slot.side == "A"}
    ends = tuple(f".{target}" for target in task.targets)
    assert layers == {part for part, _ in task.model.named_modules() if f".{part}".endswith(ends)}
    for layer in layers:
        module: Any = task.model.get_submodule(layer)
        out, into = module.weight.shape if isinstance(module, torch.nn.Linear) else module.weight.shape[::-1]
        assert model.shapes[Slot("A", layer)] == (LORA.rank, into)
        assert model.shapes[Slot("B", layer)] == (out, LORA.rank)
    own = {name for name, _ in task.model.get_submodule(task.head).named_parameters()} if task.head else set()
    assert {slot.layer for slot in model.shapes if slot.side == "head"} == {f"{task.head}.{part}" for part in own}


def test_the_start_is_pefts():
    """A uniform on [-1 / sqrt(d_in), 1 / sqrt(d_in)], ||A||_F^2 near r / 3; B zero; the head as given."""
    task, model = adapted(head=True, lora=fl.Lora(rank=16))
    values = adapters.start(model, Streams(0))
    norms = []
    for slot, x in values.items():
        if slot.side == "A":
            assert float(x.abs().max()) <= 64**-0.5
            assert float(x.abs().max()) > 0.95 * 64**-0.5
            norms.append(float(x.square().sum()))
        elif slot.side == "B":
            assert not x.any()
        else:
            assert torch.equal(x, task.model.get_parameter(slot.layer))
    assert sum(norms) / len(norms) == pytest.approx(16 / 3, rel=0.1)


def test_every_layer_and_seed_starts_elsewhere():
    _, model = adapted()
    first, again, other = (adapters.start(model, Streams(seed)) for seed in (0, 0, 1))
    a = [slot for slot in first if slot.side == "A"]
    assert all(torch.equal(first[slot], again[slot]) for slot in a)
    assert all(not torch.allclose(first[slot], other[slot], atol=1e-2) for slot in a)
    assert all(not torch.allclose(first[a[0]], first[slot], atol=1e-2) for slot in a[1:])


def test_nothing_large_is_copied():
    """The adapted model holds the base's own parameters, not copies of them."""
    task, model = adapted()
    theirs = {p.data_ptr() for p in model.model.parameters()}
    assert {p.data_ptr() for p in task.model.parameters()} <= theirs


def fingerprint(model):
    """Weights, flags and modes of a model."""
    return (
        {name: x.clone() for name, x in model.state_dict().items()},
        [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        [(name, module.training, type(module)) for name, module in model.named_modules()],
    )


def same(left, right):
    assert left[0].keys() == right[0].keys()
    assert all(torch.equal(x, right[0][name]) for name, x in left[0].items())
    assert left[1:] == right[1:]


@pytest.mark.parametrize("training", [True, False])
def test_the_users_model_is_left_alone(training, tmp_path):
    """Weights, requires_grad, training mode, and torch's global random state: as before, whatever is done."""
    model = Tokens().double().train(training)
    model.outer.weight.requires_grad_(False)
    before = fingerprint(model)
    task = fl.tasks.classification(
        model, [examples(5, 1), examples(4, 2)], test=examples(6, 3), targets=["inner", "outer"], head="head"
    )
    inside, state = fingerprint(task.model), torch.get_rng_state()
    for privacy in (None, private("example"), private("client")):
        record = play(task, "fedlora", privacy)[-1]
        fl.predict(task, record, task.test[0])
        fl.save_adapter(record, tmp_path / "adapter")
    fl.compare(task, ["deer"], private("example"), PLAN, seeds=[0], progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    same(before, fingerprint(model))
    same(inside, fingerprint(task.model))


@pytest.mark.parametrize("name", ["digits", "bert", "gpt2", "swin"])
@pytest.mark.parametrize("head", [False, True], ids=["factors", "with head"])
def test_peft_reads_the_folder_and_gives_the_same_logits(name, head, tmp_path):
    """Plain ``peft.PeftModel.from_pretrained`` on the base model; safetensors and JSON only."""
    task = models.task(name, head)
    privacy = fl.Privacy(noise_multiplier=3.0, delta=1e-4, accountant="rdp")
    # At ten times this rate the factors are so large that PEFT's own logits on digits are 5e-5 from double precision.
    plan = fl.Plan(rounds=1, local_steps=2, batch=2, lr=0.2)
    record = list(fl.run(task, "fedlora", privacy, plan, lora=LORA, seed=4))[-1]
    path = fl.save_adapter(record, tmp_path / "out" / "adapter")
    assert {part.name for part in path.iterdir()} <= adapters.SAVED
    base = copy.deepcopy(task.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a renamed attribute, of interest to PEFT and Transformers
        loaded = peft.PeftModel.from_pretrained(base, path).eval()
    x = task.test[0]
    with torch.no_grad():
        theirs, bare = task.forward(loaded, x), task.forward(task.model, x)
    ours = fl.predict(task, record, x)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert float((theirs - bare).abs().max()) > 1e-3


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    """What is in the way is refused and left alone; an adapter is replaced; nothing half-made stays behind."""
    first, second = play(tokens("head"), "fedlora", None)[1:]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for name in ("file", "full"):
        with pytest.raises(
            ValueError, match=r"^path='.*': expected a new folder, or one with an adapter and nothing else"
        ):
            fl.save_adapter(first, tmp_path / name)
    assert (tmp_path / "file").read_text() == (tmp_path / "full" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "new", tmp_path / "new"):
        fl.save_adapter(first, path)
    before = (tmp_path / "new" / "adapter_model.safetensors").read_bytes()
    fl.save_adapter(second, tmp_path / "new")
    assert (tmp_path / "new" / "adapter_model.safetensors").read_bytes() != before
    task = tokens("head")
    with pytest.raises(KeyError):
        adapters.save(task.model, task.targets, task.head, LORA, {}, tmp_path / "never")
    assert sorted(part.name for part in tmp_path.iterdir()) == ["empty", "file", "full", "new"]
    with pytest.raises(ValueError, match="expected a record as run"):
        fl.save_adapter(replace(first, source=None), tmp_path / "never")


WRITER = """
import os, random, signal, sys, time, warnings
from pathlib import Path
from typing import Any
warnings.simplefilter("ignore")
import fedlora_lab as fl
from small import play, tokens

record, path = play(tokens("head"), "fedlora", None)[-1], Path(sys.argv[1])
fl.save_adapter(record, path)
for number in range(12):
    child = os.fork()
    while not child:
        fl.save_adapter(record, path)
    time.sleep(0.05 + 0.02 * random.Random(number).random())
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(sorted(part.name for part in path.iterdir()) if path.exists() else "absent")
"""


def test_a_killed_writer_leaves_a_whole_folder_or_none(tmp_path):
    """Killed in the middle of its work twelve times, by kill -9."""
    path, here = tmp_path / "adapter", Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WRITER, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
    found = done.stdout.splitlines()
    assert len(found) == 12
    assert set(found) <= {str(sorted(adapters.SAVED)), "absent"}
    assert str(sorted(adapters.SAVED)) in found


def test_outputs_are_those_of_the_merged_weights():
    """predict() is the base model with W0 + (alpha / r) B A in place of each adapted weight."""
    task = tokens("head")
    record = play(task, "fedlora", private("example", sigma=0.1))[-1]
    merged = copy.deepcopy(task.model)
    for layer, (a, b) in record.adapter.items():
        merged.get_parameter(f"{layer}.weight").add_(LORA.scaling * b @ a)
    for name, x in record.head.items():
        merged.get_parameter(name).copy_(x)
    x = task.test[0]
    torch.testing.assert_close(fl.predict(task, record, x), merged(x), rtol=1e-9, atol=1e-12)
    assert len(tensors(record)) == 6
