"""What notebook 11 reads: scans of digits from updates, and which batches hide their inputs."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from fedlora_course.lesson_11.attacks import (
    Upload,
    Victim,
    residual_share,
    row_space,
    span_check,
    stack_gradients,
)
from fedlora_lab.tasks.digits import digits
from fedlora_lab.tasks.task import Task, classification

SIDE = 8
PATCH = 2
"""Pixels across a scan, and across one of its 16 patches."""


def as_image(direction: Tensor) -> Float[np.ndarray, "8 8"]:
    """Draws a direction of 64 numbers, of either sign, as an image: bright where a scan is.

    >>> float(as_image(torch.arange(-64.0, 0.0))[0, 0])
    1.0
    """
    image = direction.detach().double().reshape(8, 8).numpy()
    # A direction has no sign; a scan has more light than shadow.
    image = image if image.sum() >= 0 else -image
    return np.clip(image / max(float(np.quantile(image, 0.95)), 1e-300), 0, 1)


def _patches() -> Float[Tensor, "n 8 8"]:
    """Makes digits that repeat one 2 x 2 patch, one for each of 17^4 = 83,521 patches."""
    # Scans have 17 grey levels, 0 to 16.
    grid = torch.cartesian_prod(*[torch.arange(17)] * PATCH**2) / 16
    return grid.view(-1, PATCH, PATCH).repeat(1, SIDE // PATCH, SIDE // PATCH)


def _assemble_image(
    images: Float[Tensor, "n 8 8"], best: Int[Tensor, " 16"]
) -> Float[Tensor, "8 8"]:
    """Puts together the image that has at each position the patch of the image named there."""
    across = SIDE // PATCH
    chosen = images[:, :PATCH, :PATCH][best]
    return chosen.view(across, across, PATCH, PATCH).permute(0, 2, 1, 3).reshape(SIDE, SIDE)


def read_scans(victim: Victim, updates: Sequence[Upload]) -> list[Float[Tensor, "8 8"]]:
    """Reads a scan of the digits task from each update: everywhere the patch nearest the span.

    The first block's query and value get the same 16 tokens, so a rank of 8 is enough for all 16.

    Args:
        victim: of the digits task.
        updates: each with the A's of ``blocks.0.query`` and ``blocks.0.value``.

    Guarantees: notebook 11 reads eight scans exactly, and none of noised uploads.
    """
    keys = [victim.layer(updates[0], name=f"blocks.0.{name}") for name in ("query", "value")]
    tried = _patches().to(updates[0][keys[0]])
    both = torch.stack([stack_gradients(update[key] for key in keys) for update in updates])
    outside = span_check(victim, both, keys[0].layer, tried, rank=16)
    return [_assemble_image(tried, best) for best in outside.argmin(1)]


def flattened_digits_task(
    examples: int | None = None,
) -> Task:
    """Makes a task of three clients' scans, 64 pixels in a row, for a small random network.

    Args:
        examples: the first ones that each client keeps; ``None``: all.

    >>> flattened_digits_task(examples=5).sizes
    (5, 5, 5)
    """
    task = digits(clients=3, dirichlet=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    return classification(
        model,
        [(x[:examples], y[:examples]) for x, y in task.clients],
        test=task.test,
        targets=["1"],
        name="whole scans",
    )


def span_residual_by_batch_size(victim: Victim, sizes: Iterable[int]) -> pd.DataFrame:
    """Measures the share of inputs outside the span of one gradient of A, for growing batches.

    Args:
        victim: of a task whose first adapted layer is given one row for each example.
        sizes: of the batches, of which 20 are drawn of each size.

    Returns: columns size, draw, who ("in the batch", "somebody else") and value, a mean.
    """
    x, y = victim.task.clients[0]
    strangers = victim.task.test[0].flatten(1)
    rng = np.random.default_rng(0)
    rows = []
    for size, draw in itertools.product(sizes, range(20)):
        index = torch.from_numpy(rng.choice(len(y), size, replace=False))
        upload = victim.upload((x[index], y[index]))
        gradient = upload[victim.layer(upload)]
        space = row_space(gradient, min(size, len(gradient)))
        for who, inputs in (("in the batch", x[index].flatten(1)), ("somebody else", strangers)):
            rows.append((size, draw, who, float(residual_share(space, inputs).mean())))
    return pd.DataFrame(rows, columns=["size", "draw", "who", "value"])
