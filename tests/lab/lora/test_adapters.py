"""Adapted models: where factors start, nothing of the user's is touched, folders for PEFT."""

import pytest
import torch
import toy_hubs
from calls import refused
from toy_tasks import LORA, PLAN, Tokens, examples, play, private, tokens

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.lora import adapters, peft_folder

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)


def test_every_layer_and_seed_starts_elsewhere():
    """A uniform on [-1 / sqrt(d_in), 1 / sqrt(d_in)]; B zero; the head as given."""
    task = toy_hubs.varied("digits", head=True)
    model = adapters.adapt(task, fl.Lora(rank=16))
    values, other = (adapters.initial_values(model, Streams(seed)) for seed in (0, 1))
    seen = []
    for key, x in values.items():
        if key.name == "A":
            assert 0.95 * 64**-0.5 < float(x.abs().max()) <= 64**-0.5
            assert float(x.square().sum()) == pytest.approx(16 / 3, rel=0.2)
            assert all(not torch.allclose(x, y, atol=1e-2) for y in (other[key], *seen))
            seen.append(x)
        else:
            assert torch.equal(x, 0 * x if key.name == "B" else task.model.get_parameter(key.layer))


def fingerprint(model):
    """Weights, flags and modes of a model."""
    weights = {name: x.numpy().tobytes() for name, x in model.state_dict().items()}
    flags = [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()]
    return weights, flags + [(name, m.training, type(m)) for name, m in model.named_modules()]


def test_the_users_model_is_left_alone(tmp_path):
    """Weights, requires_grad, training mode, and torch's global random state, whatever is done."""
    model = Tokens().double().train()
    model.outer.weight.requires_grad_(False)
    clients = [examples(5, 1), examples(4, 2)]
    targets = ["inner", "outer"]
    before = fingerprint(model)
    task = fl.tasks.classification(model, clients, examples(6, 3), targets=targets, head="head")
    inside = fingerprint(task.model)
    state = torch.get_rng_state()
    record = play(task, "fedlora", private("example"), PLAN.replace(rounds=1))[-1]
    fl.predict(task, record, task.test[0])
    fl.save_adapter(record, tmp_path / "adapter")
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(model) == before and fingerprint(task.model) == inside


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    """What is in the way is refused and left alone; an adapter is replaced; nothing half-made stays
    behind.
    """
    task = tokens("head")
    first, second = play(task, "fedlora", None)[1:]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with refused(r"^path='.*': expected a new folder, or one with an adapter and nothing else"):
        fl.save_adapter(first, tmp_path / "full")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    fl.save_adapter(first, tmp_path / "new")
    weights = tmp_path / "new" / "adapter_model.safetensors"
    before = weights.read_bytes()
    fl.save_adapter(second, tmp_path / "new")
    assert weights.read_bytes() != before
    with pytest.raises(KeyError):
        peft_folder.save(task, LORA, {}, tmp_path / "never")
    assert sorted(part.name for part in tmp_path.iterdir()) == ["full", "new"]
