"""Files of a deployment: terms and examples come back as they were, all else is one line."""

import json
from typing import Any

import pytest
import torch
from flower_runs import ROUNDS, protected
from flwr.app import Context, RecordDict
from toy_tasks import LORA, PLAN, private, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.flower import deployment
from fedlora_lab.flower.client import Participant
from fedlora_lab.flower.simulators import InProcessGrid


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "seed"), [("example", 0), ("client", None)])
def test_terms_survive_saving(tmp_path, unit, seed):
    """What the file gives is what was agreed on: the digests of both are equal, and say so when one
    number is not.
    """
    task, privacy, path = tokens("head"), protected(unit), tmp_path / "terms.json"
    deployment.write_terms(path, "la-lora", privacy, ROUNDS, lora=LORA, seed=seed)

    def digest(task=task, method="la-lora", privacy: Any = privacy, plan=ROUNDS, seed=seed):
        return Participant.of(task, method, privacy, plan, lora=LORA, seed=seed).terms

    participant = deployment.read_terms(path, task)
    assert participant.terms == digest()
    assert participant.spec.privacy == privacy.resolve(task, ROUNDS)
    others = [
        digest(method="rolora"),
        digest(privacy=protected(unit, sigma=0.9)),
        digest(privacy=None),
        digest(plan=ROUNDS.replace(rounds=4)),
        digest(seed=1),
        digest(tokens()),
        digest(tokens("head", (5, 8, 4))),
    ]
    assert len({participant.terms, *others}) == len(others) + 1


def test_examples_survive_saving(tmp_path):
    (x, y), path = tokens().clients[0], tmp_path / "own.safetensors"
    for inputs in ({"x": x}, {"ids": x, "mask": x > 0}):
        deployment.write_examples(path, (x if "x" in inputs else inputs, y))
        found, labels = deployment.read_examples(path)
        found = found if isinstance(found, dict) else {"x": found}
        assert torch.equal(labels, y) and found.keys() == inputs.keys()
        assert all(torch.equal(found[key], inputs[key]) for key in inputs)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"^data=.*: expected a file that write_examples wrote"):
        deployment.read_examples(path)


WROTE = "expected a file that write_terms wrote"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, rf"^terms=.*: {WROTE} \(.*No such file"),
        ("nonsense", rf"^terms=.*: {WROTE} \(Expecting value"),
        ("[]", r"^terms=\[\]: expected a mapping$"),
        ('{"method": "fedlora"}', r"^terms=\['method'\]: expected method, privacy, plan, lora, se"),
        ('{"method": "fedlora", "more": 1}', r"^terms=.*: expected keys among method, privacy"),
        (private("client"), "^trust='central': expected 'local': in a deployment every upload"),
        (private("client", trust="secagg"), "^trust='secagg': expected 'local': in a deploy"),
        (private("example"), "^noise_multiplier=-1.0: expected a number"),
    ],
)
def test_other_files_are_no_terms(tmp_path, text, line):
    """A file changed by hand is refused where a call with its numbers would be; only local trust
    makes terms.
    """
    path = tmp_path / "terms.json"
    if isinstance(text, fl.Privacy):
        deployment.write_terms(path, "fedlora", text, PLAN, seed=0)
        parts = json.loads(path.read_text())
        change = {"noise_multiplier": -1.0} if text.unit == "example" else {}
        text = json.dumps(parts | {"privacy": parts["privacy"] | change})
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=line):
        deployment.read_terms(path, tokens())


def test_apps_need_their_settings():
    grid = InProcessGrid(deployment.client(tokens), 1)
    context = Context(1, 1, {"terms": "x"}, RecordDict(), {"terms": "x"})
    words = r"^configuration=\['terms'\]: expected also "
    with pytest.raises(ValueError, match=words + "out, timeout, patience$"):
        deployment.server(tokens)(grid, context)
    with pytest.raises(ValueError, match=words + "client, data, memory$"):
        grid.app(grid.create_message(RecordDict(), "query", 1, ""), context)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"timeout": "soon"}, "timeout='soon': expected a number > 0"),
        ({"patience": 0.0}, "patience=0.0: expected a number > 0"),
        ({"stop_at": -1.0}, "stop_at=-1.0: expected a number >= 0"),
        ({"terms": "gone.json"}, "terms='gone.json': expected a file that write_terms wrote"),
    ],
)
def test_settings_of_a_run_are_named_in_one_line(tmp_path, change, line):
    grid = InProcessGrid(deployment.client(tokens), 1)
    config = {"terms": "t.json", "out": str(tmp_path / "out"), "timeout": 9.0, "patience": 9.0}
    with pytest.raises(ValueError, match=f"^{line}"):
        deployment.server(tokens)(grid, Context(1, 1, {}, RecordDict(), config | change))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"client": "one"}, "client='one': expected a whole number >= 0"),
        ({"client": -1}, "client=-1: expected a whole number >= 0"),
        ({"memory": "here"}, "memory='here': expected the folder's whole path"),
        ({"terms": "gone.json"}, "terms='gone.json': expected a file that write_terms wrote"),
    ],
)
def test_settings_of_a_node_are_named_in_one_line(tmp_path, change, line):
    """Nothing is answered, and no memory is made."""
    node: Any = {"client": 0, "terms": "t", "data": "d", "memory": str(tmp_path / "memory")}
    grid = InProcessGrid(deployment.client(tokens), 1)
    context = Context(1, 1, node | change, RecordDict(), {})
    with pytest.raises(ValueError, match=f"^{line}"):
        grid.app(grid.create_message(RecordDict(), "train", 1, ""), context)
    assert not (tmp_path / "memory").exists()


def test_a_row_of_ones_own_has_no_slug_to_agree_on(tmp_path):
    """A file names a row of the table; what is not in it cannot be looked up on the other side."""
    for change, line in (
        ({"name": "mine"}, "method='mine': expected one of"),
        ({"share": "A"}, "method='fedlora': expected a row as it stands in the table$"),
    ):
        row = methods.FedLoRA.replace(**change)
        with pytest.raises(ValueError, match=f"^{line}"):
            deployment.write_terms(tmp_path / "t.json", row, None, PLAN, seed=0)
