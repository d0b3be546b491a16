"""A model with LoRA adapters, in layers that may have weights per example; saved as PEFT's folders.

Layers are named, adapters scaled and saved as PEFT does, so PEFT reads what is saved here. The
layers themselves are this library's: PEFT's have one weight for the whole batch.
"""

import copy
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import SharedSetting
from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.state import (
    KINDS,
    Keys,
    ParamKey,
    ServerState,
    TensorDict,
    Tensors,
    pad_to_rank,
    times_core,
)
from fedlora_lab.tasks.modules import (
    check_no_adapters,
    head_modules,
    is_finite,
    names_for_peft,
    target_layers,
    task_parts,
)
from fedlora_lab.tasks.sentences import shipped_name
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from peft import LoraConfig

ABSENT = torch.empty(0)
"""In the place of a core, a residual or another tensor that a run does not have."""
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
ADAPTER_FILES |= {"ledger.json", "PRIVACY.md"}
PEFT_PREFIX = "base_model.model."
"""Before the names of a model's tensors in the file of an adapter."""
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


@contextmanager
def full_precision() -> Iterator[None]:
    """Takes products of float32 in full precision.

    What the process allows otherwise, of convolutions and on a CPU too, does not count, and is
    restored afterwards.

    Guarantees: test_compute.py::test_what_the_process_allows_does_not_count.
    """
    # TF32 keeps ten bits: what the process allows must not decide how exact a clip is.
    with _PRECISION.at(True):
        yield


def _set_full_precision(_: bool) -> Callable[[], None]:
    """Allows no less than float32 in its products; returns what puts the process's own back."""
    before = _precisions()
    allowed = allowed_to_cudnn = None
    # Set backend by backend, no single word says what they allow.
    with suppress(RuntimeError):
        allowed = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        allowed_to_cudnn = torch.backends.cudnn.allow_tf32
    for backend, value in before:
        if value != "none":
            backend.fp32_precision = "ieee"
    # By the one setting of GPU and CPU: "medium" would let a CPU multiply in bfloat16.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False

    def restore() -> None:
        if allowed is not None:
            torch.set_float32_matmul_precision(allowed)
        if allowed_to_cudnn is not None:
            torch.backends.cudnn.allow_tf32 = allowed_to_cudnn
        for backend, value in before:
            if backend.fp32_precision != value:
                backend.fp32_precision = value

    return restore


# The setting is the process's: the last of several threads puts it back.
_PRECISION = SharedSetting(_set_full_precision)


