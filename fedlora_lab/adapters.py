"""PEFT, and nothing else: injection of adapters, stacked factors in their place, saving of an adapter folder."""

import copy
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedlora_lab.checks import check
from fedlora_lab.method import Slot
from fedlora_lab.plan import Lora
from fedlora_lab.streams import Streams

SAVED = {"adapter_config.json", "adapter_model.safetensors", "README.md"}


class Stacked(nn.Module):
    """A linear map that may have its own weight (and bias) for every example of the batch.

    ``rows`` is (out, in), one weight for all, or (N, out, in), one for each of N examples. With N weights the first
    dimension of the input is a multiple of N, example by example (tokens, windows and heads may follow each other).
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.in_features, self.out_features = linear.weight, linear.in_features, linear.out_features
        self.rows: Tensor = linear.weight.detach()
        self.bias_rows: Tensor | None = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
        if self.rows.dim() == 2:
            return nn.functional.linear(x, self.rows, self.bias_rows)
        n = self.rows.shape[0]
        if x.shape[0] % n:
            raise ValueError(f"first dimension={x.shape[0]}: expected a multiple of the {n} examples (batch first)")
        y = torch.bmm(x.reshape(n, -1, x.shape[-1]), self.rows.transpose(1, 2))
        if self.bias_rows is not None:
            y = y + self.bias_rows.unsqueeze(1)
        return y.reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Adapted:
    """A model whose adapter factors (and head) are stacked; `put` sets them, `model` is called as usual."""

    model: nn.Module
    places: Mapping[Slot, tuple[Stacked, str]]
    given: Mapping[Slot, Tensor]

    def put(self, slot: Slot, rows: Tensor) -> None:
        """Use these values for a slot: its own shape for all examples alike, or with a leading N."""
        module, attribute = self.places[slot]
        setattr(module, attribute, rows)

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
    """Inject adapters with PEFT and put a stacked module in the place of each factor and each linear of the head.

    The given model is left as it was.

    Raises: ``ValueError`` where a target is not a linear layer (no exact per-example factors for it here).
    """
    peft = _inject(model, targets, head, lora).eval()
    places: dict[Slot, tuple[Stacked, str]] = {}
    for name, module in peft.named_modules():
        if isinstance(module, LoraLayer):
            base = module.get_base_layer()
            check(
                isinstance(base, (nn.Linear, Conv1D)),
                "targets",
                _plain(name),
                f"linear layers, not {type(base).__name__}",
            )
            for side, holder in (("A", module.lora_A), ("B", module.lora_B)):
                holder["default"] = stacked = Stacked(holder["default"])  # type: ignore[arg-type]
                places[Slot(side, _plain(name))] = (stacked, "rows")
        if isinstance(module, ModulesToSaveWrapper):
            places |= _stack_head(_plain(name), module)
    check(bool(places), "targets", targets, "names of linear layers of the model")
    for parameter in peft.parameters():
        parameter.requires_grad_(False)
    given = {slot: getattr(module, attribute).clone() for slot, (module, attribute) in places.items()}
    return Adapted(peft, places, given)


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


def start(adapted: Adapted, streams: Streams) -> dict[Slot, Tensor]:
    """The values before training: A Kaiming-uniform as PEFT draws it (from a stream of its own), B zero, head as given.

    Guarantees: the adapted model is the base model (test_contract.py::test_no_op_at_start).
    """
    values = {}
    for number, (slot, given) in enumerate(adapted.given.items()):
        if slot.side == "A":
            random = streams.generator("adapter start", number)
            unit = torch.rand(given.shape, generator=random, dtype=torch.float64) * 2 - 1
            values[slot] = (unit / given.shape[1] ** 0.5).to(given)
        else:
            values[slot] = torch.zeros_like(given) if slot.side == "B" else given
    return values


def _fill(peft: nn.Module, values: Mapping[Slot, Tensor]) -> None:
    for name, module in peft.named_modules():
        if isinstance(module, LoraLayer):
            for side, holder in (("A", module.lora_A), ("B", module.lora_B)):
                holder["default"].get_parameter("weight").data.copy_(values[Slot(side, _plain(name))])
        if isinstance(module, ModulesToSaveWrapper):
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

    The folder appears whole or not at all; an existing one is replaced when it is empty or holds an adapter only.

    Raises: ``ValueError`` when the path is taken by anything else.
    Guarantees: tests/test_adapters.py::test_a_folder_is_written_whole_or_not_at_all.
    """
    path = Path(path)
    ours = path.is_dir() and {part.name for part in path.iterdir()} <= SAVED
    check(ours or not path.exists(), "path", str(path), "a new folder, or one with an adapter and nothing else")
    peft = _inject(model, targets, head, lora)
    _fill(peft, values)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        whole = Path(folder) / "whole"
        peft.save_pretrained(whole, save_embedding_layers=False)  # type: ignore[operator]  # a PeftModel
        if ours:
            path.rename(Path(folder) / "old")
        whole.rename(path)
    return path
