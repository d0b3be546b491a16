"""Diagrams of methods, read from their fields: what moves, is noised, sent and averaged."""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.plots.style import (
    FACTOR,
    FAINT,
    GREY,
    INK,
    SOFT,
    Picture,
    blank_picture,
    look,
    paper,
)

if TYPE_CHECKING:
    from fedlora_lab.methods.method import Method

ROUNDS = 2
STEPS = 4
"""How much of a schedule is drawn."""
WIDTH = 4.9  # inches of one diagram
HEIGHT = 2.1
SIGN_WIDTH = 1.9  # inches of one sign of the key
SIGN_HEIGHT = 0.25
GAP = 1.25  # steps between the rounds of a diagram
ROUND = "round,pad=0,rounding_size=.13"
LINE_HEIGHTS = {"A": 1.45, "B": 0.45}
HEIGHTS_WITH_CORE = {"A": 1.62, "R": 0.95, "B": 0.28}
SIGN: Any = {"fontsize": 11, "weight": "bold", "color": INK, "ha": "center", "va": "center"}
KEY = {
    "step": "the factor moves",
    "?": "one of the two",
    "~": "clipped and noised",
    "≈": "then filtered",
    "◇": "shaped by other factor",
    "+": "penalty in the loss",
    "arrow": "sent up",
    "↺": "stays with its client",
    "stairs": "received quantised",
    "bar": "server averages",
    "double": "another server rule",
    "=": "holds the mean product",
    "≠": "misses the mean product",
}


def _marks(method: "Method") -> dict[str, Any]:
    """Finds what is special about a row: each rule compared with the default."""
    from fedlora_lab.methods.published import DEFAULT, rule_name

    filtered = method.filter != DEFAULT.filter
    shaped = method.precondition is not None
    rule = "" if method.aggregate == DEFAULT.aggregate else rule_name(method.aggregate)
    return {
        "glyph": "◇" * shaped + ("≈" if filtered else "" if shaped else "~"),
        "penalty": "+" if method.penalty else "",
        "quantised": method.broadcast != DEFAULT.broadcast,
        "rule": rule.partition("(")[0],
        "writes": getattr(method.aggregate, "writes", ()),
    }


def _step(ax: Axes, x: float, y: float, factor: str, text: str) -> None:
    ax.add_patch(
        FancyBboxPatch(
            (x, y - 0.26),
            0.74,
            0.52,
            boxstyle=ROUND,
            fc=FACTOR[factor],
            ec="none",
            alpha=0.55 if "?" in text else 1,
        )
    )
    size = 11 if len(text) == 1 else 9
    ax.text(x + 0.37, y - 0.02, text, color="white", fontsize=size, ha="center", va="center")


def _stairs(ax: Axes, x: float, y: float) -> None:
    across, up = (0, 0.1, 0.1, 0.2, 0.2, 0.3), (-0.15, -0.15, 0, 0, 0.15, 0.15)
    ax.plot([x + d for d in across], [y + d for d in up], color=INK, lw=1.4)


def _arrow(ax: Axes, x: float, low: float, high: float, colour: str) -> None:
    ax.annotate(
        "",
        (x, high),
        (x, low),
        arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0},
    )


def draw_diagram(ax: Axes, method: "Method") -> None:
    """Draws the diagram of a method into axes."""
    from fedlora_lab.methods.published import ALL

    marks = _marks(method)
    end = ROUNDS * (STEPS + GAP)
    # "Never" is said after many rounds, not after the two drawn: a turn may come in the third.
    moved = "".join(method.factors_in_round(t, STEPS) for t in range(60)).replace("*", "AB")
    # A core stands between its two factors.
    heights = HEIGHTS_WITH_CORE if "R" in moved else LINE_HEIGHTS
    ax.set(xlim=(-1.1, end + 0.1), ylim=(-0.75, 3.35))
    ax.axis("off")
    ax.plot([-1.0, -1.0], [2.8, 3.28], color=look(method.slug).colour, lw=4, solid_capstyle="butt")
    ax.text(-0.82, 3.16, method.name, fontsize=11.5, weight="bold", color=INK, va="center")
    # A row made by `replace` keeps the note of another, which need not hold.
    lines = textwrap.fill(method.note if method in ALL.values() else "", 76)
    # Two lines of a note end above the server's sign.
    ax.text(-0.82, 2.94, lines, fontsize=8, color=SOFT, va="top", linespacing=1.05)
    for factor, y in heights.items():
        ax.text(-0.95, y, factor, fontsize=12, color=FACTOR[factor], weight="bold", va="center")
        ax.plot([-0.6, end], [y, y], color=FAINT, lw=1, zorder=0)
        if factor not in moved:
            reason = "set by the server" if factor in marks["writes"] else "never moves"
            ax.text(STEPS / 2, y + 0.2, reason, fontsize=7.5, color=GREY, va="center", ha="center")
    for t in range(ROUNDS):
        left = t * (STEPS + GAP) + 0.12
        for factor, y in heights.items():
            if marks["quantised"]:
                _stairs(ax, left - 0.5, y)
            for s in range(STEPS):
                word = method.factors_at_step(t, s)
                if factor in word.replace("*", "AB"):
                    sign = marks["glyph"] + marks["penalty"] + "?" * (word == "*")
                    _step(ax, left + s, y, factor, sign)
        ax.text(
            left + STEPS / 2 - 0.13, -0.22, f"round {t + 1}", fontsize=8, color=SOFT, ha="center"
        )
        _draw_server(ax, left + STEPS + 0.06, method, t, heights)
    if marks["rule"]:
        ax.text(end, -0.55, f"server: {marks['rule']}", fontsize=7.5, color=SOFT, ha="right")


