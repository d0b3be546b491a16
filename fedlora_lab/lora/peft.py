"""A model with LoRA adapters from PEFT, in layers that may have weights per example."""

import copy
import re
import stat
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.state import KINDS, ParamKey, ServerState, pad_to_rank, times_core
from fedlora_lab.tasks.task import (
    CLASSIFIERS,
    check_head,
    check_no_adapters,
    first_line,
    head_names,
    is_linear,
    is_within,
    lookalikes,
)

ABSENT = torch.empty(0)
"""In the place of a core, a residual or another tensor that a run does not have."""
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
Places = dict[ParamKey, tuple[nn.Module, str]]
Head = str | Sequence[str] | None
"""Names of modules that are trained in full, see `Task.head`."""


class PerExampleLinear(nn.Module):
    """A linear map that may have its own weight (and bias) for every example of the batch.

    ``rows`` is (out, in), one weight for all, or (N, out, in): then the first dimension of the
    input goes through N examples in order, of any number of rows each (tokens, windows, heads).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rows: Tensor = linear.weight.detach()
        self.bias_rows: Tensor | None = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        if self.rows.dim() == 2:
            return F.linear(x, self.rows, self.bias_rows)
        y = torch.bmm(by_example(x, len(self.rows)), self.rows.mT)
        y = y if self.bias_rows is None else y + self.bias_rows.unsqueeze(1)
        return y.reshape(*x.shape[:-1], -1)


def by_example(x: Float[Tensor, "m ... d"], n: int) -> Float[Tensor, "n rest d"]:
    """Groups the first dimension, which goes through n examples in order, by example."""
    # Any other layout would give an example rows of its neighbour, and no clip would bound them.
    words = f"a multiple of the {n} examples (batch first)"
    check(x.shape[0] % n == 0, "first dimension", x.shape[0], words)
    return x.reshape(n, -1, x.shape[-1])


class Adapter(nn.Module):
    """A frozen layer plus the low-rank map s B R A (no R without a core) and a residual s W.

    A, B, R and R's gain have one value for all examples or, with a leading N, one for each. Further
    kinds of tensors act on the output as their row of `KINDS` says; other attributes are the frozen
    layer's.
    With a magnitude m (DoRA) each row of V + s B A is rescaled to the length m; ``drop`` takes some
    inputs of A away (dropout).
    """

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.A, self.B, self.R, self.W, self.gain = a, b, ABSENT, ABSENT, ABSENT
        self.magnitude, self.weight_copy = ABSENT, ABSENT
        self.drop: Callable[[Tensor], Tensor] | None = None
        more: dict[str, Any] = {side: kind for side, kind in KINDS.items() if kind.output}
        self.more = {side: (kind.output, len(kind.shape(1, 1, 1))) for side, kind in more.items()}
        for side in more:
            setattr(self, side, ABSENT)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        # In the factors' precision, whatever the base has: it is that of the clip and the noise.
        y, x = self.base(x), x.to(self.A.dtype)
        whole = y.to(x.dtype)
        if self.W.numel():
            whole = whole + F.linear(x, self.scaling * self.W)
        b = self.B
        if self.R.numel():
            b = times_core(b, self.R, self.gain if self.gain.numel() else None)
        kept = x if self.drop is None else self.drop(x)
        if self.magnitude.numel():
            whole = self._rescaled(whole, kept, b)
        else:
            whole = low_rank(whole, kept, self.A, b, self.scaling)
        for side, (output, dims) in self.more.items():
            if (value := getattr(self, side)).numel():
                value = value if value.dim() > dims else value[None]
                whole = output(by_example(whole, len(value)), value).reshape(whole.shape)
        return whole.to(y.dtype)

    def _rescaled(self, whole: Tensor, x: Tensor, b: Tensor) -> Tensor:
        """The output in which the rows of V + s B A have the lengths m; the bias stays as it is."""
        # The length is a constant to the gradient, as in PEFT (arXiv:2402.09353, section 4.3).
        lengths = row_lengths(self.weight_copy, self.A.detach(), b.detach(), self.scaling)
        straight = whole if self.drop is None else self.base(x).to(x.dtype)
        bias: Any = self.base.bias
        straight = straight if bias is None else straight - bias.to(x.dtype)
        moved, factor = low_rank(straight, x, self.A, b, self.scaling), self.magnitude / lengths
        if factor.dim() == 2:
            return (
                whole
                - straight
                + (by_example(moved, len(factor)) * factor[:, None]).reshape(moved.shape)
            )
        return whole - straight + moved * factor


def row_lengths(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """The lengths of the rows of V + s B A, (d_out,) or (N, d_out), without forming the matrices.

    Args:
        weight: V, (d_out, d_in).
        a, b, scaling: as of `low_rank`.
    """
    crossed = (b * (weight @ a.mT)).sum(-1)
    added = ((b @ (a @ a.mT)) * b).sum(-1)
    squares = weight.square().sum(-1) + 2 * scaling * crossed + scaling**2 * added
    return squares.clamp(min=0).sqrt()


class PerExampleBias(nn.Module):
    """A frozen layer whose bias is ``rows``: (d_out,), or (N, d_out), one for each example.

    Other attributes are the frozen layer's.
    """

    def __init__(self, base: nn.Module, bias: Tensor) -> None:
        super().__init__()
        self.base, self.bias_copy, self.rows = base, bias, bias
        inner = base.base if isinstance(base, Adapter) else base
        self.channels_second = isinstance(inner, nn.Conv2d)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base(*args, **kwargs)
        # The frozen layer adds its own bias already: what is left to add is the difference.
        change = (self.rows - self.bias_copy).to(y.dtype)
        change = change if change.dim() == 2 else change[None]
        if self.channels_second:
            parts = by_example(y.flatten(1), len(change)).shape[1]
            return y + change.repeat_interleave(parts, 0)[:, :, None, None]
        return (by_example(y, len(change)) + change[:, None]).reshape(y.shape)


def low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Computes y + s B A x in one pass.

    Args:
        y, x: (... d_out), (... d_in).
        a, b: (r, d_in), (d_out, r), or with a leading N, one for each example.
        scaling: s.

    Guarantees: first and second derivatives (tests/lora/test_peft_layers.py).
    """
    if a.dim() == b.dim() == 2:
        inner = F.linear(x, a).reshape(-1, len(a))
        return torch.addmm(y.reshape(-1, len(b)), inner, b.mT, alpha=scaling).reshape(y.shape)
    n = len(a) if a.dim() == 3 else len(b)
    out: Any = _LowRank.apply(by_example(y, n), by_example(x, n), a, b, scaling)
    return out.reshape(y.shape)


