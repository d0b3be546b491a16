"""Prompts and answers: a decoder learns to answer, and is judged by the texts that it writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedlora_lab._utils.validation import check, check_rows, check_whole
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.labels import column_of, row_names
from fedlora_lab.tasks.metrics import IGNORED, Metric, next_token_loss, select_metrics
from fedlora_lab.tasks.tables import Rows
from fedlora_lab.tasks.task import Inputs, Task, first_line, forward, take

if TYPE_CHECKING:
    from pandas import DataFrame

AT_ONCE = 32
"""Prompts that are answered together."""


def prompts(
    model: str | Path | nn.Module,
    dataset: object,
    *,
    prompt: str,
    answer: str,
    by: str | None = None,
    person: str | None = None,
    clients: int | None = None,
    seed: int = 0,
    test: object = 0.2,
    public_test: bool = False,
    targets: Sequence[str] | None = None,
    head: str | Sequence[str] | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    max_new_tokens: int = 64,
    metrics: Sequence[str] | Mapping[str, Metric] = ("exact_match", "perplexity"),
) -> Task:
    """Builds a task of a decoder that learns to answer prompts.

    An example is the prompt's tokens, the answer's, and the tokenizer's end token where it has one.
    Its loss is the mean over the tokens of the answer and the end; the prompt is read only. Both
    are encoded apart and joined as they are: a blank between them stands in one of them. Scores
    judge what the model writes after the prompts of the test examples.

    Args:
        model, dataset, by, person, clients, seed, test, public_test: as of `fl.tasks.hub`.
        targets, head, tokenizer: as of `fl.tasks.hub`; default: no head.
        prompt, answer: columns of texts, or templates: "Question: {question} Answer:".
        max_length: tokens kept of an example, whose end is cut; ``info["texts cut"]`` counts them.
            ``None``: none is cut, and one that the model cannot hold is refused.
        max_new_tokens: written at most as the answer to a prompt.
        metrics: names in ``fl.tasks.METRICS["prompts"]``, or a mapping with `fl.tasks.TextScore`.
    Raises: ``ValueError`` in one line for what does not fit, naming column and row.
    Guarantees: tests/lora/test_gradients.py::test_equals_batches_of_one,
        tests/tasks/test_prompts.py::test_only_the_answer_counts.

    >>> import tempfile
    >>> import fedlora_lab as fl
    >>> data = [{"word": word, "site": word[0]} for word in ("yes", "yet", "no", "not") * 3]
    >>> folder = fl.tasks.tiny("llama", tempfile.mkdtemp(), ["say yes yet no not"])
    >>> task = fl.tasks.prompts(folder, data, prompt="say {word}", answer="{word}", by="site")
    >>> task.client_names, list(task.metrics)
    (('n', 'y'), ['exact_match', 'perplexity', 'loss'])
    """
    check_whole("max_new_tokens", max_new_tokens, 1)
    rows = Rows.read(dataset, test, seed, by, person, clients, public_test)
    fields = {"targets": targets, "head": head, "metrics": metrics, "public_test": public_test}
    base, _ = architectures.load(model, "causal", 0, seed)
    code = architectures.prepare_tokenizer(model, tokenizer, base)
    generation = Generation(code, prompt, answer, max_new_tokens)
    return _build(base, rows, generation, max_length, fields)


def _build(
    base: nn.Module,
    rows: Rows,
    generation: "Generation",
    max_length: int | None,
    fields: dict[str, Any],
) -> Task:
    """The task of a decoder and rows.

    Args:
        base, rows: the model, and what it learns.
        generation, max_length: how rows become examples.
        fields: of the task, where they are given.
    """
    pairs = [pair for table in (rows.private, rows.held_out) for pair in generation.pairs(table)]
    x, y, cut = encode_pairs(generation, base, pairs, max_length, rows.names)
    _check_decoder(base, x)
    fields |= {
        "name": "prompts",
        "model": base,
        "targets": architectures.default_targets(base, fields["targets"]),
        "loss": next_token_loss,
        "metrics": select_metrics(fields["metrics"], "prompts"),
        "prepare": architectures.trim_padding,
        "info": {
            "task": "prompts",
            "model": type(base).__name__,
            "kind": "causal",
            "prompt": generation.prompt,
            "answer": generation.answer,
            "max_new_tokens": generation.max_new_tokens,
            "texts cut": cut,
        },
        "generation": generation,
    }
    return rows.make_task(x, y, **fields)


@dataclass(frozen=True, eq=False)
class Generation:
    """How a decoder reads prompts and writes answers.

    Args:
        tokenizer: of the decoder.
        prompt, answer: the columns or templates of the task's prompts and answers.
        max_new_tokens: written at most.
    """

    tokenizer: Any
    prompt: str
    answer: str
    max_new_tokens: int

    def pairs(self, table: "DataFrame") -> list[tuple[str, str]]:
        """The prompts and answers of a table's rows."""
        prompts = fill(table, "prompt", self.prompt)
        return list(zip(prompts, fill(table, "answer", self.answer), strict=True))

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt, behind the tokenizer's first mark if it has one."""
        is_list = isinstance(prompts, list | tuple) and len(prompts) > 0
        is_texts = is_list and all(isinstance(text, str) for text in prompts)
        check(is_texts, "prompts", prompts, "a list of texts")
        # Before the text only: what a tokenizer puts behind it would end the answer at once.
        marks = self.tokenizer("")["input_ids"][:1]
        starts = (self.tokenizer.bos_token_id, getattr(self.tokenizer, "cls_token_id", None))
        lead = marks if marks and marks[0] in starts else []
        # A prompt that a chat template made begins with the mark already.
        tokens = self.tokens(list(prompts))
        return [ids if ids[:1] == lead else lead + ids for ids in tokens]

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """The tokens of each text, without marks."""
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def write(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int | None = None
    ) -> list[str]:
        """What the model writes after each prompt, up to an end token: always the likeliest token.

        Args:
            model: a decoder of Transformers, perhaps with adapters in place.
            prompts: tokens of each.
            max_new_tokens: written at most; fewer where the model cannot hold as many.
        Raises: ``ValueError`` for a prompt that is empty, or leaves no room.
        Guarantees: tests/tasks/test_prompts.py::test_plain_peft_writes_the_same_texts.
        """
        from transformers import GenerationConfig

        most = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        check_whole("max_new_tokens", most, 1)
        base: Any = model
        room = architectures.longest_text(base)
        for row, ids in enumerate(prompts):
            fits = len(ids) > 0 and (room is None or len(ids) < room)
            expected = f"at least one, and fewer than {room}, all that the model holds"
            check(fits, "prompt", f"{len(ids)} tokens in row {row}", expected)
        # Put back afterwards: the model is the task's, and other runs share it.
        own_settings = base.generation_config
        ends = self._end_tokens(own_settings)
        # A model may come with settings of its own, such as sampling or a penalty.
        base.generation_config = GenerationConfig(
            pad_token_id=self.tokenizer.pad_token_id, eos_token_id=ends or None
        )
        texts = [""] * len(prompts)
        try:
            with torch.inference_mode(), architectures.quiet():
                for part in _of_one_length(prompts):
                    ids = torch.tensor([list(prompts[i]) for i in part], device=base.device)
                    length = ids.shape[1]
                    out = base.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        max_new_tokens=most if room is None else min(most, room - length),
                        do_sample=False,
                        use_cache=True,
                    )
                    for i, written in zip(part, out[:, length:].tolist(), strict=True):
                        texts[i] = self._read(written, ends)
        finally:
            base.generation_config = own_settings
        return texts

    def answer_prompts(
        self, model: nn.Module, x: Inputs, y: Int[Tensor, "n tokens"]
    ) -> tuple[list[str], list[str]]:
        """The answers that some examples have, and those that the model writes to their prompts.

        Args:
            model: a decoder.
            x, y: the examples: tokens, and the same with `IGNORED` for prompt and padding.
        """
        assert isinstance(x, Mapping)
        tokens = x["input_ids"].cpu()
        is_answer = y.cpu()[:, : tokens.shape[1]] != IGNORED
        # A prompt ends where its answer begins.
        starts = is_answer.int().argmax(1).tolist()
        heads = [ids[:start].tolist() for ids, start in zip(tokens, starts, strict=True)]
        ends = self._end_tokens(None)
        answers = [
            self._read(ids[mask].tolist(), ends)
            for ids, mask in zip(tokens, is_answer, strict=True)
        ]
        return answers, self.write(model, heads)

    def _end_tokens(self, config: Any) -> list[int]:
        """The tokenizer's end token and those of the model, which has several for chats."""
        ends = getattr(config, "eos_token_id", None)
        ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        return sorted({int(end) for end in (self.tokenizer.eos_token_id, *ends) if end is not None})

    def _read(self, ids: list[int], ends: list[int]) -> str:
        """The text of some tokens before the first end."""
        end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True)


