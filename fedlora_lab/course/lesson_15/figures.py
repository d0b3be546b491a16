"""Figures of notebook 15: how far one example reaches, calls without a seed, mistakes by check."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora_lab._utils.validation import check
from fedlora_lab.plots import style

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.review import Review

CHANGES = {"left out": style.SERIES[0], "twice": style.SERIES[2], "a million times": style.WITH}
PALE = "#CFE6DD"


def reach_by_change(step: Any, batch: "Sequence[Any]", unit: float) -> dict[str, float]:
    """Measures how far one example moves a step at most, by its change (see `CHANGES`).

    Args:
        step: (examples, seed) -> name -> array; batch: pairs (x, y) of an array and a class.
        unit: the distance that counts as 1: the clip norm over the denominator.

    Guarantees: 1 for a sum of clipped gradients (test_lesson_15.py::test_a_sound_step_reaches_1).
    """

    def released(examples: "Sequence[Any]") -> np.ndarray:
        given = step(list(examples), 0)
        return np.concatenate([np.ravel(np.asarray(x, float)) for x in given.values()])

    whole, moved = released(batch), dict.fromkeys(CHANGES, 0.0)
    for i, (x, y) in enumerate(batch):
        rest = released([*batch[:i], *batch[i + 1 :]])
        loud = released([*batch[:i], (1e6 * np.asarray(x), y), *batch[i + 1 :]])
        pairs = zip(CHANGES, (whole - rest, released([*batch, (x, y)]) - whole, loud - rest))
        for name, change in pairs:
            moved[name] = max(moved[name], float(np.linalg.norm(change)) / unit)
    return moved


@style.paper()
def reach(frame: "pd.DataFrame") -> style.Picture:
    """Draws how far one example moves each step, by what was done to it, beside the promised 1.

    Args: frame: a row for each step, with its name as index; columns as of `reach_by_change`.
    Guarantees: every number is a dot (test_lesson_15.py::test_the_reaches_are_drawn).
    """
    check(len(frame) > 0, "frame", f"{len(frame)} rows", "at least one step")
    height = 1.35 + 0.36 * len(frame)
    bottom, share = 0.62 / height, 1 - 1.05 / height
    figure, (ax,) = style.panels(9.2, height, (0.295, bottom, 0.51, share))
    for row, name in enumerate(frame.index):
        for change, colour in CHANGES.items():
            style.dots(ax, [frame.loc[name, change]], [row], colour, 8.5)
        worst = float(frame.loc[name].max())
        ink = style.INK if worst <= 1 + 1e-6 else style.WRONG
        words = f"  {worst:.3g}"
        ax.text(worst, row - 0.02, words, color=ink, va="center", fontsize=9, weight="bold")
    ax.axvline(1, color=style.INK, lw=1.2, zorder=0)
    ax.set_yticks(range(len(frame)), [str(name) for name in frame.index])
    top = float(frame.to_numpy().max())
    ax.set(ylim=(len(frame) - 0.5, -0.5), xscale="log", xlim=(0.3, max(3.0, 3 * top)))
    style.log_axis(ax.xaxis, tuple(t for t in (0.3, 1, 3, 10, 30, 100) if t < 3 * top))
    ax.set_xlabel("how far one example moves what is released, in units of C/b")
    over = int((frame.max(axis=1) > 1 + 1e-6).sum())
    ax.set_title(f"{over} of {len(frame)} steps let one example move them further than 1")
    for i, (change, colour) in enumerate(CHANGES.items()):
        put: Any = {"color": colour, "fontsize": 9, "weight": "bold", "va": "center"}
        figure.text(0.83, 1 - (0.75 + 0.28 * i) / height, f"● {change}", **put)
    style.footer(
        figure, "the same seed in both calls; the largest over 16 examples; line: promised"
    )
    return figure


def holdout(
    shift: float, sigma: float, numbers: int, calls: int, repeats: int = 200, seed: int = 0
) -> np.ndarray:
    """Simulates a shift measured without a seed: learned on some calls, measured on as many others.

    Args:
        shift: true distance between the means, in clip norms; sigma: of the noise, likewise.
        numbers: how many are released.
        calls: with and without the example, of each half.
        repeats, seed: how often, and of which draws.
    Returns: the measured shifts, (repeats,), in clip norms.
    Guarantees: never larger than the truth on average
        (test_lesson_15.py::test_a_direction_learned_elsewhere_flatters_nobody).
    """
    rng, error = np.random.default_rng(seed), sigma * math.sqrt(2 / calls)
    truth = np.zeros(numbers)
    truth[0] = shift
    learned = truth + error * rng.standard_normal((repeats, numbers))
    learned /= np.linalg.norm(learned, axis=1, keepdims=True)
    found = truth + error * rng.standard_normal((repeats, numbers))
    return (learned * found).sum(1)


@style.paper()
def shift_without_seeds(
    shift: float = 2.0,
    sigma: float = 1.1,
    numbers: int = 36,
    calls: Sequence[int] = (4, 8, 16, 32, 64, 128, 256),
) -> "tuple[style.Picture, pd.DataFrame]":
    """Draws the measured shift of a broken and a sound step without seeds, by number of calls.

    Args: shift: of the broken step; the sound one moves by 1; sigma, numbers, calls: see `holdout`.
    Returns: (figure, frame): columns step, calls, mean, low, high (the middle 95 % of 200 reviews).
    Guarantees: test_lesson_15.py::test_more_calls_tell_more.
    """
    import pandas as pd

    rows = []
    for name, true in (("broken", shift), ("sound", 1.0)):
        for n in calls:
            found = holdout(true, sigma, numbers, n)
            low, high = np.quantile(found, (0.025, 0.975))
            rows.append((name, n, float(found.mean()), float(low), float(high)))
    frame = pd.DataFrame(rows, columns=["step", "calls", "mean", "low", "high"])
    figure, (ax,) = style.panels(8.4, 3.7, (0.085, 0.17, 0.7, 0.71))
    labels = []
    for (name, part), colour in zip(frame.groupby("step"), (style.WRONG, style.RIGHT), strict=True):
        true = shift if name == "broken" else 1.0
        band = part["low"], part["high"]
        words = f"{name}: moves by {true:g}"
        mark: Any = {"marker": "o", "mec": style.CARD}
        line = part["calls"], part["mean"], words, colour, *band
        labels.append(style.named_line(ax, *line, **mark))
        ax.axhline(true, color=colour, lw=1, ls=style.DASHED)
    ax.set(xscale="log", xlim=(calls[0], calls[-1]), ylim=(-1, shift + 1.6))
    style.log_axis(ax.xaxis, tuple(calls))
    ax.set(xlabel="calls with the example, and as many without, in each half")
    ax.set_ylabel("measured move, in clip norms")
    told = frame.pivot(index="calls", columns="step")
    apart = told.index[told["low"]["broken"] > told["high"]["sound"]]
    words = f"{apart[0]} calls tell them apart" if len(apart) else "No number of calls is enough"
    ax.set_title(f"Without a seed: {words}")
    style.draw_labels(ax, labels, together=False, wide=12)
    style.footer(
        figure, "dots: mean of 200 measurements; bands: the middle 95 %; dashed: the truth"
    )
    return figure, frame


@style.paper()
def verdicts(reviews: "Mapping[str, Review]", expected: "Mapping[str, frozenset]") -> style.Picture:
    """Draws a matrix of mistakes by checks: the verdict of each check on each mistake.

    Args: reviews: mistake -> its review; expected: mistake -> checks that had to find it, drawn
        with a ring.
    Guarantees: every verdict "broken" is a square (test_lesson_15.py::test_the_matrix_is_complete).
    """
    check(bool(reviews), "reviews", reviews, "at least one")
    findings = (one for review in reviews.values() for one in review.findings)
    columns = list(dict.fromkeys(one.check for one in findings))
    found = [review.broken for review in reviews.values()]
    columns = [name for name in columns if any(name in one for one in found)]
    height = 1.75 + 0.215 * len(reviews)
    bottom, share = 0.3 / height, 1 - 1.75 / height
    figure, (ax,) = style.panels(9.6, height, (0.345, bottom, 0.5, share))
    for row, (name, review) in enumerate(reviews.items()):
        for i, column in enumerate(columns):
            verdict = review[column].verdict
            if verdict == "broken":
                wanted = column in expected[name]
                edge = style.INK if wanted else style.WRONG
                look: Any = {"color": style.WRONG, "mec": edge, "mew": 1.6 if wanted else 0}
                ax.plot(i, row, "s", ms=9.5, **look)
            elif verdict == "sound":
                ax.plot(i, row, "o", ms=4, color=PALE)
    ax.set_yticks(range(len(reviews)), list(reviews), fontsize=8)
    ax.set_xticks(range(len(columns)), columns, rotation=35, ha="left", fontsize=8.5)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set(xlim=(-0.6, len(columns) - 0.4), ylim=(len(reviews) - 0.4, -0.6))
    ax.grid(visible=False)
    caught = sum(expected[name] <= review.broken for name, review in reviews.items())
    most = max(sum(column in one for one in found) for column in columns)
    words = f"{caught} of {len(reviews)} mistakes are found, and no check finds more than {most}"
    ax.set_title(words, loc="left", x=-0.65, y=1 + 1.16 / (height * share))
    put: Any = {"fontsize": 8.5, "color": style.SOFT, "va": "top"}
    words = "■ broken, framed: the check that had to find it   ● sound   empty: cannot tell"
    figure.text(0.02, 1 - 0.42 / height, words, **put)
    return figure
