"""Right and wrong answers to the exercises of notebook 14."""

import numpy as np

from fedlora_lab.course.exercises import Calls, vary
from fedlora_lab.tasks import partition

WORDS = ("calm", "glad", "grim", "warm")
PLACES = ("east", "north", "south")


def _table(rng):
    """Sites of unlike sizes in mixed order; each lacks a word, and no order is the sorted one."""
    while True:
        sites = [PLACES[i] for i in rng.permutation(np.repeat([0, 1, 2], [5, 7, 9]))]
        kept = {place: rng.permutation(WORDS)[:3] for place in PLACES}
        labels = [str(rng.choice(kept[site])) for site in sites]
        right = by_site(sites, labels)
        if all(_differ(wrong(sites, labels), right) for wrong in WRONG_TABLES):
            return sites, labels


def _differ(one, other):
    return any(len(a) != len(b) or (a != b).any() for a, b in zip(one, other, strict=True))


def _plans(rng):
    """Three to five plans, of which about a half is too much work."""
    count, base, slope = int(rng.integers(3, 6)), rng.uniform(0.3, 1), rng.uniform(0.5, 2)
    plans = [(int(rng.integers(4, 65)), int(rng.integers(5, 400))) for _ in range(count)]
    n, K, d = (int(rng.integers(*ends)) for ends in ((100, 900), (2, 40), (50, 9000)))
    work = float(np.median([b * N for b, N in plans]))
    return plans, lambda q, N: base + slope * q * np.sqrt(N), n, K, d, work


def _scores(rng):
    m, n = int(rng.integers(3, 9)), int(rng.integers(50, 400))
    correct = (rng.random((m, n)) < rng.uniform(0.5, 0.9, (m, 1))).astype(float)
    return correct, float(rng.uniform(1.2, 4)), rng.laplace(size=m)


CALLS = {
    "14.1": Calls("sites and labels", draw=_table),
    "14.2": Calls("plans, sigma, n, K, d and work", draw=_plans),
    "14.4": Calls("correct, epsilon and xi", draw=_scores, within=1e-9),
}


# ---- 14.1


def by_site(sites, labels):
    numbers = np.unique(labels, return_inverse=True)[1]
    return [numbers[np.array(sites) == site] for site in sorted(set(sites))]


def with_the_library(sites, labels):
    order = sorted(set(labels))
    numbers = np.array([order.index(label) for label in labels])
    return [numbers[rows] for rows in partition.by_group(sites)]


def own_classes(sites, labels):
    parts = [np.array(labels)[np.array(sites) == site] for site in sorted(set(sites))]
    return [np.unique(part, return_inverse=True)[1] for part in parts]


def as_they_appear(sites, labels):
    order = list(dict.fromkeys(labels))
    numbers = np.array([order.index(label) for label in labels])
    return [numbers[np.array(sites) == site] for site in sorted(set(sites))]


def sites_as_they_appear(sites, labels):
    parts = dict(zip(sorted(set(sites)), by_site(sites, labels), strict=True))
    return [parts[site] for site in dict.fromkeys(sites)]


def dealt_out(sites, labels):
    numbers = np.unique(labels, return_inverse=True)[1]
    return np.split(numbers, np.cumsum([len(part) for part in by_site(sites, labels)])[:-1])


labels_sorted = vary(by_site, then=lambda parts: [np.sort(part) for part in parts])
WRONG_TABLES = own_classes, as_they_appear, sites_as_they_appear, dealt_out, labels_sorted


# ---- 14.2


def compare_plans(plans, sigma, n, K, d, work):
    ratios = []
    for b, N in plans:
        ratio = sigma(b / n, N) * np.sqrt(d) / (b * np.sqrt(K * N))
        ratios.append(ratio if b * N <= work else np.inf)
    return ratios


def _all(plans, work, ratio):
    return [ratio(b, N) if b * N <= work else np.inf for b, N in plans]


def from_energies(plans, sigma, n, K, d, work):
    return _all(plans, work, lambda b, N: (N * d * (sigma(b / n, N) / b) ** 2 / K / N**2) ** 0.5)


def of_one_release(plans, sigma, n, K, d, work):
    return _all(plans, work, lambda b, N: sigma(b / n, N) * (d / K) ** 0.5 / b)


def signal_of_one_step(plans, sigma, n, K, d, work):
    return _all(plans, work, lambda b, N: sigma(b / n, N) * (N * d / K) ** 0.5 / b)


def without_the_batch(plans, sigma, n, K, d, work):
    return _all(plans, work, lambda b, N: sigma(b / n, N) * (d / K / N) ** 0.5)


def batch_as_rate(plans, sigma, n, K, d, work):
    return compare_plans(plans, lambda q, N: sigma(q * n, N), n, K, d, work)


of_one_number = vary(compare_plans, d=1)
of_one_site = vary(compare_plans, K=1)
divided_by_K = vary(compare_plans, K=np.square)
without_limit = vary(compare_plans, work=np.inf)
energies = vary(compare_plans, then=np.square)


# ---- 14.4


def private_scores(correct, epsilon, xi):
    m, n = correct.shape
    scale = (1 / n) / (epsilon / m)
    return correct.mean(axis=1) + scale * xi


def on_counts(correct, epsilon, xi):
    m, n = correct.shape
    return (correct.sum(1) + xi * m / epsilon) / n


exact = vary(private_scores, xi=0)
each_in_full = vary(private_scores, xi=lambda xi: xi / len(xi))
noise_on_counts = lambda correct, epsilon, xi: correct.mean(1) + xi * len(correct) / epsilon
budget_upside_down = vary(private_scores, epsilon=lambda epsilon: 1 / epsilon)
without_epsilon = vary(private_scores, epsilon=1)
common_noise = vary(private_scores, xi=lambda xi: xi[0])
counts = lambda correct, epsilon, xi: correct.sum(1) + xi * len(correct) / epsilon
best_alone = vary(private_scores, then=max)
