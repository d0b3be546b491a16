"""Folders of adapters as PEFT reads them."""

import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedlora_lab._utils.validation import check
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.state import ParamKey, ServerState, TensorDict, Tensors, pad_to_rank
from fedlora_lab.tasks.modules import head_modules, names_for_peft, target_layers, task_parts
from fedlora_lab.tasks.sentences import shipped_name
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
ADAPTER_FILES |= {"ledger.json", "PRIVACY.md"}
PEFT_PREFIX = "base_model.model."
"""Before the names of a model's tensors in the file of an adapter."""


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
