"""`new-app` writes an app that Flower takes, `export` what PEFT reads; mistakes are one line."""

import os
import sys
import tomllib
from contextlib import contextmanager
from functools import lru_cache

import pytest
from commands import SMALL, call
from flower_runs import InProcessGrid
from flwr.app import Context, RecordDict
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.common.config import get_fab_config
from peft import PeftModel
from toy_hubs import folder as toy_model

import fedlora_lab as fl
from fedlora_lab.federated import checkpoint
from fedlora_lab.flower import deployment
from fedlora_lab.flower.server import Stopped


@contextmanager
def imported(folder, package):
    """The modules of an app, which no other test then finds."""
    sys.path.insert(0, str(folder))
    try:
        yield __import__(f"{package}.task", fromlist=["task"])
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:GitWildMatchPattern:DeprecationWarning",  # Flower's own call
    "ignore:tokenizer without a padding token",
)
@pytest.mark.parametrize("model", ["digits", "bert", "gpt2"])
def test_one_path_for_rehearsal_and_deployment(tmp_path, model):
    """An app as it is written: Flower takes it without a warning, its bundle holds no key and no
    terms; a simulated node and a site with files of its own answer the same server component.
    """
    app, source = tmp_path / "my-sites", "digits" if model == "digits" else toy_model(model)
    assert call("new-app", app, "--model", source, "--sites", 2) == 0
    for private in ("keys/site-0.key", "terms.json", "site-0.csv", "my_sites/x.safetensors"):
        (app / private).parent.mkdir(exist_ok=True)
        (app / private).write_text("SECRET")
    config, warnings = load_and_validate(app / "pyproject.toml", check_module=False)
    assert warnings == [] and "federations" not in config["tool"]["flwr"]
    bundle = build_fab_from_disk(app)
    assert b"SECRET" not in bundle and get_fab_config(bundle)["project"]["name"] == "my-sites"
    with imported(app, "my_sites") as task:
        rehearsal = task.rehearsal(2)
        terms, sizes = tmp_path / "terms.json", [len(y) for _, y in rehearsal.task.clients]
        agreed = {"plan": rehearsal.plan.replace(rounds=1, local_steps=1), "seed": 0}
        rest = (rehearsal.method, rehearsal.privacy)
        deployment.write_terms(terms, *rest, **agreed, lora=rehearsal.lora, sizes=sizes)
        nodes = {}
        for k, pair in enumerate(rehearsal.task.clients):
            data = deployment.write_examples(tmp_path / f"{k}.safetensors", pair)
            memory = str(tmp_path / "memory")
            nodes[k] = {"client": k, "terms": str(terms), "data": str(data), "memory": memory}
        settings = {"out": str(tmp_path / "out"), "timeout": 60.0, "patience": 60.0, "stop_at": 0.0}
        client = deployment.client(task.public, rehearsal=task.rehearsal)
        grid = InProcessGrid(client, 2)
        for k, node in enumerate(grid.contexts.values()):
            node.node_config.update(nodes[k])
        server = deployment.server(task.public, task.rehearsal)
        server(grid, Context(7, 1, {}, RecordDict(), {"terms": str(terms), **settings}))
    ledger = fl.Ledger.load(tmp_path / "out" / "ledger.json")
    assert len(ledger.releases) == 1 and ledger.reproducible
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.slow
def test_a_rehearsal_has_as_many_sites_as_the_simulation_has_nodes(tmp_path, capsys):
    """Whatever number the federation has; its folder is its own, and exports."""
    app = tmp_path / "rehearsed"
    assert call("new-app", app) == 0
    with imported(app, "rehearsed") as task:

        def short(sites):
            given = task.rehearsal(sites)
            plan = given.plan.replace(rounds=1, local_steps=1)
            return fl.flower.SimulatedClients(given.task, "ffa-lora", given.privacy, plan)

        grid = InProcessGrid(deployment.client(task.public, rehearsal=short), 4)
        config = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
        server = deployment.server(task.public, short)
        server(grid, Context(7, 1, {}, RecordDict(), config["config"]))
    out = app / "rehearsals" / "7"
    assert "4 of 4 sites" in capsys.readouterr().out
    assert not (app / "out").exists()
    assert call("export", out, "--to", tmp_path / "handed") == 0
    PeftModel.from_pretrained(fl.tasks.digits(clients=1).model, str(tmp_path / "handed"))


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", ["8", "none"])
def test_an_export_of_a_run_folder_gives_the_model_of_the_run(tmp_path, epsilon):
    """The factors in the folder are those of the last checkpoint; several runs need a name."""
    runs = tmp_path / "runs"
    options = ["--methods", "fedlora", "--seeds", 2, "--epsilon", epsilon, "--out", runs, *SMALL]
    assert call("compare", "regression", *options) == 0
    target, name = tmp_path / "to", ["--run", "fedlora-1"]
    assert call("export", runs, "--to", target) == 2 and not target.exists()
    assert call("export", runs, "--to", target, *name) == 0
    task = fl.tasks.regression(clients=3)
    base = PeftModel.from_pretrained(task.model, str(target))
    state, _ = checkpoint.read_released(runs / "checkpoints" / "fedlora-1", 2)
    (b,) = state.side("B").values()
    assert any(b.equal(value) for value in base.state_dict().values())
    assert (target / "ledger.json").exists() == (epsilon != "none")
    assert call("export", runs, "--to", target, *name) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--name", "Sites"], "name='Sites': expected small letters, digits and single hyphens"),
        (["--name", "json"], "name='json': expected one that no installed package has"),
        (["--name", "torch"], "name='torch': expected one that no installed package has"),
        (["--sites", "1"], "sites=1: expected a whole number >= 2"),
        (["--labels", "one"], "labels='one': expected two or more different classes"),
        (["--model", "./gone"], "model='./gone': expected digits, a folder that exists, or a name"),
        (["--length", "1"], "length=1: expected a whole number >= 2"),
        (["--publisher", "a b"], "publisher='a b': expected letters, digits and hyphens"),
    ],
)
def test_an_app_stands_whole_or_not_at_all(tmp_path, capsys, options, line):
    folder = tmp_path / "app"
    assert call("new-app", folder, *options) == 2
    assert capsys.readouterr().err.startswith(f"fedlora-lab: {line}")
    assert not folder.exists() and not list(tmp_path.iterdir())


