"""The modules of a model: which are adapted, which are trained whole, and what is refused."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedlora_lab._utils.validation import check, in_one_line

Head = str | Sequence[str] | None
"""Names of modules that are trained in full, see `Layers.head`."""
CLASSIFIERS = "classifier", "score"
"""Names of classifiers, as PEFT knows them too."""
PARTS_OF_PEFT = (
    "base_layer",
    "default",
    "lora_A",
    "lora_B",
    "lora_dropout",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_magnitude_vector",
)
"""Modules inside a layer that PEFT adapted, which it would take for a head of such a name."""
PEFT_ROOT = "model."
"""Before the names of a base's modules in PEFT's own model."""
MERGE_FIRST = "a model without an adapter of PEFT's; merge it first (merge_and_unload)"


def frozen_copy(model: nn.Module) -> nn.Module:
    """Copies a model in evaluation mode, without gradients; the given model stays as it is.

    Of a compiled model the one that was compiled: PEFT knows its modules by their names there.
    """
    check(not isinstance(model, nn.DataParallel), "model", type(model).__name__, "its .module")
    with in_one_line(f"model={type(model).__name__!r}: expected a module that can be copied, but"):
        twin = copy.deepcopy(getattr(model, "_orig_mod", model)).eval().requires_grad_(False)
    for module in twin.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # 0 switches off a fused kernel that passes by the adapters.
            module.activation_relu_or_gelu = 0
    return twin


def is_frozen(model: nn.Module) -> bool:
    """Whether a model is as `frozen_copy` leaves it."""
    compiled = hasattr(model, "_orig_mod")
    fused = any(
        isinstance(module, nn.TransformerEncoderLayer) and module.activation_relu_or_gelu
        for module in model.modules()
    )
    trains = model.training or any(p.requires_grad for p in model.parameters())
    return not (compiled or fused or trains)


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a floating tensor are finite; other types pass."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def check_model(model: nn.Module) -> None:
    """Refuses a model of PEFT's, weights that are not finite, and statistics of a batch."""
    check_no_adapters(model)
    for name, weight in model.named_parameters():
        expected = (
            "weights with values: load them, or move the model with to_empty and load_state_dict"
        )
        check(not weight.is_meta, f"model.{name}", "on the device meta", expected)
        check(is_finite(weight), f"model.{name}", "NaN or infinity", "finite weights")
        expected = "layers that are not compiled: compile the whole model, or none"
        check("_orig_mod" not in name, f"model.{name}", "compiled", expected)
    check_batch_norm(model)


def check_no_adapters(model: nn.Module) -> None:
    """Refuses a model that holds layers of PEFT's.

    PEFT would make their factors anew beside those of a run, and the run would start at another
    model than the one that was given.

    Guarantees: test_trainer.py::test_a_model_that_holds_adapters_is_refused.
    """
    kinds = (kind for module in model.modules() for kind in type(module).__mro__)
    layer = next((kind.__name__ for kind in kinds if kind.__module__.startswith("peft.")), None)
    check(layer is None, "model", layer, MERGE_FIRST)


def check_batch_norm(model: nn.Module) -> None:
    """Refuses batch normalisation that would use the batch's own statistics."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            is_fixed = not module.training and module.running_mean is not None
            expected = "evaluation mode and running statistics: else BatchNorm mixes examples"
            check(is_fixed, f"model.{name}", type(module).__name__, expected)


def matching_modules(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Finds the modules whose name is one of ``names``, or ends with a dot and one of them."""
    ends = tuple(f".{name}" for name in names)
    modules = model.named_modules()
    return {name: m for name, m in modules if name and (name in names or name.endswith(ends))}


def is_linear(module: nn.Module) -> bool:
    """Whether a module is nn.Linear itself, or Transformers' transposed linear map Conv1D."""
    # The class itself: one derived from it may do something else with its weight.
    kind = type(module)
    transposed = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
    return kind is nn.Linear or transposed


def linear_names(model: nn.Module) -> str:
    """The last parts of the names of a model's linear maps, for messages."""
    last = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if is_linear(m)}
    return ", ".join(sorted(last))


def target_layers(
    model: nn.Module, targets: Sequence[str], heads: Sequence[str]
) -> tuple[str, ...]:
    """The full names of the linear maps that targets stand for, in the model's order.

    Args:
        model: the base.
        targets: ends of names, as PEFT matches them.
        heads: full names of modules that are trained as a whole.

    Raises: ``ValueError`` for targets that match nothing, or anything but linear maps outside the
        heads, or a map that shares its weight.
    """
    layers: set[str] = set()
    holders = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for target in targets:
        matches = matching_modules(model, [target])
        expected = f"the end of a module's name; linear maps here: {linear_names(model)}"
        check(bool(matches), "targets", target, expected)
        for name, module in matches.items():
            expected = (
                f"nn.Linear or Conv1D, not {type(module).__name__}: others have no exact gradients"
            )
            check(is_linear(module), "targets", name, expected)
            in_head = any(is_within(name, head) for head in heads)
            expected = "a module outside the head, which is trained in full"
            check(not in_head, "targets", name, expected)
            is_shared = any(holders[id(weight)] > 1 for weight in module.parameters())
            expected = "a map that shares no weight: merged, the adapter would move both"
            check(not is_shared, "targets", name, expected)
        layers.update(matches)
    return tuple(name for name, _ in model.named_modules() if name in layers)


