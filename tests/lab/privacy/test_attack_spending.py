"""What was released stays spent: through kills, fresh starts, lost checkpoints and branches, and on
Flower.
"""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from calls import Options, refused
from flower_runs import party
from toy_tasks import LORA, PLAN, play, private, records_of, tokens

import fedlora_lab as fl
from fedlora_lab.federated.compare import (
    ROWS,
    Cell,
    run_in_folder,
    stored_frame,
    stored_rows,
)
from fedlora_lab.federated.records import LocalStep, Round
from fedlora_lab.federated.run import Run
from fedlora_lab.flower import open_run, rounds
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.ledger import Ledger

pytestmark = pytest.mark.attack
FOUR = PLAN.replace(rounds=4)
RELEASE: Options = {"lora": LORA, "seed": None}


def counted(folder):
    """The rounds that a ledger on the disk counts, in the order of their releases."""
    return [entry.round for entry in Ledger.load(folder / "ledger.json").releases]


def run_cell(folder, cell, **options):
    """The records of a cell that runs in a folder."""
    events = run_in_folder(cell, folder, options)
    return (event for event in events if isinstance(event, Round))


def indices(records):
    return [record.index for record in records]


def example_cell():
    return Cell.from_name("fedlora", tokens(), private("example"), FOUR, **RELEASE)


def cut_short(records):
    """Plays a run up to its round 2."""
    assert [next(records).index for _ in range(3)] == [0, 1, 2]
    records.close()


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["row", "rows", "rounds", "broken"])
def test_a_lost_checkpoint_forgets_no_release(lost, tmp_path):
    """Killed between checkpoint and row, the round is another release; where all checkpoints, or
    rows, are removed or damaged the run begins anew, and says so. Its ledger goes on.
    """
    cell = example_cell()
    cut_short(run_cell(tmp_path, cell))
    table = tmp_path / ROWS
    if lost == "row":
        table.write_bytes(b"".join(table.read_bytes().splitlines(keepends=True)[:-1]))
    for path in {"row": [], "rows": [table]}.get(lost, [*tmp_path.glob("round-*")]):
        path.write_bytes(b"nothing") if lost == "broken" else path.unlink()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records = list(run_cell(tmp_path, cell))
    told = any("what stands in its ledger stays spent" in str(one.message) for one in said)
    assert told == (lost != "row")
    again = [2] if lost == "row" else [0, 1, 2]
    assert indices(records) == [*again, 3, 4] and [*stored_rows(tmp_path)] == [0, 1, 2, 3, 4]
    assert counted(tmp_path) == [1, 2, *filter(None, again), 3, 4]


def test_a_release_has_no_branches(tmp_path):
    """`resume=A, checkpoint=B` would let each of two branches state its own releases only."""
    task = tokens()
    privacy = private("example")
    a = tmp_path / "a"
    b = tmp_path / "b"
    play(task, "fedlora", privacy, seed=None, checkpoint=a)
    with refused(r"^checkpoint='.*b': expected '.*a': a run goes on in its own folder"):
        fl.run(task, "fedlora", privacy, FOUR, **RELEASE, resume=a, checkpoint=b)
    assert not b.exists()
    (tmp_path / "link").symlink_to(a)
    play(task, "fedlora", privacy, FOUR, seed=None, resume=a, checkpoint=tmp_path / "link")
    assert counted(a) == [1, 2, 3, 4]


