"""What was released stays spent: through kills, fresh starts, lost checkpoints and branches, and on Flower."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from flowers import protected
from small import LORA, PLAN, book, play, private, tokens
from test_cli import SMALL, call

import fedlora_lab as fl
from fedlora_lab.checkpoint import rounds_in
from fedlora_lab.cli import cells
from fedlora_lab.comparison import Cell
from fedlora_lab.flower import InProcess, client_app, rounds
from fedlora_lab.flower.server import open_run
from fedlora_lab.flower.simulation import everyone, opened
from fedlora_lab.folder import Folder, read_frame
from fedlora_lab.ledger import Ledger
from fedlora_lab.loop import Federation
from fedlora_lab.record import Round, Tick
from fedlora_lab.report import joint

pytestmark = pytest.mark.attack
HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}", "OMP_NUM_THREADS": "1"}
FOUR = PLAN.replace(rounds=4)


def counted(path: Path) -> list[int]:
    """The rounds that a ledger on the disk counts, in the order of their releases."""
    return [entry.round for entry in Ledger.load(path).releases]


# simulation

FLOWER = """
import os, signal, sys
from pathlib import Path
from test_attack_spending import simulated
stop = int(sys.argv[3])
for record in simulated(sys.argv[1], Path(sys.argv[2])):
    print(record.index, flush=True)
    if record.index == stop:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def simulated(method: str, out: Path) -> Iterator[Round]:
    """A cell of a run folder on a simulation in one process: clients that are new at every start."""
    cell = Cell.named(method, tokens("head"), protected("example"), FOUR, LORA, None)

    def engine(**where):
        who = everyone(cell.task, cell.method, cell.privacy, cell.plan, cell.lora, cell.seed)
        party = who.party()
        return rounds(InProcess(client_app(who), 3), party, opened(party, **where))

    with Folder(out) as folder:
        yield from cells.play(folder, cell, engine=engine)


@pytest.mark.parametrize("method", ["fedlora", "fedsa-lora"])
def test_a_killed_simulation_forgets_no_release(method, tmp_path):
    """Killed by SIGKILL after round 3 of 4 and started again: every round of both starts is in the ledger.

    A method whose clients keep nothing goes on after round 3; one whose clients keep something begins anew.
    """

    def started(stop: int) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", FLOWER, method, str(tmp_path), str(stop)]
        return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)

    state = tmp_path / "checkpoints" / f"{method}-release"
    killed = started(3)
    assert (killed.returncode, killed.stdout.split()) == (-signal.SIGKILL, ["0", "1", "2", "3"]), killed.stderr
    assert counted(state / "ledger.json") == [1, 2, 3]
    again = started(-1)
    assert again.returncode == 0, again.stderr
    played = [0, 1, 2, 3, 4] if method == "fedsa-lora" else [4]
    assert [int(word) for word in again.stdout.split()] == played
    assert counted(state / "ledger.json") == [1, 2, 3, *(number for number in played if number)]
    with Folder(tmp_path) as folder:
        (kept,) = folder.ledgers().values()
        assert kept is not None
        assert [entry.round for entry in kept.releases] == counted(state / "ledger.json")


def test_flower_begins_anew_with_what_was_spent(tmp_path):
    """In one process: clients that lost what they kept train from the beginning, and the ledger goes on."""
    who = everyone(tokens("head"), "fedsa-lora", protected("example"), FOUR, LORA, None)
    party = who.party()
    begun = rounds(InProcess(client_app(who), 3), party, open_run(party, checkpoint=tmp_path))
    for _ in range(4):
        next(begun)
    begun.close()
    assert counted(tmp_path / "ledger.json") == [1, 2, 3]
    run = open_run(party, tmp_path, tmp_path)
    run.begin_again()
    records = list(rounds(InProcess(client_app(who), 3), party, run))
    assert [record.index for record in records] == [0, 1, 2, 3, 4]
    assert counted(tmp_path / "ledger.json") == [1, 2, 3, 1, 2, 3, 4]
    assert rounds_in(tmp_path) == [3, 4]
    assert records[0].epsilon > 0
    whole = list(rounds(InProcess(client_app(who), 3), party, open_run(party)))
    assert records[-1].epsilon > whole[-1].epsilon


