"""Decoders that learn to answer prompts: exact gradients of the answers alone, texts that do not
depend on what is written beside them, scores of what is written.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_hubs
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

import fedlora_lab as fl
from fedlora_lab.federated.records import require_source
from fedlora_lab.lora import peft, per_example
from fedlora_lab.tasks.metrics import IGNORED, next_token_loss
from fedlora_lab.tasks.task import Task, take

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
FRAME: Any = toy_hubs.questions()
PLAN = fl.Plan(rounds=2, local_steps=2, batch=4, lr=1.0)
PRIVATE = fl.Privacy(noise_multiplier=0.5, delta=1e-3, accountant="rdp")
TEMPLATE = {"prompt": "Question: {question}\nAnswer:", "answer": " {answer}"}


@cache
def bytes_code() -> Any:
    """A byte-level tokenizer, learned from the questions; its padding is its end, as of GPT-2."""
    code = Tokenizer(models.BPE())
    code.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    code.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    code.train_from_iterator(FRAME["question"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=code, eos_token="<end>", pad_token="<end>")


def bert_code() -> Any:
    """A tokenizer of words that puts a mark before each text and one behind it."""
    return AutoTokenizer.from_pretrained(toy_hubs.folder("bert"))


def module(kind: str, **more: Any) -> Any:
    """A random decoder for the byte-level tokenizer."""
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    # Weights this large make a random model say different things.
    ends |= {"vocab_size": len(bytes_code()), "initializer_range": 0.3}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 128}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
    config: Any = {"llama": LlamaConfig, "gpt2": GPT2Config}[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return AutoModelForCausalLM.from_config(config(**ends | sizes | more))


@cache
def byte_task(kind: str) -> Any:
    """Two kinds of answers, so that some can be learned within seconds."""
    frame = FRAME.assign(answer=np.where(FRAME["question"].str.len() % 3, "good film", "dull"))
    many = toy_hubs.MANY[kind]
    options: dict[str, Any] = {"by": "site", "public_test": True, "max_new_tokens": 8}
    options |= {"metrics": ["exact_match", "perplexity"]}
    return fl.tasks.prompts(
        module(kind), frame, **TEMPLATE, tokenizer=bytes_code(), targets=many, **options
    )


@cache
def trained(kind: str) -> Any:
    """The last record of a run that changed what the model writes."""
    plan = fl.Plan(rounds=2, local_steps=12, batch=6, lr=0.02, optimizer="adamw")
    lora = fl.Lora(rank=4, alpha=8)
    *_, last = fl.run(byte_task(kind), "fedlora", None, plan, lora=lora, evaluate_every=2)
    return last


def asked(task: Task) -> list[list[int]]:
    """The tokens of the test prompts."""
    x, y = task.test
    return [
        ids[: int((labels != IGNORED).int().argmax())].tolist()
        for ids, labels in zip(x["input_ids"], y, strict=True)
    ]


# ---- examples


@pytest.mark.parametrize("kind", toy_hubs.DECODERS)
def test_only_the_answer_counts(kind):
    """By hand, each row alone without padding: the mean over its answer's tokens and the end."""
    task, code = byte_task(kind), bytes_code()
    (x, y), count = task.test, 0
    found = next_token_loss(task.forward(task.model, x), y)
    answers = task.generation.known[1]
    for i, (prompt, answer) in enumerate(zip(asked(task), answers, strict=True)):
        assert code.decode(prompt).startswith("Question: ")
        tail = [*code(answer)["input_ids"], code.eos_token_id]
        ids = torch.tensor([[*prompt, *tail]])
        assert x["input_ids"][i, : ids.shape[1]].tolist() == ids[0].tolist()
        assert int(x["attention_mask"][i].sum()) == ids.shape[1]
        logs = task.model(ids).logits[0].log_softmax(-1)
        own = -sum(logs[len(prompt) - 1 + j, token] for j, token in enumerate(tail)) / len(tail)
        assert abs(float(found[i] - own)) < 1e-5
        count += ids.shape[1] < x["input_ids"].shape[1]
    assert count > 3, "rows with padding, whose token is the end token"


