"""Sites over their files: what they tell of them, and what a server says that was stopped."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
import torch
from flower_runs import question
from flwr.app import Context, RecordDict
from hospitals.hospitals.app import SIZES, task
from toy_tasks import LORA, PLAN, private, tokens

from fedlora_lab.flower import deployment
from fedlora_lab.flower.client import MEMORY
from fedlora_lab.flower.simulators import InProcessGrid
from fedlora_lab.privacy.ledger import Ledger

pytestmark = [pytest.mark.attack, pytest.mark.slow]
ROUNDS = PLAN.replace(rounds=3)
OWN = tokens("head", SIZES)


def sites(folder, method="fedlora", seed: int | None = 0):
    """A fresh grid of two sites over their files, and the server's terms."""
    terms = folder / "terms.json"
    if not terms.exists():
        deployment.write_terms(terms, method, private("example"), ROUNDS, lora=LORA, seed=seed)
        for k, pair in enumerate(OWN.clients):
            deployment.write_examples(folder / f"data{k}.safetensors", pair)
    grid = InProcessGrid(deployment.client(task), len(SIZES))
    for k, context in enumerate(grid.contexts.values()):
        data, memory = folder / f"data{k}.safetensors", folder / f"memory{k}"
        paths = {"terms": str(terms), "data": str(data), "memory": str(memory)}
        context.node_config = {"client": k, **paths}
    return grid, deployment.read_terms(terms, task())


@pytest.fixture
def asked(tmp_path):
    """Asks the first site, as a node that has just started, for round 0 of a release."""
    grid, participant = sites(tmp_path, seed=None)
    message = question(participant)

    def ask(folder="memory", app=grid.app, **changed):
        config = {**grid.contexts[1000].node_config, "memory": str(tmp_path / folder), **changed}
        context = Context(1, 1000, config, RecordDict(), {})
        return app(copy.deepcopy(message), context).content["arrays"]

    return ask


def test_a_site_builds_its_public_part_once(asked):
    """However many messages arrive at once: a builder that seeds torch's global generator would
    otherwise draw other weights, and honest messages be refused as under other terms.
    """
    built = []

    def slow():
        built.append(1)
        time.sleep(0.2)
        return task()

    app = deployment.client(slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: asked(app=app), range(3)))
    assert len(built) == 1


def test_an_error_tells_the_coordinator_no_value(asked, tmp_path, caplog):
    """Flower sends an error's text to whoever asked: it names no label, and a label that torch
    refuses is no error.
    """
    (x, y), data = OWN.clients[0], tmp_path / "data57.safetensors"

    def told():
        with pytest.raises(ValueError, match=r"^[^\n]+$") as found:
            asked("memory-error", data=str(data))
        return str(found.value)

    for labels in (y + 57.5, torch.stack([y, y * 0 + 57], 1)):
        deployment.write_examples(data, (x, labels))
        words = "inputs and labels of the types and shapes of the public test examples"
        assert told() == f"examples: expected {words}"
    data.write_bytes(b"57 is a label")
    assert told() == "reading its examples failed at this site; its own log says why"
    assert "57" in caplog.text and {one.name for one in caplog.records} == {"fedlora_lab.flower"}
    assert not (tmp_path / "memory-error" / MEMORY).exists(), "nothing was answered"
    deployment.write_examples(data, (x, y * 0 + 57))
    assert asked("other", data=str(data)), "an example that the loss cannot take counts as zero"


def test_a_run_that_ends_at_once_says_what_was_spent(tmp_path):
    """Killed in the last round, then started with a ``stop_at`` that leaves no round: frame and
    ledger say the same.

    The round was asked for, so it stands in the ledger, but no record of it was written.
    """
    out = tmp_path / "out"

    def kill(message):
        if message.content.config_records.get("about", {}).get("round") == 2:
            raise KeyboardInterrupt

    def started(seen=None, **more):
        grid, _ = sites(tmp_path, "fedlora", None)
        grid.seen = seen or grid.seen
        config = {"terms": str(tmp_path / "terms.json"), "out": str(out), **more}
        config |= {"timeout": 60.0, "patience": 60.0}
        deployment.server(task)(grid, Context(1, 1, {}, RecordDict(), config))
        return epsilons()

    def epsilons():
        table = pd.read_csv(out / "frame-000000.csv").query("measure == 'epsilon'")
        return table.set_index("round")["value"].to_dict()

    with pytest.raises(KeyboardInterrupt):
        started(kill)
    before, spent = epsilons(), Ledger.load(out / "ledger.json").epsilon_or_inf()
    assert list(before) == [0, 1, 2] and before[2] < spent
    assert started(stop_at=spent) == {**before, 2: pytest.approx(spent, rel=1e-12)}
    assert started(stop_at=spent)[2] >= spent
    assert sorted(path.name for path in out.glob("frame-*")) == ["frame-000000.csv"]
