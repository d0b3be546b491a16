"""Toy models of real architectures in folders, and tasks of them, made once for a session."""

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from calls import Options
from toy_tasks import with_head
from transformers import AutoTokenizer, DataCollatorWithPadding

import fedlora_lab as fl
from fedlora_lab.tasks.modules import is_linear

IMAGE = ("vit", "swin")
WORDS = ("good", "great", "fine", "poor", "awful", "dull", "film", "book", "song", "day")
WORDS += ("very", "not")
SMALL: Options = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_key_value_heads": 2,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_inner": 24,
    "d_model": 16,
    "max_position_embeddings": 64,
    "n_positions": 64,
}
PIXELS: Options = {"image_size": 8, "patch_size": 4, "num_channels": 3}
SIZES: dict[str, Options] = {
    "roberta": {"max_position_embeddings": 66, "type_vocab_size": 1},
    "distilbert": {"hidden_dim": 24},
    "llama": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    "swin": {"embed_dim": 8, "depths": [2, 1], "num_attention_heads": [2, 2], "window_size": 2},
}
SIZES["swin"] |= {"patch_size": 2}
NO_PAD = "ignore:tokenizer without a padding token"
ATTENTION = re.compile(
    "(q|v|query|value)(_proj|_lin|_global)?|(W?qkv|query_key_value|in)(_proj)?|c_attn"
)
DECODERS = ("llama", "gpt2")


def texts(count: int = 48) -> pd.DataFrame:
    """Texts of three to eight words, two classes, four sites."""
    draw = np.random.default_rng(0)
    rows = [" ".join(draw.choice(WORDS, draw.integers(3, 9))) for _ in range(count)]
    label = ["kind" if "good" in row or "great" in row else "harsh" for row in rows]
    sites = [f"site {i % 4}" for i in range(count)]
    return pd.DataFrame({"text": rows, "label": label, "site": sites})


def questions() -> pd.DataFrame:
    """Prompts of three to eight words, answers of one to four, four sites."""
    draw = np.random.default_rng(2)
    table = texts(40)
    answers = [" ".join(draw.choice(WORDS, draw.integers(1, 5))) for _ in table.index]
    return pd.DataFrame({"question": table["text"], "answer": answers, "site": table["site"]})


def tiny(kind: str, folder: Path, **sizes: Any) -> Path:
    """Writes a random model of an architecture, with a tokenizer of the WORDS, into a folder."""
    usual = transformers.AutoConfig.for_model(kind)
    known = {*usual.to_dict(), *usual.attribute_map}
    fields = {name: size for name, size in (SMALL | PIXELS).items() if name in known}
    body: Any = transformers.AutoModelForImageClassification
    if kind in IMAGE:
        fields |= {"num_labels": 3}
    if kind not in IMAGE:
        code = word_tokenizer(kind)
        code.save_pretrained(folder)
        marks = ("pad_token_id", "bos_token_id", "eos_token_id")
        fields |= {mark: getattr(code, mark) for mark in marks} | {"vocab_size": len(code)}
        body = transformers.AutoModel
        if kind in DECODERS:
            body = transformers.AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(kind, **fields | sizes)
        body.from_config(config).save_pretrained(folder)
    return folder