COMMAND = "import sys; from fedlora_lab.cli import main; main(sys.argv[1:])"
WORDS = ["--clients", "3", "--rounds", "4", "--local-steps", "1", "--lr", "0.1", "--delta", "1e-4"]


@pytest.mark.slow
@pytest.mark.waits("cluster")
def test_a_killed_command_on_flower_forgets_no_release(tmp_path):
    """The same with Flower's engine and the command: 7 rounds are released, 7 or more are counted."""
    words = ["flower", "regression", "--method", "fedsa-lora", "--seed", "none", *WORDS, "--out", str(tmp_path / "out")]
    state = tmp_path / "out" / "checkpoints" / "fedsa-lora-release"
    with open(tmp_path / "said", "wb") as said, FileLock(tmp_path.parent.parent / "cluster.lock"):
        started = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words], env=ENVIRONMENT, stdout=said, stderr=said, start_new_session=True
        )
        end = time.monotonic() + 600
        while not (state / "round-000003.json").exists():
            assert time.monotonic() < end and started.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.005)
        os.killpg(started.pid, signal.SIGKILL)
        started.wait()
        before = counted(state / "ledger.json")
        assert before in ([1, 2, 3], [1, 2, 3, 4])
        command = [sys.executable, "-W", "ignore", "-c", COMMAND, *words]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert counted(state / "ledger.json") == [*before, 1, 2, 3, 4]
    (kept,) = json.loads((tmp_path / "out" / "ledger.json").read_text()).values()
    assert [entry["round"] for entry in kept["content"]["releases"]] == [*before, 1, 2, 3, 4]


# the command


def test_a_fresh_start_forgets_no_release(tmp_path, capsys):
    """Finished and unfinished releases are added up after --fresh, in the last lines, `report` and the page."""
    out = tmp_path / "out"
    words = ["run", "regression", "deer", "--seed", "none", *SMALL, "--out", out]
    assert call(*words) == 0
    one = Ledger.load(out / "checkpoints" / "deer-release" / "ledger.json")
    for count in (2, 3):
        capsys.readouterr()
        assert call(*words, "--fresh") == 0
        said = f"epsilon = {Ledger.compose(*[one] * count).epsilon():.4g} at delta"
        assert f"All {count} runs without a seed together" in (shown := capsys.readouterr().out) and said in shown
        assert said in (out / "report.html").read_text()
        assert call("report", out) == 0
        assert said in capsys.readouterr().out
    assert Ledger.compose(*[one] * 3).epsilon() > 1.2 * one.epsilon()
    assert call(*words[:4], "0", *words[5:], "--fresh") == 0
    assert len(list(out.glob("spent-*.json"))) == 3, "what was released stays; a run with a seed leaves nothing"
    assert call(*words[:4], "0", *words[5:], "--fresh") == 0
    assert len(list(out.glob("spent-*.json"))) == 3


def test_a_run_without_privacy_is_never_forgotten(tmp_path, capsys):
    """A private run in the same folder states its epsilon; that an un-noised one came before must stand beside it."""
    words = ["run", "regression", "fedlora", *SMALL, "--out", tmp_path, "--seed", "none"]
    said = "Runs without privacy, {} here, cut short or cleared away ones included, promise nothing: no ε covers"
    assert call(*words, "--epsilon", "none") == 0
    assert said.format(1) in capsys.readouterr().out
    (tmp_path / "cells" / "fedlora-release.json").unlink()
    (tmp_path / "cells" / "fedlora-release.csv").unlink()  # as if it had been cut short
    for _ in range(2):
        assert call(*words, "--fresh") == 0
        assert said.format(1) in capsys.readouterr().out
        assert said.format(1) in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "spent-001-fedlora-release.json").read_text()) is None
    assert call(*words, "--fresh", "--epsilon", "none") == 0
    assert call(*words, "--fresh") == 0
    assert said.format(2) in capsys.readouterr().out.splitlines()[-3]
    words[-1] = "0"
    assert call(*words, "--fresh", "--epsilon", "none") == 0
    assert call(*words, "--fresh") == 0
    assert said.format(3) in capsys.readouterr().out, "a seed is no noise"


