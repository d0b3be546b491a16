"""Published methods as rows of a table: ``fl.methods.RoLoRA``, ``.get(slug)``, ``.table()``.

Every row of `published.py` is a name of this package; a new one is listed nowhere else.

>>> from fedlora_lab import methods
>>> methods.get("la-lora").replace(name="mine", filter=methods.FedLoRA.filter).slug
'mine'
"""

from fedlora_lab.methods import published
from fedlora_lab.methods.directions import Differences
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.published import *  # noqa: F403
from fedlora_lab.methods.quantization import normal_float

__all__ = [*published.__all__, "Differences", "normal_float"]
__dir__ = __all__.copy  # completion shows neither imports nor modules


def __getattr__(name: str) -> Method:
    """Finds a row by its published name or slug, as ``FFALoRA``, or says which one was meant."""
    row = None if name.startswith("_") else published.find(name)
    if row is None:
        nearest = "" if name.startswith("_") else published.suggest(name)
        meant = f"; did you mean {published.name_of(nearest)!r}, {nearest!r}?" if nearest else ""
        raise AttributeError(f"module 'fedlora_lab.methods' has no attribute {name!r}{meant}")
    return row
