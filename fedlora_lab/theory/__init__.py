"""The closed forms of the library as functions on NumPy arrays.

Each names the test that holds it. A formula of one lesson alone stands in that lesson's folder.

Convention: W = W0 + scaling B A with B (d_out, r), A (r, d_in); norms are Frobenius norms unless
another is named.

>>> from fedlora_lab import theory
>>> round(theory.gdp_epsilon(theory.gaussian_mu(noise_multiplier=2.0, steps=4), delta=1e-5), 2)
4.38
"""
# ruff: noqa: F403

from fedlora_lab.theory.gaussian_dp import *
from fedlora_lab.theory.products import *


def __dir__() -> list[str]:
    """The closed forms and their results, without what their modules import."""
    return sorted(
        name
        for name, thing in globals().items()
        if str(getattr(thing, "__module__", "")).startswith(f"{__name__}.")
    )