def _draw_server(ax: Axes, x: float, method: "Method", t: int, heights: dict[str, float]) -> None:
    """Draws the server's line after a round: its sign, what was sent, and what was not."""
    sent = method.factors_uploaded(t, STEPS)
    ax.plot([x, x], [0.0, 1.92], color=INK if sent else FAINT, lw=2.2)
    if sent:
        # A second line: the server does not take the mean.
        if _marks(method)["rule"]:
            ax.plot([x - 0.12, x - 0.12], [0.0, 1.92], color=INK, lw=0.9)
        ax.text(x, 2.09, "=" if method.exact else "≠", **SIGN)
    for factor in method.factors_in_round(t, STEPS).replace("*", "AB"):
        y = heights[factor]
        colour = FACTOR[factor]
        if factor in sent.replace("*", "AB"):
            _arrow(ax, x + 0.33, y - 0.27, y + 0.33, colour)
        else:
            ax.text(x + 0.36, y, "↺", fontsize=13, color=colour, ha="center", va="center")


def _signs(methods: "list[Method]") -> list[str]:
    """Lists the signs that occur on a page, in the order of the key."""
    signs = {"step", "bar"}
    for method in methods:
        marks = _marks(method)
        signs |= {*marks["glyph"], marks["penalty"], "stairs" if marks["quantised"] else ""}
        for t in range(ROUNDS):
            sent = method.factors_uploaded(t, STEPS)
            moved = method.factors_in_round(t, STEPS)
            if sent:
                signs |= {"arrow", "=" if method.exact else "≠", "double" if marks["rule"] else ""}
            signs |= {"↺" if sent != moved else "", "?" if "*" in moved else ""}
    return [kind for kind in KEY if kind in signs]


def _key(ax: Axes, kind: str) -> None:
    """Draws one sign and its words around height 0."""
    ax.axis("off")
    ax.set(xlim=(0, 4.2), ylim=(-0.6, 0.6))
    if kind == "step":
        ax.add_patch(
            FancyBboxPatch((0.05, -0.36), 0.55, 0.72, boxstyle=ROUND, fc=FACTOR["B"], ec="none")
        )
    elif kind == "stairs":
        _stairs(ax, 0.15, 0.0)
    elif kind in ("bar", "double"):
        ax.plot([0.35, 0.35], [-0.35, 0.35], color=INK, lw=2.2)
        if kind == "double":
            ax.plot([0.22, 0.22], [-0.35, 0.35], color=INK, lw=0.9)
    elif kind == "arrow":
        _arrow(ax, 0.35, -0.5, 0.55, FACTOR["B"])
    else:
        ax.text(0.35, 0, kind, **SIGN)
    ax.text(0.85, -0.02, KEY[kind], fontsize=8, color=SOFT, va="center")


def method_diagrams(methods: "Iterable[Method | str] | None" = None, columns: int = 2) -> Picture:
    """Draws the first two rounds of each method, of four steps each, and a key of the signs.

    Args: methods: rows or slugs; ``None``: all of the table. columns: diagrams side by side.
    """
    from fedlora_lab.methods.published import ALL, get

    check_whole("columns", columns, 1)
    chosen = ALL if methods is None else methods
    check(isinstance(chosen, Iterable), "methods", methods, "rows or slugs")
    listed = [get(method) for method in chosen]
    check(len(listed) > 0, "methods", listed, "at least one method")
    signs = _signs(listed)
    width = WIDTH * columns
    # The key is as wide as the page, and as high as its signs need.
    signs_in_line = int((width - 0.2) / SIGN_WIDTH)
    lines = -(-len(listed) // columns)
    key_lines = -(-len(signs) // signs_in_line)
    height = HEIGHT * lines + 0.1 + SIGN_HEIGHT * key_lines
    wide = WIDTH / width
    tall = HEIGHT / height
    with paper():
        figure = blank_picture(width, height)
        # Diagrams have no titles, so the alternative text names the methods.
        names = ", ".join(method.name for method in listed)
        figure.set_label(f"what is moved, noised and sent by {names}")
        # Diagrams have a scale of their own, in steps and lines, so they fill fixed places.
        for i, method in enumerate(listed):
            left = (i % columns) * wide + 0.008
            low = 1 - (i // columns + 1) * tall
            draw_diagram(figure.add_axes((left, low, wide - 0.016, tall * 0.97)), method)
        for i, kind in enumerate(signs):
            left = 0.12 + SIGN_WIDTH * (i % signs_in_line)
            low = SIGN_HEIGHT * (key_lines - 1 - i // signs_in_line) + 0.08
            place = (left / width, low / height, SIGN_WIDTH / width, SIGN_HEIGHT / height)
            _key(figure.add_axes(place), kind)
    return figure
