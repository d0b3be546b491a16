"""Sound implementations of one private step that look unlike each other: `fl.review` passes all.

All take the catalogue's examples (x of 8 features, y one of 4 classes), or lists of them as units,
and return what one step releases. Opacus and this library's engine have tests of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab.review.claims import Step
from fedlora_lab.review.mistakes import model
from fedlora_lab.review.mistakes.model import BATCH, CLASSES, CLIP, FEATURES, NOISE


@dataclass(frozen=True)
class Sound:
    """An implementation, and on what it is reviewed."""

    step: Step
    data: Callable[[], list] = model.examples


def automatic(batch: Sequence, seed: int) -> model.Grads:
    """AUTO-S: every gradient g becomes g / (|g| + 0.01), shorter than 1 whatever it was."""
    grads = model.clip(model.example_gradients(batch), 1e12)
    return model.release(model.scale_examples(grads, 1 / (model.example_norms(grads) + 0.01)), seed)


def two_parts(batch: Sequence, seed: int) -> model.Grads:
    """Each of two tensors clipped to C / √2."""
    return model.release(model.clip_each(model.example_gradients(batch), CLIP / 2**0.5), seed)


def persons(people: Sequence, seed: int) -> model.Grads:
    """The mean gradient of each person's examples is clipped."""
    means = [{k: g.mean(0) for k, g in model.example_gradients(own).items()} for own in people]
    rows = model.example_gradients([])
    if means:
        rows = {k: np.array([mean[k] for mean in means]) for k in rows}
    return model.release(model.clip(rows), seed)


@cache
def linear() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(FEATURES, CLASSES)


def tensors(batch: Sequence) -> tuple[Tensor, Tensor]:
    x, y = model.arrays(batch)
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def noised_mean(sums: Sequence[Tensor], seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    names = [name for name, _ in linear().named_parameters()]
    noised = [x + NOISE * CLIP * torch.randn(x.shape, generator=rng) for x in sums]
    return {name: x / BATCH for name, x in zip(names, noised, strict=True)}


def by_vmap(batch: Sequence, seed: int) -> dict[str, Tensor]:
    """`torch.func`: gradients of all examples at once."""
    params = {k: p.detach() for k, p in linear().named_parameters()}

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(linear(), params, x[None])
        return nn.functional.cross_entropy(outputs, y[None])

    x, y = tensors(batch)
    if not len(x):
        return noised_mean([torch.zeros_like(p) for p in params.values()], seed)
    grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)
    norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
    factor = torch.where(norm.isfinite(), (CLIP / norm).clamp(max=1.0), 0.0)
    finite = [g.nan_to_num(0.0, 0.0, 0.0) for g in grads.values()]
    return noised_mean([torch.einsum("n...,n->...", g, factor) for g in finite], seed)


SOUND: dict[str, Sound] = {
    "automatic clipping": Sound(automatic),
    "two parts of a clip": Sound(two_parts),
    "persons": Sound(persons, data=partial(model.clients, 8, 2)),
    "PyTorch, vmap": Sound(by_vmap),
}
