"""A model with LoRA adapters from PEFT, in layers that may have weights per example."""

import copy
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora_lab._utils.environment import ignored_warnings
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.state import KINDS, ParamKey, ServerState, pad_to_rank

ABSENT = torch.empty(0)
"""In the place of a core, a residual or another tensor that a run does not have."""
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
Places = dict[ParamKey, tuple[nn.Module, str]]


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

    A, B and R have one value for all examples or, with a leading N, one for each. Further kinds of
    tensors act on the output as their row of `KINDS` says; other attributes are the frozen layer's.
    """

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.A, self.B, self.R, self.W = a, b, ABSENT, ABSENT
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
        y, x = self.base(x), x.to(self.A.dtype)
        whole = y.to(x.dtype)
        if self.W.numel():
            whole = whole + F.linear(x, self.scaling * self.W)
        b = self.B @ self.R if self.R.numel() else self.B
        whole = low_rank(whole, x, self.A, b, self.scaling)
        for side, (output, dims) in self.more.items():
            if (value := getattr(self, side)).numel():
                value = value if value.dim() > dims else value[None]
                whole = output(by_example(whole, len(value)), value).reshape(whole.shape)
        return whole.to(y.dtype)


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


@dataclass(frozen=True)
class AdaptedModel:
    """A model whose adapter factors and head `set_tensor` sets; `model` is called as usual.

    Args:
        places: module and attribute of every A, B and tensor of the head.
        initial: their values as PEFT made them.
        optional: places of each layer's other tensors, such as a core R, absent until they are set.
        weights: layer -> frozen weight (d_out, d_in).
    """

    model: nn.Module
    places: Mapping[ParamKey, tuple[nn.Module, str]]
    initial: Mapping[ParamKey, Tensor]
    optional: Mapping[ParamKey, tuple[nn.Module, str]]
    weights: Mapping[str, Tensor]

    def set_tensor(self, key: ParamKey, rows: Tensor) -> None:
        """Sets a tensor: one value for all examples, or one for each with a leading N."""
        module, attribute = self.places.get(key) or self.optional[key]
        setattr(module, attribute, rows)

    def select_keys(self, values: Mapping[ParamKey, Any]) -> tuple[ParamKey, ...]:
        """The keys that the model computes with; optional tensors not among them are taken out."""
        for key, (module, attribute) in self.optional.items():
            if key not in values:
                setattr(module, attribute, ABSENT)
        return tuple(key for key in values if key in self.places or key in self.optional)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.initial.values())).device

    @property
    def shapes(self) -> dict[ParamKey, torch.Size]:
        """ParamKey -> shape of one client's tensor."""
        return {key: tensor.shape for key, tensor in self.initial.items()}


