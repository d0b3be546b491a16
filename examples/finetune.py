"""From a CSV file of private notes to a served model, under differential privacy, offline.

    python examples/finetune.py notes.csv public.csv notes

Both files have the columns text, label and hospital; the second is nobody's, and is scored. Writes
notes-adapter, for PEFT, and notes-model, for `transformers.pipeline`.
"""

import sys

import pandas as pd
from datasets import ClassLabel, Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    pipeline,
)

import fedlora_lab as fl

# The classes are declared: what is read from private rows no epsilon covers.
NAMES = ["harsh", "kind", "mixed"]
CLASSES = {"id2label": dict(enumerate(NAMES)), "label2id": {n: i for i, n in enumerate(NAMES)}}
BASE = fl.tasks.shipped("sentences-bert")  # a folder in the package; any name or folder does


def main(private: str, public: str, name: str) -> None:
    """Fine-tunes, saves and serves."""
    # A text may spell a control token, such as [SEP]: it stays a text.
    tokenizer = AutoTokenizer.from_pretrained(BASE, split_special_tokens=True)

    def read(file: str) -> Dataset:
        # By pandas, which leaves no copy of private rows in a cache; and 007 stays 007.
        frame = pd.read_csv(file, dtype=str, keep_default_na=False)
        rows = Dataset.from_pandas(frame).cast_column("label", ClassLabel(names=NAMES))
        return rows.map(lambda part: tokenizer(part["text"], truncation=True), batched=True)

    model = AutoModelForSequenceClassification.from_pretrained(BASE, dtype="float32", **CLASSES)
    task = fl.tasks.from_trainer(
        model,
        read(private),
        by="hospital",
        eval_dataset=read(public),
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    result = fl.finetune(task, epsilon=8)
    for choice, reason in result.choices.items():
        print(f"{choice}: {reason}")
    print(result)
    result.save(f"{name}-adapter")
    result.save(f"{name}-model", merged=True)
    classify = pipeline("text-classification", f"{name}-model")
    print(classify(["a kind and careful nurse", "the doctor was rude"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
