"""Words of a sentence read from one gradient of a language model's adapter."""

import numpy as np
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import attacks
from fedlora_lab.attacks.reconstruction import read_sentence, repeat_pieces, span_check

WORDS = [f"word{i}" for i in range(900)]


@pytest.fixture(scope="module")
def sentence(tmp_path_factory):
    """A task of a model as wide as the sentence needs, its first sentence, and all words."""
    draw = np.random.default_rng(0)
    rows = [{"text": " ".join(draw.choice(WORDS, 10)), "label": i % 2} for i in range(12)]
    folder = tmp_path_factory.mktemp("model") / "bert"
    sizes = {"hidden_size": 64, "initializer_range": 0.3}
    fl.tasks.tiny("bert", folder, WORDS, **sizes)
    columns = {"text": "text", "label": "label", "head": None, "public_test": True}
    task = fl.tasks.hub(folder, rows, **columns, clients=1)
    x, y = task.clients[0]
    one = {key: value[:1] for key, value in x.items()}, y[:1]
    return task, one, torch.arange(len(WORDS) + 4)


def read_by_query(victim, one, pieces, rank, **noise):
    """The share of the word pieces read right from the gradient of the first query's A alone."""
    upload, true = victim.upload(one, clip_norm=1.0, **noise), one[0]["input_ids"][0]
    key = victim.layer(upload, name="layer.0.attention.self.query")
    given = repeat_pieces(pieces, len(true))
    outside = span_check(victim, upload[key], key.layer, given, rank=rank)
    return float((pieces[outside.argmin(0)] == true).double().mean())


def test_a_sentence_is_read_from_one_gradient(sentence):
    """All words in their order; under noise of a thousandth of the clip norm hardly one."""
    task, one, pieces = sentence
    victim, n = attacks.Victim.from_task(task, fl.Lora(32, 32.0)), one[0]["input_ids"].shape[1]
    assert read_by_query(victim, one, pieces, n) == 1.0
    assert read_by_query(victim, one, pieces, n, noise_multiplier=1e-3) < 0.5


def test_a_sentence_is_read_from_two_layers(sentence):
    """Eight ranks of query and value read what eight rows cannot."""
    task, one, pieces = sentence
    true = one[0]["input_ids"][0]
    victim = attacks.Victim.from_task(task, fl.Lora(8, 8.0))
    found = read_sentence(victim, victim.upload(one, clip_norm=1.0), len(true), pieces)
    assert torch.equal(found, true)
    assert read_by_query(victim, one, pieces, 8) < 1
