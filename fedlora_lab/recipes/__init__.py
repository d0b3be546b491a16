"""Recipes: settings that follow from public numbers. What trains a given setting stands in
`federated`, not here.

>>> import fedlora_lab as fl
>>> task, plan = fl.tasks.digits(), fl.Plan(rounds=20, batch=32)
>>> privacy = fl.Privacy(delta=1e-5, noise_multiplier=1.0)
>>> round(fl.recipes.suggest_lr(task, "fedlora", privacy, plan).lr, 2)
0.91
"""

from fedlora_lab.recipes.suggested_rates import suggest_lr

__all__ = ["suggest_lr"]