def output_layer(model: nn.Module) -> nn.Module | None:
    """The layer of a language model that gives the scores of its words; ``None`` without one."""
    base: Any = model
    return base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None


def head_names(head: Head) -> tuple[str, ...]:
    """The names that a head is given by: none, one, or several."""
    if head is None:
        return ()
    expected = "the end of a module's name, a list of them, or None"
    check(isinstance(head, str | list | tuple), "head", head, expected)
    return (head,) if isinstance(head, str) else tuple(head)


def head_modules(model: nn.Module, head: Head) -> tuple[str, ...]:
    """The full names of the modules that are trained as a whole, in the model's order.

    As of PEFT's ``modules_to_save``, a name stands for every module whose name ends with it:
    "classifier" for DistilBERT's ``pre_classifier`` as well.

    Raises: ``ValueError`` for a name that matches nothing, anything but linear maps, and weights
        that the rest of the model uses.
    Guarantees: tests/lab/lora/test_attack_examples.py::test_a_head_is_what_peft_takes_for_it.
    """
    modules = dict(model.named_modules())
    names = head_names(head)
    for name in names:
        is_name = isinstance(name, str) and any(name and path.endswith(name) for path in modules)
        expected = f"the end of a module's name; linear maps here: {linear_names(model)}"
        check(is_name, "head", name, expected)
    paths = tuple(path for path in modules if names and path.endswith(names))
    parameters = list(model.named_parameters(remove_duplicate=False))
    for path in paths:
        # PEFT wraps no lists, other layers than nn.Linear have no exact gradient here, and a shared
        # weight would be trained here and frozen there.
        is_list = isinstance(modules[path], (nn.ModuleList, nn.ModuleDict))
        elsewhere = {weight for place, weight in parameters if not is_within(place, path)}
        is_shared = not elsewhere.isdisjoint(modules[path].parameters())
        is_apart = not any(is_within(path, other) for other in paths if other != path)
        fits = is_linear_head(modules[path]) and is_apart and not is_list and not is_shared
        expected = "modules of nn.Linear alone, without hooks, no lists, sharing no weight"
        check(fits, "head", path, expected)
    return paths


def names_for_peft(paths: Sequence[str]) -> list[str]:
    """Full names of modules as ``modules_to_save`` has them, by which PEFT finds these alone.

    It takes the end of a name: "out" would be its own "lora_dropout" as well.
    """
    return [
        f"{PEFT_ROOT}{path}" if any(part.endswith(path) for part in PARTS_OF_PEFT) else path
        for path in paths
    ]


def is_linear_head(module: nn.Module) -> bool:
    """Whether a module holds weights of nn.Linear as they are, without hooks, and no others."""
    maps = [part for part in module.modules() if type(part) is nn.Linear and _is_bare(part)]
    weights = {weight for part in maps for weight in part.parameters()}
    return bool(weights) and weights == set(module.parameters())


def _is_bare(linear: nn.Linear) -> bool:
    """Whether the layer has neither hooks nor a forward of its own, which its copy would lack."""
    replaced = "forward" in vars(linear) and not hasattr(linear, "_hf_hook")
    return not (linear._forward_hooks or linear._forward_pre_hooks or replaced)


def task_parts(model: nn.Module) -> tuple[str, ...]:
    """Modules with weights that Transformers puts behind a base: classifiers, and poolers.

    A base's own pooler is one: classes for pretraining have none. The output layer of a language
    model is none: it belongs to the base.
    """
    prefix = getattr(model, "base_model_prefix", None)
    if prefix is None or output_layer(model) is not None:
        return ()
    children = dict(model.named_children())
    # What is beside the base was put there for the task.
    base = children.pop(prefix, None)
    if base is None:  # such as CLIP's, whose parts are those of a larger model
        children = {name: part for name, part in children.items() if name in CLASSIFIERS}
    pooler = getattr(base, "pooler", None)
    if isinstance(pooler, nn.Module):
        children[f"{prefix}.pooler"] = pooler
    return tuple(name for name, module in children.items() if module.state_dict())


def is_within(name: str, module: str) -> bool:
    """Whether a path is that of a module, or of something inside it."""
    return name == module or name.startswith(f"{module}.")
