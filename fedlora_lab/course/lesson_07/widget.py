"""The dial of notebook 07."""

from fedlora_lab.course.widgets.dial import Dial


def filter_explorer() -> Dial:
    """Offers filter, smoothness, noise and shuffled channels beside a gradient and its spectrum.

    Guarantees: shares are `theory.filtered_energy` (tests/browser/test_dials.py::test_formulas).
    """
    about = "A low-pass filter along the channels: what it keeps of a gradient, and of the noise."
    values = {"taps": 5, "smoothness": 0.6, "noise": 1.0, "shuffle": False}
    return Dial(7, "filter_explorer", about, **values)
