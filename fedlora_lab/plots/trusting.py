"""Whom one trusts, in pictures: noise and epsilon by who sees what, colluders, masks, rounding, accuracy."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from fedlora_lab import theory
from fedlora_lab.audit.game import DELTA, multiplier
from fedlora_lab.checks import check, check_one_of, check_whole
from fedlora_lab.plots.clipping import log_axis
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, FAINT, GREY, INK, RIGHT, SOFT, WRONG, Picture, paper, picture
from fedlora_lab.plots.tidy import band

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.masks import Unmasked

TRUSTS = {"local": "nobody", "secagg": "the masks", "central": "the server"}
COLOURS = {"local": "#B0486A", "secagg": "#7A4FD0", "central": "#0F7F94"}
EPSILONS = (0.03, 300.0)


def facing(trust: str, sigma: float, clients: int, colluders: int) -> dict[str, float]:
    """Epsilon of one release for who sees it: the public, the server, the server together with some clients.

    Args: as of `theory.trust_level`; colluders: clients that tell the server their own noise, below ``clients``.
    Returns: who -> epsilon at 1e-5; infinite for who sees an upload without noise.
    Guarantees: test_lesson_13.py::test_who_faces_what.
    """
    check_one_of("trust", trust, tuple(TRUSTS))
    check_whole("clients", clients, 2)
    check_whole("colluders", colluders, 0, clients - 1)
    stated = theory.gdp_epsilon(1 / sigma, DELTA)
    if trust == "central":
        return {"public": stated, "server": math.inf, "together": math.inf}
    if trust == "local":
        return {
            "public": theory.gdp_epsilon(1 / sigma / math.sqrt(clients), DELTA),
            "server": stated,
            "together": stated,
        }
    left = theory.surviving_multiplier(sigma, clients, clients - colluders)
    return {"public": stated, "server": stated, "together": theory.gdp_epsilon(1 / left, DELTA)}


def trust_picker(
    trust: str = "secagg", clients: int = 50, epsilon: float = 2.0, colluders: int = 10
) -> tuple[Picture, str]:
    """The same promise under three kinds of trust: noise on the mean, and who faces which epsilon.

    Args: trust: "local", "secagg" or "central"; clients: >= 2; epsilon: promised, for one release; colluders: >= 0.
    Returns: the figure, its axes the same whatever the numbers, and a sentence.
    Guarantees: test_lesson_13.py::test_the_picker_says_what_it_shows.
    """
    colluders = min(colluders, clients - 1)
    sigma = multiplier(epsilon)
    faced = facing(trust, sigma, clients, colluders)
    levels = {kind: theory.trust_level(kind, sigma, 1.0, clients) for kind in TRUSTS}
    with paper():
        figure = picture(9.6, 3.1)
        left, right = figure.add_axes((0.16, 0.2, 0.3, 0.66)), figure.add_axes((0.665, 0.2, 0.315, 0.66))
        for row, (kind, words) in enumerate(TRUSTS.items()):
            chosen = kind == trust
            ink = COLOURS[kind] if chosen else FAINT
            left.barh(row, levels[kind].mean, left=1e-4, color=ink, height=0.55)
            left.text(levels[kind].mean * 1.15, row, f"{levels[kind].mean:.2g} C", va="center", fontsize=9,
                      color=INK if chosen else SOFT, weight="bold" if chosen else "normal")  # fmt: skip
            left.text(-0.03, row, f"{kind}\ntrust {words}", va="center", ha="right", fontsize=8.5,
                      color=INK if chosen else SOFT, transform=left.get_yaxis_transform())  # fmt: skip
        left.set(xscale="log", xlim=(1e-4, 100), ylim=(2.6, -0.6), yticks=[], xlabel="noise on the mean update")
        log_axis(left.xaxis, (0.001, 0.01, 0.1, 1, 10))
        left.set_title("Same promise, other noise")
        names = ("who sees the model", "the server", f"the server and\n{colluders} of {clients} clients")
        for row, (words, value) in enumerate(zip(names, faced.values(), strict=True)):
            end = min(value, EPSILONS[1])
            ink = RIGHT if value <= epsilon * (1 + 1e-6) else WRONG
            right.barh(row, end, left=EPSILONS[0], color=ink, height=0.55)
            told = f"{value:.2f}" if math.isfinite(value) else "everything"
            inside = end > 20
            right.text(end * (0.85 if inside else 1.15), row, told, va="center", ha="right" if inside else "left",
                       fontsize=9, weight="bold", color=CARD if inside else ink)  # fmt: skip
            right.text(-0.03, row, words, va="center", ha="right", fontsize=8.5, color=INK,
                       transform=right.get_yaxis_transform())  # fmt: skip
        right.axvline(epsilon, color=INK, lw=1, ls=(0, (3, 2)))
        right.set(xscale="log", xlim=EPSILONS, ylim=(2.6, -0.6), yticks=[], xlabel="ε (dashed: promised)")
        log_axis(right.xaxis, (0.1, 1, 10, 100))
        right.set_title("Who faces which ε")
        for ax in (left, right):
            ax.grid(visible=False, axis="y")
    return figure, _words(trust, clients, epsilon, colluders, faced, levels)


def _words(
    trust: str, clients: int, epsilon: float, colluders: int, faced: dict[str, float], levels: dict[str, Any]
) -> str:
    own = levels[trust]
    adds = f"each client adds {own.each:.2g} C" if own.each else f"which adds {own.server:.2g} C to the sum"
    start = (
        f"ε = {epsilon:g} for {clients} clients, trust in {TRUSTS[trust]}: {adds}; the mean carries {own.mean:.2g} C"
    )
    if trust == "central":
        return f"{start}. The server sees every update as it is."
    if trust == "local":
        more = own.mean / levels["central"].mean
        return f"{start}, {more:.2g} times what a trusted server needs. Nobody faces more than {epsilon:g}."
    return f"{start}. With {colluders} clients on its side the server faces {faced['together']:.2f}."


def collusion(clients: int = 50, epsilon: float = 2.0, relied: Sequence[int] = (50, 25)) -> Picture:
    """Epsilon against a server with colluders under secure aggregation, by how many honest clients the noise relies on.

    Args: relied: numbers of honest noise shares that together make up sigma C.
    Guarantees: test_lesson_13.py::test_the_collusion_lines.
    """
    sigma, counts = multiplier(epsilon), np.arange(clients)
    with paper():
        figure = picture(8.2, 3.7)
        ax = figure.add_axes((0.08, 0.15, 0.68, 0.74))
        labels = []
        for shares, colour in zip(relied, (COLOURS["secagg"], RIGHT, GREY), strict=False):
            left = [theory.surviving_multiplier(sigma, shares, clients - int(c)) for c in counts]
            values = [theory.gdp_epsilon(1 / each, DELTA) for each in left]
            ax.plot(counts, values, color=colour, lw=2.2)
            labels.append(Label(clients - 1, min(values[-1], 30), f"noise relies on {shares}", colour))
        ax.axhline(epsilon, color=INK, lw=1, ls=(0, (3, 2)))
        ax.text(clients - 1.5, epsilon / 1.05, f"promised: {epsilon:g}", color=INK, fontsize=8.5, ha="right", va="top")
        ax.set(yscale="log", xlim=(0, clients - 1), ylim=(0.5, 30))
        ax.set(xlabel=f"clients of {clients} that tell the server their noise", ylabel="ε that the others face")
        log_axis(ax.yaxis, (0.5, 1, 2, 5, 10, 20))
        ax.set_title("Only honest clients' noise counts")
        beside(ax, labels, together=False)
    return figure


def masked(updates: Float[np.ndarray, "clients d"], opened: "Unmasked") -> Picture:
    """One client's numbers beside what the server received of them, and the opened sum beside the true one.

    Guarantees: every number is a dot (test_lesson_13.py::test_the_masked_figure).
    """
    who = opened.arrived[0]
    true = updates[list(opened.arrived)].sum(0)
    with paper():
        figure = picture(8.8, 3.7)
        left, right = figure.add_axes((0.075, 0.15, 0.39, 0.73)), figure.add_axes((0.59, 0.15, 0.39, 0.73))
        left.plot(updates[who], opened.uploads[0] / opened.grid.modulus, "o", ms=2.4, mew=0, color=COLOURS["secagg"],
                  alpha=0.5)  # fmt: skip
        left.set(ylim=(-0.02, 1.02), xlabel="a number of one client's update", ylabel="received, share of the modulus")
        left.set_title("One upload tells nothing")
        right.plot(true, opened.total, "o", ms=2.6, mew=0, color=RIGHT, alpha=0.7)
        right.set(xlabel=f"true sum of the {len(opened.arrived)} that arrived", ylabel="sum that the server opens")
        right.set_title("The sum is right")
    return figure


def rounding(noise_multiplier: float = 2.0, clients: int = 10, steps: Sequence[float] = ()) -> Picture:
    """Epsilon of one rounded number over the width of the steps, beside the ledger's.

    Guarantees: dots are `theory.rounded_epsilon` (test_lesson_13.py::test_the_rounding_figure).
    """
    wide = tuple(steps) or tuple(float(x) for x in np.geomspace(0.003, 3, 13))
    values = [theory.rounded_epsilon(noise_multiplier, step, clients, DELTA) for step in wide]
    stated = theory.gdp_epsilon(1 / noise_multiplier, DELTA)
    with paper():
        figure = picture(8.2, 3.5)
        ax = figure.add_axes((0.08, 0.16, 0.68, 0.72))
        ax.axhline(stated, color=INK, lw=1.2, ls=(0, (3, 2)))
        ax.plot(wide, values, "o-", color=COLOURS["secagg"], mec=CARD)
        ax.set(xscale="log", ylim=(0, 1.25 * max(stated, *(v for v in values if math.isfinite(v)))))
        ax.set(xlabel="width of a step of the grid, in units of C", ylabel="ε of one number")
        log_axis(ax.xaxis, (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3))
        ax.set_title("Every client rounds for itself: on a fine grid nearly the same ε")
        ends = (stated, "the ledger's,\nof real numbers", INK), (values[-1], "of rounded ones", COLOURS["secagg"])
        beside(ax, [Label(wide[-1], *end) for end in ends], together=False)
    return figure


def trusts(frame: "pd.DataFrame", start: float | None = None) -> Picture:
    """Accuracy after the last round under each kind of trust: a dot a seed, the mean, its 95 % interval.

    Args: frame: tidy, with a column trust; start: accuracy before training.
    Guarantees: means are those of the frame (test_lesson_13.py::test_the_accuracies_are_drawn).
    """
    part: Any = frame[(frame["measure"] == "accuracy") & (frame["round"] == frame["round"].max())]
    check(len(part) > 0, "frame", f"{len(frame)} rows", "some with the accuracy of the last round")
    with paper():
        figure = picture(7.6, 2.9)
        ax = figure.add_axes((0.27, 0.2, 0.61, 0.66))
        for row, kind in enumerate(dict.fromkeys(part["trust"])):
            values = part[part["trust"] == kind]["value"].to_numpy()
            low, high = band(values)
            ax.plot([low, high], [row, row], color=COLOURS[kind], lw=7, alpha=0.25, solid_capstyle="butt")
            ax.plot(values, np.full(len(values), row), "o", ms=4, color=COLOURS[kind], mew=0, alpha=0.6)
            ax.plot([values.mean()], [row], "D", ms=7, color=COLOURS[kind], mec=CARD)
            ax.text(1.02, row, f"{values.mean():.1%}", color=COLOURS[kind], weight="bold", va="center",
                    transform=ax.get_yaxis_transform())  # fmt: skip
            ax.text(-0.03, row, f"{kind}: trust {TRUSTS[kind]}", color=INK, ha="right", va="center", fontsize=9,
                    transform=ax.get_yaxis_transform())  # fmt: skip
        if start is not None:
            ax.axvline(start, color=GREY, lw=1, ls=(0, (1, 2)))
            ax.text(start, 2.75, " before training", fontsize=8, color=SOFT, va="bottom")
        ax.set(ylim=(2.8, -0.6), yticks=[], xlabel="share of test digits right")
        ax.grid(visible=False, axis="y")
        ax.set_title("The same ε = 8 for every client")
        footer(figure, f"dots: {part['seed'].nunique()} seeds; diamonds: mean; bars: its 95 % interval")
    return figure
