"""Every dial of the course, what it shows where its controls stand, and how a reader turns it."""

from typing import Any

SETUP = """
import time
import numpy as np
import torch
import fedlora_course as course
import fedlora_lab as fl
rng = np.random.default_rng(0)
rows = rng.standard_normal((600, 50)) * np.exp(1.5 * rng.standard_normal((600, 1))) / 7 + 0.02
change = np.diag(2.0 ** (1 - np.arange(64)))
small = torch.ones(2, 2, dtype=torch.float64)
layers = [{"q": (small, t * small, 0.1 * t * small, 0.2 * t * small)} for t in range(21)]
split = [(None, 2.0, layer) for layer in layers]
"""
DIALS = {
    "low rank": "course.lesson(1).low_rank_explorer(change)",
    "deviation": "course.lesson(2).deviation_explorer()",
    "two worlds": "course.lesson(3).two_worlds()",
    "clip": "course.lesson(3).clip_explorer(rows)",
    "film": "course.lesson(4).matrix_film(split, 'q')",
    "schedule": "course.lesson(6).schedule_explorer()",
    "regulator": "course.lesson(7).regulator_explorer()",
    "quantiser": "course.lesson(14).quantiser_explorer(rows)",
    "audit": "course.lesson(12).audit_explorer()",
    "trust": "course.lesson(13).trust_explorer()",
}
"""Name -> the call that makes it, after `SETUP`."""

_ROOM: dict[str, Any] = {}


def make_dial(name: str) -> Any:
    """Makes a dial of `DIALS` in this process."""
    if not _ROOM:
        exec(SETUP, _ROOM)
    return eval(DIALS[name], _ROOM)


def shown(dial: Any, **values: Any) -> Any:
    """What the browser shows of a dial where its controls stand: panels, and the sentence."""
    stands = {**dial.values, **values}
    controls = dial.spec["controls"]

    def choose(part: Any) -> Any:
        if isinstance(part, list):
            return [choose(one) for one in part]
        if not isinstance(part, dict):
            return part
        if "table" not in part:
            return {key: choose(one) for key, one in part.items()}
        place = 0
        for name in part["by"]:
            stops = controls[name]["values"]
            place = place * len(stops) + stops.index(stands[name])
        return part["table"][place]

    return choose(dial.spec["panels"]), "".join(one["words"] for one in choose(dial.spec["say"]))


def look(output):
    """The picture of a dial, and its sentence."""
    return output.locator(".panels").inner_html(), output.locator(".say").inner_text()


def turn(output):
    """Turns the first control by the keyboard as far as it goes, or picks another option: picture
    and sentence follow."""
    picture, sentence = look(output)
    knob = output.locator(".knob input, .knob select").first
    if knob.evaluate("e => e.tagName") == "SELECT":
        knob.select_option(index=knob.evaluate("e => e.selectedIndex ? 0 : e.length - 1"))
    else:
        value = knob.input_value()
        knob.press("End")
        if knob.input_value() == value:
            knob.press("Home")
    assert look(output)[0] != picture and look(output)[1] != sentence
