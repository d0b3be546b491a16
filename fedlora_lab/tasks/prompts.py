"""Prompts and answers: a decoder learns to answer, and is judged by the texts that it writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fedlora_lab._utils.torch_state import in_usual_torch
from fedlora_lab._utils.validation import check, check_rows, check_whole, in_one_line, warn
from fedlora_lab.tasks import architectures
from fedlora_lab.tasks.generation import Generation
from fedlora_lab.tasks.metrics import IGNORED, Metrics, next_token_loss, select_metrics
from fedlora_lab.tasks.modules import Head
from fedlora_lab.tasks.tables import Rows
from fedlora_lab.tasks.task import Task, base_digest, forward, move_to_model, take


@in_usual_torch
def prompts(
    model: architectures.ModelSource,
    dataset: object,
    *,
    prompt: str | None = None,
    answer: str | None = None,
    messages: str | None = None,
    by: str | None = None,
    person: str | None = None,
    clients: int | None = None,
    seed: int = 0,
    test: object = 0.2,
    public_test: bool = False,
    targets: Sequence[str] | None = None,
    head: Head = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    max_new_tokens: int = 64,
    metrics: Metrics = ("exact_match", "perplexity"),
) -> Task:
    """Builds a task of a decoder that learns to answer prompts.

    An example is the prompt's tokens, the answer's, and the tokenizer's end token where it has one.
    Its loss is the mean over the tokens of the answer and the end; the prompt is read only. Both
    are encoded apart and joined as they are: a blank between them stands in one of them. Scores
    judge what the model writes after the prompts of the test examples.

    Args:
        model, dataset, by, person, clients, seed, test, public_test: as of `fl.tasks.hub`.
        targets, head, tokenizer: as of `fl.tasks.hub`; default: no head.
        prompt, answer: columns of texts, or templates: "Question: {question} Answer:". A text that
            fills a template, or one of a few in a column, may spell no control token of the
            tokenizer; a column in which every text has some is read as a chat template wrote it.
        messages: in their place a column of chats, lists of {"role": ..., "content": ...} that end
            with the answer of the assistant: the tokenizer's own chat template writes both.
        max_length: tokens kept of an example, whose end is cut; ``info["texts cut"]`` counts them.
            ``None``: none is cut, and one that the model cannot hold is refused.
        max_new_tokens: written at most as the answer to a prompt. Longer answers of public test
            rows are warned of, and others where they are more than half of all: none can be right.
        metrics: names in ``fl.tasks.METRICS["prompts"]``, or a mapping with `fl.tasks.TextScore`.
    Raises: ``ValueError`` in one line for what does not fit, naming column and row.
    Guarantees: tests/lora/test_gradients.py::test_equals_batches_of_one,
        tests/tasks/test_prompts.py::test_only_the_answer_counts, tests/tasks/test_chats.py.

    >>> import tempfile
    >>> import fedlora_lab as fl
    >>> data = [{"word": word, "site": word[0]} for word in ("yes", "yet", "no", "not") * 3]
    >>> folder = fl.tasks.tiny("llama", tempfile.mkdtemp(), ["say yes yet no not"])
    >>> task = fl.tasks.prompts(folder, data, prompt="say {word}", answer="{word}", by="site")
    >>> task.client_names, list(task.metrics)
    (('n', 'y'), ['exact_match', 'perplexity', 'loss'])
    """
    check_whole("max_new_tokens", max_new_tokens, 1)
    given = [name for name in (prompt, answer, messages) if name is not None]
    fits = given in ([prompt, answer], [messages])
    expected = "prompt= and answer=, or messages= alone: names of columns"
    check(fits, "prompt, answer, messages", (prompt, answer, messages), expected)
    columns = {"prompt": prompt, "answer": answer}
    if messages is not None:
        columns = {"messages": messages}
    rows = Rows.read(dataset, test, seed, by, person, clients, public_test, columns)
    base, _ = architectures.load(model, "causal", 0, seed)
    code = architectures.prepare_tokenizer(model, tokenizer, base)
    generation = Generation(code, prompt, answer, max_new_tokens, messages)
    pairs = [pair for table in (rows.private, rows.held_out) for pair in generation.pairs(table)]
    x, y, cut = encode_pairs(generation, base, pairs, max_length, rows.names)
    _check_decoder(base, x)
    _warn_of_long_answers(generation, base, y, len(rows.private), public_test)
    return rows.make_task(
        x,
        y,
        name="prompts",
        model=base,
        targets=architectures.default_targets(base, targets),
        head=head,
        loss=next_token_loss,
        metrics=select_metrics(metrics, "prompts"),
        prepare=architectures.trim_padding,
        info={
            "task": "prompts",
            "model": type(base).__name__,
            "base": base_digest(base),
            "kind": "causal",
            **columns,
            "max_new_tokens": max_new_tokens,
            **architectures.tokenizer_facts(code),
            "texts cut": cut,
        },
        generation=generation,
        public_test=public_test,
    )


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
    side = generation.tokenizer.truncation_side
    expected = "right with max_length=, which cuts an example's end: give tokenizer= with that side"
    check(max_length is None or side == "right", "tokenizer.truncation_side", side, expected)
    # Apart, so that where an answer begins does not depend on how the two are merged.
    heads = generation.encode([prompt for prompt, _ in pairs])
    tails = generation.tokens([answer for _, answer in pairs])
    end = generation.tokenizer.eos_token_id
    ends = [] if end is None else [end]
    for argument, texts_of in (("prompt", heads), ("answer", tails)):
        empty = {row: "no token" for row, ids in zip(names, texts_of, strict=True) if not ids}
        check_rows(argument, empty, "at least one token in every row")
    # A chat template writes it already, perhaps another one than the tokenizer's.
    marks = generation.end_tokens(model)
    tails = [tail if generation.is_ended(tail, marks) else tail + ends for tail in tails]
    full = {
        row: f"{len(head)} tokens"
        for row, head in zip(names, heads, strict=True)
        if max_length is not None and len(head) >= max_length
    }
    expected = f"fewer than max_length={max_length}: else no room is left for an answer"
    check_rows("prompt", full, expected)
    texts = [torch.tensor([*head, *tail]) for head, tail in zip(heads, tails, strict=True)]
    pad = int(generation.tokenizer.pad_token_id)
    ids = pad_sequence([text[:max_length] for text in texts], True, pad)
    mask = pad_sequence([torch.ones_like(text[:max_length]) for text in texts], True)
    architectures.check_tokens(ids, mask, model, names)
    # Read and not learned: the loss of the prompt's own tokens is nobody's.
    starts = torch.tensor([[len(head)] for head in heads])
    y = torch.where(mask.bool() & (torch.arange(ids.shape[1]) >= starts), ids, IGNORED)
    cut = sum(len(text) > ids.shape[1] for text in texts)
    return {"input_ids": ids, "attention_mask": mask}, y, cut


def _warn_of_long_answers(
    generation: Generation, model: nn.Module, y: Tensor, private: int, public_test: bool
) -> None:
    """Warns where answers have more tokens than are written, so that no score can find them right.

    Of private rows only that they are more than half of all, and no number: one row alone must not
    be told of.

    Args: generation, model, y: of the task, all rows. private: how many come first. public_test.
    """
    most = generation.max_new_tokens
    ends = torch.tensor(generation.end_tokens(model))
    is_answer = (y != IGNORED) & ~torch.isin(y, ends)
    lengths = is_answer.sum(1)
    if public_test:
        lengths = lengths[private:]
    long = int((lengths > most).sum())
    if public_test and long:
        share = f"{long} of {len(lengths)} test answers have more tokens"
        warn(
            f"max_new_tokens={most}: {share} and cannot be written whole, so they count as wrong; "
            f"the longest has {int(lengths.max())}"
        )
    elif 2 * long > len(lengths):
        share = "more than half of the answers have more tokens"
        warn(f"max_new_tokens={most}: {share} and cannot be written whole: they count as wrong")


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
    with in_one_line(f"model={kind!r}: expected to accept the texts, but it says"):
        outputs = [forward(model, move_to_model(part, model))[:, :last] for part in (before, after)]
    # What is masked adds nothing at all, so there is hardly anything to round.
    room = 1e-5 * float(outputs[0].abs().max())
    agrees = torch.allclose(*outputs, rtol=0, atol=room)
    check(agrees, "model", kind, "a decoder: here outputs depend on tokens that come later")
