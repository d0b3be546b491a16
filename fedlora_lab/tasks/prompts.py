"""Prompts and answers: a decoder learns to answer, and is judged by the texts that it writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from string import Formatter
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks import task as tasks
from fedlora_lab.tasks.hub import (
    check_public_test,
    people_of,
    read_splits,
    row_names,
    split_clients,
    split_rows,
)
from fedlora_lab.tasks.labels import column_of
from fedlora_lab.tasks.metrics import IGNORED, Metric, next_token_loss, select_metrics

if TYPE_CHECKING:
    from pandas import DataFrame

AT_ONCE = 32
"""Prompts that are answered together."""


def prompts(
    model: Any,
    dataset: Any,
    *,
    prompt: str,
    answer: str,
    clients: int | None = None,
    by: str | None = None,
    person: str | None = None,
    seed: int = 0,
    min_size: int = 1,
    test: Any = 0.2,
    targets: Sequence[str] | None = None,
    head: str | None = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    max_new_tokens: int = 64,
    limit: int | None = None,
    metrics: Sequence[str] | Mapping[str, Metric] = ("exact_match", "perplexity"),
    public_test: bool = False,
    name: str = "prompts",
) -> tasks.Task:
    """Builds a task of a decoder that learns to answer prompts.

    An example is the prompt's tokens, the answer's, and the tokenizer's end token where it has one.
    Its loss is the mean over the tokens of the answer and the end; the prompt is read only.
    Prompt and answer are encoded apart and joined as they are: a blank between them stands in one
    of them. Scores such as "exact_match" judge what the model writes after the
    prompts of the test examples, always taking the likeliest token. In a private run all scores are
    NaN unless the test examples are declared public.

    Args:
        model: a name, a local folder, or a module, which is copied, of a decoder.
        dataset: as of `fl.tasks.hub`: a DataFrame, a list of dicts, a CSV or JSONL file, or splits.
        prompt: a column of texts, or a template with columns: "Question: {question} Answer:".
        answer: the same for the answers.
        clients: number of clients without ``by``, dealt at random; 10 by default.
        by: column with the owner of each example: one client for each value.
        person: column with the person of each example, as of `fl.tasks.hub`.
        seed: of the split and the limit; a whole number >= 0.
        min_size: smallest number of examples of a client; of persons with ``person``.
        test: share held out at random, in (0, 0.5], of persons with ``person``; the name of a
            split; or another data set.
        targets: linear maps that get adapters; default: the attention's query and value maps.
        head: name of a module trained in full, or ``None``.
        tokenizer: where there is none beside the model.
        max_length: tokens kept of an example, whose end is cut; ``info["texts cut"]`` counts them.
            ``None``: none is cut, and one that the model cannot hold is refused.
        max_new_tokens: written at most as the answer to a prompt.
        limit: private examples used, drawn at random, with ``person`` persons; ``None``: all.
        metrics: names in ``fl.tasks.METRICS["prompts"]``, or a mapping with own ones, also
            `fl.tasks.TextScore`; the loss is reported in any case.
        public_test: the test examples are public, so private runs may report their metrics.
            Private rows given as public ones are refused, see `hub.check_public_test`.
        name: short name of the task.
    Raises: ``ValueError`` in one line for what does not fit, such as a model that is no decoder, or
        ``max_length`` leaving nothing of some answers; it names their rows.
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
    check_whole("seed", seed)
    check_whole("max_new_tokens", max_new_tokens, 1)
    for option, value in {"min_size": min_size, "limit": limit, "clients": clients}.items():
        check_whole(option, 1 if value is None else value, 1)
    private, held_out, both = split_rows(dataset, test, limit, seed, person)
    people = people_of(private, held_out, person, public_test)
    count = len(private)
    places = row_names(private, held_out, both)
    base, _ = architectures.load(model, "causal", 0, seed)
    code = architectures.prepare_tokenizer(model, tokenizer, base)
    own = Generation(code, prompt, max_new_tokens)
    questions, answers = (
        [
            _texts(private, option, source, places),
            _texts(held_out, option, source, places[count:]),
        ]
        for option, source in {"prompt": prompt, "answer": answer}.items()
    )
    x, y, cut = encode_pairs(
        own, base, [*questions[0], *questions[1]], [*answers[0], *answers[1]], max_length, places
    )
    inputs = [tasks.take(x, part) for part in (slice(count), slice(count, None))]
    _check_decoder(base, inputs[1])
    where: dict[str, Any] = {"by": by, "clients": clients, "seed": seed, "min_size": min_size}
    split, names = split_clients(private, both[0], people, **where)
    task = tasks.Task(
        name=name,
        model=base,
        targets=architectures.default_targets(base) if targets is None else tuple(targets),
        clients=tuple((tasks.take(inputs[0], i), y[i]) for i in map(torch.from_numpy, split)),
        test=(inputs[1], y[count:]),
        head=head,
        loss=next_token_loss,
        metrics=select_metrics(metrics, "prompts"),
        client_names=names,
        prepare=architectures.trim_padding,
        info={"task": name, "model": type(base).__name__, "kind": "prompts", "texts cut": cut},
        public_test=public_test,
        persons=None if people is None else tuple(people[part] for part in split),
        generation=replace(own, known=(inputs[1]["input_ids"], tuple(answers[1]))),
    )
    check_public_test(task, both)
    return task


