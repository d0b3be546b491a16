"""Which method, when, and what an ingredient adds: made-up frames whose winners and effects are
known, and a small study that is run here."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t

import fedlora_lab as fl
from fedlora_lab import experiments as study
from fedlora_lab import methods
from fedlora_lab.experiments.studies import Case, Study
from fedlora_lab.privacy import accounting

lesson = fl.course.lesson(9)

BYTES = {"fedlora": 200.0, "ffa-lora": 100.0, "fedex-lora": 900.0}
THREE = {"fedlora": 0.70, "ffa-lora": 0.80, "fedex-lora": 0.801}
TASK = ("regression", {"clients": 3, "examples": 8, "test": 16, "d_in": 6, "d_out": 5, "rank": 2})
WORK = {"rounds": 2, "local_steps": 2, "batch": 4}
RATES = (0.05, 0.1, 0.2, 0.3)


def made(means, seeds=10, spread=0.01, seed=0, centred=False, **labels):
    """A frame in which each method has this mean, noise of its own (``centred``: of mean 0), and
    noise that all methods of a seed share."""
    rng = np.random.default_rng(seed)
    common, parts = rng.normal(0, 0.1, seeds), []
    for method, mean in means.items():
        own, size = rng.normal(0, spread, seeds), BYTES.get(method, 300.0)
        part: Any = {"study": "digits", "method": method, **labels, "lr": 0.3, "at_edge": False}
        part |= {"seed": range(seeds), "accuracy": mean + common + own - centred * own.mean()}
        part |= {"bytes_up": size / 2, "bytes_down": size / 2, "deviation": 0.1}
        parts.append(pd.DataFrame(part))
    return pd.concat(parts, ignore_index=True)


def test_a_lead_that_is_there_is_found():
    """With three methods each of the three intervals has the level 1 - 0.05 / 3; a loss ranks the
    other way round."""
    frame = made(THREE, spread=0.003)
    table: Any = study.rank_methods(frame)
    best = str(table.index[0])
    assert set(table.index[:2]) == {"ffa-lora", "fedex-lora"}
    assert list(table["tied"]) == [True, True, False] and table["gap"].iloc[0] == 0
    wide = frame.pivot_table("accuracy", "seed", "method")
    gap = wide["fedlora"] - wide[best]
    half = t.ppf(1 - 0.05 / 6, 9) * gap.std(ddof=1) / np.sqrt(10)
    last, mean = table.loc["fedlora"], gap.mean()
    wanted = [mean, mean - half, mean + half]
    assert last[["gap", "low", "high"]].tolist() == pytest.approx(wanted) and wanted[2] < 0
    assert dict(table["bytes"]) == BYTES
    assert table.loc["fedex-lora", "exact"] and not last["exact"]
    loss: Any = study.rank_methods(frame.rename(columns={"accuracy": "loss"}))
    assert list(loss.index) == list(table.index[::-1])
    assert loss.loc["fedlora", "tied"] and loss.loc[best, "high"] < 0


def test_ties_are_rarely_broken_by_chance():
    """Six equal methods: in at most about one frame of twenty is any of them told from the best."""
    equal = {f"m{i}": 0.7 for i in range(6)}
    tied = [study.rank_methods(made(equal, seed=seed))["tied"] for seed in range(20)]
    assert sum(not all(each) for each in tied) <= 3


def test_best_tied_and_frugal_methods_are_named():
    """Sweeps and composed rows are no settings to choose a method in; one's own frame may be."""
    one, two = made(THREE, epsilon=1.0), made({"fedlora": 0.9, "ffa-lora": 0.7}, epsilon=None)
    table: Any = study.best_methods({"digits": pd.concat([two, one])})
    assert list(table["where"]) == ["ε = 1", "no privacy"]
    assert list(table["unit"]) == ["example", "example"]
    assert list(table["methods"]) == [3, 2]
    assert table["best"].iloc[1] == table["tied"].iloc[1] == "FedLoRA"
    assert table["frugal"].iloc[0] == "FFA-LoRA"
    best = {"FFA-LoRA": "ffa-lora", "FedEx-LoRA": "fedex-lora"}[table["best"].iloc[0]]
    assert table["share"].iloc[0] == pytest.approx(100 / BYTES[best])
    assert list(table["exact"]) == ["2 of 2", "0 of 1"]
    assert len(study.best_methods({})) == 0
    frame = made(THREE, noise=1.0)
    frames = {"digits-noise": frame, "digits-factorial": frame, "mine": frame}
    assert list(study.best_methods(frames)["where"]) == ["noise = 1"]
    asked = {name for name, one in study.STUDIES.items() if one.has_situations}
    assert asked >= {"digits", "digits-clients", "sentiment", "mnist-client"}
    assert not asked & {"digits-noise", "digits-factorial", "causes", "regime-client"}
    with pytest.raises(ValueError, match=r"^frame\.columns=\['a'\]: expected a study's: study, m"):
        study.best_methods({"x": pd.DataFrame({"a": [1]})})


