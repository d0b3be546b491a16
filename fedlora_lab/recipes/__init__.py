"""Settings for a run on your own data: `finetune` chooses them.

They come from runs that were tuned here, or follow from public numbers. `protocol` has the settings
at which every row of the open table is trained.

>>> from fedlora_lab import recipes
>>> recipes.tuned_rate("digits", "rolora", epsilon=1.0)
0.04
"""

from fedlora_lab.recipes.tuned_rates import suggest_lr, suggestion, tuned_rate

__all__ = ["suggest_lr", "suggestion", "tuned_rate"]
