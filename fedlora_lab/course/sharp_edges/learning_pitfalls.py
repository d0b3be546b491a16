"""Pitfalls of learning and reporting: another model than meant, or a number that says too much."""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab import tasks, theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.audit import bounds
from fedlora_lab.course.sharp_edges.pitfall import UP_TO_1, make_pitfall
from fedlora_lab.federated.simulation import run
from fedlora_lab.methods.filters import binomial
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.methods.table import LALoRA
from fedlora_lab.privacy.mechanism import clip_sum

CLIP = 1.0


def a_first() -> Method:
    """Takes turns and begins with A."""
    return LALoRA.replace(name="A first", train=Cycle(("A B",)))


def b_first() -> Method:
    """Takes turns and begins with B."""
    return LALoRA


def first_step(row: Callable[[], Method]) -> float:
    """How far the first step moves the factors without noise, in units of the learning rate."""
    task = tasks.regression(clients=2, examples=8, d_in=8, d_out=6, rank=2, test=4)
    plan = Plan(rounds=1, local_steps=1, batch=None, lr=0.1)
    before, after = run(task, row(), None, plan, lora=Lora(rank=2, alpha=2.0))
    squares = (
        float((x - y).square().sum())
        for name in before.adapter
        for x, y in zip(before.adapter[name], after.adapter[name], strict=True)
    )
    return math.sqrt(sum(squares)) / 0.1


Rows = dict[ParamKey, Tensor]
KEYS = {side: ParamKey(side, "layer") for side in ("A", "B")}


def norm_over_all(rows: Rows, clip: float) -> Tensor:
    """Clips over both factors although A is frozen; returns what is left for B."""
    return clip_sum(rows, clip, torch.zeros(1, dtype=torch.int64), 1)[0][KEYS["B"]]


def norm_over_what_moves(rows: Rows, clip: float) -> Tensor:
    """Clips over B alone, the factor that moves."""
    return norm_over_all({key: x for key, x in rows.items() if key.side == "B"}, clip)


def norm_left_for_b(clip: Callable[[Rows, float], Tensor]) -> float:
    """Norm of B's clipped gradient, in units of C; A's stale one is three times as long."""
    b, a = torch.zeros(1, 4, 2, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.float64)
    b[0, 0, 0], a[0, 0, 0] = 2.0, 6.0
    return float(clip({KEYS["B"]: b, KEYS["A"]: a}, CLIP).norm()) / CLIP


def smoothed_then_raw(weight: Tensor, noised: Tensor, rate: float) -> Tensor:
    """Takes the smoothed step by hand and lets the optimiser take its own."""
    weight = nn.Parameter((weight - rate * binomial(5)(noised, "B")).clone())
    weight.grad = noised
    torch.optim.SGD([weight], lr=rate).step()
    return weight.detach()


def smoothed(weight: Tensor, noised: Tensor, rate: float) -> Tensor:
    """Takes the smoothed step."""
    return weight - rate * binomial(5)(noised, "B")


def step_length(step: Callable[[Tensor, Tensor, float], Tensor]) -> float:
    """How far the mean entry moves, in steps: the filter keeps the mean."""
    random = torch.Generator().manual_seed(18)
    noised = 1 + torch.randn(32, 2, generator=random, dtype=torch.float64)
    moved = -step(torch.zeros_like(noised), noised, 0.1)
    return float(moved.mean() / (0.1 * noised.mean()))


def norm_by_a_bound(x: Tensor, g: Tensor) -> float:
    """Norm of the inputs times norm of the gradients: Cauchy-Schwarz over the tokens."""
    return float(x.norm() * g.norm())


def norm_of_the_gradient(x: Tensor, g: Tensor) -> float:
    """Norm of the gradient itself, from inner products of tokens."""
    return math.sqrt(float(((x @ x.mT) * (g @ g.mT)).sum()))


def norm_claimed(norm: Callable[[Tensor, Tensor], float]) -> float:
    """Norm by which an example of 128 tokens is clipped, in units of its gradient's."""
    random = torch.Generator().manual_seed(19)
    x, g = (torch.randn(128, width, generator=random, dtype=torch.float64) for width in (768, 768))
    return norm(x, g) / float((g.mT @ x).norm())


def residual_unscaled(B: np.ndarray, A: np.ndarray, scaling: float) -> np.ndarray:
    """What the mean of factors misses, as if the model applied B A."""
    return -theory.deviation(B, A)


