"""Broken steps, rebuilt small from public reports: each is `dp_sgd` or `client_step` with a change.

Everybody makes some of these, and most were mended soon after somebody wrote them down. Their
words and sources stand in mistakes.toml, under the names given here.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Unpack

import numpy as np

from fedlora_lab.review.claims import ClaimedFields, Claims, Loader, Step
from fedlora_lab.review.mistakes.model import (
    BATCH,
    CLASSES,
    CLIENTS,
    CLIP,
    FEATURES,
    NOISE,
    START,
    Client,
    Example,
    Grads,
    add_noise,
    client_step,
    clients,
    clip,
    clip_each,
    divide,
    dp_sgd,
    example_gradients,
    examples,
    local_changes,
    release,
    scale_examples,
    total,
)

Batch = Sequence[Example]
Updates = Sequence[Client]
DP_SGD_CLAIMS = Claims(clip_norm=CLIP, noise_multiplier=NOISE, denominator=BATCH)


class Subject(NamedTuple):
    """What `fl.review.step` takes: a step, a function that makes its data, and what it claims."""

    function: Step | None
    data: Callable[[], list]
    claims: Claims
    loader: Loader | None = None


STEPS: dict[str, tuple[Subject, Subject]] = {}
"""Name of a mistake -> the broken step and the sound one, as they are reviewed."""


def sound_step(claims: Claims, step: Callable[..., Grads]) -> Step:
    """The sound step that keeps what a broken one claims.

    Args: claims: of the broken one. step: `dp_sgd` or `client_step`.
    """
    norms = {"limit": claims.clip_norm, "noise": claims.noise_multiplier}
    return partial(step, **norms, denominator=claims.denominator)


def mistake(
    name: str,
    *,
    like: Callable[..., Grads] = dp_sgd,
    data: Callable[[], list] | None = None,
    sound: "ClaimedFields | None" = None,
    loaders: "tuple[Loader, Loader] | tuple[None, None]" = (None, None),
    mended: Step | None = None,
    **claims: Unpack[ClaimedFields],
) -> Callable[[Callable[..., Grads]], Callable[..., Grads]]:
    """Enters a step among the mistakes.

    Args:
        name: of the mistake, in mistakes.toml.
        like: `dp_sgd` or `client_step`: the sound step, which keeps the same claims.
        data: makes the data; default: examples or clients.
        sound: claims in which the sound form differs, where the step is right and a claim is not.
        loaders: of the broken and the sound form.
        mended: the sound step, where ``like`` is not it.
        claims: fields of `Claims` in which the mistake's differ from those of `dp_sgd`.
    """
    of_clients = like is client_step
    usual = replace(DP_SGD_CLAIMS, denominator=CLIENTS) if of_clients else DP_SGD_CLAIMS
    claimed = replace(usual, **claims)
    right = replace(claimed, **(sound or {}))
    made = data or (clients if of_clients else examples)

    def enter(step: Callable[..., Grads]) -> Callable[..., Grads]:
        broken = Subject(step, made, claimed, loaders[0])
        STEPS[name] = broken, Subject(mended or sound_step(right, like), made, right, loaders[1])
        return step

    return enter


def claim(name: str, wrong: ClaimedFields, **claims: Unpack[ClaimedFields]) -> None:
    """Enters a mistake of accounting that no step shows.

    Args: name: of the mistake. wrong: claims in which it differs from the sound ones in ``claims``.
    """
    right = Claims(clip_norm=CLIP, **claims)
    STEPS[name] = Subject(None, list, replace(right, **wrong)), Subject(None, list, right)


POISSON: ClaimedFields = {
    "sampling": "poisson",
    "sample_rate": 1 / 6,
    "dataset_size": 96,
    "steps": 6,
}

# ---- the clip


@mistake("Clipping the mean gradient of a batch")
def clips_the_mean(batch: Batch, seed: int) -> Grads:
    grads = example_gradients(batch)
    mean = {k: g.sum(0, keepdims=True) / max(1, len(g)) for k, g in grads.items()}
    return release(clip(mean), seed, NOISE * CLIP / BATCH, denominator=1)


@mistake("Microbatches are clipped", denominator=BATCH / 4)
def clips_microbatches(batch: Batch, seed: int) -> Grads:
    grads = example_gradients(batch)
    starts = range(0, len(batch), 4)
    means = {k: np.array([g[i : i + 4].mean(0) for i in starts]) for k, g in grads.items()}
    means = means if len(batch) else grads
    return release(clip(means), seed, denominator=BATCH / 4)


def token_sequences(n: int = 24) -> list:
    """Examples of 12 tokens each: (x of 12 × 8 features, y)."""
    rng = np.random.default_rng(5)
    drawn = [(0.02 * rng.standard_normal((12, FEATURES)), rng.integers(CLASSES)) for _ in range(n)]
    return [(x, int(y)) for x, y in drawn]


def ghost_clip(batch: Sequence, seed: int, right: bool = False) -> Grads:
    """Clips by a norm made of the tokens' gradients g of one bias for all of them.

    Args: batch, seed: of the step. right: whether the norm is that of the bias's gradient.
    """
    rows, norms = [], []
    for x, y in batch:
        tokens = example_gradients([(row, y) for row in np.reshape(x, (-1, FEATURES))])["bias"]
        with np.errstate(all="ignore"):
            # The gradient is the sum of the tokens' g, of squared norm 1'GG'1; |GG'| is its bound.
            norms.append(np.linalg.norm(tokens.sum(0) if right else tokens @ tokens.T))
        rows.append(tokens.sum(0))
    sizes = np.array(norms)
    factors = np.where(np.isfinite(sizes), CLIP / np.maximum(sizes, CLIP), 0.0)
    sums = np.nan_to_num(np.array(rows).reshape(len(batch), CLASSES))
    return release(scale_examples({"bias": sums}, np.nan_to_num(factors)), seed)


right_ghost_clip = partial(ghost_clip, right=True)


@mistake("A bias measured by the wrong norm", data=token_sequences, mended=right_ghost_clip)
def wrong_ghost_norm(batch: Sequence, seed: int) -> Grads:
    return ghost_clip(batch, seed)


@mistake("A sum added to itself")
def sums_into_itself(batch: Batch, seed: int) -> Grads:
    grads = clip(example_gradients(batch))
    half = (len(batch) + 1) // 2
    current = {k: g[:half].sum(0) for k, g in grads.items()}
    summed = current  # meant as a copy; the second half is then added to both
    for k, g in grads.items():
        current[k] += g[half:].sum(0)
        summed[k] += current[k]
    return divide(add_noise(summed, NOISE * CLIP, seed), BATCH)


@mistake("A threshold taken from the batch", clip_norm=0.4, noise_multiplier=0.2)
def clips_at_the_median(batch: Batch, seed: int) -> Grads:
    mean = divide(total(example_gradients(batch)), len(batch) or 1)
    sizes = {k: float(np.linalg.norm(g)) for k, g in mean.items()}
    limit = min(float(np.median(list(sizes.values()))), 0.4)
    clipped = {k: g * min(1, limit / max(sizes[k], 1e-12)) for k, g in mean.items()}
    return add_noise(clipped, 0.2 * limit / BATCH, seed)


# ---- the denominator, empty batches, sampling


@mistake("A divisor that counts the data", denominator=12)
def divides_by_the_data(batch: Batch, seed: int) -> Grads:
    expected = max(1, int(0.5 * len(batch)))
    return release(clip(example_gradients(batch)), seed, denominator=expected)


@mistake("Empty batches are skipped", denominator=4, **POISSON | {"dataset_size": 24, "steps": 100})
def skips_empty_batches(batch: Batch, seed: int) -> Grads:
    clipped = clip(example_gradients(batch))
    return release(clipped, seed, denominator=4) if len(batch) else total(clipped)


def cut_once(seed: int) -> list[list[int]]:
    """Six batches of 16, cut from one shuffle of 96 examples."""
    order = np.random.default_rng(seed).permutation(96)
    return [batch.tolist() for batch in np.split(order, 6)]


def poisson_batches(seed: int) -> list[list[int]]:
    """Batches as the accountants assume them: each of 96 examples by itself, at a rate of 1/6."""
    rng = np.random.default_rng(seed)
    return [np.flatnonzero(rng.random(96) < 1 / 6).tolist() for _ in range(6)]


mistake(
    "Shuffled batches under Poisson accounting; empty batches skipped",
    loaders=(cut_once, poisson_batches),
    data=partial(examples, 96),
    **POISSON,
)(dp_sgd)

# ---- the noise


@mistake("One key for all tensors")
def same_key_for_all(batch: Batch, seed: int) -> Grads:
    grads = total(clip(example_gradients(batch)))
    halves = {"left": grads["weight"][:, :4], "right": grads["weight"][:, 4:]}
    return divide({k: add_noise({k: g}, NOISE, seed)[k] for k, g in halves.items()}, BATCH)


@mistake("Only what was chosen is noised")
def noises_what_it_chose(batch: Batch, seed: int) -> Grads:
    grads = total(clip(example_gradients(batch)))
    rng = np.random.default_rng(seed)
    for g in grads.values():
        chosen = rng.choice(g.size, g.size)  # with replacement: a third is never chosen
        g.reshape(-1)[chosen] += (NOISE * rng.standard_normal(g.size))[chosen]
    return divide(grads, BATCH)


@mistake("Noise on a copy", like=client_step)
def noises_a_copy(updates: Updates, seed: int) -> Grads:
    sums = total(clip(local_changes(updates)))
    add_noise(sums, NOISE * CLIP, seed)  # returns new arrays; nobody keeps them
    return divide(sums, CLIENTS)


@mistake("Noise for the sum, on the mean")
def noises_the_mean_for_the_sum(batch: Batch, seed: int) -> Grads:
    return add_noise(divide(total(clip(example_gradients(batch))), BATCH), NOISE * CLIP, seed)


def freezes_the_bias(batch: Batch, seed: int) -> Grads:
    """The sound step where the bias is frozen: it is neither in the norm nor in the noise."""
    weight = {"weight": example_gradients(batch)["weight"]}
    return release(clip(weight), seed) | {"bias": np.zeros(CLASSES)}


mistake("A frozen factor in the norm, or in the noise", frozen=("bias",), mended=freezes_the_bias)(
    dp_sgd
)


# ---- what clients send


@mistake("Clipping the weights instead of the update", like=client_step)
def clips_the_weights(updates: Updates, seed: int) -> Grads:
    changes = local_changes(updates)
    weights = {"weight": changes["weight"] + START[:, :-1], "bias": changes["bias"] + START[:, -1]}
    return release(clip_each(weights), seed, denominator=CLIENTS)


@mistake("A clip for each tensor, one release counted", like=client_step)
def clips_each_tensor(updates: Updates, seed: int) -> Grads:
    weight = local_changes(updates)["weight"]
    rows = {f"row {i}": weight[:, i] for i in range(CLASSES)}
    return release(clip_each(rows), seed, denominator=CLIENTS)


def unequal_clients() -> list[Client]:
    """Eight clients of 10 or 2 examples, 4 on average."""
    return [examples(size, seed=100 + k) for k, size in enumerate((10, 2, 2, 2) * 2)]


@mistake("Weights by size under noise for equal weights", like=client_step, data=unequal_clients)
def weights_by_size(updates: Updates, seed: int) -> Grads:
    weights = np.array([len(client) / 4 for client in updates])
    clipped = scale_examples(clip(local_changes(updates)), weights)
    return release(clipped, seed, denominator=CLIENTS)


@mistake("A share of noise, seen alone", like=client_step)
def sends_a_share_of_noise(updates: Updates, seed: int) -> Grads:
    # What is enough for the sum of a hundred uploads, on one of them.
    return client_step(updates, seed, noise=NOISE / 100**0.5)


PEER = np.eye(4, FEATURES) * np.array([3.0, 2.0, 2.0, 1.5])[:, None]
"""The other factor of a layer, which is public."""


@mistake("Noise shaped by a pseudo-inverse, clip on the factor", like=client_step)
def shapes_by_the_inverse(updates: Updates, seed: int) -> Grads:
    factor = total(clip({"factor": local_changes(updates)["weight"][:, :, :4]}))["factor"]
    white = add_noise({"product": np.zeros((CLASSES, FEATURES))}, NOISE * CLIP, seed)["product"]
    shaped = white @ PEER.T @ np.linalg.inv(PEER @ PEER.T)
    return divide({"factor": factor + shaped}, CLIENTS)


# ---- what leaves beside the gradient


@mistake("Private statistics used as if public")
def shares_the_extremes(batch: Batch, seed: int) -> Grads:
    x = np.array([x for x, _ in batch], float).reshape(len(batch), FEATURES)
    extremes = {"low": x.min(0, initial=0), "high": x.max(0, initial=0)}
    return dp_sgd(batch, seed) | extremes


@mistake("A score computed from raw gradients and uploaded")
def scores_the_raw_gradient(batch: Batch, seed: int) -> Grads:
    raw = divide(total(example_gradients(batch)), BATCH)
    return dp_sgd(batch, seed) | {"score": np.array(sum((g**2).sum() for g in raw.values()))}


@mistake("Adapters on another device, or not trained at all")
def trains_another_copy(batch: Batch, seed: int) -> Grads:
    return dp_sgd([], seed)


# ---- accounting: the step is right, and the stated epsilon is not

SKETCH = np.linalg.qr(np.random.default_rng(3).standard_normal((64, 36)))[0]


@mistake(
    "A sketch that everybody knows, counted as noise",
    like=client_step,
    sound={"noise_multiplier": 0.8},
    denominator=1,
    noise_multiplier=0.2026,
    **POISSON | {"sample_rate": 4 / 625, "dataset_size": 625, "steps": 500},
    epsilon=1.6,
    delta=1e-5,
)
def noises_a_known_sketch(updates: Updates, seed: int) -> Grads:
    g = total(clip(local_changes(updates)))
    sketch = SKETCH @ np.concatenate([g["weight"].ravel(), g["bias"]])
    return add_noise({"sketch": sketch}, 0.2026, seed)


# The noise is that of sampled examples, and every client takes part in all of a hundred releases.
claim(
    "Counting examples, adding noise to whole clients",
    {"noise_multiplier": NOISE},
    noise_multiplier=32.32,
    steps=100,
    epsilon=1.0,
    delta=1e-3 / 12,
)
# The last of a hundred ledgers has 125 steps.
claim(
    "A new accountant for every round or message",
    {"epsilon": 0.614},
    noise_multiplier=1.0,
    **POISSON | {"sample_rate": 32 / 4000, "dataset_size": 4000, "steps": 12_500},
    epsilon=5.42,
    delta=1e-5,
)
# 400 steps are a round; the noise that is enough for them is used for sixty rounds.
claim(
    "Noise chosen for one round, used for sixty",
    {"noise_multiplier": 0.4505},
    noise_multiplier=0.6514,
    **POISSON | {"sample_rate": 1 / 400, "dataset_size": 4000, "steps": 24_000},
    epsilon=6.0,
    delta=1e-5,
)
# sigma = √(2 ln(1.25/delta)) / epsilon is proven below epsilon = 1.
claim(
    "The textbook σ outside its range",
    {"noise_multiplier": 0.4037},
    noise_multiplier=0.4317,
    steps=1,
    epsilon=12.0,
    delta=1e-5,
)
# Of 100 clients drawn for a quarter of 40 rounds one comes 17 times, not 10; 5 steps each time.
claim(
    "Noise for the expected number of participations",
    {"noise_multiplier": 1.7505},
    noise_multiplier=3.005,
    **POISSON | {"sample_rate": 0.1, "dataset_size": 100, "steps": 85},
    epsilon=2.0,
    delta=1e-5,
)
# mu-GDP in the limit of many small steps says 3.67.
claim(
    "A central-limit approximation reported as ε",
    {"epsilon": 3.67},
    noise_multiplier=3.0,
    **POISSON | {"sample_rate": 0.1, "dataset_size": 1000, "steps": 512},
    epsilon=3.78,
    delta=1e-6,
)
