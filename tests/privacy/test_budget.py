"""One budget for several runs: what it counts, what it refuses, and what no kill or copy undoes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting as dp
import pytest
import torch
from commands import SMALL, call
from dp_accounting.pld import PLDAccountant
from flower_runs import protected
from toy_tasks import LORA, PLAN, book, play, private, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab.federated.simulation import Federation
from fedlora_lab.flower.client import client_app
from fedlora_lab.flower.server import rounds
from fedlora_lab.flower.simulators import InProcessGrid, SimulatedClients, open_simulation
from fedlora_lab.privacy.ledger import Ledger

pytestmark = pytest.mark.attack
HERE = Path(__file__).parents[1]
PATH = os.pathsep.join([str(Path(__file__).parent), str(HERE), str(HERE.parent)])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"}
NAME = "project.json"


def opened(folder: Path, epsilon: float = 1000.0, **terms: Any) -> fl.Budget:
    given: dict[str, Any] = {"epsilon": epsilon, "delta": 1e-3, "accountant": "rdp"} | terms
    return fl.Budget(folder / NAME, **given)


def draw(budget: fl.Budget, sigma: float = 1.0, plan: fl.Plan = PLAN, **options: Any) -> Any:
    """A run of the small task that draws from the budget; its last record."""
    given: dict[str, Any] = {"seed": None, "unit": "example", "task": tokens()} | options
    privacy, task = private(given.pop("unit"), sigma), given.pop("task")
    return play(task, "fedlora", privacy, plan, budget=budget, **given)[-1]


@pytest.mark.slow
def test_all_runs_together_are_what_dp_accounting_finds(tmp_path):
    """Two runs of different noise and length, for the client who spends most; nothing is lost."""
    budget = opened(tmp_path, accountant="prv")
    draw(budget, 1.5)
    draw(budget, 2.0, PLAN.replace(rounds=4, batch=2))
    found = []
    for size in tokens().sizes:
        accountant = PLDAccountant(value_discretization_interval=1e-3)
        for sigma, steps, batch in ((1.5, 4, 3), (2.0, 8, 2)):
            one: Any = dp.GaussianDpEvent(sigma)
            one = dp.PoissonSampledDpEvent(batch / size, one) if batch < size else one
            accountant.compose(dp.SelfComposedDpEvent(one, steps))
        found.append(accountant.get_epsilon(1e-3))
    assert budget.spent() == pytest.approx(max(found), abs=0.02)
    assert budget.spent() >= max(found) - 1e-3
    frame = budget.runs()
    assert frame["together"].tolist()[-1] == budget.spent() > frame["epsilon"].max()
    assert budget.left() == pytest.approx(1000 - budget.spent())
    assert fl.Budget(tmp_path / NAME).spent() == budget.spent()


@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_run_of_one_round_too_many_is_refused_before_it_begins(unit, tmp_path):
    four = play(tokens(), "fedlora", private(unit), PLAN.replace(rounds=4), seed=None)[-1].epsilon
    budget = opened(tmp_path, four * 1.0001, unit=unit)
    before = (tmp_path / NAME).read_bytes()
    words = rf"^budget='{NAME}': expected a run that fits: .* is left .*; 4 of its 5 rounds would"
    with pytest.raises(ValueError, match=words):
        fl.run(tokens(), "fedlora", private(unit), PLAN.replace(rounds=5), budget=budget, lora=LORA)
    assert (tmp_path / NAME).read_bytes() == before
    assert draw(budget, plan=PLAN.replace(rounds=4), unit=unit).index == 4
    assert budget.spent() == pytest.approx(four) and budget.spent() <= budget.epsilon
    with pytest.raises(ValueError, match="no round fits"):
        draw(budget, plan=PLAN.replace(rounds=1), unit=unit)


@pytest.mark.slow
def test_the_noise_that_fits_fits(tmp_path):
    """And a per cent less does not: too much noise would be found by nobody else."""
    budget, task = opened(tmp_path, 9.0), tokens(sizes=(6, 6))
    draw(budget, 1.5, task=task)
    fitting = budget.calibrate(private("example"), task=task, plan=PLAN)
    sigma: Any = fitting.noise_multiplier
    less = fitting.replace(noise_multiplier=0.98 * sigma)
    with pytest.raises(ValueError, match="expected a run that fits"):
        fl.run(task, "fedlora", less, PLAN, budget=budget, lora=LORA)
    play(task, "fedlora", fitting, budget=budget, seed=None)
    assert 8.9 < budget.spent() <= 9


def test_seeded_runs_cost_what_compose_counts(tmp_path):
    """Two runs of one seed, whose noise is the same, as in `Ledger.compose`; and it is said."""
    budget = opened(tmp_path)
    ledgers = [book(draw(budget, seed=seed)) for seed in (0, 0, None)]
    both = Ledger.compose(*ledgers)
    assert budget.spent() == both.epsilon() and budget.ledger().reproducible
    assert "2 took their noise from a seed" in budget.statement()
    assert budget.runs()["mode"].tolist() == ["reproducible", "reproducible", "release"]
    assert "seed 0" in budget._repr_html_() and "of epsilon=1000 spent" in repr(budget)


def test_a_run_has_the_same_bits_with_a_budget(tmp_path):
    budget = opened(tmp_path)
    cell = (tokens("head"), "rolora", private("example"))
    with_it = play(*cell, budget=budget, checkpoint=tmp_path / "a")
    same_bits(with_it, play(*cell, checkpoint=tmp_path / "b"))


WAITING = """
import sys
from pathlib import Path
from test_budget import LORA, NAME, fl, private, tokens, PLAN
from fedlora_lab.federated.records import Tick
folder, plan = Path(sys.argv[1]), PLAN.replace(rounds=4)
for event in fl.ticks(tokens(), "fedlora", private("example"), plan, seed=None, lora=LORA,
                      checkpoint=folder / "run", budget=fl.Budget(folder / NAME)):
    if isinstance(event, Tick) and event.round == 2:
        print("inside", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.slow
def test_two_processes_cannot_overdraw_together_and_a_killed_one_stays_spent(tmp_path):
    """The other has begun two rounds of four and needs all of them. It is killed there: its second
    round, in the budget and perhaps released, stays spent; what it had reserved is free again, and
    it goes on as the same run, with its budget only."""
    four = PLAN.replace(rounds=4)
    whole = play(tokens(), "fedlora", private("example"), four.replace(rounds=5))[-1].epsilon
    budget, state = opened(tmp_path, whole * 1.0001), tmp_path / "run"
    command, pipe = [sys.executable, "-c", WAITING, str(tmp_path)], subprocess.PIPE
    pipes: Any = {"stdin": pipe, "stdout": pipe, "text": True, "env": ENVIRONMENT}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == "inside\n"
        with pytest.raises(ValueError, match=r"is left at delta=0.001 \(\S+ spent or reserved\)"):
            draw(budget)
        assert budget.runs()["state"].tolist() == ["goes on"] and "reserved" in budget.statement()
        process.send_signal(signal.SIGKILL)
    own = Ledger.load(state / "ledger.json")
    assert [entry.round for entry in own.releases] == [1, 2]
    assert budget.spent() == own.epsilon() == pytest.approx(budget.epsilon - budget.left())
    assert budget.runs()["state"].tolist() == ["ended"]
    cell = (tokens(), "fedlora", private("example"), four)
    for other in (None, fl.Budget(tmp_path / "elsewhere" / "b.json", epsilon=9)):
        with pytest.raises(ValueError, match=r"^budget=.*: expected .*project.json, from which"):
            fl.run(*cell, seed=None, lora=LORA, resume=state, budget=other)
    last = play(*cell, seed=None, resume=state, budget=budget)[-1]
    assert len(budget.runs()) == 1 and budget.spent() == last.epsilon == pytest.approx(whole)
    assert len(book(last).releases) == 5, "the second round was released, as far as anyone knows"


def test_what_a_run_reserved_and_did_not_spend_is_free_again(tmp_path):
    """Left by `break` after one round; also where stop_at ends it before what it could spend."""
    spent = [x.epsilon for x in play(tokens(), "fedlora", private("example"))]
    budget = opened(tmp_path, spent[2] * 1.2)
    run = fl.run(tokens(), "fedlora", private("example"), PLAN, lora=LORA, budget=budget, seed=None)
    assert [next(run).index, next(run).index] == [0, 1]
    assert budget.left() == pytest.approx(budget.epsilon - spent[2])
    run.close()
    assert budget.left() == pytest.approx(budget.epsilon - spent[1])
    whole = {"plan": PLAN.replace(rounds=9), "stop_at": spent[1] * 1.01}
    budget = opened(tmp_path / "other", spent[1] * 1.1)
    assert draw(budget, **whole).index == 1


def test_a_driver_of_its_own_is_held_too(tmp_path):
    """`begin_round` without `lock` reserves nothing; the round that would overdraw is refused."""
    spent = [x.epsilon for x in play(tokens(), "fedlora", private("example"))]
    budget = opened(tmp_path, spent[2] * 1.001)
    cell = (tokens(), "fedlora", private("example"), PLAN)
    one, other = (Federation.open(*cell, lora=LORA, budget=budget, seed=None) for _ in range(2))
    one.begin_round()
    other.begin_round()
    assert one.ended and other.ended
    with pytest.raises(ValueError, match=r"^budget='project.json': expected a run that fits"):
        one.begin_round()
    assert budget.spent() == pytest.approx(spent[2])


def test_a_ledger_that_was_lost_or_put_back_stays_spent(tmp_path):
    """The run's own folder is that of an earlier moment; the budget remembers."""
    budget, state = opened(tmp_path), tmp_path / "run"
    long = PLAN.replace(rounds=3)
    cell = (tokens(), "fedlora", private("example"), long)
    run = fl.run(*cell, lora=LORA, seed=None, budget=budget, checkpoint=state)
    assert [next(run).index for _ in range(2)] == [0, 1]
    run.close()
    shutil.copytree(state, tmp_path / "earlier")
    play(*cell, seed=None, budget=budget, resume=state)
    whole = budget.spent()
    shutil.rmtree(state)
    (tmp_path / "earlier").rename(state)
    play(*cell, seed=None, budget=budget, resume=state)
    five = Ledger.load(state / "ledger.json").after(
        [*Ledger.load(state / "ledger.json").releases][1:]
    )
    assert budget.spent() == pytest.approx(five.epsilon()) and budget.spent() > whole


def test_a_budget_that_was_edited_copied_or_put_back_is_refused(tmp_path):
    budget = opened(tmp_path, 50.0)
    draw(budget)
    path, earlier = tmp_path / NAME, (tmp_path / NAME).read_bytes()
    draw(budget)
    latest = path.read_bytes()
    whole = json.loads(latest)
    for name, value in (("epsilon", 500.0), ("runs", whole["content"]["runs"][:1])):
        content = {**whole["content"], name: value}
        path.write_text(
            fl.privacy.budget.files.dump_checksummed(whole["format"], 1, content) + "\n"
        )
        with pytest.raises(ValueError, match=r"^budget='project.json': expected a file that this"):
            draw(budget, 9.0)
    for place in range(5, len(latest), max(1, len(latest) // 40)):
        changed = bytes([latest[place] ^ 1])
        path.write_bytes(latest[:place] + changed + latest[place + 1 :])
        with pytest.raises(ValueError, match=r"^(project.json|budget='project.json'): expected"):
            fl.Budget(path)
    path.write_bytes(earlier)
    with pytest.raises(ValueError, match=r"expected the newest state .*, this is an older copy"):
        budget.spent()
    path.write_bytes(latest)
    shutil.copy(path, tmp_path / "copy.json")
    with pytest.raises(ValueError, match=r"^budget='copy.json': expected project.json, of which"):
        fl.Budget(tmp_path / "copy.json")
    (tmp_path / "away").mkdir()
    shutil.copy(path, tmp_path / "away" / NAME)
    with pytest.raises(ValueError, match=r"^budget='project.json': expected the folder's private/"):
        fl.Budget(tmp_path / "away" / NAME)
    path.rename(tmp_path / "renamed.json")
    assert fl.Budget(tmp_path / "renamed.json").spent() > 0


def test_one_budget_is_of_one_data_set(tmp_path):
    """Other data are refused, and the same data under a second budget, whole or in part."""
    budget, task = opened(tmp_path), tokens()
    draw(budget)
    other = tokens(sizes=(6, 7, 4))
    moved = replace(other, clients=tuple((x + 9, y) for x, y in other.clients))
    with pytest.raises(
        ValueError, match=r"expected one for these data: it is of others \(about 0%"
    ):
        draw(budget, task=moved)
    second = fl.Budget(tmp_path / "second.json", epsilon=1000, delta=1e-3)
    for again in (task, task.only(1), task.pooled(), task.to(torch.float64)):
        with pytest.raises(
            ValueError, match=r"^budget='second.json': expected project.json, which"
        ):
            draw(second, task=again)
    draw(second, task=moved)
    (tmp_path / NAME).unlink()
    with pytest.raises(ValueError, match=r"of these data \(about 100% .*\) and is gone from there"):
        draw(opened(tmp_path))
    spent = json.dumps(json.loads((tmp_path / "second.json").read_text()))
    assert task.fingerprint not in spent and moved.fingerprint not in spent


def test_another_split_of_the_same_data_counts_for_everyone(tmp_path):
    """In the example unit; in the client unit a client of another split is another unit."""
    budget, task = opened(tmp_path), tokens()
    first, pooled = book(draw(budget)), book(draw(budget, task=task.pooled()))
    both = Ledger.compose(first, pooled.for_everyone())
    assert budget.spent() == pytest.approx(both.epsilon())
    # Pooled data count for everyone by themselves.
    assert both.epsilon() == Ledger.compose(first, pooled).epsilon()
    turned = replace(task, clients=task.clients[::-1], client_names=())
    clients = opened(tmp_path / "clients", unit="client")
    draw(clients, unit="client")
    with pytest.raises(ValueError, match=r"expected the same examples and split in every run"):
        draw(clients, task=turned, unit="client")


def test_another_split_counts_for_everyone_whichever_run_begins_first(tmp_path):
    """Runs of two splits, both opened while the budget was of no data yet: the second was counted
    client by client, as if its clients were those of the first."""
    for turn in (1, -1):
        budget, task = opened(tmp_path / str(turn)), tokens()
        open_runs = [
            fl.run(data, "fedlora", private("example"), PLAN, budget=budget, seed=None, lora=LORA)
            for data in (task, task.pooled())
        ][::turn]
        first, second = (book(list(run)[-1]) for run in open_runs)
        assert budget.spent() == pytest.approx(
            Ledger.compose(first, second.for_everyone()).epsilon()
        )
        # Pooled data count for everyone by themselves; other splits do not.
        assert budget.spent() >= Ledger.compose(first, second).epsilon() - 1e-9


def test_what_has_no_epsilon_draws_from_no_budget(tmp_path):
    budget, cell = opened(tmp_path), (tokens(), "fedlora")
    with pytest.raises(ValueError, match=r"^budget=.*: expected None without privacy"):
        fl.run(*cell, None, PLAN, budget=budget)
    bug = next(iter(fl.sharp_edges.BUGS.values()))
    with pytest.raises(ValueError, match=r"a run with an epsilon; this has none"):
        fl.run(*cell, private("example"), PLAN, budget=budget, bug=bug)
    with pytest.raises(
        ValueError, match=r"^unit='client': expected 'example', the unit of project"
    ):
        fl.run(*cell, private("client"), PLAN, budget=budget)
    wrong: list[Any] = [NAME, 8.0, tmp_path]
    for value in wrong:
        with pytest.raises(ValueError, match=r"^budget=.*: expected an fl.Budget, or None"):
            fl.run(*cell, private("example"), PLAN, budget=value)
    with pytest.raises(ValueError, match=r"non-private.*: expected methods with noise"):
        fl.compare(tokens(), ["fedlora", "non-private"], private("example"), PLAN, budget=budget)
    assert budget.spent() == 0 and budget.runs().empty and budget.left() == 1000


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        ({}, r"^epsilon=None: expected a number > 0: .*new.json is not there"),
        ({"epsilon": 0}, r"^epsilon=0: expected a number in"),
        ({"epsilon": 8, "delta": 0.0}, r"^delta=0.0: expected a number in"),
        ({"epsilon": 8, "delta": 1e-30}, r"^delta=1e-30: expected at least 1e-12"),
        ({"epsilon": 8, "unit": "row"}, r"^unit='row': expected one of"),
        ({"epsilon": 8, "accountant": "x"}, r"^accountant='x': expected one of"),
        ({"epsilon": float("inf")}, r"^epsilon=inf: expected a number in"),
    ],
)
def test_a_bad_budget_is_refused_and_leaves_no_file(terms, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        fl.Budget(tmp_path / "new.json", **terms)
    assert not (tmp_path / "new.json").exists()
    wrong: list[Any] = ["", tmp_path, 3]
    for path in wrong:
        with pytest.raises(ValueError, match=r"^budget=.*: expected (the path of )?a file"):
            fl.Budget(path, epsilon=8)


def test_a_comparison_is_refused_as_a_whole(tmp_path):
    """Each of its runs alone would fit, all together do not."""
    options: dict[str, Any] = {"lora": LORA, "progress": False}
    one = play(tokens(), "fedlora", private("example"))[-1].epsilon
    budget, rows = opened(tmp_path, 1.5 * one), ["fedlora", "ffa-lora"]
    parts = (tokens(), rows, private("example"), PLAN, [0, 1])
    with pytest.raises(ValueError, match=r"expected runs that fit: .*; the first 1 of 4 would fit"):
        fl.compare(*parts, **options, budget=budget)
    assert budget.spent() == 0
    with pytest.raises(ValueError, match=r"^store=.*: expected None with a budget"):
        fl.compare(*parts, **options, budget=budget, store=tmp_path / "runs.jsonl")
    wide = opened(tmp_path / "wide")
    fl.compare(*parts, **options, budget=wide)
    assert len(wide.runs()) == 4


@pytest.mark.slow
def test_flower_draws_what_the_loop_draws(tmp_path):
    """The server knows placeholders of the examples; the budget is of the examples."""
    cell = (tokens("head"), "fedlora", protected("example"), PLAN)
    who = SimulatedClients(*cell, LORA, None)
    budget = opened(tmp_path)
    run = open_simulation(who.participant(), tmp_path / "run", budget=budget, holder=cell[0])
    grid = InProcessGrid(client_app(who), len(cell[0].sizes))
    last = list(rounds(grid, who.participant(), run))[-1]
    assert budget.spent() == pytest.approx(last.epsilon, rel=0.01)
    draw(budget, task=cell[0])
    assert len(budget.runs()) == 2
    resumed = {"resume": tmp_path / "run", "holder": cell[0]}
    with pytest.raises(ValueError, match=r"project.json, from which this run was begun"):
        open_simulation(who.participant(), **resumed)


@pytest.mark.slow
def test_the_command_draws_and_is_refused(tmp_path, capsys):
    path, out = tmp_path / NAME, tmp_path / "out"
    words = ["run", "regression", "fedlora", *SMALL, "--epsilon", "3", "--budget", path, "--out"]
    assert call(*words, out) == 2
    assert "epsilon=None: expected a number > 0" in capsys.readouterr().err
    assert call("budget", path, "--epsilon", "3.2", "--delta", "1e-4") == 0
    assert "0 is spent (no run yet); 3.2 is left" in capsys.readouterr().out
    assert call(*words, out) == 0
    assert "project.json: Of epsilon = 3.2" in capsys.readouterr().out
    assert call(*words, out) == 0, "a finished run is kept, and costs nothing"
    assert call(*words, tmp_path / "again") == 2
    assert "budget='project.json': expected runs that fit: 0.2" in capsys.readouterr().err
    assert call(*words, out, "--fresh") == 2, "what was spent stays spent"
    assert call("budget", path) == 0
    shown = capsys.readouterr().out
    assert "0.2" in shown and "fedlora" in shown and "fedlora on regression, seed 0" in shown
