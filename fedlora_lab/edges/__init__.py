"""The sharp edges as something that runs: ``fl.edges.ALL[3].told()`` measures a mistake and its sound form.

The broken forms live here, in the course and in tests only; nothing of the library imports this room.
"""

from typing import TYPE_CHECKING

from fedlora_lab.edges import chance, clipping, counting, learning, saying
from fedlora_lab.edges.bugs import BUGS
from fedlora_lab.edges.edge import GROUPS, Edge, Told

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALL", "BUGS", "GROUPS", "Edge", "Told", "table"]

_EVERY = (*counting.EDGES, *clipping.EDGES, *learning.EDGES, *saying.EDGES, *chance.EDGES)
ALL: dict[int, Edge] = {one.number: one for one in sorted(_EVERY, key=lambda one: one.number)}
"""Number -> edge, 1 to 29."""


def table(numbers: "tuple[int, ...] | list[int] | None" = None) -> "pd.DataFrame":
    """Measure edges: index number; edge, severity, what is measured, broken, sound, and the line between them.

    Args: numbers: which; ``None``: all of them, some seconds.
    Raises: ``KeyError`` for a number that is none.
    """
    import pandas as pd

    rows = []
    for one in (ALL[number] for number in (ALL if numbers is None else numbers)):
        told = one.told()
        rows.append({"number": one.number, "edge": one.title, "severity": one.severity, "measured": one.what,
                     "broken": told.broken, "sound": told.sound, "line": f"{one.side} {one.line:.3g}"})  # fmt: skip
    return pd.DataFrame(rows).set_index("number")
