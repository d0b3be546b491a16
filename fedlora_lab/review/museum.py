"""A museum of mistakes: what was reported in public trackers and code, rebuilt small, and caught.

Every exhibit is a step of `fl.review` in NumPy, one softmax regression with few features, written
in our own words from the report. What counts is the mechanism: everybody makes some of these, and
most were mended soon after somebody wrote them down. ``source`` says where, ``seen`` what of it we
have read: "thread", "code" (the authors' released code at the named commit), or "text" (a paper).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from fedlora_lab.review.claims import Claims, Step

Grads = dict[str, np.ndarray]

FEATURES, CLASSES, BATCH, CLIP, NOISE = 8, 4, 16, 1.0, 1.1
DP_SGD_CLAIMS = Claims(clip_norm=CLIP, noise_multiplier=NOISE, denominator=BATCH)


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A mistake, rebuilt.

    Args:
        name: a few words; source: address of the thread or code; seen: "thread", "code", "text".
        words: one sentence: what is wrong.
        broken: checks that must call it broken.
        step, loader: what is reviewed, as `fl.review` takes it.
        claims: what its author would claim.
        data: what it is reviewed on.
    """

    name: str
    source: str
    seen: str
    words: str
    broken: frozenset[str]
    step: Step
    claims: Claims = DP_SGD_CLAIMS
    loader: Callable[[int], list] | None = None
    data: Callable[[], list] = lambda: examples()


# ---- one small model: softmax regression at fixed weights


def examples(n: int = 24, seed: int = 0) -> list:
    """Draws n examples (x, y): x of 8 standard normal features, y one of 4 classes.

    Examples:
        >>> x, y = examples(3)[0]
        >>> x.shape, type(y)
        ((8,), <class 'int'>)
    """
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal(FEATURES), int(rng.integers(CLASSES))) for _ in range(n)]


def clients(n: int = 8, size: int = 4) -> list:
    """n clients, each a list of `examples` of its own."""
    return [examples(size, seed=100 + k) for k in range(n)]


_START = np.random.default_rng(1).standard_normal((CLASSES, FEATURES + 1))


