"""Real sentences and a small language model that has read others, both embedded."""

import csv
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check_number, check_one_of, check_whole
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.task import Task
from fedlora_lab.tasks.trainer import from_trainer

FOLDER = Path(__file__).with_name("data") / "sentences"
"""A model and a tokenizer as Transformers reads them, the sentences, and the card of both."""
SHIPPED = {"sentences-bert": FOLDER}
"""Name of a base that lies in the package -> its folder."""
LABELS = ("negative", "positive")
TEST = 800
"""Sentences that are public and test; the others are the clients'."""
LONGEST = 48
"""Word pieces of a sentence that the model was taught with; the others are cut off."""
SMALLEST_CLIENT = 8
"""Sentences that every client has at least."""


@with_default_modes
def sentences(
    clients: int = 8,
    dirichlet: float | None = 0.5,
    seed: int = 0,
) -> Task:
    """Builds the task of sentences: a small BERT learns whether they are positive or negative.

    The 6,400 sentences are real ones, from reviews of films and products and from editorials, each
    rated by twenty readers or more; 800 test, 5,600 are the clients'. The model has two layers of
    width 128. It was distilled from MiniLM on other sentences and has never seen a rating, so
    before training it answers at random. In 20 rounds of 5 steps in batches of 16, at epsilon = 8
    and the rates of `fl.suggest_lr`, FedLoRA, FFA-LoRA and RoLoRA went from 44 % of the test
    sentences right to 70 or 71 % (one seed).

    Args:
        clients: number of clients, in [1, 700].
        dirichlet: concentration of the split by domain, > 0; ``None`` or infinity: at random.
        seed: of the split and of the classifier's start; a whole number >= 0.
    Raises: ValueError for a bad argument.
    Guarantees: test_sentences.py::test_every_sentence_is_used_once,
        ::test_a_language_model_learns_under_privacy.
    Source: Hutto and Gilbert, VADER, ICWSM 2014 (MIT); all-MiniLM-L6-v2, sentence-transformers
        (Apache-2.0); see data/sentences/README.md.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.sentences(clients=4, dirichlet=None)
    >>> task.sizes, task.origin.classes
    ((1400, 1400, 1400, 1400), ('negative', 'positive'))
    """
    dirichlet = None if dirichlet == math.inf else dirichlet
    check_whole("seed", seed)
    if dirichlet is not None:
        check_number("dirichlet", dirichlet, 0, open_low=True)
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
    )

    with (FOLDER / "sentences.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    order = Streams(seed).numpy("sentences split").permutation(len(table))
    test, private = ([table[i] for i in part] for part in np.split(order, [TEST]))
    domains = np.array([row["domain"] for row in private])
    split = partition.dirichlet(domains, clients, dirichlet, seed, SMALLEST_CLIENT)
    owners = np.zeros(len(private), dtype=int)
    for number, places in enumerate(split):
        owners[places] = number
    code: Any = AutoTokenizer.from_pretrained(FOLDER)

    def encoded(rows: Sequence[dict[str, str]]) -> list[dict]:
        texts = [row["text"] for row in rows]
        given = code(texts, truncation=True, max_length=LONGEST, return_token_type_ids=False)
        labels = [LABELS.index(row["label"]) for row in rows]
        ids = zip(given["input_ids"], given["attention_mask"], labels, strict=True)
        return [dict(zip(("input_ids", "attention_mask", "label"), row)) for row in ids]

    classes = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {n: i for i, n in enumerate(LABELS)},
    }
    with _seeded(seed):
        model = AutoModelForSequenceClassification.from_pretrained(
            FOLDER, dtype=torch.float32, **classes
        )
    task = from_trainer(
        model,
        encoded(private),
        by=owners.tolist(),
        eval_dataset=encoded(test),
        data_collator=DataCollatorWithPadding(code),
        targets=("query", "value"),
        head="classifier",
    )
    return replace(task, name="sentences")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws the classifier's start from the seed, and silences the note that it was drawn."""
    from transformers import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            # The name of the purpose stays: the stream is made of it.
            torch.manual_seed(int(Streams(seed).numpy("hub classifier").integers(2**63)))
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def shipped(name: str) -> str:
    """Finds a base that lies in the package, as `from_pretrained` of Transformers takes it.

    Args: name: "sentences-bert", a small BERT that has read English sentences and has no classes.
    Returns: its folder.

    >>> import fedlora_lab as fl
    >>> from transformers import AutoTokenizer
    >>> AutoTokenizer.from_pretrained(fl.tasks.shipped("sentences-bert")).tokenize("A kind word.")
    ['a', 'kind', 'word', '.']
    """
    check_one_of("name", name, tuple(SHIPPED))
    return str(SHIPPED[name])


def shipped_name(model: Any) -> str:
    """The name of the shipped base that a model was loaded from; "" for another model."""
    path = str(getattr(model, "name_or_path", "") or "")
    return next((name for name, folder in SHIPPED.items() if path == str(folder)), "")
