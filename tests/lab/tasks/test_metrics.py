"""Scores of a test set: any function, of one example or of all together."""

import math
from dataclasses import replace

import pytest
import sklearn.metrics as theirs
import toy_hubs
import toy_tasks
from calls import Options

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.lora import adapters, per_example
from fedlora_lab.tasks.metrics import METRICS, OverAll, perplexity
from fedlora_lab.tasks.task import forward

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
F1 = OverAll(lambda outputs, y: float(theirs.f1_score(y, outputs.argmax(1), average="macro")))


def test_scores_of_a_whole_test_set_do_not_depend_on_how_it_is_cut():
    """Texts go through in the order of their length: kept rows stay beside their labels."""
    order = OverAll(lambda kept, y: float((kept == y[:, :2]).all()), lambda outputs, y: y[:, :2])
    language: Options = {"in order": order, "perplexity": perplexity}
    classes: Options = {"f1": F1, **METRICS}
    for task, metrics in ((toy_hubs.answers(), language), (toy_hubs.task("bert"), classes)):
        task = replace(task, metrics=metrics)
        x, y = task.test
        y = y.to("cpu")
        adapted = adapters.adapt(task, toy_tasks.LORA)
        start = adapters.initial_values(adapted, Streams(0))
        outputs = forward(task.model, x)
        direct = {name: float(metric(outputs, y).mean()) for name, metric in metrics.items()}
        for chunk in (None, 3):
            scores = per_example.evaluate(task, adapted, start, task.test, chunk=chunk)
            assert scores == pytest.approx(direct, rel=1e-5)
            assert scores.get("in order", 1) == 1


def test_perplexity_counts_every_token_alike_and_is_infinite_where_a_model_diverged():
    """Transformers' own loss of all tokens at once; NaN stands for what was not measured."""
    task = toy_hubs.answers()
    x, y = ({k: v.to("cpu") for k, v in task.test[0].items()}, task.test[1].to("cpu"))
    outputs = forward(task.model, x)
    loss = task.model(**x, labels=y).loss
    assert float(perplexity(outputs, y)) == pytest.approx(float(loss.exp()))
    assert float(perplexity(outputs * math.nan, y)) == math.inf