def test_marks_of_the_tokenizer_stand_before_the_prompt_only(tmp_path):
    """One that ends every text would let an answer begin behind an end."""
    frame, code = FRAME, bert_code()
    assert code("good").input_ids[0] == code.bos_token_id
    assert code("good").input_ids[-1] == code.eos_token_id
    folder = fl.tasks.tiny("gpt2", tmp_path / "wide", [*frame["question"], "two more"])
    options: dict[str, Any] = {"prompt": "question", "answer": "answer", "by": "site"}
    task = fl.tasks.prompts(folder, frame, tokenizer=code, **options)
    x, y = task.test
    ends = (x["input_ids"] == code.eos_token_id).sum(1)
    assert ends.tolist() == [1] * len(y) and bool((x["input_ids"][:, 0] == code.bos_token_id).all())
    assert bool(((y == code.eos_token_id).sum(1) == 1).all()), "the end is learned"


def test_long_examples_lose_their_end_and_are_counted():
    frame = FRAME.assign(answer=["good " * (20 if i in (3, 7) else 1) for i in range(len(FRAME))])
    cut = toy_hubs.fresh_answers("gpt2", frame, max_length=12)
    assert cut.info["texts cut"] == 2 and cut.test[0]["input_ids"].shape[1] == 12
    pairs = [*cut.clients, cut.test]
    last = torch.cat([y[:, -1] for _, y in pairs])
    assert sum((last != IGNORED).tolist()) >= 2, "the answer fills what is left"
    long = [i for i, text in enumerate(frame["question"]) if len(text.split()) >= 6]
    line = f"max_length=6: expected more, since {len(long)} prompts leave no room for their answers"
    with pytest.raises(ValueError, match=line) as error:
        toy_hubs.fresh_answers("gpt2", frame, max_length=6)
    named = re.findall(r"\d+", str(error.value).partition("rows ")[2])
    assert len(named) == 5 and set(map(int, named)) <= set(long), "rows of the table that was given"
    frame.loc[5, "answer"] = "good " * 70
    line = r"prompt='\d+ tokens in row 5': expected at most 64 with the answer; max_length=64 cuts"
    with pytest.raises(ValueError, match=line):
        toy_hubs.fresh_answers("gpt2", frame)
    with pytest.raises(ValueError, match="tokens in row 5 of the test data': expected at most 64"):
        toy_hubs.fresh_answers("gpt2", FRAME, test=frame)


# ---- texts


@pytest.mark.slow
@pytest.mark.parametrize("kind", toy_hubs.DECODERS)
def test_texts_together_are_those_of_one_by_one(kind):
    """Prompts of many lengths; and a model's own sampling or penalty is not used."""
    task, last = byte_task(kind), trained(kind)
    together = task.generation.write(task.model, asked(task))
    singly = [task.generation.write(task.model, [ids])[0] for ids in asked(task)]
    assert together == singly and len(set(together)) > 2
    assert len({len(ids) for ids in asked(task)}) > 3, "prompts of unequal length"
    given = GenerationConfig(do_sample=True, top_k=3, repetition_penalty=9.0, eos_token_id=0)
    model: Any = peft.structure_copy(task.model)
    model.generation_config = given
    assert task.generation.write(model, asked(task)) == together
    assert model.generation_config is given
    asked_for = [{"question": text} for text in FRAME["question"]]
    texts = [f"Question: {text}\nAnswer:" for text in FRAME["question"]]
    whole = fl.generate(task, last, asked_for)
    assert whole == fl.generate(task, last, texts)
    shorter = fl.generate(task, last, texts, max_new_tokens=1)
    assert all(a.startswith(b) for a, b in zip(whole, shorter, strict=True)) and whole != shorter


