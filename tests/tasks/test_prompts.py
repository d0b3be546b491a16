"""Decoders that learn to answer prompts: exact gradients of the answers alone, texts that do not
depend on what is written beside them, scores of what is written.
"""

import math
import re
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_hubs
from calls import Options, refused
from peft import PeftModel
from places import ROOT
from transformers import (
    AutoTokenizer,
    BertLMHeadModel,
    GenerationConfig,
)

import fedlora_lab as fl
from fedlora_lab.lora import adapters
from fedlora_lab.tasks.metrics import IGNORED, next_token_loss

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
FRAME: Any = toy_hubs.questions()

COLUMNS: Options = {"prompt": "question", "answer": "answer", "by": "site"}
TEMPLATE = {"prompt": "say {question}", "answer": "{answer}"}
FOLDER = Path(tempfile.mkdtemp()) / "gpt2"


@cache
def task_of_two_answers() -> Any:
    """Two kinds of answers, so that some can be learned within seconds; padding is the end."""
    frame = FRAME.assign(answer=np.where(FRAME["question"].str.len() % 3, "good film", "dull"))
    # Weights this large make a random model say different things.
    fl.tasks.tiny("gpt2", FOLDER, ["say", *frame["question"]], seed=5, initializer_range=0.3)
    options: Options = {"by": "site", "public_test": True, "max_new_tokens": 8}
    return fl.tasks.prompts(FOLDER, frame, **TEMPLATE, targets=toy_hubs.MANY["gpt2"], **options)


@cache
def trained() -> Any:
    """The last record of a run that changed what the model writes."""
    plan = fl.Plan(rounds=2, local_steps=12, batch=6, lr=0.02, optimizer="adamw")
    lora = fl.Lora(rank=4, alpha=8)
    task = task_of_two_answers()
    *_, last = fl.run(task, "fedlora", None, plan, lora=lora, evaluate_every=2, seed=0)
    return last


def asked(task):
    """The tokens of the test prompts."""
    x: Any = task.test[0]
    return [
        ids[: int((labels != IGNORED).int().argmax())].tolist()
        for ids, labels in zip(x["input_ids"], task.test[1], strict=True)
    ]


# ---- examples


def test_only_the_answer_counts():
    """As Transformers' own loss of each row alone: a mean over its answer's tokens and the end."""
    task = task_of_two_answers()
    code = task.generation.tokenizer
    x, y = task.test
    losses = next_token_loss(task.forward(task.model, x), y)
    lengths = x["attention_mask"].sum(1).tolist()
    for i, prompt in enumerate(asked(task)):
        assert code.decode(prompt).startswith("say ")
        assert code.decode(y[i][y[i] != IGNORED]) in ("good film </s>", "dull </s>")
        ids = x["input_ids"][i : i + 1, : lengths[i]]
        theirs = task.model(input_ids=ids, labels=y[i : i + 1, : lengths[i]]).loss
        assert abs(float(losses[i] - theirs)) < 1e-5


def test_marks_of_the_tokenizer_stand_before_the_prompt_only(tmp_path):
    """One that ends every text would let an answer begin behind an end."""
    code = toy_hubs.tokenizer()
    assert code("good").input_ids[-1] == code.eos_token_id
    folder = fl.tasks.tiny("gpt2", tmp_path / "wide", [*FRAME["question"], "two more"])
    task = fl.tasks.prompts(folder, FRAME, tokenizer=code, **COLUMNS)
    x: Any = task.test[0]
    assert bool((x["input_ids"][:, 0] == code.bos_token_id).all())
    for tokens in (x["input_ids"], task.test[1]):
        assert bool(((tokens == code.eos_token_id).sum(1) == 1).all()), "the end is learned"
    generation: Any = task.generation
    rendered = generation.encode(["<s> two more"])
    assert rendered == generation.encode(["two more"]), "a chat template has put it there"
    ended = fl.tasks.prompts(
        folder, FRAME, tokenizer=code, prompt="question", answer="{answer} </s>"
    )
    assert bool(((ended.test[1] == code.eos_token_id).sum(1) == 1).all()), "and this"


def test_long_examples_lose_their_end_and_are_counted():
    frame = FRAME.assign(answer=["good " * (20 if i in (3, 7) else 1) for i in range(len(FRAME))])
    cut = toy_hubs.fresh_answers("gpt2", frame, max_length=12)
    last = torch.cat([y[:, 11] for _, y in (*cut.clients, cut.test)])
    assert cut.info["texts cut"] == 2 <= int((last != IGNORED).sum()), "it fills what is left"
    line = r"prompt='\d tokens in row \d+': expected fewer than max_length=6: else no room is left"
    with refused(line):
        toy_hubs.fresh_answers("gpt2", frame, max_length=6)


# ---- texts


