"""Diagrams of methods, read from their fields: what moves, is noised, sent and averaged."""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from matplotlib.axes import Axes

from fedlora_lab._utils.validation import check
from fedlora_lab.plots import style
from fedlora_lab.plots.style import FACTOR, FAINT, GREY, INK, SOFT, Picture

if TYPE_CHECKING:
    from fedlora_lab.methods.method import Method

ROUNDS = 2
STEPS = 4
"""How much of a schedule is drawn."""
GAP = 1.25  # steps between the rounds of a diagram
WIDTH = 4.9  # inches of one diagram
HEIGHT = 2.1
SIGN_WIDTH = 1.9  # inches of one sign of the key, with its words
SIGN_HEIGHT = 0.25
HEIGHTS = {"A": 1.45, "B": 0.45}
HEIGHTS_WITH_CORE = {"A": 1.62, "R": 0.95, "B": 0.28}
BOX: Any = {"boxstyle": "round,pad=.4,rounding_size=.25", "ec": "none"}
BAR = {"│": (0.0,), "║": (-0.06, 0.06)}
"""Sign of a server -> where its lines stand."""
KEY = {
    "■": "the factor moves",
    "?": "one of the two",
    "~": "clipped and noised",
    "≈": "then filtered",
    "◇": "shaped by other factor",
    "↑": "sent up",
    "↺": "stays with its client",
    "▦": "received quantised",
    "│": "server averages",
    "║": "another server rule",
    "=": "holds the mean product",
    "≠": "misses the mean product",
}


def _write(ax: Axes, x: float, y: float, text: str, size: float, colour: str, **look: Any) -> None:
    """Writes a sign or words at (x, y), in units of the axes, halfway up."""
    placed: Any = {"va": "center", "ha": "center", **look}
    ax.text(x, y, text, fontsize=size, color=colour, **placed)


def _step_signs(method: "Method") -> str:
    """Finds what is special about a step of a row: each rule compared with the default."""
    from fedlora_lab.methods.published import DEFAULT

    filtered = method.filter != DEFAULT.filter
    shaped = method.precondition is not None
    glyph = "≈" if filtered else "" if shaped else "~"
    return "◇" * shaped + glyph


def draw_diagram(ax: Axes, method: "Method") -> set[str]:
    """Draws the diagram of a method into axes; returns the signs of `KEY` that it has."""
    from fedlora_lab.methods.published import ALL, DEFAULT

    end = ROUNDS * (STEPS + GAP)
    # "Never" is said after many rounds, not after the two drawn: a turn may come in the third.
    moved = "".join(method.factors_in_round(t, STEPS) for t in range(60)).replace("*", "AB")
    # A core stands between its two factors.
    heights = HEIGHTS_WITH_CORE if "R" in moved else HEIGHTS
    ax.set(xlim=(-1.1, end + 0.1), ylim=(-0.75, 3.35))
    ax.axis("off")
    left: Any = {"ha": "left"}
    bold: Any = {**left, "weight": "bold"}
    ax.plot(
        [-1, -1], [2.8, 3.28], color=style.look(method.slug).colour, lw=4, solid_capstyle="butt"
    )
    _write(ax, -0.82, 3.16, method.name, 11.5, INK, **bold)
    # A row made by `replace` keeps the note of another, which need not hold.
    lines = textwrap.fill(method.note if method in ALL.values() else "", 76)
    # Two lines of a note end above the server's sign.
    _write(ax, -0.82, 2.94, lines, 8, SOFT, linespacing=1.05, **left | {"va": "top"})
    for factor, y in heights.items():
        _write(ax, -0.95, y, factor, 12, FACTOR[factor], **bold)
        ax.plot([-0.6, end], [y, y], color=FAINT, lw=1, zorder=0)
        if factor not in moved:
            written = factor in getattr(method.aggregate, "writes", ())
            reason = "set by the server" if written else "never moves"
            _write(ax, STEPS / 2, y + 0.2, reason, 7.5, GREY)
    signs = set()
    for t in range(ROUNDS):
        start = t * (STEPS + GAP) + 0.12
        for factor, y in heights.items():
            if method.broadcast != DEFAULT.broadcast:
                _write(ax, start - 0.35, y, "▦", 13, INK)
                signs.add("▦")
            for s in range(STEPS):
                word = method.factors_at_step(t, s)
                if factor in word.replace("*", "AB"):
                    sign = _step_signs(method) + "?" * (word == "*")
                    shade = 0.55 if word == "*" else 1.0
                    box = BOX | {"fc": FACTOR[factor], "alpha": shade}
                    _write(ax, start + s + 0.37, y, sign.center(3), 11, "white", bbox=box)
                    signs |= {"■", *sign}
        _write(ax, start + STEPS / 2 - 0.13, -0.2, f"round {t + 1}", 8, SOFT)
        signs |= _draw_server(ax, start + STEPS + 0.06, method, t, heights)
    return signs


