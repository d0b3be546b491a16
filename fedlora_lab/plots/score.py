"""A method as a score: two staves A and B, one beat per local step, a bar line where the server averages.

Everything is read from the row: a row that nobody has named yet is drawn like any other.
"""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from matplotlib.patches import FancyBboxPatch

from fedlora_lab.checks import check, check_whole
from fedlora_lab.plots.style import FACTOR, FAINT, GREY, INK, SOFT, Picture, look, paper, picture

if TYPE_CHECKING:
    from fedlora_lab.method import Method

WIDTH = 4.9  # inches of one score
ROUND = "round,pad=0,rounding_size=.13"
STAVES = {"A": 1.45, "B": 0.45}
WITH_CORE = {"A": 1.62, "R": 0.95, "B": 0.28}
KEY = (
    ("beat", "the factor moves"),
    ("?", "one of the two"),
    ("~", "clipped and noised"),
    ("≈", "then filtered"),
    ("◇", "noise shaped by the peer"),
    ("+", "penalty in the loss"),
    ("arrow", "sent up"),
    ("↺", "stays with its client"),
    ("stairs", "received quantised"),
    ("bar", "server averages"),
    ("double", "another server rule"),
    ("=", "holds the mean product"),
    ("≠", "misses it"),
)


def _marks(method: "Method") -> dict[str, Any]:
    """What is special about a row: each rule compared with the default of the grammar."""
    from fedlora_lab.catalogue import rule_name
    from fedlora_lab.method import Method

    plain = Method("plain", source="")
    glyph = "~" if method.smooth == plain.smooth else "≈"
    return {
        "glyph": glyph if method.whiten is None else "◇" + ("" if glyph == "~" else glyph),
        "penalty": method.penalty is not None,
        "quantised": method.broadcast != plain.broadcast,
        "rule": "" if method.aggregate == plain.aggregate else rule_name(method.aggregate).partition("(")[0],
        "writes": getattr(method.aggregate, "writes", ()),
    }


def meaning(method: "Method", rounds: int = 4, steps: int = 4) -> str:
    """One line on a method: its note if it stands in the table, otherwise what its fields say."""
    from fedlora_lab.methods import ALL

    if method.note and method in ALL.values():
        return method.note
    words = [[method.moves(t, s) for s in range(steps)] for t in range(rounds)]
    moved = {method.moved(t, steps) for t in range(rounds)}
    if moved == {"R"}:
        text = "only a core between two fixed factors moves"
    elif any("*" in word for word in moved):
        text = "every layer chooses the factor that moves"
    elif moved in ({"A"}, {"B"}):
        text = f"{'B' if moved == {'A'} else 'A'} never moves"
    elif all(word == "AB" for row in words for word in row):
        text = "both factors move"
    elif all(len(set(row)) == 1 for row in words):
        text = "the factors take turns between rounds"
    else:
        text = "the factors take turns within a round" if len({*map(tuple, words)}) == 1 else "a schedule of its own"
    marks = _marks(method)
    sent = {method.sent(t, steps) for t in range(rounds)}
    extras = {
        "nothing is sent": sent == {""},
        "noise shaped by the peer": method.whiten is not None,
        "noised gradient filtered": "≈" in marks["glyph"],
        "received quantised": marks["quantised"],
        "the mean product is kept": method.exact,
    }
    return ", ".join([text, *(word for word, there in extras.items() if there)])


def _staves(method: "Method", rounds: int, steps: int) -> dict[str, float]:
    """Height of each stave; a core between the factors has one of its own."""
    return WITH_CORE if any("R" in method.moved(t, steps) for t in range(rounds)) else STAVES


def _beat(ax: Any, x: float, y: float, factor: str, marks: dict[str, Any], chosen: bool = False) -> None:
    """A factor moves; pale where it is the one or the other, as each layer chooses."""
    fill = {"fc": FACTOR[factor], "ec": "none", "alpha": 0.55 if chosen else 1}
    ax.add_patch(FancyBboxPatch((x, y - 0.26), 0.74, 0.52, boxstyle=ROUND, **fill))
    text = marks["glyph"] + ("+" if marks["penalty"] else "") + ("?" if chosen else "")
    ax.text(x + 0.37, y - 0.02, text, color="white", fontsize=11 if len(text) == 1 else 9, ha="center", va="center")


