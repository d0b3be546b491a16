"""What (ε, δ) says: two overlapping worlds, what an attacker may find, how releases add up."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from fedlora_lab import theory
from fedlora_lab.checks import check_whole
from fedlora_lab.plots import tidy
from fedlora_lab.plots.clipping import log_axis
from fedlora_lab.plots.curves import footer, frame_axes
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, GREY, INK, SOFT, Picture, paper, picture
from fedlora_lab.privacy import Privacy

WITH, WITHOUT, LEAK, SAFE = "#B0486A", "#4F6D8F", "#B3261E", "#0F7F94"
ORDERS = np.arange(2, 65)
SHADES = ("#8C1D0F", "#D4672B", "#4F6D8F", "#22252B")  # from a strict promise to none


def _attacker(ax: Any, fpr: Any, allowed: Any, at: float, found: float) -> None:
    """What share of the members an attacker may find, against the share of others that are wrongly accused."""
    ax.fill_between(fpr, allowed, 1, color=LEAK, alpha=0.13, lw=0)
    ax.plot(fpr, allowed, color=LEAK)
    ax.plot(fpr, fpr, color=GREY, lw=1, ls=(0, (2, 2)))
    ax.plot([at], [found], "o", color=LEAK, mec=CARD, ms=7, clip_on=False)
    ax.set(xlim=(fpr[0], 1), ylim=(fpr[0], 1), xlabel="share of the others wrongly accused")
    ax.set_ylabel("share of the members found")
    words = {"transform": ax.transAxes, "fontsize": 9}
    ax.text(0.03, 0.97, "forbidden", color=LEAK, weight="bold", va="top", **words)
    ax.text(0.63, 0.52, "guessing", color=SOFT, va="top", **words)


def worlds(noise_multiplier: float = 1.0, epsilon: float = 1.0) -> Picture:
    """The released number with and without one example, in units of C; and what the promise leaves to an attacker.

    The shaded area, where one curve exceeds e^ε times the other, is δ.

    Args: noise_multiplier: σ > 0. epsilon: >= 0.
    Guarantees: the shaded area is `theory.gdp_delta` (test_the_shaded_area_is_delta).
    """
    delta = theory.gdp_delta(theory.gaussian_mu(noise_multiplier), epsilon)
    x, out, into = densities(noise_multiplier)
    with paper():
        figure = picture(10.2, 3.9)
        ax, right = figure.add_axes((0.065, 0.16, 0.5, 0.74)), figure.add_axes((0.66, 0.16, 0.325, 0.74))
        ax.fill_between(x, np.exp(epsilon) * out, into, where=into > np.exp(epsilon) * out, color=LEAK, alpha=0.3, lw=0)
        ax.plot(x, out, color=WITHOUT)
        ax.plot(x, into, color=WITH)
        ax.plot(x, np.exp(epsilon) * out, color=WITHOUT, lw=1, ls=(0, (2, 2)))
        peak = float(out.max())
        ax.set(xlim=(x[0], x[-1]), ylim=(0, 1.45 * peak))
        ax.set_xlabel("released number, in units of the clip threshold C")
        ax.set_ylabel("probability density")
        ax.set_title(f"Two worlds, one example apart (σ = {noise_multiplier:g})")
        ax.text(-1.05 * noise_multiplier, 0.74 * peak, "without\nyou ", color=WITHOUT, ha="right", weight="bold")
        ax.text(1 + 1.0 * noise_multiplier, 0.74 * peak, " with\n you", color=WITH, weight="bold")
        ax.text(0.98, 0.96, f"red area: δ = {delta:.3f}\nat ε = {epsilon:g}", transform=ax.transAxes, color=LEAK,
                ha="right", va="top", weight="bold")  # fmt: skip
        ax.text(0.02, 0.96, "dashed: e^ε × without you", transform=ax.transAxes, color=SOFT, fontsize=8, va="top")
        found = theory.membership_bound(np.array([0.1]), epsilon, delta).item()
        fpr = np.linspace(0, 1, 201)
        _attacker(right, fpr, theory.membership_bound(fpr, epsilon, delta), 0.1, found)
        right.plot(fpr, ndtr(ndtri(fpr) + theory.gaussian_mu(noise_multiplier)), color=INK, lw=1.4)
        right.text(0.34, 0.66, "best\nattack", color=INK, fontsize=9, weight="bold", va="top")
        right.set_title("What an attacker can do")
    return figure


def densities(noise_multiplier: float) -> tuple[Any, Any, Any]:
    """Places x in units of C, and the densities there without and with the example, (n,) each."""
    x = np.linspace(-4.5 * noise_multiplier, 1 + 4.5 * noise_multiplier, 801)
    out, into = (
        np.exp(-(((x - m) / noise_multiplier) ** 2) / 2) / noise_multiplier / np.sqrt(2 * np.pi) for m in (0, 1)
    )
    return x, out, into


def composed(sigma: float, q: float, delta: float, steps: "list[int]", tight: bool = True) -> Any:
    """ε after some numbers of releases by each way of counting: columns steps, way, epsilon.

    Ways: "sum" (each release by itself, δ split evenly, added up), "old" and "rdp" (Rényi, older and newer conversion),
    "prv" (the ledger's default, tight), "clt" (central limit: NO bound).
    """
    rows = []
    one = theory.sampled_gaussian_rdp(ORDERS, q, sigma)
    plan = Privacy(noise_multiplier=sigma, sample_rate=q, delta=delta)
    for t in steps:
        single = theory.rdp_to_epsilon(ORDERS, one, delta / t)[0]
        ways = {
            "sum": t * single,
            "old": theory.rdp_to_epsilon_classical(ORDERS, t * one, delta)[0],
            "rdp": theory.rdp_to_epsilon(ORDERS, t * one, delta)[0],
            "clt": theory.gdp_epsilon(theory.clt_mu(q, sigma, t), delta),
        }
        ways |= {"prv": plan.ledger(t).epsilon()} if tight else {}
        rows += [(t, way, value) for way, value in ways.items()]
    return pd.DataFrame(rows, columns=["steps", "way", "epsilon"])


WAYS = {
    "sum": ("adding the ε's", GREY, "-"),
    "old": ("Rényi, old conversion", "#7A4FD0", (0, (4, 1.5))),
    "rdp": ("Rényi", "#7A4FD0", "-"),
    "prv": ("PRV, the ledger's", INK, "-"),
    "clt": ("central limit: no bound", LEAK, (0, (1.5, 1.5))),
}


def composition(
    noise_multiplier: float = 3.0, sample_rate: float = 0.1, delta: float = 1e-6, steps: int = 512
) -> Picture:
    """ε against the number of releases, counted in five ways; the way that is no bound is marked as such.

    Guarantees: the ends are the accountants' values (test_composition_ends_at_the_accountants).
    """
    check_whole("steps", steps, 8)
    at = sorted({max(1, round(steps * (i / 11) ** 2)) for i in range(12)})
    table = composed(noise_multiplier, sample_rate, delta, at)
    top = 1.25 * float(table[table["way"] == "old"]["epsilon"].max())
    with paper():
        figure = picture(8.2, 4.1)
        ax = figure.add_axes((0.075, 0.14, 0.64, 0.77))
        labels = []
        for way, (words, colour, dash) in WAYS.items():
            part = table[table["way"] == way]
            ax.plot(part["steps"], part["epsilon"], color=colour, ls=dash, lw=2.6 if way == "prv" else 1.8)
            if way == "sum":
                cross = float(np.interp(0.93 * top, part["epsilon"], part["steps"]))
                ax.text(cross + 0.015 * steps, 0.93 * top, f"{words}: {part['epsilon'].iloc[-1]:.0f} at the end",
                        color=SOFT, fontsize=8.5, weight="bold", va="center")  # fmt: skip
            else:
                end = float(part["epsilon"].iloc[-1])
                labels.append(Label(steps, end, f"{words} {end:.2f}", colour))
        ax.set(xlim=(0, steps), ylim=(0, top), xlabel="releases", ylabel=f"ε at δ = {delta:g}")
        ax.set_title(f"One plan, five ways to count (σ = {noise_multiplier:g}, q = {sample_rate:g})")
        beside(ax, labels, together=False, wide=30)
    return figure


def planner(
    unit: str = "example", noise_multiplier: float = 2.0, drawn: int = 16, of: int = 120, releases: int = 100,
    delta: float = 1e-4,
) -> tuple[Picture, str]:  # fmt: skip
    """ε over the releases of a plan, and what that ε leaves to an attacker; the figure, and the same in words.

    Args: unit: "example" (drawn examples of a client's ``of``) or "client" (drawn clients of ``of``).
    Guarantees: ε is the ledger's (test_the_planner_states_the_ledgers_epsilon).
    """
    q = min(1.0, drawn / of)
    spent = Privacy(unit=unit, noise_multiplier=noise_multiplier, sample_rate=q, delta=delta).ledger(releases).epsilon()
    steps = np.unique([*np.geomspace(1, 1000, 14).round().astype(int), releases])
    one = theory.sampled_gaussian_rdp(ORDERS, q, noise_multiplier)
    bound = np.array([theory.rdp_to_epsilon(ORDERS, int(t) * one, delta)[0] for t in steps])
    fpr = np.geomspace(1e-3, 1, 60)
    allowed = theory.membership_bound(fpr, spent, delta)
    found = float(allowed[0])
    with paper():
        figure = picture(8.4, 3.6)
        ax, right = figure.add_axes((0.075, 0.16, 0.48, 0.74)), figure.add_axes((0.66, 0.16, 0.325, 0.74))
        ax.plot(steps, bound, color="#7A4FD0", lw=1, ls=(0, (2, 2)))
        ax.plot(steps[steps <= releases], bound[steps <= releases], color="#7A4FD0")
        ax.plot([releases], [spent], "o", color=INK, ms=8, mec=CARD, clip_on=False)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set(xlim=(1, 1000), ylim=(0.05, 200), xlabel="releases", ylabel=f"ε at δ = {delta:g}")
        log_axis(ax.xaxis, (1, 10, 100, 1000))
        log_axis(ax.yaxis, (0.1, 1, 10, 100))
        ax.set_title(f"Spent on one {unit} (σ = {noise_multiplier:g}, q = {q:.2g})", y=1)
        ax.text(
            0.02, 0.96, f"ε = {spent:.2f} after {releases} releases", transform=ax.transAxes, weight="bold", va="top"
        )
        ax.text(0.02, 0.87, "line: Rényi bound, dot: PRV", transform=ax.transAxes, color=SOFT, fontsize=8, va="top")
        right.set_xscale("log")
        right.set_yscale("log")
        _attacker(right, fpr, allowed, 1e-3, found)
        log_axis(right.xaxis, (0.001, 0.01, 0.1, 1))
        log_axis(right.yaxis, (0.001, 0.01, 0.1, 1))
        right.set_title("What this leaves to an attacker", y=1)
    who = "one example" if unit == "example" else "one client, with all its examples,"
    text = (
        f"{releases} releases, each of {drawn} out of {of} {unit}s (q = {q:.2g}), σ = {noise_multiplier:g}: {who} is "
        f"promised ε = {spent:.2f} at δ = {delta:g}. Wrongly accusing 1 in 1,000, an attacker finds at most "
        f"{found:.1%} of the members."
    )
    return figure, text


def promises(frames: Mapping[float, pd.DataFrame]) -> Picture:
    """Accuracy and ε spent over the rounds, one line for each ε that a plan was calibrated for, 95 % bands.

    Args: frames: target ε -> tidy frame of one method.
    Guarantees: the lines are the means over seeds (test_promises_draw_the_means).
    """
    named: Any = pd.concat(
        [frame.assign(method=f"ε = {target:g}") for target, frame in frames.items()], ignore_index=True
    )
    accuracy, spent = tidy.rows(named, "accuracy"), tidy.rows(named, "epsilon")
    with paper():
        figure = picture(10.2, 3.9)
        left, right = figure.add_axes((0.065, 0.17, 0.36, 0.73)), figure.add_axes((0.58, 0.17, 0.32, 0.73))
        for ax, part, column in ((left, accuracy, "accuracy"), (right, spent, "epsilon")):
            labels = []
            for colour, (words, line) in zip(SHADES, part.groupby("method", sort=False), strict=False):
                means = line.groupby("round")["value"].mean()
                low, high = zip(*(tidy.band(values) for _, values in line.groupby("round")["value"]), strict=True)
                ax.fill_between(means.index, low, high, color=colour, alpha=0.12, lw=0)
                ax.plot(means.index, means, color=colour)
                labels.append(Label(float(means.index[-1]), float(means.iloc[-1]), str(words), colour))
            frame_axes(ax, part, column)
            beside(ax, labels)
        left.set_title("What the promise costs")
        right.set_title("What has been spent")
        footer(figure, tidy.seeds(accuracy))
    return figure
