"""Widget of notebook 13: whom the noise protects from."""

from fedlora_lab.plots.trusting import TRUSTS
from fedlora_lab.plots.trusting import trust_picker as draw
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial


def trust_picker() -> Dial:
    """Pick whom to trust, how many clients there are, the promise, and how many side with the server.

    Guarantees: test_lesson_13.py::test_the_widget_answers.
    """
    kinds = [(f"{words}: {kind}", kind) for kind, words in TRUSTS.items()]
    return dial(
        draw,
        trust=controls.choice("trust in", kinds, "secagg", "who may see single uploads, or their sum only"),
        clients=controls.steps("clients", (5, 10, 20, 50, 100, 300, 1000), 50, "clients in a round"),
        epsilon=controls.steps("promised ε", (0.5, 1.0, 2.0, 4.0, 8.0), 2.0, "to each client, one release"),
        colluders=controls.slider("colluders", 10, 0, 49, 1, "clients that tell the server their own noise"),
    )
