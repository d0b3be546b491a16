"""Which method, when: made-up frames whose winners are known, and how much of the declared studies is there."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedlora_lab import accounting, plots, study
from fedlora_lab.study.declared import Case, Study

BYTES = {"fedlora": 200.0, "ffa-lora": 100.0, "fedex-lora": 900.0}


def made(means, seeds=10, spread=0.01, seed=0, **labels):
    """A frame in which each method has this mean and some noise of its own, on top of noise that a seed shares."""
    rng = np.random.default_rng(seed)
    common, rows = rng.normal(0, 0.1, seeds), []
    for method, mean in means.items():
        own = rng.normal(0, spread, seeds)
        size = BYTES.get(method, 300.0)
        rows += [
            {"study": "digits", "method": method, **labels, "lr": 0.3, "at_edge": False, "seed": s,
             "accuracy": mean + common[s] + own[s], "bytes_up": size / 2, "bytes_down": size / 2, "deviation": 0.1}
            for s in range(seeds)
        ]  # fmt: skip
    return pd.DataFrame(rows)


THREE = {"fedlora": 0.70, "ffa-lora": 0.80, "fedex-lora": 0.801}


def test_a_lead_that_is_there_is_found():
    table: Any = study.standing(made(THREE, spread=0.003))
    assert set(table.index[:2]) == {"ffa-lora", "fedex-lora"}
    assert list(table["tied"]) == [True, True, False]
    assert table["gap"].iloc[0] == 0
    last = table.loc["fedlora"]
    assert last["low"] < last["gap"] < last["high"] < 0
    assert last["gap"] == pytest.approx(-0.1, abs=0.01)
    assert dict(table["bytes"]) == BYTES
    assert not last["exact"]
    assert table.loc["fedex-lora", "exact"]


def test_intervals_are_corrected_for_the_number_of_pairs():
    """By hand: with three methods each of the three intervals has the level 1 - 0.05 / 3."""
    from scipy.stats import t

    frame = made(THREE)
    table: Any = study.standing(frame)
    wide = frame.pivot_table("accuracy", "seed", "method")
    gap = wide["fedlora"] - wide[table.index[0]]
    half = t.ppf(1 - 0.05 / 6, 9) * gap.std(ddof=1) / np.sqrt(10)
    assert table.loc["fedlora", "high"] == pytest.approx(gap.mean() + half)
    assert table.loc["fedlora", "low"] == pytest.approx(gap.mean() - half)


def test_ties_are_rarely_broken_by_chance():
    """Six equal methods: in at most about one frame of twenty is any of them told from the best."""
    equal = {f"m{i}": 0.7 for i in range(6)}
    tied: list[Any] = [study.standing(made(equal, seed=seed))["tied"] for seed in range(120)]
    broken = sum(not all(each) for each in tied)
    assert broken <= 12


def test_of_a_loss_less_is_better():
    frame = made({"fedlora": 0.5, "ffa-lora": 0.3}).rename(columns={"accuracy": "loss"})
    table: Any = study.standing(frame)
    assert list(table.index) == ["ffa-lora", "fedlora"]
    assert table.loc["fedlora", "high"] < 0
    assert not table.loc["fedlora", "tied"]


def test_the_guide():
    one, two = made(THREE, epsilon=1.0), made({"fedlora": 0.9, "ffa-lora": 0.7}, epsilon=None)
    table: Any = study.guide({"digits": pd.concat([two, one])})
    assert list(table["where"]) == ["ε = 1", "no privacy"]
    assert list(table["unit"]) == ["example", "example"]
    assert list(table["methods"]) == [3, 2]
    assert table["best"].iloc[1] == table["tied"].iloc[1] == "FedLoRA"
    assert table["frugal"].iloc[0] == "FFA-LoRA"
    ahead = "FFA-LoRA" if table["best"].iloc[0] == "FFA-LoRA" else "FedEx-LoRA"
    assert table["share"].iloc[0] == pytest.approx(100 / BYTES["ffa-lora" if ahead == "FFA-LoRA" else "fedex-lora"])
    assert table["exact"].iloc[0] == "2 of 2"
    assert table["exact"].iloc[1] == "0 of 1"
    assert len(study.guide({})) == 0
    with pytest.raises(ValueError, match=r"^frame\.columns="):
        study.guide({"x": pd.DataFrame({"a": [1]})})


def test_the_guide_says_what_its_seeds_can_tell():
    """Few seeds see nothing: the half-width says so. A run that fell apart is named, not only hidden in a width."""
    few, many = made(THREE, seeds=3, epsilon=1.0), made(THREE, seeds=10, epsilon=3.0)
    frame: Any = pd.concat([few, many]).assign(before_accuracy=0.2).reset_index(drop=True)
    table: Any = study.guide({"digits": frame})
    assert table["half"].iloc[0] > 3 * table["half"].iloc[1]
    standing: Any = study.standing(frame[frame["epsilon"] == 3.0])
    assert table["half"].iloc[1] == pytest.approx(((standing["high"] - standing["low"]) / 2).iloc[1:].median())
    assert not table["tied"].str.contains("fell").any()
    slug = str(standing.index[0])
    frame.loc[(frame["method"] == slug) & (frame["epsilon"] == 3.0) & (frame["seed"] == 4), "accuracy"] = 0.1
    after: Any = study.standing(frame[frame["epsilon"] == 3.0])
    assert after.loc[slug, "fallen"] == 1
    assert after["fallen"].sum() == 1
    assert "(1 of 10 runs fell)" in study.guide({"digits": frame})["tied"].iloc[1]


def test_what_one_knob_does_is_no_situation():
    """Sweeps and composed rows are no settings to choose a method in; a frame of one's own may be."""
    frame = made(THREE, noise=1.0)
    assert len(study.guide({"digits-noise": frame, "digits-factorial": frame})) == 0
    assert list(study.guide({"digits-noise": frame, "mine": frame})["where"]) == ["noise = 1"]
    asked = {name for name, one in study.STUDIES.items() if one.guides}
    assert asked == {"digits", "digits-clients", "sentiment"}