class _LowRank(torch.autograd.Function):
    """Multiplies with the rank first: along its long side a narrow matrix is four times as fast.

    So an example's gradient of B lies in memory as its transpose. The backward pass computes A x
    again: a second derivative needs formulas of the inputs.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(x, a, b)
        ctx.scaling, inner = scaling, a @ x.mT
        if b.dim() == 3:
            return torch.baddbmm(y, inner.mT, b.mT, alpha=scaling)
        rows = torch.addmm(y.flatten(0, 1), inner.mT.flatten(0, 1), b.mT, alpha=scaling)
        return rows.view(y.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, a, b), s = gradients, ctx.saved_tensors, ctx.scaling
        of_y, of_x, of_a, of_b, _ = ctx.needs_input_grad

        def outer(inner: Tensor, z: Tensor, like: Tensor) -> Tensor:
            # One (r, d) for each example where each has its factor; else their sum.
            return inner @ z if like.dim() == 3 else inner.mT.flatten(0, 1).mT @ z.flatten(0, 1)

        inner = s * (b.mT @ gradient.mT) if of_x or of_a else gradient
        return (
            gradient if of_y else None,
            inner.mT @ a if of_x else None,
            outer(inner, x, a) if of_a else None,
            outer(s * (a @ x.mT), gradient, b).mT if of_b else None,
            None,
        )


ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this build of torch has oneDNN's product; elsewhere a frozen map is an ordinary one."""
ONEDNN_MIN_SIZE = 2**20
"""Multiplications, below which calling oneDNN takes longer than it saves."""


