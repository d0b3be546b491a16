"""Sound implementations of one private step that look unlike each other: `fl.review` passes all.

All take the catalogue's examples (x of 8 features, y one of 4 classes) and return what one step
releases. Opacus and this library's engine have tests of their own.
"""

from functools import cache

import torch
from torch import nn

from fedlora_lab.review.claims import Step
from fedlora_lab.review.mistakes import model
from fedlora_lab.review.mistakes.model import BATCH, CLASSES, CLIP, FEATURES, NOISE


def automatic(batch, seed):
    """AUTO-S: every gradient g becomes g / (|g| + 0.01), shorter than 1 whatever it was."""
    grads = model.clip(model.example_gradients(batch), 1e12)
    return model.release(model.scale_examples(grads, 1 / (model.example_norms(grads) + 0.01)), seed)


def two_parts(batch, seed):
    """Each of two tensors clipped to C / √2."""
    return model.release(model.clip_each(model.example_gradients(batch), CLIP / 2**0.5), seed)


@cache
def linear():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(FEATURES, CLASSES)


def loss(params, x, y):
    outputs = torch.func.functional_call(linear(), params, x[None])
    return nn.functional.cross_entropy(outputs, y[None])


def by_vmap(batch, seed):
    """`torch.func`: gradients of all examples at once, in single precision."""
    rng = torch.Generator().manual_seed(seed)
    params = {k: p.detach() for k, p in linear().named_parameters()}
    sums = {k: torch.zeros_like(p) for k, p in params.items()}
    if batch:
        x, y = map(torch.from_numpy, model.arrays(batch))
        rows = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x.float(), y)
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in rows.values()]).norm(dim=0)
        factor = torch.where(norm.isfinite(), (CLIP / norm).clamp(max=1.0), 0.0)
        sums = {
            k: torch.einsum("n...,n->...", g.nan_to_num(0.0, 0.0, 0.0), factor)
            for k, g in rows.items()
        }
    noise = {k: NOISE * CLIP * torch.randn(x.shape, generator=rng) for k, x in sums.items()}
    return {k: (x + noise[k]) / BATCH for k, x in sums.items()}


SOUND: dict[str, Step] = {
    "automatic clipping": automatic,
    "two parts of a clip": two_parts,
    "PyTorch, vmap": by_vmap,
}
