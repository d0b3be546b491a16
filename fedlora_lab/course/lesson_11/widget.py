"""The dial of notebook 11."""

from fedlora_lab.attacks.reconstruction import flattened_digits_task
from fedlora_lab.course.widgets.dial import Dial, round_to_digits

SCANS = 10


def attack_explorer() -> Dial:
    """Offers noise, releases, rank and scan beside the scan and what is read of its update.

    The browser makes the update of A and attacks it: a gradient clipped to C, noise on every entry.

    Guarantees: line and threshold are `theory.gradient_overlap` and `theory.vanishing_noise`
        (tests/browser/test_dials.py::test_formulas).
    """
    scans = flattened_digits_task().clients[0][0][:SCANS].flatten(1).double().numpy()
    about = "A scan, and what an attacker reads of it from one noised update."
    values = {"noise": 0.1, "releases": 1, "rank": 8, "scan": 7}
    return Dial(11, "attack_explorer", about, {"scans": round_to_digits(scans, 3)}, **values)
