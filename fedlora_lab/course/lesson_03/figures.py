"""Figures of notebook 03: what ε promises, how it is counted, and what a clip costs.

They look at private gradients before the clip: for the laboratory, never for a release.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import norm

from fedlora_lab import theory
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.lora import peft, per_example
from fedlora_lab.plots import style, tidy
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.tasks.task import concatenate, take

if TYPE_CHECKING:
    from fedlora_lab.federated.records import Round

BIAS, NOISE, UNCUT = style.WITH, style.SERIES[0], "#A9B4C2"
LEAK, RENYI = style.WRONG, style.SERIES[1]
SHADES = ("#8C1D0F", "#D4672B", "#4F6D8F", "#22252B")  # from a strict promise to none
LOW, HIGH = 0.03, 100.0
SPARSE = (0, (2, 2))
ORDERS = np.arange(2, 65)
BOLD: Any = {"weight": "bold"}
TOP: Any = {"va": "top", **BOLD}


def clip_effect(rows: Float[np.ndarray, "n p"], count: int = 48) -> pd.DataFrame:
    """Computes how clipping at ``count`` norms changes the mean gradient.

    Returns: columns at (the clip norm), length (of the mean of the clipped gradients, over that of
        the mean gradient), cosine (between the two), square (mean squared length of a clipped one).
    Guarantees: test_the_clip_figure_shows_length_and_direction.
    """
    at, norms, mean = np.geomspace(LOW, HIGH, count), np.linalg.norm(rows, axis=1), rows.mean(0)
    means = [np.minimum(1, c / norms) @ rows / len(rows) for c in at]
    lengths = np.array([np.linalg.norm(m) for m in means])
    size = float(np.linalg.norm(mean))
    cosine = np.array([m @ mean for m in means]) / (lengths * size)
    square = np.array([np.mean(np.minimum(c, norms) ** 2) for c in at])
    found = {"at": at, "length": lengths / size, "cosine": cosine, "square": square}
    return pd.DataFrame(found)


@style.paper()
def clip_cost(
    rows: Float[np.ndarray, "n p"],
    clip_norm: float = 1.0,
    noise_multiplier: float = 1.0,
    batch: float = 1024,
) -> style.Picture:
    """Draws gradient norms with a clip norm; below, length and direction of what is released.

    Args: rows: see `example_gradients`; clip_norm, noise_multiplier: of the release; batch:
        examples averaged in one release.
    Guarantees: test_the_clip_figure_shows_length_and_direction.
    """
    at, length, turned, _ = clip_effect(rows).to_numpy().T
    norms, size = np.linalg.norm(rows, axis=1), float(np.linalg.norm(rows.mean(0)))
    terms = [theory.clip_terms(rows, float(c), noise_multiplier, batch) for c in at]
    spread = np.array([term.sampling + term.noise for term in terms]) / size**2
    released = turned * length / np.sqrt(length**2 + spread)
    cut, best = float((norms > clip_norm).mean()), int(np.argmax(released))
    figure, (top, low) = style.panels(7.6, 5.3, (0.1, 0.655, 0.87, 0.265), (0.1, 0.1, 0.87, 0.43))
    counts, edges, bars = top.hist(norms, np.geomspace(LOW, HIGH, 43), edgecolor=style.CARD, lw=0.4)
    for bar, left in zip(bars, edges, strict=False):
        bar.set_facecolor(BIAS if left >= clip_norm else UNCUT)
    top.set(ylim=(0, 1.6 * counts.max()), ylabel="examples")
    top.set_title(f"The clip C = {clip_norm:g} shortens {cut:.0%} of the gradients")
    style.note(top, 0.988, 0.95, f"cut down to C: {cut:.0%}", BIAS, 9, ha="right", **TOP)
    style.note(top, 0.988, 0.8, f"kept as they are: {1 - cut:.0%}", size=9, ha="right", **TOP)
    low.plot(at, length, color=style.GREY, ls=style.DASHED)
    low.plot(at, turned, color=BIAS)
    low.plot(at, released, color=NOISE)
    low.plot([at[best]], [released[best]], marker="*", color=style.INK, ms=12, mec=style.CARD)
    low.set(ylim=(0, 1.22), ylabel="cosine, or length, relative\nto the mean gradient")
    low.set_xlabel(f"clip norm C (release: σ = {noise_multiplier:g}, batch {batch:,})")
    low.set_title("A low clip turns the mean gradient, a high one drowns it in noise")
    style.note(low, 0.165, 0.865, "cosine after the clip", BIAS, 9, **TOP)
    style.note(low, 0.165, 0.97, "with draw and noise, best at ★", NOISE, 9, **TOP)
    style.note(low, 0.55, 0.97, "dashed: length after the clip", style.SOFT, 9, **TOP)
    for ax in (top, low):
        ax.axvline(clip_norm, color=style.INK, lw=1.6)
        ax.set(xscale="log", xlim=(LOW, HIGH))
        style.log_axis(ax.xaxis, (0.1, 1, 10, 100))
    return figure


def _attacker(ax: Any, fpr: Any, best: Any, pair: Any) -> None:
    """Draws the best attack's true positive rate, and the bound of ε and δ alone."""
    ax.fill_between(fpr, pair, 1, color=LEAK, alpha=0.13, lw=0)
    ax.plot(fpr, pair, color=LEAK, ls=style.DASHED)
    ax.plot(fpr, best, color=style.INK)
    ax.plot(fpr, fpr, color=style.GREY, lw=1, ls=SPARSE)
    ax.set(xlim=(fpr[0], 1), ylim=(fpr[0], 1), xlabel="share of the others wrongly accused")
    ax.set_ylabel("share of the members found")
    style.note(ax, 0.03, 0.97, "forbidden", LEAK, 9, va="top", **BOLD)
    style.note(ax, 0.63, 0.52, "guessing", size=9, va="top")


