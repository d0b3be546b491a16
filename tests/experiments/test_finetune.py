"""`fl.finetune`: what it chooses and says, what it leaves behind, and what it predicts."""

import inspect
import json
import math
import re
import shutil
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_hubs
from commands import call
from peft import PeftModel
from torch import nn
from toy_tasks import book

import fedlora_lab as fl
from fedlora_lab.experiments.finetune import Settings, choose_cell, sort_options
from fedlora_lab.federated.records import require_source
from fedlora_lab.lora import peft
from fedlora_lab.report.run_folder import Folder, run_settings

COLUMNS = {"text": "text", "label": "label", "by": "site"}
NONE = "not measured: no public test rows"


def table(count=80, flip=False):
    """Rows of two numbers with a class that follows from them."""
    draw = np.random.default_rng(int(flip))
    x = draw.normal(size=(count, 2)) * (3 if flip else 1)
    y = np.where(x[:, 0] > 0, "yes", "no")
    sites = np.arange(count) % 4
    return pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": y, "site": sites})


def tuned(tmp_path, frame=None, model=None, **options):
    """A run of a second on the small table; returns what it said as well."""
    lines: list[str] = []
    words: dict[str, Any] = {"label": "y", "by": "site", "rounds": 2, "local_steps": 2}
    words |= {"accountant": "rdp", "out": tmp_path / "run", **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Linear(2, 2) if model is None else model
    found = fl.finetune(net, table() if frame is None else frame, say=lines.append, **words)
    return found, lines


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["example", "client"])
def test_no_choice_depends_on_a_private_value(tmp_path, unit):
    """Other rows, labels and order of labels, equal sizes: every line but the folder is the same.
    Finds a norm, rate or method that was read off the data."""
    said = []
    for flip in (False, True):
        found, lines = tuned(tmp_path, table(flip=flip), unit=unit, out=tmp_path / str(flip))
        said.append([line for line in lines if str(flip) not in line])
        assert math.isnan(found.score) and book(found.record).mode == "release"
    assert said[0] == said[1]
    names = {line.split()[0] for line in said[0]}
    chosen = "epsilon test clients unit rounds local_steps batch lora delta noise method lr"
    assert names >= {*chosen.split(), "clip_norm", "seed"}
    assert any(NONE in line for line in said[0])


def crowd(count=40, sites=4):
    """One to three rows of each of some persons, and the site that each is at."""
    draw = np.random.default_rng(5)
    who = np.repeat(np.arange(count), draw.integers(1, 4, count))
    return table(len(who)).assign(who=who, site=who % sites)


def with_more_rows(frame, seed):
    """The same table, in which one person has up to 100 more rows, anywhere."""
    draw = np.random.default_rng(seed)
    rows = frame[frame["who"] == draw.choice(frame["who"].unique())]
    more = rows.sample(int(draw.integers(1, 101)), replace=True, random_state=seed)
    places = np.sort(draw.integers(0, len(frame) + 1, len(more)))
    index = np.insert(np.arange(len(frame)), places, more.index.to_numpy())
    return frame.loc[index].reset_index(drop=True)


def chosen(folder, frame, **options):
    """All that `fl.finetune` would choose, say, write into its folder and state in the end."""
    names = [*inspect.signature(fl.finetune).parameters][2:-5]
    asked = {**dict.fromkeys(names), "label": "y", "epsilon": 8.0}
    rest = {name: value for name, value in options.items() if name not in names}
    settings = Settings({**asked, **{n: options[n] for n in options if n in names}})
    cell, _ = choose_cell(nn.Linear(2, 2), frame, settings, sort_options(rest))
    with Folder(folder) as place:
        written = run_settings(place, cell.task, cell.privacy, [cell], "")
    del written["begun"], written["task"]["fingerprint"]
    if cell.privacy is None:
        return [*map(str, settings.choices)], written, ""
    releases = cell.plan.rounds * cell.plan.local_steps
    book = cell.privacy.resolve(cell.task, cell.plan).ledger(releases)
    return [*map(str, settings.choices)], written, fl.privacy.statement(book)


