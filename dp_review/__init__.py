"""Tests from outside whether a private training step keeps what it claims.

Call ``dp_review.step(function, data, claims)``; `opacus` makes the step of a training with Opacus.

>>> import numpy as np
>>> import dp_review
>>> def forgets_to_clip(examples, seed):
...     noise = np.random.default_rng(seed).normal(size=20)
...     return {"gradient": np.sum([noise, *examples], axis=0)}
>>> data = list(np.random.default_rng(0).normal(size=(16, 20)))
>>> claims = dp_review.Claims(clip_norm=1.0, noise_multiplier=1.0)
>>> sorted(dp_review.step(forgets_to_clip, data, claims).broken)
['sensitivity']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dp_review import mistakes
    from dp_review.claims import CHECKS, Check, Claims, Finding
    from dp_review.opacus_step import opacus
    from dp_review.review import Review, step

__version__ = "0.2.0"
__all__ = ["CHECKS", "Check", "Claims", "Finding", "Review", "mistakes", "opacus", "step"]
__dir__ = __all__.copy  # completion shows neither imports nor modules


def __getattr__(name: str) -> Any:
    # Every run of pytest imports this package for its fixture: SciPy is loaded at the first use.
    if name == "mistakes":
        return import_module("dp_review.mistakes")
    for home in ("claims", "opacus_step", "review"):
        if name in __all__:
            module = import_module(f"dp_review.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module 'dp_review' has no attribute {name!r}")
