"""Which factor moves when, drawn from a schedule."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from matplotlib.patches import FancyBboxPatch

from fedlora_lab.checks import check, check_whole
from fedlora_lab.plots.score import ROUND
from fedlora_lab.plots.style import FACTOR, FAINT, GREY, INK, SOFT, Picture, paper, picture

if TYPE_CHECKING:
    from fedlora_lab.method import Method


def timeline(cycle: Callable[[int, int], str], rounds: int = 6, steps: int = 4) -> Picture:
    """A schedule over rounds and local steps: a filled cell where a factor moves, and the share of steps it moves in.

    Args: cycle: ``(t, s) -> "A", "B" or "AB"``, such as ``Cycle(("B", "A"))``. rounds, steps: whole numbers >= 1.
    Raises: ``ValueError`` when the schedule gives another word.
    Guarantees: a cell is filled iff the schedule moves the factor (test_timeline_follows_the_schedule).
    """
    check_whole("rounds", rounds, 1)
    check_whole("steps", steps, 1)
    words = {(t, s): cycle(t, s) for t in range(rounds) for s in range(steps)}
    for (t, s), word in words.items():
        check(word in ("A", "B", "AB", "BA"), f"cycle({t}, {s})", word, '"A", "B" or "AB"')
    with paper():
        figure = picture(min(11.5, 2.3 + 0.24 * rounds * steps), 1.45)
        ax = figure.add_axes((0.03, 0.06, 0.94, 0.9))
        ax.axis("off")
        width = rounds * steps
        for row, factor in enumerate("BA"):
            moves = [key for key, word in words.items() if factor in word]
            for t, s in words:
                filled = factor in words[t, s]
                face, edge = (FACTOR[factor], "none") if filled else ("none", FAINT)
                corner = (t * steps + s + 0.1, row + 0.16)
                ax.add_patch(FancyBboxPatch(corner, 0.8, 0.68, boxstyle=ROUND, fc=face, ec=edge, lw=1))
            share = len(moves) / len(words)
            ax.text(-0.4, row + 0.5, factor, fontsize=12, weight="bold", color=FACTOR[factor], ha="right", va="center")
            ax.text(width + 0.5, row + 0.5, f"{share:.0%} of steps", fontsize=8.5, color=SOFT, va="center")
        for t in range(rounds + 1):
            ax.plot([t * steps] * 2, [0, 2], color=INK if t else GREY, lw=2 if t else 1, solid_capstyle="butt")
            if t < rounds:
                ax.text((t + 0.5) * steps, -0.12, f"{t + 1}", fontsize=8.5, color=SOFT, ha="center", va="top")
        ax.text(-0.4, -0.12, "round", fontsize=8.5, color=SOFT, ha="right", va="top")
        ax.set_xlim(-2.2, width + 4.2)
        ax.set_ylim(-0.5, 2.1)
    return figure


def timeline_words(method: "Method", rounds: int = 6, steps: int = 4) -> str:
    """What a schedule means, in a sentence: who moves how often, where the mean is exact, how much is sent.

    Guarantees: test_timeline_words_say_where_the_mean_is_exact.
    """
    words = [method.moves(t, s) for t in range(rounds) for s in range(steps)]
    shares = [f"{side} moves in {sum(side in word for word in words) / len(words):.0%}" for side in "BA"]
    moved = [method.moved(t, steps) for t in range(rounds)]
    both = [str(t + 1) for t in range(rounds) if len(moved[t]) > 1]
    if not both:
        exact = "one rests in every round, so the mean of the products is exact"
    elif len(both) == rounds:
        exact = "both move in every round, so the mean of the products is missed"
    else:
        exact = f"the mean of the products is missed in rounds {', '.join(both)}, where both move"
    sent = sum(map(len, moved)) / (2 * rounds)
    return f"{' of the steps, '.join(shares)}; {exact}. Sent up: {sent:.0%} of FedLoRA's."
