"""Widget of notebook 08: what a code of few levels does to numbers."""

from typing import Any

from jaxtyping import Float

from fedlora_lab.plots.quantising import KINDS, closed_line
from fedlora_lab.plots.quantising import quantiser_explorer as draw
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial

BLOCKS = (8, 16, 32, 64, 128, 256)


def quantiser_explorer(trained: "Float[Any, '...'] | None" = None) -> Dial:
    """Turn bits and block, choose what is quantised; figure as `plots.quantiser_explorer`.

    Args: trained: numbers of a trained factor, offered beside made ones.
    Guarantees: test_lesson_08.py::test_the_widget_says_what_it_shows.
    """
    for block in BLOCKS:  # an integral for each, once, so that no move waits for it
        closed_line(block)
    kinds = KINDS if trained is not None else KINDS[:2]

    def plot(width: int, block: int, kind: str) -> tuple:
        return draw(width, block, kind, trained)

    return dial(
        plot,
        width=controls.slider("bits", 3, 2, 8, 1, "bits of a code: 2 to the power of them levels"),
        block=controls.steps("block", BLOCKS, 64, "numbers that share a scale"),
        kind=controls.choice("numbers", kinds, kinds[0], "what is quantised"),
    )
