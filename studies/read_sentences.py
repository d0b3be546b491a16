"""Read sentences from one update each of a language model's adapter, and count right word pieces.

    python -m studies.read_sentences

Writes results/sentences.csv, which notebook 11 shows. The task is `sentiment`
(MiniLM-L6), the adapter has rank 16 on query and value, the sentences are the first of each domain
that have between 8 and 16 word pieces, and at every position all 30,522 word pieces are tried.
Needs the files that sentiment.py names.
"""

from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab import attacks
from fedlora_lab.attacks.reconstruction import span_check, stack_gradients
from studies import RESULTS
from studies.sentiment import sentiment

RANK, EACH, NOISES = 16, 3, (0.0, 1e-5, 1e-3)
PIECES = 30_522
OUT = RESULTS / "sentences.csv"


def read_sentence(victim: attacks.Victim, upload: Any, length: int) -> torch.Tensor:
    """At each position the word piece nearest the span of query and value of the first layer."""
    names = [f"layer.0.attention.self.{name}" for name in ("query", "value")]
    keys = [victim.layer(upload, name=name) for name in names]
    both = stack_gradients(upload[key] for key in keys)
    ids = torch.arange(PIECES).view(-1, 1).expand(-1, length).contiguous()
    sentences = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rank = min(length, len(both))
    return span_check(victim, both, keys[0].layer, sentences, rank=rank).argmin(0)


def main() -> None:
    task: Any = sentiment(head=None)
    victim = attacks.Victim.from_task(task, fl.Lora(RANK, float(RANK)))
    rows = []
    for k, (x, y) in enumerate(tqdm(task.clients)):
        length = x["attention_mask"].sum(1)
        for i in torch.nonzero((length >= 8) & (length <= 16)).flatten()[:EACH].tolist():
            n = int(length[i])
            example = {key: value[i : i + 1, :n] for key, value in x.items()}, y[i : i + 1]
            for noise in NOISES:
                upload = victim.upload(example, clip_norm=1.0, noise_multiplier=noise, draw=i)
                right = int((read_sentence(victim, upload, n) == example[0]["input_ids"][0]).sum())
                rows.append((task.client_names[k], noise, n, right))
    pd.DataFrame(rows, columns=["domain", "noise", "pieces", "right"]).to_csv(OUT, index=False)


if __name__ == "__main__":
    main()
