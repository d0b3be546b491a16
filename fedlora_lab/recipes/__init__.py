"""Recipes: fine-tuning on your own data, learning rates by which it trains, predictions, and the
open table's protocol. What trains a given setting stands in `federated`, not here.

`finetune` chooses what is not given, by rates that were tuned on the library's tasks or that follow
from public numbers. `protocol` has the settings at which every row of the open table is trained.

>>> from fedlora_lab import recipes
>>> recipes.tuned_rate("digits", "rolora", epsilon=1.0)
0.04
"""

from fedlora_lab.recipes.tuned_rates import nearest_tuned_rate, suggest_lr, tuned_rate

__all__ = ["nearest_tuned_rate", "suggest_lr", "tuned_rate"]
