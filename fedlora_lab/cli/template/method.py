"""A method of your own: a row, and the rule that is new about it.

python compare_MODULE.py compares it with published ones; pytest test_MODULE.py tries its rule.
"""

from dataclasses import dataclass

import fedlora_lab as fl
from fedlora_lab.methods.aggregation import MeanUpdate
from fedlora_lab.methods.state import ParamKey


@dataclass(frozen=True)
class MeanThenCap(MeanUpdate):
    """The mean, and then each layer's B is scaled down to a norm of at most ``most``.

    The server's rule sees what clients sent, which is noised already: it costs no privacy.
    """

    most: float = 0.2

    def __call__(self, state, broadcast, uploads, weights):
        after = super().__call__(state, broadcast, uploads, weights)
        capped = {}
        for layer in after.layers:
            b = after.tensors["B", layer]
            capped[ParamKey("B", layer)] = b * (self.most / b.norm()).clamp(max=1)
        return after.replace_tensors(capped)


# What is not said here is FedLoRA's: help(fl.Method) has every field.
ROW = fl.methods.FedLoRA.replace(name="TITLE", source="", aggregate=MeanThenCap())
