"""The widgets of notebook 06."""

import ipywidgets as w

from fedlora_lab.course.lesson_06 import figures
from fedlora_lab.course.widgets import controls
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.plots import style

SCHEDULES = {
    "RoLoRA, DEeR: B | A": "B | A",
    "FFA-LoRA: B": "B",
    "FedLoRA: AB": "AB",
    "LA-LoRA: B A": "B A",
    "A rarely: B | B | B | A": "B | B | B | A",
    "both, then B: AB | B": "AB | B",
}


def schedule_explorer() -> controls.InteractiveFigure:
    """Offers published schedules, and a line to type one in, beside `timeline`; "|" ends a round.

    Guarantees: what is typed goes before what is picked; a word that is none is one readable line
        (test_the_schedule_widget_reads_what_is_typed).
    """

    def plot(known: str, own: str) -> tuple[style.Picture, str]:
        cycle = Cycle(tuple(part.strip() for part in (own.strip() or known).split("|")))
        return figures.timeline(cycle), figures.timeline_words(Method("typed", "", train=cycle))

    tip = "one part for each round, a word for each local step: A, B or AB"
    typed = controls.control_options("or type one", tip, placeholder="such as B | B A | AB")
    return controls.interactive_figure(
        plot,
        known=controls.menu("schedule", list(SCHEDULES.items()), "B | A", "who moves when"),
        own=w.Text(value="", continuous_update=True, **typed),
    )


def regulator_explorer() -> controls.InteractiveFigure:
    """Offers the frozen factor, the noise and what is clipped beside `regulator`."""
    knob, stretch = controls.slider, "singular value of the frozen factor"
    return controls.interactive_figure(
        figures.regulator,
        first=knob("1st stretch", 1.8, 0.3, 2.6, 0.1, stretch),
        second=knob("2nd stretch", 0.6, 0.3, 2.6, 0.1, "its other singular value"),
        angle=knob("angle", 30, 0, 180, 5, "direction of the first stretch, in degrees"),
        sigma=knob("noise σ", 1.0, 0.4, 2.5, 0.1, "noise multiplier; the clip norm is 1"),
        clip=controls.menu("clip on the", figures.CLIPS, "factor", "what the clip bounds"),
    )
