"""Figures: what is drawn is what the frame says, and what cannot be drawn is refused in one line."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from frames import FOUNDING, FRAME_PLOTS, line_of, tidy_frame, words

import fedlora_lab as fl
from fedlora_lab import plots
from fedlora_lab.plots import style, tidy
from fedlora_lab.plots.noise import energies
from fedlora_lab.plots.traffic import table as traffic_table


@pytest.fixture(scope="module")
def frame():
    return tidy_frame()


@pytest.fixture(scope="module")
def real():
    """A run of the loop itself: its frame must be one that every figure takes."""
    task = fl.tasks.digits(clients=3, seed=1)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8)
    privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-4)
    runs = [fl.to_frame(fl.run(task, method, privacy, plan)) for method in ("fedlora", "ffa-lora")]
    return pd.concat(runs, ignore_index=True)


def test_curves_draw_the_mean(frame):
    ax = plots.curves(frame).axes[0]
    for slug in FOUNDING:
        line = line_of(ax, style.look(slug).colour)
        expected = frame[(frame.method == slug) & (frame.measure == "accuracy")].groupby("round")["value"].mean()
        np.testing.assert_allclose(line.get_ydata(), expected.to_numpy())
        assert list(line.get_xdata()) == list(expected.index)


def test_the_band_is_students_interval():
    low, high = tidy.band([1.0, 2.0, 4.0])
    half = 4.302652729911275 * np.std([1, 2, 4], ddof=1) / np.sqrt(3)  # t with 2 degrees of freedom, 97.5 %
    assert (low, high) == pytest.approx((7 / 3 - half, 7 / 3 + half))
    assert tidy.band([0.7]) == (0.7, 0.7)


def test_the_band_is_drawn_around_the_mean(frame):
    ax: Any = plots.curves(frame[frame.method == "rolora"]).axes[0]
    drawn: Any = ax.collections[0].get_paths()[0].vertices
    last = frame[(frame.method == "rolora") & (frame.measure == "accuracy") & (frame["round"] == 4)]["value"]
    at_end = drawn[drawn[:, 0] == 4][:, 1]
    assert (at_end.min(), at_end.max()) == pytest.approx(tidy.band(last))


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_the_figure_says_how_many_seeds(seeds):
    text = words(plots.curves(tidy_frame(seeds=seeds)))
    assert ("one seed" if seeds == 1 else f"n = {seeds} seeds") in text


def test_deviation_names_the_exact(frame):
    text = words(plots.deviation(frame))
    assert "FFA-LoRA,\nRoLoRA,\nDEeR\nexact: 0" in text
    assert "LA-LoRA" in text.replace("FFA-LoRA", "")


def test_noise_says_which_term_is_absent(frame):
    figure = plots.noise(frame)
    assert words(figure).count("none") == 1 + 3  # FFA has no noise on A; FFA, RoLoRA and DEeR no product of noises
    each = energies(frame)
    assert each[(each.method == "fedlora") & (each.term == "noise_B")]["value"].tolist() == [4.0] * 3


def test_traffic_ends_at_the_total(frame):
    means = traffic_table(frame)
    assert means[means.method == "fedlora"]["bytes"].max() == 4 * (2000 + 500)
    assert traffic_table(frame, "up").query("method == 'rolora'")["bytes"].max() == 4 * 1000
    line = line_of(plots.traffic(frame).axes[0], style.look("fedlora").colour)
    assert line.get_xdata()[-1] == pytest.approx(10.0)
    assert "(kB)" in plots.traffic(frame).axes[0].get_xlabel()


def test_overview_has_four_panels(frame):
    figure = plots.overview(frame)
    assert [ax.get_title(loc="left")[0] for ax in figure.axes] == ["1", "2", "3", "4"]
    assert "every method\nε = 8.00" in words(figure)


@pytest.mark.parametrize("name", FRAME_PLOTS)
def test_a_real_run_is_drawn(real, name):
    assert style.png(getattr(plots, name)(real)).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", FRAME_PLOTS)
@pytest.mark.parametrize(("seeds", "rounds"), [(1, 4), (3, 0), (1, 0)])
def test_one_seed_or_one_round_suffices(name, seeds, rounds):
    frame = tidy_frame(seeds=seeds, rounds=rounds)
    assert style.png(getattr(plots, name)(frame)).startswith(b"\x89PNG")


def test_a_run_without_privacy_is_drawn(frame):
    without = frame.assign(value=frame["value"].where(frame["measure"] != "epsilon", np.inf))
    assert "no finite ε" in words(plots.overview(without))


# what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        *(("curves", "accuracy"), ("deviation", "deviation"), ("epsilon", "epsilon"), ("noise", "noise_BA")),
        *(("traffic", "bytes_down"), ("traffic", "accuracy"), ("overview", "deviation"), ("overview", "accuracy")),
    ],
)
def test_a_frame_without_the_measure_is_refused(frame, name, missing):
    with pytest.raises(ValueError, match=f"^measure='{missing}': expected .*$") as refusal:
        getattr(plots, name)(frame[frame["measure"] != missing])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: "frame", "^frame='str': expected a pandas frame"),
        (lambda f: f.drop(columns="seed"), "expected also seed"),
        (lambda f: pd.concat([f, f.assign(task="other")]), "expected one task"),
        (lambda f: f.iloc[:0], "measure='accuracy': expected"),
        (lambda f: f.assign(value=np.nan), "a finite value"),
    ],
)
def test_a_bad_frame_is_refused(frame, change, message):
    with pytest.raises(ValueError, match=message):
        plots.curves(change(frame))


def test_a_bad_way_is_refused(frame):
    with pytest.raises(ValueError, match=r"^way='sideways': expected one of"):
        plots.traffic(frame, way="sideways")


def hidden(frame, method, measures):
    """The frame with what a run hides: after its start, these measures of a method are NaN."""
    some = (frame["method"] == method) & frame["measure"].isin(measures) & (frame["round"] > 0)
    return frame.assign(value=frame["value"].where(~some))


def test_plots_leave_out_what_was_not_measured(frame):
    """The zero of a run's start is no measurement: no line, no mark, no "exact"; the figure says who is missing."""
    part = hidden(frame, "rolora", ("deviation", "bytes_up", "bytes_down"))
    for draw, other in (
        (plots.deviation, "exact: 0"), (plots.traffic, ""), (lambda f: plots.finals(f, "deviation"), ""),
        (lambda f: plots.curves(f, "deviation"), ""),
    ):  # fmt: skip
        figure = draw(part)
        assert "not measured: RoLoRA" in " ".join(text.get_text() for text in figure.texts)
        labels = [text.get_text() for ax in figure.axes for text in ax.texts]
        labels += [tick.get_text() for ax in figure.axes for tick in ax.get_yticklabels()]
        assert not any("RoLoRA" in text for text in labels), (labels, other)
    assert tidy.unmeasured(part, "accuracy") == []
    everything = part.assign(value=part["value"].where((part["measure"] != "deviation") | (part["round"] == 0)))
    with pytest.raises(ValueError, match="a finite value"):
        plots.deviation(everything)
    bare = everything.assign(value=everything["value"].where((part["measure"] != "bytes_up") | (part["round"] == 0)))
    assert "deviation: not measured" in words(plots.overview(bare))
    assert "bytes: not measured" in words(plots.overview(bare))


def test_the_last_round_is_never_an_earlier_one(frame):
    """A value that is missing at the end is missing: the round before does not stand in for it."""
    end = (frame["method"] == "rolora") & (frame["measure"] == "accuracy") & (frame["round"] == frame["round"].max())
    part = frame.assign(value=frame["value"].where(~end))
    assert "rolora" not in set(tidy.last(part, "accuracy")["method"])
    assert "not measured: RoLoRA" in " ".join(text.get_text() for text in plots.finals(part).texts)
    with pytest.raises(ValueError, match="at least two that"):
        fl.claims.gap(part, "rolora", "fedlora")