def _draw_server(
    ax: Axes, x: float, method: "Method", t: int, heights: dict[str, float]
) -> set[str]:
    """Draws the server's line after a round: its sign, what was sent, and what was not."""
    from fedlora_lab.methods.published import DEFAULT, rule_name

    sent = method.factors_in_round(t, STEPS)
    if method.uploaded_factors is not None:
        sent = "".join(factor for factor in sent if factor in method.uploaded_factors)
    rule = "" if method.aggregate == DEFAULT.aggregate else rule_name(method.aggregate)
    # Two lines: the server does not take the mean.
    bar = "║" if rule and sent else "│"
    for shift in BAR[bar]:
        ax.plot([x + shift] * 2, [0.0, 1.92], color=INK if sent else FAINT, lw=2)
    signs = {bar} if sent else set()
    if sent:
        sign = "=" if method.exact else "≠"
        _write(ax, x, 2.09, sign, 11, INK, weight="bold")
        signs.add(sign)
    for factor in method.factors_in_round(t, STEPS).replace("*", "AB"):
        sign = "↑" if factor in sent.replace("*", "AB") else "↺"
        _write(ax, x + 0.36, heights[factor], sign, 19, FACTOR[factor], weight="bold")
        signs.add(sign)
    if rule and t == ROUNDS - 1:
        text = f"server: {rule.partition('(')[0]}"
        _write(ax, x + GAP - 0.18, -0.55, text, 7.5, SOFT, ha="right")
    return signs


@style.paper()
def method_diagrams(methods: "Iterable[Method | str]") -> Picture:
    """Draws the first two rounds of each method, of four steps each, and a key of the signs.

    Args: methods: rows or slugs, at least one; two of them stand side by side.
    """
    from fedlora_lab.methods.published import get

    listed = [get(method) for method in methods]
    check(len(listed) > 0, "methods", listed, "at least one method")
    columns = min(2, len(listed))
    figure = style.blank_picture(WIDTH * columns, HEIGHT)
    # Diagrams have no titles, so the alternative text names the methods.
    names = ", ".join(method.name for method in listed)
    figure.set_label(f"what is moved, noised and sent by {names}")
    panels = [figure.add_axes((0, 0, 1, 1), label=method.slug) for method in listed]
    drawn = set().union(*map(draw_diagram, panels, listed))
    # Diagrams have a scale of their own, in steps and lines, so they fill fixed places.
    width = WIDTH * columns
    key_lines = -(-len(drawn) // int((width - 0.2) / SIGN_WIDTH))
    in_line = -(-len(drawn) // key_lines)  # as many in each, so that none stands alone
    key_height = 0.1 + SIGN_HEIGHT * key_lines
    height = HEIGHT * -(-len(listed) // columns) + key_height
    figure.set_size_inches(width, height)
    for i, panel in enumerate(panels):
        x = (i % columns) * WIDTH + 0.04
        y = height - (i // columns + 1) * HEIGHT
        panel.set_position((x / width, y / height, 0.98 / columns, 0.97 * HEIGHT / height))
    key = figure.add_axes((0, 0, 1, key_height / height))
    key.set(xlim=(0, width), ylim=(0, key_height))
    key.axis("off")
    for i, sign in enumerate(sign for sign in KEY if sign in drawn):
        x = 0.25 + SIGN_WIDTH * (i % in_line)
        y = key_height - SIGN_HEIGHT * (i // in_line + 0.5)
        _write(key, x, y, sign, 12, FACTOR["B"] if sign in "■↑" else INK, weight="bold")
        _write(key, x + 0.22, y, KEY[sign], 8, SOFT, ha="left")
    return figure
