"""Keeps the frames of finished runs in a folder, under a digest of all that decides their numbers.

A frame is stored as CSV and read back exactly; nothing is unpickled.
"""

import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedlora_lab._utils.files import lock_folder, write_atomically
from fedlora_lab._utils.validation import check

if TYPE_CHECKING:
    import pandas as pd


VARIABLE = "FEDLORA_CACHE"
SUBPACKAGES = ("_utils", "methods", "privacy", "tasks", "lora", "measures", "federated")
LIBRARIES = ("torch", "peft", "numpy", "scipy", "pandas", "opacus", "dp-accounting")
# What these do is fixed by the sources of the subpackages and by the versions of the libraries.
KNOWN_PACKAGES = ("fedlora_lab", "torch", "transformers", "numpy", "math", "builtins", "operator")


class UncacheableRun(Exception):
    """Something decides a run's numbers whose content cannot be read: user code, say."""


def cached_frame(
    folder: "str | Path | bool | None",
    cell: Any,
    options: Mapping[str, Any],
    train: Callable[[], "pd.DataFrame"],
) -> "pd.DataFrame":
    """Returns the frame of an equal run from the folder, or trains and stores it there.

    Args:
        folder: ``None`` takes that of the variable FEDLORA_CACHE, if it is set; ``False`` none.
        cell, options: what is run.
        train: runs it.

    Guarantees: runs without a seed are never stored (test_a_release_is_never_stored); a change of
        any ingredient trains anew (test_any_changed_ingredient_trains_anew).
    """
    import pandas as pd

    check(folder is not True, "cache", folder, "a folder, None or False")
    where = os.environ.get(VARIABLE) if folder is None else folder
    key = run_key(cell, options) if where else None
    if not where or key is None:
        return train()
    path = Path(str(where)).expanduser() / f"{key}.csv"
    # Who asks for a run that another process is training waits for its frame.
    with lock_folder(path.parent, f".{key}.lock", patience=math.inf):
        if path.exists():
            return pd.read_csv(path, keep_default_na=False, converters={"value": float})
        frame = train()
        write_atomically(path, frame.to_csv(index=False, na_rep="nan"))
    return frame


def run_key(cell: Any, options: Mapping[str, Any]) -> str | None:
    """A digest of all that decides a run's frame; ``None`` for a run that must not be found again.

    Without a seed every run is a new release. Of functions and model classes from outside the
    package and its libraries the content is not known, so nothing that needs them is stored.
    """
    if cell.seed is None:
        return None
    task, model = cell.task, cell.task.model

    def parts_of(value: Any, *without: str) -> dict[str, Any]:
        names = [f.name for f in fields(value) if f.name not in without]
        return {name: _parts_of_key(getattr(value, name)) for name in names}

    try:
        parts = parts_of(cell, "task")
        parts["task"] = [task.fingerprint, parts_of(task, "model", "clients", "test")]
        parts["model"] = [str(model), str(getattr(model, "config", None))]
        parts["classes"] = sorted({_full_name(type(module)) for module in model.modules()})
        parts["options"] = _parts_of_key(dict(options))
    except (UncacheableRun, RecursionError):
        return None
    parts["code"], parts["threads"] = code_version(), torch.get_num_threads()
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def code_version() -> str:
    """A digest of the sources that compute a run, and of the versions of what they call."""
    digest = hashlib.sha256()
    home = Path(__file__).parents[1]
    for path in sorted(path for room in SUBPACKAGES for path in (home / room).rglob("*.py")):
        digest.update(f"{path.relative_to(home)}\n".encode() + path.read_bytes())
    for name in LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    return digest.hexdigest()


def _full_name(kind: Any) -> str:
    """The full name of a function or class whose code is known."""
    module = getattr(kind, "__module__", None) or "builtins"
    if module.partition(".")[0] not in KNOWN_PACKAGES:
        raise UncacheableRun(module)
    return f"{module}.{getattr(kind, '__qualname__', repr(kind))}"


def _parts_of_key(value: Any) -> Any:
    """A value as JSON that is equal for equal values only. Raises `UncacheableRun`."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, (torch.dtype, torch.device, Path)):
        return [type(value).__name__, str(value)]
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(value, Mapping):
        return ["mapping", [[_parts_of_key(k), _parts_of_key(v)] for k, v in value.items()]]
    if isinstance(value, (tuple, list)):
        return [type(value).__name__, [_parts_of_key(x) for x in value]]
    if isinstance(value, partial):
        return ["partial", *map(_parts_of_key, (value.func, value.args, value.keywords))]
    if callable(value) and hasattr(value, "__qualname__"):
        inner = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        bound = getattr(value, "__self__", None)
        inner += [] if bound is None or not is_dataclass(bound) else [bound]
        return [_full_name(value), [_parts_of_key(x) for x in inner]]
    state = {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else None
    if state is None and not hasattr(value, "__dict__"):
        raise UncacheableRun(type(value).__name__)
    return [_full_name(type(value)), _parts_of_key(vars(value) if state is None else state)]
