"""Optimisers: pure rules that turn a client's gradients into steps.

An `Optimizer` is a frozen record of its settings; nothing changes what it is handed. A tensor
without a gradient rests, and so does its state.

A client begins every round with a fresh state: it stands at another point, perhaps in other
coordinates, and in the client unit moments would be un-noised data to guard.

All arithmetic is element by element: a client's bits do not depend on who else lies in the tensor.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from fedlora_lab._utils.validation import check, check_number, is_number

if TYPE_CHECKING:
    from torch import Tensor

TensorMapping = Mapping[Any, "Tensor"]
Moments = Mapping[str, "Tensor"]
OptimizerState = Mapping[Any, Moments]
Rates = float | Mapping[Any, float]


@dataclass(frozen=True)
class Optimizer(ABC):
    """How a gradient becomes a step: what gradient descent and Adam have in common.

    Attributes:
        name: in tables and in settings files.
        nonlinear: why the noise in a step cannot be told from the signal; "" where the step is
            linear in the gradients, and reads nothing else: the noise alone then moves by the same
            `update`, with a state of its own.

    A new one has `init` and `step`, both of one tensor; callers use `update`.

    Guarantees: a step reads gradients, parameters and public settings only: of noised gradients it
        is post-processing (test_steps_are_those_of_torch,
        test_the_noise_that_a_client_holds_is_known).
    """

    name: str = field(default="", init=False, repr=False)
    nonlinear: ClassVar[str] = ""

    def update(
        self, grads: TensorMapping, state: OptimizerState, params: TensorMapping, lr: Rates
    ) -> "tuple[dict[Any, Tensor], OptimizerState]":
        """Returns the steps, to be added to the parameters, and the state after them.

        Args:
            grads: key -> (clients, ...), of what moves in this step.
            state: as the last `update` gave it; a key that is not in it begins here.
            params: key -> (1 or clients, ...), at least of what moves.
            lr: learning rate, a number or key -> number.

        >>> import torch
        >>> rule, params = SGD(momentum=0.5), {"B": torch.ones(2)}
        >>> step, state = rule.update({"B": torch.ones(2)}, {}, params, lr=0.1)
        >>> params = apply_updates(params, step)
        >>> step, state = rule.update({"B": torch.ones(2)}, state, params, lr=0.1)
        >>> step["B"]
        tensor([-0.1500, -0.1500])
        """
        steps: dict[Any, Tensor] = {}
        after = dict(state)
        for key, grad in grads.items():
            # A tensor that rests keeps its moments, and one that begins late begins from zero.
            moments = state[key] if key in state else self.init(params[key])
            rate = lr[key] if isinstance(lr, Mapping) else lr
            steps[key], after[key] = self.step(grad, moments, params[key], rate)
        return steps, after

    @abstractmethod
    def init(self, param: "Tensor") -> Moments:
        """The moments of a tensor before its first step."""

    @abstractmethod
    def step(
        self, grad: "Tensor", moments: Moments, param: "Tensor", lr: float
    ) -> "tuple[Tensor, Moments]":
        """The step of one tensor, to be added to it, and its moments afterwards.

        Args:
            grad: (clients, ...), of the noised gradient where steps are released.
            moments: what the last step left, or what `init` made.
            param: (1 or clients, ...), the tensor before the step.
            lr: learning rate, >= 0.
        """


def _check_share(name: str, value: object) -> None:
    check(is_number(value) and 0 <= value < 1, name, value, "a number in [0, 1)")  # type: ignore[operator]


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent with heavy-ball momentum, as `torch.optim.SGD`.

    Args: momentum: coefficient of the velocity, in [0, 1).

    Guarantees: the steps of `torch.optim.SGD` (test_steps_are_those_of_torch).
    Source: heavy ball, Polyak 1964.

    >>> SGD(momentum=0.9)
    SGD(momentum=0.9)
    """

    name: str = field(default="sgd", init=False, repr=False)
    momentum: float = 0.0

    def __post_init__(self) -> None:
        _check_share("sgd momentum", self.momentum)

    def init(self, param: "Tensor") -> Moments:
        return {"momentum": param.new_zeros(param.shape)} if self.momentum else {}

    def step(
        self, grad: "Tensor", moments: Moments, param: "Tensor", lr: float
    ) -> "tuple[Tensor, Moments]":
        # Without momentum nothing but one product is computed: the bare step's bits.
        if not self.momentum:
            return -lr * grad, moments
        velocity = self.momentum * moments["momentum"] + grad
        return -lr * velocity, {"momentum": velocity}


