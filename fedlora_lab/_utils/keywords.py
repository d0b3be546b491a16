"""Keywords of what is public: its signature names them, and an unknown one is answered."""

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, fields
from inspect import Parameter, Signature
from typing import Any, TypeVar

from fedlora_lab._utils.validation import did_you_mean

_T = TypeVar("_T")

SYNONYMS = {
    # of PEFT
    **dict.fromkeys(("r", "lora_r", "lora_rank"), "rank"),
    "lora_alpha": "alpha",
    "use_rslora": "rslora",
    "target_modules": "targets",
    "modules_to_save": "head",
    # of PyTorch, optax and Flower
    **dict.fromkeys(("learning_rate", "eta", "step_size"), "lr"),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size", "expected_batch_size"), "batch"),
    **dict.fromkeys(("num_rounds", "n_rounds", "num_server_rounds"), "rounds"),
    **dict.fromkeys(("steps", "num_local_steps", "local_iterations"), "local_steps"),
    **dict.fromkeys(("fraction_fit", "fraction_train", "client_fraction"), "participation"),
    **dict.fromkeys(("random_state", "random_seed", "rng"), "seed"),
    **dict.fromkeys(("num_clients", "n_clients"), "clients"),
    "checkpoint_dir": "checkpoint",
    # of Opacus, jax_privacy and papers
    **dict.fromkeys(("max_grad_norm", "l2_norm_clip", "l2_clip_norm", "clip", "C"), "clip_norm"),
    **dict.fromkeys(("noise", "sigma", "noise_scale", "noise_std"), "noise_multiplier"),
    **dict.fromkeys(("q", "sampling_rate", "sampling_prob"), "sample_rate"),
    **dict.fromkeys(("eps", "target_epsilon", "max_epsilon"), "epsilon"),
    "target_delta": "delta",
    # of a method
    **dict.fromkeys(("schedule", "cycle"), "train"),
    **dict.fromkeys(("aggregation", "aggregator"), "aggregate"),
}
"""What a keyword is called elsewhere -> here."""
_EPOCHS = "rounds=... and local_steps=... of fl.Plan: a client's epoch is about rows / batch steps"
_ALONE = "none: the clients of a run train as one batch, and torch.set_num_threads sets the cores"
ADVICE = {
    "epsilon": "fl.Privacy(...).calibrate(epsilon={value}, task=task, plan=plan), which finds the "
    "noise for it",
    "clients": "it in the task, as in fl.tasks.digits(clients={value})",
    "momentum": "optimizer=fl.SGD(momentum={value}) of fl.Plan",
    "weight_decay": "optimizer=fl.SGD(weight_decay={value}) of fl.Plan",
    "lora_dropout": "none: adapters are trained without dropout",
    **dict.fromkeys(("epochs", "num_epochs", "local_epochs", "num_train_epochs"), _EPOCHS),
    **dict.fromkeys(("n_jobs", "jobs", "num_workers", "workers"), _ALONE),
}
"""What to write for a keyword that nothing here has."""


SETTINGS = ("Plan", "Privacy", "Lora")
"""Classes whose fields are looked for where a keyword belongs to another part of a run."""
_FIELDS: dict[str, set[str]] = {}
"""Such a class -> its fields."""


class _Chosen:
    """Stands in a signature for a default that follows from other arguments."""

    def __repr__(self) -> str:
        return "chosen"


CHOSEN = _Chosen()


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
        if isinstance(target, type):
            if target.__name__ in SETTINGS:
                _FIELDS[target.__name__] = {one.name for one in fields(target)}
            # A subclass has a constructor of its own.
            target.__init__ = checked(target.__init__, target.__name__)
            return target
        return checked(target, target.__name__)

    def checked(function: Callable, title: str) -> Callable:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            _check_arguments(title, signature, args, given, example)
            return function(*args, **given)

        return call

    return decorate