def repeated(trust, seed, plan, folder):
    """A run that stops once it has what round 2 released, and goes on from its folder: for every
    attempt at a round its number, who took part and what was received; and the run's privacy.
    """
    attempts: list[Any] = []

    class Stopping(Run):
        def finish_round(self, opened, received, everyone, arrived):
            attempts.append((opened.before.round, opened.ids, received))
            if [t for t, *_ in attempts] == [0, 1]:
                raise KeyboardInterrupt
            return super().finish_round(opened, received, everyone, arrived)

    shares: Options = {"honest_clients": 1} if trust == "secagg" else {}
    privacy = private("client", trust=trust, **shares)
    cell = (tokens("head", (3,) * 8), "fedlora", privacy, plan)
    options: Options = {"lora": fl.Lora(rank=8, alpha=8.0), "seed": seed}
    with pytest.raises(KeyboardInterrupt):
        list(Stopping.open(*cell, **options, checkpoint=folder).events())
    list(Stopping.open(*cell, **options, resume=folder).events())
    return attempts, privacy


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("trust", ["local", "secagg"])
def test_a_client_spends_in_its_own_rounds_where_senders_are_seen(trust, seed, tmp_path):
    """Round 2 is repeated: without a seed it counts for who took part in either attempt, twice for
    who took part in both. In a sum every client counts in every round.
    """
    plan = PLAN.replace(rounds=5, participation=0.5, client_dropout=0.2)
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


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("trust", ["local", "central", "secagg"])
def test_a_repeated_round_has_new_noise_or_the_same_bits(trust, seed, tmp_path):
    """Without a seed with other participants, under noise of its own that is counted again; from a
    seed with the very same release. The difference of the two is never protected by less than was
    counted.
    """
    attempts, _ = repeated(trust, seed, PLAN.replace(rounds=3, participation=0.9), tmp_path)
    (ids, one), (others, other) = [parts for t, *parts in attempts if t == 1]
    noises = [torch.cat([x.flatten() for x in r.noise.values()]) for r in (one, other)]
    if seed is None:
        # Had the clients the noise of the attempt before, both would be alike by three quarters.
        assert abs(float(torch.corrcoef(torch.stack(noises))[0, 1])) < 5 / len(noises[0]) ** 0.5
        assert counted(tmp_path) == [1, 2, 2, 3]
    else:
        assert ids == others and one.uploads.keys() == other.uploads.keys()
        assert all(torch.equal(x, other.uploads[key]) for key, x in one.uploads.items())
        assert counted(tmp_path) == [1, 2, 3]


def calibrated():
    """A plan for four rounds at epsilon 3."""
    return fl.Privacy(delta=1e-3, accountant="rdp").calibrate(epsilon=3, task=tokens(), plan=FOUR)


@pytest.mark.filterwarnings("ignore:epsilon=:UserWarning")
def test_a_run_that_was_opened_before_another_wrote_is_refused(tmp_path):
    """Opened after two rounds, it must not forget the third, which another released meanwhile."""

    def opened(**where):
        return Run.open(tokens(), "fedlora", calibrated(), FOUR, **RELEASE, **where)

    cut_short(records_of(opened(checkpoint=tmp_path)))
    first = opened(resume=tmp_path)
    second = opened(resume=tmp_path)
    with second.lock():
        second.begin_round()
    with refused(r"^checkpoint='.*': expected a folder in which no other run has written mean"):
        next(first.events())
    assert counted(tmp_path) == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_run_ends_before_the_round_that_would_spend_more(tmp_path):
    """After a third round that was cut short, and whole, in the loop and on Flower; the last round
    is judged.
    """
    cell = (tokens(), "fedlora", calibrated(), FOUR)
    for event in fl.run_steps(*cell, **RELEASE, checkpoint=tmp_path):
        if isinstance(event, LocalStep) and event.round == 3:
            break
    seldom = {"evaluate_every": 9}
    assert indices(play(*cell, seed=None, resume=tmp_path, max_epsilon=3.0, **seldom)) == [3]
    assert counted(tmp_path) == [1, 2, 3, 3]
    assert Ledger.load(tmp_path / "ledger.json").epsilon() <= 3
    spent = [record.epsilon for record in play(*cell)]
    for stop, rounds_done in ((0.5 * spent[1], 0), (spent[1], 1), (spent[2] * 1.001, 2)):
        records = play(*cell, max_epsilon=stop, **seldom)
        assert records[-1].index == rounds_done and records[-1].metrics["loss"] > 0
    everybody = party(*cell)
    run = open_run(everybody.terms, max_epsilon=spent[2])
    assert indices(rounds(everybody.grid(), everybody.terms, run)) == [0, 1, 2]


@pytest.mark.filterwarnings("ignore:epsilon=:UserWarning")
def test_a_table_states_what_killed_rounds_spent(tmp_path):
    """Rounds were noised and their process killed; then the run ends, with no round to play."""
    cell = replace(example_cell(), privacy=calibrated())
    cut_short(run_cell(tmp_path, cell))
    run = Run.open(cell.task, "fedlora", cell.privacy, FOUR, **RELEASE, resume=tmp_path)
    with run.lock():
        run.begin_round()
    spent = Ledger.load(tmp_path / "ledger.json").epsilon()
    assert list(run_cell(tmp_path, cell, max_epsilon=spent)) == []
    frame = stored_frame(tmp_path)
    assert frame.query("measure == 'epsilon'")["value"].iloc[-1] == spent
