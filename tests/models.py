"""Small random models of Transformers, as tasks with two or three public examples and clients of unequal size."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.tasks import Task

CLASSES = 3
SIZES = (4, 1, 2)


def _text(kind: str, **more: Any) -> tuple[nn.Module, Callable[[torch.Generator, int], Any]]:
    config = getattr(transformers, f"{kind}Config")
    small = {"vocab_size": 40, "num_labels": CLASSES, "pad_token_id": 1, **more}
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config(**small))

    def data(random: torch.Generator, count: int) -> dict[str, Tensor]:
        ids = torch.randint(2, 40, (count, 7), generator=random)
        length = torch.randint(3, 8, (count, 1), generator=random)
        mask = (torch.arange(7) < length).long()
        return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}

    return model, data


def _encoder(kind: str) -> tuple[nn.Module, Any]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return _text(kind, max_position_embeddings=12, **sizes)


def _gpt2() -> tuple[nn.Module, Any]:
    return _text("GPT2", n_embd=16, n_layer=2, n_head=2, n_positions=12, bos_token_id=0, eos_token_id=0)


def _image(model: nn.Module, size: int) -> tuple[nn.Module, Any]:
    return model, lambda random, count: torch.randn(count, 3, size, size, generator=random)


def _vit() -> tuple[nn.Module, Any]:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "num_labels": CLASSES}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4)
    return _image(transformers.ViTForImageClassification(config), 8)


def _swin() -> tuple[nn.Module, Any]:
    """Windows of 2 x 2 patches on 4 x 4 patches, the second block shifted, then merged patches."""
    sizes: dict[str, Any] = {
        "embed_dim": 8,
        "depths": [2, 1],
        "num_heads": [2, 2],
        "window_size": 2,
        "num_labels": CLASSES,
    }
    config = transformers.SwinConfig(**sizes, image_size=8, patch_size=2)
    return _image(transformers.SwinForImageClassification(config), 8)


# Name -> (model and data, ends of the names of linear maps in this or an older version, head).
MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], tuple[str, ...], str]] = {
    "bert": (lambda: _encoder("Bert"), ("query", "value", "intermediate.dense"), "classifier"),
    "roberta": (lambda: _encoder("Roberta"), ("query", "value"), "classifier"),
    "gpt2": (_gpt2, ("c_attn", "c_proj"), "score"),
    "vit": (_vit, ("query", "value", "q_proj", "v_proj"), "classifier"),
    "swin": (_swin, ("query", "value", "q_proj", "v_proj", "reduction"), "classifier"),
}


@cache
def task(name: str, head: bool = False) -> Task:
    """A model of the table, or the digits transformer, with random examples; ``head``: with the trained head."""
    random = torch.Generator().manual_seed(5)
    if name == "digits":
        return fl.tasks.digits(clients=3, head="head" if head else None)
    build, ends, classifier = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model, data = build()
    targets = [end for end in ends if any(part.endswith(f".{end}") for part, _ in model.named_modules())]

    def examples(count: int) -> tuple[Any, Tensor]:
        return data(random, count), torch.randint(CLASSES, (count,), generator=random)

    clients = [examples(count) for count in SIZES]
    return fl.tasks.classification(
        model, clients, test=examples(4), targets=targets, head=classifier if head else None, name=name
    )