def with_help(
    *declarations: Iterable[Parameter],
    without: Collection[str] = (),
    default: object = MISSING,
    example: str = "",
) -> Callable[[_T], _T]:
    """Decorates a class or function: what does not fit its signature is answered in one line.

    Args:
        declarations: parameters that a function's ``**options`` stands for; its signature, and so
            ``help`` and Shift+Tab, then name them with types and defaults.
        without: names that are left out of these.
        default: shown for all of them in place of their own.
        example: a call, shown where arguments do not fit; "": made of the signature.

    Raises: `KeywordError` at a call, which names keyword and value and says what to write.
    Guarantees: test_messages.py::test_a_natural_mistake_is_answered_by_what_to_write,
        ::test_signatures_name_the_options_that_are_taken.

    >>> @with_help()
    ... def train(*, rank: int = 4) -> int:
    ...     return rank
    >>> train(r=2)
    Traceback (most recent call last):
    fedlora_lab._utils.keywords.KeywordError: r=2: expected rank=2
    """
    options = {one.name: one for given in declarations for one in given if one.name not in without}
    if default is not MISSING:
        options = {name: one.replace(default=default) for name, one in options.items()}

    def decorate(target: Any) -> Any:
        if isinstance(target, type):
            return _explain_class(target, example)
        own = inspect.signature(target)
        named = [one for one in own.parameters.values() if one.kind is not Parameter.VAR_KEYWORD]
        further = options.keys() - own.parameters.keys()
        named += [
            one.replace(kind=Parameter.KEYWORD_ONLY)
            for name, one in options.items()
            if name in further
        ]
        signature = own.replace(parameters=named)

        @functools.wraps(target)
        def call(*args: Any, **given: Any) -> Any:
            _check_arguments(target.__name__, signature, args, given, example)
            return target(*args, **given)

        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    return decorate


def _explain_class(cls: Any, example: str) -> Any:
    """Lets a dataclass check its arguments before anything else sees them."""
    signature = inspect.signature(cls.__init__)
    if cls.__name__ in SETTINGS:
        _FIELDS[cls.__name__] = {one.name for one in fields(cls)}

    def new(self: Any, *args: Any, **given: Any) -> Any:
        # A subclass has fields of its own, and a copy is made without any argument.
        if self is cls and (args or given):
            _check_arguments(cls.__name__, signature, (self, *args), given, example)
        return object.__new__(self)

    new.__signature__ = signature  # type: ignore[attr-defined]
    cls.__new__ = new
    return cls


def options_of(settings: type) -> list[Parameter]:
    """The fields of a dataclass as keywords of a function that passes them on."""
    return [
        Parameter(
            one.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if one.default is MISSING else one.default,
            annotation=one.type,
        )
        for one in fields(settings)
        if one.init
    ]


def _check_arguments(
    title: str, signature: Signature, args: tuple, given: Mapping[str, Any], example: str
) -> None:
    """Refuses arguments that do not fit a signature.

    Args: title: what is called. args, given: of the call. example: as of `with_help`.
    """
    parameters = signature.parameters.values()
    known = [one.name for one in parameters if one.name != "self"]
    for name, value in given.items():
        if name not in known:
            raise KeywordError(explain_keyword(title, name, value, known))
    try:
        signature.bind(*args, **given)
    except TypeError as error:
        expected = example or f"{title}({_needed(parameters)})"
        raise KeywordError(f"{title}(...): expected {expected}, but {error}") from None


def _needed(parameters: Collection[Parameter]) -> str:
    """The arguments of a call that have no default, and dots where there are others."""
    shown = []
    for one in parameters:
        if one.default is Parameter.empty and one.name != "self":
            shown.append(f"{one.name}=..." * (one.kind is Parameter.KEYWORD_ONLY) or one.name)
    optional = any(one.default is not Parameter.empty for one in parameters)
    return ", ".join([*shown, *["..."] * optional])


def explain_keyword(title: str, name: str, value: object, known: Collection[str]) -> str:
    """Says in one line what to write in place of an unknown keyword.

    Args: title: what was called. name, value: of the keyword. known: those that it has.
    """
    text = " ".join(repr(value).split())
    text = text if len(text) <= 60 else text[:57] + "..."
    field = SYNONYMS.get(name, name)
    if field in known:
        expected = f"{field}={text}"
    elif field in ADVICE:
        expected = ADVICE[field].format(value=text)
    elif home := next((one for one in SETTINGS if field in _FIELDS.get(one, ())), ""):
        expected = f"it in fl.{home}, as fl.{home}({field}={text})"
    else:
        listed = f": {', '.join(known)}" if len(known) <= 20 else f", see help({title})"
        expected = f"a keyword of {title}{listed}{did_you_mean(name, known)}"
    return f"{name}={text}: expected {expected}"
