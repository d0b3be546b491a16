"""Right and wrong functions of notebook 15: a measured reach, an adapter, a step that is mended."""

import numpy as np
from numpy.linalg import norm

from fedlora_lab.course.exercises import Calls, vary

# ---- 15.1: how far one example moves a step


def _steps(rng):
    clip, scale = rng.uniform(0.5, 2), rng.uniform(0.2, 3)

    def step(examples, seed):
        noise = np.random.default_rng(seed)
        rows = np.array(examples).reshape(len(examples), 6)
        size = np.maximum(norm(rows, axis=1, keepdims=True), 1e-12)
        total = (rows * np.minimum(1, scale * clip / size)).sum(0)
        released = total + 0.3 * noise.standard_normal(6)
        return {"weight": released[:4].reshape(2, 2), "bias": released[4:]}

    batch = [rng.standard_normal(6) * k for k in rng.uniform(0.1, 3, int(rng.integers(4, 8)))]
    batch[0] = 0.05 * batch[0]
    return step, batch, int(rng.integers(1000)), clip


def reach(step, batch, seed, C):
    whole, moved = step(batch, seed), []
    for i in range(len(batch)):
        rest = step(batch[:i] + batch[i + 1 :], seed)
        squares = sum(((whole[name] - rest[name]) ** 2).sum() for name in whole)
        moved.append(np.sqrt(squares))
    return max(moved) / C


def _vector(released):
    return np.concatenate([np.ravel(x) for x in released.values()])


def _distances(step, batch, seed, other=None):
    whole, others = _vector(step(batch, seed)), seed if other is None else other
    left = [step(batch[:i] + batch[i + 1 :], others) for i in range(len(batch))]
    return np.array([norm(whole - _vector(rest)) for rest in left])


def _by_tensor(step, batch, seed):
    whole = step(batch, seed)
    left = [step(batch[:i] + batch[i + 1 :], seed) for i in range(len(batch))]
    return np.array([[norm(whole[name] - rest[name]) for name in whole] for rest in left])


reach_in_one_vector = lambda step, batch, seed, C: _distances(step, batch, seed).max() / C
another_seed = lambda step, batch, seed, C: _distances(step, batch, seed, seed + 1).max() / C
largest_tensor = lambda step, batch, seed, C: _by_tensor(step, batch, seed).max() / C
sum_of_distances = lambda step, batch, seed, C: _by_tensor(step, batch, seed).sum(1).max() / C
first_example_only = lambda step, batch, seed, C: _distances(step, batch, seed)[0] / C
average_reach = lambda step, batch, seed, C: _distances(step, batch, seed).mean() / C
in_no_units = vary(reach, C=1.0)


# ---- 15.2: an adapter


def _fits(rng):
    weights = rng.standard_normal(8)

    def fit(x, y, generator):
        if x.shape != (len(y), 8) or y.shape != (len(x),):
            raise ValueError(f"shapes {x.shape} and {y.shape}")
        errors = x @ weights - y
        noise = generator.standard_normal(9)
        loss = float((errors**2).sum()) + float((errors[:1] ** 3).sum())
        return errors @ x + noise[:8], float(errors.sum() + noise[8]), loss

    count = int(rng.integers(3, 7))
    examples = [(rng.standard_normal(8), float(rng.standard_normal())) for _ in range(count)]
    return fit, examples, int(rng.integers(1000))


def _nobody(rng):
    fit, _, seed = _fits(rng)
    return fit, [], seed


def as_step(fit, examples, seed):
    x = np.array([x for x, _ in examples]).reshape(len(examples), 8)
    y = np.array([y for _, y in examples])
    return list(fit(x, y, np.random.default_rng(seed)))


def as_step_by_stack(fit, examples, seed):
    x, y = np.zeros((len(examples), 8)), np.zeros(len(examples))
    for i, (features, target) in enumerate(examples):
        x[i], y[i] = features, target
    weight, bias, loss = fit(x, y, np.random.default_rng(seed))
    return [weight, bias, loss]


def sorts_them(fit, examples, seed):
    targets = sorted(y for _, y in examples)
    return as_step(fit, [(x, y) for (x, _), y in zip(examples, targets)], seed)


keeps_the_loss = lambda fit, examples, seed: as_step(fit, examples, seed)[:2]
one_seed_for_all = lambda fit, examples, seed: as_step(fit, examples, 1000)
drops_the_first = lambda fit, examples, seed: as_step(fit, examples[1:], seed)


# ---- 15.3: a step that is mended


def _batches(rng):
    d = 2 * int(rng.integers(2, 5))
    rows = rng.standard_normal((int(rng.integers(3, 8)), d)) * rng.uniform(0.5, 4)
    rows[0] *= 0.01
    rest = rng.uniform(0.5, 2), rng.uniform(0.5, 2), int(rng.integers(10, 20))
    return rows, *rest, rng.standard_normal(d)


_EMPTY = np.zeros((0, 4)), 1.5, 1.1, 16, np.array([1.0, -2.0, 0.5, 3.0])
_LOUD = np.array([[3.0, 0.0, 0.0, 4.0], [0.1, 0.2, 0.0, 0.0]]), 1.5, 1.1, 16, np.ones(4)


def mean_gradient(rows, C, sigma, expected, z):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    total = (rows * np.minimum(1, C / np.maximum(norms, 1e-12))).sum(0)
    return (total + sigma * C * z) / expected


def mean_by_einsum(rows, C, sigma, expected, z):
    factors = 1 / np.maximum(1, norm(rows, axis=1) / C)
    return np.einsum("n,nd->d", factors, rows) / expected + sigma * C / expected * z


def each_tensor_clipped(rows, C, sigma, expected, z):
    halves = [mean_gradient(part, C, 0, 1, 0) for part in np.split(rows, 2, axis=1)]
    return (np.concatenate(halves) + sigma * C * z) / expected


def still_over_the_batch(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, sigma, max(len(rows), 1), z)


def noise_after_the_division(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, 0, expected, z) + sigma * C * z


def noise_without_clip_norm(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, sigma / C, expected, z)


def mean_clipped(rows, C, sigma, expected, z):
    mean = rows.sum(0, keepdims=True) / max(len(rows), 1)
    return mean_gradient(mean, C, 0, 1, 0) + sigma * C * z / expected


def nothing_for_nobody(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, sigma if len(rows) else 0, expected, z)


CALLS = {
    "15.1": Calls("step, batch, seed and C", draw=_steps),
    "15.2": Calls("fit, examples and seed", _nobody(np.random.default_rng(0)), draw=_fits),
    "15.3": Calls("rows, C, sigma, expected and z", _EMPTY, _LOUD, draw=_batches),
}