# PEFT asks Transformers for it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_plain_peft_writes_the_same_texts(tmp_path):
    """Prompts of many lengths, its padding on the left, all at once."""
    task = task_of_two_answers()
    last = trained()
    fl.save_adapter(last, tmp_path / "adapter")
    loaded: Any = PeftModel.from_pretrained(
        adapters.structure_copy(task.model), tmp_path / "adapter"
    )
    code: Any = AutoTokenizer.from_pretrained(FOLDER, pad_token="</s>", padding_side="left")
    prompts = [code.decode(ids) for ids in asked(task)]
    written = fl.generate(task, last, prompts)
    assert written != task.generation.write(task.model, asked(task)), "training changed the texts"
    batch = code(prompts, padding=True, return_tensors="pt")
    ends: Options = {"pad_token_id": 0, "eos_token_id": 0}
    out = loaded.generate(**batch, **ends, max_new_tokens=8, do_sample=False)
    width = batch["input_ids"].shape[1]
    assert code.batch_decode(out[:, width:], skip_special_tokens=True) == written
    sampling = GenerationConfig(do_sample=True, top_k=3, repetition_penalty=9.0, **ends)
    model: Any = adapters.structure_copy(task.model)
    model.generation_config = sampling
    texts = task.generation.write(model, asked(task))
    assert texts == task.generation.write(task.model, asked(task)), "no sampling of the model's own"
    assert model.generation_config is sampling


@pytest.mark.slow
def test_scores_are_those_of_the_written_texts():
    """With some answers right and some wrong; of shorter texts none is right."""
    task = task_of_two_answers()
    last = trained()
    code = task.generation.tokenizer
    questions = [code.decode(ids) for ids in asked(task)]
    written = fl.generate(task, last, questions)
    answers = [code.decode(y[y != IGNORED][:-1]) for y in task.test[1]]
    right = [a.strip() == b.strip() for a, b in zip(written, answers, strict=True)]
    assert 0 < last.metrics["exact_match"] == sum(right) / len(right) < 1
    shorter = fl.generate(task, last, questions, max_new_tokens=1)
    assert all(map(str.startswith, written, shorter)) and written != shorter
    for prompts, line in (
        ("good film", "prompts='good film': expected a list of texts"),
        (["good " * 70], "prompt='70 tokens in row 0': expected at least one, and fewer than 64"),
    ):
        with refused(line):
            fl.generate(task, last, prompts)


@pytest.mark.slow
def test_a_private_run_writes_no_answer_to_private_prompts():
    """An exact score of held-out rows would be counted by no budget."""
    seen: list[int] = []

    def spy(references, texts):
        seen.append(len(texts))
        return 0.0

    metrics = {"spy": fl.tasks.TextScore(spy)}
    task = toy_hubs.fresh_answers("llama", metrics=metrics, public_test=False)
    privacy = fl.Privacy(noise_multiplier=0.5, delta=1e-3, accountant="rdp")
    plan = fl.Plan(rounds=1, local_steps=1, batch=4)
    records = list(fl.run(task, "fedlora", privacy, plan, seed=None))
    assert seen == [] and all(math.isnan(record.metrics["spy"]) for record in records)
    list(fl.run(replace(task, public_test=True), "fedlora", privacy, plan))
    assert seen == [len(task.test[1])] * 2


# ---- runs


# PEFT asks Transformers for it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_page_s_ten_lines_run_as_written(tmp_path, monkeypatch):
    """With a toy decoder in the place of the reader's, and fewer steps."""
    page = (ROOT / "docs" / "own_model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (lines,) = [block for block in blocks if "fl.tasks.prompts(" in block]

    monkeypatch.chdir(tmp_path)
    names = {"question": "note", "answer": "summary", "site": "hospital"}
    frame = FRAME.rename(columns=names)
    frame.to_csv("notes.csv", index=False)
    toy_hubs.questions(60).rename(columns=names).tail(9).to_csv("public.csv", index=False)
    fl.tasks.tiny("llama", "my-decoder", ["note: summary:", *frame["note"]])
    lines = lines.replace("rounds=10, local_steps=5", "rounds=1, local_steps=1")
    scope: Options = {}
    exec(compile(lines, "own_model.md", "exec"), scope)
    assert scope["record"].ledger.mode == "release" and scope["record"].index == 1
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


# ---- what is refused


@pytest.mark.slow
def test_what_writes_no_answers_is_refused():
    bert: Any = toy_hubs.task("bert").model
    code = toy_hubs.tokenizer()
    words = "model='BertForSequenceClassification': expected a decoder that generates"
    with refused(words):
        fl.tasks.prompts(bert, FRAME, **TEMPLATE, tokenizer=code)
    # Each output depends on all tokens: it would see the answer.
    with fl.tasks.quiet(), torch.random.fork_rng(devices=[]):
        ahead = BertLMHeadModel(bert.config)
    with refused("model='BertLMHeadModel': expected a decoder: here out"):
        fl.tasks.prompts(ahead, FRAME, **TEMPLATE, tokenizer=code)
