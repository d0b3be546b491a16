"""Figures: what is drawn is what the frame says, in the same colours, bytes and frames every time."""

import itertools
import threading
from typing import Any

import matplotlib
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import fedlora_lab as fl
from fedlora_lab import plots
from fedlora_lab.plots import labels, style, tidy
from fedlora_lab.plots.live import KINDS, _mosaic, images, kind, live
from fedlora_lab.plots.noise import energies
from fedlora_lab.plots.score import meaning
from fedlora_lab.plots.traffic import table as traffic_table

FOUNDING = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp")
FRAME_PLOTS = ("curves", "deviation", "epsilon", "noise", "overview", "traffic")


def tidy_frame(methods=FOUNDING, seeds=3, rounds=4, layers=("query", "value")) -> Any:
    """A frame with the schema of a run, its values simple functions of method, seed and round."""
    table = []
    for (m, method), seed, t in itertools.product(enumerate(methods), range(seeds), range(rounds + 1)):
        exact = method in ("ffa-lora", "rolora", "deer")
        whole = {
            "accuracy": 0.6 + 0.01 * t * (m + 1) / 2 + 0.002 * seed,
            "loss": 1.2 - 0.1 * t,
            "epsilon": 2.0 * t,
            "deviation": 0.0 if exact or t == 0 else 0.1 * (m + 1) + 0.01 * seed,
            "bytes_up": 0 if t == 0 else 1000 * (1 if exact else 2),
            "bytes_down": 0 if t == 0 else 500,
        }
        per_layer = {
            "deviation": whole["deviation"],
            "noise_B": 0.0 if t == 0 else 2.0,
            "noise_A": 0.0 if t == 0 or method == "ffa-lora" else 0.5,
            "noise_BA": 0.0 if t == 0 or exact else 0.01,
        }
        table += [("digits", method, seed, t, "all", k, v) for k, v in whole.items()]
        table += [("digits", method, seed, t, layer, k, v) for layer in layers for k, v in per_layer.items()]
    return pd.DataFrame(table, columns=list(tidy.COLUMNS))


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


def line_of(ax, colour):
    """The drawn line with this colour and most points."""
    found = [line for line in ax.lines if matplotlib.colors.to_hex(line.get_color()).upper() == colour]
    return max(found, key=lambda line: len(line.get_xdata()))


def words(figure):
    return " ".join(text.get_text() for ax in figure.axes for text in ax.texts) + " ".join(
        text.get_text() for text in figure.texts
    )


# what is drawn ----------------------------------------------------------------------------------------------------


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


# how it looks -----------------------------------------------------------------------------------------------------

# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB.
SEEN = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    c = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of a linear RGB colour."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x = np.array(matrix) @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eye", SEEN)
def test_the_founding_colours_are_told_apart(eye):
    seen = {slug: lab(np.array(SEEN[eye]) @ linear(style.look(slug).colour)) for slug in FOUNDING}
    nearest = min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(FOUNDING, 2))
    assert nearest > 25


@pytest.mark.parametrize("slug", [*style.LOOKS, "mine", "another"])
def test_a_line_and_its_name_are_seen_on_the_card(slug):
    def contrast(colour):
        light = [0.05 + np.array([0.2126, 0.7152, 0.0722]) @ linear(c) for c in (style.CARD, colour)]
        return light[0] / light[1]

    colour = style.look(slug).colour
    assert contrast(colour) >= 3
    assert contrast(style.darker(colour)) >= 4.5


def test_a_method_keeps_its_colour(frame):
    assert set(fl.methods.ALL) <= set(style.LOOKS)
    colours = [look.colour for look in style.LOOKS.values()]
    assert len(set(colours)) == len(colours)
    for slug in ("mine", "yours"):
        assert style.look(slug) == style.look(slug)
        alone = plots.curves(tidy_frame((slug,))).axes[0]
        among = plots.curves(tidy_frame(("fedlora", slug))).axes[0]
        assert line_of(alone, style.look(slug).colour)
        assert line_of(among, style.look(slug).colour)


@pytest.mark.parametrize("name", FRAME_PLOTS)
def test_same_frame_same_bytes(frame, name):
    first, second = (style.png(getattr(plots, name)(frame)) for _ in range(2))
    assert first == second
    assert b"tIME" not in first
    assert b"tEXt" not in first


def test_nothing_leaks(frame):
    before, state = dict(matplotlib.rcParams), np.random.get_state(legacy=False)  # noqa: NPY002
    for name in FRAME_PLOTS:
        style.png(getattr(plots, name)(frame))
    plots.scores()
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []
    np.testing.assert_equal(np.random.get_state(legacy=False), state)  # noqa: NPY002


