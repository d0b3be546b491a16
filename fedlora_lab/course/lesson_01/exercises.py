"""Right and wrong answers to the built exercises of notebook 01."""

import numpy as np
import torch

from fedlora_lab.course.exercises import Calls, vary


def _adapter(rng):
    return rng.standard_normal((4, 2)), rng.standard_normal((2, 5)), rng.uniform(2, 5)


CALLS = {
    "01.1": Calls(
        "x, W0, B, A and gamma",
        draw=lambda rng: (rng.standard_normal((6, 5)), rng.standard_normal((4, 5)), *_adapter(rng)),
    ),
    "01.2": Calls(
        "x, h, B, A and gamma",
        draw=lambda rng: (rng.standard_normal((6, 5)), rng.standard_normal((6, 4)), *_adapter(rng)),
    ),
    "01.3": Calls(
        "G, A, gamma and lr",
        draw=lambda rng: (
            rng.standard_normal((4, 5)),
            rng.standard_normal((2, 5)),
            rng.uniform(2, 5),
            rng.uniform(0.2, 0.8),
        ),
    ),
}


# ---- 01.1: the forward pass


def lora_linear(x, W0, B, A, gamma):
    return x @ W0.T + gamma * (x @ A.T) @ B.T


def in_one_weight(x, W0, B, A, gamma):
    return torch.nn.functional.linear(*map(torch.as_tensor, (x, W0 + gamma * B @ A)))


without_scale = vary(lora_linear, gamma=1)
without_the_base = vary(lora_linear, W0=np.zeros_like)
base_scaled_too = lambda x, W0, B, A, gamma: gamma * (x @ W0.T + x @ A.T @ B.T)
scale_at_both = vary(lora_linear, gamma=np.square)


# ---- 01.2: the gradients of every example


def per_example(x, h, B, A, gamma):
    grad_B = gamma * np.einsum("no,nr->nor", h, x @ A.T)
    grad_A = gamma * np.einsum("nr,ni->nri", h @ B, x)
    return grad_B, grad_A


def by_autograd(x, h, B, A, gamma):
    """One example at a time: the loss whose upstream gradient is h is h times y."""
    found = []
    for row, up in zip(torch.as_tensor(x), torch.as_tensor(h), strict=True):
        b, a = (torch.tensor(factor, requires_grad=True) for factor in (B, A))
        (up @ (gamma * (b @ (a @ row)))).backward()
        found.append((b.grad, a.grad))
    return tuple(torch.stack(part) for part in zip(*found, strict=True))


summed = vary(per_example, then=lambda parts: [part.sum(0) for part in parts])
gradients_without_scale = vary(per_example, gamma=1)
scale_squared = vary(per_example, gamma=np.square)
other_way_round = vary(per_example, then=lambda parts: parts[::-1])
averaged = vary(per_example, then=lambda parts: [part / len(part) for part in parts])


# ---- 01.3: the first step of the weight


def first_move(G, A, gamma, lr):
    B = -lr * gamma * G @ A.T  # B was zero, so A has no gradient yet
    return gamma * B @ A


multiplied_out = lambda G, A, gamma, lr: -lr * gamma**2 * G @ (A.T @ A)
scale_once = vary(first_move, gamma=np.sqrt)
uphill = vary(first_move, lr=np.negative)
in_full = lambda G, A, gamma, lr: -lr * G
only_B = lambda G, A, gamma, lr: -lr * gamma * G @ A.T
