"""Attacks on the audit itself: a release that explodes, a bug that the ledger knows nothing of."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from small import LORA, UNITS, play, private, same_bits, tokens
from test_cli import call

import fedlora_lab as fl
from fedlora_lab import mechanism
from fedlora_lab.audit import audit
from fedlora_lab.cli.audit import line, written
from fedlora_lab.edges import BUGS
from fedlora_lab.folder import read_json, to_json
from fedlora_lab.ledger import Ledger, Uncertified
from fedlora_lab.record import Round

pytestmark = pytest.mark.attack

WIDE = fl.tasks.regression(clients=4, examples=16, d_in=40, d_out=24, rank=4)
PLAN = fl.Plan(rounds=6, local_steps=2, batch=8, lr=1e-7)
PRIVACY = fl.Privacy(noise_multiplier=4.0, delta=1e-5, accountant="rdp")
NOTHING = BUGS["clips nothing"]


def audited(plan=PLAN, privacy=PRIVACY, row="fedlora", **options):
    return audit(WIDE, row, privacy, plan, canaries=64, lora=fl.Lora(8, 8.0), **options)


def exploding(unit="example", sigma=0.01):
    """A sound run that leaves float32: by steps of 1e9 that next to no noise hides, or by the noise itself."""
    privacy = fl.Privacy(unit=unit, noise_multiplier=sigma, clip_norm=1e36, delta=1e-5, accountant="rdp")
    return audited(PLAN.replace(lr=1e9), privacy)


@pytest.mark.parametrize(("unit", "sigma", "ends"), [("example", 0.01, 1), ("client", 100.0, 2)])
def test_a_release_that_is_not_finite_is_invalid(unit, sigma, ends):
    found = exploding(unit, sigma)
    assert found.invalid == f"the release of round {ends} is not finite"
    assert np.isnan(found.epsilon_lower)
    assert not found.holds
    assert found.scores == found.lower == {}
    assert found.rounds == ends
    for words in (str(found), repr(found), line("fedlora", found)):
        assert f"invalid: {found.invalid}" in words
        assert "the release itself is the finding" in words
        assert "0.00" not in words
    kept = written("fedlora", found, None)
    assert (kept["epsilon_lower"], kept["invalid"]) == (None, found.invalid)
    assert to_json(kept)


def test_an_invalid_audit_is_drawn_as_such():
    found = exploding()
    figure = fl.plots.audit([found, audited()])
    words = [" ".join(text.get_text().split()) for ax in figure.axes for text in ax.texts]
    assert sum(f"invalid: {found.invalid}" in word for word in words) == 2
    lines: Any = figure.axes[1].lines
    assert np.isfinite(np.concatenate([line.get_xdata() for line in lines])).all()


def test_a_run_that_only_the_bug_makes_explode_is_invalid():
    """Finite tensors whose model gives no finite loss: called 0.00 before."""
    found = audited(PLAN.replace(lr=0.2), bug=NOTHING)
    assert found.invalid == "the model of round 6 gives losses that are not finite"
    assert "an injected bug: clips nothing" in str(found)


def loud_inputs(lr):
    """Without a clip, inputs of 1e17 give gradients near the end of float32, and the clip norm is small beside them."""

    def scaled(pair):
        return (1e17 * pair[0], pair[1])

    task = replace(WIDE, clients=tuple(map(scaled, WIDE.clients)), test=scaled(WIDE.test), validation=None)
    privacy = fl.Privacy(noise_multiplier=4.0, clip_norm=1e-4, delta=1e-5, accountant="rdp")
    return audit(task, "fedlora", privacy, PLAN.replace(lr=lr), canaries=64, lora=fl.Lora(8, 8.0), bug=NOTHING)


def test_traces_of_a_large_finite_release_do_not_overflow():
    """Their products leave float32: they counted as 0, and hid the bug."""
    found = loud_inputs(1e-38)
    assert found.invalid is None
    assert found.lower["update A"] > found.epsilon_nominal
    assert found.lower["update"] > 0.5
    assert not found.holds


def test_a_release_that_explodes_late_is_invalid_in_its_round():
    found = loud_inputs(1e-37)
    assert 1 < found.rounds < PLAN.rounds
    assert found.invalid == f"the release of round {found.rounds} is not finite"


@pytest.mark.parametrize("row", ["deer", "flexlora", "fedsvd", "fedask"])
def test_a_rule_that_fails_on_what_is_not_finite_is_no_traceback(row):
    privacy = fl.Privacy(noise_multiplier=0.01, clip_norm=1e38, delta=1e-5, accountant="rdp")
    found = audited(PLAN.replace(lr=1e9), privacy, row)
    assert found.invalid is not None
    assert "\n" not in str(found)


def test_the_command_says_invalid_and_leaves_with_status_one(tmp_path, capsys):
    out = tmp_path / "runs"
    options = ["--clients", 3, "--rounds", 2, "--batch", 8, "--delta", "1e-5", "--lr", "1e9", "--clip", "1e30"]
    assert call("compare", "regression", "--methods", "fedlora", "--seeds", 1, *options, "--out", out) == 0
    capsys.readouterr()
    assert call("audit", out, "--canaries", 16, "--no-check") == 1
    assert "invalid: the release of round" in capsys.readouterr().out
    (kept,) = read_json(out / "private" / "audit.json")["audits"]
    assert kept["epsilon_lower"] is None
    assert not kept["holds"]


def test_a_bug_is_refuted_against_what_the_ledger_would_have_stated():
    sound, broken = audited(), audited(bug=NOTHING)
    assert sound.holds
    assert sound.bug is None
    assert sound.epsilon_upper == sound.epsilon_nominal == sound.claimed
    assert broken.epsilon_upper == float("inf")
    assert broken.epsilon_nominal == sound.epsilon_nominal == broken.claimed
    assert broken.epsilon_lower > broken.epsilon_nominal
    assert not broken.holds
    assert "an injected bug: clips nothing" in str(broken)


@pytest.mark.parametrize("unit", UNITS)
def test_a_run_with_a_bug_is_uncertified_from_the_first_moment(unit, tmp_path):
    reason, options = "an injected bug: clips nothing", {"lora": LORA, "bug": NOTHING, "checkpoint": tmp_path}
    task, plan = tokens("head"), fl.Plan(rounds=3, local_steps=2, batch=3, lr=0.2)
    calibrated = fl.Privacy(unit=unit, delta=1e-3, accountant="rdp").calibrate(epsilon=8, task=task, plan=plan)
    events = fl.ticks(task, "fedlora", calibrated, plan, **options)
    first: Any = next(events)
    next(events)
    assert (first.ledger.uncertified, first.epsilon) == (reason, float("inf"))
    assert Ledger.load(tmp_path / "ledger.json").uncertified == reason, "on disk before anything was released"
    events.close()
    with pytest.raises(ValueError, match="what this run says"):
        fl.run(task, "fedlora", calibrated, plan, lora=LORA, resume=tmp_path)
    last: Any
    *_, last = fl.run(task, "fedlora", calibrated, plan, lora=LORA, resume=tmp_path, bug=NOTHING)
    assert (last.index, last.ledger.uncertified, last.epsilon) == (3, reason, float("inf"))
    with pytest.raises(Uncertified, match=reason):
        last.ledger.epsilon()
    book = Ledger.load(tmp_path / "ledger.json")
    with pytest.raises(ValueError, match="stays so"):
        book.uncertified = None
    assert book.nominal() < float("inf")


def test_a_sound_run_cannot_be_continued_with_a_bug(tmp_path):
    task, plan = tokens("head"), fl.Plan(rounds=2, local_steps=2, batch=3, lr=0.2)
    last: Any
    *_, last = fl.run(task, "fedlora", private("example"), plan, lora=LORA, checkpoint=tmp_path)
    assert last.ledger.uncertified is None
    with pytest.raises(ValueError, match="what this run says"):
        fl.run(task, "fedlora", private("example"), plan.replace(rounds=3), lora=LORA, resume=tmp_path, bug=NOTHING)


def test_a_bug_belongs_to_its_run_alone():
    """Two runs in two threads, step by step in turn, one with the bug: each has the bits that it has alone."""
    task, plan = tokens("head"), fl.Plan(rounds=3, local_steps=2, batch=3, lr=0.2)
    before = mechanism.clip_sum
    found: dict[str, Any] = {}
    turn = threading.Barrier(2)

    def work(name: str, bug: Any) -> None:
        events = []
        for event in fl.ticks(task, "fedlora", private("example"), plan, lora=LORA, bug=bug):
            turn.wait(60)
            events.append(event)
        found[name] = [event for event in events if isinstance(event, Round)]

    threads = [threading.Thread(target=work, args=pair) for pair in (("sound", None), ("broken", NOTHING))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mechanism.clip_sum is before
    alone = play(task, "fedlora", private("example"), plan)
    same_bits(found["sound"], alone)
    assert found["sound"][-1].ledger.uncertified is None
    assert found["broken"][-1].ledger.uncertified == "an injected bug: clips nothing"
    one, other = (pd.DataFrame(found[name][-1].adapter["inner"][1].numpy()) for name in ("sound", "broken"))
    assert not one.equals(other)
