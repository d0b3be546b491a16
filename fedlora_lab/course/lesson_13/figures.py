"""Figures of notebook 13: noise and ε by observer, colluding clients, masks and rounding."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from fedlora_lab import theory
from fedlora_lab._utils.validation import check, check_one_of, check_whole
from fedlora_lab.audit.bounds import DELTA, gaussian_noise_multiplier
from fedlora_lab.course.widgets.dial import Dial
from fedlora_lab.plots import style
from fedlora_lab.plots.training_curves import accuracy_row

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.course.secagg_demo import SecAggResult

TRUSTS = {"local": "nobody", "secagg": "secure aggregation", "central": "the server"}
COLOURS = {"local": style.WITH, "secagg": style.SERIES[1], "central": style.SERIES[0]}
EPSILONS = (0.03, 300.0)
PROMISE = (0, (3, 2))


def epsilon_by_observer(trust: str, sigma: float, clients: int, colluders: int) -> dict[str, float]:
    """Computes ε of a release for the public, the server, and the server with some clients.

    Args: trust, sigma, clients: as of `theory.trust_level`; colluders: clients that tell the server
        their own noise, below ``clients``.
    Returns: who -> epsilon at 1e-5; infinite for who sees an upload without noise.
    Guarantees: test_lesson_13.py::test_the_epsilon_by_observer.
    """
    check_one_of("trust", trust, tuple(TRUSTS))
    check_whole("clients", clients, 2)
    check_whole("colluders", colluders, 0, clients - 1)
    stated = theory.gdp_epsilon(1 / sigma, DELTA)
    public, server, together = stated, stated, stated
    if trust == "central":
        server = together = math.inf
    elif trust == "local":
        public = theory.gdp_epsilon(1 / sigma / math.sqrt(clients), DELTA)
    else:
        left = theory.surviving_multiplier(sigma, clients, clients - colluders)
        together = theory.gdp_epsilon(1 / left, DELTA)
    return {"public": public, "server": server, "together": together}


@style.paper()
def trust_comparison(
    trust: str = "secagg", clients: int = 50, epsilon: float = 2.0, colluders: int = 10
) -> style.Picture:
    """Draws one promise under three kinds of trust: noise on the mean, each observer's ε.

    Args: trust: "local", "secagg" or "central"; clients: >= 2; epsilon: promised, for one release;
        colluders: >= 0.
    Returns: the figure, its axes the same whatever the numbers.
    Guarantees: test_lesson_13.py::test_the_comparison_shows_noise_and_epsilon.
    """
    colluders = min(colluders, clients - 1)
    sigma = gaussian_noise_multiplier(epsilon)
    faced = epsilon_by_observer(trust, sigma, clients, colluders)
    levels = {kind: theory.trust_level(kind, sigma, 1.0, clients) for kind in TRUSTS}
    figure, (left, right) = style.row(9.6, 3.1, (0.2, 0.66), (0.18, 0.28), (0.665, 0.315))
    put: Any = {"va": "center", "fontsize": 9}
    for row, kind in enumerate(TRUSTS):
        own, mean = kind == trust, levels[kind].mean
        ink, weight = (style.INK, "bold") if own else (style.SOFT, "normal")
        colour = COLOURS[kind] if own else style.FAINT
        left.barh(row, mean, left=1e-4, color=colour, height=0.55)
        left.text(mean * 1.15, row, f"{mean:.2g} C", weight=weight, color=ink, **put)
    left.set_yticks(range(3), [f"{kind}\ntrust {words}" for kind, words in TRUSTS.items()])
    left.get_yticklabels()[list(TRUSTS).index(trust)].set_color(style.INK)
    left.set(xlim=(1e-4, 100), xlabel="noise on the mean update", title="Same promise, other noise")
    others = f"the server and\n{colluders} of {clients} clients"
    right.set_yticks(range(3), ["who sees the model", "the server", others], color=style.INK)
    for row, value in enumerate(faced.values()):
        end = min(value, EPSILONS[1])
        ink = style.RIGHT if value <= epsilon * (1 + 1e-6) else style.WRONG
        right.barh(row, end, left=EPSILONS[0], color=ink, height=0.55)
        text = f"{value:.2f}" if math.isfinite(value) else "everything"
        far, side, colour = (0.85, "right", style.CARD) if end > 20 else (1.15, "left", ink)
        right.text(end * far, row, text, ha=side, weight="bold", color=colour, **put)
    right.axvline(epsilon, color=style.INK, lw=1, ls=PROMISE)
    right.set(xlim=EPSILONS, xlabel="ε (dashed: promised)", title="Who faces which ε")
    for ax, ticks in ((left, (0.001, 0.01, 0.1, 1, 10)), (right, (0.1, 1, 10, 100))):
        ax.set(xscale="log", ylim=(2.6, -0.6))
        style.log_axis(ax.xaxis, ticks)
        ax.tick_params(axis="y", length=0)
        ax.grid(visible=False, axis="y")
    return figure


@style.paper()
def collusion(
    clients: int = 50, epsilon: float = 2.0, relied: Sequence[int] = (50, 25)
) -> style.Picture:
    """Draws ε against a server with colluders, by how many honest clients the noise relies on.

    Args: clients, epsilon: as of `trust_comparison`; relied: numbers of honest noise shares that
        together make up sigma C.
    Guarantees: test_lesson_13.py::test_the_collusion_lines.
    """
    sigma, counts, labels = gaussian_noise_multiplier(epsilon), np.arange(clients), []
    figure, (ax,) = style.panels(8.2, 3.7, (0.08, 0.15, 0.68, 0.74))
    for shares, colour in zip(relied, (COLOURS["secagg"], style.RIGHT, style.GREY), strict=False):
        left = [theory.surviving_multiplier(sigma, shares, clients - int(c)) for c in counts]
        values = [theory.gdp_epsilon(1 / each, DELTA) for each in left]
        label = style.named_line(ax, counts, values, f"noise relies on {shares}", colour, lw=2.2)
        labels.append(label._replace(y=min(label.y, 30)))
    ax.axhline(epsilon, color=style.INK, lw=1, ls=PROMISE)
    put: Any = {"color": style.INK, "fontsize": 8.5, "ha": "right", "va": "top"}
    ax.text(clients - 1.5, epsilon / 1.05, f"promised: {epsilon:g}", **put)
    ax.set(yscale="log", xlim=(0, clients - 1), ylim=(0.5, 30), ylabel="ε that the others face")
    ax.set_xlabel(f"clients of {clients} that tell the server their noise")
    style.log_axis(ax.yaxis, (0.5, 1, 2, 5, 10, 20))
    ax.set_title("Only honest clients' noise counts")
    style.draw_labels(ax, labels, together=False)
    return figure


@style.paper()
def masked_upload(updates: Float[np.ndarray, "clients d"], opened: "SecAggResult") -> style.Picture:
    """Draws a client's numbers against the masked upload, and the opened sum against the true.

    Guarantees: every number is a dot (test_lesson_13.py::test_the_masked_figure).
    """
    figure, (left, right) = style.row(8.8, 3.7, (0.15, 0.73), (0.075, 0.39), (0.59, 0.39))
    received = opened.uploads[0] / opened.grid.modulus
    one = updates[opened.arrived[0]]
    style.dots(left, one, received, COLOURS["secagg"], 2.4, mew=0, alpha=0.5)
    left.set(ylim=(-0.02, 1.02), xlabel="a number of one client's update")
    left.set(ylabel="received, share of the modulus", title="One upload tells nothing")
    true = updates[list(opened.arrived)].sum(0)
    style.dots(right, true, opened.total, style.RIGHT, 2.6, mew=0, alpha=0.7)
    right.set_xlabel(f"true sum of the {len(opened.arrived)} that arrived")
    right.set(ylabel="sum that the server opens", title="The sum is right")
    return figure


@style.paper()
def rounding(noise_multiplier: float = 2.0, clients: int = 10) -> style.Picture:
    """Draws `theory.rounded_epsilon` of one number over the width of a step, and the ledger's ε."""
    wide = np.geomspace(0.003, 3, 13)
    values = [theory.rounded_epsilon(noise_multiplier, float(x), clients, DELTA) for x in wide]
    stated, colour = theory.gdp_epsilon(1 / noise_multiplier, DELTA), COLOURS["secagg"]
    figure, (ax,) = style.panels(8.2, 3.5, (0.08, 0.16, 0.68, 0.72))
    ax.axhline(stated, color=style.INK, lw=1.2, ls=PROMISE)
    mark: Any = {"marker": "o", "mec": style.CARD}
    labels = [style.named_line(ax, wide, values, "of rounded ones", colour, **mark)]
    labels.append(style.Label(wide[-1], stated, "the ledger's,\nof real numbers", style.INK))
    ax.set(xscale="log", ylim=(0, 1.25 * max(stated, *(v for v in values if math.isfinite(v)))))
    ax.set(xlabel="width of a step of the grid, in units of C", ylabel="ε of one number")
    style.log_axis(ax.xaxis, (0.003, 0.01, 0.03, 0.1, 0.3, 1, 3))
    ax.set_title("Every client rounds for itself: on a fine grid nearly the same ε")
    style.draw_labels(ax, labels, together=False)
    return figure


