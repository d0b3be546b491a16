"""Draws figures of runs from tidy frames.

Each method has one colour in all of them, and each mean its band.

>>> import fedlora_lab as fl
>>> task, plan = fl.tasks.regression(clients=2, examples=8), fl.Plan(rounds=2, local_steps=1)
>>> frame = fl.to_frame(fl.run(task, "fedlora", None, plan))
>>> fl.plots.curves(frame, "loss").axes[0].get_title(loc="left")
'Test loss'
"""

from fedlora_lab.plots.interval_plot import intervals
from fedlora_lab.plots.line_plot import lines
from fedlora_lab.plots.noise_alone import noise_alone
from fedlora_lab.plots.training_curves import curves, deviation

__all__ = [
    "curves",
    "deviation",
    "intervals",
    "lines",
    "noise_alone",
]
__dir__ = __all__.copy  # completion shows neither imports nor modules