def test_a_single_release_that_no_table_shows_is_told(tmp_path, capsys):
    """It was cleared away, and the runs that came after it spend nothing, or have a seed."""
    words = ["run", "regression", "fedlora", *SMALL, "--out", tmp_path]
    assert call(*words, "--seed", "none") == 0
    assert "without a seed" not in capsys.readouterr().out, "the table shows it"
    spent = Ledger.load(tmp_path / "checkpoints" / "fedlora-release" / "ledger.json")
    said = f"A run without a seed that was cut short or cleared away: epsilon = {spent.epsilon():.4g} at delta"
    for seed, epsilon in (("none", "none"), ("0", "8")):
        assert call(*words, "--seed", seed, "--epsilon", epsilon, "--fresh") == 0
        assert said in capsys.readouterr().out
        assert said in (tmp_path / "report.html").read_text()


def test_a_run_cut_short_is_kept_by_a_fresh_start(tmp_path):
    """Its ledger lies beside its checkpoints only; and one that cannot be read is not thrown away."""
    cell = Cell.named("fedlora", tokens(), private("example"), FOUR, LORA, None)
    with Folder(tmp_path / "out") as folder:
        played: Any = cells.play(folder, cell)
        for _ in range(3):
            next(played)
        played.close()
        folder.clear()
        (kept,) = folder.ledgers().values()
        assert kept is not None
        assert [entry.round for entry in kept.releases] == [1, 2]
        assert len(list(cells.play(folder, cell))) == 5
        names = sorted(folder.ledgers())
        assert names == ["fedlora-release", "spent-001-fedlora-release"]
        path = folder.checkpoint("fedlora", None) / "ledger.json"
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match=r"^ledger.json: expected"):
            folder.clear()
        assert path.exists()
    assert (tmp_path / "out" / "spent-001-fedlora-release.json").exists()


def test_a_round_that_the_command_plays_again_counts_twice(tmp_path):
    """Killed between the checkpoint of round 2 and its row: in release mode the round is another release."""
    cell = Cell.named("fedlora", tokens(), private("example"), FOUR, LORA, None)
    with Folder(tmp_path) as folder:
        place = folder.checkpoint("fedlora", None)
        played: Any = cells.play(folder, cell)
        for _ in range(3):
            next(played)
        rows = (place / "rounds.csv").read_bytes()
        lines = [line for line in rows.splitlines(keepends=True) if b",2,all," not in line and b",2,inner" not in line]
        played.close()
        (place / "rounds.csv").write_bytes(b"".join(line for line in lines if b",2,outer" not in line))
        assert [record.index for record in cells.play(folder, cell)] == [2, 3, 4]
        assert counted(place / "ledger.json") == [1, 2, 2, 3, 4]


@pytest.mark.parametrize("lost", ["rounds", "rows", "broken"])
def test_a_lost_checkpoint_forgets_no_release(lost, tmp_path):
    """Removed or damaged checkpoints, or rows: the run begins anew and its ledger goes on."""
    cell = Cell.named("fedlora", tokens(), private("example"), FOUR, LORA, None)
    with Folder(tmp_path) as folder:
        place = folder.checkpoint("fedlora", None)
        played: Any = cells.play(folder, cell)
        for _ in range(3):
            next(played)
        played.close()
        for path in place.glob("rounds.csv" if lost == "rows" else "round-*"):
            path.write_bytes(b"nothing") if lost == "broken" else path.unlink()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            records = list(cells.play(folder, cell))
        assert any("what stands in its ledger stays spent" in str(one.message) for one in said)
        assert [record.index for record in records] == [0, 1, 2, 3, 4]
        assert counted(place / "ledger.json") == [1, 2, 1, 2, 3, 4]
        frame = folder.read("fedlora", None)
        assert frame.query("measure == 'epsilon'")["round"].tolist() == [0, 1, 2, 3, 4]


# the loop


