"""What a task must be for per-example training to be exact; everything else is refused with the reason."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlora_lab.checks import check

NO_LORA = "nn.Linear or Transformers' Conv1D; this kind of layer has no exact per-example form here"


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that asks for no gradient; the given model keeps everything as it was."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    for module in twin.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # Without gradients this layer runs a fused kernel on the base weights, past any adapter. 0 switches it off.
            module.activation_relu_or_gelu = 0
    return twin


def no_mixing(model: nn.Module) -> None:
    """Refuse batch normalisation that would use the batch's own statistics."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            expected = "evaluation mode: BatchNorm in training mode mixes examples; call model.eval() first"
            check(not module.training, f"model.{name}", type(module).__name__, expected)
            expected = "running statistics: without them BatchNorm mixes examples; set track_running_stats=True"
            check(module.running_mean is not None, f"model.{name}", type(module).__name__, expected)


def frozen(model: Any) -> None:
    """Refuse anything but a module of finite parameters that ask for no gradient, in evaluation mode."""
    check(isinstance(model, nn.Module), "model", type(model).__name__, "a torch.nn.Module")
    still = not model.training and not any(p.requires_grad for p in model.parameters())
    check(still, "model", type(model).__name__, "a frozen copy in evaluation mode; tasks.classification makes one")
    for name, parameter in model.named_parameters():
        check(finite(parameter.detach()), f"model.{name}", "NaN or infinity", "finite weights")


def finite(tensor: Tensor) -> bool:
    """Whether all its numbers are; of whole numbers, of odd types and of shapes without values nothing is said."""
    known = tensor.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16) and not tensor.is_meta
    return not known or bool(tensor.isfinite().all())


