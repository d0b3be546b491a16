"""Losses of examples, and the scores of a test set: means over examples, or of all together.

In this order: losses and scores of single examples, `OverAll` and `TextScore`, classes, language,
texts, and the catalogue.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab._utils.environment import install_command
from fedlora_lab._utils.validation import check, check_one_of

Logits = Float[Tensor, "n tokens words"]
Ids = Int[Tensor, "n length"]
IGNORED = -100
"""In the place of a target token that does not count, as in Transformers."""

# ---- losses and scores of single examples


def cross_entropy(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of each example: (N, classes), labels (N,) or (N, classes) -> (N,)."""
    fits = outputs.ndim == 2 and y.shape in (outputs.shape[:1], outputs.shape)
    check(fits, "outputs", tuple(outputs.shape), f"({len(y)}, classes) for labels {tuple(y.shape)}")
    return F.cross_entropy(outputs, y, reduction="none")


def accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """1 where the largest output is the label, else 0: (N, classes), (N,) -> (N,)."""
    return (outputs.argmax(1) == y).to(outputs.dtype)


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """Squared error of each example, averaged over its outputs: (N, d), (N, d) -> (N,)."""
    shape, expected = tuple(outputs.shape), f"{tuple(y.shape)}, the shape of y"
    check(outputs.shape == y.shape, "outputs", shape, expected)  # broadcasting would mix examples
    return (outputs - y).square().reshape(len(y), -1).mean(1)


def next_token_loss(outputs: Logits, y: Ids) -> Float[Tensor, " n"]:
    """Mean cross entropy of each text's own tokens from the second on; padding does not count.

    Guarantees: tests/tasks/test_hub.py::test_loss_is_each_text_s_own.
    """
    # The batch may be cut to its longest text; what is cut off holds padding only.
    after = y[:, 1 : outputs.shape[1]]
    logits = outputs[:, :-1].transpose(1, 2)
    return _token_mean(F.cross_entropy(logits, after.clamp(min=0), reduction="none"), after)


def next_token_accuracy(outputs: Logits, y: Ids) -> Float[Tensor, " n"]:
    """Share of each text's own tokens, from the second on, that are the model's first choice."""
    after = y[:, 1 : outputs.shape[1]]
    return _token_mean((outputs[:, :-1].argmax(-1) == after).to(outputs.dtype), after)


def _token_mean(values: Tensor, after: Tensor) -> Tensor:
    counts = (after != IGNORED).to(values.dtype)
    return (values * counts).sum(1) / counts.sum(1).clamp(min=1)


# ---- scores of all examples together