def _of_one_length(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Places of prompts that are answered together: there is no padding that a model mistakes."""
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    groups = [list(group) for _, group in groupby(order, lambda place: len(prompts[place]))]
    return [group[k : k + AT_ONCE] for group in groups for k in range(0, len(group), AT_ONCE)]


def fill(table: "DataFrame", argument: str, source: str) -> list[str]:
    """A text for each row of a table: a column of texts, or a template filled with columns.

    Raises: ``ValueError`` naming the row of something else than a text, or of an empty cell.
    """
    is_template = isinstance(source, str) and "{" in source and source not in table.columns
    if not is_template:
        texts = column_of(table, argument, source)
        cells = zip(row_names(table), texts, strict=True)
        other = {row: text for row, text in cells if not isinstance(text, str)}
        check_rows(argument, other, "text in every row")
        return texts
    try:
        names = [name for _, name, _, _ in Formatter().parse(source) if name is not None]
    except ValueError as error:
        raise ValueError(f"{argument}={source!r}: expected a template: {error}") from error
    columns = [column_of(table, f"{argument} {{{name}}}", name) for name in names]
    gaps = table[table[names].isna().any(axis=1)]
    check_rows(argument, dict.fromkeys(row_names(gaps), "nothing"), "a value in every row")
    rows = zip(*columns, strict=True)
    return [source.format_map(dict(zip(names, cells, strict=True))) for cells in rows]


def encode_pairs(
    generation: Generation,
    model: nn.Module,
    pairs: Sequence[tuple[str, str]],
    max_length: int | None,
    names: Sequence[str],
) -> tuple[dict[str, Tensor], Tensor, int]:
    """Inputs and targets of all examples, (n, tokens) padded to the right; how many were cut.

    Args:
        generation, model: what encodes, and what must hold them.
        pairs: a prompt and an answer each.
        max_length: tokens kept of an example; ``None``: all, as many as the model holds.
        names: what messages call each row.
    """
    architectures.check_max_length(max_length, model)
    # Apart, so that where an answer begins does not depend on how the two are merged.
    heads = generation.encode([prompt for prompt, _ in pairs])
    tails = generation.tokens([answer for _, answer in pairs])
    end = generation.tokenizer.eos_token_id
    ends = [] if end is None else [end]
    for argument, texts_of in (("prompt", heads), ("answer", tails)):
        empty = {row: "no token" for row, ids in zip(names, texts_of, strict=True) if not ids}
        check_rows(argument, empty, "at least one token in every row")
    full = {
        row: f"{len(head)} tokens"
        for row, head in zip(names, heads, strict=True)
        if max_length is not None and len(head) >= max_length
    }
    expected = f"fewer than max_length={max_length}: else no room is left for an answer"
    check_rows("prompt", full, expected)
    texts = [torch.tensor([*head, *tail, *ends]) for head, tail in zip(heads, tails, strict=True)]
    pad = int(generation.tokenizer.pad_token_id)
    ids = pad_sequence([text[:max_length] for text in texts], True, pad)
    mask = pad_sequence([torch.ones_like(text[:max_length]) for text in texts], True)
    architectures.check_tokens(ids, mask, model, names)
    # Read and not learned: the loss of the prompt's own tokens is nobody's.
    starts = torch.tensor([[len(head)] for head in heads])
    y = torch.where(mask.bool() & (torch.arange(ids.shape[1]) >= starts), ids, IGNORED)
    cut = sum(len(text) > ids.shape[1] for text in texts)
    return {"input_ids": ids, "attention_mask": mask}, y, cut


@torch.no_grad()
def _check_decoder(model: nn.Module, x: Mapping[str, Tensor]) -> None:
    """Refuses a model that writes no text, or that sees the tokens it is to predict."""
    kind = type(model).__name__
    # An encoder of texts has scores of words as well, and sees the answer that it is to give.
    writes = getattr(model, "can_generate", None)
    check(writes is not None and writes(), "model", kind, "a decoder that generates texts")
    before = take(x, slice(1))
    last = int(before["attention_mask"].sum()) - 1
    changed = before["input_ids"].clone()
    changed[0, last] = int(changed[0, last] == 0)
    after = {**before, "input_ids": changed}
    try:
        outputs = [forward(model, part)[:, :last] for part in (before, after)]
    except Exception as error:  # whatever a foreign model raises, the reader needs it in one line
        expected = f"expected to accept the texts, but it says: {first_line(error)}"
        raise ValueError(f"model={kind!r}: {expected}") from error
    # What is masked adds nothing at all, so there is hardly anything to round.
    room = 1e-5 * float(outputs[0].abs().max())
    agrees = torch.allclose(*outputs, rtol=0, atol=room)
    check(agrees, "model", kind, "a decoder: here outputs depend on tokens that come later")
