"""Notebook 14: a model and a table to start from."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedlora_lab.tasks.architectures import seeded
from fedlora_lab.tasks.toys import tiny

MOODS = {"positive": ("good", "great", "fine"), "negative": ("poor", "awful", "dull")}
OTHERS = ("film", "book", "song", "day", "very")


def materials(folder: str | Path, rows: int = 1000) -> tuple[Any, Any, pd.DataFrame]:
    """Makes a small model that knows public sentences, and a table of private ones.

    Args: folder: new or empty, for the model; rows: of each of four sites, from a fixed seed.
    Returns: a classifier, its tokenizer, and the table with columns text, label and site.
    """
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    public = _made_up(rows=1000, seed=1)["text"].tolist()
    with seeded(0, "lesson 14 classifier"):
        tiny("bert", folder, public, hidden_size=32, initializer_range=0.1)
        model = AutoModelForSequenceClassification.from_pretrained(str(folder))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
        _pretrain(model.bert, tokenizer(public, padding=True, return_tensors="pt")["input_ids"])
    return model, tokenizer, _made_up(rows, seed=0)


def _pretrain(body: Any, texts: torch.Tensor) -> None:
    """Teaches a model to recall from its summary of a sentence which words stood in it."""
    recall = torch.nn.Linear(body.config.hidden_size, body.config.vocab_size)
    optimizer = torch.optim.AdamW([*body.parameters(), *recall.parameters()], lr=3e-3)
    loss = torch.nn.BCEWithLogitsLoss()
    for batch in torch.randint(len(texts), (150, 64)):
        guess = recall(body(texts[batch]).pooler_output)
        optimizer.zero_grad()
        loss(guess, torch.zeros_like(guess).scatter(1, texts[batch], 1)).backward()
        optimizer.step()


def _made_up(rows: int, seed: int) -> pd.DataFrame:
    """Makes sentences of four sites: a word that says the mood, among words that do not."""
    draw = np.random.default_rng(seed)
    labels = draw.choice([*MOODS], 4 * rows)
    texts = [[draw.choice(MOODS[label]), *draw.choice(OTHERS, 4)] for label in labels]
    shuffled = [" ".join(draw.permutation(text)) for text in texts]
    sites = np.repeat(["films", "news", "products", "tweets"], rows)
    return pd.DataFrame({"text": shuffled, "label": labels, "site": sites})
