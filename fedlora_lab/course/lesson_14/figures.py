"""Notebook 14: a model and a table to start from."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedlora_lab._utils.validation import check_whole
from fedlora_lab.tasks.architectures import seeded
from fedlora_lab.tasks.toys import tiny

WORDS = ("good", "great", "fine", "poor", "awful", "dull", "film", "book", "song", "day", "very")


class Materials(NamedTuple):
    """A model, its tokenizer and a table of texts to start from.

    Args:
        model: a frozen classifier of texts.
        tokenizer: makes its inputs of a list of texts.
        table: columns text, label, site.
        targets, head: what gets adapters, and what is trained in full.
    """

    model: Any
    tokenizer: Any
    table: pd.DataFrame
    targets: tuple[str, ...]
    head: str


def materials(folder: str | Path, rows: int = 1000) -> Materials:
    """Makes a toy model of random weights, and sentences of four sites.

    Args: folder: new or empty, for the model; rows: of each site, drawn from a fixed seed.
    """
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    check_whole("rows", rows, 1)
    table = _made_up(rows)
    with seeded(0, "lesson 14 classifier"):
        tiny("bert", folder, table["text"], hidden_size=32, initializer_range=0.3)
        model = AutoModelForSequenceClassification.from_pretrained(str(folder))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
    places = tuple(f"layer.1.attention.self.{kind}" for kind in ("query", "value"))
    return Materials(model, tokenizer, table, places, "classifier")


def _made_up(rows: int) -> pd.DataFrame:
    """Makes sentences of 3 to 8 words at four sites; those with a kind word are positive."""
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, draw.integers(3, 9))) for _ in range(4 * rows)]
    kind = ["good" in text or "great" in text for text in texts]
    labels = np.where(kind, "positive", "negative")
    sites = np.repeat(["films", "news", "products", "tweets"], rows)
    return pd.DataFrame({"text": texts, "label": labels, "site": sites})
