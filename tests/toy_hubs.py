"""Toy folders of real architectures, and data for them, made once for a session."""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from calls import Options
from transformers import AutoTokenizer

import fedlora_lab as fl

IMAGE = ("vit", "swin", "deit", "dinov2", "beit", "clip", "siglip")
WORDS = ("good", "great", "fine", "poor", "awful", "dull", "film", "book", "song", "day")
WORDS += ("very", "not")
SIZES: dict[str, Options] = {
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "mpnet": {"max_position_embeddings": 66},
    "distilbert": {"hidden_dim": 24},
    "bart": {"encoder_layers": 2, "decoder_layers": 2},
    "llama": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "swin": {"embed_dim": 8, "depths": [2, 1], "num_attention_heads": [2, 2], "window_size": 2},
}
SIZES["swin"] |= {"patch_size": 2}
NO_PAD = "ignore:tokenizer without a padding token"


def texts(count: int = 48) -> pd.DataFrame:
    """Texts of three to eight words, two classes, four sites."""
    draw = np.random.default_rng(0)
    rows = [" ".join(draw.choice(WORDS, draw.integers(3, 9))) for _ in range(count)]
    label = ["kind" if "good" in row or "great" in row else "harsh" for row in rows]
    sites = [f"site {i % 4}" for i in range(count)]
    return pd.DataFrame({"text": rows, "label": label, "site": sites})


def images(count: int = 40) -> pd.DataFrame:
    """Colour images of ten by twelve pixels, three classes."""
    draw = np.random.default_rng(1)
    pixels = [draw.integers(0, 256, (12, 10, 3)).astype(np.uint8) for _ in range(count)]
    return pd.DataFrame({"image": pixels, "label": np.arange(count) % 3})


@cache
def folder(kind):
    """A toy model of this architecture."""
    words = () if kind in IMAGE else texts()["text"]
    return fl.tasks.tiny(kind, Path(tempfile.mkdtemp()) / kind, words, **SIZES.get(kind, {}))


def tokenizer(kind="bert") -> Any:
    """What reads the texts of this toy model, made anew."""
    return AutoTokenizer.from_pretrained(folder(kind))


@cache
def task(kind):
    """A classification task of three clients with a toy model."""
    return fresh(kind)


def fresh(kind, **options):
    """The same, made anew; its test examples are nobody's."""
    column = "image" if kind in IMAGE else "text"
    named: Options = {column: column, "label": "label", "clients": 3, "public_test": True}
    return fl.tasks.hub(folder(kind), images() if kind in IMAGE else texts(), **named | options)


def questions(count: int = 40) -> pd.DataFrame:
    """Prompts of three to eight words, answers of one to four, four sites."""
    draw = np.random.default_rng(2)
    table = texts(count)
    answers = [" ".join(draw.choice(WORDS, draw.integers(1, 5))) for _ in range(count)]
    return pd.DataFrame({"question": table["text"], "answer": answers, "site": table["site"]})


@cache
def answers(kind="llama"):
    """Prompts and answers of four sites, with adapters on most linear maps of a toy decoder."""
    return fresh_answers(kind, targets=MANY[kind])


def fresh_answers(kind, data=None, **options):
    """The same with adapters on the attention, and other data or options; test rows are public."""
    named: Options = {"prompt": "question", "answer": "answer", "by": "site"}
    named |= {"public_test": True, "max_new_tokens": 5}
    data = questions() if data is None else data
    return fl.tasks.prompts(folder(kind), data, **named | options)


MANY = {
    "gpt2": ("c_attn", "c_proj"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
MAPS = ("query", "value", "q_proj", "v_proj")  # the names of this or an older version
ENDS = {"bert": (*MAPS, "intermediate.dense"), "gpt2": ("c_attn", "c_proj")}
ENDS["swin"] = (*MAPS, "reduction")


@cache
def varied(kind, head=False):
    """A task with adapters on maps of every shape that its model has; the head moves or rests."""
    if kind == "digits":
        return fl.tasks.digits(clients=3, head="head" if head else None)
    if kind.startswith("answers of "):
        return answers(kind.removeprefix("answers of "))
    plain = task(kind)
    names = [name for name, _ in plain.model.named_modules()]
    ends = ENDS.get(kind, plain.targets)
    targets = [end for end in ends if any(name.endswith(f".{end}") for name in names)]
    return fresh(kind, targets=targets, head=plain.head if head else None)