@pytest.mark.parametrize(
    "options",
    [
        {"by": "site"},
        {"features": ["a", "b"]},
        {"by": "site", "test": 0.3, "batch": "all"},
        {"features": ["a", "b"], "test": 0.2, "batch": "all"},
        {"by": "site", "batch": "all"},
        {"by": "site", "method": "rolora", "labels": ["yes", "no"], "weights": "size"},
    ],
)
def test_nothing_chosen_or_stated_depends_on_the_rows_of_a_person(tmp_path, options):
    """How many rows somebody has is private where persons are protected. Batch, sample rate, noise,
    number of clients and the sides of the held-out share were made from rows."""
    given = {"person": "who", "accountant": "rdp", **options}
    frame, found = crowd(sites=2), []
    for seed in (None, 0, 1):
        rows = frame if seed is None else with_more_rows(frame, seed)
        found.append(chosen(tmp_path / str(seed), rows, **given))
    assert found[0] == found[1] == found[2]
    assert not re.search(r"\d rows", "\n".join(found[0][0]))


def test_batch_and_clients_follow_from_the_number_of_persons(tmp_path):
    """40 persons of five rows each were a batch of 50: everybody in every step."""
    frame = table(200).assign(who=np.arange(200) % 40)
    given: dict[str, Any] = {"features": ["a", "b"], "accountant": "rdp"}
    persons, written, _ = chosen(tmp_path / "persons", frame, person="who", **given)
    assert written["task"]["sizes"] == [20, 20] and written["plans"].popitem()[1]["batch"] == 5
    assert any("a quarter of the median client's 20 persons" in line for line in persons)
    _, written, _ = chosen(tmp_path / "rows", frame.drop(columns="who"), **given)
    assert len(written["task"]["sizes"]) == 10 and sum(written["task"]["sizes"]) == 200


