"""The widget of notebook 12."""

from fedlora_lab.audit import simulated_audits as audits
from fedlora_lab.course.lesson_12 import figures
from fedlora_lab.course.widgets import controls


def audit_explorer() -> controls.InteractiveFigure:
    """Offers canaries, promise and size of a bug beside `one_run_audit`."""
    counts, knob = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000), controls.value_slider
    for count in counts:  # the ceilings, once, so that no move waits for them
        audits.cached_ceiling(count, audits.DELTA, 0.05)
    coin = "examples injected, each in or out by a fair coin"
    bug = "how much louder than the clip norm a canary gets; 1 is no bug"
    sigma = "the ledger's ε; it sets the noise"
    return controls.interactive_figure(
        figures.one_run_audit,
        canaries=knob("canaries", counts, 200, coin),
        epsilon=knob("stated ε", (0.5, 1.0, 2.0, 3.0, 5.0, 8.0), 2.0, sigma),
        leak=knob("bug ×", (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0), 1.0, bug),
    )
