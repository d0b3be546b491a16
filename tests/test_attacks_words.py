"""Word pieces of a sentence read from one gradient of a real language model's adapter.

The parts of the task are those of test_sentiment.py; FEDLORA_LAB_OFFLINE=1 skips these tests where they are missing.
"""

import pytest
import torch
from test_sentiment import parts  # noqa: F401  # the fixture that fetches or skips

import fedlora_lab as fl
from fedlora_lab import attacks


@pytest.mark.usefixtures("parts")
def test_a_sentence_is_read_from_one_gradient():
    """All pieces among 3,000, in their order; under noise of a thousandth of the clip norm hardly one."""
    task = fl.tasks.sentiment(limit=60, head=None)
    x, y = task.clients[0]
    length = x["attention_mask"].sum(1)
    i = int((length - 13).abs().argmin())
    n, true = int(length[i]), x["input_ids"][i, : int(length[i])]
    victim = attacks.Victim.of(task, fl.Lora(32, 32.0))
    random = torch.randperm(30_000, generator=torch.Generator().manual_seed(0))[:3000]
    pieces = torch.cat([true, random[~torch.isin(random, true)]]).unique()
    hits = {}
    for sigma in (0.0, 1e-3):
        upload = victim.upload(({k: v[i : i + 1] for k, v in x.items()}, y[i : i + 1]), clip_norm=1.0,
                               noise_multiplier=sigma)  # fmt: skip
        slot = victim.layer(upload, name="layer.0.attention.self.query")
        outside = attacks.span_check(victim, upload[slot], slot.layer, attacks.words(pieces, n), rank=n)
        hits[sigma] = float((pieces[outside.argmin(0)] == true).double().mean())
    assert hits[0.0] == 1.0
    assert hits[1e-3] < 0.5


@pytest.mark.usefixtures("parts")
def test_a_sentence_is_read_from_two_layers():
    """Eight ranks of query and value read what eight rows cannot; a shipped sentence comes out as it stands there."""
    task = fl.tasks.sentiment(head=None)
    x, y = task.clients[0]
    length = x["attention_mask"].sum(1)
    shipped = attacks.sentences().query("domain == 'films'").iloc[0]
    i = int(torch.nonzero((length >= 8) & (length <= 16))[0])
    n, true = int(length[i]), x["input_ids"][i, : int(length[i])]
    pieces = torch.cat([true, torch.arange(2000, 3500)]).unique()
    one = {key: value[i : i + 1, :n] for key, value in x.items()}, y[i : i + 1]
    assert (n, shipped["right"]) == (shipped["pieces"], n)
    for rank in (16, 8):
        victim = attacks.Victim.of(task, fl.Lora(rank, float(rank)))
        assert torch.equal(attacks.read_sentence(victim, victim.upload(one, clip_norm=1.0), n, pieces), true)
    slot = victim.layer(upload := victim.upload(one), name="layer.0.attention.self.query")
    alone = attacks.span_check(victim, upload[slot], slot.layer, attacks.words(pieces, n), rank=8)
    assert int((pieces[alone.argmin(0)] == true).sum()) < n
