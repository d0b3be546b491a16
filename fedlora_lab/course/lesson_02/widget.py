"""The dial of notebook 02."""

from fedlora_lab.course.widgets.dial import Dial

START = [[1.83, 1.77], [1.24, 1.44], [0.41, 0.67], [0.17, 0.24], [0.76, 0.56], [1.59, 1.32]]


def deviation_explorer() -> Dial:
    """Offers clients as points to drag, (B, A) each, with the deviation D and each client's part.

    Guarantees: the numbers are `theory.deviation` (tests/browser/test_dials.py::test_formulas).
    """
    about = "Clients as points to drag: what averaging their factors misses of their products."
    return Dial(2, "deviation_explorer", about, points=START, weight=1 / 6)
