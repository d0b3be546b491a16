"""Broken steps, rebuilt small from public reports: each is `dp_sgd` or `client_step` with a change.

Everybody makes some of these, and most were mended soon after somebody wrote them down. Their
words, sources and claims stand in mistakes.toml, which names these functions.
"""

from collections.abc import Sequence

import numpy as np

from dp_review.mistakes.model import (
    BATCH,
    CLASSES,
    CLIP,
    FEATURES,
    NOISE,
    START,
    Client,
    Example,
    Grads,
    add_noise,
    arrays,
    client_updates,
    clip,
    clip_each,
    divide,
    dp_sgd,
    example_gradients,
    example_norms,
    examples,
    release,
    scale_examples,
    total,
)

Batch = Sequence[Example]
Clients = Sequence[Client]

# ---- the clip


def clips_the_mean(batch: Batch, seed: int) -> Grads:
    grads = example_gradients(batch)
    mean = {k: g.sum(0, keepdims=True) / max(1, len(g)) for k, g in grads.items()}
    return release(clip(mean), seed, NOISE * CLIP / BATCH, denominator=1)


def clips_microbatches(batch: Batch, seed: int) -> Grads:
    # Whoever leaves moves all later examples into another piece.
    pieces = [example_gradients(batch[i : i + 4]) for i in range(0, max(1, len(batch)), 4)]
    means = [{k: g.sum(0) / max(1, len(g)) for k, g in piece.items()} for piece in pieces]
    rows = {k: np.array([mean[k] for mean in means]) for k in means[0]}
    return release(clip(rows), seed, denominator=BATCH / 4)


def token_sequences() -> list:
    """Examples of 12 tokens each: (x of 12 × 8 features, y)."""
    rng = np.random.default_rng(5)
    return [(0.02 * rng.standard_normal((12, FEATURES)), i % CLASSES) for i in range(24)]


def wrong_ghost_norm(batch: Sequence, seed: int, right: bool = False) -> Grads:
    """Clips by a norm made of the tokens' gradients g of one bias for all of them.

    Args: batch, seed: of the step. right: whether the norm is that of the bias's gradient.
    """
    each = [example_gradients([(row, y) for row in np.atleast_2d(x)])["bias"] for x, y in batch]
    sums = {"bias": np.array([tokens.sum(0) for tokens in each]).reshape(-1, CLASSES)}
    if right:
        return release(clip(sums), seed)
    # The gradient is the sum of the tokens' g, of squared norm 1'GG'1; |GG'| is its bound.
    norms = np.array([np.linalg.norm(tokens @ tokens.T) for tokens in each])
    factors = np.nan_to_num(CLIP / np.maximum(norms, CLIP))
    finite = {"bias": np.nan_to_num(sums["bias"])}
    return release(scale_examples(finite, factors), seed)


def ghost_clip(batch: Sequence, seed: int) -> Grads:
    return wrong_ghost_norm(batch, seed, right=True)


def sums_into_itself(batch: Batch, seed: int) -> Grads:
    grads = clip(example_gradients(batch))
    half = (len(batch) + 1) // 2
    current = {k: g[:half].sum(0) for k, g in grads.items()}
    summed = current  # meant as a copy; the second half is then added to both
    for k, g in grads.items():
        current[k] += g[half:].sum(0)
        summed[k] += current[k]
    return divide(add_noise(summed, NOISE * CLIP, seed), BATCH)


def declares_a_sensitivity(batch: Batch, seed: int) -> Grads:
    # The noise is sized for a bound that somebody wrote down; the clip keeps another one.
    declared = CLIP / 100
    return release(clip(example_gradients(batch)), seed, NOISE * declared)


def leaves_the_head_unclipped(batch: Batch, seed: int) -> Grads:
    # Only the adapted layer has the hooks that measure and clip; the head is trained all the same.
    grads = example_gradients(batch)
    hooked = clip({"weight": grads["weight"]})
    return release({"weight": hooked["weight"], "bias": np.nan_to_num(grads["bias"])}, seed)


def clips_each_and_noises_twice(batch: Batch, seed: int) -> Grads:
    # Once by the client, once by the server; neither clips over all tensors together.
    sums = total(clip_each(example_gradients(batch)))
    local = add_noise(sums, NOISE * CLIP, seed)
    return divide(add_noise(local, NOISE * CLIP, seed + 10**8), BATCH)


def divides_by_the_norm(batch: Batch, seed: int) -> Grads:
    grads = {k: np.nan_to_num(g) for k, g in example_gradients(batch).items()}
    # Python refuses to divide by the norm of an update that is zero.
    factors = np.array([min(1.0, CLIP / float(norm)) for norm in example_norms(grads)])
    return release(scale_examples(grads, factors), seed)


def clips_at_the_median(batch: Batch, seed: int) -> Grads:
    mean = divide(total(example_gradients(batch)), len(batch) or 1)
    sizes = {k: float(np.linalg.norm(g)) for k, g in mean.items()}
    # The threshold depends on every example, and so does the noise.
    limit = min(float(np.median([*sizes.values()])), 0.4)
    clipped = {k: g * min(1, limit / max(sizes[k], 1e-12)) for k, g in mean.items()}
    return add_noise(clipped, 0.2 * limit / BATCH, seed)


# ---- the denominator, empty batches, sampling


