"""The dial of notebook 12: one audit in one run, with or without a bug."""

from functools import cache
from typing import Any

import numpy as np

from fedlora_course.lesson_12.bounds import SimulatedAudit, simulate_one_run
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, dots, line, panel, text
from fedlora_lab._utils.rounding import round_down, round_up

EDGE = 13.0
SHOWN = 40

# The dial and its static figure ask for the same audits.
_simulate = cache(simulate_one_run)


def _audit_scene(canaries: int, epsilon: float, leak: float) -> Scene:
    """Draws the traces of canaries, and ε as proved, provable, stated and true."""
    audit = _simulate(canaries, epsilon, leak)
    aside = np.random.default_rng(1).uniform(-0.24, 0.24, SHOWN)
    groups = []
    for row, colour in enumerate(("blue", "pink")):
        traces = (audit.scores / audit.sigma)[audit.included == bool(row)][:SHOWN]
        groups.append(dots(traces, row + aside[: len(traces)], colour, 2.8))
    proved = min(audit.lower, EDGE)
    colour = "red" if audit.caught else "green"
    marks = [
        (audit.ceiling, f"ceiling of {canaries} canaries {audit.ceiling:.2f}", "soft"),
        (audit.stated, f"the ledger states {audit.stated:g}", "ink"),
        (audit.true, f"true {round_up(audit.true, '.2f')}", "red" if leak > 1 else "soft"),
    ]
    # Words pass over the lower lines.
    drawn = []
    for (value, words, ink), height in zip(sorted(marks), (0.85, 0.58, 0.31), strict=True):
        at = min(value, EDGE)
        off_axis = value > EDGE  # an arrow, and a line of no length
        words += " →" if off_axis else ""
        drawn.append(line(at, [height if off_axis else -0.16, height], ink, width=1.6))
        beside: Any = {"anchor": "end", "dx": -5} if at > 0.55 * EDGE else {"dx": 5}
        drawn.append(text(at, height, words, ink, dy=4, **beside))
    panels = [
        panel(
            "The further apart, the easier to guess",
            axis("trace of a canary, in noise deviations", -5, 13),
            axis("", -0.6, 1.6, ticks=[0, 1], names=["out", "in"]),
            *groups,
        ),
        panel(
            f"The audit {'refutes' if audit.caught else 'does not contradict'} the ledger",
            axis("ε at δ = 0.00001", 0, EDGE),
            axis("", -0.8, 1.1, ticks=[]),
            bars(0, -0.09, EDGE, 0.09, "pale"),
            bars(0, -0.09, proved, 0.09, colour),
            text(0, -0.4, f"proved {round_down(audit.lower, '.2f')}", colour, dx=4),
            *drawn,
            wide=True,
        ),
    ]
    bug = f"a bug makes the true ε {round_up(audit.true, '.2f')}" if leak > 1 else "there is no bug"
    return panels, [
        f"{canaries} canaries, ",
        f"the ledger states ε = {epsilon:g}, {bug}: ",
        f"the audit proves {round_down(audit.lower, '.2f')}{_verdict(audit)}",
    ]


def audit_explorer() -> Dial:
    """Makes a dial for canaries, promise and size of a bug: one simulated audit.

    It is `simulate_one_run`: canaries and noise are the same whatever is promised.
    """
    return Dial(
        "12/audit_explorer",
        _audit_scene,
        canaries=(10, 20, 50, 200, 1000),
        epsilon=(1, 2, 3, 8),
        leak=(1, 1.5, 2, 4, 8),
    )


def _verdict(audit: SimulatedAudit) -> str:
    if audit.caught:
        return ", more than stated. Caught."
    if audit.ceiling < audit.stated:
        return f" and could prove {audit.ceiling:.2f} at most, so no bug of any size can be caught."
    return f" of the {audit.ceiling:.2f} it could prove at most; nothing is refuted."