def test_a_release_has_no_branches(tmp_path):
    """`resume=A, checkpoint=B` would let each of two branches state its own releases only."""
    task, privacy = tokens(), private("example")
    play(task, "fedlora", privacy, seed=None, checkpoint=tmp_path / "a")
    with pytest.raises(
        ValueError, match=r"^checkpoint='.*b': expected '.*a': a release \(seed=None\) goes on in its own"
    ):
        fl.run(task, "fedlora", privacy, FOUR, lora=LORA, seed=None, resume=tmp_path / "a", checkpoint=tmp_path / "b")
    assert not (tmp_path / "b").exists()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for where in ({}, {"checkpoint": tmp_path / "link"}):
        rest = play(
            task, "fedlora", privacy, FOUR.replace(rounds=3 + len(where)), seed=None, resume=tmp_path / "a", **where
        )
        assert counted(tmp_path / "a" / "ledger.json") == list(range(1, rest[-1].index + 1))
    play(task, "fedlora", privacy, seed=0, checkpoint=tmp_path / "c")
    assert len(play(task, "fedlora", privacy, FOUR, resume=tmp_path / "c", checkpoint=tmp_path / "d")) == 2
    play(task, "fedlora", None, seed=None, checkpoint=tmp_path / "e")
    assert len(play(task, "fedlora", None, FOUR, seed=None, resume=tmp_path / "e", checkpoint=tmp_path / "f")) == 2


def calibrated(unit: str = "example") -> fl.Privacy:
    """A plan for four rounds at epsilon 3."""
    return fl.Privacy(unit=unit, delta=1e-3, accountant="rdp").calibrate(epsilon=3, task=tokens(), plan=FOUR)


def cut_short(folder: Path, times: int) -> None:
    """A run in release mode whose third round is begun so many times and never done."""
    options = {"lora": LORA, "seed": None}
    for number in range(times):
        where = {"resume": folder} if number else {"checkpoint": folder}
        for event in fl.ticks(tokens(), "fedlora", calibrated(), FOUR, **options, **where):
            if isinstance(event, Tick) and event.round == 3:
                break


@pytest.mark.filterwarnings("ignore:epsilon=:UserWarning")
@pytest.mark.parametrize("engine", ["loop", "flower"])
def test_a_run_that_was_opened_before_another_wrote_is_refused(engine, tmp_path):
    """Both were opened after two rounds; the other releases the third and is killed. The first must not forget it."""
    who = everyone(tokens(), "fedlora", calibrated(), FOUR, LORA, None)

    def taken(**where: Any) -> Federation:
        if engine == "flower":
            return open_run(who.party(), **where)
        return Federation.open(tokens(), "fedlora", calibrated(), FOUR, lora=LORA, seed=None, **where)

    def played(run: Federation) -> Any:
        if engine == "flower":
            return rounds(InProcess(client_app(who), 3), who.party(), run)
        return (event for event in run.events() if isinstance(event, Round))

    begun = played(taken(checkpoint=tmp_path))
    assert [next(begun).index for _ in range(3)] == [0, 1, 2]
    begun.close()
    first, other = taken(resume=tmp_path), taken(resume=tmp_path)
    with other.alone():
        other.open_round()
    assert counted(tmp_path / "ledger.json") == [1, 2, 3]
    with pytest.raises(ValueError, match=r"^checkpoint='.*': expected a folder in which no other run has written mean"):
        next(played(first))
    assert counted(tmp_path / "ledger.json") == [1, 2, 3]
    assert [record.index for record in played(taken(resume=tmp_path))] == [3, 4]
    assert counted(tmp_path / "ledger.json") == [1, 2, 3, 3, 4]


@pytest.mark.filterwarnings("ignore:epsilon=:UserWarning")
def test_a_run_that_will_exceed_its_target_says_so(tmp_path):
    cut_short(tmp_path, 3)
    with pytest.warns(
        UserWarning, match=r"^epsilon=\S+ after the last round: expected at most target=3; rounds were"
    ) as found:
        run = fl.run(tokens(), "fedlora", calibrated(), FOUR, lora=LORA, seed=None, resume=tmp_path)
    assert len(found) == 1
    stated = float(str(found[0].message).split()[0].removeprefix("epsilon="))
    assert list(run)[-1].epsilon == pytest.approx(stated, rel=1e-3) and stated > 3