def _as_they_are(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs


@dataclass(frozen=True)
class OverAll:
    """A score of all test examples together, such as AUC, where a mean over them says something
    else.

    Args:
        reduce: (kept (N, ...), y (N, ...)) -> a number, on the processor and in the order of the
            test set. NaN where it is undefined.
        keep: (outputs, y) of some examples -> (n, ...), what ``reduce`` needs of each; its outputs
            by default. What a batch's longest text makes wider must not be kept as it is.
    Guarantees: however the examples are cut into batches, a score is that of all of them
        (test_metrics.py::test_scores_of_a_whole_test_set_do_not_depend_on_how_it_is_cut).

    >>> import torch, fedlora_lab as fl
    >>> predicted = fl.tasks.OverAll(lambda outputs, y: float(outputs.argmax(1).unique().numel()))
    >>> float(predicted(torch.eye(3), torch.arange(3)))
    3.0
    """

    reduce: Callable[[Tensor, Tensor], float]
    keep: Callable[[Any, Tensor], Tensor] = _as_they_are

    def __call__(self, outputs: Any, y: Tensor) -> Float[Tensor, ""]:
        """The score where all examples went through the model at once."""
        return torch.tensor(self.reduce(self.keep(outputs, y), y), dtype=torch.float64)


Metric = Callable[[Any, Tensor], Tensor]
"""(outputs, y) -> (N,), each example's score, whose mean is meant; an `OverAll` or `TextScore`."""


@dataclass(frozen=True)
class TextScore:
    """A score of the texts that a decoder writes for the test prompts, such as BLEU.

    All scores of a task share one pass of greedy generation.

    Args:
        reduce: (references, texts) -> a number, one text for each test example, in their order.
    Guarantees: tests/tasks/test_prompts.py::test_scores_are_the_libraries_of_the_written_texts.

    >>> import fedlora_lab as fl
    >>> short = fl.tasks.TextScore(lambda references, texts: sum(len(x) < 9 for x in texts))
    >>> short.reduce(["an answer", "yes"], ["no", "certainly not"])
    1
    """

    reduce: Callable[[Sequence[str], Sequence[str]], float]

    def __call__(self, outputs: Any, y: Tensor) -> Tensor:
        """Refuses: outputs for given tokens are no text that the model wrote."""
        raise ValueError(
            f"outputs={type(outputs).__name__}: expected texts, as `reduce` takes them"
        )


def _mean(scores: Tensor, y: Tensor) -> float:
    return float(scores.double().mean())


def over_all(metric: Metric) -> OverAll:
    """The metric as it is; one of single examples as the mean over all of them."""
    return metric if isinstance(metric, OverAll) else OverAll(_mean, metric)


# ---- classes


def _macro(name: str, outputs: Float[Tensor, "n classes"], y: Int[Tensor, " n"]) -> float:
    """F1, recall or precision, the mean over the classes that are labels or predicted."""
    from sklearn import metrics  # slow to import

    function, words = getattr(metrics, name), {"average": "macro", "zero_division": 0}
    return float(function(y.numpy(), outputs.argmax(1).numpy(), **words))


def balanced_accuracy(outputs: Float[Tensor, "n classes"], y: Int[Tensor, " n"]) -> float:
    """The mean recall of the classes that are labels."""
    from sklearn.metrics import recall_score

    known: Any = {"labels": y.unique().numpy(), "average": "macro", "zero_division": 0}
    return float(recall_score(y.numpy(), outputs.argmax(1).numpy(), **known))


def auc(outputs: Float[Tensor, "n classes"], y: Int[Tensor, " n"]) -> float:
    """Area under the ROC curve, one class against the rest, the mean over the classes.

    NaN where a class is missing from the labels, or an output is not finite. Of two classes it is
    the area of the second.
    """
    from sklearn.metrics import roc_auc_score

    count = outputs.shape[1]
    missing = int(torch.bincount(y, minlength=count).min()) == 0
    if missing or count < 2 or not bool(outputs.isfinite().all()):
        return math.nan
    likely = outputs.double().softmax(1).numpy()
    if count == 2:
        return float(roc_auc_score(y.numpy(), likely[:, 1]))
    return float(roc_auc_score(y.numpy(), likely, multi_class="ovr", average="macro"))


# ---- language


def _token_totals(outputs: Logits, y: Ids) -> Float[Tensor, "n 2"]:
    """The summed loss of each text's own tokens from the second on, and their number."""
    counts = (y[:, 1:] != IGNORED).sum(1).double()
    return torch.stack([next_token_loss(outputs, y).double() * counts, counts], 1)


def _perplexity(totals: Float[Tensor, "n 2"], y: Ids) -> float:
    loss, tokens = totals.sum(0)
    # A model that diverged has no number as its loss: NaN stands for what was not measured.
    return float((loss / tokens).exp().nan_to_num(math.inf, math.inf))


# ---- texts


def bleu(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """BLEU of a corpus in [0, 100], one reference for each hypothesis, as sacrebleu computes it.

    Raises: ``ValueError`` for lists that are empty or of unequal length; ``ImportError`` with the
        command that installs sacrebleu.
    Guarantees: test_metrics.py::test_texts_are_scored_as_published.

    >>> round(bleu(["the cat sat on the mat"], ["the cat sat on a mat"]), 1)
    53.7
    """
    _check_texts(references, hypotheses)
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise ImportError(f"bleu needs sacrebleu: {install_command('text')}") from error
    return float(BLEU().corpus_score(list(hypotheses), [list(references)]).score)


def rouge(references: Sequence[str], hypotheses: Sequence[str], kind: str = "rougeL") -> float:
    """Mean F-measure of ROUGE in [0, 1], without stemming, as rouge-score computes it.

    Args:
        references, hypotheses: one of each for every text.
        kind: "rouge1", "rouge2" or "rougeL".
    Raises: ``ValueError`` for lists that are empty or of unequal length; ``ImportError`` with the
        command that installs rouge-score.
    Guarantees: test_metrics.py::test_texts_are_scored_as_published.

    >>> round(rouge(["the cat sat on the mat"], ["the cat sat on a mat"]), 3)
    0.833
    """
    _check_texts(references, hypotheses)
    check_one_of("kind", kind, ("rouge1", "rouge2", "rougeL"))
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(f"rouge needs rouge-score: {install_command('text')}") from error
    scorer = RougeScorer([kind])
    each = [scorer.score(*pair)[kind].fmeasure for pair in zip(references, hypotheses, strict=True)]
    return sum(each) / len(each)


def _check_texts(references: Sequence[str], hypotheses: Sequence[str]) -> None:
    for name, texts in {"references": references, "hypotheses": hypotheses}.items():
        listed = isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)
        check(listed and len(texts) > 0, name, texts, "a list of texts")
    count = len(references)
    check(len(hypotheses) == count, "hypotheses", f"{len(hypotheses)} texts", f"{count} of them")


def exact_match(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """The share of texts that are their reference, blanks at both ends aside.

    Raises: ``ValueError`` for lists that are empty or of unequal length.
    Guarantees: test_metrics.py::test_texts_are_scored_as_published.

    >>> exact_match(["yes", "no"], [" yes", "No"])
    0.5
    """
    _check_texts(references, hypotheses)
    pairs = zip(references, hypotheses, strict=True)
    return sum(a.strip() == b.strip() for a, b in pairs) / len(references)


# ---- the catalogue

LANGUAGE: dict[str, Metric] = {
    "accuracy": next_token_accuracy,
    "perplexity": OverAll(_perplexity, _token_totals),
    "loss": next_token_loss,
}
METRICS: dict[str, dict[str, Metric]] = {
    "classification": {
        "accuracy": accuracy,
        "balanced_accuracy": OverAll(balanced_accuracy),
        "f1": OverAll(partial(_macro, "f1_score")),
        "precision": OverAll(partial(_macro, "precision_score")),
        "recall": OverAll(partial(_macro, "recall_score")),
        "auc": OverAll(auc),
        "loss": cross_entropy,
    },
    "regression": {"loss": squared_error},
    "causal": LANGUAGE,
    "prompts": {
        "exact_match": TextScore(exact_match),
        "bleu": TextScore(bleu),
        "rouge": TextScore(rouge),
        **{kind: TextScore(partial(rouge, kind=kind)) for kind in ("rouge1", "rouge2", "rougeL")},
        **LANGUAGE,
    },
}
"""Kind of task -> name -> metric. F1, precision and recall are macro means over classes, AUC is one
class against the rest, perplexity is exp of the mean loss over all tokens of the test set that a
task counts: of prompts, the answers'. BLEU is in [0, 100], "rouge" is "rougeL"."""


def select_metrics(
    metrics: Sequence[str] | Mapping[str, Metric] = ("accuracy",), kind: str = "classification"
) -> dict[str, Metric]:
    """Looks metrics up by name; the loss is always among them, since it tells of divergence.

    Args:
        metrics: names in ``METRICS[kind]``, or a mapping from names to metrics of your own.
        kind: "classification", "regression", "causal" or "prompts".
    Raises: ``ValueError`` for a name that is not there.
    Guarantees: test_metrics.py::test_metrics_are_found_by_name.

    >>> list(select_metrics(["f1", "auc"]))
    ['f1', 'auc', 'loss']
    """
    check_one_of("kind", kind, tuple(METRICS))
    known = METRICS[kind]
    several = isinstance(metrics, Mapping | list | tuple)
    check(several, "metrics", metrics, f"a list of names, some of {', '.join(known)}")
    if isinstance(metrics, Mapping):
        found = dict(metrics)
    else:
        for name in metrics:
            check_one_of("metrics", name, tuple(known))
        found = {name: known[name] for name in metrics}
    return found if "loss" in found else {**found, "loss": known["loss"]}
