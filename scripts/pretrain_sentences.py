"""Make the folder of the task `sentences`: a small BERT taught by MiniLM, and the sentences.

    FEDLORA_STUDIES=FOLDER python -m scripts.pretrain_sentences --out OUT

OUT is fedlora_lab/tasks/data/sentences. FOLDER has the files of MiniLM and VADER that
studies/sentiment.py names. Of VADER's sentences 6,400 from films, products and news become the
task's; all others, without their ratings, teach: the small model learns to make the vector that
MiniLM makes of a sentence. No rating is used to train or to choose anything.
"""

import argparse
import csv
import hashlib
import importlib.metadata
import io
import json
import platform
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from safetensors.torch import load
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fedlora_lab._utils.files import write_atomically
from fedlora_lab.tasks.sentences import LABELS, LONGEST
from studies.sentiment import DOMAINS, SHA256, STRENGTH, load_weights, read

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
SENTENCES = 6400
LENGTHS = 12, 220
"""Letters of a sentence of the task."""
PIECES = 5000
MARKS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
SIZES: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 512, "max_position_embeddings": 64}
SETTINGS = {"epochs": 4, "batch": 64, "peak": 2e-3, "seed": 0}
"""Epochs, batch, highest learning rate of the one cycle, and seed."""
PACKAGES = ("torch", "numpy", "transformers", "tokenizers", "safetensors")


def read_all() -> pd.DataFrame:
    """Domain, rating and text of every sentence of VADER's, each text once."""
    options: Any = {"sep": "\t", "quoting": csv.QUOTE_NONE, "keep_default_na": False}
    with tarfile.open(fileobj=io.BytesIO(read(ARCHIVE))) as archive:
        files: Any = [archive.extractfile(f"hutto_ICWSM_2014/{file}") for file in DOMAINS.values()]
        tables = [pd.read_csv(file, names=["id", "rating", "text"], **options) for file in files]
    table = pd.concat(tables, keys=list(DOMAINS), names=["domain"]).reset_index("domain")
    table["text"] = table["text"].str.strip()
    return table.drop_duplicates("text").reset_index(drop=True)


def of_the_task(table: pd.DataFrame) -> np.ndarray:
    """Which sentences become the task's; tweets are people's own and stay out: (rows,) bool."""
    fits = table["text"].str.len().between(*LENGTHS) & (table["domain"] != "tweets")
    rows = np.flatnonzero(fits & (table["rating"].abs() >= STRENGTH))
    chosen = np.zeros(len(table), dtype=bool)
    chosen[np.random.default_rng(SETTINGS["seed"]).permutation(rows)[:SENTENCES]] = True
    return chosen


def make_tokenizer(texts: list[str]) -> tuple[PreTrainedTokenizerFast, Tensor]:
    """MiniLM's tokenizer with the pieces that texts have most often, and their old numbers."""
    form = json.loads(read("tokenizer.json"))
    old = form["model"]["vocab"]
    whole = Tokenizer.from_str(json.dumps(form))
    whole.no_padding()
    whole.no_truncation()
    counts: Counter[str] = Counter()
    for code in whole.encode_batch(texts, add_special_tokens=False):
        counts.update(code.tokens)
    # Every letter stays, so that any word can be spelled.
    letters = {piece for piece in old if len(piece.removeprefix("##")) == 1 and piece.isascii()}
    others = [
        piece for piece, _ in counts.most_common() if piece not in {*letters, *MARKS.values()}
    ]
    pieces = [*MARKS.values(), *sorted(letters)]
    pieces += others[: PIECES - len(pieces)]
    new = {piece: number for number, piece in enumerate(pieces)}
    form["model"]["vocab"] = new
    form["truncation"] = form["padding"] = None
    for token in form["added_tokens"]:
        token["id"] = new[token["content"]]
    for token in form["post_processor"]["special_tokens"].values():
        token["ids"] = [new[name] for name in token["tokens"]]
    marks = {f"{name}_token": mark for name, mark in MARKS.items()}
    small = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(form)), model_max_length=64, **marks
    )
    return small, torch.tensor([old[piece] for piece in pieces])


