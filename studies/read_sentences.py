"""Read sentences from one update each of a language model's adapter, and count right word pieces.

    python studies/read_sentences.py

Writes fedlora_lab/attacks/sentences.json, which notebook 11 shows. The task is `sentiment`
(MiniLM-L6), the adapter has rank 16 on query and value, the sentences are the first of each domain
that have between 8 and 16 word pieces, and at every position all 30,522 word pieces are tried.
Needs the files that sentiment.py names.
"""

from typing import Any

import torch
from sentiment import sentiment
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab import attacks
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.attacks.reconstruction import PIECES, SENTENCES, read_sentence
from fedlora_lab.report.run_folder import to_json

RANK, EACH, NOISES = 16, 3, (0.0, 1e-5, 1e-3)


def main() -> None:
    task: Any = sentiment(head=None)
    victim, found = attacks.Victim.from_task(task, fl.Lora(RANK, float(RANK))), []
    for k, (x, y) in enumerate(tqdm(task.clients)):
        length = x["attention_mask"].sum(1)
        for i in torch.nonzero((length >= 8) & (length <= 16)).flatten()[:EACH].tolist():
            n = int(length[i])
            one = {key: value[i : i + 1, :n] for key, value in x.items()}, y[i : i + 1]
            for noise in NOISES:
                upload = victim.upload(one, clip_norm=1.0, noise_multiplier=noise, draw=i)
                right = int((read_sentence(victim, upload, n) == one[0]["input_ids"][0]).sum())
                row = {"domain": task.client_names[k], "noise": noise, "pieces": n, "right": right}
                found.append(row)
    setting = {"task": "sentiment", "model": "MiniLM-L6", "rank": RANK}
    setting |= {"clip_norm": 1.0, "tried": PIECES}
    write_atomically(SENTENCES, to_json({"setting": setting, "sentences": found}), shared=True)


if __name__ == "__main__":
    main()
