"""Right and wrong answers to the exercises of notebook 16."""

from functools import partial

import numpy as np
from numpy.linalg import norm

from fedlora_course.exercises import Calls, Spoken, vary


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


def _fits(rng, count=None):
    """Training code that wants arrays and a generator, and uploads a loss as well."""
    count = int(rng.integers(3, 7)) if count is None else count
    weights = rng.standard_normal(8)

    def fit(x, y, generator):
        if x.shape != (len(y), 8) or y.shape != (len(x),):
            raise ValueError(f"shapes {x.shape} and {y.shape}")
        errors = x @ weights - y
        noise = generator.standard_normal(9)
        loss = float((errors**2).sum()) + float((errors[:1] ** 3).sum())
        return errors @ x + noise[:8], float(errors.sum() + noise[8]), loss

    examples = [(rng.standard_normal(8), float(rng.standard_normal())) for _ in range(count)]
    return fit, examples, int(rng.integers(1000))


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
NOBODY = _fits(np.random.default_rng(0), count=0)
ONE_EXAMPLE = _fits(np.random.default_rng(0), count=1)
# More rows than are expected, one of them too long over both tensors, and one of zeros.
THREE_ROWS = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]), 2.0, 1.5, 2, np.array([1.0, -2.0])
EMPTY = np.zeros((0, 4)), 1.5, 1.1, 16, np.array([1.0, -2.0, 0.5, 3.0])
LOUD = np.array([[3.0, 0.0, 0.0, 4.0], [0.1, 0.2, 0.0, 0.0]]), 1.5, 1.1, 16, np.ones(4)
CALLS = {
    "16.1": Calls("step, batch, seed and C", *map(_far_at, range(3)), LOOSE, draw=_steps),
    "16.3": Calls("rows, C, sigma, expected and z", EMPTY, LOUD, THREE_ROWS, draw=_batches),
    "16.5": Calls("fit, examples and seed", NOBODY, ONE_EXAMPLE, draw=_fits),
}


# ---- 16.1: how far one example moves a step


def sensitivity(step, batch, seed, C):
    full = step(batch, seed)
    moved = []
    for i in range(len(batch)):
        without = step(batch[:i] + batch[i + 1 :], seed)
        squares = sum(((full[name] - without[name]) ** 2).sum() for name in full)
        moved.append(np.sqrt(squares))
    return max(moved) / C


# A distance is the root of the squares' sum.
def without_the_root(step, batch, seed, C):
    return (sensitivity(step, batch, seed, C) * C) ** 2 / C


# Two noises differ, and hide what the example did.
def another_seed(step, batch, seed, C):
    def unpaired(examples, seed):
        return step(examples, seed + (len(examples) < len(batch)))

    return sensitivity(unpaired, batch, seed, C)


def _own_seeds(step, batch, seed, C, first):
    """The calls without an example have seeds that are counted on."""
    seeds = iter([seed, *range(seed + first, seed + first + len(batch))])
    return sensitivity(lambda examples, _: step(examples, next(seeds)), batch, seed, C)


# Again each distance holds two noises.
seeds_counted = partial(_own_seeds, first=0)
seeds_counted_from_one = partial(_own_seeds, first=1)


# What an example adds to nobody is not what it moves among others.
def each_example_alone(step, batch, seed, C):
    nobody = step([], seed)
    moved = []
    for example in batch:
        alone = step([example], seed)
        moved.append(np.sqrt(sum(((alone[name] - nobody[name]) ** 2).sum() for name in nobody)))
    return max(moved) / C


# An example moves all tensors at once.
def largest_tensor(step, batch, seed, C):
    def only(name):
        return lambda examples, seed: {name: step(examples, seed)[name]}

    return max(sensitivity(only(name), batch, seed, C) for name in step([], seed))


def _farthest(step, batch, seed, C, others, total=norm):
    """`sensitivity` against ``others(i)``, with another total of the arrays' distances."""
    full = step(batch, seed)
    moved = []
    for i in range(len(batch)):
        other = step(others(i), seed)
        moved.append(total([norm(full[name] - other[name]) for name in full]))
    return max(moved) / C


# Squares of lengths add up, lengths do not.
def lengths_added(step, batch, seed, C):
    return _farthest(step, batch, seed, C, lambda i: batch[:i] + batch[i + 1 :], sum)


# A clip bounds the root of the squares' sum, and not the sum of the absolute values.
def absolute_values_added(step, batch, seed, C):
    def flat(examples, seed):
        outputs = step(examples, seed)
        return {"all": np.concatenate([np.ravel(outputs[name]) for name in sorted(outputs)])}

    full = flat(batch, seed)["all"]
    others = [flat(batch[:i] + batch[i + 1 :], seed)["all"] for i in range(len(batch))]
    return max(np.abs(full - other).sum() for other in others) / C


# Neighbours differ by one example, and not by two.
def replaced_by_another(step, batch, seed, C):
    def others(i):
        return [*batch[:i], batch[i - 1], *batch[i + 1 :]]

    return _farthest(step, batch, seed, C, others)


# The example that moves most may be another.
def first_example_only(step, batch, seed, C):
    full = step(batch, seed)
    without = step(batch[1:], seed)
    return np.sqrt(sum(((full[name] - without[name]) ** 2).sum() for name in full)) / C


# What an example moves that comes twice is not what it moves when it goes.
def doubled(step, batch, seed, C):
    return _farthest(step, batch, seed, C, lambda i: [*batch, batch[i]])


