"""One small model for every mistake: softmax regression at fixed weights, in NumPy.

`dp_sgd` and `client_step` are the sound steps; every broken step is a change of one of them.
"""

from collections.abc import Sequence

import numpy as np

Grads = dict[str, np.ndarray]
Example = tuple[np.ndarray, int]
Client = list[Example]

FEATURES = 8
CLASSES = 4
SHAPES = {"weight": (CLASSES, FEATURES), "bias": (CLASSES,)}
BATCH = 16
"""Examples, or clients, of a batch; the denominator of a sound step."""
CLIP = 1.0
NOISE = 1.1
START = np.random.default_rng(1).standard_normal((CLASSES, FEATURES + 1))
"""The weights, and in the last column the bias, at which every step begins."""


def examples(n: int = 24, seed: int = 0) -> list[Example]:
    """Draws n examples (x, y): x of 8 standard normal features, y one of 4 classes.

    >>> x, y = examples(3)[0]
    >>> x.shape, type(y)
    ((8,), <class 'int'>)
    """
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(FEATURES), int(rng.integers(CLASSES))) for _ in range(n)]


def clients() -> list[Client]:
    """Draws as many clients as a batch holds, each a list of four examples of its own."""
    return [examples(4, seed=100 + k) for k in range(BATCH)]


def arrays(batch: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Stacks examples: features (examples, 8) and classes (examples,)."""
    x = np.array([x for x, _ in batch], float).reshape(len(batch), FEATURES)
    return x, np.array([y for _, y in batch], int)


def example_gradients(batch: Sequence[Example]) -> Grads:
    """Gradients of the loss of each example: weight (examples, 4, 8) and bias (examples, 4).

    >>> {name: g.shape for name, g in example_gradients(examples(5)).items()}
    {'weight': (5, 4, 8), 'bias': (5, 4)}
    """
    x, y = arrays(batch)
    with np.errstate(all="ignore"):  # an example may be anything: the clip answers for it
        logits = x @ START[:, :-1].T + START[:, -1]
        chances = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
        # By the logits: each class's chance, less 1 for the true one.
        errors = chances / chances.sum(1, keepdims=True) - np.eye(CLASSES)[y]
        return {"weight": errors[:, :, None] * x[:, None], "bias": errors}


def client_updates(clients: Sequence[Client]) -> Grads:
    """Moves clients by a local step at rate 1: weight (clients, 4, 8) and bias (clients, 4)."""
    each = [example_gradients(client) for client in clients]
    return {
        k: np.array([-grads[k].mean(0) for grads in each]).reshape(-1, *shape)
        for k, shape in SHAPES.items()
    }


def example_norms(grads: Grads) -> np.ndarray:
    """The norm of each example's gradient over all tensors together: (examples,)."""
    squares = (np.square(g).sum(axis=tuple(range(1, g.ndim))) for g in grads.values())
    return np.sqrt(sum(squares))


def scale_examples(grads: Grads, factors: np.ndarray) -> Grads:
    """Multiplies each example's gradient by its factor."""
    return {k: (g.T * factors).T for k, g in grads.items()}


def clip(grads: Grads, limit: float = CLIP) -> Grads:
    """Scales each example's gradient to a joint norm of at most ``limit``.

    A gradient that is not finite becomes zero, so that it moves the sum by nothing.

    >>> bool((example_norms(clip(example_gradients(examples(50)), 0.5)) <= 0.5 + 1e-12).all())
    True
    """
    with np.errstate(all="ignore"):
        # The factor is at most 1: what is short stays as it is.
        factors = limit / np.maximum(example_norms(grads), limit)
    finite = {k: np.where(np.isfinite(g), g, 0.0) for k, g in grads.items()}
    return scale_examples(finite, np.where(np.isnan(factors), 0.0, factors))


def clip_each(grads: Grads) -> Grads:
    """Clips every tensor of each example by itself: k tensors move by √k times the limit."""
    return {k: clip({k: g})[k] for k, g in grads.items()}


def total(grads: Grads) -> Grads:
    """Adds the examples' gradients up."""
    return {k: g.sum(0) for k, g in grads.items()}


def divide(grads: Grads, denominator: float) -> Grads:
    """Divides every tensor by the same number."""
    return {k: g / denominator for k, g in grads.items()}


def add_noise(grads: Grads, std: float, seed: int) -> Grads:
    """Adds independent normal noise to every entry of every tensor.

    Args: grads: of any shapes; std: of the noise; seed: of its generator.
    """
    rng = np.random.default_rng(seed)
    return {k: g + std * rng.standard_normal(g.shape) for k, g in grads.items()}


def release(
    clipped: Grads, seed: int, std: float = NOISE * CLIP, denominator: float = BATCH
) -> Grads:
    """Sums clipped gradients, adds noise to the sum, then divides by a constant.

    Args: clipped: one row an example. seed, std: of the noise. denominator: fixed beforehand.
    """
    return divide(add_noise(total(clipped), std, seed), denominator)


def dp_sgd(batch: Sequence[Example], seed: int) -> Grads:
    """The sound step: clip each example, sum, noise, divide.

    >>> sorted(dp_sgd(examples(), seed=0))
    ['bias', 'weight']
    """
    return release(clip(example_gradients(batch)), seed)


def client_step(clients: Sequence[Client], seed: int) -> Grads:
    """The sound step of the client unit: clip each client's update, sum, noise, divide."""
    return release(clip(client_updates(clients)), seed)
