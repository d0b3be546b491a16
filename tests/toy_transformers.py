"""Small random models of Transformers as tasks, with clients of unequal size."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.tasks.task import Task

CLASSES = 3
SIZES = (4, 1, 2)
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 24}
TEXT = {"vocab_size": 40, "pad_token_id": 1}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
# Windows of 2 x 2 patches on 4 x 4 patches, the second block shifted, then merged patches.
SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [2, 1], "num_heads": [2, 2], "window_size": 2}
SWIN |= {"image_size": 8, "patch_size": 2}
IMAGES = ("query", "value", "q_proj", "v_proj")
# Name -> (kind, configuration, ends of names of linear maps in this or an older version, head).
TEXTS = BERT | TEXT | {"max_position_embeddings": 12}
MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "bert": ("Bert", TEXTS, ("query", "value", "intermediate.dense"), "classifier"),
    "roberta": ("Roberta", TEXTS, ("query", "value"), "classifier"),
    "gpt2": ("GPT2", GPT2 | TEXT, ("c_attn", "c_proj"), "score"),
    "vit": ("ViT", BERT | {"image_size": 8, "patch_size": 4}, IMAGES, "classifier"),
    "swin": ("Swin", SWIN, (*IMAGES, "reduction"), "classifier"),
}


@cache
def task(name: str, head: bool = False) -> Task:
    """A model of the table, or the digits transformer, with random examples."""
    if name == "digits":
        return fl.tasks.digits(clients=3, head="head" if head else None)
    random = torch.Generator().manual_seed(5)
    kind, sizes, ends, classifier = MODELS[name]
    text = "vocab_size" in sizes
    config = getattr(transformers, f"{kind}Config")(num_labels=CLASSES, **sizes)
    what = "Sequence" if text else "Image"
    build: Callable[[Any], nn.Module] = getattr(transformers, f"{kind}For{what}Classification")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = build(config)
    names = [part for part, _ in model.named_modules()]
    targets = [end for end in ends if any(part.endswith(f".{end}") for part in names)]

    def examples(count: int) -> tuple[Any, Tensor]:
        if text:
            ids = torch.randint(2, 40, (count, 7), generator=random)
            length = torch.randint(3, 8, (count, 1), generator=random)
            mask = (torch.arange(7) < length).long()
            x: Any = {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}
        else:
            x = torch.randn(count, 3, 8, 8, generator=random)
        return x, torch.randint(CLASSES, (count,), generator=random)

    clients = [examples(count) for count in SIZES]
    trained = classifier if head else None
    return fl.tasks.classification(
        model, clients, examples(4), targets=targets, head=trained, name=name
    )