@style.paper()
def mask_bytes(table: "pd.DataFrame", neighbours: int) -> style.Picture:
    """Draws what a client sends besides its numbers over the number of clients.

    Args: table: columns clients, all, near (bytes of one client); neighbours: of "near".
    Guarantees: test_lesson_13.py::test_the_bytes_of_masks_are_drawn.
    """
    figure, (ax,) = style.panels(7.6, 3.4, (0.1, 0.16, 0.58, 0.72))
    mark: Any = {"marker": "o", "ms": 6, "mec": style.CARD}
    kinds = (("all", "masks with all others", style.WRONG),)
    kinds += (("near", f"masks with {neighbours} neighbours", COLOURS["secagg"]),)
    labels = [
        style.named_line(ax, table["clients"], table[name] / 1000, words, colour, **mark)
        for name, words, colour in kinds
    ]
    ax.set(xlabel="clients", ylabel="kB of one client: keys, messages, shares", ylim=(0, None))
    ax.set_xticks(table["clients"].to_list())
    ax.set_title("With neighbours the cost of a client does not grow")
    style.draw_labels(ax, labels, together=False)
    return figure


@style.paper()
def accuracy_by_trust(frame: "pd.DataFrame", start: float, title: str) -> style.Picture:
    """Draws accuracy after the last round under each kind of trust: seeds, mean, 95 % interval.

    Args: frame: tidy, with a column trust; start: accuracy before training; title: the finding.
    Guarantees: means are those of the frame (test_lesson_13.py::test_the_accuracies_are_drawn).
    """
    part: Any = frame[(frame["measure"] == "accuracy") & (frame["round"] == frame["round"].max())]
    kinds = list(dict.fromkeys(part["trust"]))
    check(bool(kinds), "frame", f"{len(frame)} rows", "some with the accuracy of the last round")
    figure, (ax,) = style.panels(7.6, 1.6 + 0.5 * len(kinds), (0.3, 0.26, 0.58, 0.6))
    for row, kind in enumerate(kinds):
        values, colour = part[part["trust"] == kind]["value"].to_numpy(), COLOURS[kind]
        accuracy_row(ax, row, values, colour)
    ax.axvline(start, color=style.GREY, lw=1, ls=style.DOTTED)
    ax.set(ylim=(len(kinds) - 0.3, -0.6), xlabel="share of test digits right", title=title)
    ax.set_yticks(range(len(kinds)), [f"{k}: trust {TRUSTS[k]}" for k in kinds], color=style.INK)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")
    words = f"dots: {part['seed'].nunique()} seeds; diamonds: mean; bars: its 95 % interval"
    style.footer(figure, f"{words}; dotted: before training")
    return figure


def trust_explorer() -> Dial:
    """Makes a dial for trust, clients, promise and colluders: the noise, each observer's ε.

    Guarantees: noise and ε are `theory.trust_level` and those of `theory.surviving_multiplier`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "One promise under three kinds of trust: the noise it needs, and who faces which ε."
    values = {"trust": "secagg", "clients": 50, "epsilon": 2, "colluders": 10}
    return Dial(13, "trust_explorer", about, **values)
