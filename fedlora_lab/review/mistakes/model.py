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
BATCH = 16
CLIENTS = 8
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


def clients(n: int = CLIENTS, size: int = 4) -> list[Client]:
    """Draws n clients, each a list of ``size`` examples of its own."""
    return [examples(size, seed=100 + k) for k in range(n)]


def arrays(batch: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """Stacks examples: features (examples, 8) and classes (examples,)."""
    x = np.array([x for x, _ in batch], float).reshape(len(batch), FEATURES)
    return x, np.array([y for _, y in batch], int)


def logit_gradients(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gradients of each example's loss by its logits, (examples, 4): chances less the true class.

    Args: x, y: as of `arrays`. weights: (4, 9).
    """
    with np.errstate(all="ignore"):  # an example may be anything: the clip answers for it
        logits = x @ weights[:, :-1].T + weights[:, -1]
        chances = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
        return chances / chances.sum(1, keepdims=True) - np.eye(CLASSES)[y]


def example_gradients(batch: Sequence[Example]) -> Grads:
    """Gradients of the loss of each example: weight (examples, 4, 8) and bias (examples, 4).

    >>> {name: g.shape for name, g in example_gradients(examples(5)).items()}
    {'weight': (5, 4, 8), 'bias': (5, 4)}
    """
    x, y = arrays(batch)
    errors = logit_gradients(x, y, START)
    with np.errstate(all="ignore"):
        return {"weight": errors[:, :, None] * x[:, None], "bias": errors}


def example_norms(grads: Grads) -> np.ndarray:
    """The norm of each example's gradient over all tensors together: (examples,)."""
    squares = (np.square(g).sum(axis=tuple(range(1, g.ndim))) for g in grads.values())
    return np.sqrt(sum(squares))


def scale_examples(grads: Grads, factors: np.ndarray) -> Grads:
    """Multiplies each example's gradient by its factor."""
    return {k: g * factors.reshape(-1, *[1] * (g.ndim - 1)) for k, g in grads.items()}


def clip(grads: Grads, limit: float = CLIP) -> Grads:
    """Scales each example's gradient to a joint norm of at most ``limit``.

    A gradient that is not finite becomes zero, so that it moves the sum by nothing.

    >>> bool((example_norms(clip(example_gradients(examples(50)), 0.5)) <= 0.5 + 1e-12).all())
    True
    """
    with np.errstate(all="ignore"):
        norms = example_norms(grads)
    # The factor is at most 1: what is short stays as it is.
    factors = np.where(np.isfinite(norms), limit / np.maximum(norms, limit), 0.0)
    finite = {k: np.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0) for k, g in grads.items()}
    return scale_examples(finite, np.nan_to_num(factors))


def clip_each(grads: Grads, limit: float = CLIP) -> Grads:
    """Clips every tensor of each example by itself: k tensors move by √k times the limit."""
    return {k: clip({k: g}, limit)[k] for k, g in grads.items()}


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


def dp_sgd(
    batch: Sequence[Example],
    seed: int,
    limit: float = CLIP,
    noise: float = NOISE,
    denominator: float = BATCH,
) -> Grads:
    """The sound step: clip each example, sum, noise, divide.

    Args:
        batch, seed: of the step.
        limit, noise, denominator: clip norm, noise multiplier, and the expected size of a batch.

    >>> sorted(dp_sgd(examples(), seed=0))
    ['bias', 'weight']
    """
    return release(clip(example_gradients(batch), limit), seed, noise * limit, denominator)


def local_changes(updates: Sequence[Client]) -> Grads:
    """How far three local steps at rate 0.5 move each client's weights.

    Args: updates: each client's examples. Returns: weight (clients, 4, 8), bias (clients, 4).
    """
    changes = []
    for client in updates:
        x, y = arrays(client)
        weights = START.copy()
        for _ in range(3):
            errors = logit_gradients(x, y, weights) / len(x)
            step = np.concatenate([errors.T @ x, errors.sum(0)[:, None]], axis=1)
            weights -= 0.5 * step
        changes.append(weights - START)
    rows = np.array(changes).reshape(len(updates), CLASSES, FEATURES + 1)
    return {"weight": rows[:, :, :-1], "bias": rows[:, :, -1]}


def client_step(
    updates: Sequence[Client],
    seed: int,
    limit: float = CLIP,
    noise: float = NOISE,
    denominator: float = CLIENTS,
) -> Grads:
    """The sound step of the client unit: clip each client's change, sum, noise, divide.

    Args: updates: each client's examples. seed, limit, noise, denominator: as of `dp_sgd`.
    """
    return release(clip(local_changes(updates), limit), seed, noise * limit, denominator)
