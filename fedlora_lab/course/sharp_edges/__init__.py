"""Twenty-nine pitfalls that run: each as a broken and a sound form with one number between them.

The broken forms live here, in the course and in tests only; nothing of the library imports them.

>>> import fedlora_lab as fl
>>> clip_of_the_mean = fl.sharp_edges.ALL[3]
>>> clip_of_the_mean
Pitfall 3, fatal: Clipping the mean gradient of a batch
>>> clip_of_the_mean.measure()  # how far one example moves the sum, in units of the clip norm
Measurement(broken=32.0, sound=1.0)
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fedlora_lab.course.sharp_edges import pitfalls
from fedlora_lab.course.sharp_edges.pitfalls import BUGS, GROUPS, Measurement, Pitfall

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ALL", "BUGS", "GROUPS", "Measurement", "Pitfall", "table"]

_NAMES = [one for one in vars(pitfalls).values() if isinstance(one, Pitfall)]
ALL: dict[int, Pitfall] = dict(sorted((one.number, one) for one in _NAMES))
"""Number -> pitfall, 1 to 29."""


def table(numbers: Iterable[int] | None = None) -> "pd.DataFrame":
    """Measures pitfalls and lists what their broken and sound forms give.

    Args:
        numbers: which; ``None``: all of them, some seconds.

    Returns:
        Indexed by number; columns edge, severity, measured (what, in words), broken, sound, line.

    Raises:
        KeyError: for a number that is none.
    """
    import pandas as pd

    rows = {}
    for number in ALL if numbers is None else numbers:
        one = ALL[number]
        line = f"{one.side} {one.line:.3g}"
        rows[number] = (one.title, one.severity, one.what, *one.measure(), line)
    columns = ["edge", "severity", "measured", "broken", "sound", "line"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename_axis("number")
