"""What counts as a collapsed run, and what `compare` says of it."""

import math

import numpy as np
import pandas as pd
import pytest
from frames import tidy_frame
from toy_tasks import LORA, PLAN, tokens

import fedlora_lab as fl
from fedlora_lab.federated.compare import judge
from fedlora_lab.measures.runs import COLUMNS, describe_standstill, find_collapsed, run_ends

NAN = math.nan
INF = math.inf


@pytest.mark.parametrize(
    ("gains", "low"),
    [
        ((0.3, 0.004, 0.004, 0.28, 0.29), (1, 2)),  # two learned nothing
        ((0.3, 0.2, 0.16, 0.28), ()),  # slower, but more than half of the median
        ((0.3, 0.004), ()),  # of two runs none is the median
        ((0.3, -0.001), (1,)),  # below its start it has collapsed in any company
        ((-0.2, -0.1, -0.15, 0.0), (0, 1, 2)),  # and so have all that lost
        ((0.3, NAN, 0.3, -INF), (3,)),  # not measured is no verdict; diverged is one
    ],
)
def test_what_counts_as_collapsed(gains, low):
    assert tuple(np.flatnonzero(find_collapsed(np.array(gains)))) == low


def test_each_method_and_seed_is_judged_by_its_own_ends():
    """Of loss and perplexity less is better; of anything else more."""
    frame = tidy_frame().query("measure == 'accuracy'")
    last = frame.eval("method == 'rolora' and seed == 1 and round == 4")
    ends = run_ends(frame.assign(value=frame["value"].mask(last, 0.0)))
    assert ends.index[ends["collapsed"]].tolist() == [("rolora", 1)]
    for measure in ("loss", "perplexity", "loss_received"):
        renamed = frame.assign(measure=measure)
        assert run_ends(renamed, measure)["fell"].all(), "all rise"
    assert not run_ends(frame.assign(measure="f1"), "f1")["fell"].any()


def test_compare_says_which_runs_collapsed(capsys):
    """A rate far too large: the frame counts the runs, and a line names the method."""
    plan = PLAN.replace(batch=None, local_steps=4)
    plans = {"fedlora": plan.replace(lr=0.05), "rolora": plan.replace(lr=1e4)}
    frame = fl.compare(tokens(), list(plans), None, plans, seeds=range(2), lora=LORA)
    assert frame.attrs["collapsed"] == {"fedlora": 0, "rolora": 2}
    assert run_ends(frame)["collapsed"].sum() == 2
    _, line, *_ = capsys.readouterr().out.splitlines()
    said = "rolora: 2 of 2 runs collapsed, 2 of them fell below their start; mean 0."
    assert line.startswith(said)


LEARNED = {"a": (0.3, 0.31, 0.28), "b": (0.0, -0.1, 0.01)}


@pytest.mark.parametrize(
    ("gains", "is_said"),
    [
        (LEARNED, False),
        ({"b": LEARNED["b"]}, True),
        ({"a": (0.0, 0.0), "b": (-0.2, -0.1)}, True),
        ({"a": (0.01, -0.01, 0.012), "b": (0.0, 0.0, 0.0)}, True),  # as much as seeds differ by
        ({"a": (0.001,)}, False),  # one seed says nothing of the spread
        ({"a": (0.0,), "b": (NAN,)}, True),
        ({"a": (NAN, NAN)}, False),  # not measured is no verdict
        ({"a": (-INF, 0.0)}, True),
    ],
)
@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_it_is_said_where_no_method_learned(gains, is_said, measure):
    """In the frame's notes, the terminal and the report."""
    rows = [
        (
            "digits",
            method,
            seed,
            index,
            "all",
            measure,
            0.5 + index * (gain if measure != "loss" else -gain),
        )
        for method, values in gains.items()
        for seed, gain in enumerate(values)
        for index in (0, 1)
    ]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    text = describe_standstill(frame)
    assert bool(text) == is_said
    if is_said:
        assert text.startswith(
            f"no {measure} is clearly better than that of the untrained model, 0.5"
        )
        assert text in judge(frame)["lines"]


def test_a_comparison_without_learning_says_so(capsys):
    """All methods ended where they began, and nothing told."""
    frame = fl.compare(
        tokens(), ["rolora", "fedlora"], None, PLAN.replace(lr=0.0), seeds=[0], lora=LORA
    )
    said = frame.attrs["standstill"]
    assert "is clearly better than that of the untrained model" in said
    assert said in capsys.readouterr().out
