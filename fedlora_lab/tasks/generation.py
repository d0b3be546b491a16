"""How a decoder reads prompts and writes answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedlora_lab._utils.validation import check, check_rows, check_whole, in_one_line
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
        messages: the column of chats, in the place of both.
    """

    tokenizer: Any
    prompt: str | None
    answer: str | None
    max_new_tokens: int
    messages: str | None = None

    def pairs(self, table: "DataFrame") -> list[tuple[str, str]]:
        """The prompts and answers of a table's rows.

        Raises: ``ValueError`` naming the rows of texts that spell control tokens, and of chats that
            do not end with an answer.
        """
        if self.messages is not None:
            chats = column_of(table, "messages", self.messages)
            return self._pairs_of_chats(chats, row_names(table))
        texts = {"prompt": self.prompt, "answer": self.answer}
        for argument, source in texts.items():
            fields = template_fields(table, argument, source)
            # What a template says itself is its writer's; what fills it are texts of people.
            for column in fields or [source]:
                name = f"{argument} {{{column}}}" if fields else argument
                cells = column_of(table, name, column)
                architectures.check_control_tokens(
                    argument, self.tokenizer, cells, row_names(table), rendered=not fields
                )
        prompts, answers = (fill(table, name, str(source)) for name, source in texts.items())
        return list(zip(prompts, answers, strict=True))

    def _pairs_of_chats(self, chats: Sequence[Any], rows: Sequence[str]) -> list[tuple[str, str]]:
        """What the tokenizer's template makes of chats: all but the last answer, and the answer."""
        chats = [list(chat) if hasattr(chat, "__iter__") else chat for chat in chats]
        named = list(zip(rows, chats, strict=True))
        bad = {
            row: repr(chat)
            for row, chat in named
            if not is_chat(chat) or chat[-1]["role"] != "assistant" or len(chat) < 2
        }
        expected = "a list of {'role': ..., 'content': ...} that ends with an answer (assistant)"
        check_rows("messages", bad, expected)
        pairs = []
        apart = {}
        for row, chat in named:
            prompt = self._render(chat[:-1], row)
            whole = self.tokenizer.apply_chat_template(chat, tokenize=False)
            if not whole.startswith(prompt) or len(whole) == len(prompt):
                apart[row] = whole
            pairs.append((prompt, whole[len(prompt) :]))
        expected = "a chat template that writes the answer behind its prompt; give prompt=, answer="
        check_rows("messages", apart, expected)
        # The answers' own texts; those of the prompts were looked at above.
        answers = [chat[-1]["content"] for chat in chats]
        architectures.check_control_tokens(
            "messages", self.tokenizer, answers, rows, rendered=False
        )
        return pairs

    def _render(self, chat: Sequence[Mapping[str, str]], row: str) -> str:
        """The prompt that the tokenizer's template makes of a chat that waits for an answer."""
        expected = "a tokenizer with a chat template, or prompt= and answer="
        check(bool(self.tokenizer.chat_template), "tokenizer", "no chat template", expected)
        texts = [message["content"] for message in chat]
        names = [row] * len(texts)
        architectures.check_control_tokens("messages", self.tokenizer, texts, names, rendered=False)
        with in_one_line(
            f"messages, {row}: expected a chat that the tokenizer's template takes, but"
        ):
            return self.tokenizer.apply_chat_template(
                [*chat], tokenize=False, add_generation_prompt=True
            )

    def encode(self, prompts: Sequence[Any]) -> list[list[int]]:
        """The tokens of each prompt, behind the tokenizer's first mark if it has one.

        Args: prompts: texts, or chats that wait for an answer where the task was made of chats.
        """
        if self.messages is not None and isinstance(prompts, list | tuple):
            prompts = [
                self._render(prompt, f"row {i}") if is_chat(prompt) else prompt
                for i, prompt in enumerate(prompts)
            ]
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
        ends = self.end_tokens(model)
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
                    for i, written in zip(part, out[:, length:].cpu().tolist(), strict=True):
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
        ends = self.end_tokens(model)
        answers = [
            self._read(ids[mask].tolist(), ends)
            for ids, mask in zip(tokens, is_answer, strict=True)
        ]
        # The likeliest answer to a prompt is always the same one: each is written once.
        each = [*dict.fromkeys(heads)]
        written = dict(zip(each, self.write(model, each), strict=True))
        return answers, [written[head] for head in heads]

    def is_ended(self, ids: Sequence[int], ends: Sequence[int]) -> bool:
        """Whether an end token stands behind the last token that can be seen.

        A chat template may write a line break behind it.
        """
        for token in reversed(ids):
            if token in ends:
                return True
            if self.tokenizer.decode([token], skip_special_tokens=True).strip():
                return False
        return False

    def end_tokens(self, model: Any) -> list[int]:
        """The tokenizer's end token and those of the model, which has several for chats."""
        ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
        ends = list(ends) if isinstance(ends, list | tuple) else [ends]
        return sorted({int(end) for end in (self.tokenizer.eos_token_id, *ends) if end is not None})

    def _read(self, ids: list[int], ends: list[int]) -> str:
        """The text of some tokens before the first end."""
        end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True)


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, each with the texts of its role and content."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(
            isinstance(message, Mapping)
            and all(
                isinstance(message.get(key), str) and is_unicode(message[key])
                for key in ("role", "content")
            )
            for message in value
        )
    )


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
