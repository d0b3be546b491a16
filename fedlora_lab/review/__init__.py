"""Tests from outside whether a private training step keeps what it claims.

Call ``fl.review.step(function, data, claims)``.

`engine` reviews this library's own step, `opacus` and `flower` what those libraries hand out;
docs/review.md shows how any other code is reviewed.

>>> import numpy as np
>>> import fedlora_lab as fl
>>> def forgets_to_clip(examples, seed):
...     noise = np.random.default_rng(seed).normal(size=20)
...     return {"gradient": np.sum([noise, *examples], axis=0)}
>>> data = list(np.random.default_rng(0).normal(size=(16, 20)))
>>> claims = fl.review.Claims(clip_norm=1.0, noise_multiplier=1.0)
>>> sorted(fl.review.step(forgets_to_clip, data, claims).broken)
['sensitivity']
"""

from fedlora_lab.review import mistakes
from fedlora_lab.review.adapters import flower, opacus
from fedlora_lab.review.claims import CHECKS, Check, Claims, Finding
from fedlora_lab.review.engine import engine
from fedlora_lab.review.review import Review, step

__all__ = [
    "CHECKS",
    "Check",
    "Claims",
    "Finding",
    "Review",
    "engine",
    "flower",
    "mistakes",
    "opacus",
    "step",
]
__dir__ = __all__.copy  # completion shows neither imports nor modules