def residual_scaled(B: np.ndarray, A: np.ndarray, scaling: float) -> np.ndarray:
    """What the mean of factors misses, as the model applies it."""
    return -scaling * theory.deviation(B, A)


def distance_from_the_mean(residual: Callable[..., np.ndarray]) -> float:
    """Relative distance of the server's change of W from the clients' mean; alpha / r = 4."""
    rng = np.random.default_rng(20)
    B, A, scaling = rng.standard_normal((5, 8, 2)), rng.standard_normal((5, 2, 8)), 4.0
    mean = scaling * (B @ A).mean(0)
    server = scaling * B.mean(0) @ A.mean(0) + residual(B, A, scaling)
    return float(np.linalg.norm(server - mean) / np.linalg.norm(mean))


Clients = list[tuple[Tensor, Tensor]]


def in_one_model(clients: Clients) -> list[Tensor]:
    """Trains the clients one after the other in the same tensor."""
    weight, results = torch.zeros(2, 3, dtype=torch.float64), []
    for x, y in clients:
        weight = _trained(weight, x, y)
        results.append(weight)
    return results


def in_copies(clients: Clients) -> list[Tensor]:
    """Trains each client in its own copy."""
    return [_trained(torch.zeros(2, 3, dtype=torch.float64), x, y) for x, y in clients]


def _trained(start: Tensor, x: Tensor, y: Tensor) -> Tensor:
    for _ in range(5):
        start = start - 0.1 * (x @ start.mT - y).mT @ x / len(x)
    return start


def influence_of_the_other(train: Callable[[Clients], list[Tensor]]) -> float:
    """How far the second client's factor moves when only the first's data change, relative."""
    random = torch.Generator().manual_seed(21)
    draws = [torch.randn(8, d, generator=random, dtype=torch.float64) for d in (3, 2) * 3]
    one, other, second = zip(draws[::2], draws[1::2], strict=True)
    here, there = (train([first, second])[1] for first in (one, other))
    return float((here - there).norm() / here.norm())


def collected_too_early() -> tuple[nn.Module, nn.Module]:
    """Hands the optimiser the parameters that were there before the adapter was."""
    model, start = _model()
    parameters = list(model.parameters())
    adapted = _adapted(model)
    return start, _fitted(adapted, parameters)


def collected_after() -> tuple[nn.Module, nn.Module]:
    """Hands the optimiser what can be trained once the adapter is in."""
    model, start = _model()
    adapted = _adapted(model)
    return start, _fitted(adapted, [p for p in adapted.parameters() if p.requires_grad])


def _model() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(23)
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    return model, copy.deepcopy(model)


def _adapted(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(24)
        return get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))  # type: ignore[arg-type]


def _points() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(25)
    return torch.randn(16, 6, generator=random), torch.randn(16, 2, generator=random)


def _fitted(model: nn.Module, parameters: list[nn.Parameter]) -> nn.Module:
    x, y = _points()
    optimiser = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(10):
        optimiser.zero_grad()
        (model(x) - y).square().mean().backward()
        optimiser.step()
    return model


def change_of_outputs(train: Callable[[], tuple[nn.Module, nn.Module]]) -> float:
    """How far ten steps move the model's outputs."""
    start, end = train()
    with torch.no_grad():
        return float((start(_points()[0]) - end(_points()[0])).norm())


DELTA = 1e-5


def best_round(curve: np.ndarray) -> float:
    """Reports the best round."""
    return float(curve.max())


def last_round(curve: np.ndarray) -> float:
    """Reports the last round."""
    return float(curve[-1])


def points_too_many(report: Callable[[np.ndarray], float]) -> float:
    """Reported less true accuracy, in points: 1,000 runs of 20 rounds at 80 %, 100 examples."""
    curves = np.random.default_rng(24).binomial(100, 0.8, (1000, 20)) / 100
    return 100 * (float(np.mean([report(curve) for curve in curves])) - 0.8)


def best_of_twenty(scores: np.ndarray) -> np.ndarray:
    """Publishes the best of twenty private scores."""
    return scores.max(1)


def the_one_chosen_before(scores: np.ndarray) -> np.ndarray:
    """Publishes the score of the setting that was fixed beforehand."""
    return scores[:, 0]