def test_what_is_there_is_not_written_over(tmp_path, capsys):
    """By new-app and export; what is no folder of a run exports nothing."""
    (tmp_path / "file").write_text("mine")
    assert call("new-app", tmp_path) == 2
    assert call("export", tmp_path, "--to", tmp_path / "new") == 2
    assert call("export", tmp_path / "gone") == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": expected ")[1] for line in lines] == [
        "a new folder, or an empty one",
        "a coordinator's folder or a run folder, begun",
        "a folder that exists",
    ]
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.slow
def test_a_rehearsal_among_sites_with_terms_says_what_is_missing(tmp_path):
    """And the other way round: terms are given, and the nodes are those of a simulation."""
    app = tmp_path / "mixed"
    assert call("new-app", app) == 0
    with imported(app, "mixed") as task:
        short = lru_cache(task.rehearsal)
        given = short(2)
        sizes = [len(y) for _, y in given.task.clients]
        data = deployment.write_examples(tmp_path / "0.safetensors", given.task.clients[0])
        terms = tmp_path / "terms.json"
        rest = given.privacy, given.plan
        deployment.write_terms(terms, "rolora", *rest, seed=0, sizes=sizes)
        files = {"terms": str(terms), "data": str(data), "memory": str(tmp_path / "memory")}
        settings = {"out": str(tmp_path / "out"), "timeout": 60.0, "patience": 60.0}
        server = deployment.server(task.public, short)
        for path, words in (("", "a run without terms rehearses"), (str(terms), "a simulation$")):
            grid = InProcessGrid(deployment.client(task.public, rehearsal=short), 2)
            for k, node in enumerate(grid.contexts.values()):
                node.node_config.update({} if path else {"client": k, **files})
            with pytest.raises(Stopped, match=rf"^node \d+: .*terms=.*{words}"):
                server(grid, Context(7, 1, {}, RecordDict(), {"terms": path, **settings}))
