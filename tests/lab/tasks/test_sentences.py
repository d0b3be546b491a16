"""The task of sentences: what it holds, and that a language model learns in it under privacy."""

import hashlib
import json
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

import fedlora_lab as fl
from fedlora_lab.tasks.sentences import FOLDER, LABELS, LONGEST, TEST, sentences


@pytest.mark.further
@pytest.mark.slow
def test_every_sentence_is_used_once():
    """By its label, and nothing of the test is a client's; who tests depends on the seed."""
    table = pd.read_csv(FOLDER / "sentences.csv", keep_default_na=False)
    assert table["text"].is_unique
    task = sentences(clients=11, dirichlet=0.1)
    assert sum(task.sizes) == len(table) - TEST and min(task.sizes) >= 8
    rows = [
        (tuple(ids[ids > 0].tolist()), int(label))
        for x, y in (*task.clients, task.test)
        for ids, label in zip(x["input_ids"].rows(), y, strict=True)
    ]
    code: Any = AutoTokenizer.from_pretrained(FOLDER)
    read = code(table["text"].tolist(), truncation=True, max_length=LONGEST)["input_ids"]
    truth = [
        (tuple(ids), LABELS.index(label)) for ids, label in zip(read, table["label"], strict=True)
    ]
    assert sorted(rows) == sorted(truth)
    assert not torch.equal(sentences(seed=1).test[1], task.test[1])


def test_the_folder_is_the_one_of_its_card():
    """Other weights would make other numbers than those that pages state; and it stays small."""
    card = json.loads((FOLDER / "card.json").read_text("utf-8"))
    for name, digest in card["sha256"].items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 6e6


@pytest.mark.further
@pytest.mark.slow
@pytest.mark.trains
def test_a_language_model_learns_under_privacy():
    """It gains ten points and more with every sentence protected, from an answer at random."""
    task = sentences(clients=4)
    plan = fl.Plan(rounds=4, local_steps=5, batch=16, lr=1.0)
    privacy = fl.Privacy(accountant="rdp").calibrate(epsilon=8, task=task, plan=plan)
    first, *_, last = fl.run(task, "fedlora", privacy, plan, seed=0, evaluate_every=4)
    assert last.epsilon <= 8
    assert last.metrics["accuracy"] >= first.metrics["accuracy"] + 0.1
