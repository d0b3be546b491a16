"""A second device on a machine that has none: its tensors lie in the memory of the CPU, and an
operation on tensors of both devices fails, as on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("lazy", 0)
"""Of a kind that every build of torch knows, and that needs nothing before its first tensor."""
MAY_MIX = {"to", "_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that copy between devices, or whose positions may lie on the CPU."""


class There(Tensor):
    """A tensor on `DEVICE`; ``held`` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        places: Any = {"strides": held.stride(), "storage_offset": held.storage_offset()}
        # A view of such a tensor cannot be made in inference mode.
        with torch.inference_mode(False):
            made: Any = Tensor._make_wrapper_subclass(
                cls, held.size(), dtype=held.dtype, device=DEVICE, **places
            )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore
        return _call(func, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[None]:
    """Within it, tensors can be made on `DEVICE`, moved there, and brought back."""
    with _Operations(), _Lists():
        yield


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """Tensors of lists of numbers, which torch makes without asking the mode above."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        device = kwargs.pop("device", None) if func in (torch.tensor, torch.as_tensor) else None
        made = func(*args, **kwargs)
        return made if device is None else made.to(device)


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on what the tensors hold; its result is where the operation was."""
    name = func._schema.name.removeprefix("aten::")
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, There)]
    # A tensor without a dimension may come from the CPU.
    strangers = [x for x in tensors if x.dim() and not isinstance(x, There)]
    if there and strangers and name not in MAY_MIX:
        shapes = [tuple(x.shape) for x in strangers]
        raise RuntimeError(f"{name}: tensors of two devices; on the CPU: {shapes}")
    if name in ("index", "index_put", "index_put_") and not isinstance(args[0], There) and there:
        raise RuntimeError(f"{name}: positions on the device, values on the CPU")
    asked = [x for x in leaves if isinstance(x, torch.device)]
    is_there = asked[0].type == DEVICE.type if asked else bool(there)
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if name.endswith("_") and func._schema.is_mutable:
        return args[0]
    return tree_map(_wrapped, result) if is_there else result


def _inner(x: Any) -> Any:
    if isinstance(x, torch.device) and x.type == DEVICE.type:
        return torch.device("cpu")
    return x.held if isinstance(x, There) else x


def _wrapped(x: Any) -> Any:
    return There(x) if isinstance(x, Tensor) else x
