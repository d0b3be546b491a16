"""Arguments that do not fit a public signature are answered in one line: what was meant."""

import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from inspect import Parameter, Signature
from typing import Any, TypeVar

from fedlora_lab._utils.validation import describe_value, did_you_mean, synonyms

_T = TypeVar("_T")

SETTINGS = ("Plan", "Privacy", "Lora")
"""Classes whose fields are looked for where a keyword belongs to another part of a run."""
_FIELDS: dict[str, set[str]] = {}
"""Such a class -> its fields."""


class _Chosen:
    """Stands in a signature for a default that follows from other arguments."""

    def __repr__(self) -> str:
        return "chosen"


CHOSEN: Any = _Chosen()


class KeywordError(TypeError, ValueError):
    """Raised for arguments that do not fit a signature: Python's `TypeError`, and the `ValueError`
    of every other bad argument here.
    """


def explain_arguments(example: str = "") -> Callable[[_T], _T]:
    """Decorates a class or function: what does not fit its signature is answered in one line.

    Args: example: a call, shown where arguments do not fit; "": made of the signature.

    Raises: `KeywordError` at a call, which names keyword and value and says what to write.
    Guarantees: test_messages.py::test_a_natural_mistake_is_answered_by_what_to_write.

    >>> @explain_arguments()
    ... def train(*, rank: int = 4) -> int:
    ...     return rank
    >>> train(r=2)
    Traceback (most recent call last):
    fedlora_lab._utils.keywords.KeywordError: r=2: expected rank=2
    """

    def decorate(target: Any) -> Any:
        is_class = isinstance(target, type)
        function = target.__init__ if is_class else target
        signature = inspect.signature(function)
        name = target.__name__
        if is_class and name in SETTINGS:
            _FIELDS[name] = {one.name for one in fields(target)}

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            given = under_new_names(name, signature.parameters, given, warn=not is_class)
            # A subclass has fields of its own, and a copy is made without any argument.
            if not is_class or (args[0] is target and (args[1:] or given)):
                _check_arguments(name, signature, args, given, example)
            return object.__new__(args[0]) if is_class else function(*args, **given)

        if not is_class:
            return call

        def begin(self: Any, *args: Any, **given: Any) -> None:
            function(self, *args, **under_new_names(name, signature.parameters, given))

        target.__new__ = call  # before whatever else looks at the arguments
        target.__init__ = begin
        return target

    return decorate


def under_new_names(
    title: str, known: Collection[str], given: Mapping[str, Any], *, warn: bool = True
) -> dict[str, Any]:
    """Puts arguments that had another name in earlier versions under the one of today.

    Args: title: what is called. known: its arguments. given: those of the call. warn: says so.
    """
    former = synonyms("former")
    found = {}
    for name, value in given.items():
        today = former.get(name, name)
        if name in known or today not in known or today in given:
            today = name
        elif warn:
            warnings.warn(f"{title}: {name}= is called {today}= now", FutureWarning, stacklevel=3)
        found[today] = value
    return found


def _check_arguments(
    title: str, signature: Signature, args: tuple, given: Mapping[str, Any], example: str
) -> None:
    """Refuses arguments that do not fit a signature.

    Args: title: what is called. args, given: of the call. example: as of `with_help`.
    """
    parameters = signature.parameters.values()
    known = [one.name for one in parameters if one.name != "self"]
    takes_any = any(one.kind is Parameter.VAR_KEYWORD for one in parameters)
    for name, value in given.items():
        if name not in known and not takes_any:
            raise KeywordError(explain_keyword(title, name, value, known))
    try:
        signature.bind(*args, **given)
    except TypeError as error:
        expected = example or f"{title}({_needed(parameters)})"
        raise KeywordError(f"{title}(...): expected {expected}, but {error}") from None


def _needed(parameters: Collection[Parameter]) -> str:
    """The arguments of a call that have no default, else its first ones, and dots for others."""
    own = [one for one in parameters if one.name != "self" and one.kind.name[:3] != "VAR"]
    needed = [one for one in own if one.default is Parameter.empty]
    shown = needed or own[:3]
    words = [f"{one.name}=..." if one.kind is Parameter.KEYWORD_ONLY else one.name for one in shown]
    return ", ".join([*words, *["..."] * (len(shown) < len(own))])


def explain_keyword(title: str, name: str, value: object, known: Collection[str]) -> str:
    """Says in one line what to write in place of an unknown keyword.

    Args: title: what was called. name, value: of the keyword. known: those that it has.
    """
    text = describe_value(value, 60)
    field = synonyms("keywords").get(name, name)
    advice = synonyms("advice").get(field)
    if field in known:
        expected = f"{field}={text}"
    elif advice is not None:
        expected = advice.format(value=text)
    elif home := next((one for one in SETTINGS if field in _FIELDS.get(one, ())), ""):
        expected = f"it in fl.{home}, as fl.{home}({field}={text})"
    else:
        listed = f": {', '.join(known)}" if len(known) <= 20 else f", see help({title})"
        expected = f"a keyword of {title}{listed}{did_you_mean(name, known)}"
    return f"{name}={text}: expected {expected}"
