"""Is this private training step what it claims to be? ``fl.review(step, data, claims)``.

The package itself can be called, and then makes one review. `opacus` and `flower` make one of what
those libraries hand out; docs/review.md shows how any other code is reviewed.

>>> import numpy as np
>>> import fedlora_lab as fl
>>> def forgets_to_clip(examples, seed):
...     noise = np.random.default_rng(seed).normal(size=20)
...     return {"gradient": np.sum([noise, *examples], axis=0)}
>>> data = list(np.random.default_rng(0).normal(size=(16, 20)))
>>> claims = fl.review.Claims(clip_norm=1.0, noise_multiplier=1.0)
>>> sorted(fl.review(forgets_to_clip, data, claims).broken)
['reach']
"""

import sys
from types import ModuleType

from fedlora_lab.review import museum
from fedlora_lab.review.adapters import flower, opacus
from fedlora_lab.review.claims import CHECKS, Check, Claims
from fedlora_lab.review.engine import engine
from fedlora_lab.review.review import Finding, Review, review

__all__ = ["CHECKS", "Check", "Claims", "Finding", "Review", "engine", "flower", "museum", "opacus"]


class _Callable(ModuleType):
    """A module that is also its main function: ``fl.review(...)`` and ``fl.review.opacus``."""

    __call__ = staticmethod(review)


sys.modules[__name__].__class__ = _Callable