def test_threads_may_draw(frame):
    before, expected = dict(matplotlib.rcParams), style.png(plots.curves(frame))
    found = []
    threads = [threading.Thread(target=lambda: found.append(style.png(plots.curves(frame)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4
    assert dict(matplotlib.rcParams) == before


def test_labels_keep_apart():
    sizes = [0.1, 0.2, 0.1, 0.1]
    places = labels.spread([0.5, 0.5, 0.52, 0.05], sizes)
    edges = sorted((p - s / 2, p + s / 2) for p, s in zip(places, sizes, strict=True))
    assert all(a[1] <= b[0] + 1e-9 for a, b in itertools.pairwise(edges))
    assert edges[0][0] >= 0
    assert edges[-1][1] <= 1
    assert np.argsort(places, kind="stable").tolist() == [3, 0, 1, 2]
    assert labels.spread([0.2, 0.8], [0.1, 0.1]) == pytest.approx([0.2, 0.8])


@pytest.mark.parametrize("name", FRAME_PLOTS)
def test_names_do_not_overlap(frame, name):
    close = frame.assign(value=frame["value"].where(frame["measure"] != "accuracy", 0.7 + 0.001 * frame["round"]))
    figure = getattr(plots, name)(close)
    style.png(figure)
    for ax in figure.axes:
        boxes = [Text.get_window_extent(t) for t in ax.texts if t.get_weight() == "bold" and t.get_text()]
        assert not any(a.y1 - 2 > b.y0 and b.y1 - 2 > a.y0 and a.x1 > b.x0 and b.x1 > a.x0
                       for a, b in itertools.combinations(boxes, 2))  # fmt: skip


@pytest.mark.parametrize("name", [*FRAME_PLOTS, "scores", "score", "timeline", "live"])
def test_nothing_is_cut_off(frame, name):
    given = {"scores": (), "score": ("deer-literal",), "timeline": (fl.Cycle(("B A",)),)}
    given["live"] = (tidy_frame(("la-lora-unfiltered",), seeds=1),)
    long = pd.concat([frame, tidy_frame(("la-lora-unfiltered", "deer-literal"))])
    figure = getattr(plots, name)(*given.get(name, (long,)))
    style.png(figure)
    page = figure.bbox
    texts = [t for ax in figure.axes for t in [*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]]
    for text in [*texts, *figure.texts]:
        box = Text.get_window_extent(text)
        if text.get_text().strip():
            assert box.x0 >= -1, text
            assert box.y0 >= -1, text
            assert box.x1 <= page.x1 + 1, text
            assert box.y1 <= page.y1 + 1, text


# scores and timelines ---------------------------------------------------------------------------------------------


def beats(ax):
    """Position and colour of the filled beats of a score."""
    return sorted((round(p.get_x(), 2), matplotlib.colors.to_hex(p.get_facecolor()).upper()) for p in ax.patches)


@pytest.mark.parametrize("row", [*fl.methods.ALL.values(), fl.methods.FedLoRA.replace(name="odd", share="A")])
def test_a_score_is_read_from_the_row(row):
    rounds, steps = 3, 4
    ax: Any = plots.score(row, rounds=rounds, steps=steps).axes[0]
    expected = [
        (round(t * (steps + 1.25) + 0.12 + s, 2), style.FACTOR[factor].upper())
        for t in range(rounds)
        for s in range(steps)
        for factor in row.moves(t, s)
    ]
    assert beats(ax) == sorted(expected)
    text = [t.get_text() for t in ax.texts]
    arrows = sum(t.arrow_patch is not None for t in ax.texts if hasattr(t, "arrow_patch"))
    assert arrows == sum(len(row.sent(t, steps)) for t in range(rounds))
    kept = sum(len(row.moved(t, steps)) - len(row.sent(t, steps)) for t in range(rounds))
    assert text.count("↺") == kept
    averaged = sum(bool(row.sent(t, steps)) for t in range(rounds))
    assert (text.count("="), text.count("≠")) == ((averaged, 0) if row.exact else (0, averaged))


def test_a_score_shows_the_rules():
    def glyphs(row):
        return {t.get_text() for t in plots.score(row).axes[0].texts}

    plain = fl.methods.FedLoRA
    assert "~" in glyphs(plain)
    assert "≈" in glyphs(plain.replace(smooth=fl.methods.LALoRA.smooth))
    assert "◇" in glyphs(plain.replace(whiten=fl.methods.DEeR.whiten))
    assert "~+" in glyphs(plain.replace(penalty=lambda tensors, start: 0))
    stairs = len(plots.score(fl.methods.FedLPP).axes[0].lines) - len(plots.score(plain).axes[0].lines)
    assert stairs == 4
    double = plain.replace(aggregate=lambda state, sent, uploads, weights: state)
    assert any(text.startswith("server:") for text in glyphs(double))


def test_a_row_without_a_place_in_the_table_is_described_by_its_fields():
    mine = fl.methods.FedLoRA.replace(name="mine", train=fl.Cycle(("B B A",)), share="A")
    assert meaning(fl.methods.FedLoRA) == fl.methods.FedLoRA.note
    assert meaning(mine) == "the factors take turns within a round"
    assert meaning(mine.replace(train=fl.Cycle(("B", "A")), exact=True)).startswith("the factors take turns between")
    assert meaning(mine.replace(train=fl.Cycle(("B",)), share=None)) == "A never moves"


def test_a_page_of_scores_is_the_table():
    page: Any = plots.scores()
    titles = [t.get_text() for ax in page.axes for t in ax.texts if t.get_weight() == "bold"]
    assert [t for t in titles if t in {row.name for row in fl.methods.ALL.values()}] == [
        row.name for row in fl.methods.ALL.values()
    ]


@pytest.mark.parametrize("cycle", [fl.Cycle(("AB",)), fl.Cycle(("B", "A")), fl.Cycle(("B B A",))])
def test_timeline_follows_the_schedule(cycle):
    rounds, steps = 4, 3
    ax: Any = plots.timeline(cycle, rounds=rounds, steps=steps).axes[0]
    filled = [p for p in ax.patches if p.get_facecolor()[3] > 0]
    assert len(filled) == sum(len(cycle(t, s)) for t in range(rounds) for s in range(steps))
    share = sum("A" in cycle(t, s) for t in range(rounds) for s in range(steps)) / (rounds * steps)
    assert f"{share:.0%} of steps" in [t.get_text() for t in ax.texts]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.score("nobody"), "^method='nobody': expected one of"),
        (lambda: plots.scores([]), "at least one method"),
        (lambda: plots.score("rolora", rounds=0), "^rounds=0: expected"),
        (lambda: plots.scores(columns=0), "^columns=0: expected"),
        (lambda: plots.timeline(fl.Cycle(("B",)), steps=-1), "^steps=-1: expected"),
        (lambda: plots.timeline(lambda t, s: "C"), "expected \"A\", \"B\" or \"AB\""),
        (lambda: live(None, rounds=0, start=0.5), "^rounds=0: expected"),
        (lambda: images(np.zeros((3, 64)), [0] * 3, [0] * 3), r"^x.shape=\(3, 64\): expected"),
    ],
)  # fmt: skip
def test_bad_calls(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# the live figures -------------------------------------------------------------------------------------------------


def test_live_axes_stand_still(frame):
    one = frame[(frame.method == "rolora") & (frame.seed == 0)]
    wild = one.assign(value=one["value"] * 5)
    limits = []
    for shown in (None, one[one["round"] == 0], one, wild):
        figure = live(shown, rounds=10, start=0.6, target=8.0, past=() if shown is None else (one,))
        limits.append([(ax.get_xlim(), ax.get_ylim(), ax.get_position().bounds) for ax in figure.axes])
    assert all(found == limits[0] for found in limits)


def test_live_draws_what_the_frame_says(frame):
    one = frame[(frame.method == "rolora") & (frame.seed == 0)]
    ax = live(one, rounds=10, start=0.6, target=8.0).axes[0]
    line = line_of(ax, style.look("rolora").colour)
    np.testing.assert_allclose(line.get_ydata(), one[one.measure == "accuracy"]["value"])


def test_images_show_what_turned():
    kinds = [kind(*case) for case in ((1, 1, 1), (1, 2, 1), (1, 2, 3), (1, 1, 3))]
    assert kinds == ["right", "turned right", "wrong", "turned wrong"]
    figure = images(np.zeros((4, 8, 8)), [1, 1, 1, 1], [1, 2, 2, 1], [1, 1, 3, 3], columns=2)
    frames: Any = figure.axes[0].collections[0]
    edges = [matplotlib.colors.to_hex(c).upper() for c in frames.get_edgecolor()]
    assert edges == [KINDS[k][0].upper() for k in kinds]
    assert frames.get_linewidths() == [KINDS[k][1] for k in kinds]
    assert [t.get_text() for t in figure.axes[0].texts] == ["3", "3"]


def test_a_mosaic_puts_every_image_in_its_place():
    x = np.arange(3 * 8 * 8, dtype=float).reshape(3, 8, 8)
    mosaic = _mosaic(x, lines=2, columns=2)
    np.testing.assert_array_equal(mosaic[1:9, 11:19], x[1])
    np.testing.assert_array_equal(mosaic[11:19, 1:9], x[2])
    assert mosaic[11:, 11:].max() == 0