@pytest.mark.filterwarnings("error")
def test_a_run_ends_before_the_round_that_would_spend_more(tmp_path):
    """Resumed and whole, in the loop, its ticks, a comparison and on Flower; the last round is judged."""
    cut_short(tmp_path, 1)
    rest = play(tokens(), "fedlora", calibrated(), FOUR, seed=None, resume=tmp_path, stop_at=3.0, evaluate_every=9)
    assert [record.index for record in rest] == [3]
    assert counted(tmp_path / "ledger.json") == [1, 2, 3, 3]
    assert Ledger.load(tmp_path / "ledger.json").epsilon() <= 3
    spent = [record.epsilon for record in play(tokens(), "fedlora", calibrated(), FOUR)]
    for stop in (0.5 * spent[1], spent[1], spent[2] * 1.001, spent[4], 9.0):
        fits = [number for number, epsilon in enumerate(spent) if epsilon <= stop]
        whole = play(tokens(), "fedlora", calibrated(), FOUR, stop_at=stop, evaluate_every=9)
        assert [record.index for record in whole] == fits
        assert whole[-1].metrics["loss"] > 0
    many: Any = fl.compare(
        tokens(), ["fedlora", "non-private"], calibrated(), FOUR, [0], lora=LORA, stop_at=spent[2], progress=False
    )
    assert many.groupby("method")["round"].max().to_dict() == {"fedlora": 2, "non-private": 4}
    who = everyone(tokens(), "fedlora", calibrated(), FOUR, LORA, 0)
    party = who.party()
    on_flower = rounds(InProcess(client_app(who), 3), party, open_run(party, stop_at=spent[2]))
    assert [record.index for record in on_flower] == [0, 1, 2]
    last = list(fl.ticks(tokens(), "fedlora", calibrated(), FOUR, lora=LORA, stop_at=spent[1]))[-1]
    assert not isinstance(last, Tick) and last.index == 1


def test_where_to_stop_is_checked():
    for value in (0, -1, float("nan"), "3"):
        with pytest.raises(ValueError, match=r"^stop_at=.*: expected a number > 0$"):
            fl.run(tokens(), "fedlora", private("example"), PLAN, stop_at=value)
    with pytest.raises(ValueError, match=r"^stop_at=3: expected None without privacy"):
        fl.run(tokens(), "fedlora", None, PLAN, stop_at=3)


def test_the_command_stops_there_too(tmp_path, capsys):
    words = ["run", "regression", "fedlora", *SMALL, "--out", tmp_path]
    assert call(*words, "--stop-at", "7.5") == 0
    shown = capsys.readouterr().out
    assert "stopped after round 1 of 2, the next could spend more than --stop-at" in shown and "round 2:" not in shown
    assert "fedlora, seed 0: stopped after round 1 of 2." in shown
    assert "fedlora, seed 0: stopped after round 1 of 2." in (tmp_path / "report.html").read_text()
    assert call(*words, "--stop-at", "7.5") == 0
    again = capsys.readouterr().out
    assert "round 2:" not in again and "stopped after round 1 of 2, the next" in again
    assert call(*words) == 0
    on = capsys.readouterr().out
    assert "round 1:" not in on and "round 2:" in on and "stopped" not in on
    assert Folder(tmp_path).ended("fedlora", 0) == 2 and not Folder(tmp_path).stopped()
    assert call(*words) == 0
    assert "1 of 1 runs are finished" in capsys.readouterr().out
    assert call(*words, "--stop-at", "0") == 2
    assert "stop_at=0.0: expected a number > 0" in capsys.readouterr().err


def last_epsilon(frame: Any) -> float:
    """The epsilon that the last round of a frame states."""
    return float(frame[(frame["layer"] == "all") & (frame["measure"] == "epsilon")]["value"].iloc[-1])


