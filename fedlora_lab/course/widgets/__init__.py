"""Widgets for notebooks: a workbench for runs.

Nothing is trained before Start is pressed.

>>> import fedlora_lab as fl
>>> run = fl.course.widgets.live(fl.tasks.regression(clients=2), method="ffa-lora", epsilon=4)
>>> run.values["method"], run.values["epsilon"]
('ffa-lora', '4')
>>> run.close()
"""

from fedlora_lab._utils.environment import require

require("anywidget", "lab")

from fedlora_lab.course.widgets.live_run import live  # noqa: E402

__all__ = ["live"]
__dir__ = __all__.copy  # completion shows neither imports nor modules
