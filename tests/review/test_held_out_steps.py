"""Steps that were written before the review was run on them: the wrong are found, the right not.

A softmax regression of NumPy, and a small network of PyTorch, whose gradients of single examples
are clipped, summed and noised, each time with one thing done otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dp_review

FEATURES = 6
CLASSES = 3
NUMBERS = FEATURES * CLASSES
SIGMA = 1.1
MEAN = 10.0
_RNG = np.random.default_rng(11)
WEIGHT = 0.3 * _RNG.normal(size=(FEATURES, CLASSES))
DATA = [(_RNG.normal(size=FEATURES), int(_RNG.integers(CLASSES))) for _ in range(24)]
USERS = [[(_RNG.normal(size=FEATURES), i % CLASSES) for _ in range(1 + i % 4)] for i in range(16)]
TOKENS = [[int(t) for t in _RNG.integers(0, 12, size=2 + i % 5)] for i in range(20)]
EMBEDDING = _RNG.normal(size=(12, FEATURES))
CLAIMS = dp_review.Claims(
    clip_norm=1.0, noise_multiplier=SIGMA, denominator=MEAN, steps=1, delta=1e-5
)
SAMPLED = replace(CLAIMS, sampling="poisson", sample_rate=0.01, dataset_size=1000)
REPLACED = replace(CLAIMS, relation="replace", denominator=12.0)


# ---- parts


def arrays(examples):
    x = np.array([x for x, _ in examples], float).reshape(-1, FEATURES)
    return x, np.array([y for _, y in examples], int)


def probabilities(x):
    with np.errstate(all="ignore"):
        logits = x @ WEIGHT
        p = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
        return p / p.sum(1, keepdims=True)


def gradients(x, y, targets=None):
    """Gradients of single examples, (examples, numbers); of what is not finite zero."""
    targets = np.eye(CLASSES)[y] if targets is None else targets
    with np.errstate(all="ignore"):
        rows = (x[:, :, None] * (probabilities(x) - targets)[:, None, :]).reshape(-1, NUMBERS)
    return only_finite(rows)


def only_finite(rows):
    with np.errstate(all="ignore"):
        fine = np.isfinite((rows**2).sum(1))
    return np.where(fine[:, None], rows, 0.0)


def clip(rows, limit=1.0):
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows * np.minimum(1.0, limit / np.maximum(norms, 1e-12))


def clipped(examples):
    return clip(gradients(*arrays(examples)))


def losses(examples):
    x, y = arrays(examples)
    return -np.log(np.maximum(np.nan_to_num(probabilities(x))[np.arange(len(y)), y], 1e-9))


def noise(seed, size=NUMBERS):
    return SIGMA * np.random.default_rng(seed).normal(size=size)


def released(sums, seed, denominator=MEAN):
    return {"weight": (sums + noise(seed)) / denominator}


def summing(rows_of):
    """The step that sums these rows, of examples."""
    return lambda examples, seed: released(rows_of(examples).sum(0), seed)


def of_sum(change):
    """The step whose sum of clipped rows is changed before the noise."""
    return lambda examples, seed: released(change(clipped(examples).sum(0)), seed)


def with_noise(draw):
    """The step whose noise is drawn from examples, their sum and a seed."""

    def step(examples, seed):
        sums = clipped(examples).sum(0)
        return {"weight": (sums + draw(examples, sums, seed)) / MEAN}

    return step


def beside(extra):
    """The sound step with more outputs: a function of examples, what leaves and the seed."""

    def step(examples, seed):
        sent = sound(examples, seed)
        return sent | extra(examples, sent["weight"], seed)

    return step


sound = summing(clipped)

# ---- PyTorch

torch.manual_seed(5)
NETWORK = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
NORMED = nn.Sequential(nn.Linear(FEATURES, 5), nn.BatchNorm1d(5), nn.Linear(5, CLASSES)).double()


def batch_of(examples):
    x, y = arrays(examples)
    return torch.from_numpy(np.nan_to_num(x, posinf=0.0, neginf=0.0)), torch.from_numpy(y)


def per_example(model, examples):
    """Name -> gradients of single examples, from a loss that is computed on the whole batch."""
    x, y = batch_of(examples)
    named = dict(model.named_parameters())
    if not len(y):
        return {name: torch.zeros(0, *p.shape, dtype=p.dtype) for name, p in named.items()}
    each = nn.functional.cross_entropy(model(x), y, reduction="none")
    grads = [torch.autograd.grad(loss, [*named.values()], retain_graph=True) for loss in each]
    return {name: torch.stack([g[i] for g in grads]) for i, name in enumerate(named)}


def torch_norms(grads):
    flat = [g.reshape(len(g), -1) for g in grads.values()]
    return torch.cat(flat, 1).norm(dim=1)


def torch_release(grads, factors, seed):
    generator = torch.Generator().manual_seed(seed)
    sent = {}
    for name, g in grads.items():
        scale = factors[name] if isinstance(factors, dict) else factors
        sums = torch.einsum("i,i...->...", scale, g)
        drawn = torch.randn(sums.shape, generator=generator, dtype=sums.dtype)
        sent[name] = (sums + SIGMA * drawn) / MEAN
    return sent


def factor(norms, limit=1.0):
    return (limit / norms.clamp(min=1e-12)).clamp(max=1.0)


def torch_sound(examples, seed):
    grads = per_example(NETWORK, examples)
    return torch_release(grads, factor(torch_norms(grads)), seed)


# ---- wrong: how examples are clipped


def by_largest_coordinate(rows):
    return rows * np.minimum(1.0, 1 / np.maximum(np.abs(rows).max(1, initial=0), 1e-12))[:, None]


def norm_without_its_root(examples, seed):  # of 0.1 the square is 0.01
    rows = gradients(*arrays(examples))
    factors = np.minimum(1.0, 0.1 / np.maximum((rows**2).sum(1), 1e-12))
    return {"weight": ((factors[:, None] * rows).sum(0) + 0.1 * noise(seed)) / MEAN}


def factors_of_the_next_row(examples):
    rows = gradients(*arrays(examples))
    factors = 1 / np.maximum(1.0, np.linalg.norm(rows, axis=1))
    return rows * np.roll(factors, 1)[:, None]


def each_augmentation_clipped(examples):
    turned = [(x[::-1], y) for x, y in examples]
    return np.concatenate([clipped(examples), clipped(turned)])


def rows_of_a_user_clipped(users):
    return clipped([row for user in users for row in user])


def bias_not_in_the_norm(examples, seed):
    grads = per_example(NETWORK, examples)
    weights = {name: g for name, g in grads.items() if "bias" not in name}
    return torch_release(grads, factor(torch_norms(weights)), seed)


def each_layer_at_c(examples, seed):
    grads = per_example(NETWORK, examples)
    factors = {name: factor(torch_norms({name: g})) for name, g in grads.items()}
    return torch_release(grads, factors, seed)


def ghost_norm(examples, bias):
    """Norms of single examples' gradients, from inputs and derivatives by outputs of each layer."""
    x, y = batch_of(examples)
    hidden = NETWORK[1](NETWORK[0](x))
    p = torch.softmax(NETWORK[2](hidden), 1) - nn.functional.one_hot(y, CLASSES)
    weight: Any = NETWORK[2].weight
    before = (p @ weight) * (1 - hidden**2)
    one = ((x**2).sum(1) + bias) * (before**2).sum(1)
    return (one + ((hidden**2).sum(1) + bias) * (p**2).sum(1)).sqrt().detach()


