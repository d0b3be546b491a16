"""A model with LoRA adapters, in layers that may have weights per example.

Layers are named and adapters scaled as PEFT does. The layers themselves are this library's: PEFT's
have one weight for the whole batch.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.state import (
    KINDS,
    Keys,
    ParamKey,
    TensorDict,
    Tensors,
    times_core,
)
from fedlora_lab.tasks.modules import (
    check_no_adapters,
    head_modules,
    is_finite,
    target_layers,
)
from fedlora_lab.tasks.task import Task

ABSENT = torch.empty(0)
"""In the place of a core, a residual or another tensor that a run does not have."""
Places = dict[ParamKey, tuple[nn.Module, str]]


class PerExampleLinear(nn.Module):
    """A linear map that may have its own weight (and bias) for every example of the batch.

    ``rows`` is (out, in), one weight for all, or (N, out, in): then the first dimension of the
    input goes through N examples in order, of any number of rows each (tokens, windows, heads).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        dtype = trained_dtype(linear.weight)
        self.rows: Tensor = linear.weight.detach().to(dtype)
        bias = linear.bias
        self.bias_rows: Tensor | None = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        x = x.to(self.rows.dtype)
        if self.rows.dim() == 2:
            return F.linear(x, self.rows, self.bias_rows)
        # One product for each example: its rows never meet another example's input.
        y = torch.bmm(by_example(x, len(self.rows)), self.rows.mT)
        y = y if self.bias_rows is None else y + self.bias_rows.unsqueeze(1)
        return y.reshape(*x.shape[:-1], -1)


def trained_dtype(frozen: Tensor) -> torch.dtype:
    """The precision of what is trained beside, or in the place of, a frozen tensor."""
    # In half precision a sum would be rounded after every addend: one example could move it by more
    # than the clip norm.
    return frozen.dtype if frozen.dtype == torch.float64 else torch.float32


def by_example(x: Float[Tensor, "m ... d"], n: int) -> Float[Tensor, "n rest d"]:
    """Groups the first dimension, which goes through n examples in order, by example."""
    # Any other layout would give an example rows of its neighbour, and no clip would bound them.
    if x.shape[0] % n:
        expected = f"a multiple of the {n} examples (batch first)"
        raise ValueError(f"first dimension={x.shape[0]}: expected {expected}")
    # Even a view of the same shape costs a node in the backward pass.
    return x if x.dim() == 3 and len(x) == n else x.reshape(n, -1, x.shape[-1])


class Adapter(nn.Module):
    """A frozen layer plus the low-rank map s B R A (no R without a core) and a residual s W.

    A, B, R and R's gain have one value for all examples or, with a leading N, one for each. Other
    attributes are the frozen layer's.

    Args:
        base: the frozen linear map.
        a, b: the factors, (r, d_in) and (d_out, r).
        scaling: s, alpha / rank / start_scale.
    """

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__()
        self.base = base
        self.scaling = scaling
        self.A = a
        self.B = b
        for name in ("R", "W", "gain"):
            setattr(self, name, ABSENT)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        frozen = self.base(x)
        # In the factors' precision, whatever the base has: it is that of the clip and the noise.
        x = x.to(self.A.dtype)
        y = frozen.to(x.dtype)
        if self.W.numel():
            y = y + F.linear(x, self.scaling * self.W)
        b = self.B
        # A core or a residual that the run does not have costs nothing.
        if self.R.numel():
            b = times_core(b, self.R, self.gain if self.gain.numel() else None)
        y = low_rank(y, x, self.A, b, self.scaling)
        return y.to(frozen.dtype)