def _stairs(ax: Any, x: float, y: float) -> None:
    across, up = (0, 0.1, 0.1, 0.2, 0.2, 0.3), (-0.15, -0.15, 0, 0, 0.15, 0.15)
    ax.plot([x + d for d in across], [y + d for d in up], color=INK, lw=1.4)


def _bar(ax: Any, x: float, staves: dict[str, float], sent: str, moved: str, exact: bool, rule: str) -> None:
    """The end of a round: the server's line, what it holds, what was sent and what was not."""
    ax.plot([x, x], [0.0, 1.92], color=INK if sent else FAINT, lw=2.2)
    if sent and rule:
        ax.plot([x - 0.12, x - 0.12], [0.0, 1.92], color=INK, lw=0.9)
    if sent:
        ax.text(x, 2.09, "=" if exact else "≠", fontsize=11, weight="bold", color=INK, ha="center", va="center")
    for factor in moved.replace("*", "AB"):
        y, colour = staves[factor], FACTOR[factor]
        if factor in sent.replace("*", "AB"):
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (x + 0.33, y + 0.33), (x + 0.33, y - 0.27), arrowprops=arrow)
        else:
            ax.text(x + 0.36, y, "↺", fontsize=13, color=colour, ha="center", va="center")


def draw(ax: Any, method: "Method", rounds: int, steps: int, title: bool = True) -> None:
    """Draw the score of a method into axes."""
    marks, end, staves = _marks(method), rounds * (steps + 1.25), _staves(method, rounds, steps)
    ax.set_xlim(-1.1, end + 0.1)
    ax.set_ylim(-0.75, 3.05 if title else 2.4)
    ax.axis("off")
    if title:
        ax.plot([-1.0, -1.0], [2.5, 2.98], color=look(method.slug).colour, lw=4, solid_capstyle="butt")
        ax.text(-0.82, 2.86, method.name, fontsize=11.5, weight="bold", color=INK, va="center")
        lines = textwrap.fill(meaning(method), 76)
        ax.text(-0.82, 2.64, lines, fontsize=8, color=SOFT, va="top", linespacing=1.05)
    ever = {factor for t in range(rounds) for factor in method.moved(t, steps).replace("*", "AB")}
    for factor, y in staves.items():
        ax.text(-0.95, y, factor, fontsize=12, color=FACTOR[factor], weight="bold", va="center")
        ax.plot([-0.6, end], [y, y], color=FAINT, lw=1, zorder=0)
        if factor not in ever:
            words = "set by the server" if factor in marks["writes"] else "never moves"
            ax.text(steps / 2, y + 0.2, words, fontsize=7.5, color=GREY, va="center", ha="center")
    for t in range(rounds):
        left = t * (steps + 1.25) + 0.12
        for factor, y in staves.items():
            if marks["quantised"]:
                _stairs(ax, left - 0.5, y)
            for s in range(steps):
                word = method.moves(t, s)
                if factor in word.replace("*", "AB"):
                    _beat(ax, left + s, y, factor, marks, chosen=word == "*")
        ax.text(left + steps / 2 - 0.13, -0.22, f"round {t + 1}", fontsize=8, color=SOFT, ha="center")
        moved, sent = method.moved(t, steps), method.sent(t, steps)
        _bar(ax, left + steps + 0.06, staves, sent, moved, method.exact, marks["rule"])
    if marks["rule"]:
        ax.text(end, -0.55, f"server: {marks['rule']}", fontsize=7.5, color=SOFT, ha="right")


