"""Widget of notebook 12: what an audit can show."""

from fedlora_lab.plots.auditing import audit_dial as draw
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial

CANARIES = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
PROMISES = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
LEAKS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 8.0)


def audit_dial() -> Dial:
    """Turn the number of canaries, the promise and the size of a bug; see what the audit proves, and could prove.

    Guarantees: test_lesson_12.py::test_the_widget_answers.
    """
    for canaries in CANARIES:  # the ceilings, once, so that no move waits for them
        draw(canaries, 2.0, 1.0)
    return dial(
        draw,
        canaries=controls.steps("canaries", CANARIES, 200, "examples planted, each in or out by a fair coin"),
        epsilon=controls.steps("stated ε", PROMISES, 2.0, "what the ledger states; it sets the noise"),
        leak=controls.steps("bug ×", LEAKS, 1.0, "how much louder than the clip norm a canary gets; 1 is no bug"),
    )
