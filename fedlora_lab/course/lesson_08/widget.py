"""The widget of notebook 08."""

from functools import partial
from typing import Any

from fedlora_lab.course.lesson_08 import figures
from fedlora_lab.course.widgets import controls


def quantiser_explorer(trained: Any = None) -> controls.InteractiveFigure:
    """Offers bits, block and what is quantised beside `quantiser`.

    Args: trained: numbers of a trained factor, offered beside made ones.
    """
    blocks = (8, 16, 32, 64, 128, 256)
    kinds = figures.KINDS if trained is not None else figures.KINDS[:2]
    for block in blocks:  # an integral for each, once, so that no move waits for it
        figures.expected_errors(block)
    bits = "bits of a code: 2 to the power of them levels"
    return controls.interactive_figure(
        partial(figures.quantiser, trained=trained),
        width=controls.slider("bits", 3, 2, 8, 1, bits),
        block=controls.value_slider("block", blocks, 64, "numbers that share a scale"),
        kind=controls.menu("numbers", kinds, kinds[0], "what is quantised"),
    )