@dataclass(frozen=True, eq=False)
class Generation:
    """How a decoder reads prompts and writes answers.

    Args:
        tokenizer: of the decoder.
        prompt: the column or template of the task's prompts.
        max_new_tokens: written at most.
        known: tokens of examples, and their answers as they were given.
    """

    tokenizer: Any
    prompt: str
    max_new_tokens: int
    known: tuple[Tensor, tuple[str, ...]] | None = None

    def encode(self, rows: Any, places: architectures.RowNames = None) -> list[list[int]]:
        """The tokens of prompts: texts as they are, or rows with the columns of the template.

        Args: rows: texts, or a table. places: what messages call each row.
        Raises: ``ValueError`` for something else, or a prompt without a token.
        """
        texts = list(rows) if isinstance(rows, list | tuple) else None
        if texts is None or not all(isinstance(text, str) for text in texts):
            expected = "a list of texts, or rows as of fl.tasks.prompts"
            check(not isinstance(rows, str), "prompts", rows, expected)
            texts = _texts(read_splits(rows)["train"], "prompt", self.prompt)
        check(bool(texts), "prompts", texts, "at least one")
        # Before the text only: what a tokenizer puts behind it would end the answer at once.
        marks = self.tokenizer("")["input_ids"][:1]
        first = (self.tokenizer.bos_token_id, getattr(self.tokenizer, "cls_token_id", None))
        lead = marks if marks and marks[0] in first else []
        return _filled("prompt", [lead + ids for ids in self._tokens(texts)], places)

    def encode_answers(
        self, texts: Sequence[str], places: architectures.RowNames = None
    ) -> list[list[int]]:
        """The tokens of answers, with the end token where the tokenizer has one.

        Args: texts: the answers. places: what messages call each row.
        """
        found = _filled("answer", self._tokens(texts), places)
        end = self.tokenizer.eos_token_id
        return [ids if end is None else [*ids, end] for ids in found]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def write(
        self, model: nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int | None = None
    ) -> list[str]:
        """What the model writes after each prompt, up to an end token: always the likeliest token.

        Args:
            model: a decoder of Transformers, perhaps with adapters of PEFT's in place.
            prompts: tokens of each.
            max_new_tokens: written at most; fewer where the model cannot hold as many.
        Raises: ``ValueError`` for a prompt that leaves no room.
        Guarantees: tests/tasks/test_prompts.py::test_texts_together_are_those_of_one_by_one.
        """
        from transformers import GenerationConfig

        most = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        check_whole("max_new_tokens", most, 1)
        base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        room = architectures.longest_text(base)
        lengths = [len(ids) for ids in prompts]
        longest = max(lengths)
        value = f"{longest} tokens in row {lengths.index(longest)}"
        fits = room is None or longest < room
        check(fits, "prompt", value, f"fewer than {room}, all that the model holds")
        before = base.generation_config
        pad = self.tokenizer.pad_token_id
        ends = _end_tokens(self.tokenizer, before)
        texts = [""] * len(prompts)
        # Prompts of one length go together: there is no padding that a model could mistake.
        order = sorted(range(len(prompts)), key=lengths.__getitem__)
        groups = [list(group) for _, group in groupby(order, lengths.__getitem__)]
        parts = [group[k : k + AT_ONCE] for group in groups for k in range(0, len(group), AT_ONCE)]
        # A model may come with settings of its own, such as sampling or a penalty.
        base.generation_config = GenerationConfig(pad_token_id=pad, eos_token_id=ends or None)
        try:
            with torch.inference_mode(), architectures.quiet():
                for part in parts:
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
            base.generation_config = before
        return texts

    def answer(
        self, model: nn.Module, x: Any, y: Int[Tensor, "n tokens"]
    ) -> tuple[list[str], list[str]]:
        """The answers that some examples have, and those that the model writes to their prompts.

        The first are texts as they were given; of other examples than ``known`` what their tokens
        say.

        Args:
            model: a decoder.
            x, y: the examples: tokens, and the same with `IGNORED` for prompt and padding.
        """
        tokens = x["input_ids"].cpu()
        ends = _end_tokens(self.tokenizer, None)
        answers = y.cpu()[:, : tokens.shape[1]] != IGNORED
        rows = zip(tokens, answers.int().argmax(1).tolist(), strict=True)
        written = self.write(model, [ids[:start].tolist() for ids, start in rows])
        if self.known is not None and torch.equal(tokens, self.known[0]):
            return list(self.known[1]), written
        pairs = zip(tokens, answers, strict=True)
        return [self._read(ids[own].tolist(), ends) for ids, own in pairs], written

    def _read(self, ids: list[int], ends: list[int]) -> str:
        """The text of some tokens before the first end."""
        end = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        return self.tokenizer.decode(ids[:end], skip_special_tokens=True)