def structure_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares parameters and buffers with the original."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _inject(model: nn.Module, targets: tuple[str, ...], head: str | None, lora: Lora) -> nn.Module:
    config = LoraConfig(r=lora.rank, target_modules=list(targets), modules_to_save=head and [head])  # type: ignore[arg-type]
    config.lora_alpha = lora.alpha / lora.start_scale  # type: ignore[assignment]  # PEFT divides it by r, of any type
    # PEFT warns of what is handled here, such as a transposed Conv1D.
    with ignored_warnings(), torch.random.fork_rng(devices=[]):
        return get_peft_model(structure_copy(model), config)


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def adapt(model: nn.Module, targets: tuple[str, ...], head: str | None, lora: Lora) -> AdaptedModel:
    """Injects adapters with PEFT, and replaces its layers and the head's by per-example ones.

    The given model is left as it was. PEFT matches a head at the end of a module's name, whatever
    stands before: what it wraps beside the one module of this name is unwrapped, and stays frozen.

    Args:
        model, lora: the base model, and the rank and scale of its adapters.
        targets, head: ends of the names of linear layers; the name of a module trained as a whole.

    Raises: ``ValueError`` where a target is not a linear layer.
    Guarantees: tests/lora/test_attack_examples.py::test_a_head_is_one_module.
    """
    peft = _inject(model, targets, head, lora).eval()
    places, optional = Places(), Places()
    weights: dict[str, Tensor] = {}
    more = [side for side, kind in KINDS.items() if kind.shape and side not in "AB"]
    for name, module in list(peft.named_modules()):
        layer, (parent, _, own) = _plain(name), name.rpartition(".")
        if isinstance(module, ModulesToSaveWrapper) and layer != head:
            setattr(peft.get_submodule(parent), own, module.original_module)
        elif isinstance(module, ModulesToSaveWrapper):
            places |= _per_example_head(layer, module.modules_to_save)
        elif isinstance(module, LoraLayer):
            base, words = module.get_base_layer(), "linear layers, not "
            fits = isinstance(base, (nn.Linear, Conv1D))
            check(fits, "targets", layer, words + type(base).__name__)
            pair = (side["default"] for side in (module.lora_A, module.lora_B))
            a, b = (side.get_parameter("weight").detach() for side in pair)
            adapter = Adapter(base, a, b, lora.scaling)
            setattr(peft.get_submodule(parent), own, adapter)
            places |= {ParamKey(side, layer): (adapter, side) for side in "AB"}
            optional |= {ParamKey(side, layer): (adapter, side) for side in more}
            weight = base.get_parameter("weight").detach()
            weights[layer] = weight.T if isinstance(base, Conv1D) else weight
    check(bool(places), "targets", targets, "names of linear layers of the model")
    peft.requires_grad_(False)
    freeze(peft)
    given = {key: getattr(module, attribute).clone() for key, (module, attribute) in places.items()}
    return AdaptedModel(peft, places, given, optional, weights)


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

    Guarantees: the adapted model is the base model
        (test_contract.py::test_adapter_changes_nothing_before_training).
    """
    values = {}
    for number, (key, given) in enumerate(adapted.initial.items()):
        if key.side == "A":
            unit = streams.uniform(given.shape, "adapter start", number) * 2 - 1
            values[key] = (unit / given.shape[1] ** 0.5).to(given)
        else:
            values[key] = torch.zeros_like(given) if key.side == "B" else given
    for layer, weight in adapted.weights.items() if rule is not None else ():
        rank = len(adapted.initial[ParamKey("A", layer)])
        values |= {ParamKey(side, layer): value for side, value in rule(weight, rank).items()}  # type: ignore[misc]
    return {key: x * start_scale if key.side == "A" else x for key, x in values.items()}


def place(
    adapted: AdaptedModel, device: "str | torch.device | None", products: str
) -> AdaptedModel:
    """Moves the adapted model to a device; its modules change in place.

    Args:
        adapted, device: the model; ``None`` leaves it where it is.
        products: "bfloat16" puts every frozen linear map, no factor or head, in half precision.
    """
    if products == "bfloat16":
        for parent in list(adapted.model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) in (nn.Linear, FrozenLinear, Conv1D):
                    setattr(parent, name, BFloat16Linear(child))
    device = adapted.device if device is None else torch.device(device)
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
    given = {key: tensor.to(device) for key, tensor in adapted.initial.items()}
    weights = {layer: tensor.to(device) for layer, tensor in adapted.weights.items()}
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
    head: str | None,
    lora: Lora,
    values: Mapping[ParamKey, Tensor],
    path: str | Path,
) -> Path:
    """Writes an adapter folder that ``peft.PeftModel.from_pretrained`` reads.

    A residual W beside the factors is written as further ranks. The folder is meant to be handed
    on: its mode follows the umask. It appears whole or not at all; an existing one is replaced when
    it is empty or holds an adapter only.

    Args:
        model, targets, head, lora: what was adapted.
        values, path: the trained tensors, and the folder.

    Raises: ``ValueError`` when the path is taken by anything else, or the method trained a kind of
        tensor for which PEFT has no place.
    Guarantees: test_a_folder_is_written_whole_or_not_at_all,
        test_every_file_of_a_run_is_its_owner_s (its modes).
    """
    path = Path(path)
    ours = path.is_dir() and {part.name for part in path.iterdir()} <= ADAPTER_FILES
    words = "a new folder, or one with an adapter and nothing else"
    check(ours or not path.exists(), "path", str(path), words)
    values, lora = _plain_pairs(values, lora)
    peft = _inject(model, targets, head, lora)
    for name, module in peft.named_modules():
        layer = _plain(name)
        if isinstance(module, LoraLayer):
            for side, holder in (("A", module.lora_A), ("B", module.lora_B)):
                weight = holder["default"].get_parameter("weight")
                weight.data.copy_(values[ParamKey(side, layer)])
        if isinstance(module, ModulesToSaveWrapper) and layer == head:
            trained = module.get_submodule("modules_to_save.default")
            for key, parameter in trained.named_parameters():
                parameter.data.copy_(values[ParamKey("head", f"{layer}.{key}")])
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        whole = Path(folder) / "whole"
        peft.save_pretrained(whole, save_embedding_layers=False)  # type: ignore[operator]
        # This one is opened as any file is; safetensors writes with mode 0600.
        mode = stat.S_IMODE((whole / "adapter_config.json").stat().st_mode)
        for part in whole.iterdir():
            part.chmod(mode)
        if ours:
            path.rename(Path(folder) / "old")
        whole.rename(path)
    return path


def _plain_pairs(
    values: Mapping[ParamKey, Tensor], lora: Lora
) -> tuple[dict[ParamKey, Tensor], Lora]:
    """The same model from A and B alone: cores go into B, residuals become further ranks."""
    for side in {key.side for key in values if key.kind.output}:
        check(False, "kind", side, "A, B, R, W or head: a PEFT adapter has no place for another")
    state = ServerState(values).without_core()
    a, b = state.side("A"), state.side("B")
    for layer, residual in state.side("W").items():
        u, s, v = torch.linalg.svd(residual.double(), full_matrices=False)
        kept = s > s.max() * max(residual.shape) * torch.finfo(residual.dtype).eps
        a[layer] = torch.cat([a[layer], v[kept].to(a[layer])])
        b[layer] = torch.cat([b[layer], (u[:, kept] * s[kept]).to(b[layer])], 1)
    rank = max((len(x) for x in a.values()), default=lora.rank)
    pairs = {key: tensor for key, tensor in state.tensors.items() if key.side == "head"}
    for layer in a:
        pair = pad_to_rank(a[layer], b[layer], rank)
        pairs |= {ParamKey(side, layer): x for side, x in zip("AB", pair, strict=True)}
    return pairs, Lora(rank, lora.scaling * rank)
