"""Main effects of ingredients: known ones are found, and those of a small study that is run here."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedlora_lab import ingredients, methods, plots, study
from fedlora_lab.rules import binomial
from fedlora_lab.study.declared import Case, Study
from fedlora_lab.study.factorial import contrasts

ADDS = {"train": {"B": 0.05, "B | A": 0.02, "B A": -0.03},
        "aggregate": {"MeanWithResidual()": 0.01, "TruncatedSVD()": -0.1},
        "whiten": {"product_space": 0.04}, "smooth": {"Binomial(taps=5)": 0.0}}  # fmt: skip


def made(rows, seeds=5, **labels):
    """Accuracy is a sum of what each field adds, and something that all methods of a seed share."""
    common, found = np.random.default_rng(0).normal(0, 0.2, seeds), []
    for row in rows:
        score = 0.5 + sum(adds.get(ingredients.said(field, getattr(row, field)), 0.0) for field, adds in ADDS.items())
        found += [
            {"study": "digits-factorial", "method": row.slug, **labels, "lr": 0.1, "at_edge": False, "seed": s,
             "accuracy": score + common[s]} for s in range(seeds)
        ]  # fmt: skip
    return pd.DataFrame(found)


def test_contrasts_differ_in_one_field_only():
    rows = study.composed()
    found = contrasts(rows)
    # 12 rows for each value of server and rule; 9 for each schedule: (3 servers x 3 rules).
    counts = pd.Series([(field, ingredients.said(field, value)) for field, value, _, _ in found]).value_counts()
    assert len(found) == 3 * 9 + 2 * 12 + 2 * 12
    assert sorted(counts) == [9, 9, 9, 12, 12, 12, 12]
    known = {row.slug: row for row in rows}
    for field, _, one, other in found:
        assert getattr(known[one], field) != getattr(known[other], field)


def test_known_effects_are_found():
    rows = study.composed()
    whole: Any = pd.concat([made(rows, epsilon=1.0), made(rows, epsilon=8.0)])
    part = whole[~((whole["method"] == rows[5].slug) & (whole["epsilon"] == 8.0))]
    for frame in (whole, part):
        table: Any = study.effects(frame, rows)
        assert len(table) == 2 * 7
        for line in table.itertuples():
            assert line.mean == pytest.approx(ADDS[line.field][line.value], abs=1e-9)
            assert line.low == pytest.approx(line.high) == pytest.approx(line.mean), "what a seed shares drops out"
    assert list(dict.fromkeys(study.effects(whole, rows)["where"])) == ["ε = 1", "ε = 8"]
    fewer: Any = study.effects(part, rows).set_index(["where", "field", "value"])["pairs"]
    assert fewer["ε = 8"].sum() < fewer["ε = 1"].sum() == 75
    assert len(study.effects(whole[whole["method"] == rows[0].slug], rows)) == 0
    with pytest.raises(ValueError, match=r"^measure='speed'"):
        study.effects(whole, rows, "speed")


def test_intervals_are_over_seeds():
    rows = [methods.FedLoRA, methods.FedLoRA.replace(name="filtered", smooth=binomial(3))]
    frame = made(rows, epsilon=1.0)
    frame.loc[frame["method"] == "filtered", "accuracy"] += [0.0, 0.1, 0.2, 0.3, 0.4]
    line: Any = study.effects(frame, rows).iloc[0]
    half = 2.7764451 * np.std([0, 0.1, 0.2, 0.3, 0.4], ddof=1) / np.sqrt(5)
    assert line["mean"] == pytest.approx(0.2)
    assert line["high"] == pytest.approx(0.2 + half)
    assert line["seeds"] == 5


def test_a_small_study_is_run_and_read(tmp_path):
    """Two ingredients by two, on least squares: the effects are those of the frame's own means."""
    task = ("regression", {"clients": 3, "examples": 8, "test": 16, "d_in": 6, "d_out": 5, "rank": 2})
    plain = methods.FedLoRA
    rows = [
        plain.replace(name=f"{w}{s}", train=train, aggregate=server)
        for w, train in (("both", plain.train), ("b", methods.FFA.train))
        for s, server in (("", plain.aggregate), ("-residual", methods.FedExLoRA.aggregate))
    ]
    plan = {"rounds": 2, "local_steps": 2, "batch": 4}
    cases = tuple(Case(row, {"epsilon": None}, task, None, {}, plan, {"rank": 2}) for row in rows)
    one = Study("small", "two by two", cases, seeds=(0, 1), rates=(0.05, 0.1, 0.2, 0.3), tune_seeds=(7,))
    study.play(one, tmp_path / "small.jsonl", bar=False)
    frame = study.frame(one, tmp_path / "small.jsonl")
    table: Any = study.effects(frame, rows, "loss").set_index("field")
    means: Any = frame.groupby("method")["loss"].mean()
    assert table.loc["train", "mean"] == pytest.approx(
        (means["b"] + means["b-residual"] - means["both"] - means["both-residual"]) / 2
    )
    assert table.loc["aggregate", "pairs"] == 2
    exact: Any = frame.groupby("method")["deviation"].max()
    assert exact[["b", "b-residual", "both-residual"]].max() < 1e-5 < exact["both"]


def test_the_figure_shows_every_effect():
    rows = study.composed()
    table: Any = study.effects(pd.concat([made(rows, epsilon=1.0), made(rows, epsilon=8.0)]), rows)
    figure = plots.effects(table)
    dots: Any = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert sorted(round(float(dot.get_xdata()[0]), 6) for dot in dots) == sorted(round(x, 6) for x in table["mean"])
    assert "the whitening: product_space" in [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    with pytest.raises(ValueError, match=r"^table=0"):
        plots.effects(table[:0])
