"""A decoder's loss belongs to its own text."""

import hubs
import pytest
import torch

import fedlora_lab as fl
from fedlora_lab.tasks.causal import next_token_accuracy, next_token_loss
from fedlora_lab.tasks.encode import IGNORED
from fedlora_lab.tasks.task import take

pytestmark = pytest.mark.filterwarnings(hubs.NO_PAD)


def test_loss_is_each_text_s_own():
    """By hand, token by token; and Transformers' own loss of each text alone, without padding."""
    task = hubs.decoder()
    x, y = task.test
    outputs = task.forward(task.model, x)
    found = next_token_loss(outputs, y)
    lengths = x["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 2, "texts of unequal length"
    for i, length in enumerate(lengths.tolist()):
        ids = x["input_ids"][i, :length]
        logs = outputs[i, : length - 1].log_softmax(-1)
        by_hand = -sum(logs[j, ids[j + 1]] for j in range(length - 1)) / (length - 1)
        assert abs(float(found[i] - by_hand)) < 1e-5
        theirs = task.model(input_ids=ids[None], labels=ids[None]).loss
        assert abs(float(found[i] - theirs)) < 1e-5
    first = (outputs[:, :-1].argmax(-1) == y[:, 1:]) & (y[:, 1:] != IGNORED)
    torch.testing.assert_close(next_token_accuracy(outputs, y), first.sum(1) / (lengths - 1))


def test_neighbours_and_padding_do_not_matter():
    task = hubs.decoder()
    x, y = task.test
    assert task.prepare is not None
    whole = next_token_loss(task.forward(task.model, x), y)
    for i in range(4):
        one = torch.tensor([i])
        alone = next_token_loss(task.forward(task.model, task.prepare(take(x, one))), y[one])
        assert abs(float(alone - whole[i])) < 1e-5
    assert bool((y[x["attention_mask"] == 0] == IGNORED).all())


def test_a_text_of_one_token_is_refused():
    frame = hubs.texts()
    frame.loc[3, "text"] = "good"
    with pytest.raises(ValueError, match="has one token': expected at least two in every row"):
        fl.tasks.hub(hubs.folder("gpt2"), frame, text="text", clients=2, test=0.5)