def divides_by_the_data(batch: Batch, seed: int) -> Grads:
    # Another batch, another divisor: it rescales the noise as well.
    expected = max(1, int(0.5 * len(batch)))
    return release(clip(example_gradients(batch)), seed, denominator=expected)


def skips_empty_batches(batch: Batch, seed: int) -> Grads:
    # An empty batch gives zeros without noise, which says that it was empty.
    return dp_sgd(batch, seed) if len(batch) else total(example_gradients(batch))


def cut_once(seed: int) -> list[list[int]]:
    """Six batches of 16, cut from one shuffle of 96 examples."""
    order = np.random.default_rng(seed).permutation(96)
    return [batch.tolist() for batch in np.split(order, 6)]


def poisson_batches(seed: int) -> list[list[int]]:
    """Batches as the accountants assume them: each of 96 examples by itself, at a rate of 1/6."""
    rng = np.random.default_rng(seed)
    return [np.flatnonzero(rng.random(96) < 1 / 6).tolist() for _ in range(6)]


# ---- the noise


def same_key_for_all(batch: Batch, seed: int) -> Grads:
    grads = total(clip(example_gradients(batch)))
    halves = {"left": grads["weight"][:, :4], "right": grads["weight"][:, 4:]}
    return divide({k: add_noise({k: g}, NOISE, seed)[k] for k, g in halves.items()}, BATCH)


def noises_what_it_chose(batch: Batch, seed: int) -> Grads:
    grads = total(clip(example_gradients(batch)))
    rng = np.random.default_rng(seed)
    for g in grads.values():
        chosen = rng.choice(g.size, g.size)  # with replacement: a third is never chosen
        g.reshape(-1)[chosen] += (NOISE * rng.standard_normal(g.size))[chosen]
    return divide(grads, BATCH)


def noises_a_copy(clients: Clients, seed: int) -> Grads:
    sums = total(clip(client_updates(clients)))
    add_noise(sums, NOISE * CLIP, seed)  # returns new arrays; nobody keeps them
    return divide(sums, BATCH)


def noises_the_mean_for_the_sum(batch: Batch, seed: int) -> Grads:
    # On the mean noise of C/b is enough: this is a batch times too loud.
    return add_noise(divide(total(clip(example_gradients(batch))), BATCH), NOISE * CLIP, seed)


def freezes_the_bias(batch: Batch, seed: int) -> Grads:
    """The sound step where the bias is frozen: it is neither in the norm nor in the noise."""
    weight = {"weight": example_gradients(batch)["weight"]}
    return release(clip(weight), seed) | {"bias": np.zeros(CLASSES)}


# ---- what clients send


def clips_the_weights(clients: Clients, seed: int) -> Grads:
    updates = client_updates(clients)
    # Weights are far longer than what a client changed of them.
    weights = {"weight": updates["weight"] + START[:, :-1], "bias": updates["bias"] + START[:, -1]}
    return release(clip_each(weights), seed)


def clips_each_tensor(clients: Clients, seed: int) -> Grads:
    weight = client_updates(clients)["weight"]
    # Each of four rows may move by C, all together by 2C.
    rows = {f"row {i}": weight[:, i] for i in range(CLASSES)}
    return release(clip_each(rows), seed)


def unequal_clients() -> list[Client]:
    """Clients of 10 or 2 examples, 4 on average."""
    return [examples(size, seed=100 + k) for k, size in enumerate((10, 2, 2, 2) * 4)]


def weights_by_size(clients: Clients, seed: int) -> Grads:
    # A client with 2.5 times the mean size moves the sum by 2.5 C.
    weights = np.array([len(client) / 4 for client in clients])
    return release(scale_examples(clip(client_updates(clients)), weights), seed)


def sends_a_share_of_noise(clients: Clients, seed: int) -> Grads:
    # What is enough for the sum of a hundred uploads, on one of them.
    return release(clip(client_updates(clients)), seed, NOISE * CLIP / 100**0.5)


PEER = np.eye(4, FEATURES) * np.array([3.0, 2.0, 2.0, 1.5])[:, None]
"""The other factor of a layer, which is public."""


def shapes_by_the_inverse(clients: Clients, seed: int) -> Grads:
    factor = total(clip({"factor": client_updates(clients)["weight"][:, :, :4]}))["factor"]
    white = add_noise({"product": np.zeros((CLASSES, FEATURES))}, NOISE * CLIP, seed)["product"]
    # Where the peer is long the noise becomes short; the clip knows nothing of it.
    shaped = white @ PEER.T @ np.linalg.inv(PEER @ PEER.T)
    return divide({"factor": factor + shaped}, BATCH)


# ---- what leaves beside the gradient


def shares_the_extremes(batch: Batch, seed: int) -> Grads:
    x, _ = arrays(batch)
    # Each number is that of one example.
    extremes = {"low": x.min(0, initial=0), "high": x.max(0, initial=0)}
    return dp_sgd(batch, seed) | extremes


def scores_the_raw_gradient(batch: Batch, seed: int) -> Grads:
    # Neither clipped nor noised.
    raw = divide(total(example_gradients(batch)), BATCH)
    return dp_sgd(batch, seed) | {"score": np.array(sum((g**2).sum() for g in raw.values()))}


def trains_another_copy(batch: Batch, seed: int) -> Grads:
    # The examples never reach the parameters that leave.
    return dp_sgd([], seed)