def arrays(batch: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Examples as two arrays: features (examples, 8) and classes (examples,)."""
    x = np.array([x for x, _ in batch], float).reshape(len(batch), FEATURES)
    return x, np.array([y for _, y in batch], int)


def example_gradients(batch: Sequence[Any]) -> Grads:
    """Gradients of the loss of each example: weight (examples, 4, 8) and bias (examples, 4).

    Examples:
        >>> {name: g.shape for name, g in example_gradients(examples(5)).items()}
        {'weight': (5, 4, 8), 'bias': (5, 4)}
    """
    x, _ = pair = arrays(batch)
    errors = _errors(*pair, _START)
    with np.errstate(all="ignore"):
        return {"weight": errors[:, :, None] * x[:, None], "bias": errors}


def _errors(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Chances less the true classes, (examples, 4): the gradients of the logits."""
    with np.errstate(all="ignore"):  # an example may be anything: the clip answers for it
        logits = x @ weights[:, :-1].T + weights[:, -1]
        chances = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
        return chances / chances.sum(1, keepdims=True) - np.eye(CLASSES)[y]


def example_norms(grads: Grads) -> np.ndarray:
    """The norm of each example's gradient over all tensors together: (examples,)."""
    squares = (np.square(g).sum(axis=tuple(range(1, g.ndim))) for g in grads.values())
    return np.sqrt(sum(squares))


def scale_examples(grads: Grads, factors: np.ndarray) -> Grads:
    """Multiplies each example's gradient by its factor."""
    return {k: g * factors.reshape(-1, *[1] * (g.ndim - 1)) for k, g in grads.items()}


def clip(grads: Grads, limit: float = CLIP) -> Grads:
    """Scales each example's gradient to a joint norm of at most ``limit``; what is no number, to 0.

    Examples:
        >>> bool((example_norms(clip(example_gradients(examples(50)), 0.5)) <= 0.5 + 1e-12).all())
        True
    """
    with np.errstate(all="ignore"):
        size = example_norms(grads)
    fine = np.isfinite(size)
    kept = {k: np.where(fine.reshape(-1, *[1] * (g.ndim - 1)), g, 0.0) for k, g in grads.items()}
    return scale_examples(kept, limit / np.maximum(np.where(fine, size, limit), limit))


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


def dp_sgd(batch: Sequence[Any], seed: int) -> Grads:
    """The sound step that all exhibits are a change of: clip each example, sum, noise, divide.

    Examples:
        >>> sorted(dp_sgd(examples(), seed=0))
        ['bias', 'weight']
    """
    return divide(add_noise(total(clip(example_gradients(batch))), NOISE * CLIP, seed), BATCH)


# ---- the clip


def clips_the_mean(batch, seed):
    grads = example_gradients(batch)
    mean = {k: g.mean(0, keepdims=True) if len(g) else g.sum(0)[None] for k, g in grads.items()}
    return add_noise(total(clip(mean)), NOISE * CLIP / BATCH, seed)


def clips_microbatches(batch, seed, size=4):
    """Args: batch, seed: of a step; size: of what is averaged before the clip."""
    parts = [example_gradients(batch[i : i + size]) for i in range(0, len(batch), size)]
    means = [{k: g.mean(0) for k, g in part.items()} for part in parts]
    rows = (
        {k: np.array([m[k] for m in means]) for k in means[0]} if means else example_gradients([])
    )
    return divide(add_noise(total(clip(rows)), NOISE * CLIP, seed), BATCH / size)


def forgets_the_limit(batch, seed, limit=0.25):
    """Args: batch, seed: of a step; limit: the clip norm that was asked for."""
    # The engine passes ``limit`` to the noise, and leaves the clip at its own default of 1.
    return divide(add_noise(total(clip(example_gradients(batch))), NOISE * limit, seed), BATCH)


def sequences(n: int = 24) -> list:
    """Examples of 12 tokens each: (x of 12 × 8 features, y)."""
    rng = np.random.default_rng(5)
    return [
        (rng.standard_normal((12, FEATURES)) * 0.02, int(rng.integers(CLASSES))) for _ in range(n)
    ]


def wrong_ghost_norm(batch, seed):
    # One bias for all tokens: its gradient is the sum of the tokens' g, of squared norm 1'GG'1.
    tokens = [
        example_gradients([(row, y) for row in np.reshape(x, (-1, FEATURES))]) for x, y in batch
    ]
    biases = [part["bias"] for part in tokens]
    with np.errstate(all="ignore"):
        sizes = np.array([np.linalg.norm(g @ g.T) for g in biases])  # |GG'| for its root
    fine = np.isfinite(sizes)
    factors = np.where(fine, CLIP / np.maximum(np.where(fine, sizes, 1), CLIP), 0)
    rows = np.array([np.nan_to_num(g).sum(0) for g in biases]).reshape(len(batch), CLASSES)
    return divide(
        add_noise(total(scale_examples({"bias": rows}, factors)), NOISE * CLIP, seed), BATCH
    )


def sums_into_itself(batch, seed):
    grads, half = clip(example_gradients(batch)), (len(batch) + 1) // 2
    current = {k: g[:half].sum(0) for k, g in grads.items()}
    summed = current  # meant as a copy; the second half is then added to both
    for k, g in grads.items():
        current[k] += g[half:].sum(0)
        summed[k] += current[k]
    return divide(add_noise(summed, NOISE * CLIP, seed), BATCH)


# ---- the denominator, empty batches, sampling


def divides_by_the_data(batch, seed, rate=0.5):
    """Args: batch, seed: of a step; rate: of which the batch is expected."""
    expected = max(1, int(rate * len(batch)))
    return divide(add_noise(total(clip(example_gradients(batch))), NOISE * CLIP, seed), expected)


def divides_by_the_batch(batch, seed):
    if not len(batch):
        return total(example_gradients(batch))
    return divide(add_noise(total(clip(example_gradients(batch))), NOISE * CLIP, seed), len(batch))


def skips_empty_batches(batch, seed, expected=4):
    """Args: batch, seed: of a step; expected: size of a batch."""
    if not len(batch):
        return total(example_gradients(batch))
    return divide(add_noise(total(clip(example_gradients(batch))), NOISE * CLIP, seed), expected)


def cut_once(seed, n=96, size=16):
    """Batches of one shuffle. Args: seed: of it; n: examples; size: of a batch."""
    order = np.random.default_rng(seed).permutation(n)
    return [batch.tolist() for batch in np.split(order, n // size)]


def poisson(seed, n=96, rate=1 / 6, steps=6):
    """Batches as the accountants assume them: every example by itself, at this rate.

    Args: seed: of the draws; n: examples; rate: of each; steps: batches.
    """
    rng = np.random.default_rng(seed)
    return [np.flatnonzero(rng.random(n) < rate).tolist() for _ in range(steps)]


def rate_of_another_sampler(seed, n=96, drawn=32, size=16):
    """Args: seed: of the draws; n: examples; drawn: by the sampler; size: of a batch."""
    # A sampler that draws 32 a time makes 2 batches: 1/2 is taken for the rate of all 96.
    return poisson(seed, n, rate=size / drawn, steps=drawn // size)


# ---- the noise


def same_key_for_all(batch, seed):
    grads = total(clip(example_gradients(batch)))
    halves = {"left": grads["weight"][:, :4], "right": grads["weight"][:, 4:]}
    return divide({k: add_noise({k: g}, NOISE, seed)[k] for k, g in halves.items()}, BATCH)


def noises_what_it_chose(batch, seed):
    grads, rng = total(clip(example_gradients(batch))), np.random.default_rng(seed)
    for g in grads.values():
        chosen = rng.choice(g.size, g.size)  # with replacement: a third is never chosen
        g.reshape(-1)[chosen] += (NOISE * rng.standard_normal(g.size))[chosen]
    return divide(grads, BATCH)


def cuts_at_a_percentile(updates, seed, percentile=10, limit=0.01):
    """Args: updates, seed: of a step; percentile: set to zero; limit: of an entry."""
    mean = divide(total(_local(updates)), len(updates) or 1)
    for g in mean.values():
        small = np.abs(g) < np.percentile(np.abs(g), percentile)
        g[...] = np.where(small, 0, np.clip(g, -limit, limit))
    return mean


def noises_a_copy(updates, seed):
    sums = total(clip(_local(updates)))
    add_noise(sums, NOISE * CLIP, seed)  # returns new arrays; nobody keeps them
    return divide(sums, len(_CLIENTS))


def squares_the_clip(batch, seed, limit=0.25):
    """Args: batch, seed: of a step; limit: the clip norm."""
    return divide(
        add_noise(total(clip(example_gradients(batch), limit)), NOISE * limit**2, seed), BATCH
    )


def a_tenth_of_the_noise(batch, seed):
    return divide(add_noise(total(clip(example_gradients(batch))), 0.1 * CLIP, seed), BATCH)


def with_less_noise(batch, seed):
    return divide(add_noise(total(clip(example_gradients(batch))), 0.56 * CLIP, seed), BATCH)


def noises_the_mean_for_the_sum(batch, seed):
    return add_noise(divide(total(clip(example_gradients(batch))), BATCH), NOISE * CLIP, seed)


# ---- what clients send

_CLIENTS = clients()


def _local(updates: Sequence[Any], limit: float = np.inf, lr: float = 0.5) -> Grads:
    """How far three local steps move each client's weights; ``limit`` clips each step's mean."""
    changes = []
    for own in updates:
        (x, y), weights = arrays(own), _START.copy()
        for _ in range(3):
            errors = _errors(x, y, weights) / len(x)
            step = np.concatenate([errors.T @ x, errors.sum(0)[:, None]], axis=1)
            weights -= lr * step * min(1.0, limit / max(float(np.linalg.norm(step)), 1e-12))
        changes.append(weights - _START)
    rows = np.array(changes).reshape(len(updates), CLASSES, FEATURES + 1)
    return {"weight": rows[:, :, :-1], "bias": rows[:, :, -1]}


def client_step(updates, seed):
    """The sound step of the client unit: clip each client's change, sum, noise, divide."""
    return divide(add_noise(total(clip(_local(updates))), NOISE * CLIP, seed), len(_CLIENTS))


def sends_as_it_is(updates, seed):
    return divide(total(_local(updates)), len(_CLIENTS))


def _weights(updates: Sequence[Any]) -> Grads:
    changes = _local(updates)
    return {"weight": changes["weight"] + _START[:, :-1], "bias": changes["bias"] + _START[:, -1]}


def clips_every_weight(updates, seed):
    inside = {k: np.clip(np.nan_to_num(w), -CLIP, CLIP) for k, w in _weights(updates).items()}
    return divide(add_noise(total(inside), NOISE * CLIP, seed), len(_CLIENTS))


def clips_local_steps(updates, seed):
    return divide(add_noise(total(_local(updates, limit=CLIP, lr=1.0)), NOISE, seed), len(_CLIENTS))


def clips_the_weights(updates, seed):
    each = {k: clip({k: w})[k] for k, w in _weights(updates).items()}  # every tensor by itself
    return divide(add_noise(total(each), NOISE * CLIP, seed), len(_CLIENTS))


def clips_each_tensor(updates, seed):
    changes = _local(updates)
    parts = {f"q{i}": changes["weight"][:, i] for i in range(CLASSES)}
    each = {k: clip({k: g})[k] for k, g in parts.items()}
    return divide(add_noise(total(each), NOISE * CLIP, seed), len(_CLIENTS))


_PEER = np.eye(4, FEATURES) * np.array([3.0, 1.0, 1.0, 0.5])[:, None]  # the other factor, public


def shapes_by_the_inverse(updates, seed):
    factor = clip({"factor": _local(updates)["weight"][:, :, :4]})
    white = add_noise({"product": np.zeros((CLASSES, FEATURES))}, NOISE * CLIP, seed)["product"]
    regulated = white @ _PEER.T @ np.linalg.inv(_PEER @ _PEER.T)
    return divide({"factor": total(factor)["factor"] + regulated}, len(_CLIENTS))


_BASIS = np.linalg.qr(np.random.default_rng(3).standard_normal((64, 36)))[0]


def noises_a_known_sketch(updates, seed, sigma=0.2026):
    """Args: updates, seed: of a step; sigma: of the noise on the sketch."""
    g = total(clip(_local(updates)))
    sketch = _BASIS @ np.concatenate([g["weight"].ravel(), g["bias"]])
    return add_noise({"sketch": sketch}, sigma, seed)


# ---- what leaves beside the gradient


def shares_the_extremes(batch, seed):
    x = np.array([x for x, _ in batch], float).reshape(len(batch), FEATURES)
    extremes = {"low": x.min(0, initial=0), "high": x.max(0, initial=0)}
    return dp_sgd(batch, seed) | extremes


def scores_the_raw_gradient(batch, seed):
    raw = divide(total(example_gradients(batch)), BATCH)
    return dp_sgd(batch, seed) | {"score": np.array(sum((g**2).sum() for g in raw.values()))}


def releases_squares(batch, seed, limit=2.0):
    """Args: batch, seed: of a step; limit: the clip norm F."""
    grads = clip(example_gradients(batch), limit)
    scores = {k: np.array([np.square(g).sum()]) for k, g in grads.items()}
    return add_noise(scores, 5 * limit, seed)


def clips_at_the_median(batch, seed, sigma=0.2):
    """Args: batch, seed: of a step; sigma: the noise multiplier."""
    mean = divide(total(example_gradients(batch)), len(batch) or 1)
    sizes = {k: np.linalg.norm(g) for k, g in mean.items()}
    limit = min(float(np.median(list(sizes.values()))), 0.4)
    clipped = {k: g * min(1, limit / max(sizes[k], 1e-12)) for k, g in mean.items()}
    return add_noise(clipped, sigma * limit / BATCH, seed)


def trains_another_copy(batch, seed):
    return divide(add_noise(total(clip(example_gradients([]))), NOISE * CLIP, seed), BATCH)


# ---- the exhibits

_GITHUB = "https://github.com/"
_OPACUS = _GITHUB + "meta-pytorch/opacus/"
_POISSON: Any = {"sampling": "poisson", "sample_rate": 1 / 6}
_OF_CLIENTS = replace(DP_SGD_CLAIMS, unit="client", denominator=8)
_OF_LOADERS = replace(DP_SGD_CLAIMS, **_POISSON, dataset_size=96, steps=6)
_MANY = partial(examples, 96)


def _exhibit(
    name: str, source: str, broken: str, words: str, step: Step = dp_sgd, **rest: Any
) -> Mistake:
    """A mistake; ``clients``: what is reviewed are clients; the thread was read if not said."""
    if rest.pop("clients", False):
        rest = {"claims": _OF_CLIENTS, "data": clients} | rest
    given: Any = {"seen": "thread", "broken": frozenset(broken.split(", "))} | rest
    return Mistake(name=name, source=source, words=words, step=step, **given)


MISTAKES: tuple[Mistake, ...] = (
    _exhibit(
        "The mean is clipped",
        _GITHUB + "raptor7197/caamas/issues/36",
        "reach",
        "The mean is clipped, after what each one brought has been averaged into it.",
        clips_the_mean,
    ),
    _exhibit(
        "Microbatches are clipped",
        _GITHUB + "tensorflow/privacy/issues/81",
        "reach",
        "The mean of four examples is clipped as if it were one; whoever leaves shifts the rest.",
        clips_microbatches,
        claims=replace(DP_SGD_CLAIMS, denominator=BATCH / 4),
    ),
    _exhibit(
        "The limit reaches the noise only",
        _OPACUS + "pull/664",
        "reach",
        "The clip stays at its default of 1 while the noise is scaled to the limit that was asked.",
        forgets_the_limit,
        claims=replace(DP_SGD_CLAIMS, clip_norm=0.25),
    ),
    _exhibit(
        "A bias measured by the wrong norm",
        _OPACUS + "pull/751",
        "reach",
        "Ghost clipping took |GG'| for the norm of a bias that is shared by the tokens of a text.",
        wrong_ghost_norm,
        data=sequences,
    ),
    _exhibit(
        "A sum added to itself",
        _OPACUS + "pull/707",
        "reach",
        "The sum of two half batches is a reference, not a copy: every example counts twice.",
        sums_into_itself,
    ),
    _exhibit(
        "A divisor that counts the data",
        _OPACUS + "issues/571",
        "denominator",
        "The expected batch is int(rate * n), and n is private; issue 819 goes further.",
        divides_by_the_data,
        claims=replace(DP_SGD_CLAIMS, denominator=12),
    ),
    _exhibit(
        "The batch that came as divisor",
        _GITHUB + "osu-srml/PRISM-DP-LoRA/commit/51cddad",
        "denominator",
        "Sum and noise are divided by the size of the batch that came; an empty one gets no noise.",
        divides_by_the_batch,
        seen="code",
    ),
    _exhibit(
        "Empty batches are skipped",
        _OPACUS + "pull/530",
        "empty batch",
        "A Poisson batch may be empty; the step then returned nothing, which tells that it was.",
        skips_empty_batches,
        claims=replace(DP_SGD_CLAIMS, **_POISSON, denominator=4, dataset_size=24, steps=100),
    ),
    _exhibit(
        "Shuffled once, accounted as Poisson",
        _GITHUB + "lxuechen/private-transformers/issues/7",
        "sampling",
        "Batches of one size are cut from a shuffle; the accountant assumes independent draws.",
        loader=cut_once,
        claims=_OF_LOADERS,
        data=_MANY,
    ),
    _exhibit(
        "The rate of another sampler",
        _OPACUS + "issues/813",
        "sampling",
        "The rate is taken from the length of a weighted sampler that the engine then replaces.",
        loader=rate_of_another_sampler,
        claims=_OF_LOADERS,
        data=_MANY,
    ),
    _exhibit(
        "One key for all tensors",
        _GITHUB + "jax-ml/jax/pull/3646",
        "noise independence",
        "Tensors of one shape get the same noise: their difference has none.",
        same_key_for_all,
    ),
    _exhibit(
        "Only what was chosen is noised",
        _GITHUB + "NVIDIA/NVFlare/issues/343",
        "noise law",
        "Entries drawn with replacement are noised; a third is never drawn and leaves as it is.",
        noises_what_it_chose,
    ),
    _exhibit(
        "A percentile taken for privacy",
        _GITHUB + "londonaicentre/FLIP/issues/1145",
        "noise size",
        "Small entries are set to zero and large ones cut: no noise, and a privacy filter by name.",
        cuts_at_a_percentile,
        clients=True,
    ),
    _exhibit(
        "One backend lets it out",
        _GITHUB + "londonaicentre/FLIP/issues/832",
        "noise size, un-noised output",
        "One of two backends filters what clients send, the other sends it as it is.",
        sends_as_it_is,
        clients=True,
    ),
    _exhibit(
        "Noise on a copy",
        _GITHUB + "flwrlabs/flower/pull/4677",
        "noise size",
        "A function returned the noised parameters; its caller dropped them and logged the noise.",
        noises_a_copy,
        seen="code",
        clients=True,
    ),
    _exhibit(
        "Weights clipped entry by entry",
        _GITHUB + "KanishJebaMathewM/Truxify/issues/3844",
        "reach",
        "Each weight is cut to [-1, 1] in place of the norm of the change: d entries, reach √d.",
        clips_every_weight,
        clients=True,
    ),
    _exhibit(
        "Clipped steps, unclipped change",
        _GITHUB + "APPFL/APPFL/issues/151",
        "reach",
        "Every local step is clipped; what leaves is the sum of three of them.",
        clips_local_steps,
        clients=True,
    ),
    _exhibit(
        "The clip squared",
        _GITHUB + "greenelab/SPRINT_gan/issues/5",
        "noise size",
        "A variance was taken for a standard deviation: the noise is C times too small at C < 1.",
        squares_the_clip,
        claims=replace(DP_SGD_CLAIMS, clip_norm=0.25),
    ),
    _exhibit(
        "A tenth of the noise",
        _GITHUB + "tensorflow/privacy/pull/227",
        "noise size",
        "A tutorial's noise multiplier became 0.1 by a typo: ε of 66,416 where 1.1 gives about 1.",
        a_tenth_of_the_noise,
    ),
    _exhibit(
        "Noise for the sum, on the mean",
        _GITHUB + "google-deepmind/jax_privacy/issues/383",
        "noise size",
        "Noise of the size for a sum is added to a mean: private, and a batch times too loud.",
        noises_the_mean_for_the_sum,
    ),
    _exhibit(
        "Nothing is trained",
        _OPACUS + "issues/820",
        "signal",
        "Loss fell, ε added up, checkpoints were written: the adapters came out useless.",
        trains_another_copy,
    ),
    _exhibit(
        "Extremes shared in the clear",
        _GITHUB + "ValerianRey/fed_iot_guard/issues/14",
        "un-noised output",
        "What normalises the features, their smallest and largest values, is shared without noise.",
        shares_the_extremes,
    ),
    _exhibit(
        "A score of the raw gradient",
        _GITHUB + "myoungjun415/as_lora/commit/a9992c9",
        "un-noised output",
        "The layers' score was computed from gradients before clip and noise (code of May 2026).",
        scores_the_raw_gradient,
        seen="code",
    ),
    _exhibit(
        "The median as limit, of a mean",
        _GITHUB + "junkangLiu0/LA-LORA/commit/5f7e8e0",
        "reach",
        "The batch's mean gradient is clipped, tensor by tensor, at the median of its own norms.",
        clips_at_the_median,
        seen="code",
        claims=replace(DP_SGD_CLAIMS, clip_norm=0.4, noise_multiplier=0.2),
    ),
    _exhibit(
        "Each tensor clipped, one counted",
        _GITHUB + "CUHK-AIM-Group/DEeR/commit/7dd430e",
        "reach",
        "Every tensor may move by C, the noise is that of one: four tensors move by 2C.",
        clips_each_tensor,
        seen="code",
        clients=True,
    ),
    _exhibit(
        "Noise shaped by an inverse",
        _GITHUB + "CUHK-AIM-Group/DEeR/commit/7dd430e",
        "noise size",
        "Noise times the pseudo-inverse of the other factor is small where that factor is large.",
        shapes_by_the_inverse,
        seen="code",
        clients=True,
    ),
    _exhibit(
        "Examples counted, clients noised",
        _GITHUB + "CUHK-AIM-Group/DEeR/commit/7dd430e",
        "accounting",
        "σ is that of sampled examples; all clients take part in all of a hundred releases.",
        client_step,
        seen="code",
        clients=True,
        claims=replace(_OF_CLIENTS, dataset_size=12, steps=100, epsilon=1.0, delta=1 / 12),
    ),
    _exhibit(
        "An asymptotic formula",
        _GITHUB + "junkangLiu0/LA-LORA/commit/228579a",
        "accounting",
        "ε = 2q√(T ln(1/δ))/σ holds for tiny ε only; here it says 1 where 3.5 is spent.",
        with_less_noise,
        seen="code",
        claims=replace(
            DP_SGD_CLAIMS,
            noise_multiplier=0.56,
            sampling="poisson",
            sample_rate=16 / 6250,
            dataset_size=6250,
            steps=1000,
            epsilon=1.0,
            delta=1e-5,
        ),
    ),
    _exhibit(
        "The weights themselves are clipped",
        _GITHUB + "ahahnut/DP-FedLoRA/commit/648254e",
        "reach",
        "Every tensor of weights, not the change, is cut to norm C; one release counts both.",
        clips_the_weights,
        seen="code",
        clients=True,
    ),
    _exhibit(
        "Squares under the noise of roots",
        _GITHUB + "2019ChenGong/DP-SAPF/commit/e721d60",
        "reach",
        "Squared norms of gradients clipped to F move by F², and are noised as if by F.",
        releases_squares,
        seen="code",
        claims=replace(DP_SGD_CLAIMS, clip_norm=2.0, noise_multiplier=5.0, denominator=1),
    ),
    _exhibit(
        "A sketch that everybody knows",
        "https://arxiv.org/abs/2509.08195",
        "accounting",
        "ε counts the sketch as secret noise, and clients and server know it: 1.6 is claimed.",
        noises_a_known_sketch,
        seen="text",
        clients=True,
        claims=replace(
            _OF_CLIENTS,
            denominator=1,
            noise_multiplier=0.2026,
            sampling="poisson",
            sample_rate=4 / 625,
            dataset_size=625,
            steps=500,
            epsilon=1.6,
            delta=1e-5,
        ),
    ),
)
