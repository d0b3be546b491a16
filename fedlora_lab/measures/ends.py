"""Measures of where runs ended, as a tidy frame beside theirs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedlora_lab.checks import check
from fedlora_lab.measures.curvature import flatness

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.record import Round


def sharpness(records: "Iterable[Round]", steps: int = 30) -> "pd.DataFrame":
    """Tidy frame with the measure "sharpness" of some records: the largest Hessian eigenvalue, see `flatness`.

    On the public test examples, in the coordinates of the factors. Large is sharp.

    Guarantees: test_lesson_07.py::test_sharpness.
    """
    import pandas as pd

    rows = []
    for record in records:
        check(record.source is not None, "record", "a copy without its task", "a record as run() yields it")
        top = flatness(record.source[0], record, steps=steps, tolerance=0.01).top  # type: ignore[index]
        rows.append((record.task, record.method, record.seed, record.index, "all", "sharpness", top))
    return pd.DataFrame(rows, columns=["task", "method", "seed", "round", "layer", "measure", "value"])