def _symbol(ax: Any, x: float, kind: str) -> None:
    """One sign of the key, about 0.6 wide, around height 0."""
    if kind == "beat":
        ax.add_patch(FancyBboxPatch((x, -0.36), 0.55, 0.72, boxstyle=ROUND, fc=FACTOR["B"], ec="none"))
    elif kind == "stairs":
        _stairs(ax, x + 0.1, 0.0)
    elif kind in ("bar", "double"):
        ax.plot([x + 0.3, x + 0.3], [-0.35, 0.35], color=INK, lw=2.2)
        if kind == "double":
            ax.plot([x + 0.17, x + 0.17], [-0.35, 0.35], color=INK, lw=0.9)
    elif kind == "arrow":
        arrow = {"arrowstyle": "-|>", "color": FACTOR["B"], "lw": 1.8, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", (x + 0.3, 0.55), (x + 0.3, -0.5), arrowprops=arrow)
    else:
        ax.text(x + 0.3, 0, kind, fontsize=11, weight="bold", color=INK, ha="center", va="center")


def _signs(methods: "list[Method]", rounds: int, steps: int) -> list[str]:
    """The signs that occur on a page, in the order of the key."""
    there = {"beat", "bar"}
    for method in methods:
        marks = _marks(method)
        there |= {*marks["glyph"], "+" if marks["penalty"] else "", "stairs" if marks["quantised"] else ""}
        for t in range(rounds):
            sent, moved = method.sent(t, steps), method.moved(t, steps)
            there |= {"arrow", "=" if method.exact else "≠", "double" if marks["rule"] else ""} if sent else set()
            there |= ({"↺"} if sent != moved else set()) | ({"?"} if "*" in moved else set())
    return [kind for kind, _ in KEY if kind in there]


def _key(figure: Picture, signs: list[str], columns: int) -> None:
    """The key under a page of scores."""
    words, wide, tall = dict(KEY), figure.get_figwidth(), figure.get_figheight()
    for i, kind in enumerate(signs):
        place = (0.12 + 1.9 * (i % columns), 0.25 * ((len(signs) - 1) // columns - i // columns) + 0.08)
        ax = figure.add_axes((place[0] / wide, place[1] / tall, 1.9 / wide, 0.25 / tall))
        ax.axis("off")
        ax.set_xlim(0, 4.2)
        ax.set_ylim(-0.6, 0.6)
        _symbol(ax, 0.05, kind)
        ax.text(0.85, -0.02, words[kind], fontsize=8, color=SOFT, va="center")


def score(method: "Method | str", rounds: int = 2, steps: int = 4) -> Picture:
    """The score of one method: who moves at each local step, what is noised, sent, kept and received.

    Args: method: a row or a slug. rounds, steps: how much of it to draw, whole numbers >= 1.
    Guarantees: read from the row's fields alone (test_a_score_is_read_from_the_row).
    """
    return scores([method], rounds=rounds, steps=steps, columns=1)


def scores(
    methods: "Iterable[Method | str] | None" = None, rounds: int = 2, steps: int = 4, columns: int = 2, key: bool = True
) -> Picture:
    """A page of scores with its key; all rows of the table unless ``methods`` names some.

    Args: columns: scores side by side, a whole number >= 1. key: explain the signs below.
    Guarantees: as `score`.
    """
    from fedlora_lab.methods import ALL, get

    for label, value in (("rounds", rounds), ("steps", steps), ("columns", columns)):
        check_whole(label, value, 1)
    listed = [get(method) for method in (ALL.values() if methods is None else methods)]
    check(len(listed) > 0, "methods", listed, "at least one method")
    lines = -(-len(listed) // columns)
    with paper():
        signs = _signs(listed, rounds, steps) if key else []
        across = int((WIDTH * columns - 0.2) / 1.9)
        figure = picture(WIDTH * columns, 1.95 * lines + 0.1 + 0.25 * -(-len(signs) // across))
        tall = 1.95 / figure.get_figheight()
        wide = WIDTH / figure.get_figwidth()
        for i, method in enumerate(listed):
            left, line = (i % columns) * wide, i // columns
            ax = figure.add_axes((left + 0.008, 1 - (line + 1) * tall, wide - 0.016, tall * 0.97))
            draw(ax, method, rounds, steps)
        _key(figure, signs, across)
    return figure
