"""Attacks recover what a plain update gives away, exactly where theory says so; that noise hides it
is checked in notebook 11.
"""

from calls import refused
from toy_tasks import PLAN, play, tokens

import fedlora_lab as fl
from fedlora_lab.audit import attacks
from fedlora_lab.audit.attacks import Victim

LINEAR = fl.tasks.regression(clients=1, examples=32, d_in=48, d_out=24, rank=4, dtype="float64")


def first(task, count=1):
    x, y = task.clients[0]
    return x[:count], y[:count]


def test_nothing_is_sent_while_b_is_zero():
    """Fault: an attack on a gradient of A that is zero, taken for one that failed."""
    still = Victim.from_task(LINEAR, fl.Lora(8), spread=0.0)
    upload = still.upload(first(LINEAR), "AB")
    assert not upload[still.layer(upload)].any()
    assert upload[still.layer(upload, "B")].any()
    with refused(r"gradient='zero': expected one .* B has not moved yet"):
        attacks.span_check(still, upload[still.layer(upload)], "map", first(LINEAR)[0], 1)


def test_a_victim_from_a_run_sends_what_it_trains():
    """Fault: an upload of another side. Its clip: test_an_upload_is_the_sum_of_the_traces."""
    victim = Victim.from_record(play(tokens(), "fedlora", None, PLAN)[-1])
    assert {key.name for key in victim.upload(first(tokens()), "AB")} == {"A", "B"}
    with refused("factors='C': expected some of"):
        victim.upload(first(tokens()), "C")
    with refused("clip_norm=inf: expected >= 0, and finite where noise is added"):
        victim.upload(first(tokens()), noise_multiplier=1.0)