# PEFT asks Transformers for it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("kind", toy_hubs.DECODERS)
def test_plain_peft_writes_the_same_texts(kind, tmp_path):
    """Its padding on the left, all prompts at once, and one by one."""
    task, last, code = byte_task(kind), trained(kind), bytes_code()
    fl.save_adapter(last, tmp_path / "adapter")
    loaded: Any = PeftModel.from_pretrained(peft.structure_copy(task.model), tmp_path / "adapter")
    prompts = [code.decode(ids) for ids in asked(task)]
    found = fl.generate(task, last, prompts)
    assert found != task.generation.write(task.model, asked(task)), "training changed the texts"
    sizes: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    sizes |= {"pad_token_id": 0, "eos_token_id": 0}
    for i, text in enumerate(prompts):
        ids = torch.tensor([code(text).input_ids])
        out = loaded.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **sizes)
        assert code.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == found[i]
    code.padding_side = "left"
    try:
        batch = code(prompts, padding=True, return_tensors="pt")
    finally:
        code.padding_side = "right"
    out = loaded.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **sizes
    )
    width = batch["input_ids"].shape[1]
    assert code.batch_decode(out[:, width:], skip_special_tokens=True) == found


@pytest.mark.slow
def test_scores_are_those_of_the_written_texts():
    """With some answers right and some wrong; references are the texts as given. Perplexity counts
    every token alike, and not every text."""
    task, last = byte_task("llama"), trained("llama")
    found = fl.generate(task, last, [bytes_code().decode(ids) for ids in asked(task)])
    wanted = list(task.generation.known[1])
    right = [a.strip() == b.strip() for a, b in zip(found, wanted, strict=True)]
    assert 0 < sum(right) < len(right)
    scores = last.metrics
    assert scores["exact_match"] == sum(right) / len(right)
    logs, count = 0.0, 0
    outputs = fl.predict(task, last, task.test[0]).log_softmax(-1)
    for i, labels in enumerate(task.test[1]):
        for j in (labels != IGNORED).nonzero().flatten().tolist():
            logs, count = logs - float(outputs[i, j - 1, labels[j]]), count + 1
    assert scores["perplexity"] == pytest.approx(math.exp(logs / count), rel=1e-5)
    # Other examples than the task was built with have no texts: their tokens say them.
    half = replace(task, test=(take(task.test[0], slice(4)), task.test[1][:4]))
    _, lora, state = require_source(last)
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
    part = per_example.evaluate(half, adapted, state.tensors, half.test)
    assert part["exact_match"] == sum(right[:4]) / 4


def test_own_scores_of_texts():
    seen = []

    def length(references: Sequence[str], texts: Sequence[str]) -> float:
        seen.append((references, texts))
        return sum(map(len, texts)) / len(texts)

    own = {"length": fl.tasks.TextScore(length)}
    task = toy_hubs.fresh_answers("llama", metrics=own)
    first, *_ = fl.run(task, "fedlora", None, PLAN.replace(rounds=1))
    assert list(first.metrics) == ["length", "loss"] and first.metrics["length"] > 0
    assert all(len(part) == len(task.test[1]) for part in seen[0])
    with pytest.raises(ValueError, match=r"metrics=\['length'\]: expected no score of texts"):
        toy_hubs.fresh("bert", metrics=own)


@pytest.mark.slow
def test_a_private_run_writes_no_answer_to_private_prompts():
    """An exact score of held-out rows would be counted by no budget."""
    seen: list[int] = []

    def spy(references: Sequence[str], texts: Sequence[str]) -> float:
        seen.append(len(texts))
        return 0.0

    own = {"spy": fl.tasks.TextScore(spy)}
    task = toy_hubs.fresh_answers("llama", metrics=own, public_test=False)
    assert not toy_hubs.fresh_answers("llama", public_test=False).public_test
    for unit in ("example", "client"):
        privacy = PRIVATE.replace(unit=unit)
        records = list(fl.run(task, "fedlora", privacy, PLAN, seed=None))
        assert seen == [] and all(math.isnan(r.metrics["spy"]) for r in records)
    list(fl.run(replace(task, public_test=True), "fedlora", PRIVATE, PLAN))
    assert len(seen) == 3


