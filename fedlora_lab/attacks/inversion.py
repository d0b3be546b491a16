"""Inputs from gradients by search: move an input until its gradient points where the observed one does.

Source: arXiv:2003.14053 (cosine and total variation, Adam with three decays, box).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedlora_lab.attacks.victim import Upload, Victim
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.streams import Streams


class Inverted(NamedTuple):
    """What a search found: inputs (n, ...), and 1 - cosine of their gradient with the observed one."""

    x: Tensor
    distance: float


def variation(x: Float[Tensor, "n height width"]) -> Tensor:
    """Total variation: mean absolute difference of neighbouring pixels."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


def _gradient(victim: Victim, upload: Upload, x: Tensor, y: Tensor) -> Upload:
    """Gradient of the summed loss that can itself be differentiated in x."""
    leaves = {slot: victim.values[slot].detach().requires_grad_() for slot in upload}
    for slot in victim.adapted.used(victim.values):
        victim.adapted.put(slot, leaves.get(slot, victim.values[slot]))
    loss = victim.task.loss(victim.task.forward(victim.adapted.model, x), y).sum()
    found = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
    return dict(zip(leaves, found, strict=True))


def _distance(one: Upload, other: Upload) -> Tensor:
    products = sum((one[slot] * other[slot]).sum() for slot in other)
    sizes = [sum(part[slot].square().sum() for slot in other) for part in (one, other)]
    return 1 - products / (sizes[0] * sizes[1]).sqrt().clamp(min=1e-30)  # type: ignore[union-attr, operator]


def invert(
    victim: Victim,
    upload: Upload,
    y: Tensor,
    *,
    steps: int = 300,
    lr: float = 0.1,
    smoothness: float = 0.01,
    box: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Inverted:
    """Inputs with labels y whose gradient points where the upload does.

    Args:
        y: (n,) labels, known or recovered (`labels`); as many as there were examples.
        steps: of Adam; its learning rate falls to a tenth after 3/8, 5/8 and 7/8 of them.
        smoothness: weight of the total variation, for inputs with a height and a width.
        box: smallest and largest value of an input.

    Guarantees: test_an_image_is_found_by_search_and_noise_hides_it.
    """
    check_whole("steps", steps, 1)
    check_number("lr", lr, 0, open_low=True)
    check_number("smoothness", smoothness, 0)
    public = victim.task.test[0]
    numbers = isinstance(public, Tensor) and public.is_floating_point()
    check(numbers, "task", victim.task.name, "inputs that are numbers")
    drawn = Streams(seed).normal((len(y), *public.shape[1:]), "inversion")
    middle, half = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2
    x = (middle + 0.2 * half * drawn).to(public).requires_grad_()
    search = torch.optim.Adam([x], lr=lr)
    decay = torch.optim.lr_scheduler.MultiStepLR(search, [round(steps * i / 8) for i in (3, 5, 7)], gamma=0.1)
    best = Inverted(x.detach().clone(), float("inf"))
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for _ in range(steps):
            distance = _distance(_gradient(victim, upload, x, y), upload)
            if float(distance.detach()) < best.distance:
                best = Inverted(x.detach().clone(), float(distance.detach()))
            loss = distance + (smoothness * variation(x) if x.dim() > 2 else 0)
            (x.grad,) = torch.autograd.grad(loss, x)
            search.step()
            decay.step()
            with torch.no_grad():
                x.clamp_(*box)
    return best