def low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Computes y + s B A x, with the rank first.

    Args:
        y, x: (... d_out), (... d_in).
        a, b: (r, d_in), (d_out, r), or with a leading N, one for each example.
        scaling: s.

    Guarantees: tests/lab/lora/test_gradients.py::test_equals_batches_of_one.
    """
    if a.dim() == b.dim() == 2:
        inner = F.linear(x, a).reshape(-1, len(a))
        return torch.addmm(y.reshape(-1, len(b)), inner, b.mT, alpha=scaling).reshape(y.shape)
    n = len(a) if a.dim() == 3 else len(b)
    rows = by_example(y, n)
    # One product for each example: its factors never meet another example's input. The scale goes
    # where numbers are fewest, so that no gradient of a factor B is scaled afterwards.
    inner = scaling * torch.bmm(by_example(x, n), _one_each(a, n).mT)
    product = torch.baddbmm(rows, inner, _one_each(b, n).mT)
    return product if rows is y else product.reshape(y.shape)


def _one_each(factor: Tensor, n: int) -> Float[Tensor, "n rows columns"]:
    """A factor for each of n examples: where it is frozen it is common to all."""
    return factor if factor.dim() == 3 else factor.expand(n, -1, -1)


@dataclass(frozen=True)
class AdaptedModel:
    """A model whose adapter factors and head `set_tensor` sets; `model` is called as usual.

    Args:
        places: module and attribute of every A, B and tensor of the head.
        initial: their shapes and types, with the head as given and factors of zero.
        optional: places of each layer's other tensors, such as a core R, absent until they are set.
        weights: layer -> frozen weight (d_out, d_in).
    """

    model: nn.Module
    places: Mapping[ParamKey, tuple[nn.Module, str]]
    initial: Tensors
    optional: Mapping[ParamKey, tuple[nn.Module, str]]
    weights: Mapping[str, Tensor]

    @cached_property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.initial.values())).device

    def set_tensor(self, key: ParamKey, rows: Tensor) -> None:
        """Sets a tensor: one value for all examples, or one for each with a leading N."""
        module, attribute = self.places.get(key) or self.optional[key]
        setattr(module, attribute, rows)

    def on_device(self, values: Tensors) -> TensorDict:
        """The values where the model is; modes stay on the CPU, where the schedule reads them."""
        return {
            key: x if key.name == "mode" else x.to(self.device, non_blocking=True)
            for key, x in values.items()
        }

    def place(self, values: Tensors) -> None:
        """Sets one value of each tensor for all examples; the model then computes with them."""
        for key in self.select_keys(values):
            self.set_tensor(key, values[key].to(self.device))

    def select_keys(self, values: Mapping[ParamKey, Any]) -> Keys:
        """The keys that the model computes with; optional tensors not among them are taken out."""
        for key, (module, attribute) in self.optional.items():
            if key not in values:  # what the last pass left there must not act on this one
                setattr(module, attribute, ABSENT)
        return tuple(key for key in values if key in self.places or key in self.optional)

    @property
    def shapes(self) -> dict[ParamKey, torch.Size]:
        """ParamKey -> shape of one client's tensor."""
        return {key: tensor.shape for key, tensor in self.initial.items()}


def structure_copy(model: nn.Module, device: "str | torch.device | None" = None) -> nn.Module:
    """A copy of the modules that shares parameters with the original, and has buffers of its own.

    Args:
        model: stays as it is, also where a pass through the copy writes into a buffer.
        device: where the copy is; on another device than the model's it has tensors of its own.

    Guarantees: test_attack_examples.py::
        test_a_model_that_keeps_something_of_its_examples_is_refused.
    """
    # What the memo holds is not copied; tied weights stay tied, since each has one entry.
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        moved = parameter if device is None else parameter.detach().to(device)
        if moved is not parameter:
            moved = nn.Parameter(moved, requires_grad=False)
        memo[id(parameter)] = moved
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.detach().to(device, copy=True)
    return copy.deepcopy(model, memo)


def adapt(task: Task, lora: Lora, device: "str | torch.device | None" = None) -> AdaptedModel:
    """Puts adapters beside linear maps of a copy of the model, and per-example maps in its head.

    The task's model is left as it was.

    Args:
        task, lora: the base model with its targets and head, and the shape of the adapters.
        device: where the copy is; ``None``: where the model is.

    Raises: ``ValueError`` where a target is not a linear map, or something else is asked for that
        has no exact gradient for each example.
    Guarantees: tests/lab/lora/test_attack_examples.py::test_a_head_is_what_peft_takes_for_it,
        tests/lab/lora/test_gradients.py::test_equals_batches_of_one.
    """
    model = task.model
    check_no_adapters(model)
    heads = head_modules(model, task.head)
    layers = target_layers(model, task.targets, heads)
    # In eval mode: a module's own dropout would draw from global numbers for the batch as a whole.
    # Without gradients of parameters, which examples share: what moves is set by `set_tensor`.
    twin = structure_copy(model, device).eval().requires_grad_(False)
    places = Places()
    optional = Places()
    weights: dict[str, Tensor] = {}
    for name, module in list(twin.named_modules()):
        if name in heads:
            places |= _per_example_head(twin, name)
        elif name in layers:
            weights[name] = matrix_of(module)
            adapter = _with_factors(module, lora)
            twin.set_submodule(name, adapter)
            places |= {ParamKey(factor, name): (adapter, factor) for factor in "AB"}
            further = [one for one, kind in KINDS.items() if kind.shape and one not in "AB"]
            optional |= {ParamKey(one, name): (adapter, one) for one in further}
    initial = {
        key: getattr(module, attribute).clone() for key, (module, attribute) in places.items()
    }
    return AdaptedModel(twin, places, initial, optional, weights)


