"""`fl.finetune`: what it chooses and says, what it leaves behind, and what it predicts."""

import itertools
import math
import os
import re
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import toy_hubs
from calls import Options, refused
from peft import PeftModel
from toy_tasks import book, tokens

import fedlora_lab as fl
from fedlora_lab.federated import local_training
from fedlora_lab.lora import adapters
from fedlora_lab.lora.source import require_source
from fedlora_lab.recipes.predictions import predict_rows

COLUMNS: Options = {"text": "text", "label": "label", "by": "site"}
SHORT: Options = {"rounds": 1, "local_steps": 1, "accountant": "rdp"}


def tuned(folder, model, data=None, **options):
    """A short run; returns what it said as well, without the folder's own name."""
    lines: list[str] = []
    given: Options = {"out": folder, "say": lines.append} | SHORT | options
    if given.get("epsilon", 8) is None:
        del given["accountant"]
    result = fl.finetune(model, data, **given)
    return result, [line.replace(str(folder), "FOLDER") for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["example", "client"])
def test_no_choice_depends_on_a_private_value(tmp_path, unit):
    """Other rows with other labels, equal sizes: every line that is said is the same.

    Finds a norm, rate or method that was read off the data, and a score of private rows.
    """
    data = toy_hubs.texts(40)
    others = data.assign(text=data["text"][::-1].values, label=data["label"][::-1].values)
    said = []
    for name, frame in {"a": data, "b": others}.items():
        model = toy_hubs.folder("bert")
        result, lines = tuned(tmp_path / name / "run", model, frame, unit=unit, **COLUMNS)
        assert math.isnan(result.score) and book(result.record).mode == "release"
        said.append(lines)
    assert said[0] == said[1]
    assert "accuracy: not measured: no public test rows" in said[0]


@pytest.mark.parametrize(("epsilon", "line"), [(None, r"knid \d \(rare: mis"), (8, "knid: read")])
def test_a_mistyped_label_is_seen(tmp_path, epsilon, line):
    """It becomes a class; how often one comes is told where nothing is private."""
    data = toy_hubs.texts(40)
    data.loc[3, "label"] = "knid"
    model = toy_hubs.folder("bert")
    _, lines = tuned(tmp_path / "run", model, data, epsilon=epsilon, **COLUMNS)
    (said,) = [" ".join(line.split()) for line in lines if line.startswith("labels")]
    assert re.search(line, said) and "harsh" in said


def test_what_was_guessed_is_said(tmp_path):
    """Maps, head and clients; of a run without privacy also how many texts were cut."""
    options: Options = {"text": "text", "label": "label", "max_length": 4, "epsilon": None}
    _, lines = tuned(tmp_path / "run", toy_hubs.folder("bert"), toy_hubs.texts(40), **options)
    said = "\n".join(" ".join(line.split()) for line in lines)
    for line in (
        r"^clients 10 of \d.* rows, dealt at random; by= names the owner of each row$",
        "^targets query, value guessed: the linear maps that are named like those of queries",
        "^head classifier guessed: the model's own classifier, which is trained in full$",
        "^max_length 4 as given$",
        r"^texts cut \d+ by max_length, test rows included$",
        "^others defaults of fl.Plan, fl.Privacy and fl.run; settings.json has all$",
    ):
        assert re.search(line, said, re.MULTILINE), line


def test_advice_is_none_that_was_followed(tmp_path):
    options: Options = {"epsilon": None, "optimizer": "adamw", "lr": 0.0}
    result, _ = tuned(tmp_path / "run", tokens("head"), **options)
    assert "try another rate" in repr(result) and "AdamW" not in repr(result)


def test_what_is_given_is_taken(tmp_path):
    """And chosen from nothing else."""
    given: Options = {"method": "ffa-lora", "batch": None, "lr": 0.25, "clip_norm": 0.5}
    given |= {"delta": 1e-6, "lora": fl.Lora(rank=2), "seed": 3}
    result, lines = tuned(
        tmp_path / "run", tokens("head"), epsilon=2, optimizer=fl.SGD(momentum=0.5), **given
    )
    assert result.record.method == "ffa-lora" and result.record.seed == 3
    assert 1.5 < result.record.epsilon <= 2 and book(result.record).delta == 1e-6
    said = {line.split()[0]: line for line in lines}
    assert all("as given" in said[name] for name in given)
    settings = (result.folder / "settings.json").read_text()
    for words in ('"momentum": 0.5', '"batch": null', '"lr": 0.25', '"clip_norm": 0.5'):
        assert words in settings
    assert 0 <= result.score <= 1 and "accuracy" in repr(result), "public rows are scored"


