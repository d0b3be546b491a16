"""Widgets for notebooks: live run, method comparison, method composer, interactive figures.

Nothing is trained before Start is pressed.

>>> import fedlora_lab as fl
>>> run = fl.widgets.live(fl.tasks.regression(clients=2), method="ffa-lora", epsilon=4)
>>> run.settings.method.value.name, run.settings.epsilon.value
('FFA-LoRA', 4.0)
>>> run.close()
"""

from fedlora_lab.course.widgets.budget_sweep import method_comparison
from fedlora_lab.course.widgets.composer import method_composer
from fedlora_lab.course.widgets.controls import interactive_figure
from fedlora_lab.course.widgets.live_run import draw_predictions, live, live_figure

__all__ = [
    "draw_predictions",
    "interactive_figure",
    "live",
    "live_figure",
    "method_comparison",
    "method_composer",
]