def test_the_guide_says_what_its_seeds_can_tell():
    """Few seeds see nothing: the half-width says so. A run that fell apart is named."""
    few, many = made(THREE, seeds=3, epsilon=1.0), made(THREE, seeds=10, epsilon=3.0)
    frame: Any = pd.concat([few, many]).assign(before_accuracy=0.2).reset_index(drop=True)
    table: Any = study.best_methods({"digits": frame})
    ranks: Any = study.rank_methods(frame[frame["epsilon"] == 3.0])
    half = ((ranks["high"] - ranks["low"]) / 2).iloc[1:].median()
    assert table["half"].iloc[0] > 3 * table["half"].iloc[1] == pytest.approx(3 * half)
    assert not table["tied"].str.contains("collapsed").any()
    one = (frame["method"] == ranks.index[0]) & (frame["epsilon"] == 3.0)
    frame.loc[one & (frame["seed"] == 4), "accuracy"] = 0.1
    after: Any = study.rank_methods(frame[frame["epsilon"] == 3.0])
    assert after["collapsed"].sum() == after.loc[str(ranks.index[0]), "collapsed"] == 1
    assert "(1 of 10 runs collapsed)" in study.best_methods({"digits": frame})["tied"].iloc[1]


def test_the_figure_of_the_guide():
    two = made({"fedlora": 0.9, "ffa-lora": 0.7}, epsilon=3.0)
    ax = lesson.ranking({"digits": pd.concat([made(THREE, epsilon=1.0), two])}).axes[0]
    names = [tick.get_text() for tick in ax.get_yticklabels()]
    assert names == ["FedLoRA", "FFA-LoRA", "FedEx-LoRA"]
    texts = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    there: Any = two[two["method"] == "fedlora"]["accuracy"]
    assert len(texts) == 5 and texts[1, 0] == f"{there.mean():.2f}"
    assert texts[0, 0].startswith("−0.1") and "•" not in texts[0, 0]
    with pytest.raises(ValueError, match=r"^frames="):
        lesson.ranking({})


@pytest.mark.slow
def test_tuning_cost_counts_every_run():
    privacy = {"delta": 1e-2, "accountant": "rdp"}
    case = Case(methods.FFA, {"epsilon": 2.0}, TASK, 2.0, privacy, WORK, {"rank": 2})
    one = Study("x", "", (case,), seeds=(0,), rates=RATES, tune_seeds=(7, 8))
    cost = study.tuning_cost(one, case)
    assert cost.runs == 4 + 3 + 1
    assert cost.epsilon == pytest.approx(2.0, rel=2e-3)
    assert cost.all > 2 * cost.epsilon and 0 < cost.left < 0.7 * cost.epsilon
    assert 1 < cost.noise < 8
    sigma = accounting.noise_multiplier(2.0, 1e-2, 0.5, 4, "rdp")
    whole = accounting.epsilon(((sigma, 0.5, 8 * 4),), 1e-2, "rdp")
    assert cost.all == pytest.approx(whole, rel=1e-6)
    free = Case(methods.FFA, {"epsilon": None}, TASK, None, privacy, WORK, {"rank": 2})
    with pytest.raises(ValueError, match=r"^epsilon=None: expected a case with privacy"):
        study.tuning_cost(one, free)


# ---- what an ingredient adds

ADDS = {
    "train": {"B": 0.05, "B | A": 0.02, "B A": -0.03},
    "aggregate": {"MeanWithResidual()": 0.01, "TruncatedSVD()": -0.1},
    "precondition": {"product_space": 0.04},
    "filter": {"Binomial(taps=5)": 0.0},
}
