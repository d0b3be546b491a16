"""What is known of Hugging Face architectures: where adapters go, the classifier, the longest text; and loading."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlora_lab.checks import check
from fedlora_lab.streams import Streams
from fedlora_lab.tasks import validate

# Names of the query and value maps in the versions of Transformers; what the papers on federated LoRA adapt.
ATTENTION = (("query", "value"), ("q_lin", "v_lin"), ("q_proj", "v_proj"), ("query_proj", "value_proj"), ("c_attn",))
HEADS = ("classifier", "score")
OFFSET = {"roberta", "xlm-roberta", "camembert"}
"""Architectures whose positions begin after the padding token's number."""
AUTO = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "causal": "AutoModelForCausalLM",
}


def default_targets(model: nn.Module) -> tuple[str, ...]:
    """The query and value maps: PEFT's own default for the architecture where it fits, else the first known names.

    Raises: ``ValueError`` with the linear maps that the model has.
    Guarantees: tests/test_hub.py::test_default_targets_and_heads.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    kind = getattr(getattr(model, "config", None), "model_type", None)
    for names in (tuple(KNOWN.get(str(kind), ())), *ATTENTION):
        found = [validate.matched(model, [name]) for name in names]
        if names and all(found) and all(validate.is_linear(m) for part in found for m in part.values()):
            return names
    linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules() if validate.is_linear(m)})
    check(False, "targets", None, "names, since this architecture is not known; linear maps: " + ", ".join(linear))
    raise AssertionError


def default_head(model: nn.Module) -> str | None:
    """The classifier's name, ``None`` where there is none that can be trained in full."""
    modules = dict(model.named_modules())
    for name in HEADS:
        if name in modules and any(type(m) is nn.Linear for m in modules[name].modules()):
            return name
    return None


def longest_text(model: nn.Module) -> int | None:
    """Tokens that the model's table of positions holds; ``None`` where it has no such table."""
    config: Any = model.config
    if getattr(config, "model_type", "") in OFFSET:
        return int(config.max_position_embeddings) - int(config.pad_token_id) - 1
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return None if found is None else int(found)


def load(source: Any, kind: str, classes: int, seed: int) -> nn.Module:
    """The frozen model: a name or folder read by Transformers (safetensors, no code of others), or a copy of a module.

    A classifier that the file does not have is drawn from the seed.

    Args:
        kind: "text", "image" or "causal".
    Raises: ``ValueError`` in one line where it cannot be read.
    """
    if isinstance(source, nn.Module):
        check(hasattr(source, "config"), "model", type(source).__name__, "a Transformers model, a name or a folder")
        return validate.frozen_copy(source)
    check(isinstance(source, (str, Path)), "model", source, "a Transformers model, a name or a folder")
    import transformers

    auto = getattr(transformers, AUTO[kind])
    more = {} if kind == "causal" else {"num_labels": classes, "ignore_mismatched_sizes": True}
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(int(Streams(seed).numpy("hub classifier").integers(2**63)))
        try:
            model = auto.from_pretrained(
                str(source), use_safetensors=True, trust_remote_code=False, dtype=torch.float32, **more
            )
        except Exception as error:  # which errors there are depends on the version
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"model={str(source)!r}: expected a name or folder that {AUTO[kind]} reads from safetensors: {reason}"
            ) from error
    return model.eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without progress bars, notes that a classifier is new, and news of what a later version renames."""
    from transformers import logging

    seen, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(seen)
        if bars:
            logging.enable_progress_bar()