def test_a_run_without_a_round_is_refused_and_leaves_no_adapter(tmp_path):
    """It ended well, with an adapter that had seen no data."""
    for line, options in {
        "^max_epsilon=0.01: expected room for one round, but it spends more": {"max_epsilon": 0.01},
        "^max_epsilon=8.*, but the noise passes a map": {"method": "deer-literal"},
        "^noise=0.0: expected .* a clip_norm > 0": {"clip_norm": 0},
    }.items():
        with refused(line):
            tuned(tmp_path / line, tokens("head"), **options)
        assert not (tmp_path / line / "adapter").exists()


HALF = "caf\udce9"  # a byte of Latin-1, as a folder's name may have it


@pytest.mark.parametrize("given", [{"label": HALF}, {"column": HALF}, {"name": HALF}])
def test_half_letters_are_refused_or_kept_and_a_refusal_leaves_no_folder(tmp_path, given):
    """One with a key was left behind, in which no run had begun."""
    data = toy_hubs.texts(20)
    data["label"] = data["label"].str.replace("kind", given.get("label", "kind"))
    column = given.get("column", "text")
    data = data.rename(columns={"text": column})
    row = fl.methods.RoLoRA.replace(name=given.get("name", "mine"))
    options: Options = {**COLUMNS, "text": column, "method": row}
    is_kept = "column" in given
    with nullcontext() if is_kept else pytest.raises(ValueError, match=r"in row|surrogates"):
        tuned(tmp_path / "run", toy_hubs.folder("bert"), data, **options)
    assert (tmp_path / "run").exists() == is_kept


def stopped_at_once(line):
    """The stop button, before any round was trained."""
    if line.startswith("round 0"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["new/deep/run", "empty"])
@pytest.mark.parametrize(
    "options",
    [
        {"max_epsilon": 0.01},
        {"lora": fl.Lora(targets=("nothing",))},
        {"say": stopped_at_once},
        {"say": True},
    ],
)
def test_what_does_not_begin_leaves_the_place_as_it_was(tmp_path, place, options):
    """Neither a key nor an empty folder; what lay there stays, and so does an earlier run."""
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, KeyboardInterrupt)):
        tuned(tmp_path / place, tokens("head"), **options)
    assert sorted(tmp_path.rglob("*")) == before
    if place == "empty" and "lora" in options:
        result, _ = tuned(tmp_path / place, tokens("head"))
        with pytest.raises(ValueError):
            tuned(tmp_path / place, tokens("head"), fresh=True, **options)
        assert len(fl.Ledger.load(result.folder / "adapter/ledger.json").releases) == 1
        assert (result.folder / "frame.csv").is_file()


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_a_finished_one_is_kept(tmp_path):
    """Finds a second release of rounds that were done, and a lost or doubled ledger."""
    folder = tmp_path / "run"
    stopped, _ = tuned(folder, tokens("head"), rounds=3, max_epsilon=7.0)
    assert 0 < stopped.record.index < 3 and stopped.record.epsilon <= 7
    assert "would spend more than is allowed" in repr(stopped)
    rest, _ = tuned(folder, tokens("head"), rounds=3)
    assert rest.record.index == 3 and len(book(rest.record).releases) == 3
    again, _ = tuned(folder, tokens("head"), rounds=3)
    assert len(book(again.record).releases) == 3
    layer = next(iter(rest.record.adapter))
    assert torch.equal(again.record.adapter[layer][0], rest.record.adapter[layer][0])
    # What was changed is named, and not the noise and the rate that follow from it.
    for name, changed in (
        ("batch", {"batch": 9}),
        ("target_epsilon", {"epsilon": 3}),
        ("lr", {"lr": 0.1}),
    ):
        with refused(rf"other settings \(\w+\.([\w-]+\.)?{name} is"):
            tuned(folder, tokens("head"), **{"rounds": 3} | changed)
    fresh, lines = tuned(folder, tokens("head"), batch=9, epsilon=3, fresh=True)
    assert fresh.record.index == 1 and list(fresh.folder.glob("spent-*.json"))
    said = re.search(r"note: Runs without a seed \(2 .*: epsilon = (\S+) at", "\n".join(lines))
    assert said and fresh.record.epsilon <= 3 < float(said[1]), "what was cleared stays spent"
    assert said[0][6:] in (fresh.folder / "adapter" / "README.md").read_text(), (
        "also to whoever gets it"
    )


def test_a_round_that_was_cut_short_is_paid_by_a_later_one(tmp_path, monkeypatch):
    """Its noise is counted twice: the run that goes on would end above epsilon."""
    step, calls = local_training.local_step, itertools.count()

    def interrupted(*given):
        if next(calls) in (1, 3):
            raise KeyboardInterrupt
        step(*given)

    monkeypatch.setattr(local_training, "local_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "run", tokens("head"), rounds=3)
    rest, _ = tuned(tmp_path / "run", tokens("head"), rounds=3)
    assert rest.record.index == 2 and len(book(rest.record).releases) == 3
    assert rest.record.epsilon <= 8 and "round 3 would spend more" in repr(rest)
    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "run", tokens("head"), rounds=3, fresh=True)
    assert not (tmp_path / "run" / "adapter").exists(), "that of another run"


