"""Widgets of notebook 06: noise shaped by the resting factor, and a schedule to type."""

from typing import TYPE_CHECKING, Any

import ipywidgets as w

from fedlora_lab.method import Cycle, Method
from fedlora_lab.plots.regulator import CLIPS, regulator_words
from fedlora_lab.plots.regulator import regulator as draw_regulator
from fedlora_lab.plots.timeline import timeline, timeline_words
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial

if TYPE_CHECKING:
    from fedlora_lab.plots.style import Picture

SCHEDULES = {
    "RoLoRA, DEeR: B | A": "B | A",
    "FFA-LoRA: B": "B",
    "FedLoRA: AB": "AB",
    "LA-LoRA: B A": "B A",
    "A rarely: B | B | B | A": "B | B | B | A",
    "both, then B: AB | B": "AB | B",
}


def regulator() -> Dial:
    """The regulated noise ellipse: turn the peer and the noise, choose what is clipped, see what hides.

    Guarantees: test_the_regulator_widget_says_what_it_shows.
    """

    def plot(**values: Any) -> "tuple[Picture, str]":
        return draw_regulator(**values), regulator_words(**values)

    return dial(
        plot,
        first=controls.slider("peer, 1st", 1.8, 0.3, 2.6, 0.1, "largest stretch of the resting factor"),
        second=controls.slider("peer, 2nd", 0.6, 0.3, 2.6, 0.1, "stretch in the other direction"),
        angle=controls.slider("angle", 30, 0, 180, 5, "direction of the first stretch, in degrees"),
        sigma=controls.slider("noise σ", 1.0, 0.4, 2.5, 0.1, "noise multiplier; the clip norm is 1"),
        clip=controls.choice("clip on the", list(CLIPS), "factor", "what the clip bounds"),
    )


def schedule() -> Dial:
    """A timeline of which factor moves when: pick a published schedule or type one, rounds between bars.

    Guarantees: what is typed goes before what is picked; a word that is none is one readable line
        (test_the_schedule_widget_reads_what_is_typed).
    """

    def plot(known: str, own: str) -> "tuple[Picture, str]":
        cycle = Cycle(tuple(part.strip() for part in (own.strip() or known).split("|")))
        row = Method("typed", "", train=cycle)
        return timeline(cycle), timeline_words(row)

    typed = w.Text(
        value="", placeholder="such as B | B A | AB", description="or type one", continuous_update=True,
        tooltip="one part for each round, a word for each local step: A, B or AB", style=controls.STYLE,
        layout=w.Layout(width=controls.WIDE),
    )  # fmt: skip
    return dial(plot, known=controls.choice("schedule", list(SCHEDULES.items()), "B | A", "who moves when"), own=typed)