@dataclass(frozen=True)
class AdamW(Optimizer):
    """The optimiser AdamW, with the defaults of `torch.optim.AdamW`.

    Args:
        betas: shares kept of the mean gradient and of the mean square, two numbers in [0, 1).
        eps: added to the root of the mean square, > 0.
        weight_decay: every step takes lr * weight_decay of the weights (decoupled), >= 0.

    Guarantees: the steps of `torch.optim.AdamW` (test_steps_are_those_of_torch).
    Source: arXiv:1711.05101, algorithm 2.

    >>> AdamW(weight_decay=0.1)
    AdamW(betas=(0.9, 0.999), eps=1e-08, weight_decay=0.1)
    """

    name: str = field(default="adamw", init=False, repr=False)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    nonlinear = "a step divides by the root of mean squares, in which noise and signal are one"

    def __post_init__(self) -> None:
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        check(pair, f"{self.name} betas", self.betas, "two numbers in [0, 1)")
        for i, beta in enumerate(self.betas):
            _check_share(f"{self.name} betas[{i}]", beta)
        check_number(f"{self.name} eps", self.eps, 0, 1e9, open_low=True)
        check_number(f"{self.name} weight_decay", self.weight_decay, 0, 1e9)

    def init(self, param: "Tensor") -> Moments:
        import torch

        zeros = param.new_zeros(param.shape)
        # The count stays on the CPU: nobody waits for a GPU to read it.
        return {"step": torch.zeros((), dtype=torch.float64), "mean": zeros, "square": zeros}

    def step(
        self, grad: "Tensor", moments: Moments, param: "Tensor", lr: float
    ) -> "tuple[Tensor, Moments]":
        first, second = self.betas
        step = moments["step"] + 1
        mean = first * moments["mean"] + (1 - first) * grad
        square = second * moments["square"] + (1 - second) * grad.square()
        # Both means began at zero: the first steps are divided by the weight they have by now.
        size = (square / (1 - second**step)).sqrt() + self.eps
        move = -lr * (mean / (1 - first**step)) / size
        if self.weight_decay:  # decoupled: no part of the moments
            move = move - lr * self.weight_decay * param
        return move, {"step": step, "mean": mean, "square": square}


OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": SGD, "adamw": AdamW}
"""What clients may train with, by name."""


def apply_updates(params: TensorMapping, steps: TensorMapping) -> "dict[Any, Tensor]":
    """Adds the steps to the parameters; one without a step is the same tensor as before."""
    import torch

    old = [params[key] for key in steps]
    moved = torch._foreach_add(old, [*steps.values()]) if old else ()
    return {**params, **dict(zip(steps, moved, strict=True))}


def optimizer_of(value: object) -> Optimizer:
    """Returns the optimiser that an argument stands for.

    Args: value: an `Optimizer`, or its name, which has the default settings.
    Raises: ``ValueError`` for another one.

    >>> optimizer_of("sgd")
    SGD(momentum=0.0)
    """
    names = ", ".join(map(repr, OPTIMIZERS))
    expected = f"one of {names}, or an optimiser such as fl.SGD(momentum=0.9)"
    if isinstance(value, str) and value in OPTIMIZERS:
        return OPTIMIZERS[value]()
    # One that is not in the table could not be named in a settings file.
    listed = isinstance(value, Optimizer) and OPTIMIZERS.get(value.name) is type(value)
    check(listed, "optimizer", value, expected)
    assert isinstance(value, Optimizer)
    return value