def _precisions() -> list[tuple[Any, str]]:
    """What newer versions of PyTorch allow each backend, the one for all others first."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    parts: list[Any] = [backends, backends.cuda.matmul]
    for backend in (backends.cudnn, backends.mkldnn):
        parts += [backend, *(getattr(backend, name, backend) for name in ("matmul", "conv", "rnn"))]
    return [(part, part.fp32_precision) for part in parts if hasattr(part, "fp32_precision")]


def save(
    task: Task,
    lora: Lora,
    values: Tensors,
    path: str | Path,
    beside: Mapping[str, str] = MappingProxyType({}),
    is_public: bool = True,
) -> Path:
    """Writes an adapter folder that ``peft.PeftModel.from_pretrained`` reads.

    What the base's checkpoint lacks is written whether it was trained or not: whoever loads the
    base draws other numbers for it. A residual W beside the factors is written as further ranks.

    The folder is meant to be handed on: its mode follows the umask. It appears whole or not at all;
    an existing one is replaced when it is empty or holds an adapter only.

    Args:
        task, lora: whose model was adapted, and with which options.
        values, path: the trained tensors, and the folder.
        beside: file name -> text of files that lie beside the adapter from the first moment.
        is_public: the adapter may be handed on, so that it names its base without a folder's path.

    Raises: ``ValueError`` when the path is taken by anything else, or the method trained a kind of
        tensor for which PEFT has no place.
    Guarantees: test_a_folder_is_written_whole_or_not_at_all,
        test_finetune.py::test_a_csv_becomes_a_served_model_offline,
        test_every_file_of_a_run_is_its_owner_s (its modes).
    """
    from peft import LoraConfig  # slow to import

    path = Path(path).expanduser()
    replaces = path.is_dir() and {part.name for part in path.iterdir()} <= ADAPTER_FILES
    expected = "a new folder, or one with an adapter and nothing else"
    check(replaces or not path.exists(), "path", str(path), expected)
    model = task.model
    heads = head_modules(model, task.head)
    layers = target_layers(model, task.targets, heads)
    factors, stored = _plain_factors(values, layers, lora)
    config = LoraConfig(
        r=stored.rank,
        target_modules=list(task.targets),
        modules_to_save=names_for_peft(heads) or None,
        base_model_name_or_path=base_name(model, keep_path=not is_public),
        auto_mapping=_auto_mapping(model),
        inference_mode=True,
        fan_in_fan_out=not any(isinstance(model.get_submodule(x), nn.Linear) for x in layers),
    )
    config.lora_alpha = float(stored.alpha / stored.start_scale)  # type: ignore[assignment]  # PEFT divides it by r, of any type
    tensors = _tensors_of_modules(task, values)
    for key, factor in factors.items():
        tensors[f"{PEFT_PREFIX}{key.layer}.lora_{key.name}.weight"] = factor
    _write_folder(path, config, tensors, beside, replaces)
    return path


def base_name(model: nn.Module, keep_path: bool = False) -> str | None:
    """What an adapter calls its base; ``None`` where the model came from no file.

    Of an absolute path only what lies under the working folder, or else the last part: readers need
    not learn where the adapter's maker keeps files. ``keep_path`` keeps it whole.

    Guarantees: tests/lab/lora/test_loaders.py::test_no_file_of_an_adapter_tells_where_its_base_lay.
    """
    name = str(getattr(model, "name_or_path", "") or "")
    place = Path(name)
    # A base that lies in the package is found by its whole path alone.
    if keep_path or not place.is_absolute() or shipped_name(model):
        return name or None
    here = Path.cwd()
    return str(place.relative_to(here)) if here in place.parents else place.name


def _auto_mapping(model: nn.Module) -> dict[str, str] | None:
    """The base's class, from which ``AutoPeftModel`` makes it where no task is named.

    By the name of a task PEFT would take what it knows as a classifier for trained.
    """
    kind = type(model)
    if not kind.__module__.startswith("transformers."):
        return None
    return {"base_model_class": kind.__name__, "parent_library": kind.__module__}


def _write_folder(
    path: Path,
    config: "LoraConfig",
    tensors: Mapping[str, Tensor],
    beside: Mapping[str, str],
    replaces: bool,
) -> None:
    """Writes the files of an adapter: all of them, or none.

    Args:
        path: the folder.
        config, tensors: of the adapter, as PEFT names them.
        beside: name -> text of further files.
        replaces: whether a folder is there, which goes.
    """
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed: a reader finds the whole folder, or the old one.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        folder = Path(scratch) / "adapter"
        config.save_pretrained(str(folder))
        # Copies: safetensors refuses tensors that share their memory, as tied weights do.
        copies = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
        copies = {name: tensor.contiguous() for name, tensor in copies.items()}
        save_file(copies, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        for name, text in beside.items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        # safetensors writes with mode 0600; the configuration has the mode that the umask gives.
        mode = stat.S_IMODE((folder / "adapter_config.json").stat().st_mode)
        for part in folder.iterdir():
            part.chmod(mode)
        if replaces:
            path.rename(Path(scratch) / "old")
        folder.rename(path)


def _tensors_of_modules(task: Task, values: Tensors) -> dict[str, Tensor]:
    """The tensors of the head, and of modules that the base's checkpoint lacks, by PEFT's names.

    PEFT loads tensors of the base that it finds in an adapter's file.

    Args: task: of the base. values: the trained tensors.
    """
    adapted = {key.layer for key in values if key.name == "A"}
    tensors: dict[str, Tensor] = {}
    for name in task_parts(task.model):
        for path, tensor in task.model.get_submodule(name).state_dict(prefix=f"{name}.").items():
            layer, _, attribute = path.rpartition(".")
            path = f"{layer}.base_layer.{attribute}" if layer in adapted else path
            tensors[PEFT_PREFIX + path] = tensor
    for key, tensor in values.items():
        if key.name == "head":
            tensors[PEFT_PREFIX + key.layer] = tensor
    return tensors


def _plain_factors(values: Tensors, layers: Sequence[str], lora: Lora) -> tuple[TensorDict, Lora]:
    """The same products from A and B alone: cores go into B, residuals become further ranks.

    Returns: the factors, and the adapter with their rank and the same scale.
    """
    state = ServerState(values).without_core()
    a = state.named("A")
    b = state.named("B")
    for layer, residual in state.named("W").items():
        u, s, v = torch.linalg.svd(residual.double(), full_matrices=False)
        # Without the directions that are rounding alone: the stored rank is what the product needs.
        significant = s > s.max() * max(residual.shape) * torch.finfo(residual.dtype).eps
        a[layer] = torch.cat([a[layer], v[significant].to(a[layer])])
        b[layer] = torch.cat([b[layer], (u[:, significant] * s[significant]).to(b[layer])], 1)
    # PEFT reads one rank for all layers: zeros fill the smaller ones up.
    rank = max(len(a[layer]) for layer in layers)
    factors = {
        ParamKey(name, layer): factor
        for layer in layers
        for name, factor in zip("AB", pad_to_rank(a[layer], b[layer], rank), strict=True)
    }
    if rank != lora.rank:
        # PEFT divides alpha by the stored rank: the product must keep its scale.
        alpha = lora.scaling * rank
        lora = replace(lora, rank=rank, alpha=alpha, start_scale=1.0)
    return factors, lora
