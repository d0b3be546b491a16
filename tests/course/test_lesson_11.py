"""Notebook 11: what is read from an upload is clipped as the upload is."""

import torch
from calls import refused
from toy_tasks import PLAN, in_double, play, tokens

import fedlora_lab as fl
from fedlora_course.lesson_11 import attacks, scans

LINEAR = in_double(fl.tasks.regression(clients=1, examples=32, d_in=48, d_out=24, rank=4))


def first(task):
    x, y = task.clients[0]
    return x[:1], y[:1]


def test_an_upload_is_the_sum_of_the_traces():
    """Clipped alike, over the same factors, in the upload's order."""
    victim = attacks.Victim.from_task(scans.flattened_digits_task(), fl.Lora(8, 8.0), spread=0.2)
    x, y = victim.task.clients[0]
    pair = x[:6], y[:6]
    for factors, clip in (("A", 0.01), ("AB", 0.5)):
        upload = victim.upload(pair, factors, clip_norm=clip)
        sent = torch.cat([x.flatten() for x in upload.values()])
        traces = victim.traces(pair, factors, clip)
        torch.testing.assert_close(traces.sum(0), sent, rtol=1e-4, atol=1e-7)
        assert float(traces.norm(dim=1).max()) <= clip * (1 + 1e-5)


def test_nothing_is_sent_while_b_is_zero():
    """Fault: an attack on a gradient of A that is zero, taken for one that failed."""
    still = attacks.Victim.from_task(LINEAR, fl.Lora(8), spread=0.0)
    upload = still.upload(first(LINEAR), "AB")
    assert not upload[still.layer(upload)].any()
    assert upload[still.layer(upload, "B")].any()
    with refused(r"gradient='zero': expected one .* B has not moved yet"):
        attacks.span_check(still, upload[still.layer(upload)], "map", first(LINEAR)[0], 1)


def test_a_victim_from_a_run_sends_what_it_trains():
    """Fault: an upload of another side. Its clip: test_an_upload_is_the_sum_of_the_traces."""
    victim = attacks.Victim.from_record(play(tokens(), "fedlora", None, PLAN)[-1])
    assert {key.name for key in victim.upload(first(tokens()), "AB")} == {"A", "B"}
    with refused("factors='C': expected some of"):
        victim.upload(first(tokens()), "C")
    with refused("clip_norm=inf: expected >= 0, and finite where noise is added"):
        victim.upload(first(tokens()), noise_multiplier=1.0)
