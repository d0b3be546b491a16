"""Right and wrong answers to the exercises of notebook 16."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer, Spoken


def _steps(rng, scale=None):
    """A step of somebody's, whose clip may be up to three times too loose, or ``scale`` times.

    It also depends on the batch: what an example gives alone is not what it moves among others. And
    on its seed, by more than a noise that cancels.
    """
    clip = rng.uniform(0.5, 2)
    scale = scale or rng.uniform(0.2, 3)
    width = int(rng.integers(2, 5))
    d = 2 * width + int(rng.integers(1, 4))

    def step(examples, seed):
        noise = np.random.default_rng(seed)
        rows = np.array(examples).reshape(len(examples), d)
        size = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        limit = min(scale * clip, np.median(size)) if len(rows) else 0.0
        total = (rows * np.minimum(1, limit / size)).sum(0)
        released = noise.uniform(0.5, 1.5) * total + 0.3 * noise.standard_normal(d)
        return {"weight": released[: 2 * width].reshape(2, width), "bias": released[2 * width :]}

    batch = [rng.standard_normal(d) * k for k in rng.uniform(0.1, 3, int(rng.integers(4, 8)))]
    return step, batch, int(rng.integers(1, 1000)), clip


def mean_step(examples, seed):
    """A step that divides by the size of the batch: an example moves it that is far from others."""
    noise = np.random.default_rng(seed)
    rows = np.array(examples).reshape(len(examples), 2)
    mean = rows.sum(0) / max(len(rows), 1)
    released = noise.uniform(0.5, 1.5) * mean + 0.3 * noise.standard_normal(2)
    return {"weight": released[:1], "bias": released[1:]}


DIVIDES_BY_THE_BATCH = Spoken(mean_step, "one that divides by the size of the batch")


def _far_at(place):
    """A call of three examples: the one at a place moves the step most, and is the shortest."""
    batch = [np.array([3.0, 0.0]), np.array([4.0, 0.5])]
    batch.insert(place, np.array([0.0, 1.0]))
    return DIVIDES_BY_THE_BATCH, batch, 7, 2.0


def _batches(rng):
    """More rows than are expected, or fewer; one of them short, and one of zeros in some calls."""
    b, d = int(rng.integers(3, 15)), 2 * int(rng.integers(2, 5))
    expected = int(rng.choice([n for n in range(4, 15) if n != b]))
    short, zero = rng.permutation(b)[:2]
    rows = rng.standard_normal((b, d)) * rng.uniform(0.5, 4)
    rows[short] *= 0.01
    rows[zero] *= rng.integers(2)
    return rows, rng.uniform(0.5, 2), rng.uniform(0.5, 2), expected, rng.standard_normal(d)


# A batch without examples is asked at every check, and rows of which one exceeds C.
# A clip so loose that the batch's median decides: there a removed example moves the step otherwise
# than one that is added twice, or set to zero.
LOOSE = _steps(np.random.default_rng(0), scale=100.0)
# More rows than are expected, one of them too long over both tensors, and one of zeros.
THREE_ROWS = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), 2.0, 1.5, 2, np.array([1.0, -2.0])
EMPTY = np.zeros((0, 4)), 1.5, 1.1, 16, np.array([1.0, -2.0, 0.5, 3.0])
LOUD = np.array([[3.0, 0.0, 0.0, 4.0], [0.1, 0.2, 0.0, 0.0]]), 1.5, 1.1, 16, np.ones(4)
CALLS = {
    "16.1": FunctionAnswer(
        "step, batch, seed and unit", *map(_far_at, range(3)), LOOSE, draw=_steps
    ),
    "16.3": FunctionAnswer(
        "rows, C, sigma, expected and z", EMPTY, LOUD, THREE_ROWS, draw=_batches
    ),
}


# ---- 16.1: how far one example moves a step


def sensitivity(step, batch, seed, unit):
    """How far one example moves what a step releases.

    Args:
        step: takes examples and a seed; returns name -> array.
        batch: list of examples.
        seed: the same in all calls.
        unit: the distance that counts as one, > 0.
    Returns: the largest distance, in units.
    """
    full = step(batch, seed)
    moved = []
    for i in range(len(batch)):
        without = step(batch[:i] + batch[i + 1 :], seed)
        squares = sum(((full[name] - without[name]) ** 2).sum() for name in full)
        moved.append(np.sqrt(squares))
    return max(moved) / unit


# ---- 16.3: a step that is mended


def mean_gradient(rows, C, sigma, expected, z):
    """A private mean of gradients.

    Args:
        rows: one example's gradient in each row, (n, d); n may be 0.
        C: clip norm of a row, > 0.
        sigma: noise multiplier, >= 0.
        expected: expected number of rows, > 0.
        z: standard normal numbers, (d,).
    Returns: (d,).
    """
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    total = (rows * np.minimum(1, C / np.maximum(norms, 1e-12))).sum(0)
    return (total + sigma * C * z) / expected
