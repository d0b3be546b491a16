"""The type checker that pytest puts over fedlora_lab (see `--jaxtyping-packages` in pyproject.toml).

It holds the package to the shapes in its signatures. Plain annotations (int, float, str) are left alone: what users
pass there is validated by the package itself, with its own one-line errors, and those are what the tests must meet.
"""

from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

CONFIG = BeartypeConf(is_pep484_tower=True)


def has_shape(hint: Any) -> bool:
    """Whether a jaxtyping annotation occurs anywhere in a type hint."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(inner) for inner in get_args(hint))


def typechecked(function: Callable) -> Callable:
    """Beartype, on the annotations that speak of shapes."""
    kept = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    if not kept:
        return function
    function.__annotations__ = kept
    return beartype(conf=CONFIG)(function)