def epsilon_proved_of_a_choice(publish: Callable[[np.ndarray], np.ndarray]) -> float:
    """What 2 x 20,000 runs prove about epsilon (95 %); one score is 1-GDP, 4.38 at 1e-5."""
    rng = np.random.default_rng(27)
    inside, outside = (publish(there + rng.standard_normal((20_000, 20))) for there in (1.0, 0.0))
    return bounds.split_threshold_bound(inside, outside, DELTA, 0.05)


def scaled_by_the_data(values: np.ndarray) -> np.ndarray:
    """Publishes mean and spread of the private values, to normalise with."""
    return np.array([values.mean(), values.std()])


def scaled_by_constants(values: np.ndarray) -> np.ndarray:
    """Publishes the constants that were known before: pixels go from 0 to 16."""
    return np.array([8.0, 16.0])


def move_of_statistics(publish: Callable[[np.ndarray], np.ndarray]) -> float:
    """How far leaving out one of 20 values moves what is published without noise."""
    values = np.random.default_rng(28).uniform(0, 16, 20)
    whole = publish(values)
    return max(float(np.abs(whole - publish(np.delete(values, i))).max()) for i in range(20))


NUMBERS = 100_000


def published_seed() -> tuple[Streams, Streams]:
    """The noise's streams, and what the attacker makes of the log: the same."""
    return Streams(25), Streams(25)


def no_seed() -> tuple[Streams, Streams]:
    """Noise from the operating system; the attacker can only draw anew."""
    return Streams(None), Streams(None)


def error_after_subtraction(streams: Callable[[], tuple[Streams, Streams]]) -> float:
    """Noise deviations by which the attacker misses a noised value."""
    ours, theirs = streams()
    released = 0.5 + ours.normal((NUMBERS,), "noise", 0)
    guess = released - theirs.normal((NUMBERS,), "noise", 0)
    # Rounded, for without a seed no two measurements are equal.
    return round(float((guess - 0.5).square().mean().sqrt()), 1)


def in_floating_point(value: float, xi: Tensor) -> Tensor:
    """Value plus noise, float32: what comes out is where such numbers lie dense enough."""
    return torch.tensor(value, dtype=torch.float32) + xi


def on_a_grid(value: float, xi: Tensor) -> Tensor:
    """The same, rounded to steps of 1/1024. Closes this hole, and proves nothing about others."""
    return torch.round(in_floating_point(value, xi) * 1024) / 1024


def share_betrayed(release: Callable[[float, Tensor], Tensor]) -> float:
    """Share of releases of the value 0 that no noise could make of the value 1."""
    seen = release(0.0, Streams(26).normal((NUMBERS,), "noise", 0))
    back = release(1.0, seen - 1.0)
    return float((back != seen).float().mean())


def one_integer(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pretrained weights and the adapter's start, both from the same integer."""
    one, other = np.random.default_rng(seed), np.random.default_rng(seed)
    return one.standard_normal(4096), other.standard_normal(4096)


def two_purposes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same two from streams that are named by purpose."""
    one, other = (Streams(seed).numpy(purpose) for purpose in ("pretraining", "adapter"))
    return one.standard_normal(4096), other.standard_normal(4096)


def correlation(draw: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> float:
    """Correlation of the two streams."""
    return abs(float(np.corrcoef(*draw(0))[0, 1]))


PITFALLS = (
    make_pitfall(16, a_first, b_first, first_step, 0.01, "at least"),
    make_pitfall(17, norm_over_all, norm_over_what_moves, norm_left_for_b, 1 - 1e-9, "at least"),
    make_pitfall(18, smoothed_then_raw, smoothed, step_length, UP_TO_1),
    make_pitfall(19, norm_by_a_bound, norm_of_the_gradient, norm_claimed, UP_TO_1),
    make_pitfall(20, residual_unscaled, residual_scaled, distance_from_the_mean, 1e-9),
    make_pitfall(21, in_one_model, in_copies, influence_of_the_other, 0.0),
    make_pitfall(23, collected_too_early, collected_after, change_of_outputs, 0.1, "at least"),
    make_pitfall(24, best_round, last_round, points_too_many, 1.0),
    make_pitfall(25, published_seed, no_seed, error_after_subtraction, 1.0, "at least"),
    make_pitfall(26, in_floating_point, on_a_grid, share_betrayed, 0.0),
    make_pitfall(27, best_of_twenty, the_one_chosen_before, epsilon_proved_of_a_choice, 4.38),
    make_pitfall(28, scaled_by_the_data, scaled_by_constants, move_of_statistics, 0.0),
    make_pitfall(29, one_integer, two_purposes, correlation, 0.1),
)
