"""Published methods as rows of a table: ``fl.methods.RoLoRA``, ``.get(slug)``, ``.table()``.

Every row of `published.py` is a name of this package; a new one is listed nowhere else.

>>> from fedlora_lab import methods
>>> methods.get("la-lora").replace(name="mine", filter=methods.FedLoRA.filter).slug
'mine'
"""

from fedlora_lab.methods import published
from fedlora_lab.methods.directions import Differences
from fedlora_lab.methods.published import *  # noqa: F403
from fedlora_lab.methods.quantization import normal_float

__all__ = [*published.__all__, "Differences", "normal_float"]
__dir__ = __all__.copy  # completion shows neither imports nor modules