def word_tokenizer(kind: str) -> Any:
    """Lower case, split at blanks, one number for each word; with marks as the kind has them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    numbers = {word: number for number, word in enumerate([*marks.values(), *WORDS])}
    code = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    code.normalizer = normalizers.Lowercase()
    code.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    form = "<s> $A" if kind in DECODERS else "<s> $A </s>"
    code.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[(word, numbers[word]) for word in ("<s>", "</s>")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=code, **marks)


@cache
def folder(kind):
    """A toy model of this architecture."""
    return tiny(kind, Path(tempfile.mkdtemp()) / kind, **SIZES.get(kind, {}))


def tokenizer(kind="bert") -> Any:
    """What reads the texts of this toy model, made anew."""
    return AutoTokenizer.from_pretrained(folder(kind))


def attention_maps(model) -> list[str]:
    """The ends of the names of the linear maps to queries and values."""
    names = (path.rpartition(".")[2] for path, m in model.named_modules() if is_linear(m))
    return [*dict.fromkeys(name for name in names if ATTENTION.fullmatch(name))]


def classifier(kind, **options) -> Any:
    """A toy classifier, whose head is drawn from a seed."""
    auto: Any = transformers.AutoModelForSequenceClassification
    if kind in IMAGE:
        auto = transformers.AutoModelForImageClassification
    options = {"num_labels": 3 if kind in IMAGE else 2, **options}
    transformers.logging.set_verbosity_error()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return auto.from_pretrained(folder(kind), dtype=torch.float32, **options)


def rows_of(kind, frame=None) -> list[dict]:
    """Tokenised texts, or pixels, with a label and a site, as `Trainer` takes them."""
    if kind in IMAGE:
        draw = torch.Generator().manual_seed(1)
        pixels = torch.rand(40, 3, 8, 8, generator=draw)
        numbered = enumerate(pixels)
        return [{"pixel_values": x, "label": i % 3, "site": f"{i % 3}"} for i, x in numbered]
    frame = texts() if frame is None else frame
    encoded = tokenizer(kind)(list(frame["text"]))
    keys = [key for key in encoded if key in ("input_ids", "attention_mask")]
    labels = [int(label == "kind") for label in frame["label"]]
    return [
        {key: encoded[key][i] for key in keys} | {"label": label, "site": f"{i % 3}"}
        for i, label in enumerate(labels)
    ]


def fresh(kind, frame=None, test=None, model=None, **options: Any) -> Any:
    """A classification task of three clients; a fifth of the rows, or ``test``, is nobody's."""
    model = classifier(kind) if model is None else model
    rows = rows_of(kind, frame)
    kept = len(rows) - len(rows) // 5
    public = rows[kept:] if test is None else rows_of(kind, test)
    if kind not in IMAGE:
        options = {"data_collator": DataCollatorWithPadding(tokenizer(kind)), **options}
    given: Options = {"targets": attention_maps(model), "by": "site", **options}
    return fl.tasks.from_trainer(model, rows[:kept], eval_dataset=public, **given)


def of_rows(rows, model=None, **options: Any) -> Any:
    """A task of these rows, all of them private, for the toy BERT with its queries adapted."""
    given: Options = {"by": "site", "targets": ["query"]}
    given["data_collator"] = DataCollatorWithPadding(tokenizer("bert"))
    return fl.tasks.from_trainer(model or classifier("bert"), rows, **given | options)


@cache
def task(kind):
    """A task of `fresh`, made once."""
    return fresh(kind)


def answer_rows(kind) -> list[dict]:
    """Prompts and answers in one text each, of which the answer is learned."""
    frame = questions()
    code = tokenizer(kind)
    rows = []
    for question, answer, site in zip(frame["question"], frame["answer"], frame["site"]):
        head = code(question)["input_ids"]
        tail = [*code(answer, add_special_tokens=False)["input_ids"], code.eos_token_id]
        row = {"input_ids": [*head, *tail], "labels": [-100] * len(head) + tail, "site": site}
        rows.append({**row, "attention_mask": [1] * len(row["labels"])})
    return rows


def fresh_answers(kind, model=None, **options: Any) -> Any:
    """A task of a toy decoder that learns answers; a fifth of the rows is nobody's."""
    rows = answer_rows(kind)
    kept = len(rows) - len(rows) // 5
    if model is None:
        auto: Any = transformers.AutoModelForCausalLM
        model = auto.from_pretrained(folder(kind), dtype=torch.float32)
    collator = transformers.DataCollatorForTokenClassification(tokenizer(kind))
    given: Options = {"targets": attention_maps(model), "by": "site", **options}
    return fl.tasks.from_trainer(
        model, rows[:kept], eval_dataset=rows[kept:], data_collator=collator, **given
    )


@cache
def answers(kind="llama"):
    """The same with adapters on most linear maps."""
    return fresh_answers(kind, targets=MANY[kind])


MANY = {
    "gpt2": ("c_attn", "c_proj"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
OTHER_SHAPES = {"bert": "intermediate.dense", "gpt2": "c_proj", "swin": "reduction"}
"""A map of each model of another shape than queries and values."""


@cache
def varied(kind, head=False):
    """A task with adapters on maps of every shape that its model has; the head moves or rests."""
    if kind == "digits":
        return with_head(fl.tasks.digits(clients=3)) if head else fl.tasks.digits(clients=3)
    if kind.startswith("answers of "):
        return answers(kind.removeprefix("answers of "))
    plain = task(kind)
    others = [OTHER_SHAPES[kind]] if kind in OTHER_SHAPES else []
    return fresh(kind, targets=[*plain.targets, *others], head=plain.head if head else None)
