"""An audit drawn: the canaries' scores, and what they prove between nothing and what the ledger states."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedlora_lab.checks import check
from fedlora_lab.plots.promise import WITH, WITHOUT
from fedlora_lab.plots.style import CARD, FAINT, GREY, INK, SOFT, WRONG, Picture, darker, look, name, paper, picture

if TYPE_CHECKING:
    from fedlora_lab.audit import Audit

ROW = 0.42


def audit(audits: "Audit | Sequence[Audit] | Mapping[str, Audit]") -> Picture:
    """Each audit as a line from its lower bound to the ledger's epsilon, its ceiling between them; scores on the left.

    The scores are those of the view that proved most in the first audit, in units of their standard deviation. An
    audit that is invalid has neither scores nor a bound: its reason stands in their place. One with an injected bug is
    held against the nominal epsilon.

    Args: audits: one, several, or label -> audit; without labels the lines are named by method and unit.
    Raises: ``ValueError`` without an audit.
    Guarantees: test_the_figure_draws_the_three_numbers, test_an_invalid_audit_is_drawn_as_such.
    """
    if isinstance(audits, Mapping):
        several, labels = list(audits.values()), list(audits)
    else:
        several = list(audits) if isinstance(audits, Sequence) else [audits]
        labels = [f"{name(one.method)}, {one.unit}" for one in several]
    check(bool(several), "audits", audits, "at least one audit")
    height = 1.9 + ROW * max(4, len(several))
    with paper():
        figure = picture(10.2, height)
        bottom, share = 0.62 / height, 1 - 1.05 / height
        left = figure.add_axes((0.065, bottom, 0.3, share))
        right = figure.add_axes((0.545, bottom, 0.43, share))
        _scores(left, several[0])
        _bounds(right, several, labels)
    return figure


def _scores(ax: Any, audit: "Audit") -> None:
    """One dot a canary, those that took part above those that did not."""
    if audit.invalid is not None:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, _wrapped(f"invalid: {audit.invalid}"), color=WRONG, ha="center", va="center",
                transform=ax.transAxes)  # fmt: skip
        ax.set_title(f"{audit.canaries} canaries: no scores", fontsize=9.5)
        return
    view = max(audit.lower, key=lambda key: (audit.lower[key], key == "update"))
    values = audit.scores[view] / (audit.scores[view].std() or 1.0)
    rng = np.random.default_rng(0)
    for row, (words, part, colour) in enumerate(
        (("out", values[~audit.included], WITHOUT), ("in", values[audit.included], WITH))
    ):
        ax.plot(part, row + rng.uniform(-0.22, 0.22, len(part)), "o", ms=4, color=colour, mec=CARD, mew=0.4, alpha=0.8)
        ax.text(-0.02, row, words, color=darker(colour), weight="bold", ha="right", va="center",
                transform=ax.get_yaxis_transform())  # fmt: skip
        if len(part):
            ax.plot([np.median(part)] * 2, [row - 0.34, row + 0.34], color=darker(colour), lw=2)
    ax.set(ylim=(-0.6, 1.6), yticks=[], xlabel="score, in units of its standard deviation")
    ax.grid(visible=False, axis="y")
    words = {"loss": "loss of the canaries (black box)", "update": "trace in the updates (white box)"}
    ax.set_title(f"{audit.canaries} canaries: {words.get(view, f'trace in the {view}')}", fontsize=9.5)


def _wrapped(words: str) -> str:
    return "\n".join(textwrap.wrap(words, 34))


def _bounds(ax: Any, audits: "list[Audit]", labels: list[str]) -> None:
    """A line for each audit: proved, could be proved, stated."""
    finite = [value for one in audits for value in (one.ceiling, one.claimed) if np.isfinite(value)]
    edge = 1.45 * max([*finite, 1.0])
    for row, one in enumerate(audits):
        y, colour = len(audits) - 1 - row, look(one.method).colour
        claimed = np.isfinite(one.claimed)
        end = one.claimed if claimed else 0.7 * edge  # a bar without a diamond
        ax.plot([0, end], [y, y], color=FAINT, lw=6, solid_capstyle="butt", zorder=1)
        if one.invalid is None:
            ax.plot([0, one.epsilon_lower], [y, y], color=colour if one.holds else WRONG, lw=6, solid_capstyle="butt")
        ax.plot([one.ceiling], [y], "|", color=GREY, ms=13, mew=1.6)
        if claimed:
            ax.plot([end], [y], "D", color=INK, ms=5.5, mec=CARD)
        stated = f"{one.claimed:.3g}" if claimed else "not certified"
        words, far = f"{one.epsilon_lower:.2f} {'≤' if one.holds else '>'} {stated}", max(end, one.epsilon_lower)
        if one.invalid is not None:
            words, far = f"invalid: {one.invalid}", 0.0
        ax.annotate(words, (far, y), xytext=(6, 9), textcoords="offset points", va="bottom", fontsize=8.5,
                    color=INK if one.holds else WRONG)  # fmt: skip
    ax.set_yticks([len(audits) - 1 - i for i in range(len(audits))])
    ax.set_yticklabels(labels, color=SOFT)
    ax.set(xlim=(0, edge), ylim=(-0.7, len(audits) - 0.3), xlabel=f"ε at δ = {audits[0].delta:g}")
    ax.grid(visible=False, axis="y")
    ax.set_title(f"Proved (bar, {audits[0].confidence:.0%} sure), provable (tick), stated (diamond)", fontsize=9.5)