# ---- runs


# PEFT asks Transformers for it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_the_page_s_ten_lines_run_as_written(tmp_path, monkeypatch, capsys):
    """With a toy decoder in the place of the reader's, and fewer steps."""
    page = (Path(__file__).parents[2] / "docs" / "own_model.md").read_text(encoding="utf-8")
    lines = re.findall(r"```python\n(.*?)```", page, re.S)[-1]
    assert "fl.tasks.prompts(" in lines and "fl.generate(" in lines
    monkeypatch.chdir(tmp_path)
    frame = FRAME.rename(columns={"question": "note", "answer": "summary", "site": "hospital"})
    frame.to_csv("notes.csv", index=False)
    public = toy_hubs.questions(60).rename(columns={"question": "note", "answer": "summary"})
    public.tail(9).to_csv("public.csv", index=False)
    fl.tasks.tiny("llama", "my-decoder", ["note: summary:", *frame["note"]])
    lines = lines.replace("rounds=10, local_steps=5", "rounds=1, local_steps=1")
    names: dict[str, Any] = {}
    exec(compile(lines, "own_model.md", "exec"), names)
    told = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in told[:2]] == [0, 1]
    assert 7.9 < float(told[1].split()[2]) <= 8 and len(told) == 3
    assert names["record"].ledger.mode == "release"
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


# ---- what is refused


def reads_ahead() -> Any:
    """A model of which each output depends on all tokens: it would see the answer."""
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(bytes_code()), "intermediate_size": 16}
    with fl.tasks.quiet(), torch.random.fork_rng(devices=[]):
        return BertLMHeadModel(BertConfig(**sizes))


BAD: dict[str, dict[str, Any]] = {
    "prompt {words}='words': expected a column": {"prompt": "Say {words}"},
    "prompt {question.__class__}=.*: expected a column": {"prompt": "{question.__class__}"},
    "prompt='Say {question': expected a template": {"prompt": "Say {question"},
    "answer='row 2 is empty': expected at least one token": {
        "dataset": FRAME.assign(answer=["a", "b", "", *FRAME["answer"][3:]]),
        "test": FRAME,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("line", BAD)
def test_bad_calls_are_one_line(line):
    call: dict[str, Any] = {"model": toy_hubs.folder("llama"), "dataset": FRAME, "by": "site"}
    call |= {"prompt": "question", "answer": "answer"} | BAD[line]
    with pytest.raises(ValueError, match=line) as error:
        fl.tasks.prompts(call.pop("model"), call.pop("dataset"), **call)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_what_writes_no_answers_is_refused():
    bert = toy_hubs.task("bert").model
    words = "model='BertForSequenceClassification': expected a decoder that generates"
    with pytest.raises(ValueError, match=words):
        fl.tasks.prompts(bert, FRAME, prompt="question", answer="answer", tokenizer=bert_code())
    with pytest.raises(ValueError, match="model='BertLMHeadModel': expected a decoder: here out"):
        fl.tasks.prompts(reads_ahead(), FRAME, **TEMPLATE, tokenizer=bytes_code())


@pytest.mark.slow
def test_bad_prompts_are_one_line():
    task = toy_hubs.answers()
    first = next(iter(fl.run(task, "fedlora", None, PLAN)))
    for prompts, line in (
        ("good film", "prompts='good film': expected a list of texts, or rows"),
        (["good " * 70], "prompt='71 tokens in row 0': expected fewer than 64"),
        ([{"text": "good"}], "prompt='question': expected a column: text"),
    ):
        with pytest.raises(ValueError, match=line):
            fl.generate(task, first, prompts)
