"""The dial of lesson 06: schedules."""

import numpy as np

from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, line, panel
from fedlora_lab.methods.method import Cycle, Method

SCHEDULES = {
    "B | A": "RoLoRA, DEeR: B | A",
    "B": "FFA-LoRA: B",
    "AB": "FedLoRA: AB",
    "B A": "LA-LoRA: B A",
    "B | B | B | A": "A rarely: B | B | B | A",
    "AB | B": "both, then B: AB | B",
}
"""Words for each local step, rounds apart by bars -> what it is called."""
ROUNDS = 6
STEPS = 4
FACTORS = {"B": (1, "blue"), "A": (0, "orange")}


def _rounds_of_both(method: Method) -> list[int]:
    """Lists the rounds, from 1 on, in which both factors move."""
    return [t + 1 for t in range(ROUNDS) if len(method.factors_in_round(t, STEPS)) > 1]


def timeline_scene(method: Method) -> Scene:
    """Draws a schedule over six rounds of four local steps: a filled cell where a factor moves."""
    words = [method.factors_at_step(t, s) for t in range(ROUNDS) for s in range(STEPS)]
    both = _rounds_of_both(method)
    marks = []
    names = []
    for factor, (row, colour) in FACTORS.items():
        moves = np.array([factor in word for word in words])
        step = np.arange(len(words))
        for some, ink in ((step[~moves], "pale"), (step[moves], colour)):
            marks.append(bars(some + 0.1, row + 0.15, some + 0.9, row + 0.85, ink))
        names.append(f"{factor}  {moves.mean():.0%}")
    middles = [(t + 0.5) * STEPS for t in range(ROUNDS)]
    title = "One factor is frozen in every round"
    if both:
        title = f"Both factors move in {len(both)} of {ROUNDS} rounds"
    edges = [line(t * STEPS, [0, 2], "ink", width=1.8) for t in range(1, ROUNDS)]
    numbers = [str(t + 1) for t in range(ROUNDS)]
    shown = panel(
        title,
        axis("round", 0, ROUNDS * STEPS, ticks=middles, names=numbers),
        axis("", 0, 2, ticks=[1.5, 0.5], names=names),
        *marks,
        *edges,
        wide=True,
        height=170,
    )
    return [shown], timeline_words(method)


def timeline_words(method: Method) -> str:
    """Describes a schedule: how often factors move, when the mean is exact, what is sent."""
    words = [method.factors_at_step(t, s) for t in range(ROUNDS) for s in range(STEPS)]
    shares = [
        f"{factor} moves in {np.mean([factor in word for word in words]):.0%}" for factor in FACTORS
    ]
    both = _rounds_of_both(method)
    rounds = ", ".join(map(str, both))
    exact = f"the mean of the products is missed in rounds {rounds}, where both move"
    if not both:
        exact = "one factor is fixed in every round, so the mean of the products is exact"
    elif len(both) == ROUNDS:
        exact = "both move in every round, so the mean of the products is missed"
    sent = sum(len(method.factors_in_round(t, STEPS)) for t in range(ROUNDS)) / (2 * ROUNDS)
    return f"{' of the steps, '.join(shares)}; {exact}. Sent up: {sent:.0%} of FedLoRA's."


def schedule_explorer() -> Dial:
    """Makes a dial for schedules: which factor moves when."""

    def scene(schedule: str) -> Scene:
        rounds = tuple(part.strip() for part in schedule.split("|"))
        return timeline_scene(Method("of the dial", "", schedule=Cycle(rounds)))

    return Dial("06/schedule_explorer", scene, schedule=SCHEDULES)