# PEFT asks Transformers for it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_predictions_are_those_of_the_saved_adapter(tmp_path, monkeypatch, capsys):
    """Finds a tokenizer, label order or adapter other than the one that was trained."""
    monkeypatch.chdir(tmp_path)
    data = toy_hubs.texts(40)
    public = toy_hubs.texts(46).tail(6)
    options: Options = {"test": public, "say": None, "lr": 3.0, "labels": ["kind", "harsh"]}
    model = os.path.relpath(toy_hubs.folder("bert"))
    result = fl.finetune(model, data, **COLUMNS | SHORT | options)
    assert result.folder.name == "finetune-1"
    shares = result.predict(data["text"], probabilities=True)
    assert list(shares.columns) == ["kind", "harsh"]
    assert bool(result.notes) == (result.score <= 4 / 6), "as one answer for all six would score"
    assert result.predict(data["text"]) == shares.idxmax(axis=1).tolist()
    task: Any = require_source(result.record)[0]
    base = adapters.structure_copy(task.model)
    loaded = PeftModel.from_pretrained(base, result.folder / "adapter").eval()
    logits = loaded(**task.encode(list(data["text"]))).logits.detach().double()
    np.testing.assert_allclose(shares, logits.softmax(1), atol=1e-5)
    card = (tmp_path / result.folder / "adapter/README.md").read_text()
    scope: Options = {}
    exec(card.split("```python")[1].split("```")[0], scope)
    theirs = scope["model"](**task.encode(list(data["text"]))).logits
    np.testing.assert_allclose(theirs.detach(), logits, atol=1e-5)
    assert scope["base"].config.id2label == {0: "kind", 1: "harsh"} and "epsilon = " in card
    monkeypatch.chdir("runs")  # the base is found from other folders too
    predicted = predict_rows(tmp_path / result.folder, public)["predicted"].tolist()
    assert predicted == result.predict(public["text"])
    with refused("^column='predicted': expected none of this name"):
        predict_rows(tmp_path / result.folder, public.assign(predicted=0))
    with refused(r"^data=\['test', 'train'\]: expected one table"):
        predict_rows(tmp_path / result.folder, {"train": public, "test": public})
    settings = tmp_path / result.folder / "settings.json"
    stored = settings.read_text()
    settings.write_text(stored.replace('"tokenizer": "', '"tokenizer": "0'))
    with refused(
        "^tokenizer=.*: expected the one that tokenizer= gave in the run; this is another"
    ):
        predict_rows(settings.parent, public)
    settings.write_text(stored)
    (settings.parent / "adapter/adapter_model.safetensors").write_text("")
    for line, key, other in (
        ("^run=.*: expected an undamaged adapter/: ", "", ""),
        ("^model=.*: expected the weights that the run was", '"base": "', '"base": "0'),
        ("^run=.*: expected a run of this version", '"base"', '"of"'),
    ):
        settings.write_text(settings.read_text().replace(key, other))
        with refused(line):
            predict_rows(settings.parent, public)
    (settings.parent / "private/base").write_text("/gone/base")
    config = settings.parent / "adapter/adapter_config.json"
    config.write_text(config.read_text().replace(model, "base"))
    with refused("^base='/gone/base': expected that folder, or base in a folder above the run"):
        predict_rows(settings.parent, public)
    for nothing in ([], "good film", public, {"text": "good film"}, {"good", "film"}, 3, None):
        with refused(r"^inputs=.*: expected a list of texts or images, or one column of a frame"):
            result.predict(nothing)
    # An empty text is no row to train on, and was answered.
    for cell in ("", " \n", None, np.nan, 3, pd.Timestamp("2024-01-01"), ["good"]):
        with refused(r"^text=.* in row 1.: expected text in every row"):
            result.predict(["good film", cell])


@pytest.mark.slow
def test_a_decoder_answers_prompts(tmp_path):
    """Finds prompts that are trained as texts."""
    options = {"prompt": "Say: {text}", "answer": "{label}", "by": "site", "max_new_tokens": 2}
    data = toy_hubs.texts(40)
    result, _ = tuned(tmp_path / "out", toy_hubs.folder("llama"), data, **options)
    assert math.isnan(result.score) and "exact_match" in repr(result)
    prompts = [f"Say: {text}" for text in data["text"]]
    assert predict_rows(result.folder, data)["predicted"].tolist() == result.predict(prompts)