@torch.no_grad()
def teach(texts: list[str]) -> Tensor:
    """The vectors that MiniLM makes of texts, of length one: (n, 384)."""
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    teacher: Any = load_weights(BertModel(config, add_pooling_layer=False), "model.safetensors")
    tokenizer = Tokenizer.from_str(read("tokenizer.json").decode("utf-8"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    codes = [code.ids for code in tokenizer.encode_batch(texts)]
    vectors = torch.zeros(len(texts), 384)
    for rows in batches(np.arange(len(texts)), codes, 128):
        ids, mask = padded(codes, rows)
        weight = mask[..., None].float()
        mean = (teacher(ids, mask)[0] * weight).sum(1) / weight.sum(1)
        vectors[rows] = F.normalize(mean, dim=1)
    return vectors


def batches(rows: np.ndarray, codes: list[list[int]], size: int) -> Iterator[np.ndarray]:
    """Rows in batches of texts of about one length: sorted within sixteen batches."""
    for start in range(0, len(rows), 16 * size):
        part = rows[start : start + 16 * size]
        part = part[np.argsort([len(codes[row]) for row in part], kind="stable")]
        yield from np.array_split(part, range(size, len(part), size))


def padded(codes: list[list[int]], rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """Numbers of some texts and their mask, each (n, tokens)."""
    texts = [torch.tensor(codes[row]) for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], True)
    return ids, mask


def train(
    tokenizer: PreTrainedTokenizerFast, old: Tensor, texts: list[str], vectors: Tensor
) -> tuple[BertModel, float]:
    """Trains the small model; returns it and its mean cosine with the teacher, last epoch.

    Args:
        tokenizer, old: of `make_tokenizer`.
        texts, vectors: what is read, and what the teacher makes of it.
    """
    seed = int(SETTINGS["seed"])
    torch.manual_seed(seed)
    model = BertModel(BertConfig(vocab_size=len(tokenizer), pad_token_id=0, **SIZES))
    # Its words begin at the main directions of the teacher's.
    words = load(read("model.safetensors"))["embeddings.word_embeddings.weight"][old]
    words = words - words.mean(0)
    main = torch.linalg.svd(words, full_matrices=False)[2][: SIZES["hidden_size"]]
    start = words @ main.T
    with torch.no_grad():
        model.embeddings.word_embeddings.weight.copy_(0.05 * start / start.std())
    to_teacher = torch.nn.Linear(SIZES["hidden_size"], vectors.shape[1])
    codes = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    batch = int(SETTINGS["batch"])
    epochs = int(SETTINGS["epochs"])
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *to_teacher.parameters()], weight_decay=0.01
    )
    steps = epochs * -(-len(texts) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, SETTINGS["peak"], total_steps=steps + 1
    )
    order = np.random.default_rng(seed)
    cosine = 0.0
    for _ in range(epochs):
        total = 0.0
        for rows in batches(order.permutation(len(texts)), codes, batch):
            outputs = to_teacher(model(*padded(codes, rows)).pooler_output)
            agreement = F.cosine_similarity(outputs, vectors[rows])
            optimizer.zero_grad()
            (1 - agreement).mean().backward()
            optimizer.step()
            schedule.step()
            total += float(agreement.detach().sum())
        cosine = total / len(texts)
        print(f"cosine with the teacher {cosine:.3f}", flush=True)
    return model.eval(), cosine


def pretrain(out: Path, vectors: Path | None = None) -> dict[str, Any]:
    """Trains, and writes the folder; returns its card.

    Args: out: the folder. vectors: a file in which the teacher's vectors are kept between runs.
    """
    torch.set_num_threads(1)
    begun = time.perf_counter()
    table = read_all()
    chosen = of_the_task(table)
    texts = table["text"][~chosen].tolist()
    tokenizer, old = make_tokenizer(texts)
    if vectors is None or not vectors.exists():
        taught = teach(texts)
        if vectors is not None:
            np.save(vectors, taught.numpy())
    else:
        taught = torch.from_numpy(np.load(vectors))
    model, cosine = train(tokenizer, old, texts, taught)
    # In half precision, which is read as float32: half the bytes.
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    label = table["rating"].gt(0).map({False: LABELS[0], True: LABELS[1]})
    task = table.assign(label=label).loc[chosen, ["text", "label", "domain"]]
    content = task.sort_values("text").to_csv(index=False, lineterminator="\n").encode()
    write_atomically(out / "sentences.csv", content, shared=True)
    names = ("model.safetensors", "tokenizer.json", "sentences.csv")
    card = {
        "trained_on": f"{len(texts):,} sentences without ratings; none of the task's",
        "settings": {**SETTINGS, **SIZES, "vocabulary": len(tokenizer)},
        "cosine_with_the_teacher": round(cosine, 3),
        "seconds": round(time.perf_counter() - begun),
        "script": "scripts/pretrain_sentences.py",
        "read": {name: SHA256[name] for name in ("model.safetensors", "tokenizer.json", ARCHIVE)},
        "sha256": {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names},
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }
    write_atomically(out / "card.json", json.dumps(card, indent=2) + "\n", shared=True)
    return card


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Distil a small BERT on sentences.")
    parser.add_argument("--out", type=Path, required=True, help="folder of model and sentences")
    parser.add_argument("--vectors", type=Path, help="file that keeps MiniLM's vectors (.npy)")
    arguments = parser.parse_args()
    print(json.dumps(pretrain(arguments.out, arguments.vectors), indent=2))
