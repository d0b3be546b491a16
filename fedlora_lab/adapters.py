"""PEFT, and nothing else: injection of adapters, stacked factors in their place, saving of an adapter folder."""

import copy
import stat
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora_lab.checks import check
from fedlora_lab.compute.frozen import freeze
from fedlora_lab.method import Global, Slot
from fedlora_lab.plan import Lora
from fedlora_lab.ranks import padded
from fedlora_lab.stacked import ABSENT, Adapter, Stacked
from fedlora_lab.streams import Streams

SAVED = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


@dataclass(frozen=True)
class Adapted:
    """A model whose adapter factors (and head) are stacked; `put` sets them, `model` is called as usual.

    Args:
        places: of every A, B and tensor of the head.
        given: their values as PEFT made them.
        optional: places of each layer's core R and residual W, which are absent until they are put.
        weights: layer -> frozen weight (d_out, d_in).
    """

    model: nn.Module
    places: Mapping[Slot, tuple[nn.Module, str]]
    given: Mapping[Slot, Tensor]
    optional: Mapping[Slot, tuple[nn.Module, str]]
    weights: Mapping[str, Tensor]

    def put(self, slot: Slot, rows: Tensor) -> None:
        """Use these values for a slot: its own shape for all examples alike, or with a leading N."""
        module, attribute = self.places.get(slot) or self.optional[slot]
        setattr(module, attribute, rows)

    def used(self, values: Mapping[Slot, Any]) -> tuple[Slot, ...]:
        """The slots among these that the model computes with; a core or residual not among them is taken out."""
        for slot, (module, attribute) in self.optional.items():
            if slot not in values:
                setattr(module, attribute, ABSENT)
        return tuple(slot for slot in values if slot in self.places or slot in self.optional)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.given.values())).device

    @property
    def shapes(self) -> dict[Slot, torch.Size]:
        """Slot -> shape of one client's tensor."""
        return {slot: tensor.shape for slot, tensor in self.given.items()}


def _config(targets: tuple[str, ...], head: str | None, lora: Lora) -> LoraConfig:
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT divides it by r, whatever its type
        target_modules=list(targets),
        modules_to_save=[head] if head else None,
    )


def structure_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that shares parameters and buffers with the original: nothing large is duplicated."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})


def _inject(model: nn.Module, targets: tuple[str, ...], head: str | None, lora: Lora) -> nn.Module:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # What PEFT and Transformers tell each other (a transposed Conv1D, a renamed attribute) is no news to the user.
        warnings.simplefilter("ignore")
        return get_peft_model(structure_copy(model), _config(targets, head, lora))  # type: ignore[arg-type]


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.")


def adapt(model: nn.Module, targets: tuple[str, ...], head: str | None, lora: Lora) -> Adapted:
    """Inject adapters with PEFT; put stacked modules in the place of its layers and of the head's linear maps.

    The given model is left as it was. PEFT matches a head at the end of a module's name, whatever stands before: what
    it wraps beside the one module of this name is unwrapped, and stays frozen.

    Raises: ``ValueError`` where a target is not a linear layer (no exact per-example factors for it here).
    Guarantees: tests/test_attack_examples.py::test_a_head_is_one_module.
    """
    peft = _inject(model, targets, head, lora).eval()
    for name, module in list(peft.named_modules()):
        if isinstance(module, ModulesToSaveWrapper) and _plain(name) != head:
            parent, _, own = name.rpartition(".")
            setattr(peft.get_submodule(parent), own, module.original_module)
    places: dict[Slot, tuple[nn.Module, str]] = {}
    optional: dict[Slot, tuple[nn.Module, str]] = {}
    weights: dict[str, Tensor] = {}
    for name, module in list(peft.named_modules()):
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            expected = f"linear layers, not {type(base).__name__}"
            check(isinstance(base, (nn.Linear, Conv1D)), "targets", _plain(name), expected)
            layer, (parent, _, own) = _plain(name), name.rpartition(".")
            a, b = (side["default"].get_parameter("weight").detach() for side in (module.lora_A, module.lora_B))
            adapter = Adapter(base, a, b, lora.scaling)
            setattr(peft.get_submodule(parent), own, adapter)
            places |= {Slot(side, layer): (adapter, side) for side in "AB"}
            optional |= {Slot(side, layer): (adapter, side) for side in "RW"}
            weights[layer] = base.weight.detach().T if isinstance(base, Conv1D) else base.weight.detach()  # type: ignore[union-attr]
        if isinstance(module, ModulesToSaveWrapper):
            places |= _stack_head(_plain(name), module)
    check(bool(places), "targets", targets, "names of linear layers of the model")
    for parameter in peft.parameters():
        parameter.requires_grad_(False)
    freeze(peft)
    given = {slot: getattr(module, attribute).clone() for slot, (module, attribute) in places.items()}
    return Adapted(peft, places, given, optional, weights)


