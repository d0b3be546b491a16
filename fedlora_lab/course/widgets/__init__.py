"""Widgets for notebooks: a workbench for runs, a live figure.

Nothing is trained before Start is pressed.

>>> import fedlora_lab as fl
>>> run = fl.course.widgets.live(fl.tasks.regression(clients=2), method="ffa-lora", epsilon=4)
>>> run.values["method"], run.values["epsilon"]
('ffa-lora', '4')
>>> run.close()
"""

from fedlora_lab.course.widgets.live_run import live
from fedlora_lab.plots.live_figure import live_figure

__all__ = ["live", "live_figure"]


def __dir__() -> list[str]:
    return __all__
