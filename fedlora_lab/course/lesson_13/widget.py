"""The dial of notebook 13."""

from fedlora_lab.course.widgets.dial import Dial


def trust_explorer() -> Dial:
    """Offers whom to trust, clients, promise and colluders beside the noise and who faces which ε.

    Guarantees: noise and ε are `theory.trust_level` and those of `theory.surviving_multiplier`
        (tests/browser/test_dials.py::test_formulas).
    """
    about = "One promise under three kinds of trust: the noise it needs, and who faces which ε."
    values = {"trust": "secagg", "clients": 50, "epsilon": 2, "colluders": 10}
    return Dial(13, "trust_explorer", about, **values)
