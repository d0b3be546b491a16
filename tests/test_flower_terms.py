"""Files of a deployment: terms and examples come back as they were, and anything else is one line."""

import json

import pytest
import torch
from flowers import ROUNDS, protected
from small import LORA, PLAN, UNITS, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.flower import Party, deployment, public


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("seed", [0, None])
def test_terms_come_back(tmp_path, unit, seed):
    """What the file gives is what was agreed on: the digests of both are equal, and say so when one number is not."""
    task, privacy = tokens("head"), protected(unit)
    path = deployment.write_terms(tmp_path / "terms.json", "la-lora", privacy, ROUNDS, lora=LORA, seed=seed)
    party = deployment.read_terms(path, public(task))
    assert party.terms == Party.of(task, "la-lora", privacy, ROUNDS, lora=LORA, seed=seed).terms
    assert party.asked.privacy == privacy.resolve(task, ROUNDS)
    others = [
        Party.of(task, "rolora", privacy, ROUNDS, lora=LORA, seed=seed),
        Party.of(task, "la-lora", protected(unit, sigma=0.9), ROUNDS, lora=LORA, seed=seed),
        Party.of(task, "la-lora", None, ROUNDS, lora=LORA, seed=seed),
        Party.of(task, "la-lora", privacy, ROUNDS.replace(rounds=4), lora=LORA, seed=seed),
        Party.of(task, "la-lora", privacy, ROUNDS, lora=LORA, seed=1),
        Party.of(tokens(), "la-lora", privacy, ROUNDS, lora=LORA, seed=seed),
        Party.of(tokens("head", (5, 8, 4)), "la-lora", privacy, ROUNDS, lora=LORA, seed=seed),
    ]
    assert party.terms not in {other.terms for other in others}
    assert len({other.terms for other in others}) == len(others)


def test_terms_do_not_depend_on_private_examples():
    """A digest is sent: it is made of public parts."""
    task = tokens("head")
    moved = fl.tasks.classification(
        task.model,
        [(x + 1, y) for x, y in task.clients],
        test=task.test,
        targets=task.targets,
        head="head",
        name="tokens",
    )
    assert Party.of(task, "fedlora", None, PLAN).terms == Party.of(moved, "fedlora", None, PLAN).terms


@pytest.mark.parametrize("shape", ["tensor", "mapping"])
def test_examples_come_back(tmp_path, shape):
    x, y = tokens().clients[0]
    data = (x, y) if shape == "tensor" else ({"ids": x, "mask": x > 0}, y)
    found = deployment.read_examples(deployment.write_examples(tmp_path / "own.safetensors", data))
    assert torch.equal(found[1], y)
    if shape == "tensor":
        assert torch.equal(found[0], x)
    else:
        assert found[0].keys() == data[0].keys()
        assert all(torch.equal(found[0][key], data[0][key]) for key in found[0])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("nonsense", r"^terms=.*: expected a file that write_terms wrote"),
        ("[]", r"^terms=\[\]: expected a mapping"),
        ('{"method": "fedlora"}', r"^terms=\['method'\]: expected method, privacy, plan, lora, seed"),
        ('{"method": "fedlora", "more": 1}', r"^terms=.*: expected keys among method, privacy"),
    ],
)
def test_other_files_are_no_terms(tmp_path, text, line):
    path = tmp_path / "terms.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=line):
        deployment.read_terms(path, public(tokens()))
    with pytest.raises(ValueError, match=r"^terms=.*expected a file that write_terms wrote"):
        deployment.read_terms(tmp_path / "none.json", public(tokens()))


def test_terms_are_checked_as_in_any_run(tmp_path):
    """A file changed by hand is refused where a call with its numbers would be; central trust is no terms at all."""
    path = deployment.write_terms(tmp_path / "terms.json", "fedlora", private("example"), PLAN, seed=0)
    parts = json.loads(path.read_text())
    parts["privacy"]["noise_multiplier"] = -1.0
    path.write_text(json.dumps(parts))
    with pytest.raises(ValueError, match=r"^noise_multiplier=-1.0: expected"):
        deployment.read_terms(path, public(tokens()))
    central = deployment.write_terms(tmp_path / "central.json", "fedlora", private("client"), PLAN, seed=0)
    with pytest.raises(ValueError, match=r"^trust='central': expected 'local'"):
        deployment.read_terms(central, public(tokens()))
    shares = private("client", trust="secagg")
    secagg = deployment.write_terms(tmp_path / "secagg.json", "fedlora", shares, PLAN, seed=0)
    with pytest.raises(ValueError, match=r"^trust='secagg': expected 'local'"):
        deployment.read_terms(secagg, public(tokens()))


def test_other_files_are_no_examples(tmp_path):
    path = tmp_path / "own.safetensors"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"^data=.*: expected a file that write_examples wrote"):
        deployment.read_examples(path)


def test_a_run_without_settings_is_one_line():
    with pytest.raises(ValueError, match=r"^configuration=\['terms'\]: expected also out$"):
        deployment._settings({"terms": "x"}, "terms", "out")


def test_a_row_of_ones_own_has_no_slug_to_agree_on(tmp_path):
    """A file names a row of the table; what is not in it cannot be looked up on the other side."""
    with pytest.raises(ValueError, match=r"^method='mine'"):
        deployment.write_terms(tmp_path / "t.json", methods.FedLoRA.replace(name="mine"), None, PLAN, seed=0)
    with pytest.raises(ValueError, match=r"^method='fedlora': expected a row as it stands in the table"):
        deployment.write_terms(tmp_path / "t.json", methods.FedLoRA.replace(share="A"), None, PLAN, seed=0)