# An example of zeros is still counted.
def set_to_zero(step, batch, seed, C):
    return _farthest(step, batch, seed, C, lambda i: [*batch[:i], 0 * batch[i], *batch[i + 1 :]])


# Neighbours differ by one example, and here by more and more.
def removed_for_good(step, batch, seed, C):
    return _farthest(step, batch, seed, C, lambda i: batch[i + 1 :])


# The longest example need not move most.
def longest_only(step, batch, seed, C):
    i = int(np.argmax([norm(example) for example in batch]))
    gaps = step(batch, seed), step(batch[:i] + batch[i + 1 :], seed)
    return norm([norm(gaps[0][name] - gaps[1][name]) for name in gaps[0]]) / C


# A step may depend on its seed in more than what cancels.
def seed_of_its_own(step, batch, seed, C):
    return sensitivity(step, batch, 0, C)


# ---- 16.3: a step that is mended


def mean_gradient(rows, C, sigma, expected, z):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    total = (rows * np.minimum(1, C / np.maximum(norms, 1e-12))).sum(0)
    return (total + sigma * C * z) / expected


# How many were drawn is private.
def still_over_the_batch(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, sigma, max(len(rows), 1), z)


# The same without a case for the empty batch.
def over_the_rows(rows, C, sigma, expected, z):
    return (_clipped(rows, C).sum(0) + sigma * C * z) / len(rows)


# The noise has the right size, and the signal still tells how many were drawn.
def signal_over_the_rows(rows, C, sigma, expected, z):
    return _clipped(rows, C).sum(0) / max(len(rows), 1) + sigma * C * z / expected


# The same without a case for the empty batch.
def signal_over_no_rows(rows, C, sigma, expected, z):
    return _clipped(rows, C).sum(0) / len(rows) + sigma * C * z / expected


# What is short is lengthened, and a clip lengthens nothing.
normalises = vary(mean_gradient, rows=lambda rows: 1e9 * rows)


# That nobody was drawn is private, too.
def nothing_of_nobody(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, sigma, expected, z) if len(rows) else 0 * z


# b times the noise that the clip asks for.
def noise_after_the_division(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, 0, expected, z) + sigma * C * z


# One example may turn the whole mean.
def mean_clipped(rows, C, sigma, expected, z):
    mean = rows.sum(0, keepdims=True) / max(len(rows), 1)
    return mean_gradient(mean, C, 0, 1, 0) + sigma * C * z / expected


def _clipped(rows, C):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1, C / np.maximum(norms, 1e-12))


# How many were drawn is still to be seen where more came than are expected.
def at_least_expected(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, sigma, max(len(rows), expected), z)


# Two tensors of length C are a row of length √2 C.
def clips_each_tensor(rows, C, sigma, expected, z):
    halves = np.split(rows, 2, axis=1)
    total = np.concatenate([_clipped(half, C) for half in halves], axis=1).sum(0)
    return (total + sigma * C * z) / expected


# Keeps the promise, and adds more noise than a row of length C needs.
def root_two_of_noise(rows, C, sigma, expected, z):
    return clips_each_tensor(rows, C, 2**0.5 * sigma, expected, z)


# A row that is clipped as one needs no more than sigma C.
def noise_for_two_tensors(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, 2**0.5 * sigma, expected, z)


# One example may be all of a sum.
def clips_the_sum(rows, C, sigma, expected, z):
    return mean_gradient(rows.sum(0, keepdims=True), C, sigma, expected, z)


# A clip by the square is too hard above 1 and too loose below.
def by_the_square(rows, C, sigma, expected, z):
    squares = (rows**2).sum(1, keepdims=True)
    total = (rows * np.minimum(1, C / np.maximum(squares, 1e-12))).sum(0)
    return (total + sigma * C * z) / expected


# The noise tells how many were drawn.
def noise_over_the_batch(rows, C, sigma, expected, z):
    return mean_gradient(rows, C, 0, expected, z) + sigma * C * z / max(len(rows), 1)


# Keeps the promise, and shortens rows that are within C.
def half_of_the_square_each(rows, C, sigma, expected, z):
    halves = np.split(rows, 2, axis=1)
    total = np.concatenate([_clipped(half, C / 2**0.5) for half in halves], axis=1).sum(0)
    return (total + sigma * C * z) / expected


# One example may move the sum by anything.
def not_clipped(rows, C, sigma, expected, z):
    return (rows.sum(0) + sigma * C * z) / expected


# Numbers of at most C may be a row of √d C.
def clips_each_number(rows, C, sigma, expected, z):
    return (np.clip(rows, -C, C).sum(0) + sigma * C * z) / expected


# A row of zeros has no direction.
def nothing_over_nothing(rows, C, sigma, expected, z):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return ((rows / norms * np.minimum(norms, C)).sum(0) + sigma * C * z) / expected


# ---- 16.5: an adapter


def as_step(fit, examples, seed):
    x = np.array([x for x, _ in examples]).reshape(len(examples), 8)
    y = np.array([y for _, y in examples])
    return list(fit(x, y, np.random.default_rng(seed)))


# Whatever is uploaded must be reviewed, the loss too.
keeps_the_loss = vary(as_step, then=lambda parts: parts[:2])
# Every call repeats the same noise.
one_seed_for_all = vary(as_step, seed=1000)
# Another batch than was asked for.
drops_the_first = vary(as_step, examples=lambda examples: examples[1:])
