"""Pitfalls of privacy: what is counted, how it is clipped, and what gets past the noise."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

from fedlora_lab import theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.audit import bounds
from fedlora_lab.course.sharp_edges.pitfall import UP_TO_1, make_pitfall
from fedlora_lab.methods.filters import Preconditioner, factor_space, product_space
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.mechanism import clip_sum, gaussian_noise, row_norms

DELTA = 1e-5

# 1: a new accountant for every round


def last_rounds_ledger(rounds: int, steps: int, q: float, sigma: float) -> float:
    """Opens a ledger for every round, and asks the last."""
    return one_ledger(1, steps, q, sigma)


def one_ledger(rounds: int, steps: int, q: float, sigma: float) -> float:
    """Writes every round into the same ledger."""
    ledger = Ledger(delta=DELTA, accountant="rdp")
    for t in range(rounds):
        ledger.record(t, None, steps, sample_rate=q, noise_multiplier=sigma)
    return ledger.epsilon()


def epsilon_stated(count: Callable[..., float]) -> float:
    """Epsilon stated after 100 rounds of 125 steps, q = 32 / 4000, sigma = 1."""
    return count(100, 125, 32 / 4000, 1.0)


# 2: noise for one round, used for sixty


def sigma_for_a_round(epsilon: float, q: float, steps: int, rounds: int) -> float:
    """The noise under which one round spends epsilon."""
    return sigma_for_all_rounds(epsilon, q, steps, 1)


def sigma_for_all_rounds(epsilon: float, q: float, steps: int, rounds: int) -> float:
    """The noise under which all rounds together spend epsilon."""
    return accounting.noise_multiplier(epsilon, DELTA, q, steps * rounds, "rdp")


def epsilon_spent(choose_sigma: Callable[..., float]) -> float:
    """Epsilon spent by sixty rounds, an epoch each, where 6 was meant."""
    sigma = choose_sigma(6.0, 1 / 400, 400, 60)
    return accounting.epsilon(((sigma, 1 / 400, 400 * 60),), DELTA, "rdp")


# 5: counting examples, adding noise to clients


def sigma_from_examples(epsilon: float) -> float:
    """Noise for draws of 128 of 6,400 examples, to be put on whole updates."""
    plan = Plan(rounds=100, local_steps=50, batch=128)
    return _calibrated(Privacy(unit="example", delta=1e-3 / 12), epsilon, plan, (6400,))


def sigma_for_clients(epsilon: float) -> float:
    """Noise for whole updates of clients who are there in every round."""
    privacy = Privacy(unit="client", delta=1e-3 / 12, trust="local")
    return _calibrated(privacy, epsilon, Plan(rounds=100), (6400,) * 12)


def _calibrated(privacy: Privacy, epsilon: float, plan: Plan, sizes: tuple[int, ...]) -> float:
    task, privacy = SimpleNamespace(sizes=sizes), privacy.replace(accountant="rdp")
    sigma = privacy.calibrate(epsilon=epsilon, task=task, plan=plan).noise_multiplier
    assert isinstance(sigma, float)
    return sigma


def epsilon_of_a_client(choose_sigma: Callable[[float], float]) -> float:
    """Epsilon of one client after a hundred noised updates, where 1 was meant."""
    return theory.gdp_epsilon(theory.gaussian_mu(choose_sigma(1.0), 100), 1e-3 / 12)


# 6: delta as large as one over the number of units


def one_over_units(units: int) -> float:
    """delta = 1 / K."""
    return 1 / units


def far_below(units: int) -> float:
    """A hundredth of that, as a plan accepts it."""
    task = SimpleNamespace(sizes=(1,) * units)
    privacy = Privacy(unit="client", delta=0.01 / units, noise_multiplier=1.0)
    return privacy.resolve(task, Plan()).delta


def chance_of_publication(choose_delta: Callable[[int], float]) -> float:
    """Chance that somebody is published outright where each may be with chance delta."""
    units, trials = 100, 20_000
    published = np.random.default_rng(6).binomial(units, choose_delta(units), trials)
    return float((published > 0).mean())


# 9: the textbook sigma outside its range


def textbook_sigma(epsilon: float, delta: float) -> float:
    """The formula where it was never proven."""
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def exact_sigma(epsilon: float, delta: float) -> float:
    """Noise from the accountant."""
    return accounting.noise_multiplier(epsilon, delta, 1.0, 1)


def delta_in_truth(choose_sigma: Callable[[float, float], float]) -> float:
    """delta that one release really has at epsilon = 12, in units of the delta that was meant."""
    return theory.gdp_delta(1 / choose_sigma(12.0, DELTA), 12.0) / DELTA


# 13: noise for the expected number of participations

ROUNDS, SHARE, STEPS, Q = 40, 0.25, 5, 0.1


def sigma_for_the_expected(epsilon: float) -> float:
    """Noise for the ten rounds that a client has on average."""
    return accounting.noise_multiplier(epsilon, DELTA, Q, int(ROUNDS * SHARE) * STEPS, "rdp")


def sigma_for_every_round(epsilon: float) -> float:
    """Noise as `Privacy.calibrate` takes it: for a client who is there every time."""
    plan = Plan(rounds=ROUNDS, local_steps=STEPS, batch=10, participation=SHARE)
    return _calibrated(Privacy(delta=DELTA), epsilon, plan, (100,))


def epsilon_of_the_unlucky(choose_sigma: Callable[[float], float]) -> float:
    """Largest epsilon among 100 clients drawn round by round, where 2 was meant."""
    often = int(np.random.default_rng(13).binomial(ROUNDS, SHARE, 100).max())
    return accounting.epsilon(((choose_sigma(2.0), Q, often * STEPS),), DELTA, "rdp")


# 14: shuffled batches under Poisson accounting

Batches = tuple[np.ndarray, np.ndarray]


def in_turn(runs: int, steps: int, rng: np.random.Generator) -> Batches:
    """Cuts the examples into batches once; whoever knows the order knows the step."""
    own = np.arange(steps) == steps // 2
    return np.tile(own, (runs, 1)), own.astype(float)


def poisson(runs: int, steps: int, rng: np.random.Generator) -> Batches:
    """Draws every example for every step on its own."""
    return rng.random((runs, steps)) < 1 / steps, np.full(steps, 1 / steps)


def epsilon_proved_of_batches(draw: Callable[..., Batches]) -> float:
    """What 2 x 20,000 runs of 200 noised steps prove about epsilon (95 %); sigma 0.8, q = 1 / 200.

    The attacker weighs each step by the chance, known to him, that the example is in it: the
    likelihood ratio.
    """
    runs, steps, sigma, rng, scores = 20_000, 200, 0.8, np.random.default_rng(14), []
    for there in (1, 0):
        member, chance = draw(runs, steps, rng)
        seen = there * member + sigma * rng.standard_normal((runs, steps))
        scores.append(np.log1p(chance * np.expm1((2 * seen - 1) / (2 * sigma**2))).sum(1))
    return bounds.split_threshold_bound(scores[0], scores[1], DELTA, 0.05)


# 22: a central-limit approximation reported as epsilon


def central_limit(q: float, sigma: float, steps: int, delta: float) -> float:
    """Epsilon of the central limit of Gaussian DP."""
    return theory.gdp_epsilon(theory.clt_mu(q, sigma, steps), delta)


def accountant(q: float, sigma: float, steps: int, delta: float) -> float:
    """Epsilon of the library's accountant."""
    return accounting.epsilon(((sigma, q, steps),), delta)


