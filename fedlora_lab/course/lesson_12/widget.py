"""The dial of notebook 12."""

from fedlora_lab.course.widgets.dial import Dial


def audit_explorer() -> Dial:
    """Offers canaries, promise and size of a bug beside one audit of a single noised sum.

    Canaries and noise are drawn in the browser, the same for every promise and bug.

    Guarantees: the bound is `audit.bounds.one_run_lower_bound`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "One audit in one run: what is seen of its canaries, and ε as proved, provable, stated."
    return Dial(12, "audit_explorer", about, canaries=200, epsilon=2, leak=1)
