"""The task of sentences: what it holds, and that a language model learns in it under privacy."""

import hashlib
import json

import pytest
import torch

import fedlora_lab as fl
from fedlora_lab.tasks.public_rows import row_keys
from fedlora_lab.tasks.sentences import FOLDER, sentences
from fedlora_lab.tasks.task import concatenate, named_tensors


@pytest.mark.further
def test_every_sentence_is_used_once():
    """None is at two clients or a client's and the test's; who tests depends on the seed."""
    task = sentences(clients=11, dirichlet=0.1)
    rows = row_keys(named_tensors(concatenate([*task.clients, task.test])).values())
    # Two are the same words in another case.
    assert (len(rows), len({*rows})) == (6400, 6399) and min(task.sizes) >= 8
    assert not torch.equal(sentences(seed=1).test[1], task.test[1])


def test_the_folder_is_the_one_of_its_card():
    """Other weights would make other numbers than those that pages state; and it stays small."""
    card = json.loads((FOLDER / "card.json").read_text("utf-8"))
    for name, digest in card["sha256"].items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 6e6


@pytest.mark.further
@pytest.mark.trains
def test_a_language_model_learns_under_privacy():
    """It gains ten points and more with every sentence protected, from an answer at random."""
    task = sentences(clients=4)
    plan = fl.Plan(rounds=4, local_steps=5, batch=16, lr=1.0)
    privacy = fl.Privacy(accountant="rdp").calibrate(epsilon=8, task=task, plan=plan)
    first, *_, last = fl.run(task, "fedlora", privacy, plan, seed=0, evaluate_every=4)
    assert last.epsilon <= 8
    assert last.metrics["accuracy"] >= first.metrics["accuracy"] + 0.1