@style.paper()
def two_normals(
    with_you: Float[np.ndarray, "n 2"], without_you: Float[np.ndarray, "n 2"], sigma: float
) -> style.Picture:
    """Draws outputs with and without one example, along their difference and across it.

    Args: with_you, without_you: each release along the direction of the example's clipped gradient
        and along another, in units of C; sigma: noise multiplier.
    """
    worlds = (without_you, style.WITHOUT, "without\nyou "), (with_you, style.WITH, " with\n you")
    figure, (ax, right) = style.row(10.2, 3.9, (0.16, 0.74), (0.065, 0.37), (0.525, 0.46))
    span = (-4 * sigma, 1 + 4 * sigma)
    x, edges = np.linspace(*span, 301), np.linspace(*span, 41)
    peak = float(norm.pdf(0, 0, sigma))
    for mean, (points, colour, words) in enumerate(worlds):
        style.dots(ax, points[:600, 0], points[:600, 1], colour, 3.2, alpha=0.5, mew=0)
        right.hist(points[:, 0], edges, density=True, color=colour, alpha=0.25)
        right.plot(x, norm.pdf(x, mean, sigma), color=colour)
        place = {"ha": "right" if mean == 0 else "left", **BOLD}
        right.text(mean + (2 * mean - 1) * sigma, 0.75 * peak, words, color=colour, **place)
    ax.set(xlim=span, ylim=(-4.5 * sigma, 4.5 * sigma), ylabel="along any other direction")
    ax.set_title("One direction tells, 4,095 do not")
    right.set(xlim=span, ylim=(0, 1.3 * peak), ylabel="probability density")
    right.set_title("Along it: two normals, one unit apart")
    for axes in (ax, right):
        axes.set_xlabel("along your clipped gradient, in units of C")
    count = f"{len(with_you):,} releases of each world (left: 600 of them)"
    style.footer(figure, f"{count}, σ = {sigma:g}; lines: theory")
    return figure


