"""The dial of notebook 08."""

from typing import Any

import numpy as np
import torch

from fedlora_lab.course.lesson_08 import figures
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.methods.quantization import normal_float

BLOCKS, BINS = (8, 16, 32, 64, 128, 256), 60


def quantiser_explorer(trained: Any = None) -> Dial:
    """Offers bits, block and what is quantised beside the levels, what arrives and the error.

    The library's quantiser runs here, once for every choice; its errors are sent.

    Args: trained: numbers of a trained factor, offered beside made ones.
    Guarantees: the levels are `normal_levels` (tests/browser/test_dials.py::test_formulas).
    """
    kinds = figures.KINDS if trained is not None else figures.KINDS[:2]
    histograms, errors = [], []
    for kind in kinds:
        row = figures._numbers(kind, trained)
        received = [
            [normal_float(width, block)(torch.from_numpy(row)).numpy() for width in figures.WIDTHS]
            for block in BLOCKS
        ]
        errors.append(np.linalg.norm(np.array(received) - row, axis=2) / np.linalg.norm(row))
        histograms.append([_histogram(row, block) for block in BLOCKS])
    data = {
        "kinds": list(kinds),
        "blocks": list(BLOCKS),
        "widths": list(figures.WIDTHS),
        "histograms": round_to_digits(histograms, 2),
        "errors": round_to_digits(errors),
        "closed": round_to_digits([figures.expected_errors(block) for block in BLOCKS]),
    }
    about = (
        "A normal-float code: its levels, what arrives of a number, and the error over the bits."
    )
    return Dial(8, "quantiser_explorer", about, data, width=3, block=64, kind=kinds[0])


def _histogram(row: np.ndarray, block: int) -> np.ndarray:
    """Density of the numbers over the largest of their block, in [-1, 1]."""
    padded = np.pad(row, (0, -len(row) % block)).reshape(-1, block)
    scale = np.abs(padded).max(1, keepdims=True)
    unit = (padded / np.where(scale > 0, scale, 1)).ravel()[: len(row)]
    return np.histogram(unit, np.linspace(-1, 1, BINS + 1), density=True)[0]