@pytest.mark.slow
def test_nothing_handed_on_tells_how_many_rows_a_person_has(tmp_path):
    """One person has 101 rows, or 1, and a share of the persons is held out. Settings and
    report held the number of rows; and the choice of a method knew no unit of persons."""
    said = []
    for rows in (101, 1):
        frame = table(400)
        frame["who"] = [100 * (i % 4) + i // 4 % 20 for i in range(len(frame))]
        one = frame[frame["who"] == 0].head(1)
        frame = pd.concat([*[one] * rows, frame[frame["who"] != 0]], ignore_index=True)
        options: dict[str, Any] = {"person": "who", "out": tmp_path / "run", "test": 0.2}
        found, lines = tuned(tmp_path, frame, **options)
        report = (found.folder / "report.html").read_text()
        settings = (found.folder / "settings.json").read_text()
        facts = re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", report)
        told = [fact for fact in facts if fact[0] != "fingerprint"]
        assert "private persons" in report
        said.append(
            (
                told,
                lines,
                {**json.loads(settings)["task"], "fingerprint": None},
            )
        )
        shutil.rmtree(found.folder)
    for one, other in zip(*said, strict=True):
        assert one == other


def test_all_rows_of_a_person_are_dealt_to_one_client(tmp_path):
    """Columns of numbers were dealt row by row, so that the person unit refused its own split; and
    a share held out for the test tore persons apart.
    """
    frame = table(400).assign(who=np.arange(400) % 60)
    given: dict[str, Any] = {"by": None, "clients": 3, "features": ["a", "b"], "person": "who"}
    found, _ = tuned(tmp_path, frame, test=0.2, **given)
    task = require_source(found.record)[0]
    assert found.record.epsilon > 0
    inside = {float(value) for x, _ in task.clients for value in x[:, 0]}
    kept = frame["a"].astype("float32").map(float).isin(inside)
    assert kept.groupby(frame["who"]).nunique().max() == 1 and 0 < kept.mean() < 1


@pytest.mark.slow
def test_what_is_given_is_taken(tmp_path):
    """Finds a keyword that is named and not passed on."""
    given: dict[str, Any] = {
        "method": "ffa-lora",
        "batch": "all",
        "lr": 0.25,
        "clip_norm": 0.5,
        "seed": 3,
    }
    given |= {"delta": 1e-6, "lora": fl.Lora(rank=2), "optimizer": fl.SGD(momentum=0.5)}
    found, lines = tuned(tmp_path, epsilon=2, test=table(8, flip=True), **given)
    assert found.record.method == "ffa-lora" and found.record.seed == 3
    assert 1.5 < found.record.epsilon <= 2 and book(found.record).delta == 1e-6
    said = {line.split()[0]: line for line in lines}
    assert all("as given" in said[name] for name in given if name not in ("optimizer", "seed"))
    settings = (found.folder / "settings.json").read_text()
    for words in ('"momentum": 0.5', '"batch": null', '"lr": 0.25', '"clip_norm": 0.5'):
        assert words in settings
    assert 0 <= found.score <= 1 and "accuracy" in repr(found), "public rows are scored"


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_a_finished_one_is_kept(tmp_path):
    """Finds a second release of rounds that were done, and a lost or doubled ledger."""
    whole, _ = tuned(tmp_path, rounds=3, stop_at=6.0)
    assert 0 < whole.record.index < 3 and whole.record.epsilon <= 6
    rest, _ = tuned(tmp_path, rounds=3)
    assert rest.record.index == 3 and len(book(rest.record).releases) == 3
    again, _ = tuned(tmp_path, rounds=3)
    assert len(book(again.record).releases) == 3
    layer = next(iter(rest.record.adapter))
    assert torch.equal(again.record.adapter[layer][0], rest.record.adapter[layer][0])
    with pytest.raises(ValueError, match="holds a run with other settings"):
        tuned(tmp_path, rounds=3, batch=9)
    fresh, lines = tuned(tmp_path, rounds=1, batch=9, epsilon=3, fresh=True)
    assert fresh.record.index == 1 and list(fresh.folder.glob("spent-*.json"))
    said = "\n".join(lines)
    own, whole = (
        float(re.search(words, said, re.M)[1])  # type: ignore[index]
        for words in (
            r"^ε spent: (\S+) at",
            r"^note: All 2 runs .*, including .*: epsilon = (\S+) at",
        )
    )
    assert own <= 3 < whole, "what was cleared away stays spent"


@pytest.mark.slow
def test_features_to_predict_are_a_table(tmp_path):
    """Finds a list of rows answered by a traceback, and a list of dicts that is refused."""
    found, _ = tuned(tmp_path, features=["a", "b"], rounds=1)
    rows = table().head(3)[["a", "b"]]
    assert found.predict(rows) == found.predict(rows.to_dict("records"))
    for rows, line in (([[1.0, 2.0]], "dataset='list'"), ([], "dataset='0 rows': expected at")):
        with pytest.raises(ValueError, match=line):
            found.predict(rows)


# PEFT asks Transformers for it.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.slow
def test_predictions_are_those_of_the_saved_adapter(tmp_path, monkeypatch):
    """Finds a tokenizer, label order or adapter other than the one that was trained."""
    monkeypatch.chdir(tmp_path)
    data, folder = toy_hubs.texts(60), toy_hubs.folder("bert")
    words: dict[str, Any] = {**COLUMNS, "rounds": 1, "local_steps": 1, "say": None, "lr": 3.0}
    found = fl.finetune(folder, data, test=toy_hubs.texts(66).tail(6), **words)
    assert found.folder == found.folder.parent / "finetune-1" and found.report().is_file()
    told, chances = found.predict(data["text"]), found.predict(data["text"], probabilities=True)
    assert list(chances.columns) == ["harsh", "kind"] and told == chances.idxmax(axis=1).tolist()
    task = require_source(found.record)[0]
    base = PeftModel.from_pretrained(peft.structure_copy(task.model), found.save(tmp_path / "out"))
    logits = base.eval()(**found.encode(data["text"])).logits.detach().double()
    np.testing.assert_allclose(chances, logits.softmax(1), atol=1e-5)
    assert "<details>" in found._repr_html_() and "ε spent" in repr(found)
    for nothing in ([], None, "good film"):
        with pytest.raises(ValueError, match=r"^texts=.*: expected a list of texts, at least one$"):
            found.predict(nothing)


@pytest.mark.slow
def test_a_decoder_answers_prompts(tmp_path):
    """Finds prompts that are trained as texts, or made-up rows that lack a column."""
    data = toy_hubs.texts(40)
    words: dict[str, Any] = {"prompt": "Say: {text}", "answer": "{label}", "by": "site"}
    words |= {"rounds": 1, "local_steps": 1, "max_new_tokens": 2, "say": None}
    model = fl.tasks.tiny("llama", tmp_path / "toy", data["text"])
    found = fl.finetune(model, data, out=tmp_path / "out", **words)
    assert math.isnan(found.score) and "exact_match" in repr(found)
    assert len(found.predict(["Say: good film"])) == 1


@pytest.mark.slow
def test_the_command_does_what_the_function_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    toy_hubs.texts(60).to_csv("data.csv", index=False)
    toy_hubs.texts(90).iloc[60:].to_csv("public.csv", index=False)
    words = f"finetune data.csv --model {toy_hubs.folder('bert')} --text text --label label"
    words += " --by site --test public.csv --rounds 1 --local-steps 1 --epsilon 4 --rank 2"
    assert call(*words.split()) == 0
    said, error = capsys.readouterr()
    assert not error, "no bar where there is no terminal"
    assert re.search(r"^ε spent: (3\.9\d*|4) at δ = 1e-05 against whoever sees", said, re.M)
    assert "rank 2, alpha 8" in said and (tmp_path / "runs/finetune-data/adapter").is_dir()
    assert "report: runs/finetune-data/report.html" in said


# ---- what is said of the unit, and of the classes


UNITS = {
    "example": "one row is hidden; person= hides all rows of a person",
    "person": "all rows of one person are hidden",
    None: "",
}


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_says_what_it_hides(tmp_path, unit):
    """The person unit said that one row is hidden; and so did a run that protects nothing, which
    called its noise fresh."""
    options: dict[str, Any] = {"by": "site", "accountant": "rdp"} if unit else {"by": "site"}
    options |= {"person": "who"} if unit == "person" else {"features": ["a", "b"]}
    lines = chosen(tmp_path, crowd(sites=1), epsilon=8.0 if unit else None, **options)[0]
    said = " ".join(" ".join(lines).split())
    assert ("hidden" in said) == bool(unit) and UNITS[unit] in said
    assert ("ε" in said) == ("fresh noise" in said) == ("less noise" in said) == bool(unit)


def test_classes_read_from_private_rows_are_said_to_be(tmp_path):
    """One row with a label of its own adds an output to the model, and no epsilon covers that."""
    options: dict[str, Any] = {"by": "site", "features": ["a", "b"], "batch": "all"}
    said = {}
    for name, labels in (("read", None), ("declared", ["yes", "no"])):
        lines = chosen(tmp_path / name, crowd(), labels=labels, **options)[0]
        said[name] = " ".join(next(line for line in lines if line.startswith("labels")).split())
    assert "no ε covers" in said["read"] and "labels=[...] declares them" in said["read"]
    assert said["declared"] == "labels 2 classes as given"


@pytest.mark.slow
def test_declared_labels_are_those_of_the_model(tmp_path):
    """Also of the command; what is predicted is one of them, and a row with another is named."""
    found, lines = tuned(tmp_path, labels=["no", "yes"], rounds=1)
    assert set(found.predict(table().head(9)[["a", "b"]])) <= {"no", "yes"}
    assert not any(line.startswith("note") for line in lines)
    _, lines = tuned(tmp_path, rounds=1, out=tmp_path / "other")
    assert "note: the classes were read from the rows: a choice by private rows" in "\n".join(lines)
    toy_hubs.texts(60).to_csv(tmp_path / "data.csv", index=False)
    words = f"finetune {tmp_path}/data.csv --model {toy_hubs.folder('bert')} --text text"
    words += f" --label label --by site --labels harsh,glad --out {tmp_path}/never"
    assert call(*words.split()) == 2 and not (tmp_path / "never").exists()


def test_a_test_table_that_cannot_be_scored_spends_nothing(tmp_path):
    """Labels that no private row has, and the private table itself: refused with a folder's name
    given, and no folder is made."""
    for test, line in (
        (table(8, flip=True).assign(y=0), "^label 'y' of the test data='0': expected labels that"),
        (table().sample(20, random_state=0), "^test='20 of 20 rows equal private rows': expected"),
    ):
        with pytest.raises(ValueError, match=line):
            tuned(tmp_path, test=test, features=["a", "b"])
    assert not (tmp_path / "run").exists()