def test_the_figure_of_the_guide():
    frames = {"digits": pd.concat([made(THREE, epsilon=1.0), made({"fedlora": 0.9, "ffa-lora": 0.7}, epsilon=3.0)])}
    figure = plots.ranking(frames)
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["FedLoRA", "FFA-LoRA", "FedEx-LoRA"]
    texts = {(int(t.get_position()[0]), int(t.get_position()[1])): t.get_text() for t in ax.texts}
    assert len(texts) == 5
    there = frames["digits"].query("epsilon == 3 and method == 'fedlora'")["accuracy"]
    assert texts[1, 0] == f"{there.mean():.2f}"
    assert texts[0, 0].startswith("−0.1")
    assert "•" not in texts[0, 0]
    with pytest.raises(ValueError, match=r"^frames="):
        plots.ranking({})


def test_coverage_counts_what_is_missing():
    whole: Any = study.STUDIES["digits"]
    rows = [
        {
            "study": "digits",
            "method": case.method.slug,
            **case.labels,
            "lr": 0.1,
            "at_edge": False,
            "seed": 0,
            "accuracy": 1.0,
        }
        for case in whole.cases[:9]
    ]
    found = {"digits": pd.DataFrame(rows)}
    table: Any = study.coverage(found)
    assert set(table.index) == set(study.STUDIES)
    assert table.loc["digits", "cases"] == 9
    assert table.loc["digits", "of"] == len(whole.cases)
    assert "fed-sb" in table.loc["digits", "missing"]
    assert (table.drop("digits")["cases"] == 0).all()
    assert "digits: 9 of" in study.told(found)
    assert "go on: fedlora-lab study digits" in study.told(found)
    assert "not run yet: digits-clients" in study.told(found)
    none = [{**row, "epsilon": None} for row in rows[:1]]
    assert study.coverage({"digits": pd.DataFrame(none)}).loc["digits", "cases"] == 1, "no privacy is a label"


def test_frames_reads_what_is_there(tmp_path):
    assert study.frames(tmp_path) == {}
    made(THREE, epsilon=1.0).to_csv(tmp_path / "digits.csv", index=False)
    (tmp_path / "other.csv").write_text("a\n1\n")
    found = study.frames(tmp_path)
    assert list(found) == ["digits"]
    assert len(found["digits"]) == 30


def test_tuning_cost():
    from fedlora_lab import methods

    task = ("regression", {"clients": 2, "examples": 20, "test": 8, "d_in": 6, "d_out": 5, "rank": 2})
    privacy, plan = {"delta": 1e-2, "accountant": "rdp"}, {"rounds": 3, "local_steps": 2, "batch": 4}
    case = Case(methods.FFA, {"epsilon": 2.0}, task, 2.0, privacy, plan, {"rank": 2})
    one = Study("x", "", (case,), seeds=(0,), rates=(0.1, 0.2, 0.3, 0.4), tune_seeds=(7, 8))
    cost = study.tuning_cost(one, case)
    assert cost.runs == 4 + 3 + 1
    assert cost.epsilon == pytest.approx(2.0, rel=2e-3)
    assert cost.all > 2 * cost.epsilon
    assert 0 < cost.left < 0.7 * cost.epsilon
    assert 1 < cost.noise < 8
    sigma = accounting.noise_multiplier(2.0, 1e-2, 0.2, 6, "rdp")
    assert cost.all == pytest.approx(accounting.epsilon(((sigma, 0.2, 8 * 6),), 1e-2, "rdp"), rel=1e-6)
    free = Case(methods.FFA, {"epsilon": None}, task, None, privacy, plan, {"rank": 2})
    with pytest.raises(ValueError, match=r"^epsilon=None: expected a case with privacy"):
        study.tuning_cost(one, free)