@style.paper()
def neighbouring_outputs(
    noise_multiplier: float = 1.0, epsilon: float = 1.0, attack: Any = None
) -> style.Picture:
    """Draws outputs with and without one example, and what ε leaves to an attacker.

    The shaded area, where one curve exceeds e^ε times the other, is δ.

    Args:
        noise_multiplier, epsilon: σ and ε.
        attack: false and true positive rates that were measured, drawn as dots.

    Guarantees: the shaded area is `theory.gdp_delta` (test_the_shaded_area_is_delta).
    """
    sigma, mu = noise_multiplier, theory.gaussian_mu(noise_multiplier)
    delta = theory.gdp_delta(mu, epsilon)
    x = np.linspace(-4.5 * sigma, 1 + 4.5 * sigma, 801)  # in units of C
    out, into = (norm.pdf(x, mean, sigma) for mean in (0, 1))
    allowed, peak = np.exp(epsilon) * out, float(out.max())
    figure, (ax, right) = style.row(10.2, 3.9, (0.16, 0.74), (0.065, 0.5), (0.66, 0.325))
    ax.fill_between(x, allowed, into, where=into > allowed, color=LEAK, alpha=0.3, lw=0)
    ax.plot(x, out, color=style.WITHOUT)
    ax.plot(x, into, color=style.WITH)
    ax.plot(x, allowed, color=style.WITHOUT, lw=1, ls=SPARSE)
    ax.set(xlim=(x[0], x[-1]), ylim=(0, 1.45 * peak), ylabel="probability density")
    ax.set_xlabel("released number, in units of the clip norm C")
    ax.set_title("δ is what sticks out above e^ε times the other world")
    ax.text(-1.05 * sigma, 0.74 * peak, "without\nyou ", color=style.WITHOUT, ha="right", **BOLD)
    ax.text(1 + sigma, 0.74 * peak, " with\n you", color=style.WITH, **BOLD)
    words = f"red area: δ = {delta:.3f}\nat ε = {epsilon:g}"
    style.note(ax, 0.98, 0.96, words, LEAK, 10, ha="right", **TOP)
    style.note(ax, 0.02, 0.96, "dashed: e^ε × without you", va="top")
    fpr = np.linspace(0, 1, 201)
    best, pair = norm.cdf(norm.ppf(fpr) + mu), theory.membership_bound(fpr, epsilon, delta)
    _attacker(right, fpr, best, pair)
    if attack is not None:
        style.dots(right, attack[0], attack[1], style.INK, 5)
    right.text(0.36, 0.63, "best\nattack", color=style.INK, fontsize=9, **TOP)
    right.set_title("ε and δ: two lines above the curve")
    return figure


WAYS = {
    "sum": ("adding the ε's", style.GREY, "-"),
    "rdp": ("Rényi", RENYI, "-"),
    "prv": ("PRV, the ledger's", style.INK, "-"),
    "clt": ("central limit: no bound", LEAK, (0, (1.5, 1.5))),
}


def composition_table(sigma: float, q: float, delta: float, steps: "list[int]") -> Any:
    """Computes ε after numbers of releases by four ways of composition.

    Args: sigma, q, delta: noise multiplier, sample rate and δ of a release; steps: how many.
    Returns: columns steps, way, epsilon. Ways: "sum" (each release by itself, δ split evenly, added
        up), "rdp" (Rényi), "prv" (the ledger's default, tight), "clt" (central limit: NO bound).
    """
    rows, one = [], theory.sampled_gaussian_rdp(ORDERS, q, sigma)
    plan = Privacy(noise_multiplier=sigma, sample_rate=q, delta=delta)
    for t in steps:
        ways = {
            "sum": t * theory.rdp_to_epsilon(ORDERS, one, delta / t)[0],
            "rdp": theory.rdp_to_epsilon(ORDERS, t * one, delta)[0],
            "prv": plan.ledger(t).epsilon(),
            "clt": theory.gdp_epsilon(theory.clt_mu(q, sigma, t), delta),
        }
        rows += [(t, way, value) for way, value in ways.items()]
    return pd.DataFrame(rows, columns=["steps", "way", "epsilon"])