def ghost(bias):
    def step(examples, seed):
        grads = per_example(NETWORK, examples)
        return torch_release(grads, factor(ghost_norm(examples, bias)), seed)

    return step


def batch_norm_in_training(examples, seed):
    if len(examples) < 2:
        grads = per_example(NORMED, [])
    else:
        grads = per_example(NORMED, examples)
    return torch_release(grads, factor(torch_norms(grads)), seed)


def half_precision_norm(examples, seed):  # squares below 6e-8 are zero
    rows = gradients(*arrays(examples))
    with np.errstate(all="ignore"):
        squares = np.square(rows.astype(np.float16)).sum(1, dtype=np.float32)
    factors = np.minimum(1.0, 1e-4 / np.maximum(np.sqrt(squares), 1e-12))
    return {"weight": ((factors[:, None] * rows).sum(0) + 1e-4 * noise(seed)) / MEAN}


def rounded_up_after_the_clip(examples):
    rows = clipped(examples)
    return np.sign(rows) * np.ceil(np.abs(rows) / 0.25) * 0.25


def weighted_by_a_field(examples):
    weights = np.array([1.0 + (abs(x[0]) > 1.5) for x, _ in examples])
    return weights[:, None] * clipped(examples) if len(examples) else clipped(examples)


# ---- wrong: what the batch decides


