"""The widget of notebook 02: clients as points, and the deviation they cause."""

from fedlora_lab.plots.explorer import PATTERNS, cloud, drawn, says
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial


def explorer() -> Dial:
    """Sliders for how far clients' B and A spread and go together; figure as `plots.explorer`.

    Guarantees: test_lesson_02.py::test_the_explorer_says_what_it_shows.
    """

    def draw(spread_B: float, spread_A: float, together: float, pattern: str) -> tuple:
        seen = cloud(spread_B, spread_A, together, pattern=pattern)
        return drawn(seen, spread_B, spread_A), says(seen, spread_B, spread_A)

    return dial(
        draw,
        spread_B=controls.slider("spread of B", 0.7, 0.0, 1.0, 0.05, "how far the clients' B lie apart"),
        spread_A=controls.slider("spread of A", 0.7, 0.0, 1.0, 0.05, "how far the clients' A lie apart; 0 freezes A"),
        together=controls.slider("correlation", 0.8, -1.0, 1.0, 0.1, "whether a large B comes with a large A"),
        pattern=controls.choice("clients", PATTERNS, PATTERNS[0], "a cloud of clients, or four in a square"),
    )
