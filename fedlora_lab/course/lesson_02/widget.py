"""The widget of notebook 02."""

from fedlora_lab.course.lesson_02 import figures
from fedlora_lab.course.widgets import controls


def deviation_explorer() -> controls.InteractiveFigure:
    """Offers how far clients' B and A spread and go together beside `client_cloud`."""
    apart, both = "how far the clients' {} lie apart", "whether a large B comes with a large A"
    four = "a cloud of clients, or four in a square"
    return controls.interactive_figure(
        figures.client_cloud,
        spread_B=controls.slider("spread of B", 0.7, 0.0, 1.0, 0.05, apart.format("B")),
        spread_A=controls.slider("spread of A", 0.7, 0.0, 1.0, 0.05, apart.format("A")),
        correlation=controls.slider("correlation", 0.8, -1.0, 1.0, 0.1, both),
        pattern=controls.menu("clients", figures.PATTERNS, "cloud", four),
    )
