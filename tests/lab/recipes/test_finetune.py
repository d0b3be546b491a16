"""From a task and an epsilon to a folder that serves."""

import json
import os
import re
import runpy
import sys
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch
import toy_hubs
import transformers
from calls import refused
from commands import succeeded
from places import ROOT

import fedlora_lab as fl
from fedlora_lab.lora.source import require_source
from fedlora_lab.tasks.task import Origin, forward
from fedlora_lab.tasks.trainer import read_rows

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
NEAR_CHANCE = pytest.mark.filterwarnings("ignore:accuracy .*the commonest class")


def notes(count, seed):
    """Made-up notes of patients of four hospitals, in three classes."""
    example = runpy.run_path(str(ROOT / "examples" / "flower_app" / "flower_app" / "notes.py"))
    rows = pd.DataFrame(example["made_up"](count, seed))
    return rows.assign(hospital=[f"hospital {i % 4}" for i in range(count)])


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.slow
def test_a_csv_becomes_a_served_model_offline(tmp_path):
    """The example as it stands, in a process of its own, which learns what it is shown."""
    notes(1200, seed=0).to_csv(tmp_path / "notes.csv", index=False)
    notes(300, seed=1).to_csv(tmp_path / "public.csv", index=False)
    script = ROOT / "examples" / "finetune.py"
    command = (sys.executable, script, "notes.csv", "public.csv", "notes")
    shown = succeeded(*command, cwd=tmp_path, env=os.environ | OFFLINE).stdout
    (accuracy,) = map(float, re.findall(r"accuracy (0\.\d+)", shown))
    assert 0.75 < accuracy < 1, "the commonest class has about 0.35"
    assert "ε 8 for one example" in shown
    answers = transformers.pipeline("text-classification", str(tmp_path / "notes-model"))
    public = pd.read_csv(tmp_path / "public.csv")
    told = [answer["label"] for answer in answers(public["text"].tolist())]
    assert abs((public["label"] == told).mean() - accuracy) < 0.02, "the run's own accuracy"
    (gentle,) = answers("a gentle nurse")
    spent = json.loads((tmp_path / "notes-model" / "ledger.json").read_text())
    assert spent == json.loads((tmp_path / "notes-adapter" / "ledger.json").read_text())
    # The adapter, by its own README as it stands, and by PEFT's own class.
    readme = (tmp_path / "notes-adapter" / "README.md").read_text()
    code, in_one_call = re.findall(r"```python\n(.*?)```", readme, re.S)
    assert "The base is `sentences-bert`, which lies in the package" in readme
    assert str(fl.tasks.shipped("sentences-bert")) not in readme
    tried = "rows = tokenizer(['a gentle nurse'], return_tensors='pt')\n"
    tried += "print(model.config.id2label[int(model(**rows).logits.argmax())])"
    both = f"{code}\n{tried}\n{in_one_call}\n{tried}"
    told = succeeded(sys.executable, "-c", both, cwd=tmp_path, env=os.environ | OFFLINE).stdout
    assert told.splitlines()[-1] == gentle["label"]
    assert told.splitlines().count(gentle["label"]) == 2


@NEAR_CHANCE
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit", "llama"])
def test_images_and_decoders_are_saved_whole(kind, tmp_path):
    """Merged, the model gives the run's own outputs, and its config the classes."""
    task = toy_hubs.fresh_answers(kind) if kind == "llama" else toy_hubs.fresh(kind)
    result = fl.finetune(task, epsilon=8, rounds=1, seed=0)
    folder = result.save(tmp_path / "model", merged=True)
    auto: Any = transformers.AutoModelForCausalLM
    if kind == "vit":
        auto = transformers.AutoModelForImageClassification
    model = auto.from_pretrained(folder).eval()
    x, _ = task.test
    expected = fl.predict(task, result.record, x)
    with torch.no_grad():
        torch.testing.assert_close(forward(model, x), expected, rtol=1e-4, atol=1e-5)


@NEAR_CHANCE
def test_a_prediction_is_that_of_the_trained_model():
    """Of rows without labels, as the saved model gives it."""
    rows = toy_hubs.rows_of("bert")[:5]
    task = toy_hubs.fresh("bert")
    result = fl.finetune(task, epsilon=8, rounds=1, seed=0)
    x, _ = read_rows(task.model, rows, task.origin.data_collator, task.origin.processing_class)
    numbers = fl.predict(task, result.record, x).argmax(1).tolist()
    unlabelled = [{k: v for k, v in row.items() if k != "label"} for row in rows]
    assert result.predict(unlabelled) == [task.origin.classes[i] for i in numbers]
    other = replace(result, task=replace(task, origin=Origin()))
    with refused("^task='from_trainer': expected of fl.tasks.from_trainer, with classes"):
        other.predict(rows)


def test_a_run_that_ends_at_the_commonest_class_says_so():
    """Fault: an untrained base ended there, and nothing was said."""
    with pytest.warns(UserWarning, match="the commonest class for every row scores as much"):
        fl.finetune(toy_hubs.fresh("bert"), epsilon=0.1, rounds=1, seed=0)


@NEAR_CHANCE
def test_what_is_chosen_follows_from_public_numbers_alone():
    """Neighbouring data: the same choices."""
    task = toy_hubs.fresh("bert")
    changed = toy_hubs.fresh("bert", toy_hubs.texts().assign(text="very good", label="kind"))
    first, second = (fl.finetune(one, 8, rounds=1, seed=0).choices for one in (task, changed))
    assert first == second and first["delta"].startswith("1e-05:")


def test_unit_and_adapter_are_those_that_were_asked_for():
    task = fl.tasks.regression(clients=2)
    lora = fl.Lora(rank=2)
    result = fl.finetune(task, 8, rounds=1, unit="client", lora=lora, seed=0)
    assert (result.ledger.unit, require_source(result.record)[1]) == ("client", lora)


def test_a_row_that_keeps_a_factor_at_home_is_refused():
    """Of it the server's adapter lacks what clients keep: B would stay zero."""
    with refused("^method='fedsa-lora': expected one that sends all that it trains"):
        fl.finetune(toy_hubs.fresh("bert"), 8, method="fedsa-lora")


def test_a_run_that_was_stopped_says_what_it_has_spent(tmp_path):
    """Fault: rounds that were repeated brought it past the ε that was asked for, in silence."""
    book = tmp_path / "ledger.json"
    stops = []

    def loss(outputs, y):
        if not stops and book.exists() and len(fl.Ledger.load(book).releases) == 2:
            stops.append(2)  # once, in the second round
            raise KeyboardInterrupt
        return (outputs - y).square().mean(1)

    task = replace(fl.tasks.regression(clients=2), loss=loss)
    with pytest.raises(KeyboardInterrupt):
        fl.finetune(task, epsilon=8, rounds=2, out=tmp_path)
    with pytest.warns(UserWarning, match="^epsilon=.*, and not 8: rounds that a stop repeated"):
        fl.finetune(task, epsilon=8, rounds=2, out=tmp_path)
