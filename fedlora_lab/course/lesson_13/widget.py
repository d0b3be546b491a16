"""The widget of notebook 13."""

from fedlora_lab.course.lesson_13 import figures
from fedlora_lab.course.widgets import controls


def trust_explorer() -> controls.InteractiveFigure:
    """Offers whom to trust, clients, promise and colluders beside `trust_comparison`."""
    kinds = [(f"{kind}: trust {words}", kind) for kind, words in figures.TRUSTS.items()]
    sees = "who may see single uploads, or their sum only"
    side = "clients that tell the server their own noise"
    knob, counts = controls.value_slider, (5, 10, 20, 50, 100, 300, 1000)
    promises, promised = (0.5, 1.0, 2.0, 4.0, 8.0), "to each client, one release"
    return controls.interactive_figure(
        figures.trust_comparison,
        trust=controls.menu("trust", kinds, "secagg", sees),
        clients=knob("clients", counts, 50, "clients in a round"),
        epsilon=knob("promised ε", promises, 2.0, promised),
        colluders=controls.slider("colluders", 10, 0, 49, 1, side),
    )