def matched(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Modules whose name is one of ``names`` or ends with a dot and one of them."""
    ends = tuple(f".{name}" for name in names)
    return {name: m for name, m in model.named_modules() if name and (name in names or name.endswith(ends))}


def is_linear(module: nn.Module) -> bool:
    """nn.Linear itself, or the transposed linear map that Transformers calls Conv1D."""
    return type(module) is nn.Linear or (
        type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
    )


def names(targets: Any) -> tuple[str, ...]:
    """The target names as a tuple; refuses anything but a list or tuple of names."""
    ok = isinstance(targets, (list, tuple)) and len(targets) > 0 and all(isinstance(n, str) and n for n in targets)
    check(ok, "targets", targets, "one or more module names such as ('query', 'value')")
    return tuple(targets)


def targets(model: nn.Module, names: Sequence[str], head: str | None) -> None:
    """Refuse target names that match nothing, or anything that is not a free-standing linear map."""
    for target in names:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if is_linear(m)})
        found = matched(model, [target])
        check(bool(found), "targets", target, "the end of a module's name; linear maps here: " + ", ".join(linear))
        for name, module in found.items():
            parts = name.split(".")
            parents = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
            inside = any(isinstance(m, nn.MultiheadAttention) for m in parents)
            check(not inside, "targets", name, "a linear map outside nn.MultiheadAttention, which never calls its own")
            check(is_linear(module), "targets", f"{name}: {type(module).__name__}", NO_LORA)
            in_head = head is not None and (name == head or name.startswith(f"{head}."))
            check(not in_head, "targets", name, f"a module outside the head {head!r}, which is trained in full")
            other = next((n for n in alike(model, head) if name == n or name.startswith(f"{n}.")), None)
            expected = f"a module outside {other!r}: its name ends with the head's, {head!r}, and PEFT wraps it as well"
            check(other is None, "targets", name, expected)


def alike(model: nn.Module, head: str | None) -> list[str]:
    """Modules that PEFT takes for the head as well: their names end with its name."""
    return [name for name, _ in model.named_modules() if head and name != head and name.endswith(head)]


def head(model: nn.Module, name: str | None) -> None:
    """Refuse a head that does not exist, holds more than linear maps or shares weights with the base.

    Also one that PEFT cannot tell from modules inside it, or from a list of modules.
    """
    if name is None:
        return
    modules = dict(model.named_modules())
    check(isinstance(name, str) and bool(name) and name in modules, "head", name, "the full name of a module")
    linear = {id(p) for m in modules[name].modules() if type(m) is nn.Linear for p in m.parameters(recurse=False)}
    own = {id(p) for p in modules[name].parameters()}
    check(bool(linear), "head", name, "a module with nn.Linear inside: there is nothing to train in it")
    check(own <= linear, "head", name, "a module whose parameters all belong to nn.Linear")
    named = model.named_parameters(remove_duplicate=False)
    elsewhere = {id(p) for n, p in named if not n.startswith(f"{name}.")}
    check(not own & elsewhere, "head", name, "a module that shares no weight with the frozen base")
    lists = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
    odd = [n for n in alike(model, name) if n.startswith(f"{name}.") or isinstance(modules[n], lists)]
    check(not odd, "head", name, f"a name with which no module inside it, and no list, ends; {', '.join(odd)} does")


def _signature(name: str, pair: Any) -> tuple[dict[str, tuple], int]:
    """Types and shapes of an (x, y) pair without the number of examples, and that number."""
    check(isinstance(pair, (tuple, list)) and len(pair) == 2, name, type(pair).__name__, "a pair (x, y)")
    x, y = pair
    check(not isinstance(x, Mapping) or len(x) > 0, f"{name} x", x, "a tensor or a mapping of tensors")
    parts = {f"x[{key!r}]": value for key, value in x.items()} if isinstance(x, Mapping) else {"x": x}
    for key, value in {**parts, "y": y}.items():
        check(isinstance(value, Tensor), f"{name} {key}", type(value).__name__, "a torch.Tensor")
        check(value.ndim > 0, f"{name} {key}", "a single number", "a tensor whose first dimension counts examples")
    for key, value in parts.items():
        check(len(value) == len(y), f"{name} {key}", f"{len(value)} rows", f"{len(y)} rows, as many as y")
    return {key: (value.dtype, tuple(value.shape[1:])) for key, value in {**parts, "y": y}.items()}, len(y)


def some_clients(clients: Any) -> None:
    """Refuse anything but a list or tuple with something in it."""
    listed = isinstance(clients, (tuple, list))
    what = clients if clients is None or isinstance(clients, int) or listed else type(clients).__name__
    check(listed and len(clients) > 0, "clients", what, "at least one pair (x, y)")


def data(clients: Any, test: Any, validation: Any) -> None:
    """Refuse empty parts, rows that do not match, and clients whose tensors differ in kind."""
    some_clients(clients)
    pairs = {f"clients[{k}]": pair for k, pair in enumerate(clients)} | {"test": test}
    if validation is not None:
        pairs["validation"] = validation
    first: dict[str, tuple] | None = None
    for name, pair in pairs.items():
        signature, count = _signature(name, pair)
        check(count > 0, name, "0 examples", "at least one example")
        first = first or signature
        check(signature == first, name, signature, f"what clients[0] has: {first}")
    # Of clients' examples the clip takes those that are not finite as zero, and counts them.
    for name, (x, y) in ((name, pair) for name, pair in pairs.items() if name in ("test", "validation")):
        for key, value in {**(x if isinstance(x, Mapping) else {"x": x}), "y": y}.items():
            check(finite(value), f"{name} {key}", "NaN or infinity", "finite numbers")


def labels(y: Tensor, classes: int | None, name: str) -> None:
    """Refuse labels that are not whole numbers in [0, classes)."""
    whole = not y.is_floating_point() and not y.is_complex() and y.dtype != torch.bool
    check(whole and y.ndim == 1, f"{name} y", f"{y.dtype} {tuple(y.shape)}", "one whole number per example")
    low, high = int(y.min()), int(y.max())
    check(low >= 0, f"{name} y", low, "labels >= 0")
    check(classes is None or high < classes, f"{name} y", high, f"labels in [0, {(classes or 0) - 1}]")