@pytest.mark.filterwarnings("ignore:epsilon=:UserWarning")
def test_a_table_states_what_killed_rounds_spent(tmp_path, capsys):
    """A round was noised and its process killed, three times; then the run ends in time, with no round to play.

    And a cell that --stop-at ended goes on and is killed: its folder's page, made again, knows of it.
    """
    words = ["run", "regression", "fedlora", *SMALL, "--rounds", "4", "--seed", "none", "--stop-at", "8"]
    out = tmp_path / "out"
    words, place = [*words, "--out", out], out / "checkpoints" / "fedlora-release" / "ledger.json"

    def killed(times: int) -> float:
        """Begun and never done: what stands in the ledger then."""
        settings = Folder(out).settings
        task = fl.tasks.regression(**settings["task"]["info"]["arguments"])
        parts = fl.Privacy(**settings["privacies"]["fedlora"]), fl.Plan(**settings["plans"]["fedlora"])
        for _ in range(times):
            run = Federation.open(task, "fedlora", *parts, lora=fl.Lora(**settings["lora"]), seed=None,
                                  resume=place.parent)  # fmt: skip
            with run.alone():
                run.open_round()
        return Ledger.load(place).spent()

    assert call(*words, "--stop-at", "6.5") == 0
    frame: Any = read_frame(out / "frame.csv")
    done, stated = frame["round"].max(), last_epsilon(frame)
    assert 0 < done < 4 and stated == Ledger.load(place).spent()
    spent = killed(1)
    assert spent > stated * 1.1
    capsys.readouterr()
    assert call("report", out) == 0
    page = (out / "report.html").read_text()
    assert f">{spent:.2f}<" in page and f">{spent:.3f}<" in page and f"{stated:.2f}<" not in page
    spent = killed(2)
    assert call(*words) == 0
    shown, frame = capsys.readouterr().out, read_frame(out / "frame.csv")
    assert frame["round"].max() == done and "no round was played" in shown
    assert last_epsilon(frame) == spent and f"  {spent:.2f}  " in shown
    assert f">{spent:.2f}<" in (out / "report.html").read_text()
    assert last_epsilon(Folder(out).read("fedlora", None)) == spent


def test_a_run_that_may_spend_nothing_says_the_same_twice(tmp_path, capsys):
    """Stopped before its first round, there is no ledger on the disk yet."""
    words = ["run", "regression", "fedlora", *SMALL, "--seed", "none", "--stop-at", "0.01", "--out", tmp_path]
    for _ in range(2):
        assert call(*words) == 0
        shown = capsys.readouterr().out
        assert "stopped after round 0 of 2" in shown and "without privacy" not in shown
    (kept,) = json.loads((tmp_path / "ledger.json").read_text()).values()
    assert kept["content"]["releases"] == []


# together


def test_ledgers_over_other_splits_are_bounded(tmp_path):
    """A client's number means nothing in another split: each release of it counts for every client."""
    one = book(play(tokens(), "fedlora", private("example"))[-1])
    whole = one.for_everyone()
    assert whole.clients == () and whole.terms == one.terms
    assert all(whole.epsilon() >= one.epsilon(client) for client in one.clients)
    joined = Ledger.compose(one, whole)
    assert all(
        joined.epsilon(k) >= Ledger.compose(one, one).epsilon(j)
        for k in one.clients
        for j in one.clients
        if one.epsilon(k) >= one.epsilon(j)
    )
    known = Ledger.from_json(one.to_json())
    known.uncertified = "a reason"
    assert known.for_everyone().uncertified == "a reason"


def test_a_split_of_equal_sizes_is_not_taken_for_the_same(tmp_path):
    """Somebody's data may lie with client 0 in the first split and with client 1 in the second."""
    ledgers = []
    with Folder(tmp_path / "out") as folder:
        for client in (0, 1):
            ledger = Ledger(delta=1e-3, accountant="rdp", reproducible=False)
            ledger.record(0, (client,), 3, sample_rate=0.5, noise_multiplier=1.0)
            ledgers.append(ledger)
            if client:
                folder.clear()
            folder.checkpoint("fedlora", None).mkdir(parents=True)
            ledger.save(folder.checkpoint("fedlora", None) / "ledger.json")
        both = Ledger.compose(*(one for one in folder.ledgers().values() if one is not None))
    moved = Ledger.compose(*(one.for_everyone() for one in ledgers)).epsilon()
    assert both.epsilon() == moved > 1.2 * Ledger.compose(*ledgers).epsilon()


def test_pooled_data_count_for_every_client(tmp_path):
    """The baseline "central" has one client; the folder's sum must not take it for client 0 alone."""
    with Folder(tmp_path) as folder:
        for slug in ("fedlora", "central"):
            privacy = fl.Privacy(delta=1e-3, accountant="rdp").calibrate(epsilon=3, task=tokens(), plan=PLAN)
            list(cells.play(folder, Cell.named(slug, tokens(), privacy, PLAN, LORA, None)))
        found: dict[str, Any] = dict(folder.ledgers())
        assert found["central-release"].clients == () and found["fedlora-release"].clients == (0, 1, 2)
        both = Ledger.compose(*found.values())
        assert all(both.epsilon(k) > found["fedlora-release"].epsilon(k) for k in range(3))
        assert f"epsilon = {both.epsilon():.4g} " in joint(tmp_path, {})[0]