def epsilon_of_many_draws(count: Callable[..., float]) -> float:
    """Epsilon stated for q = 0.1, sigma = 3, 512 steps, delta = 1e-6."""
    return count(0.1, 3.0, 512, 1e-6)


Rows = dict[ParamKey, Tensor]
ONE = ParamKey("B", "layer")
CLIP = 1.0


def clip_and_sum(rows: Rows, clip: float) -> Rows:
    """Clips every row over all its tensors and adds up, as the library does; key -> (...)."""
    count = len(next(iter(rows.values())))
    sums, _ = clip_sum(rows, clip, torch.zeros(count, dtype=torch.int64), 1)
    return {key: total[0] for key, total in sums.items()}


def _clip_one(rows: Tensor, clip: float) -> Tensor:
    return clip_and_sum({ONE: rows}, clip)[ONE]


def _largest_move(release: Callable[[Rows, float], Rows], rows: Rows) -> float:
    """How far leaving out one row moves what is released at most, in units of C."""
    count, whole, moves = len(next(iter(rows.values()))), release(rows, CLIP), [0.0]
    for i in range(count):
        part = release({key: x[torch.arange(count) != i] for key, x in rows.items()}, CLIP)
        squares = (float((whole[key] - part[key]).square().sum()) for key in whole)
        moves.append(math.sqrt(sum(squares)))
    return max(moves) / CLIP


