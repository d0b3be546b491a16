"""Numbers of mistakes that no single step shows: learning, reporting, seeds and sampling.

Each function returns one number of a small mechanism, with the mistake (``broken``) or without it,
and the same number every time. mistakes.toml names them, and the line between the two.
"""

import warnings
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab import tasks, theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.audit.bounds import best_threshold_bound
from fedlora_lab.federated.run import run
from fedlora_lab.methods.filters import binomial
from fedlora_lab.methods.method import Cycle
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.published import LALoRA

DELTA = 1e-5


def proved_epsilon(inside: np.ndarray, outside: np.ndarray) -> float:
    """Returns the epsilon at `DELTA` that the scores of an attack prove, 95 % sure.

    Args: inside, outside: (n,) scores of independent runs with and without the example.
    """
    learn_in, judge_in = np.array_split(inside, 2)
    learn_out, judge_out = np.array_split(outside, 2)
    # The first halves choose the threshold, the second halves are judged by it.
    learn = np.concatenate([learn_in, learn_out])
    grid = np.unique(np.quantile(learn, np.linspace(0.001, 0.999, 200)))
    bound = partial(best_threshold_bound, delta=DELTA, significance=0.05)
    best = grid[int(np.argmax([bound(learn_in, learn_out, thresholds=[t]) for t in grid]))]
    return bound(judge_in, judge_out, thresholds=[best])


def delta_of_one_over_units(broken: bool) -> float:
    units = 100
    delta = (1 if broken else 0.01) / units
    published = np.random.default_rng(6).binomial(units, delta, 20_000)
    return float((published > 0).mean())


def shuffled_batches(broken: bool) -> float:
    runs, steps, sigma, scores = 20_000, 200, 0.8, []
    rng = np.random.default_rng(14)
    its_step = np.arange(steps) == steps // 2
    chance = its_step.astype(float) if broken else np.full(steps, 1 / steps)
    for present in (1, 0):
        member = np.tile(its_step, (runs, 1)) if broken else rng.random((runs, steps)) < 1 / steps
        seen = present * member + sigma * rng.standard_normal((runs, steps))
        # The likelihood ratio: each step by the chance, known to all, that the example is in it.
        scores.append(np.log1p(chance * np.expm1((2 * seen - 1) / (2 * sigma**2))).sum(1))
    return proved_epsilon(*scores)


def alternation_begins_with_a(broken: bool) -> float:
    row = LALoRA.replace(name="A first", train=Cycle(("A B",))) if broken else LALoRA
    task = tasks.regression(clients=2, examples=8, d_in=8, d_out=6, rank=2, test=4)
    plan = Plan(rounds=1, local_steps=1, batch=None, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one of the factors never moves in a single step
        before, after = run(task, row, None, plan, lora=Lora(rank=2, alpha=2.0))
    pairs = zip(before.adapter.values(), after.adapter.values(), strict=True)
    squares = (float((x - y).square().sum()) for old, new in pairs for x, y in zip(old, new))
    return sum(squares) ** 0.5 / 0.1


def smoothed_step_taken_twice(broken: bool) -> float:
    random = torch.Generator().manual_seed(18)
    noised = 1 + torch.randn(32, 2, generator=random, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros_like(noised) - 0.1 * binomial(5)(noised, "B"))
    if broken:
        weight.grad = noised
        torch.optim.SGD([weight], lr=0.1).step()
    return float(-weight.detach().mean() / (0.1 * noised.mean()))  # the filter keeps the mean


def norm_by_a_bound(broken: bool) -> float:
    rng = np.random.default_rng(19)
    inputs = rng.standard_normal((128, 768))  # of 128 tokens
    errors = rng.standard_normal((128, 768))
    norm = np.linalg.norm(errors.T @ inputs)
    # Cauchy-Schwarz over the tokens.
    bound = np.linalg.norm(inputs) * np.linalg.norm(errors)
    return float((bound if broken else norm) / norm)


def unscaled_residual(broken: bool) -> float:
    rng = np.random.default_rng(20)
    B = rng.standard_normal((5, 8, 2))
    A = rng.standard_normal((5, 2, 8))
    scaling = 4.0
    mean = scaling * (B @ A).mean(0)
    residual = -theory.deviation_matrix(B, A) * (1.0 if broken else scaling)
    server = scaling * B.mean(0) @ A.mean(0) + residual
    return float(np.linalg.norm(server - mean) / np.linalg.norm(mean))


def clients_in_one_model(broken: bool) -> float:
    rng = np.random.default_rng(21)
    x, y = rng.standard_normal((3, 8, 3)), rng.standard_normal((3, 8, 2))

    def trained(start: np.ndarray, k: int) -> np.ndarray:
        for _ in range(5):
            start = start - 0.1 * (x[k] @ start.T - y[k]).T @ x[k] / 8
        return start

    zero = np.zeros((2, 3))
    # The second client, after one or another first client.
    ends = [trained(trained(zero, first) if broken else zero, 2) for first in (0, 1)]
    return float(np.linalg.norm(ends[0] - ends[1]) / np.linalg.norm(ends[0]))


def best_round(broken: bool) -> float:
    curves = np.random.default_rng(24).binomial(100, 0.8, (1000, 20)) / 100
    reported = curves.max(1) if broken else curves[:, -1]
    return 100 * (float(reported.mean()) - 0.8)


def best_of_twenty(broken: bool) -> float:
    rng = np.random.default_rng(27)
    scores = [mean + rng.standard_normal((20_000, 20)) for mean in (1.0, 0.0)]  # each is 1-GDP
    return proved_epsilon(*(x.max(1) if broken else x[:, 0] for x in scores))


def published_seed(broken: bool) -> float:
    ours, theirs = (Streams(25 if broken else None) for _ in range(2))
    released = 0.5 + ours.normal((100_000,), "noise", 0)
    guess = released - theirs.normal((100_000,), "noise", 0)
    # Rounded, for without a seed no two measurements are equal.
    return round(float((guess - 0.5).square().mean().sqrt()), 1)


def floating_point_noise(broken: bool) -> float:
    def release(value: float, noise: Tensor) -> Tensor:
        noised = torch.tensor(value, dtype=torch.float32) + noise
        # Rounding to a grid closes this hole, and proves nothing about others.
        return noised if broken else torch.round(noised * 1024) / 1024

    seen = release(0.0, Streams(26).normal((100_000,), "noise", 0))
    return float((release(1.0, seen - 1.0) != seen).float().mean())


def one_integer_for_two_purposes(broken: bool) -> float:
    streams = (Streams(0).numpy(purpose) for purpose in ("pretraining", "adapter"))
    generators = [np.random.default_rng(0) for _ in range(2)] if broken else streams
    first, second = (generator.standard_normal(4096) for generator in generators)
    return abs(float(np.corrcoef(first, second)[0, 1]))
