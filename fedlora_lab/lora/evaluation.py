"""Outputs of an adapted model, and the metrics of a task over some examples."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab._utils.validation import check
from fedlora_lab.lora.adapters import AdaptedModel
from fedlora_lab.lora.per_example import prepare_inputs, split_batch
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.tasks.metrics import TextScore, over_all
from fedlora_lab.tasks.task import Task, take


def evaluate(
    task: Task,
    adapted: AdaptedModel,
    values: Mapping[ParamKey, Tensor],
    data: "tuple[Tensor | Mapping[str, Tensor], Tensor]",
    chunk: int | None = None,
) -> dict[str, float]:
    """Each metric of the task over some examples, with one value for each key.

    A loss that is not a number, of a model that diverged, is infinite: NaN stands for what was not
    measured.

    Args:
        task, adapted, values, data: the metrics, the model, its tensors, the examples.
        chunk: at most so many examples at once; never more than 128, of small ones 512.
    """
    x, y = data
    of_texts = {k: metric for k, metric in task.metrics.items() if isinstance(metric, TextScore)}
    metrics = {k: over_all(m) for k, m in task.metrics.items() if not isinstance(m, TextScore)}
    scored: dict[str, list[Tensor]] = {name: [] for name in metrics}
    # A call costs the same for few, and many small examples need little memory.
    small = isinstance(x, Tensor) and x.is_floating_point() and len(x)
    most = max(128, min(512, 2**15 // max(1, x[0].numel()))) if small else 128  # type: ignore[union-attr]
    everyone = torch.arange(len(y))
    chunks = split_batch(x, everyone, adapted.device, chunk and min(chunk, most), most)
    for places in chunks:
        outputs = model_outputs(task, adapted, values, take(x, places))
        for name, metric in metrics.items():
            scored[name].append(metric.keep(outputs, y[places].to(outputs.device)).cpu())
    # In the order of the examples: how they were split must not change the bits of a mean.
    order = torch.cat(list(chunks)).argsort()
    scores = {k: m.reduce(torch.cat(scored[k])[order], y.cpu()) for k, m in metrics.items()}
    if math.isnan(scores.get("loss", 0.0)):
        scores["loss"] = math.inf
    # One pass of generation for all scores of texts: it costs more than all else here.
    if of_texts:
        expected = "no score of texts: tasks of fl.tasks.prompts write some"
        check(task.generation is not None, "metrics", [*of_texts], expected)
        assert task.generation is not None
        adapted.place(values)
        pairs = task.generation.answer_prompts(adapted.model, x, y)
        scores |= {name: metric.reduce(*pairs) for name, metric in of_texts.items()}
    return {name: scores[name] for name in task.metrics}


def model_outputs(
    task: Task,
    adapted: AdaptedModel,
    values: Mapping[ParamKey, Tensor],
    x: "Tensor | Mapping[str, Tensor]",
) -> Float[Tensor, "n ..."]:
    """Gives the model's outputs.

    Args:
        task, adapted, x: the task, its adapted model and the inputs.
        values: one tensor for each key.
    """
    adapted.place(values)
    with torch.inference_mode():
        return task.forward(adapted.model, prepare_inputs(task, x, adapted.device))
