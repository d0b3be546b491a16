"""The dials of notebook 06."""

from typing import Any

from fedlora_lab.course.widgets.dial import Dial, round_to_digits

SCHEDULES = {
    "RoLoRA, DEeR: B | A": "B | A",
    "FFA-LoRA: B": "B",
    "FedLoRA: AB": "AB",
    "LA-LoRA: B A": "B A",
    "A rarely: B | B | B | A": "B | B | B | A",
    "both, then B: AB | B": "AB | B",
}


def schedule_explorer() -> Dial:
    """Offers published schedules, and a line to type one in, beside who moves when.

    Guarantees: what is typed goes before what is picked; a word that is none is one readable line
        (tests/browser/test_dials.py::test_a_schedule_is_typed); the counts are those of
        `figures.timeline_words` (test_formulas).
    """
    known = [[schedule, words] for words, schedule in SCHEDULES.items()]
    about = "Who moves when, over rounds and local steps, and where the mean of products is missed."
    return Dial(6, "schedule_explorer", about, {"known": known}, known="B | A", own="")


def regulator_explorer() -> Dial:
    """Offers the frozen factor, the noise and what is clipped beside how well a change hides.

    Guarantees: the separation is 1 / `theory.regulated_multiplier`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "Noise shaped by a frozen factor, and the worst of the changes that the clip allows."
    values = {"first": 1.8, "second": 0.6, "angle": 30, "sigma": 1.0, "clip": "factor"}
    return Dial(6, "regulator_explorer", about, **values)


def rounds_explorer(path: list[dict[str, Any]], sigma: float) -> Dial:
    """Offers the round of a run beside the shape of its noise, and the path of the two factors.

    Args: path: of `figures.turns_path`; sigma: noise multiplier of the run, > 0.
    Guarantees: the worst change of a round is that of `figures.turns_strip`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "A run in turns, round by round: noise shaped by the frozen factor, and the factors."
    words = {"moves", "rests"}
    sent = [{k: v if k in words else round_to_digits(v) for k, v in one.items()} for one in path]
    return Dial(6, "rounds_explorer", about, {"path": sent, "sigma": sigma}, round=1, clip="factor")