# 3: clipping the mean gradient of a batch


def clip_the_mean(rows: Rows, clip: float) -> Rows:
    """Takes the mean of 16 first and clips that; given back as a sum."""
    mean = {key: x.sum(0, keepdim=True) / 16 for key, x in rows.items()}
    return {key: 16 * x for key, x in clip_and_sum(mean, clip).items()}


def move_by_one(release: Callable[[Rows, float], Rows]) -> float:
    """Largest move by one example: fifteen gradients one way, a huge one against them."""
    rows = torch.zeros(16, 4, dtype=torch.float64)
    rows[:15, 0], rows[15, 0] = 2.0, -1e4
    return _largest_move(release, {ONE: rows})


# 4: a threshold taken from the batch


def at_the_median(rows: Tensor, clip: float) -> tuple[Tensor, float]:
    """Takes the median norm of the batch for a threshold."""
    return at_the_plans(rows, float(row_norms({ONE: rows}).quantile(0.5)))


def at_the_plans(rows: Tensor, clip: float) -> tuple[Tensor, float]:
    """Takes the threshold of the plan."""
    return _clip_one(rows, clip), clip


def move_in_thresholds(release: Callable[[Tensor, float], tuple[Tensor, float]]) -> float:
    """Largest move by one example, in units of the threshold that scales the noise."""
    rows = torch.zeros(17, 2, dtype=torch.float64)
    rows[:8, 0], rows[8:, 0] = 1.0, 100.0
    whole, _ = release(rows, CLIP)
    parts = [release(rows[torch.arange(17) != i], CLIP) for i in range(17)]
    return max(float((whole - part).norm()) / clip for part, clip in parts)


# 7: a clip for each tensor


def clip_each_tensor(rows: Rows, clip: float) -> Rows:
    """Clips every tensor to C by itself."""
    return {key: clip_and_sum({key: x}, clip)[key] for key, x in rows.items()}


def move_over_tensors(release: Callable[[Rows, float], Rows]) -> float:
    """Largest move by one example over four tensors, in units of C."""
    random = torch.Generator().manual_seed(7)
    draws = [9 * torch.randn(5, 3, generator=random, dtype=torch.float64) for _ in range(4)]
    return _largest_move(release, {ParamKey("B", f"layer {i}"): x for i, x in enumerate(draws)})


# 8: clipping the weights instead of the update


def clip_the_weights(trained: Tensor, start: Tensor) -> Tensor:
    """Clips the client's weights; given back as the change that the server sees."""
    return _clip_one(trained, CLIP) - start


def clip_the_change(trained: Tensor, start: Tensor) -> Tensor:
    """Clips the change since what the client received."""
    return _clip_one(trained - start, CLIP)


def move_by_a_client(release: Callable[[Tensor, Tensor], Tensor]) -> float:
    """How far one client that trained a little moves a model of norm 3 C, in units of C."""
    start = torch.tensor([3.0, 0.0], dtype=torch.float64) * CLIP
    trained = start + torch.tensor([0.0, 0.1], dtype=torch.float64) * CLIP
    return float(release(trained[None], start).norm()) / CLIP


# 10: weights by size


def weighted_by_size(updates: Tensor, there: Tensor, sizes: Tensor) -> Tensor:
    """Mean of clipped updates with weights n_k / n."""
    return (sizes / sizes.sum() * there) @ updates


def weighted_equally(updates: Tensor, there: Tensor, sizes: Tensor) -> Tensor:
    """Mean of clipped updates with weights 1 / K, whoever is there."""
    return (there / len(updates)) @ updates


