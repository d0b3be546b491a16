"""The task "sentiment" of the studies: MiniLM learns which sentences are positive.

It reads three files from the folder that the environment variable FEDLORA_STUDIES names:
``model.safetensors`` and ``tokenizer.json`` of sentence-transformers/all-MiniLM-L6-v2 (22.7 M
parameters), and ``hutto_ICWSM_2014.tar.gz``, rated sentences from the source package of
vaderSentiment 3.3.2 (``additional_resources``; MIT licence).

>>> import fedlora_lab as fl
>>> import studies.sentiment                                            # doctest: +SKIP
>>> fl.tasks.build("sentiment").client_names                                      # doctest: +SKIP
('films', 'products', 'tweets', 'news')
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check

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
}
STRENGTH = 0.5
"""Smallest distance of a rating from neutral; 19,459 sentences have it."""
TEST = 0.025
"""Share of every domain to test on; half as much again is to validate."""
LENGTH = 64
"""Tokens kept of a sentence."""


def sentiment(
    seed: int = 0, *, targets: Sequence[str] = ("query", "value"), head: str | None = "head"
) -> fl.tasks.Task:
    """Builds the task.

    Args:
        seed: of the split and the classifier's start.
        targets, head: as of `fl.tasks.classification`.
    """
    tokens, labels, domains = _tokens()
    splits = []
    for domain in range(len(DOMAINS)):
        draw = Streams(seed).numpy("sentiment split", domain)
        rows = draw.permutation(np.flatnonzero(domains == domain))
        first = max(1, round(TEST * len(rows)))
        second = first + max(1, round(TEST * len(rows) / 2))
        splits.append(np.split(rows, [first, second]))
    test, validation, private = zip(*splits, strict=True)

    def examples(rows: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        ids = torch.from_numpy(tokens[rows].astype(np.int64))
        mask = (ids != 0).long()
        return {"input_ids": ids, "attention_mask": mask}, torch.from_numpy(labels[rows])

    def by_length(parts: Sequence[np.ndarray]) -> np.ndarray:
        """Batches of texts of like length carry little padding."""
        rows = np.concatenate(parts)
        return rows[np.argsort((tokens[rows] != 0).sum(1), kind="stable")]

    task = fl.tasks.classification(
        SentenceClassifier(read("model.safetensors"), seed),
        [examples(rows) for rows in private],
        test=examples(by_length(test)),
        validation=examples(by_length(validation)),
        targets=targets,
        head=head,
        labels=("negative", "positive"),
        client_names=list(DOMAINS),
        name="sentiment",
    )
    arguments = {"seed": seed, "targets": list(targets), "head": head}
    return replace(task, info={"task": "sentiment", "arguments": arguments, "sha256": SHA256})


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
        missing = self.bert.load_state_dict(load(weights), strict=False).missing_keys
        check(not missing, "model.safetensors", missing, "all weights of the encoder")
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


def read(name: str) -> bytes:
    """The content of a file of the folder, whose sha256 is checked."""
    content = (Path(os.environ.get("FEDLORA_STUDIES", ".")) / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    check(digest == SHA256[name], f"sha256 of {name}", digest, SHA256[name])
    return content


@cache
def _tokens() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (19459, LENGTH) padded with 0, labels (19459,) and domains (19459,)."""
    from tokenizers import Tokenizer

    texts = []
    labels = []
    domains = []
    with tarfile.open(fileobj=io.BytesIO(read("hutto_ICWSM_2014.tar.gz"))) as archive:
        for domain, file in enumerate(DOMAINS.values()):
            stream = archive.extractfile(f"hutto_ICWSM_2014/{file}")
            assert stream is not None
            for line in stream.read().decode("utf-8-sig").split("\n"):
                if not line.rstrip("\r"):
                    continue
                _, rating, text = line.rstrip("\r").split("\t", 2)
                if abs(float(rating)) >= STRENGTH:
                    texts.append(text)
                    labels.append(int(float(rating) > 0))
                    domains.append(domain)
    tokenizer = Tokenizer.from_str(read("tokenizer.json").decode("utf-8"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    ids = [code.ids for code in tokenizer.encode_batch(texts)]
    return np.array(ids, np.int32), np.array(labels), np.array(domains)


fl.tasks.TASKS["sentiment"] = sentiment
