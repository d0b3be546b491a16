"""A user tries to make the fatal mistakes through the library's own doors."""

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch
from broken_rows import smuggles
from small import LORA, PLAN, examples, play, private, regression, tokens
from torch import nn

import fedlora_lab as fl
from fedlora_lab.audit import self_check
from fedlora_lab.ledger import Uncertified
from fedlora_lab.rules import Whitening

TASK = regression()


# 1: counting


def test_nothing_that_a_ledger_states_can_be_set():
    last: Any
    *_, last = play(TASK, "ffa-lora", private("example"))
    for name, value in (("unit", "client"), ("delta", 0.5), ("accountant", "prv"), ("reproducible", False)):
        with pytest.raises(AttributeError):
            setattr(last.ledger, name, value)
    for name, value in (("epsilon", 0.1), ("ledger", None), ("index", 0)):
        with pytest.raises(FrozenInstanceError):
            setattr(last, name, value)
    with pytest.raises(ValueError, match="snapshot"):
        last.ledger.record(9, None, 1, sample_rate=0.1, noise_multiplier=9.0)
    with pytest.raises(ValueError, match="snapshot"):
        last.ledger.uncertified = None
    with pytest.raises(FrozenInstanceError):
        last.ledger.releases[0].count = 0
    assert isinstance(last.ledger.releases, tuple)


def test_what_cannot_be_certified_stays_so():
    book = private("example").ledger()
    book.uncertified = "the noise is shaped"
    with pytest.raises(ValueError, match="stays so"):
        book.uncertified = None
    with pytest.raises(Uncertified):
        book.epsilon()