def move_in_shares(mean: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
    """Largest move of the mean by one of eight clients, in the noise's units of C / K."""
    sizes = torch.tensor([400.0, 100, 80, 60, 40, 40, 20, 10], dtype=torch.float64)
    each, everyone = torch.eye(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    whole = mean(CLIP * each, everyone, sizes)
    parts = [mean(CLIP * each, everyone - each[k], sizes) for k in range(8)]
    return max(float((whole - part).norm()) for part in parts) / (CLIP / 8)


# 11: a share of noise, seen alone


def share_of_the_noise(sigma: float, clients: int) -> float:
    """Standard deviation of what each adds for a sum that nobody takes apart."""
    return _noise_of_each("secagg", sigma, clients)


def noise_of_its_own(sigma: float, clients: int) -> float:
    """Standard deviation of what each adds when its upload is seen."""
    return _noise_of_each("local", sigma, clients)


def _noise_of_each(trust: str, sigma: float, clients: int) -> float:
    privacy = Privacy(unit="client", trust=trust, noise_multiplier=sigma, delta=1e-3)
    each = privacy.noise(clients, Plan()).each
    assert isinstance(each, float)
    return each


def epsilon_seen_alone(choose_noise: Callable[[float, int], float]) -> float:
    """Epsilon of one of a hundred uploads for who looks at it; sigma = 4, delta = 1e-5."""
    return theory.gdp_epsilon(CLIP / choose_noise(4.0, 100), 1e-5)


# 12: noise shaped by a pseudo-inverse


def worst_shift(rule: Callable[[Tensor], Preconditioner]) -> float:
    """Noise deviations (1 / sigma) by which the worst allowed change stands out; peer norm 3."""
    peer = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    shape = rule(peer @ peer.mT)
    return float(torch.linalg.matrix_norm(torch.linalg.pinv(shape.noise) @ shape.after, ord=2))


# 15: a score computed from raw gradients


def with_a_raw_score(rows: Tensor, clip: float) -> Tensor:
    """Uploads the noised sum, and beside it how large the gradients were."""
    return torch.cat([_noised(rows, clip), rows.norm().reshape(1)])


def with_a_noised_score(rows: Tensor, clip: float) -> Tensor:
    """Uploads the noised sum, and beside it how large that is."""
    sent = _noised(rows, clip)
    return torch.cat([sent, sent.norm().reshape(1)])


def _noised(rows: Tensor, clip: float) -> Tensor:
    """Clipped sum plus noise, whatever the clip."""
    xi = gaussian_noise({ONE: rows.shape[1:]}, [1.0], Streams(15), [(0, 0, 0)])[ONE][0]
    return _clip_one(rows, clip) + xi


def numbers_that_differ(release: Callable[[Tensor, float], Tensor]) -> float:
    """How many released numbers depend on the data although C = 0 lets nothing through."""
    data = (torch.tensor(np.random.default_rng(seed).standard_normal((6, 5))) for seed in (0, 1))
    one, other = (release(rows, 0.0) for rows in data)
    return float((one != other).sum())


PITFALLS = (
    make_pitfall(1, last_rounds_ledger, one_ledger, epsilon_stated, 5.42, "at least"),
    make_pitfall(2, sigma_for_a_round, sigma_for_all_rounds, epsilon_spent, 6.0),
    make_pitfall(5, sigma_from_examples, sigma_for_clients, epsilon_of_a_client, 1.0),
    make_pitfall(6, one_over_units, far_below, chance_of_publication, 0.02),
    make_pitfall(9, textbook_sigma, exact_sigma, delta_in_truth, 1.0),
    make_pitfall(13, sigma_for_the_expected, sigma_for_every_round, epsilon_of_the_unlucky, 2.0),
    make_pitfall(14, in_turn, poisson, epsilon_proved_of_batches, 1.0),
    make_pitfall(22, central_limit, accountant, epsilon_of_many_draws, 3.77, "at least"),
    make_pitfall(3, clip_the_mean, clip_and_sum, move_by_one, UP_TO_1),
    make_pitfall(4, at_the_median, at_the_plans, move_in_thresholds, UP_TO_1),
    make_pitfall(7, clip_each_tensor, clip_and_sum, move_over_tensors, UP_TO_1),
    make_pitfall(8, clip_the_weights, clip_the_change, move_by_a_client, UP_TO_1),
    make_pitfall(10, weighted_by_size, weighted_equally, move_in_shares, UP_TO_1),
    make_pitfall(11, share_of_the_noise, noise_of_its_own, epsilon_seen_alone, 0.93),
    make_pitfall(12, factor_space, product_space, worst_shift, UP_TO_1),
    make_pitfall(15, with_a_raw_score, with_a_noised_score, numbers_that_differ, 0.0),
)