def quantile_as_limit(examples, seed):
    rows = gradients(*arrays(examples))
    limit = np.quantile(np.linalg.norm(rows, axis=1), 0.7) if len(rows) else 1.0
    limit = min(1.0, limit)
    return {"weight": (clip(rows, limit).sum(0) + limit * noise(seed)) / MEAN}


def scaled_to_length(sums):
    return sums / max(np.linalg.norm(sums), 1e-12)


def trimmed(examples):
    rows = np.sort(clipped(examples), axis=0)
    cut = len(rows) // 5
    return rows[cut : len(rows) - cut]


def coordinate_median(examples, seed):
    rows = clipped(examples)
    return released(len(rows) * np.median(rows, axis=0) if len(rows) else np.zeros(NUMBERS), seed)


def quantised_by_the_largest(examples):
    rows = clipped(examples)
    step = np.abs(rows).max(initial=0) / 2
    return np.round(rows / step) * step if step else rows


def balanced_after_the_clip(examples):
    _, y = arrays(examples)
    counts = np.bincount(y, minlength=CLASSES)
    return clipped(examples) * (len(y) / (CLASSES * np.maximum(counts, 1)))[y][:, None]


def hardest_half(examples):
    order = np.argsort(-losses(examples), kind="stable")
    return clipped(examples)[order[: (len(order) + 1) // 2]]


def mixed_with_the_next(examples):
    x, y = arrays(examples)
    targets = np.eye(CLASSES)[y]
    x, targets = (x + np.roll(x, 1, 0)) / 2, (targets + np.roll(targets, 1, 0)) / 2
    return clip(gradients(x, y, targets))


def smoothed_by_the_batch(examples):
    x, y = arrays(examples)
    share = np.bincount(y, minlength=CLASSES) / max(1, len(y))
    return clip(gradients(x, y, 0.5 * np.eye(CLASSES)[y] + 0.5 * share))


def against_the_batch(examples):
    """A contrastive loss: each example against all others of the batch."""
    x, _ = arrays(examples)
    z = only_finite(np.clip(x, -1e3, 1e3))
    shares = np.exp(np.clip(z @ z.T, -50, 50))
    shares = shares / np.maximum(shares.sum(1, keepdims=True), 1e-12)
    return clip(np.tile(shares @ z - z, (1, CLASSES)))


def spikes_dropped(sums):
    return sums if np.linalg.norm(sums) < 5 else 0 * sums


def padded_by_repetition(examples):
    missing = -len(examples) % 4
    return clipped([*examples, *[examples[0]] * missing] if examples else [])


def microbatches_of_their_own_size(examples):
    parts = [clipped(examples[i : i + 4]) for i in range(0, len(examples), 4)]
    means = [4 * part.mean(0) for part in parts]
    return np.array(means).reshape(-1, NUMBERS)


def long_batches_cut(examples):
    return clipped(examples[:12])


# ---- wrong: the noise


def noise_before_the_clip(examples, seed):
    rows = gradients(*arrays(examples))
    rows = rows + noise(seed, rows.shape)
    return {"weight": clip(rows).sum(0) / MEAN}


def from_the_batch(examples, sums, seed):
    return noise(int(1e6 * abs(np.nan_to_num(sums).sum())) % 2**32)


def of_each_example(examples, sums, seed):
    return noise(seed, (len(examples), NUMBERS)).sum(0) / MEAN**0.5


def of_each_microbatch(examples, sums, seed):
    pieces = -(-len(examples) // 4)
    return noise(seed, (pieces, NUMBERS)).sum(0) / max(1, pieces) ** 0.5


def sized_by_the_rows(examples, sums, seed):
    size = np.sqrt((clipped(examples) ** 2).mean(0)) if len(examples) else np.ones(NUMBERS)
    return noise(seed) * size / max(1e-12, np.sqrt((size**2).mean()))


def better_of_two(examples, sums, seed):
    one, other = noise(seed, (2, NUMBERS))
    return one if one @ sums <= other @ sums else other


def turned_against_the_sum(examples, sums, seed):
    drawn = noise(seed)
    return -drawn if drawn @ sums > 0 else drawn


def only_in_their_span(examples, sums, seed):
    rows = clipped(examples)
    if not len(rows):
        return noise(seed)
    _, s, v = np.linalg.svd(rows, full_matrices=False)
    v = v[s > 1e-9]
    return v.T @ (v @ noise(seed))


def on_the_largest(examples, sums, seed):
    return noise(seed) * (np.abs(sums) >= np.median(np.abs(sums)))


def of_rank_one(examples, sums, seed):
    rng = np.random.default_rng(seed)
    return SIGMA * np.outer(rng.normal(size=FEATURES), rng.normal(size=CLASSES)).ravel()


def uniform(examples, sums, seed):
    return SIGMA * 3**0.5 * np.random.default_rng(seed).uniform(-1, 1, NUMBERS)


def none_in_one_of_ten(examples, sums, seed):
    return noise(seed) * (np.random.default_rng(seed + 10**9).random() > 0.1)


def squared_limit(examples, seed):  # sigma C² in place of sigma C, where C = 0.1
    rows = clip(gradients(*arrays(examples)), 0.1)
    return {"weight": (rows.sum(0) + 0.01 * noise(seed)) / MEAN}


def unclipped_in_one_of_five(examples, seed):
    rows = gradients(*arrays(examples))
    kept = rows if np.random.default_rng(seed + 10**9).random() < 0.2 else clip(rows)
    return released(kept.sum(0), seed)


# ---- wrong: what leaves beside


def running_mean(examples, sent, seed):
    x, _ = arrays(examples)
    return {"running mean": 0.1 * np.nan_to_num(x).mean(0) if len(x) else np.zeros(FEATURES)}


def clean_momentum(examples, sent, seed):
    return {"momentum": 0.9 * 0.2 + 0.1 * clipped(examples).sum(0) / MEAN}


def count_under_small_noise(examples, sent, seed):
    clips = (np.linalg.norm(gradients(*arrays(examples)), axis=1) > 1).sum()
    return {"clips": (clips + 0.1 * np.random.default_rng(seed + 10**9).normal()) / MEAN}


def tokens_divide(examples, seed):
    rows = np.array([np.tile(EMBEDDING[e].mean(0), CLASSES) for e in examples])
    return released(
        clip(rows.reshape(-1, NUMBERS)).sum(0), seed, max(1, sum(map(len, examples))) / 3
    )


def length_of_the_longest(examples, seed):
    rows = np.array([np.tile(EMBEDDING[e].mean(0), CLASSES) for e in examples])
    longest = max(map(len, examples), default=0)
    return released(clip(rows.reshape(-1, NUMBERS)).sum(0), seed) | {"padded to": float(longest)}


@dataclass
class Case:
    """A step, the checks one of which must name it, its claims and data."""

    step: Callable
    checks: str = ""
    claims: dp_review.Claims = CLAIMS
    data: list = field(default_factory=lambda: DATA)


SMALL = replace(CLAIMS, clip_norm=0.1)
TINY = replace(CLAIMS, clip_norm=1e-4)
MOVES = "sensitivity"
FOLLOWS = "noise and data"
WRONG = {
    "clipped by the largest coordinate": Case(
        summing(lambda e: by_largest_coordinate(gradients(*arrays(e)))), MOVES
    ),
    "norm without its root": Case(norm_without_its_root, MOVES, SMALL),
    "factors of the next row": Case(summing(factors_of_the_next_row), MOVES),
    "each augmentation clipped": Case(summing(each_augmentation_clipped), MOVES),
    "rows of a user clipped": Case(summing(rows_of_a_user_clipped), MOVES, data=USERS),
    "bias not in the norm": Case(bias_not_in_the_norm, MOVES),
    "each layer at C": Case(each_layer_at_c, MOVES),
    "ghost norm without the bias": Case(ghost(0.0), MOVES),
    "batch norm in training": Case(batch_norm_in_training, MOVES),
    "norm in half precision": Case(half_precision_norm, MOVES, TINY),
    "rounded up after the clip": Case(summing(rounded_up_after_the_clip), MOVES),
    "weighted by a field": Case(summing(weighted_by_a_field), MOVES),
    "a quantile as limit": Case(quantile_as_limit, f"{MOVES}, {FOLLOWS}"),
    "sum scaled to length C": Case(of_sum(scaled_to_length), MOVES),
    "median of coordinates": Case(coordinate_median, MOVES),
    "quantised by the largest": Case(summing(quantised_by_the_largest), MOVES),
    "balanced after the clip": Case(summing(balanced_after_the_clip), MOVES),
    "hardest half": Case(summing(hardest_half), MOVES),
    "mixed with the next": Case(summing(mixed_with_the_next), MOVES),
    "smoothed by the batch": Case(summing(smoothed_by_the_batch), MOVES),
    "against the batch": Case(summing(against_the_batch), MOVES),
    "spikes dropped": Case(of_sum(spikes_dropped), MOVES),
    "padded by repetition": Case(summing(padded_by_repetition), MOVES),
    "microbatches of their own size": Case(summing(microbatches_of_their_own_size), MOVES),
    "long batches cut": Case(summing(long_batches_cut), MOVES),
    "noise before the clip": Case(noise_before_the_clip, f"noise size, {FOLLOWS}"),
    "noise from the batch": Case(with_noise(from_the_batch), "noise size"),
    "noise of each example": Case(with_noise(of_each_example), FOLLOWS),
    "noise of each microbatch": Case(with_noise(of_each_microbatch), "empty batch", SAMPLED),
    "noise sized by the rows": Case(with_noise(sized_by_the_rows), FOLLOWS),
    "the better of two draws": Case(with_noise(better_of_two), FOLLOWS),
    "noise turned against the sum": Case(with_noise(turned_against_the_sum), FOLLOWS),
    "noise in the span of the rows": Case(with_noise(only_in_their_span), FOLLOWS),
    "noise on the largest": Case(with_noise(on_the_largest), FOLLOWS),
    "noise of rank one": Case(with_noise(of_rank_one), "noise law, noise independence"),
    "uniform noise": Case(with_noise(uniform), "noise law"),
    "no noise in one of ten": Case(with_noise(none_in_one_of_ten), "noise law"),
    "the squared limit": Case(squared_limit, "noise size", SMALL),
    "unclipped in one of five": Case(unclipped_in_one_of_five, f"{MOVES}, {FOLLOWS}"),
    "running mean": Case(beside(running_mean), "un-noised output"),
    "clean momentum": Case(beside(clean_momentum), "un-noised output"),
    "a count under small noise": Case(beside(count_under_small_noise), f"{MOVES}, noise size"),
    "divided by the tokens": Case(tokens_divide, f"{MOVES}, {FOLLOWS}", data=TOKENS),
    "padded to the longest": Case(length_of_the_longest, "un-noised output", data=TOKENS),
}
TRIMMED = Case(summing(trimmed))

# ---- right


def sum_of_sizes_at_most_c(examples):
    rows = gradients(*arrays(examples))
    return rows / np.maximum(1.0, np.abs(rows).sum(1, keepdims=True))


def normalised(examples):
    rows = gradients(*arrays(examples))
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 0.01)


def squashed(examples):
    rows = gradients(*arrays(examples))
    norms = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows * np.tanh(norms) / norms


def each_layer_at_its_share(examples, seed):
    grads = per_example(NETWORK, examples)
    limit = len(grads) ** -0.5
    factors = {name: factor(torch_norms({name: g}), limit) for name, g in grads.items()}
    return torch_release(grads, factors, seed)


def augmentations_averaged(examples):
    turned = [(x[::-1], y) for x, y in examples]
    return clip((gradients(*arrays(examples)) + gradients(*arrays(turned))) / 2)


def users_clipped(users):
    sums = [gradients(*arrays(user)).sum(0) for user in users]
    return clip(np.array(sums).reshape(-1, NUMBERS))


def decayed(examples):
    return clip(gradients(*arrays(examples)) + 0.1 * WEIGHT.ravel())


def sixteen_pieces(examples, sums, seed):
    return noise(seed, (16, NUMBERS)).sum(0) / 4


def of_itself(examples, sent, seed):
    return {
        "norm": np.linalg.norm(sent),
        "largest": np.argmax(np.abs(sent)),
        "highest": sent.max(),
        "clipped to": np.clip(sent, -0.1, 0.1),
    }


def adam_step(examples, sent, seed):
    first = 0.9 * np.linspace(-0.1, 0.1, NUMBERS) + 0.1 * sent
    second = 0.999 * np.linspace(0.01, 0.02, NUMBERS) + 0.001 * sent**2
    return {"step": first / (np.sqrt(second) + 1e-8)}


def bfloat(examples, seed):
    rows = torch.from_numpy(clipped(examples) / 1.01).to(torch.bfloat16).double().numpy()
    return released(rows.sum(0), seed)


def padded_with_zeros(examples):
    rows = clipped(examples)
    return np.concatenate([rows, np.zeros((-len(rows) % 8, NUMBERS))])


def long_gradients_dropped(examples):
    rows = gradients(*arrays(examples))
    return clip(rows) * (np.linalg.norm(rows, axis=1, keepdims=True) < 5)


PROJECTION = np.linalg.qr(np.random.default_rng(8).normal(size=(NUMBERS, 9)))[0]


def projected(examples, seed):
    rows = clip(gradients(*arrays(examples)) @ PROJECTION)
    return {"code": (rows.sum(0) + noise(seed, 9)) / MEAN}


def box_muller(examples, sums, seed):
    u, v = np.random.default_rng(seed).random((2, NUMBERS))
    return SIGMA * np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)


def sorted_rows(examples):
    rows = clipped(examples)
    return rows[np.lexsort(rows.T)]


def down_weighted(examples):
    weights = np.array([1 / (1 + y) for _, y in examples])
    return weights[:, None] * clipped(examples) if len(examples) else clipped(examples)


def mean_of_one_size(examples, seed):
    return released(clipped(examples).sum(0), seed, max(1, len(examples)))


def preconditioned(examples, seed):
    scale = np.linspace(0.5, 2.0, NUMBERS)
    rows = clip(gradients(*arrays(examples)) * scale)
    return {"weight": (rows.sum(0) + noise(seed)) / scale / MEAN}


def masked_per_seed(examples, seed):
    mask = np.random.default_rng(seed + 10**9).random(NUMBERS) < 0.5
    return released(clip(gradients(*arrays(examples)) * mask).sum(0), seed)


def dropped_by_a_coin(examples, seed):
    rng = np.random.default_rng(seed + 10**9)
    kept = rng.random(len(examples)) < 0.5
    return released((clipped(examples) * kept[:, None]).sum(0), seed)


RIGHT = {
    "sum of sizes at most C": Case(summing(sum_of_sizes_at_most_c)),
    "normalised": Case(summing(normalised)),
    "squashed": Case(summing(squashed)),
    "each layer at its share": Case(each_layer_at_its_share),
    "PyTorch": Case(torch_sound),
    "augmentations averaged": Case(summing(augmentations_averaged)),
    "users clipped": Case(summing(users_clipped), data=USERS),
    "ghost norm": Case(ghost(1.0)),
    "weight decay in the clip": Case(summing(decayed)),
    "noise of sixteen pieces": Case(with_noise(sixteen_pieces)),
    "logs what follows from the noised sum": Case(beside(of_itself)),
    "Adam's step beside it": Case(beside(adam_step)),
    "bfloat16": Case(bfloat),
    "padded with zeros": Case(summing(padded_with_zeros)),
    "long gradients dropped": Case(summing(long_gradients_dropped)),
    "projected": Case(projected),
    "noise by Box and Muller": Case(with_noise(box_muller)),
    "rows sorted": Case(summing(sorted_rows)),
    "weights of at most one": Case(summing(down_weighted)),
    "mean of one public size": Case(mean_of_one_size, claims=REPLACED),
    "preconditioned": Case(preconditioned),
    "a mask for each seed": Case(masked_per_seed),
    "dropped by a coin": Case(dropped_by_a_coin),
}


SLOW = {
    bias_not_in_the_norm,
    each_layer_at_c,
    batch_norm_in_training,
    torch_sound,
    each_layer_at_its_share,
    WRONG["ghost norm without the bias"].step,
    RIGHT["ghost norm"].step,
}


def reviewed(case):
    """A review; of a network's gradients, which cost more, from fewer draws."""
    draws = 16 if case.step in SLOW else 64
    return dp_review.step(case.step, case.data, case.claims, draws=draws)


@pytest.mark.every(6)
@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_step_of_another_hand_is_found(name):
    """Fault: a check that knows the mistakes of the catalogue, and no others."""
    found = reviewed(WRONG[name])
    assert found.broken & {*WRONG[name].checks.split(", ")}, found


@pytest.mark.slow
def test_a_sum_that_is_trimmed_is_said_to_need_more():
    """Fault: a rule of the batch, whose worst batch no search finds, that is passed in silence."""
    found = reviewed(TRIMMED)
    assert "rule of the batch" in found["sensitivity"].words and found.not_as_claimed, found


@pytest.mark.every(6)
@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_step_of_another_hand_is_not_blamed(name):
    """Fault: another way to clip, to draw, to pad or to log that is taken for a mistake."""
    found = reviewed(RIGHT[name])
    assert found.sound, found
