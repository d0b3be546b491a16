"""The type checker that pytest puts over fedlora_lab (`--jaxtyping-packages` in pyproject.toml).

It holds the package to the shapes in its signatures. Plain annotations (int, float, str) are left
alone: what users pass there is validated by the package itself, with its own one-line errors.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import cache, partial, wraps
from inspect import isfunction
from types import CodeType
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

CONFIG = BeartypeConf(is_pep484_tower=True)
FIRST = 1
"""How many calls of a function are checked in one test: a training calls it thousands of times with
the same shapes, and to bind arguments takes as long as a step of a small model."""
calls: Counter[CodeType] = Counter()
"""A function's code -> calls in this test; every test begins anew (conftest.py). An inner function,
which is made at every call of the outer one, is counted over all of them."""
WRITTEN = re.compile(r"\b(Shaped|Bool|Num|Inexact|Float|BFloat|Complex|Integer|U?Int|Real)\d*\[")


def has_shape(hint: Any) -> bool:
    """Whether a jaxtyping annotation occurs anywhere in a type hint, which may still be text."""
    if isinstance(hint, str):
        return WRITTEN.search(hint) is not None
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(inner) for inner in get_args(hint))


def sparing(jaxtyped: Callable) -> Callable:
    """jaxtyping's decorator, left away from functions without shapes, and from calls after the
    FIRST of a test: to bind their arguments at every call doubles the time of the tests.
    """

    def decorator(function: Any = None, *, typechecker: Any) -> Any:
        if function is None:
            return partial(decorator, typechecker=typechecker)
        if not isfunction(function):
            return jaxtyped(function, typechecker=typechecker)
        if not any(map(has_shape, function.__annotations__.values())):
            return function
        code = function.__code__

        @cache
        def held() -> Any:
            return jaxtyped(function, typechecker=typechecker)

        @wraps(function)
        def either(*args: Any, **options: Any) -> Any:
            calls[code] += 1
            return (held() if calls[code] <= FIRST else function)(*args, **options)

        return either

    return decorator


def typechecked(function: Callable) -> Callable:
    """Beartype, on the annotations that speak of shapes."""
    kept = {name: hint for name, hint in function.__annotations__.items() if has_shape(hint)}
    if not kept:
        return function
    function.__annotations__ = kept
    return beartype(conf=CONFIG)(function)
