"""What was released stays spent: through kills, fresh starts, lost checkpoints and branches."""

from typing import Any

import pytest
import torch
from calls import Options, refused
from toy_tasks import LORA, PLAN, private, tokens

import fedlora_lab as fl
from fedlora_lab.federated import store
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.ledger import Ledger

pytestmark = pytest.mark.attack
FOUR = PLAN.replace(rounds=4)
RELEASE: Options = {"lora": LORA, "seed": None}


def counted(folder):
    """The rounds that a ledger on the disk counts, in the order of their releases."""
    return [entry.round for entry in Ledger.load(folder / "ledger.json").releases]


def cut_short(records):
    """Plays a run up to its round 2."""
    assert [next(records).index for _ in range(3)] == [0, 1, 2]
    records.close()


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["all states", "what a state says"])
def test_a_lost_state_forgets_no_release(lost, tmp_path):
    """A folder whose states are all lost, or the last one damaged, is refused and stays as it is.
    Where the last one is lost: test_a_repeated_round_has_noise_of_its_own.
    """
    parts = tokens(), "fedlora", private("example"), FOUR
    cut_short(fl.run(*parts, **RELEASE, out=tmp_path))
    states = sorted((tmp_path / "private").glob("round-*"))
    for path in states if lost == "all states" else states[-1:]:
        path.write_bytes(b"nothing") if lost == "what a state says" else path.unlink()
    with refused("^(out=.*: expected a folder with its|private/round-000002: expected a whole)"):
        fl.run(*parts, **RELEASE, out=tmp_path)
    assert counted(tmp_path) == [1, 2]


def repeated(trust, seed, plan, folder):
    """A run that stops once it has what round 2 released, and goes on from its folder: for every
    attempt at a round its number, who took part and what was received; and the run's privacy.
    """
    attempts: list[Any] = []

    class Stopping(Run):
        def finish_round(self, opened, received, everyone):
            attempts.append((opened.before.round, opened.ids, received))
            if [t for t, *_ in attempts] == [0, 1]:
                raise KeyboardInterrupt
            return super().finish_round(opened, received, everyone)

    privacy = private("client", trust=trust)
    parts = (tokens("head", (3,) * 8), "fedlora", privacy, plan)
    config = make_config(*parts, fl.Lora(rank=8, alpha=8.0), seed)
    with pytest.raises(KeyboardInterrupt):
        list(Stopping.open(config, out=folder).records())
    list(Stopping.open(config, out=folder).records())
    return attempts, privacy


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("trust", ["local", "secagg"])
def test_a_client_spends_in_its_own_rounds_where_senders_are_seen(trust, seed, tmp_path):
    """Round 2 is repeated: without a seed it counts for who took part in either attempt, twice for
    who took part in both. In a sum every client counts in every round.
    """
    plan = PLAN.replace(rounds=5, participation=0.5)
    attempts, privacy = repeated(trust, seed, plan, tmp_path)
    asked = [(t, ids) for t, ids, _ in attempts]
    asked = asked if seed is None else list(dict(asked).items())
    ledger = Ledger.load(tmp_path / "ledger.json")
    each = [sum(trust == "secagg" or k in ids for _, ids in asked) for k in range(8)]
    for client, rounds_of_client in enumerate(each):
        own: Any = ((privacy.noise_multiplier, 1.0, rounds_of_client),) * (rounds_of_client > 0)
        assert ledger.epsilon(client) == accounting.epsilon(own, 1e-3, ledger.accountant)
    assert ledger.epsilon() == max(map(ledger.epsilon, range(8)))
    assert trust == "secagg" or min(each) < max(each)


@pytest.mark.parametrize("trust", ["local", "central", "secagg"])
def test_a_repeated_round_has_noise_of_its_own(trust, tmp_path):
    """Without a seed: the difference of the two releases is never protected by less than was
    counted. From a seed: test_a_round_is_replayed_to_the_same_bits_or_not_at_all.
    """
    # Of a sum of shares a round with fewer uploads than come nearly always is not released.
    plan = PLAN.replace(rounds=3, participation=1.0 if trust == "secagg" else 0.9)
    attempts, _ = repeated(trust, None, plan, tmp_path)
    one, other = (received for t, _, received in attempts if t == 1)
    noises = torch.stack([torch.cat([x.flatten() for x in r.noise.values()]) for r in (one, other)])
    # Had the clients the noise of the attempt before, both would be alike by three quarters.
    assert abs(float(torch.corrcoef(noises)[0, 1])) < 5 / noises.shape[1] ** 0.5
    assert counted(tmp_path) == [1, 2, 2, 3]


def calibrated():
    """A plan for four rounds at epsilon 3."""
    return fl.Privacy(delta=1e-3, accountant="rdp").calibrate(epsilon=3, task=tokens(), plan=FOUR)


def test_what_another_run_wrote_meanwhile_is_not_forgotten(tmp_path):
    """Opened after two rounds, it must not forget the third, which another released meanwhile."""

    config = make_config(tokens(), "fedlora", calibrated(), FOUR, LORA, None)
    cut_short(Run.open(config, out=tmp_path).records())
    first = Run.open(config, out=tmp_path)
    second = Run.open(config, out=tmp_path)
    with second.lock():
        second.begin_round()
    assert [record.index for record in first.records()] == [2, 3, 4]
    assert counted(tmp_path) == [1, 2, 3, 3, 4]


def test_a_table_states_what_killed_rounds_spent(tmp_path):
    """A round was noised and its process killed."""
    config = make_config(tokens(), "fedlora", calibrated(), FOUR, LORA, None)
    cut_short(Run.open(config, out=tmp_path).records())
    run = Run.open(config, out=tmp_path)
    with run.lock():
        run.begin_round()
    spent = Ledger.load(tmp_path / "ledger.json").epsilon()
    frame = store.stored_frame(tmp_path)
    assert frame.query("measure == 'epsilon'")["value"].iloc[-1] == spent
