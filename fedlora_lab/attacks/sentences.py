"""Sentences read from one update, word piece by word piece; and how often that went right, as measured."""

import json
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from fedlora_lab.attacks.guesses import words
from fedlora_lab.attacks.span import joined, span_check
from fedlora_lab.attacks.victim import Upload, Victim
from fedlora_lab.checks import check_whole

PIECES = 30_522
FILE = Path(__file__).parent.parent / "data" / "sentences.json"


def read_sentence(
    victim: Victim, upload: Upload, length: int, pieces: "int | Tensor" = PIECES
) -> Int[Tensor, " length"]:
    """The word piece at each position of a sentence that lies nearest the span of one update.

    The first layer's query and value are given the same word pieces, so the rows of both gradients of A count; more
    than twice the rank cannot be read.

    Args:
        upload: with the A's of ``layer.0.attention.self`` of a BERT; of one sentence.
        length: its word pieces, [CLS] and [SEP] included.
        pieces: those that are tried: all below a number, or the ones given, (n,).

    Guarantees: test_attacks_words.py::test_a_sentence_is_read_from_two_layers.
    """
    import torch

    check_whole("length", length, 1, 512)
    slots = [victim.layer(upload, name=f"layer.0.attention.self.{name}") for name in ("query", "value")]
    both, tried = joined(upload[slot] for slot in slots), torch.arange(pieces) if isinstance(pieces, int) else pieces
    outside = span_check(victim, both, slots[0].layer, words(tried, length), rank=min(length, len(both)))
    return tried[outside.argmin(0)]


def sentences() -> Any:
    """Word pieces read right from one update each, as `scripts/read_sentences.py` measured it.

    Returns: frame with columns domain, noise, pieces, right.
    Guarantees: test_attacks_words.py::test_a_sentence_is_read_from_two_layers.
    """
    import pandas as pd

    return pd.DataFrame(json.loads(FILE.read_text(encoding="utf-8"))["sentences"])