def _edited(folder, change):
    """The ledger on disk rewritten by somebody who knows how its digest is made."""
    from fedlora_lab import sealed
    from fedlora_lab.ledger import FORMAT, VERSION

    path = folder / "ledger.json"
    content = json.loads(path.read_text())["content"]
    change(content)
    sealed.save(path, sealed.write(FORMAT, VERSION, content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(delta=0.3), "those of this run"),
        (lambda content: content.update(unit="client", releases=[]), "those of this run"),
        (lambda content: content.update(accountant="prv"), "those of this run"),
        (lambda content: content.update(reproducible=False), "those of this run"),
        (lambda content: content.update(releases=content["releases"][1:]), "rounds done"),
        (lambda content: content["releases"][0].update(count=1), "as this run writes it"),
        (lambda content: content["releases"][0].update(noise_multiplier=50.0), "as this run writes it"),
        (lambda content: content["releases"][0].update(sample_rate=0.0), "as this run writes it"),
        (lambda content: content.update(uncertified="said by another"), "what this run says"),
    ],
)
def test_a_ledger_of_other_terms_is_refused(tmp_path, change, message):
    play(TASK, "ffa-lora", private("example"), checkpoint=tmp_path)
    _edited(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        play(TASK, "ffa-lora", private("example"), PLAN.replace(rounds=4), resume=tmp_path)


def test_a_run_without_its_ledger_does_not_go_on(tmp_path):
    play(TASK, "ffa-lora", private("example"), checkpoint=tmp_path)
    (tmp_path / "ledger.json").unlink()
    with pytest.raises(ValueError, match="the ledger of the rounds done"):
        play(TASK, "ffa-lora", private("example"), PLAN.replace(rounds=4), resume=tmp_path)


@pytest.mark.parametrize("seed", [1, None])
def test_a_run_does_not_go_on_under_another_seed(tmp_path, seed):
    """Two seeds would give two noises to one round, and a run begun with a seed is no release."""
    play(TASK, "ffa-lora", private("example"), checkpoint=tmp_path)
    with pytest.raises(ValueError, match="the same seed"):
        play(TASK, "ffa-lora", private("example"), PLAN.replace(rounds=4), resume=tmp_path, seed=seed)


def test_entries_of_one_round_do_not_replace_each_other():
    book = private("example").ledger()
    book.record(1, (0,), 5, sample_rate=0.5, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="already has"):
        book.record(1, (0,), 5, sample_rate=0.5, noise_multiplier=9.0, repeats=True)
    fresh = private("example").ledger(reproducible=False)
    for _ in range(3):
        fresh.record(1, (0,), 5, sample_rate=0.5, noise_multiplier=1.0)
    assert fresh.epsilon() > book.epsilon()


# 2, 5, 6: noise, unit, delta


def test_noise_of_a_shorter_plan_is_counted_in_full():
    short, task = PLAN.replace(rounds=1), TASK
    privacy = fl.Privacy(delta=1e-3, accountant="rdp").calibrate(epsilon=6, task=task, plan=short)
    with pytest.raises(ValueError, match=r"^releases=60: expected at most 2, for which epsilon = 6 was calibrated"):
        play(task, "ffa-lora", privacy, PLAN.replace(rounds=30))
    *_, last = play(task, "ffa-lora", privacy.replace(target=None), PLAN.replace(rounds=30))
    assert last.epsilon > 12
    assert last.epsilon == pytest.approx(
        fl.Privacy(delta=1e-3, accountant="rdp", noise_multiplier=privacy.noise_multiplier, sample_rate=0.5)
        .ledger(releases=30 * PLAN.local_steps)
        .epsilon()
    )


def test_a_run_goes_on_past_its_target_only_when_told(tmp_path):
    short, longer = PLAN.replace(rounds=1), PLAN.replace(rounds=3)
    privacy = fl.Privacy(delta=1e-3, accountant="rdp").calibrate(epsilon=6, task=TASK, plan=short)
    play(TASK, "ffa-lora", privacy, short, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"^releases=6: expected at most 2"):
        play(TASK, "ffa-lora", privacy, longer, resume=tmp_path)
    *_, last = play(TASK, "ffa-lora", privacy.replace(target=None), longer, resume=tmp_path)
    assert last.epsilon > 6


def test_a_rate_of_examples_does_not_pass_for_clients():
    calibrated = fl.Privacy(delta=1e-3, accountant="rdp").calibrate(epsilon=1, task=TASK, plan=PLAN)
    for trust in ("central", "secagg", "local"):
        with pytest.raises(ValueError, match="sample_rate="):
            play(TASK, "ffa-lora", calibrated.replace(unit="client", trust=trust))
    honest = calibrated.replace(unit="client", sample_rate=None)
    *_, last = play(TASK, "ffa-lora", honest)
    nobody_drawn = fl.Privacy(unit="client", delta=1e-3, accountant="rdp", noise_multiplier=honest.noise_multiplier)
    assert last.epsilon == pytest.approx(nobody_drawn.replace(sample_rate=1.0).ledger(releases=PLAN.rounds).epsilon())
    with pytest.raises(ValueError, match="unit='client'"):
        fl.Privacy(unit="client", delta=1e-3, noise_multiplier=(1.0, 2.0))
    with pytest.raises(ValueError, match="unit='client'"):
        fl.Privacy(unit="client", delta=1e-3, sample_rate=(0.1, 0.2))


@pytest.mark.parametrize("unit", ["example", "client"])
def test_no_way_to_a_large_delta(unit):
    units = sum(TASK.sizes) if unit == "example" else len(TASK.sizes)
    for delta in (1 / units, 0.9):
        privacy = private(unit).replace(delta=delta)
        with pytest.raises(ValueError, match="delta="):
            play(TASK, "ffa-lora", privacy)
        with pytest.raises(ValueError, match="delta="):
            privacy.replace(noise_multiplier=None).calibrate(epsilon=1, task=TASK, plan=PLAN)
        with pytest.raises(ValueError, match="delta="):
            self_check(TASK, "ffa-lora", privacy, PLAN, lora=LORA)
    wrong: list[Any] = [0, 1, 1.5, -1e-5, "1e-5", True]
    for delta in wrong:
        with pytest.raises(ValueError, match="delta="):
            fl.Privacy(unit=unit, delta=delta)


# 3, 4, 15: paths round the clip


class Centred(nn.Module):
    """Subtracts the mean of the batch: every example hears of all others."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean(1)
        return self.inner(x - x.mean(0))


def test_nothing_mixes_examples():
    clients = [examples(6, k) for k in range(3)]
    norm = nn.Sequential(nn.Flatten(), nn.Linear(15, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double().train()
    with pytest.raises(ValueError, match="mixes examples"):
        fl.tasks.classification(norm, clients, test=examples(4, 9), targets=["1"])
    with pytest.raises(ValueError, match="keeps examples apart"):
        fl.tasks.classification(Centred().double(), clients, test=examples(4, 9), targets=["inner"])
    task = tokens("head")
    mixed = replace(task, loss=lambda out, y: task.loss(out, y) * task.loss(out, y).mean())
    with pytest.raises(ValueError, match="examples that do not mix"):
        play(mixed, "fedlora", private("example"))


def test_a_clip_norm_is_a_number_fixed_before():
    for value in ("median", torch.tensor([1.0, 2.0]), lambda norms: norms.median(), None, -1.0, float("nan")):
        with pytest.raises(ValueError, match="clip_norm="):
            fl.Privacy(clip_norm=value, noise_multiplier=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip_norm=inf"):
        fl.Privacy(clip_norm=float("inf"), noise_multiplier=1.0)
    with pytest.raises(FrozenInstanceError):
        private("example").clip_norm = 99.0  # type: ignore[misc]
    *_, last = play(TASK, "ffa-lora", fl.Privacy(clip_norm=float("inf"), noise_multiplier=0.0, delta=1e-3))
    assert last.epsilon == float("inf")


def test_a_two_faced_whitening_is_refused():
    """Asked about the identity it passes signal and noise through one map; at work it leaves the noise out."""

    def rule(gram: torch.Tensor) -> Whitening:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
        asked = torch.equal(gram.double(), torch.eye(2).double())
        return Whitening(eye, eye, eye if asked else 0 * eye)

    for unit in ("example", "client"):
        with pytest.raises(ValueError, match="whiten="):
            play(TASK, fl.methods.FFA.replace(name="two-faced", whiten=rule), private(unit))


def test_a_row_that_smuggles_is_caught_by_the_self_check():
    checked = self_check(tokens("head"), smuggles(), private("example"), PLAN, lora=LORA)
    assert "no clip norm, no trace" in {one.trial for one in checked.failed}


# 25: chance


def test_a_seeded_run_never_becomes_a_release(tmp_path):
    last: Any
    free: Any
    *_, last = play(TASK, "ffa-lora", private("example"), checkpoint=tmp_path)
    assert last.ledger.mode == "reproducible: not for release"
    with pytest.raises(AttributeError):
        last.ledger.mode = "release"
    for seed in (True, -1, 0.5, "0"):
        with pytest.raises(ValueError, match="seed="):
            play(TASK, "ffa-lora", private("example"), seed=seed)
    *_, free = play(TASK, "ffa-lora", private("example"), seed=None)
    assert free.ledger.mode == "release"
    *_, other = play(TASK, "ffa-lora", private("example"), seed=None)
    name = next(iter(free.adapter))
    assert not torch.equal(free.adapter[name][1], other.adapter[name][1])
