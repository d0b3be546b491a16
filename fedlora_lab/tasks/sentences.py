"""Real sentences and a small language model that has read others, both embedded."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.run_settings import check_options
from fedlora_lab._utils.torch_state import in_usual_torch
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.hub import hub
from fedlora_lab.tasks.tables import read_table
from fedlora_lab.tasks.task import Task

FOLDER = Path(__file__).with_name("data") / "sentences"
"""A model and a tokenizer as `hub` takes them, the sentences, and the card of both."""
LABELS = ("negative", "positive")
TEST = 800
"""Sentences that are public and test; the others are the clients'."""
LONGEST = 48
"""Word pieces of a sentence that the model was taught with; the others are cut off."""
SMALLEST_CLIENT = 8
"""Sentences that every client has at least."""


@in_usual_torch
def sentences(
    clients: int = 8,
    dirichlet: float | None = 0.5,
    seed: int = 0,
    *,
    targets: Sequence[str] = ("query", "value"),
    head: str | None = "classifier",
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
        targets, head: as of `Task`; query, key, value and dense are linear maps.
    Raises: ValueError for a bad argument.
    Guarantees: test_sentences.py::test_every_sentence_is_used_once,
        ::test_a_language_model_learns_under_privacy.
    Source: Hutto and Gilbert, VADER, ICWSM 2014 (MIT); all-MiniLM-L6-v2, sentence-transformers
        (Apache-2.0); see data/sentences/README.md.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.sentences(clients=4, dirichlet=None)
    >>> task.sizes, task.labels
    ((1400, 1400, 1400, 1400), ('negative', 'positive'))
    """
    # JSON, in which arguments are stored, has neither infinity nor tuples.
    dirichlet = None if dirichlet == math.inf else dirichlet
    targets = targets if isinstance(targets, str) else list(targets)
    arguments = dict(locals())
    check_whole("seed", seed)
    if dirichlet is not None:
        check_options(dirichlet=dirichlet)
    table = read_table(FOLDER / "sentences.csv", "sentences")
    order = Streams(seed).numpy("sentences split").permutation(len(table))
    private = table.iloc[order[TEST:]]
    split = partition.dirichlet(private["domain"], clients, dirichlet, seed, SMALLEST_CLIENT)
    owners = np.zeros(len(private), dtype=int)
    for number, places in enumerate(split):
        owners[places] = number
    task = hub(
        FOLDER,
        private.assign(client=owners),
        text="text",
        label="label",
        labels=LABELS,
        by="client",
        test=table.iloc[order[:TEST]],
        public_test=True,
        seed=seed,
        targets=targets,
        head=head,
        max_length=LONGEST,
    )
    card = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))
    info = {"task": "sentences", "arguments": arguments, "sha256": card["sha256"]}
    return replace(task, name="sentences", client_names=(), info={**task.info, **info})