def matrix_of(linear: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """The weight of a linear map; Transformers' Conv1D stores its transpose."""
    weight = linear.get_parameter("weight").detach()
    return weight if isinstance(linear, nn.Linear) else weight.T


def _with_factors(linear: nn.Module, lora: Lora) -> Adapter:
    """The map with factors of zero beside it."""
    weight = matrix_of(linear)
    d_out, d_in = weight.shape
    dtype = trained_dtype(weight)
    a = weight.new_zeros(lora.rank, d_in, dtype=dtype)
    b = weight.new_zeros(d_out, lora.rank, dtype=dtype)
    return Adapter(linear, a, b, lora.scaling)


def _per_example_head(model: nn.Module, name: str) -> Places:
    """Swaps every linear map of a trained module for one with rows per example, in place."""
    places = Places()
    for path, linear in list(model.get_submodule(name).named_modules(prefix=name)):
        if isinstance(linear, nn.Linear):
            rows = PerExampleLinear(linear)
            model.set_submodule(path, rows)
            places[ParamKey("head", f"{path}.weight")] = (rows, "rows")
            if linear.bias is not None:
                places[ParamKey("head", f"{path}.bias")] = (rows, "bias_rows")
    return places


def initial_values(
    adapted: AdaptedModel,
    streams: Streams,
    rule: "Callable[[Tensor, int], Mapping[str, Tensor]] | None" = None,
    start_scale: float = 1.0,
) -> TensorDict:
    """The values before training: A Kaiming-uniform as in PEFT, B zero, the head as given.

    Args:
        adapted, streams: the model, and the run's random streams.
        rule: a row's own initial factors of a layer, from its frozen weight and the rank.
        start_scale: A is so many times as large (see `Lora`).

    Guarantees: the adapted model is the base model
        (test_contract.py::test_adapter_changes_nothing_before_training).
    """
    values = dict(adapted.initial)
    for number, (key, like) in enumerate(adapted.initial.items()):
        if key.name == "A":
            # A stream for each tensor, by its number: no two start from the same draw.
            unit = streams.uniform(like.shape, "adapter start", number) * 2 - 1
            values[key] = (unit / like.shape[1] ** 0.5).to(like)
    for layer, weight in adapted.weights.items():
        like = adapted.initial[ParamKey("A", layer)]
        made = own_start(rule, weight, len(like))
        values |= {ParamKey(name, layer): value.to(like) for name, value in made.items()}
    return {key: x * start_scale if key.name == "A" else x for key, x in values.items()}


def own_start(rule: "Callable | None", weight: Tensor, rank: int) -> Mapping[str, Tensor]:
    """What a row's own rule starts a layer with; nothing without one.

    Args: rule: a row's ``initial_factors``; weight: (d_out, d_in), frozen; rank: of the adapter.
    Raises: ``ValueError`` for what a layer cannot begin with.
    """
    if rule is None:
        return {}
    # On the CPU: a decomposition on another device has other digits.
    made: Any = rule(weight.cpu().clone(), rank)
    expected = "a mapping from 'A', 'B', ... to tensors"
    check(isinstance(made, Mapping), "initial_factors(...)", made, expected)
    d_out, d_in = weight.shape
    shapes = {name: kind.shape(d_out, d_in, rank) for name, kind in KINDS.items() if kind.shape}
    core = getattr(made.get("R"), "shape", None)
    for h in range(1, rank + 1):
        if core == (rank, rank // h) and rank % h == 0:
            shapes |= {"R": core, "gain": (h,)}  # h blocks, each with a gain of its own
    for name, value in made.items():
        check_one_of("initial_factors(...)", name, tuple(shapes))
        title = f"initial_factors(...)[{name!r}]"
        is_tensor = isinstance(value, Tensor) and value.is_floating_point() and is_finite(value)
        check(is_tensor, title, value, "a tensor of finite floating-point numbers")
        expected = shapes[name]
        check(value.shape == expected, f"{title}.shape", tuple(value.shape), str(expected))
    return made
