"""Draws what a promise leaves to attackers: members found against others accused."""

import numpy as np

from fedlora_lab import theory
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.validation import check
from fedlora_lab.plots import style
from fedlora_lab.plots.style import Picture
from fedlora_lab.privacy.ledger import Ledger

LOWEST = 1e-3
"""The left and lower end of the axes."""


@style.paper()
def tradeoff(ledger: Ledger, title: str = "Who was in the training data?") -> Picture:
    """Draws the trade-off curve of a ledger on log axes; what no attacker reaches is shaded.

    The curve comes from the composed privacy loss. The dashed line is all that epsilon at one delta
    says; it lies above.

    Args:
        ledger: of a run, or a composition.
        title: the finding.

    Raises: `Uncertified` where the ledger states no epsilon.
    Guarantees: test_the_curve_is_the_ledgers_and_the_dashed_line_lies_above.

    >>> import fedlora_lab as fl
    >>> ledger = fl.Privacy(noise_multiplier=3.0, sample_rate=0.1).ledger(releases=512)
    >>> fl.plots.tradeoff(ledger).axes[0].get_title(loc="left")
    'Who was in the training data?'
    """
    check(isinstance(ledger, Ledger), "ledger", ledger, "the Ledger of a run")
    grid = np.geomspace(LOWEST, 1, 200)
    allowed = ledger.tradeoff(grid)
    spent = ledger.epsilon()
    loose = theory.membership_bound(grid, spent, ledger.delta)
    figure, (ax,) = style.subplots(7.4, 4.8)
    ax.set(xscale="log", yscale="log", xlim=(LOWEST, 1), ylim=(LOWEST, 1))
    ax.fill_between(grid, allowed, 1, color=style.WRONG, alpha=0.09, lw=0)
    ax.plot(grid, allowed, color=style.WRONG, lw=1.8)
    ax.plot(grid, loose, color=style.WRONG, lw=1.2, ls=style.DASHED)
    ax.plot(grid, grid, color=style.GREY, lw=1.2, ls=style.DOTTED)
    style.note(ax, 0.025, 0.987, "impossible", style.WRONG, 9, weight="bold", va="top")
    # Beside the diagonal, at any height of the axes.
    style.note(ax, 0.2, 0.175, "guessing", size=8.5, rotation=33, ha="center", va="center")
    ax.set(xlabel="share of others accused (false positive rate)", ylabel="share of members found")
    ax.set_title(title)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter("{x:g}")
    caption = (
        f"red: composed privacy loss, advantage at most {round_up(ledger.advantage(), '.2g')}; "
    )
    caption += (
        f"dashed: all that ε = {round_up(spent, '.3g')} at δ = {round_up(ledger.delta, 'g')} says"
    )
    style.footer(figure, caption)
    return figure