def _end_tokens(tokenizer: Any, config: Any) -> list[int]:
    """The tokenizer's end token and those of the model, which has several for chats."""
    of_model = getattr(config, "eos_token_id", None)
    ends = list(of_model) if isinstance(of_model, list | tuple) else [of_model]
    return sorted({int(end) for end in (tokenizer.eos_token_id, *ends) if end is not None})


def _filled(
    argument: str, found: list[list[int]], places: architectures.RowNames
) -> list[list[int]]:
    """The same tokens; refuses a row that has none."""
    empty = next((i for i, ids in enumerate(found) if not ids), None)
    value = f"row {architectures.row_name(places, empty or 0)} is empty"
    check(empty is None, argument, value, "at least one token in every row")
    return found


def _texts(
    rows: "DataFrame", argument: str, source: str, places: architectures.RowNames = None
) -> list[str]:
    """A text for each row: a column of texts, or a template filled with columns.

    Raises: ``ValueError`` naming the row of something else than a text, or of an empty cell.
    """
    if not isinstance(source, str) or source in rows.columns or "{" not in source:
        texts = column_of(rows, argument, source)
        odd = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        where = architectures.row_name(places, odd or 0)
        expected = (
            f'text in every row, which row {where} has not; "{{{source}}}" writes numbers out'
        )
        check(odd is None, argument, texts[odd or 0], expected)
        return texts
    try:
        names = [name for _, name, _, _ in Formatter().parse(source) if name is not None]
    except ValueError as error:
        raise ValueError(f"{argument}={source!r}: expected a template: {error}") from error
    check(bool(names), argument, source, "a template with a column in braces, or a column")
    columns = {name: column_of(rows, f"{argument} {{{name}}}", name) for name in names}
    for name in names:
        empty = rows[name].isna().to_numpy()
        gap = f"nothing in row {architectures.row_name(places, int(empty.argmax()))}"
        check(not empty.any(), f"{argument} {{{name}}}", gap, "a value in every row")
    cells = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    try:
        return [source.format_map(row) for row in cells]
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{argument}={source!r}: expected a template: {error}") from error


