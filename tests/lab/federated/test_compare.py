"""Comparisons keep methods apart by their names, and settings by what was varied."""

from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from calls import refused
from toy_tasks import LORA, PLAN, private, regression

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.measures.runs import COLUMNS


def test_two_rows_of_one_name_are_refused_wherever_names_meet():
    """Before anything is trained: their runs would be taken for seeds of one method."""
    changed = methods.FedLoRA.replace(schedule=fl.Cycle(("B",)))
    rows = ["fedlora", changed]
    compare = partial(fl.compare, regression(), privacy=None, plan=PLAN, seeds=[0], progress=False)
    for call in (
        lambda: compare(rows),
        lambda: methods.table([methods.FedLoRA, changed]),
    ):
        with refused(r"^methods=.*fedlora'.*: expected .*row.replace\(name="):
            call()
    # Twice, its seeds would count as twice as many, and its interval be too narrow.
    with refused(r"^methods=\['fedlora', 'fedlora'\]: expected each once"):
        compare(["fedlora", methods.FedLoRA])


def test_a_run_of_a_comparison_is_the_run_that_its_plan_and_rate_say():
    """To the last bit."""
    task, privacy, rates = regression(), private("example"), np.array([0.1, 0.2])
    plans = {"fedlora": PLAN, "rolora": PLAN.replace(local_steps=1)}
    frame = fl.compare(task, [*plans], privacy, plans, [3], lora=LORA, progress=False, lr=rates)
    runs = frame[frame["measure"] != "seconds"].groupby(["lr", "method"])
    assert len(runs) == 4
    for (lr, method), part in runs:
        plan = plans[method].replace(lr=lr)
        alone = fl.to_frame(fl.run(task, method, privacy, plan, lora=LORA, seed=3))
        alone = alone[alone["measure"] != "seconds"]
        assert part["value"].equals(alone["value"].set_axis(part.index)), lr


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"lr": []}, r"^lr=\[\]: expected at least one"),
        ({"lr": [2, 2]}, r"^lr=\[2, 2\]: expected each once$"),
        ({"lr": [-1.0]}, r"^lr=-1.0: expected"),
        ({"out": __file__}, r"^out=.*: expected a folder, not a file$"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_before_any_run(options, line):
    with refused(line):
        fl.compare(regression(), ["fedlora"], None, PLAN, [0], progress=False, **options)


def swept(scores):
    """A tidy frame of (method, lr, seed) -> accuracy in the end, of one round, at two epsilons."""
    rows = [
        ("t", method, seed, t, "all", "accuracy", value if t else 0.1, epsilon, lr)
        for (method, lr, seed), value in scores.items()
        for epsilon in (1, 8)
        for t in (0, 1)
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS, "epsilon", "lr"])


def test_the_best_rate_is_chosen_on_seeds_that_do_not_report_it():
    """Fault: the rate that is best at the reported seeds themselves; a mean that leaves out a run
    that diverged. Another epsilon is chosen apart."""
    scores = {("m", lr, seed): 0.5 for lr in (0.1, 0.2, 0.4) for seed in range(4)}
    scores |= {("m", 0.2, 0): 0.6, ("m", 0.4, 1): np.nan, ("m", 0.4, 0): 0.9}
    scores |= {("m", 0.1, 2): 0.8, ("m", 0.1, 3): 0.8}
    frame = swept(scores)
    best = fl.best(frame)
    assert set(best["lr"]) == {0.2} and set(best["seed"]) == {2, 3}
    line = "lr chosen by accuracy at seeds 0, 1, reported at seeds 2, 3"
    assert best.attrs["chosen"] == line and list(best.columns) == list(frame.columns)
    chosen = fl.best(frame.assign(seed=3 - frame["seed"]))
    assert set(chosen["lr"]) == {0.1} and set(chosen["seed"]) == {2, 3}
    assert chosen.attrs["chosen"].endswith("; lr at the edge of what was tried: m")
    frame.loc[(frame["epsilon"] == 8) & (frame["lr"] == 0.1) & (frame["seed"] < 2), "value"] += 0.3
    apart = fl.best(frame)[["epsilon", "lr"]].drop_duplicates()
    assert dict(apart.to_numpy()) == {1: 0.2, 8: 0.1}
    # A rate that was chosen for each epsilon does not vary by itself.
    table = fl.report.display_table(fl.best(frame)).sort_values("lr", ascending=False)
    assert table[["target epsilon", "lr"]].to_numpy().tolist() == [["1", "0.2"], ["8", "0.1"]]
    with refused(r"^by='rank': expected a column that varies: epsilon, lr$"):
        fl.best(frame, by="rank")


def test_a_sweep_is_summarised_setting_by_setting():
    """Fault: runs of several rates as seeds of one; figures and differences refuse that."""
    scores = {("fedlora", lr, seed): 0.1 + lr for lr in (0.1, 0.2) for seed in range(2)}
    frame = swept(scores).query("epsilon == 8")
    table = fl.report.display_table(frame)
    told = table[["lr", "seeds", "accuracy after"]].to_numpy().tolist()
    assert told == [["0.1", "2", "0.200"], ["0.2", "2", "0.300"]]
    figure = fl.plots.lines(frame, x="lr", suggested={"fedlora": 0.15})
    ax = figure.axes[0]
    drawn = [np.asarray(line.get_xydata()) for line in ax.lines]
    assert ax.get_xscale() == "log" and drawn[0] == pytest.approx(
        np.array([[0.1, 0.2], [0.2, 0.3]])
    )
    assert 0.15 in [places[0, 0] for places in drawn]
    with refused("^frame='several of epsilon': expected one value each"):
        fl.plots.lines(swept(scores), x="lr")
    with refused("select one setting first"):
        fl.plots.curves(frame)


def of_its_own(outputs, y):
    return -(outputs - y).square().sum(1)


def test_a_comparison_ends_with_any_score():
    """Fault: an error after the last run where a task has neither an accuracy nor a loss; the
    first of its scores then judges."""
    task = replace(regression(), metrics={"closeness": of_its_own, "second": of_its_own})
    frame = fl.compare(task, ["fedlora"], None, PLAN, range(2), lora=LORA, lr=[0.1, 1])
    assert "closeness after" in fl.report.display_table(frame)
    assert set(fl.best(frame)["seed"]) == {1} and fl.plots.lines(frame, x="lr")
    assert fl.plots.curves(frame.query("lr == 1").drop(columns="lr"), "closeness")
    with refused(r"^metrics={}: expected a mapping with at least one score"):
        fl.compare(replace(regression(), metrics={}), ["fedlora"], None, PLAN, lora=LORA)
    with refused(r"^seeds=\[0\]: expected at least two: some choose"):
        fl.best(frame.query("seed == 0"))
