"""Scans under attack: read patch by patch from a transformer's update, or as a whole from a small network's."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from fedlora_lab.attacks.guesses import assembled, patches
from fedlora_lab.attacks.span import joined, residual, row_space, span_check
from fedlora_lab.attacks.victim import Upload, Victim
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.tasks import classification, digits
from fedlora_lab.tasks.task import Task


class Read(NamedTuple):
    """An image (8, 8), and at each of the 16 positions how far outside the span its patch lies."""

    image: Tensor
    outside: Tensor


def whole_scans(clients: int = 3, examples: int | None = None, *, hidden: int = 32, head: bool = False) -> Task:
    """Scans before a small network of random weights: its first layer is given all 64 pixels as one row.

    Args:
        examples: the first ones that each client keeps; ``None``: all.
        hidden: width of the layer between. head: whether the last layer is trained in full.
    """
    check_whole("hidden", hidden, 1)
    task = digits(clients=clients, alpha=None)
    check_whole("examples", min(task.sizes) if examples is None else examples, 1, min(task.sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10))
    held = [(x[:examples], y[:examples]) for x, y in task.clients]
    named: dict[str, Any] = {"name": "whole scans", "labels": task.labels, "head": "3" if head else None}
    return classification(model, held, test=task.test, targets=["1"], **named)


def read_scan(victim: Victim, upload: Upload, levels: int = 17) -> Read:
    """A scan of the digits task from one update: at each position the patch that lies nearest the span.

    The first block's query and value are given the same 16 tokens, so the rows of both gradients of A count: a rank of
    8 is enough for all 16. Every patch there can be is tried, 83,521 of them.

    Args: upload: with the A's of ``blocks.0.query`` and ``blocks.0.value``. levels: grey levels that are tried.
    Guarantees: test_lesson_11.py::test_a_scan_is_read_from_two_layers.
    """
    slots = [victim.layer(upload, name=f"blocks.0.{name}") for name in ("query", "value")]
    tried = patches(levels).to(upload[slots[0]])
    both = joined(upload[slot] for slot in slots)
    outside = span_check(victim, both, slots[0].layer, tried, rank=16)
    best = outside.argmin(0)
    return Read(assembled(tried, best), outside.gather(0, best[None])[0])


def outside_by_batch(victim: Victim, sizes: "range | tuple[int, ...]", draws: int = 20, seed: int = 0) -> Any:
    """Share of inputs outside the span of one gradient of A, for batches of growing size.

    Args: victim: of a task whose first adapted layer is given one row for each example. sizes: of the batches.

    Returns: frame with columns size, draw, who ("in the batch", "somebody else") and value, the mean over examples.
    """
    import pandas as pd

    x, y = victim.task.clients[0]
    strangers = victim.task.test[0].flatten(1)
    rng, rows = np.random.default_rng(seed), []
    for size in sizes:
        check_whole("size", size, 1, len(y))
        for draw in range(draws):
            index = torch.from_numpy(rng.choice(len(y), size, replace=False))
            upload = victim.upload((x[index], y[index]))
            gradient = upload[victim.layer(upload)]
            space = row_space(gradient, min(size, len(gradient)))
            for who, given in (("in the batch", x[index].flatten(1)), ("somebody else", strangers)):
                rows.append((size, draw, who, float(residual(space, given).mean())))
    return pd.DataFrame(rows, columns=["size", "draw", "who", "value"])


def shadow(gradient: Float[Tensor, "d_out r"], A: Float[Tensor, "r d_in"]) -> Float[Tensor, " d_in"]:
    """What the gradient of B tells of the one input: its part in the rows of A, up to size and sign.

    The gradient of B is s delta (A x)^T, so r numbers A x are all that it holds of x.

    Guarantees: test_lesson_11.py::test_the_gradient_of_b_shows_a_shadow.
    """
    check(bool(gradient.any()), "gradient", "zero", "one that is not zero")
    return torch.linalg.pinv(A) @ torch.linalg.svd(gradient, full_matrices=False)[2][0]


def same_shadow(
    gradient: Float[Tensor, "d_out r"], A: Float[Tensor, "r d_in"], candidates: Float[np.ndarray, "n d_in"]
) -> Float[np.ndarray, " n"]:
    """|cosine| of each candidate's A x with the one in the gradient of B: 1 for the input itself.

    Guarantees: test_lesson_11.py::test_the_gradient_of_b_shows_a_shadow.
    """
    seen = torch.linalg.svd(gradient.double(), full_matrices=False)[2][0].numpy()
    shadows = candidates @ A.double().numpy().T
    return np.abs(shadows @ seen) / np.linalg.norm(shadows, axis=1).clip(min=1e-300)


def shown(found: Tensor) -> Float[np.ndarray, "8 8"]:
    """A direction as an image: bright where a scan is; size and sign are not in it.

    The sign is the one that makes most of it positive; the brightest twentieth of the pixels is white.
    """
    check_number("found.numel()", found.numel(), 64, 64)
    image = found.detach().double().reshape(8, 8).numpy()
    image = image if image.sum() >= 0 else -image
    return np.clip(image / max(float(np.quantile(image, 0.95)), 1e-300), 0, 1)