class FrozenLinear(nn.Linear):
    """A linear map whose weight does not move: the values of `torch.nn.Linear` but for rounding.

    Guarantees: outputs and derivatives are those of `torch.nn.Linear`; a weight that asks for a
        gradient gets one (tests/lora/test_peft_layers.py). Decision 0018 measures it.
    """

    def forward(self, input: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        weight, bias = self.weight, self.bias
        moves = weight.requires_grad or (bias is not None and bias.requires_grad)
        known = input.dtype == weight.dtype in (torch.float32, torch.bfloat16)
        large = input.numel() * self.out_features >= ONEDNN_MIN_SIZE
        if ONEDNN and input.device.type == "cpu" and known and large and not moves:
            return _product(input, weight, bias)
        return super().forward(input)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product by oneDNN, recorded for the backward pass where a gradient is wanted."""
    if x.requires_grad and torch.is_grad_enabled():
        return _Product.apply(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradients[0], ctx.weight.T, None), None, None


def freeze(model: nn.Module) -> None:
    """Turns every linear map whose weight does not move into a `FrozenLinear`, in place."""
    for module in model.modules():
        if type(module) is nn.Linear and not module.weight.requires_grad:
            module.__class__ = FrozenLinear


class BFloat16Linear(nn.Module):
    """A frozen linear map whose product is taken in bfloat16, from and to the input's own type."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        weight, bias = linear.get_parameter("weight"), linear.bias
        weight = weight.T if isinstance(linear, Conv1D) else weight
        self.out_features, self.in_features = weight.shape
        weight, bias = (
            None if x is None else nn.Parameter(x.detach().bfloat16(), requires_grad=False)  # type: ignore[operator]
            for x in (weight, bias)
        )
        self.weight, self.bias = weight, bias

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        return F.linear(x.bfloat16(), self.weight, self.bias).to(x.dtype)  # type: ignore[arg-type]


BLOCK = 64
"""Numbers that share a scale in 4 bits."""


class QuantizedLinear(nn.Module):
    """A frozen linear map that is kept in 8 or 4 bits by bitsandbytes, on a processor too.

    Args:
        linear: whose weight is encoded.
        kind: "int8", with a scale for each row, or "nf4", with one for 64 numbers.
        device: where the codes are kept.
    """

    def __init__(self, linear: nn.Module, kind: str, device: torch.device) -> None:
        super().__init__()
        functional = import_module("bitsandbytes.functional")
        weight = _matrix(linear).to(device).contiguous()
        self.out_features, self.in_features = weight.shape
        self.kind, self.dtype = kind, weight.dtype
        if kind == "int8":
            self.codes, self.scales, _ = functional.int8_vectorwise_quant(weight.half())
        else:
            # One row a block: some kernels decode wrongly where a row is no whole number of blocks.
            flat = F.pad(weight.float().flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
            self.codes, self.scales = functional.quantize_4bit(
                flat, blocksize=BLOCK, quant_type="nf4"
            )
        bias: Any = linear.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """What the codes stand for."""
        functional = import_module("bitsandbytes.functional")
        if self.kind == "int8":
            return functional.int8_vectorwise_dequant(self.codes, self.scales).to(self.dtype)  # type: ignore[arg-type]
        flat = functional.dequantize_4bit(self.codes, self.scales).flatten()  # type: ignore[arg-type]
        whole = flat[: self.out_features * self.in_features].to(self.dtype)
        return whole.view(self.out_features, self.in_features)

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        y = _ByCodes.apply(x, self)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class _ByCodes(torch.autograd.Function):
    """A product with the weight that codes stand for; no pass keeps that weight for the next."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return x @ layer.weight.T.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.weight.to(gradients[0].dtype), None


@dataclass(frozen=True)
class AdaptedModel:
    """A model whose adapter factors and head `set_tensor` sets; `model` is called as usual.

    Args:
        places: module and attribute of every A, B and tensor of the head.
        initial: their values as PEFT made them.
        optional: places of each layer's other tensors, such as a core R, absent until they are set.
        weights: layer -> frozen weight (d_out, d_in); of PiSSA and OLoRA without the start of B A.
        lora: how it was adapted.
    """

    model: nn.Module
    places: Mapping[ParamKey, tuple[nn.Module, str]]
    initial: Mapping[ParamKey, Tensor]
    optional: Mapping[ParamKey, tuple[nn.Module, str]]
    weights: Mapping[str, Tensor]
    lora: Lora = field(default=Lora())

    def set_tensor(self, key: ParamKey, rows: Tensor) -> None:
        """Sets a tensor: one value for all examples, or one for each with a leading N."""
        module, attribute = self.places.get(key) or self.optional[key]
        setattr(module, attribute, rows)

    def select_keys(self, values: Mapping[ParamKey, Any]) -> tuple[ParamKey, ...]:
        """The keys that the model computes with; optional tensors not among them are taken out."""
        for key, (module, attribute) in self.optional.items():
            if key not in values:  # what the last pass left there must not act on this one
                setattr(module, attribute, ABSENT)
        return tuple(key for key in values if key in self.places or key in self.optional)

    @contextmanager
    def dropping(self, uniform: Callable[..., Tensor], count: int) -> Iterator[None]:
        """Within it each adapter drops inputs of A as ``lora_dropout`` says, example by example.

        What an example loses depends on its own numbers alone: the places of its tokens, not on how
        far others pad it or on who else passes.

        Args:
            uniform: (layer's number, example's place, shape) -> uniform numbers in [0, 1).
            count: examples that pass the model.

        Guarantees: test_lora_options.py::test_dropout_is_each_example_s_own.
        """
        share, adapters = self.lora.option("lora_dropout"), []
        for key, (module, _) in self.places.items() if share and count else ():
            if key.side == "A":
                adapters.append(module)
        for number, adapter in enumerate(adapters):
            adapter.drop = _dropout(partial(uniform, number), count, share)  # type: ignore[assignment]
        try:
            yield
        finally:
            # Also after an error: no score may be taken with inputs dropped.
            for adapter in adapters:
                adapter.drop = None  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.initial.values())).device

    @property
    def shapes(self) -> dict[ParamKey, torch.Size]:
        """ParamKey -> shape of one client's tensor."""
        return {key: tensor.shape for key, tensor in self.initial.items()}


def _dropout(
    uniform: Callable[..., Tensor], count: int, share: float
) -> Callable[[Tensor], Tensor]:
    """What drops a share of the numbers, drawn once: a pass that is computed again drops them too.

    Args:
        uniform: (example's place, shape) -> uniform numbers in [0, 1).
        count: examples.
        share: in (0, 1).
    """
    drawn: dict[tuple[int, ...], Tensor] = {}

    def drop(x: Tensor) -> Tensor:
        rows = by_example(x, count)
        shape = tuple(rows.shape[1:])
        if shape not in drawn:
            kept = torch.stack([uniform(i, shape) >= share for i in range(count)])
            drawn[shape] = kept.to(x.device)
        rows = torch.where(drawn[shape], rows / (1 - share), torch.zeros_like(rows))
        return rows.reshape(x.shape)

    return drop


def structure_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares parameters and buffers with the original."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


STRUCTURE = ("exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern")
"""Options that say where adapters go, and how large they are."""
SAVED = (*STRUCTURE, "alpha_pattern", "use_rslora", "lora_dropout", "bias", "use_dora")
"""Options that a saved adapter has; its start is of no account any more."""
WRITES = "prepare_inputs_for_generation"
"""What PEFT asks of a model where a task_type says that it generates text."""
ADAPTER_PARTS = "base_layer", "default", "lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B"
ADAPTER_PARTS += "lora_dropout", "lora_magnitude_vector"
"""Modules inside a layer that PEFT adapted."""


def _inject(
    model: nn.Module,
    targets: tuple[str, ...],
    head: Head,
    lora: Lora,
    options: Mapping[str, Any] | None = None,
    kept: Sequence[str] = (),
) -> nn.Module:
    """The model as PEFT adapts it; of the options of an adapter only where it goes, or those
    given. What is kept is saved with the adapter like a head.
    """
    names, heads = lora.option("target_modules"), _heads(model, head, lora)
    options = dict(options or {name: lora.option(name) for name in STRUCTURE})
    argument = "head" if lora.option("modules_to_save") is None else "modules_to_save"
    for name in heads:  # PEFT would take a part of its own adapter for the head
        part = next((part for part in ADAPTER_PARTS if part.endswith(name)), None)
        words = f"another name for this module: that of PEFT's own {part!r} ends with it"
        check(part is None, argument, name, words)
    if str(names).lower() == "all-linear" and not isinstance(options["exclude_modules"], str):
        # PEFT would wrap them as heads as well, and cannot where they have adapters.
        similar = [x for name in heads for x in lookalikes(dict(model.named_modules()), name)]
        options["exclude_modules"] = [*(options["exclude_modules"] or ()), *similar] or None
    config = LoraConfig(
        r=lora.rank,
        target_modules=list(targets) if names is None else names,
        modules_to_save=[*heads, *kept] or None,
        **options,
    )
    config.lora_alpha = lora.alpha / lora.start_scale  # type: ignore[assignment]  # PEFT divides it by r, of any type
    # PEFT warns of a transposed Conv1D, which is handled here; what else it says is passed on.
    known = ignore_warnings(UserWarning, "fan_in_fan_out is set to")
    # Renamed attributes are of interest to PEFT and Transformers alone.
    with known, ignore_warnings(FutureWarning), torch.random.fork_rng(devices=[]):
        try:
            return get_peft_model(structure_copy(model), config)
        except Exception as error:  # which errors there are depends on the version
            given = list(targets) if names is None else names
            said = textwrap.shorten(first_line(error), 160, placeholder=" ...")
            words = f"modules that PEFT can adapt: {said}"
            raise ValueError(f"target_modules={given!r}: expected {words}") from error


def _heads(model: nn.Module, head: Head, lora: Lora) -> list[str]:
    """Names, or ends of names, of the modules that are trained in full."""
    names = lora.option("modules_to_save")
    found = list(head_names(head) if names is None else names)
    if lora.option("task_type") in ("SEQ_CLS", "TOKEN_CLS"):
        present = dict(model.named_modules())
        # PEFT trains them besides where a task_type says that there are classes.
        found += [name for name in CLASSIFIERS if name in present and name not in found]
    return found


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _only_the_task_s(model: nn.Module, head: Head, lora: Lora) -> bool:
    """Whether the task's head is all that is trained in full."""
    own = list(head_names(head))
    return lora.option("modules_to_save") is None and _heads(model, head, lora) == own


def adapt(model: nn.Module, targets: tuple[str, ...], head: Head, lora: Lora) -> AdaptedModel:
    """Injects adapters with PEFT, and replaces its layers and the head's by per-example ones.

    The given model is left as it was. PEFT matches a head at the end of a module's name, whatever
    stands before: what it wraps beside the modules of a task's head is unwrapped, and stays
    frozen. Of ``modules_to_save`` it trains all that match, as PEFT does.

    Args:
        model, lora: the base model, and its adapters.
        targets, head: ends of the names of linear layers; names of modules trained as a whole;
            where ``lora`` does not name others.

    Raises: ``ValueError`` where a target is not a linear layer, or something else is asked for that
        has no exact gradient for each example.
    Guarantees: tests/lora/test_attack_examples.py::test_a_head_is_one_module,
        tests/lora/test_lora_options.py::test_each_option_is_exact_or_refused.
    """
    check_no_adapters(model)
    kind = lora.option("task_type")
    fits = kind not in ("CAUSAL_LM", "SEQ_2_SEQ_LM") or hasattr(model, WRITES)
    words = (
        f"None or 'SEQ_CLS': PEFT would not load it on {type(model).__name__}, which writes no text"
    )
    check(fits, "task_type", kind, words)
    # In eval mode: a module's own dropout would draw from global numbers for the batch as a whole.
    peft, alone = _inject(model, targets, head, lora).eval(), _only_the_task_s(model, head, lora)
    places, optional = Places(), Places()
    weights: dict[str, Tensor] = {}
    more = [side for side, kind in KINDS.items() if kind.shape and side not in "AB"]
    for name, module in list(peft.named_modules()):
        layer, (parent, _, own) = _plain(name), name.rpartition(".")
        if isinstance(module, ModulesToSaveWrapper) and alone and layer not in head_names(head):
            setattr(peft.get_submodule(parent), own, module.original_module)
        elif isinstance(module, ModulesToSaveWrapper):
            if not alone:
                check_head(model, layer, "modules_to_save", alone=False)
            places |= _per_example_head(layer, module.modules_to_save)
        elif isinstance(module, LoraLayer):
            base, words = (
                module.get_base_layer(),
                "linear layers (exclude_modules leaves others out), not ",
            )
            fits = isinstance(base, (nn.Linear, Conv1D))
            fits = fits if lora.peft is None else is_linear(base)
            argument = "targets" if lora.option("target_modules") is None else "target_modules"
            check(fits, argument, f"{layer}: {type(base).__name__}", words + type(base).__name__)
            pair = (side["default"] for side in (module.lora_A, module.lora_B))
            a, b = (side.get_parameter("weight").detach() for side in pair)
            if lora.residual_start:
                a, b = _take_start_out(base, layer, lora)
            adapter = Adapter(base, a, b, lora.scaling_of(layer))
            setattr(peft.get_submodule(parent), own, adapter)
            places |= {ParamKey(side, layer): (adapter, side) for side in "AB"}
            optional |= {ParamKey(side, layer): (adapter, side) for side in more}
            weights[layer] = _matrix(base)
            if lora.option("use_dora"):
                adapter.weight_copy = weights[layer]
                adapter.magnitude = row_lengths(weights[layer], a, b, adapter.scaling)
                places[ParamKey("magnitude", layer)] = (adapter, "magnitude")
    check(bool(weights), "targets", targets, "names of linear layers of the model")
    named = lora.option("target_modules")
    for name in named if isinstance(named, list) else ():
        some = any(f".{layer}".endswith(f".{name}") for layer in weights)
        check(some, "target_modules", name, "the name of a layer that is adapted, or its end")
    heads = lora.option("modules_to_save") or ()
    trained = {
        name
        for name in heads
        if any(key.side == "head" and _ends_with(key.layer, name) for key in places)
    }
    for name in heads:
        # PEFT stores both names of classifiers, of which a model has one.
        spare = name in CLASSIFIERS and not trained.isdisjoint(CLASSIFIERS)
        words = "the name of a module, or its end after a dot"
        check(name in trained or spare, "modules_to_save", name, words)
    if lora.option("bias") != "none":
        places |= _per_example_biases(peft, lora.option("bias"))
    # Examples share parameters. What moves is set example by example, see `set_tensor`.
    peft.requires_grad_(False)
    freeze(peft)
    given = {key: getattr(module, attribute).clone() for key, (module, attribute) in places.items()}
    return AdaptedModel(peft, places, given, optional, weights, lora)


def _ends_with(layer: str, name: str) -> bool:
    """Whether a module's path has these parts before its parameters."""
    return f".{name}." in f".{layer}."


def _matrix(base: nn.Module) -> Tensor:
    """The weight of a linear layer, (d_out, d_in)."""
    weight = base.get_parameter("weight").detach()
    return weight.T if isinstance(base, Conv1D) else weight


def residual_start(weight: Tensor, lora: Lora, layer: str) -> tuple[Tensor, Tensor, float]:
    """A, B and s of PiSSA or OLoRA, computed from a frozen weight: s B A is near it.

    Args:
        weight: (d_out, d_in).
        lora, layer: with one of these initialisations; the layer's name.
    """
    start, rank = str(lora.option("init_lora_weights")), lora.rank_of(layer)
    scaling = lora.scaling_of(layer) * lora.start_scale
    words = f"at most {min(weight.shape)} for {start}, the smaller side of {layer}"
    check(rank <= min(weight.shape), "rank", rank, words)
    whole = weight.double()
    if start == "olora":
        left, right = torch.linalg.qr(whole)
        return right[:rank].to(weight), left[:, :rank].to(weight), scaling
    if start == "pissa":
        u, s, v = torch.linalg.svd(whole, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # public: whoever loads the base finds the same residual
            u, s, v = torch.svd_lowrank(whole, rank, niter=int(start.rpartition("_")[2]))
            v = v.mT
    root = (s[:rank] / scaling).sqrt()
    return (root[:, None] * v[:rank]).to(weight), (u[:, :rank] * root).to(weight), scaling


def _take_start_out(base: nn.Module, layer: str, lora: Lora) -> tuple[Tensor, Tensor]:
    """A and B of PiSSA or OLoRA; the layer keeps what is left of its weight, in a copy."""
    weight = _matrix(base)
    a, b, scaling = residual_start(weight, lora, layer)
    # In float64: the difference is small beside its terms, and rounding would move the model.
    rest = (weight.double() - scaling * b.double() @ a.double()).to(weight)
    rest = rest.T.contiguous() if isinstance(base, Conv1D) else rest
    base.weight = nn.Parameter(rest, requires_grad=False)
    return a, b


def _per_example_biases(peft: nn.Module, which: str) -> Places:
    """Gives layers a bias per example, in place: those with adapters, or all that have a bias."""
    places, done, within = Places(), set(), set()
    for module in peft.modules():
        if isinstance(module, ModulesToSaveWrapper):
            # What is trained in full has a bias for each example already.
            within |= {id(part) for part in module.modules()}
        elif isinstance(module, Adapter):
            within.add(id(module.base))
    for name, module in list(peft.named_modules()):
        layer = module.base if isinstance(module, Adapter) else module
        bias = layer._parameters.get("bias")
        if bias is None or id(module) in within or (which == "lora_only" and layer is module):
            continue
        kind = type(layer).__name__
        known = type(layer) in (nn.Linear, nn.LayerNorm, nn.Conv2d, Conv1D) and bias.ndim == 1
        own = known and id(bias) not in done
        expected = "'lora_only' or 'none': biases of linear maps, LayerNorm and Conv2d, each once"
        check(own, "bias", f"{which}, with that of {_plain(name)}: {kind}", expected)
        done.add(id(bias))
        parent, _, attribute = name.rpartition(".")
        wrapped = PerExampleBias(module, bias.detach())
        setattr(peft.get_submodule(parent), attribute, wrapped)
        places[ParamKey("bias", _plain(name))] = (wrapped, "rows")
    return places


def _per_example_head(name: str, holder: nn.Module) -> Places:
    """Swaps every linear map of the trained head for one with rows per example, in place."""
    places = Places()
    for path, linear in list(holder.named_modules()):
        if isinstance(linear, nn.Linear):
            parent, _, own = path.rpartition(".")
            rows = PerExampleLinear(linear)
            setattr(holder.get_submodule(parent), own, rows)
            layer = ".".join([name, *path.split(".")[1:]])
            places[ParamKey("head", f"{layer}.weight")] = (rows, "rows")
            if linear.bias is not None:
                places[ParamKey("head", f"{layer}.bias")] = (rows, "bias_rows")
    return places


def initial_values(
    adapted: AdaptedModel,
    streams: Streams,
    rule: "Callable | None" = None,
    start_scale: float = 1.0,
) -> dict[ParamKey, Tensor]:
    """The values before training: A Kaiming-uniform as in PEFT, B zero, the head as given.

    Args:
        adapted, streams: the model, and the run's random streams.
        rule: a row's own start of a layer's factors, from its frozen weight and the rank.
        start_scale: A is so many times as large (see `Lora`).

    Other initialisations of PEFT draw A as they do there; those that need the frozen weight were
    computed with it.

    Guarantees: the adapted model is the base model
        (test_contract.py::test_adapter_changes_nothing_before_training).
    """
    values, kind = {}, adapted.lora.option("init_lora_weights")
    for number, (key, given) in enumerate(adapted.initial.items()):
        # A stream for each tensor, by its number: no two start from the same draw.
        drawn = key.side == "A" or (key.side == "B" and kind is False)
        if key.side not in "AB" or adapted.lora.residual_start:
            values[key] = given
        elif drawn and kind == "gaussian":
            unit = streams.normal(tuple(given.shape), "adapter start", number)
            values[key] = (unit / len(given)).to(given)
        elif drawn:
            unit = streams.uniform(given.shape, "adapter start", number) * 2 - 1
            values[key] = (unit / given.shape[1] ** 0.5).to(given)
        else:
            values[key] = torch.zeros_like(given)
    for layer, weight in adapted.weights.items() if rule is not None else ():
        like = adapted.initial[ParamKey("A", layer)]
        rank = len(like)
        values |= {
            ParamKey(side, layer): value
            for side, value in rule(weight.to(like.device), rank).items()  # type: ignore[misc]
        }  # type: ignore[misc]
    values = {key: x * start_scale if key.side == "A" else x for key, x in values.items()}
    # The rows' own lengths at the start: nothing is rescaled, and the model is the base model.
    for key in [key for key in values if key.side == "magnitude"]:
        a, b = (values[ParamKey(side, key.layer)] for side in "AB")
        core, gain = (values.get(ParamKey(side, key.layer)) for side in ("R", "gain"))
        b = b if core is None else times_core(b, core, gain)
        scaling = adapted.lora.scaling_of(key.layer)
        values[key] = row_lengths(adapted.weights[key.layer], a, b, scaling)
    return values


def place(
    adapted: AdaptedModel,
    device: "str | torch.device | None",
    products: str,
    quantize: str | None = None,
) -> AdaptedModel:
    """Moves the adapted model to a device; its modules change in place.

    Args:
        adapted, device: the model; ``None`` leaves it where it is.
        products: "bfloat16" puts every frozen linear map, no factor or head, in half precision.
        quantize: "int8" or "nf4" keeps them in so many bits.

    Raises: ``ValueError`` for magnitudes (DoRA), whose divisor is the length of the frozen rows.
    """
    device = adapted.device if device is None else torch.device(device)
    if quantize is not None:
        dora = adapted.lora.option("use_dora")
        check(not dora, "quantize", quantize, "None with use_dora, which needs the frozen weight")
    for parent in list(adapted.model.modules()) if products == "bfloat16" or quantize else ():
        for name, child in list(parent.named_children()):
            if type(child) in (nn.Linear, FrozenLinear, Conv1D):
                coded = quantize and QuantizedLinear(child, quantize, device)
                setattr(parent, name, coded or BFloat16Linear(child))
    if device == adapted.device:
        return adapted
    copies: dict[int, nn.Parameter] = {}
    for module in adapted.model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            # The task's own parameters do not move, so each is copied; tied weights stay tied.
            if id(parameter) not in copies:
                moved = nn.Parameter(parameter.detach().to(device), requires_grad=False)
                copies[id(parameter)] = moved
            module._parameters[name] = copies[id(parameter)]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for module, attribute in adapted.places.values():
        setattr(module, attribute, getattr(module, attribute).to(device))
    for module in adapted.model.modules():
        for name in ("weight_copy", "bias_copy"):
            if name in vars(module):
                setattr(module, name, getattr(module, name).to(device))
    given = {key: tensor.to(device) for key, tensor in adapted.initial.items()}
    # The whole weights of a base in few bits stay where they are.
    there = adapted.device if quantize else device
    weights = {layer: tensor.to(there) for layer, tensor in adapted.weights.items()}
    return replace(adapted, initial=given, weights=weights)


@contextmanager
def matmuls(products: str) -> Iterator[None]:
    """Takes a GPU's float32 products in TF32 if ``products`` is "tf32", else in full precision.

    What the process allows otherwise does not count, and is restored afterwards.

    Guarantees: test_compute.py::test_what_the_process_allows_does_not_count.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def save(
    model: nn.Module,
    targets: tuple[str, ...],
    head: Head,
    lora: Lora,
    values: Mapping[ParamKey, Tensor],
    path: str | Path,
    new: Sequence[str] = (),
) -> Path:
    """Writes an adapter folder that ``peft.PeftModel.from_pretrained`` reads.

    What the base's checkpoint lacks is written whether it was trained or not: whoever loads the
    base draws other numbers for it.

    A residual W beside the factors is written as further ranks, and so is the start of PiSSA and
    OLoRA with a minus: the base that reads it is the unchanged one.

    The folder is meant to be handed on: its mode follows the umask. It appears whole or not at all;
    an existing one is replaced when it is empty or holds an adapter only.

    Args:
        model, targets, head, lora: what was adapted, and with which options.
        values, path: the trained tensors, and the folder.
        new: names of modules that the base's checkpoint lacks.

    Raises: ``ValueError`` when the path is taken by anything else, or the method trained a kind of
        tensor for which PEFT has no place.
    Guarantees: test_a_folder_is_written_whole_or_not_at_all,
        test_loading.py::test_a_saved_adapter_reproduces_on_a_base_that_is_loaded_anew,
        test_every_file_of_a_run_is_its_owner_s (its modes).
    """
    path = Path(path)
    ours = path.is_dir() and {part.name for part in path.iterdir()} <= ADAPTER_FILES
    words = "a new folder, or one with an adapter and nothing else"
    check(ours or not path.exists(), "path", str(path), words)
    alone, heads = _only_the_task_s(model, head, lora), _heads(model, head, lora)
    values, lora = _plain_pairs(model, values, lora)
    busy = {key.layer for key in values if key.side != "head"}
    kept = _untouched_parts(model, new, heads, busy)
    options = {name: lora.option(name) for name in SAVED}
    peft = _inject(model, targets, head, lora, options, kept)
    texts = getattr(model, "main_input_name", None) == "input_ids"
    if lora.option("task_type") and texts:  # PEFT's wrapper of a task calls with input_ids
        peft.peft_config["default"].task_type = lora.option("task_type")  # type: ignore[union-attr,index]
    for name, module in peft.named_modules():
        layer = _plain(name)
        if isinstance(module, LoraLayer):
            for side, holder in (("A", module.lora_A), ("B", module.lora_B)):
                weight = holder["default"].get_parameter("weight")
                weight.data.copy_(values[ParamKey(side, layer)])
            if lora.option("use_dora"):
                lengths = module.lora_magnitude_vector["default"].get_parameter("weight")
                lengths.data.copy_(values[ParamKey("magnitude", layer)])
        if (bias := ParamKey("bias", layer)) in values:
            holder = module.get_base_layer() if isinstance(module, LoraLayer) else module
            if isinstance(module, ModulesToSaveWrapper):  # what PEFT takes for the head as well
                holder = module.modules_to_save["default"]
            holder.bias = nn.Parameter(values[bias].clone())  # the base's own stays as it is
        if isinstance(module, ModulesToSaveWrapper) and (
            layer in head_names(head) if alone else layer not in kept
        ):
            trained = module.get_submodule("modules_to_save.default")
            for key, parameter in trained.named_parameters():
                parameter.data.copy_(values[ParamKey("head", f"{layer}.{key}")])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        whole = Path(folder) / "whole"
        peft.save_pretrained(whole, save_embedding_layers=False)  # type: ignore[operator]
        _add_other_parts(model, new, peft, whole / SAFETENSORS_WEIGHTS_NAME)
        # This one is opened as any file is; safetensors writes with mode 0600.
        mode = stat.S_IMODE((whole / "adapter_config.json").stat().st_mode)
        for part in whole.iterdir():
            part.chmod(mode)
        if ours:
            path.rename(Path(folder) / "old")
        whole.rename(path)
    return path


def _untouched_parts(
    model: nn.Module, new: Sequence[str], heads: list[str], busy: set[str]
) -> list[str]:
    """The largest new modules in which nothing is trained.

    Args:
        model, new: the base, and the names of modules that its checkpoint lacks.
        heads: names, or ends of names, of what is trained in full.
        busy: layers with an adapter or a bias that moves.
    """
    modules = dict(model.named_modules())
    # PEFT wraps every module whose name ends with a head's.
    trained = busy | {name for name in modules if name.endswith(tuple(heads))}
    untouched, names = [], list(new)
    while names:
        name = names.pop(0)
        if any(is_within(name, part) for part in trained) or not modules[name].state_dict():
            continue
        if any(is_within(part, name) for part in trained):
            names += [f"{name}.{child}" for child, _ in modules[name].named_children()]
        else:
            untouched.append(name)
    return untouched


def _add_other_parts(model: nn.Module, new: Sequence[str], peft: nn.Module, file: Path) -> None:
    """Adds what is frozen in new modules that have adapters inside.

    PEFT wraps no module with adapters inside, but it loads tensors of the base that it finds in an
    adapter's file, as it does with biases.
    """
    saved, there = load_file(file), peft.state_dict()
    more: dict[str, Tensor] = {}
    for part in new:
        for path in model.get_submodule(part).state_dict(prefix=f"{part}."):
            layer, _, name = path.rpartition(".")
            for key in (f"base_model.model.{path}", f"base_model.model.{layer}.base_layer.{name}"):
                if key in there and key not in saved:
                    more[key] = there[key].clone()
    if more:
        save_file({**saved, **more}, file, metadata={"format": "pt"})


def _plain_pairs(
    model: nn.Module, values: Mapping[ParamKey, Tensor], lora: Lora
) -> tuple[dict[ParamKey, Tensor], Lora]:
    """The same model from A and B alone: cores go into B, residuals become further ranks."""
    for side in {key.side for key in values if key.kind.output}:
        check(False, "kind", side, "A, B, R, W or head: a PEFT adapter has no place for another")
    state = ServerState(values).without_core()
    a, b, residuals = state.side("A"), state.side("B"), state.side("W")
    for layer, residual in residuals.items():
        u, s, v = torch.linalg.svd(residual.double(), full_matrices=False)
        # Without the directions that are rounding alone: the stored rank is what the product needs.
        kept = s > s.max() * max(residual.shape) * torch.finfo(residual.dtype).eps
        a[layer] = torch.cat([a[layer], v[kept].to(a[layer])])
        b[layer] = torch.cat([b[layer], (u[:, kept] * s[kept]).to(b[layer])], 1)
    for layer in a if lora.residual_start else ():
        more, left, _ = residual_start(_matrix(model.get_submodule(layer)), lora, layer)
        a[layer] = torch.cat([a[layer], more.to(a[layer])])
        b[layer] = torch.cat([b[layer], -lora.start_scale * left.to(b[layer])], 1)
    tensors = {key: x for key, x in state.tensors.items() if key.side not in ("A", "B", "W")}
    if lora.peft is None:
        # PEFT reads one rank for all layers here: zeros fill the smaller ones up.
        rank = max((len(x) for x in a.values()), default=lora.rank)
        for layer in a:
            a[layer], b[layer] = pad_to_rank(a[layer], b[layer], rank)
        lora = Lora(rank, lora.scaling * rank)
    elif residuals or lora.residual_start or lora.start_scale != 1:
        # Each layer by its own name, since it has a rank and a scale of its own now.
        ranks = {f"^{re.escape(layer)}": len(x) for layer, x in a.items()}
        scales = {f"^{re.escape(x)}": lora.scaling_of(x) * len(a[x]) for x in a}
        own = {"rank_pattern": ranks, "alpha_pattern": scales, "use_rslora": False}
        options = {**lora.peft, **own, "init_lora_weights": True}
        lora = Lora(max(ranks.values()), lora.alpha, peft=options)
    for layer in a:
        tensors |= {ParamKey("A", layer): a[layer], ParamKey("B", layer): b[layer]}
    return tensors, lora