@style.paper()
def composition(
    noise_multiplier: float = 3.0, sample_rate: float = 0.1, delta: float = 1e-6, steps: int = 512
) -> style.Picture:
    """Draws ε against the number of releases, counted in four ways, one of which is no bound.

    Args: noise_multiplier, sample_rate, delta: of each release; steps: releases, >= 8.
    Guarantees: the ends are the accountants' values (test_composition_ends_at_the_accountants).
    """
    check_whole("steps", steps, 8)
    at = sorted({max(1, round(steps * (i / 11) ** 2)) for i in range(12)})
    table: Any = composition_table(noise_multiplier, sample_rate, delta, at)
    table, labels = table.pivot(index="steps", columns="way", values="epsilon"), []
    top = 1.25 * float(table["rdp"].max())
    figure, (ax,) = style.panels(8.2, 4.1, (0.075, 0.14, 0.64, 0.77))
    for way, (words, colour, dash) in WAYS.items():
        end, width = float(table[way].iloc[-1]), 2.6 if way == "prv" else 1.8
        line = f"{words} {end:.2f}", colour
        labels.append(style.named_line(ax, at, table[way], *line, ls=dash, lw=width))
        if way == "sum":
            labels.pop()  # it leaves the axes
            cross = float(np.interp(0.93 * top, table[way], at)) + 0.015 * steps
            look: Any = {"color": style.SOFT, "fontsize": 8.5, "va": "center", **BOLD}
            ax.text(cross, 0.93 * top, f"{words}: {end:.0f} at the end", **look)
    ax.set(xlim=(0, steps), ylim=(0, top), xlabel="releases", ylabel=f"ε at δ = {delta:g}")
    ax.set_title("The ledger's bound is the tightest; the central limit states too little")
    words = f"each release: σ = {noise_multiplier:g}, q = {sample_rate:g}"
    style.note(ax, 0.985, 0.04, words, size=9, ha="right")
    style.draw_labels(ax, labels, together=False, wide=30)
    return figure


@style.paper()
def privacy_plan(
    unit: str = "example",
    noise_multiplier: float = 2.0,
    drawn: int = 16,
    of: int = 120,
    releases: int = 100,
) -> tuple[style.Picture, str]:
    """Draws ε at δ = 0.0001 over the releases of a plan, and the best attacker's success.

    Args:
        unit: "example" (drawn examples of a client's ``of``) or "client" (drawn clients of ``of``).
        noise_multiplier: of each release; drawn, of: see unit; releases: how many.

    Returns: the figure, and what it shows in words.
    Guarantees: ε is the ledger's (test_the_planner_states_the_ledgers_epsilon).
    """
    sigma, q, delta = noise_multiplier, min(1.0, drawn / of), 1e-4
    plan = Privacy(unit=unit, noise_multiplier=sigma, sample_rate=q, delta=delta)
    ledger = plan.ledger(releases)
    spent = ledger.epsilon()
    steps = np.unique([*np.geomspace(1, 1000, 14).round().astype(int), releases])
    one = theory.sampled_gaussian_rdp(ORDERS, q, sigma)
    bound = np.array([theory.rdp_to_epsilon(ORDERS, int(t) * one, delta)[0] for t in steps])
    fpr = np.geomspace(1e-3, 1, 60)
    allowed, loose = ledger.tradeoff(fpr), theory.membership_bound(fpr, spent, delta)
    figure, (ax, right) = style.row(8.4, 3.6, (0.16, 0.74), (0.075, 0.48), (0.66, 0.325))
    for axes in (ax, right):
        axes.set(xscale="log", yscale="log")
    ax.plot(steps, bound, color=RENYI, lw=1, ls=SPARSE)
    ax.plot(steps[steps <= releases], bound[steps <= releases], color=RENYI)
    style.dots(ax, [releases], [spent], style.INK, 8, clip_on=False)
    ax.set(xlim=(1, 1000), ylim=(0.05, 200), xlabel="releases", ylabel=f"ε at δ = {delta:g}")
    ax.set_title(f"{releases} releases spend ε = {spent:.2f} on one {unit}", y=1)
    style.note(ax, 0.02, 0.96, f"σ = {sigma:g}, q = {q:.2g}", style.INK, 10, va="top", **BOLD)
    style.note(ax, 0.02, 0.87, "line: Rényi bound, dot: PRV", va="top")
    _attacker(right, fpr, allowed, loose)
    style.dots(right, [1e-3], [float(allowed[0])], style.INK, 7, clip_on=False)
    right.set_title(f"1 in 1,000 accused: {allowed[0]:.1%} found", y=1)
    ticks = (1, 10, 100, 1000), (0.1, 1, 10, 100), *2 * ((0.001, 0.01, 0.1, 1),)
    for axis, places in zip((ax.xaxis, ax.yaxis, right.xaxis, right.yaxis), ticks, strict=True):
        style.log_axis(axis, places)
    who = "one example" if unit == "example" else "one client, with all its examples,"
    return figure, (
        f"{releases} releases, each of {drawn} out of {of} {unit}s (q = {q:.2g}), σ = {sigma:g}: "
        f"{who} is promised ε = {spent:.2f} at δ = {delta:g}. Wrongly accusing 1 in 1,000, an "
        f"attacker finds at most {allowed[0]:.1%} of the members (dashed: ε and δ alone say "
        f"{loose[0]:.1%})."
    )