def _stack_head(name: str, wrapper: ModulesToSaveWrapper) -> dict[Slot, tuple[Stacked, str]]:
    """Swap every linear of the trained head for a stacked one, in place."""
    holder: nn.Module = wrapper.modules_to_save  # type: ignore[assignment]
    places: dict[Slot, tuple[Stacked, str]] = {}
    for path, linear in list(holder.named_modules()):
        if not isinstance(linear, nn.Linear):
            continue
        parent = holder.get_submodule(path.rpartition(".")[0])
        stacked = Stacked(linear)
        setattr(parent, path.rpartition(".")[2], stacked)
        layer = ".".join([name, *path.split(".")[1:]])
        places[Slot("head", f"{layer}.weight")] = (stacked, "rows")
        if linear.bias is not None:
            places[Slot("head", f"{layer}.bias")] = (stacked, "bias_rows")
    return places


def start(adapted: Adapted, streams: Streams, rule: "Callable | None" = None) -> dict[Slot, Tensor]:
    """The values before training: A Kaiming-uniform as PEFT draws it (from a stream of its own), B zero, head as given.

    Args: rule: a row's own start of a layer's factors, from its frozen weight and the rank.
    Guarantees: the adapted model is the base model (test_contract.py::test_no_op_at_start).
    """
    values = {}
    for number, (slot, given) in enumerate(adapted.given.items()):
        if slot.side == "A":
            unit = streams.uniform(given.shape, "adapter start", number) * 2 - 1
            values[slot] = (unit / given.shape[1] ** 0.5).to(given)
        else:
            values[slot] = torch.zeros_like(given) if slot.side == "B" else given
    if rule is not None:
        for layer, weight in adapted.weights.items():
            rank = len(adapted.given[Slot("A", layer)])
            values |= {Slot(side, layer): value for side, value in rule(weight, rank).items()}
    return values


def _plain_pairs(values: Mapping[Slot, Tensor], lora: Lora) -> tuple[dict[Slot, Tensor], Lora]:
    """The same model from A and B alone: cores multiplied into B, residuals as further ranks under the same scale."""
    state = Global(values).factored()
    pairs = {layer: (state.tensors[Slot("A", layer)], state.tensors[Slot("B", layer)]) for layer in state.layers}
    for layer, residual in state.side("W").items():
        u, s, v = torch.linalg.svd(residual.double(), full_matrices=False)
        kept = s > s.max() * max(residual.shape) * torch.finfo(residual.dtype).eps
        a, b = pairs[layer]
        pairs[layer] = torch.cat([a, v[kept].to(a)]), torch.cat([b, (u[:, kept] * s[kept]).to(b)], 1)
    rank = max((len(a) for a, _ in pairs.values()), default=lora.rank)
    found = {slot: tensor for slot, tensor in state.tensors.items() if slot.side == "head"}
    for layer, (a, b) in pairs.items():
        found[Slot("A", layer)], found[Slot("B", layer)] = padded(a, b, rank)
    return found, Lora(rank, lora.scaling * rank)


def _fill(peft: nn.Module, values: Mapping[Slot, Tensor], head: str | None) -> None:
    for name, module in peft.named_modules():
        if isinstance(module, LoraLayer):
            for side, holder in (("A", module.lora_A), ("B", module.lora_B)):
                holder["default"].get_parameter("weight").data.copy_(values[Slot(side, _plain(name))])
        if isinstance(module, ModulesToSaveWrapper) and _plain(name) == head:
            for key, parameter in module.get_submodule("modules_to_save.default").named_parameters():
                parameter.data.copy_(values[Slot("head", f"{_plain(name)}.{key}")])


def save(
    model: nn.Module,
    targets: tuple[str, ...],
    head: str | None,
    lora: Lora,
    values: Mapping[Slot, Tensor],
    path: str | Path,
) -> Path:
    """Write a PEFT adapter folder (safetensors and JSON) that ``peft.PeftModel.from_pretrained`` reads.

    A residual W beside the factors is written as further ranks. It is meant to be handed on: its mode follows the
    umask, unlike that of a run's other files. The folder appears whole or not at all; an existing
    one is replaced when it is empty or holds an adapter only.

    Raises: ``ValueError`` when the path is taken by anything else.
    Guarantees: tests/test_adapters.py::test_a_folder_is_written_whole_or_not_at_all; the modes:
        tests/test_attack_folders.py::test_every_file_of_a_run_is_its_owner_s.
    """
    path = Path(path)
    ours = path.is_dir() and {part.name for part in path.iterdir()} <= SAVED
    check(ours or not path.exists(), "path", str(path), "a new folder, or one with an adapter and nothing else")
    values, lora = _plain_pairs(values, lora)
    peft = _inject(model, targets, head, lora)
    _fill(peft, values, head)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        whole = Path(folder) / "whole"
        peft.save_pretrained(whole, save_embedding_layers=False)  # type: ignore[operator]  # a PeftModel
        given = (whole / "adapter_config.json").stat().st_mode  # opened as any file is; safetensors writes at 0600
        for part in whole.iterdir():
            part.chmod(stat.S_IMODE(given))
        if ours:
            path.rename(Path(folder) / "old")
        whole.rename(path)
    return path
