"""What server and sites agree on before they start: the model, the method and the privacy.

Everything here is public. Choose it on public data: a choice made by looking at private examples is
a release that no ledger counts.
"""

from functools import cache

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

import fedlora_lab as fl
from flower_app.notes import made_up

NAMES = ["harsh", "kind", "mixed"]
CLASSES = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
BASE = fl.tasks.shipped("sentences-bert")  # a folder in the package; any name or folder does
SIZES = (600, 600)
"""How many notes each site has. The sample rate follows from it, so it is public."""
SEED = None
"""The noise comes from each site's operating system. A number is for rehearsals: whoever knows it
can subtract the noise."""


def task_of(rows: list[dict[str, str]]) -> fl.tasks.Task:
    """The task of one site's notes."""
    tokenizer = AutoTokenizer.from_pretrained(BASE, split_special_tokens=True)
    # The classifier is new: drawn alike by everybody, or nobody would have the same terms.
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(BASE, dtype="float32", **CLASSES)

    def encoded(rows: list[dict[str, str]]) -> list[dict]:
        texts = (tokenizer(row["text"], truncation=True) for row in rows)
        return [
            {**text, "label": NAMES.index(row["label"])}
            for text, row in zip(texts, rows, strict=True)
        ]

    return fl.tasks.from_trainer(
        model,
        encoded(rows),
        by=["site"] * len(rows),
        eval_dataset=encoded(made_up(300, seed=9)),
        data_collator=DataCollatorWithPadding(tokenizer),
    )


@cache
def participant() -> fl.flower.Participant:
    """The terms, prepared once in a process; the sites' notes are not part of them."""
    task = fl.flower.placeholder_task(task_of(made_up(4, seed=8)), SIZES)
    plan = fl.Plan(rounds=5, local_steps=5, batch=64, lr=2.0)
    privacy = fl.Privacy(unit="example", clip_norm=1.0, delta=1e-5)
    privacy = privacy.calibrate(epsilon=8, task=task, plan=plan)
    return fl.flower.Participant.of(task, "rolora", privacy, plan, seed=SEED)