@style.paper()
def attacks_by_budget(ledgers: Mapping[str, Ledger], lowest: float = 1e-3) -> style.Picture:
    """Draws the best attacker's success under some ledgers, and what ε and δ alone allow.

    Args: ledgers: words -> ledger; lowest: left and lower end of the axes, in (0, 0.1].
    Guarantees: the lines are the ledgers' (test_the_budgets_curves_are_the_ledgers).
    """
    fpr, labels = np.geomspace(lowest, 1, 200), []
    figure, (ax,) = style.panels(8.2, 4.6, (0.085, 0.15, 0.68, 0.77))
    ax.set(xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1.3))
    ax.plot(fpr, fpr, color=style.GREY, lw=1.2, ls=style.DOTTED)
    for colour, (words, ledger) in zip(SHADES, ledgers.items()):
        found, spent = ledger.tradeoff(fpr), ledger.epsilon()
        if np.isfinite(spent):
            loose = theory.membership_bound(fpr, spent, ledger.delta)
            ax.plot(fpr, loose, color=colour, lw=1.2, ls=style.DASHED)
        ax.plot(fpr, found, color=colour, lw=2)
        labels.append(style.Label(0.01, float(np.interp(0.01, fpr, found)), words, colour))
    ax.axvline(0.01, color=style.FAINT, lw=1, zorder=0)
    for label in labels:
        style.dots(ax, [label.x], [label.y], label.colour, 7)
    pairs = {
        words: theory.membership_bound(np.array([0.01]), ledger.epsilon(), ledger.delta)[0]
        for words, ledger in ledgers.items()
        if np.isfinite(ledger.epsilon())
    }
    words, loosest = max(pairs.items(), key=lambda pair: pair[1])
    colour = SHADES[[*ledgers].index(words)]
    words = f"{words}, pair alone: {loosest:.0%} (dashed)"
    style.note(ax, 0.02, 0.905, words, colour, 8.5, weight="bold")
    style.note(ax, 0.22, 0.13, "guessing", size=8.5, rotation=36, ha="center", va="center")
    ax.set(xlabel="share of others accused (FPR)", ylabel="share of members found (TPR)")
    for axis in (ax.xaxis, ax.yaxis):
        style.log_axis(axis, tuple(tick for tick in (0.001, 0.01, 0.1, 1) if tick >= lowest))
    texts = [f"{one.text}: {one.y:.1%}" for one in labels]
    labels = [one._replace(x=1.0, text=text) for one, text in zip(labels, texts, strict=True)]
    style.draw_labels(ax, labels, together=False, wide=16)
    ax.set_title("The composed curve allows far less than ε and δ alone")
    dots = "dots, numbers: where 1 % of the others are accused"
    style.footer(figure, f"lines: composed privacy loss; dashed: all that ε and δ say; {dots}")
    return figure


