"""What a site remembers on its disk: nodes and servers come and go, no round is released twice."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from flowers import apart, by_messages
from flwr.app import Context, RecordDict
from hospitals.hospitals.app import task
from small import LORA, PLAN, book, private, tokens

from fedlora_lab.flower import InProcess, deployment, public, rounds
from fedlora_lab.flower.server import Stopped, open_run
from fedlora_lab.ledger import Ledger

ROUNDS = PLAN.replace(rounds=4)


def sites(folder, method, seed: int | None = 0):
    """A fresh grid of three sites over their files, and the server's terms."""
    if not (folder / "terms.json").exists():
        deployment.write_terms(folder / "terms.json", method, private("example"), ROUNDS, lora=LORA, seed=seed)
        for k, pair in enumerate(tokens("head").clients):
            deployment.write_examples(folder / f"data{k}.safetensors", pair)
    grid = InProcess(deployment.client(task), 3)
    for k, context in enumerate(grid.contexts.values()):
        context.node_config = {
            "client": k,
            "terms": str(folder / "terms.json"),
            "data": str(folder / f"data{k}.safetensors"),
            "memory": str(folder / f"memory{k}"),
        }
    return grid, deployment.read_terms(folder / "terms.json", task())


def reopened(party: Any, out: Path) -> Any:
    """The server's run from what lies on its disk."""
    where: dict[str, Any] = deployment.folders(out)
    return open_run(party, **where)


@pytest.mark.parametrize("method", ["fedsa-lora", "la-lora"])
def test_a_restart_of_everything_is_no_restart_of_the_run(tmp_path, method):
    """Server and sites stopped after two rounds and started again from their disks: the bits of a run undisturbed."""
    whole = by_messages(tokens("head"), method, private("example"), ROUNDS)
    grid, party = sites(tmp_path, method)
    begun = rounds(grid, party, reopened(party, tmp_path / "out"))
    for _ in range(3):
        next(begun)
    begun.close()
    grid, party = sites(tmp_path, method)
    rest = list(rounds(grid, party, reopened(party, tmp_path / "out")))
    assert [record.index for record in rest] == [3, 4]
    assert apart(rest, whole[3:]) == 0
    assert rest[-1].metrics == whole[-1].metrics
    assert book(rest[-1]).to_json() == book(whole[-1]).to_json()


@pytest.mark.parametrize("seed", [0, None])
def test_the_same_terms_are_not_played_twice(tmp_path, seed):
    """A server that begins anew under terms that were played gets no second release of any round, in any mode."""
    grid, party = sites(tmp_path, "fedlora", seed)
    first = list(rounds(grid, party, open_run(party)))
    assert len(first) == 5
    grid, party = sites(tmp_path, "fedlora", seed)
    with pytest.raises(Stopped, match=r"^round 1: no upload of 3 clients; client 0: .*round=0: expected 3, which was"):
        list(rounds(grid, party, open_run(party)))


def test_other_terms_have_a_memory_of_their_own(tmp_path):
    grid, party = sites(tmp_path, "fedlora")
    list(rounds(grid, party, open_run(party)))
    (tmp_path / "terms.json").unlink()
    grid, party = sites(tmp_path, "rolora")
    assert len(list(rounds(grid, party, open_run(party)))) == 5
    assert len(list((tmp_path / "memory0").glob("client-*"))) == 2


def test_the_app_needs_its_settings(tmp_path):
    grid, party = sites(tmp_path, "fedlora")
    for context in grid.contexts.values():
        del context.node_config["memory"]
    with pytest.raises(Stopped, match="expected also memory"):
        next(rounds(grid, party, open_run(party)))
    assert party.asked.task.sizes == public(tokens("head")).sizes


def test_a_memory_is_the_same_wherever_a_node_is_started(tmp_path, monkeypatch):
    """A relative path would be another folder, and so an empty one, for a node started again somewhere else."""
    grid, party = sites(tmp_path, "fedlora")
    monkeypatch.chdir(tmp_path)
    for context in grid.contexts.values():
        context.node_config["memory"] = "memory0"
    words = r"memory='memory0': expected the folder's whole path, the same wherever the node is started$"
    with pytest.raises(Stopped, match=words):
        next(rounds(grid, party, open_run(party)))
    assert not (tmp_path / "memory0").exists()


def test_a_run_that_ends_at_once_says_what_was_spent(tmp_path):
    """Killed in round 3 of 4, then started with a ``stop_at`` that leaves no round: frame and ledger say the same.

    Round 3 was asked for, so it stands in the ledger, but no record of it was written.
    """
    out = tmp_path / "out"

    def kill(message):
        if message.content.config_records.get("about", {}).get("round") == 2:
            raise KeyboardInterrupt

    def started(seen=None, **more):
        grid, _ = sites(tmp_path, "fedlora", None)
        grid.seen = seen or grid.seen
        config = {"terms": str(tmp_path / "terms.json"), "out": str(out), "timeout": 60.0, "patience": 60.0, **more}
        deployment.server(task)(grid, Context(1, 1, {}, RecordDict(), config))
        return epsilons(out / "frame-000000.csv")

    def epsilons(path):
        return pd.read_csv(path).query("measure == 'epsilon'").set_index("round")["value"].to_dict()

    with pytest.raises(KeyboardInterrupt):
        started(kill)
    before, spent = epsilons(out / "frame-000000.csv"), Ledger.load(out / "ledger.json").spent()
    assert list(before) == [0, 1, 2] and before[2] < spent
    assert started(stop_at=spent) == {**before, 2: pytest.approx(spent, rel=1e-12)}
    assert started(stop_at=spent)[2] >= spent
    assert sorted(path.name for path in out.glob("frame-*")) == ["frame-000000.csv"]
