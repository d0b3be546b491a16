"""How a decoder reads prompts and writes answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedlora_lab._utils.validation import check, check_rows, check_whole
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.labels import column_of, is_unicode, row_names, template_fields
from fedlora_lab.tasks.metrics import IGNORED

if TYPE_CHECKING:
    from pandas import DataFrame

AT_ONCE = 32
"""Prompts that are answered together."""


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
        is_texts = is_list and all(isinstance(x, str) and is_unicode(x) for x in prompts)
        check(is_texts, "prompts", prompts, "a list of texts, in whole letters of Unicode")
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
        self.check_room(base, prompts)
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

    def check_room(
        self, model: Any, prompts: Sequence[Sequence[int]], rows: Sequence[str] = ()
    ) -> None:
        """Refuses a prompt that is empty, or leaves no room for an answer.

        Args: model, prompts: as of `write`. rows: what messages call each; default: "row 0", …
        """
        room = architectures.longest_text(model)
        limit = "" if room is None else f", and fewer than {room}, all that the model holds"
        for place, ids in enumerate(prompts):
            fits = len(ids) > 0 and (room is None or len(ids) < room)
            row = rows[place] if rows else f"row {place}"
            check(fits, "prompt", f"{len(ids)} tokens in {row}", f"at least one{limit}")

    def answer_prompts(
        self, model: nn.Module, x: Tensor | Mapping[str, Tensor], y: Int[Tensor, "n tokens"]
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
        heads = [tuple(ids[:start].tolist()) for ids, start in zip(tokens, starts, strict=True)]
        ends = self._end_tokens(None)
        answers = [
            self._read(ids[mask].tolist(), ends)
            for ids, mask in zip(tokens, is_answer, strict=True)
        ]
        # The likeliest answer to a prompt is always the same one: each is written once.
        each = [*dict.fromkeys(heads)]
        written = dict(zip(each, self.write(model, each), strict=True))
        return answers, [written[head] for head in heads]

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

    Args: table: whose cells are filled, see `check_filled`; argument, source: as given.
    Raises: ``ValueError`` naming the row of something else than a text.
    """
    names = template_fields(table, argument, source)
    if not names:
        texts = column_of(table, argument, source)
        cells = zip(row_names(table), texts, strict=True)
        other = {row: text for row, text in cells if not isinstance(text, str)}
        check_rows(argument, other, "text in every row")
        return texts
    columns = [column_of(table, f"{argument} {{{name}}}", name) for name in names]
    rows = zip(*columns, strict=True)
    return [source.format_map(dict(zip(names, cells, strict=True))) for cells in rows]
