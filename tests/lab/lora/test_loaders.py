"""A saved adapter in the hands of others: the loaders of PEFT and Transformers give our numbers."""

import copy
import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import toy_hubs
import transformers
import yaml
from calls import Options
from torch import nn
from toy_tasks import seeded

import fedlora_lab as fl
from fedlora_lab.tasks.task import forward

pytestmark = pytest.mark.filterwarnings(
    toy_hubs.NO_PAD,
    "ignore:model.*drawn at random and frozen",
    "ignore:`is_gradient_checkpointing` is deprecated",
)
SHORT = fl.Plan(rounds=1, local_steps=2, batch=4, lr=0.5)
LORA = fl.Lora(rank=2, alpha=8.0)
QUERY: Options = {"head": None, "targets": ("query", "classifier")}


def last_record(task, lora=LORA):
    *_, last = fl.run(task, "fedlora", None, SHORT, lora=lora, seed=0)
    return last


SEQ_CLS = "AutoModelForSequenceClassification"
SAVED: dict[str, tuple[str, Options, fl.Lora]] = {
    "bert": (SEQ_CLS, {}, LORA),
    "distilbert": (SEQ_CLS, {}, LORA),
    # Of a larger start PEFT knows alpha alone.
    "gpt2": (SEQ_CLS, {}, replace(LORA, start_scale=2.0)),
    "llama": (SEQ_CLS, {}, LORA),
    "bert with a frozen classifier": (SEQ_CLS, {"head": None}, LORA),
    "bert with an adapted classifier": (SEQ_CLS, QUERY, LORA),
    "vit": ("AutoModelForImageClassification", {}, LORA),
    "answers of llama": ("AutoModelForCausalLM", {}, LORA),
    "answers of gpt2": ("AutoModelForCausalLM", {}, LORA),
}


def loaders(auto, base, folder, options, adapts_classifier):
    """Name -> the adapted model, as people load it."""
    target = getattr(transformers, auto)
    yield peft.AutoPeftModel.from_pretrained(folder, **options)
    # PEFT has no class for images, and its own for texts would train an adapted classifier whole.
    if auto != "AutoModelForImageClassification" and not adapts_classifier:
        named = getattr(peft, auto.replace("AutoModel", "AutoPeftModel"))
        yield named.from_pretrained(folder, **options)
    yield peft.PeftModel.from_pretrained(target.from_pretrained(base, **options), folder)
    yield target.from_pretrained(folder, **options)
    model = target.from_pretrained(base, **options)
    model.load_adapter(str(folder))
    yield model


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", SAVED)
def test_every_usual_loader_gives_the_run_s_numbers(name, tmp_path, monkeypatch):
    """Where the base's folder is found under its name; to six digits, and here to the last."""
    auto, options, lora = SAVED[name]
    kind = name.removeprefix("answers of ").split(" ")[0]
    task = (toy_hubs.fresh_answers if "answers" in name else toy_hubs.fresh)(kind, **options)
    last = last_record(task, lora)
    base = toy_hubs.folder(kind)
    monkeypatch.chdir(base.parent)
    folder = fl.save_adapter(last, tmp_path / "out" / "adapter")
    x: Any = task.test[0]
    expected = fl.predict(task, last, x)
    assert not torch.equal(expected, forward(task.model, x)), "nothing was trained"
    classes = {} if "answers" in name else {"num_labels": expected.shape[1]}
    frozen: Any = task.model
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for model in loaders(auto, base, folder, classes, options is QUERY):
            # A classifier on a decoder finds a text's end by it, as the card says.
            model.config.pad_token_id = getattr(frozen.config, "pad_token_id", None)
            torch.testing.assert_close(forward(model.eval(), x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["my-base", 'a: "b" #c', "--- x"])
def test_no_file_of_an_adapter_tells_where_its_base_lay(name, tmp_path, monkeypatch):
    """By its name alone, or by what lies under the working folder; and no name ends the YAML."""
    monkeypatch.chdir(Path(__file__).parent)
    base = tmp_path / "hospital" / name
    shutil.copytree(toy_hubs.folder("bert"), base)
    auto: Any = transformers.AutoModelForSequenceClassification
    task = toy_hubs.fresh("bert", model=auto.from_pretrained(base, num_labels=2))
    privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-4)
    *_, record = fl.run(task, "fedlora", privacy, SHORT)  # for release

    def published(folder):
        texts = [file.read_bytes() for file in fl.save_adapter(record, folder).iterdir()]
        assert not any(bytes(tmp_path) in text for text in texts)
        head = (folder / "README.md").read_text().split("---\n")[1]
        config = json.loads((folder / "adapter_config.json").read_text())
        assert yaml.safe_load(head)["base_model"] == config["base_model_name_or_path"]
        return config["base_model_name_or_path"]

    assert published(tmp_path / "elsewhere") == name
    monkeypatch.chdir(tmp_path)
    assert published(tmp_path / "here") == f"hospital/{name}"


def test_an_adapter_that_stays_here_is_found_with_its_base_from_anywhere(tmp_path, monkeypatch):
    """Without privacy, or from a seed, nothing is released, and a path is what PEFT needs."""
    task = toy_hubs.fresh("bert")
    folder = fl.save_adapter(last_record(task), tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    peft.AutoPeftModelForSequenceClassification.from_pretrained(folder)


class Named(nn.Module):
    """A map to adapt and a classifier of any names."""

    def __init__(self, target, *path):
        super().__init__()
        self.add_module(target, nn.Linear(6, 6))
        parent: nn.Module = self
        for part in path[:-1]:
            parent.add_module(part, nn.Sequential())
            parent = parent.get_submodule(part)
        parent.add_module(path[-1], nn.Linear(6, 3))
        self.places = target, ".".join(path)

    def forward(self, x):
        first, head = map(self.get_submodule, self.places)
        return head(torch.tanh(first(x)))


NAMES = [("out", "base"), ("base", "out"), ("model", "default"), ("default", "A"), ("layer", "fc")]
NAMES += [("lora_A", "weight"), ("out.out", "rows"), ("model.model", "model_")]


def test_a_head_or_target_may_have_any_name(tmp_path):
    """Names that PEFT or this library use within their own layers."""
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    for i, (head, target) in enumerate(NAMES):
        model = seeded(partial(Named, target, *head.split("."))).float()
        task = fl.tasks.classification(model, [(x, y)], (x[:9], y[:9]), [target], head)
        last = last_record(task)
        folder = fl.save_adapter(last, tmp_path / str(i))
        loaded: Any = peft.PeftModel.from_pretrained(copy.deepcopy(task.model), folder).eval()
        torch.testing.assert_close(loaded(x[:9]), fl.predict(task, last, x[:9]))