def encode_pairs(
    own: Generation,
    model: nn.Module,
    prompts: list[str],
    answers: list[str],
    most: int | None,
    places: architectures.RowNames = None,
) -> tuple[dict[str, Tensor], Tensor, int]:
    """Inputs and targets of all examples, (n, tokens) padded to the right; how many were cut.

    Args:
        own: encodes them.
        model: which must hold them.
        prompts, answers: n texts each.
        most: tokens kept of an example; ``None``: all, as many as the model holds.
        places: what messages call each row.
    """
    limit = architectures.longest_text(model)
    if most is not None:
        check_whole("max_length", most, 2, limit)
    heads = own.encode(prompts, places)
    tails = own.encode_answers(answers, places)
    joined = [[*head, *tail] for head, tail in zip(heads, tails, strict=True)]
    architectures.check_tokens(joined, model, places)
    lengths = torch.tensor([len(ids) for ids in joined])
    row = int(lengths.argmax())
    longest = int(lengths.max())
    fits = most is not None or limit is None or longest <= limit
    advice = f"at most {limit} with the answer; max_length={limit} cuts them"
    where = architectures.row_name(places, row)
    check(fits, "prompt", f"{longest} tokens in row {where}", advice)
    size = min(longest, most or longest)
    gone = [i for i, head in enumerate(heads) if len(head) >= size]
    rows = ", ".join(str(architectures.row_name(places, i)) for i in gone[:5])
    rows += ", ..." if len(gone) > 5 else ""
    advice = f"more, since {len(gone)} prompts leave no room for their answers: rows {rows}"
    check(not gone, "max_length", most, advice)
    steps = torch.arange(size)
    starts = torch.tensor([len(head) for head in heads])
    ids = torch.full((len(joined), size), int(own.tokenizer.pad_token_id))
    for place, tokens in zip(ids, joined, strict=True):
        place[: len(tokens)] = torch.tensor(tokens[:size])
    mask = steps < lengths[:, None]
    y = torch.where(mask & (steps >= starts[:, None]), ids, IGNORED)
    return {"input_ids": ids, "attention_mask": mask.long()}, y, int((lengths > size).sum())


@torch.no_grad()
def _check_decoder(model: nn.Module, x: Mapping[str, Tensor]) -> None:
    """Refuses a model that writes no text, or that sees the tokens it is to predict."""
    kind = type(model).__name__
    writes = getattr(model, "can_generate", None)
    check(writes is not None and writes(), "model", kind, "a decoder that generates texts")
    ids = x["input_ids"][:1, : int(x["attention_mask"][0].sum())]
    changed = ids.clone()
    changed[0, -1] = int(ids[0, -1] == 0)
    mask = torch.ones_like(ids)
    try:
        before, after = (
            tasks.forward(model, {"input_ids": part, "attention_mask": mask})[:, :-1]
            for part in (ids, changed)
        )
    except Exception as error:  # whatever a foreign model raises, the reader needs it in one line
        words = f"expected a decoder of texts, but it says: {tasks.first_line(error)}"
        raise ValueError(f"model={kind!r}: {words}") from error
    expected = "a decoder: here outputs depend on tokens that come later"
    # What is masked adds nothing at all, so there is hardly anything to round.
    room = 1e-5 * float(before.nan_to_num().abs().max())
    agrees = torch.allclose(before, after, rtol=0, atol=room, equal_nan=True)
    check(agrees, "model", kind, expected)