@style.paper()
def accuracy_by_setting(
    frames: Mapping[str, Mapping[str, pd.DataFrame]], titles: Mapping[str, str], start: float
) -> style.Picture:
    """Draws accuracies after the last round, a dot a setting, with 95 % intervals over seeds.

    Args: frames: panel -> setting -> tidy frame; titles: panel -> its title; start: the accuracy
        before training.
    Guarantees: the dots are the means over seeds (test_the_accuracies_are_the_means).
    """
    figure, axes = style.row(10.2, 3.7, (0.16, 0.73), (0.07, 0.42), (0.57, 0.42))
    shown: Any = None
    for ax, (panel, settings) in zip(axes, frames.items(), strict=True):
        for place, frame in enumerate(settings.values()):
            shown = tidy.select_measure(frame[frame["round"] == frame["round"].max()], "accuracy")
            low, high = tidy.confidence_interval(shown["value"])
            ax.vlines(place, low, high, color=NOISE, lw=2.2)
            style.dots(ax, [place], [shown["value"].mean()], NOISE, 8)
        ax.axhline(start, color=style.GREY, lw=1.2, ls=style.DOTTED)
        ax.set_xticks(range(len(settings)), list(settings))
        ax.set(xlim=(-0.5, len(settings) - 0.5), ylim=(0.55, 0.95), ylabel="accuracy")
        ax.set_title(titles[panel])
    style.note(axes[0], 0.02, 0.1, "dotted: before training")
    count = shown["seed"].nunique()
    style.footer(figure, f"dots: means over {count} seeds, bars: 95 % interval (Student's t)")
    return figure


def example_gradients(record: "Round") -> Float[np.ndarray, "n p"]:
    """Computes every private example's gradient at a record's global adapter, before any clip.

    Args: record: as `run` yields it.
    Returns: (n, p), clients one after the other; p counts the numbers that a release would carry.
    Guarantees: the mean row is the gradient of the mean loss
        (test_example_gradients_average_to_the_gradient).
    """
    source = record.source
    check(source is not None, "record", "a copy without its task", "a record as run() yields it")
    task, lora, state = source  # type: ignore[misc]
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
    moving = tuple(key for key in adapted.places if key.side in "AB")
    params = {key: tensor[None] for key, tensor in state.tensors.items()}
    (x, y), parts = concatenate(task.clients), []
    for index in torch.arange(len(y)).split(256):
        data, client = (take(x, index), y[index]), torch.zeros_like(index)
        rows = per_example.per_example_gradients(task, adapted, params, moving, data, client)
        parts.append(torch.cat([tensor.flatten(1) for tensor in rows.values()], 1))
    return torch.cat(parts).numpy()


def two_worlds() -> Dial:
    """Makes a dial for σ, C, q, releases and ε: both outputs, the attacker's curve, and δ(ε).

    For q = 1 everything is closed form; otherwise the browser composes the privacy loss on a grid.

    Guarantees: the curve is the ledger's (tests/browser/test_dials.py::test_the_composed_loss).
    """
    about = "Two worlds, with and without one example: the laws of what is released, the best "
    about += "attacker's curve, and δ at every ε."
    return Dial(3, "two_worlds", about, sigma=1.0, C=1.0, q=1, N=1, epsilon=1.0)


def clip_explorer(rows: Any) -> Dial:
    """Makes a dial for clip norm, noise and batch: gradient norms and the cost of the clip.

    What 36 clip norms do is worked out here, once, and sent with at most 500 of the norms.

    Args: rows: (n, p), one example's gradient each.
    """
    rows = np.asarray(rows, float)
    effect, norms = clip_effect(rows, 36), np.sort(np.linalg.norm(rows, axis=1))
    shown = np.linspace(0, len(norms) - 1, min(len(norms), 500)).astype(int)
    data = {
        "norms": round_to_digits(norms[shown]),
        **{str(name): round_to_digits(values) for name, values in effect.items()},
        "mean": float(np.linalg.norm(rows.mean(0))),
        "count": len(rows),
        "numbers": rows.shape[1],
    }
    about = (
        "What the clip does to the mean gradient: too low turns it, too high drowns it in noise."
    )
    values = {"clip_norm": 1.0, "noise_multiplier": 1.0, "batch": 1024}
    return Dial(3, "clip_explorer", about, data, **values)


def privacy_planner() -> Dial:
    """Makes a dial for a plan's unit, noise, draw and releases: ε and the attacker's success.

    Guarantees: ε is the ledger's (tests/browser/test_dials.py::test_the_composed_loss).
    """
    values = {"unit": "example", "noise_multiplier": 2.0, "drawn": 16, "of": 120, "releases": 100}
    about = "A plan's ε at δ = 0.0001 over its releases, and what that leaves to an attacker."
    return Dial(3, "privacy_planner", about, **values)
