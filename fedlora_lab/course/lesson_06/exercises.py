"""Right and wrong answers to the built exercises of notebook 06."""

from functools import partial

import numpy as np
import torch
from numpy.linalg import norm, pinv

from fedlora_lab import theory
from fedlora_lab.course.exercises import Calls, vary
from fedlora_lab.methods.filters import product_space


def _federation(rng):
    """A step size at which no schedule diverges, whatever factors and scale are drawn."""
    B, A = rng.standard_normal((4, 2)), rng.standard_normal((2, 5))
    wanted, p, gamma = rng.standard_normal((3, 4, 5)), rng.dirichlet([4, 2, 1]), rng.uniform(1.2, 2)
    eta = 0.3 / (gamma * max(norm(B, 2), norm(A, 2))) ** 2
    return B, A, wanted, p, eta, gamma, 2, int(rng.integers(3, 6))


def _noise(rng):
    """An odd number of rounds, so that the factor that begins has one more."""
    sizes = (int(x) for x in rng.permutation(np.arange(3, 40))[:3])
    return 2 * int(rng.integers(1, 12)) + 1, rng.uniform(0.1, 0.5), *sizes, rng.uniform(1.5, 3)


def _updates(rng, clients=4):
    """Two clients change the product by more than C, two by less; A is stretched unequally."""
    left, right = (np.linalg.qr(rng.standard_normal((n, 3)))[0] for n in (3, 7))
    A = left @ np.diag([rng.uniform(1.5, 2.5), 1.0, rng.uniform(0.3, 0.6)]) @ right.T
    C, dB = rng.uniform(0.5, 2), rng.standard_normal((clients, 5, 3))
    wanted = C * np.array([rng.uniform(2, 4), rng.uniform(4, 8), rng.uniform(0.2, 0.5), 0.7])
    dB *= (wanted / norm(dB @ A, axis=(1, 2)))[:, None, None]
    return dB, A, C, rng.uniform(0.5, 1.5), rng.standard_normal((5, 7))


CALLS = {
    "06.1": Calls("B, A, wanted, p, eta, gamma, S and T", draw=_federation),
    "06.2": Calls("T, tau, d_out, d_in, r and gamma", (8, 0.2, 30, 20, 3, 2.0), draw=_noise),
    "06.3": Calls("dB, A, C, sigma and xi", draw=_updates),
}


# ---- 06.1: rounds in which the factors take turns


def take_turns(B, A, wanted, p, eta, gamma, S, T):
    for t in range(T):
        new_B, new_A = [], []
        for W in wanted:
            b, a = B, A
            for _ in range(S):
                G = gamma * b @ a - W
                if t % 2 == 0:
                    b = b - eta * gamma * G @ a.T
                else:
                    a = a - eta * gamma * b.T @ G
            new_B.append(b)
            new_A.append(a)
        B, A = np.tensordot(p, new_B, 1), np.tensordot(p, new_A, 1)
    return B, A


def all_clients_at_once(B, A, wanted, p, eta, gamma, S, T):
    """The factor at rest is common, so it needs no mean."""
    for t in range(T):
        b, a = np.tile(B, (len(wanted), 1, 1)), np.tile(A, (len(wanted), 1, 1))
        for _ in range(S):
            G = gamma * b @ a - wanted
            if t % 2:
                a = a - eta * gamma * np.einsum("kor,koi->kri", b, G)
            else:
                b = b - eta * gamma * np.einsum("koi,kri->kor", G, a)
        B, A = (B, np.einsum("k,kri->ri", p, a)) if t % 2 else (np.einsum("k,kor->or", p, b), A)
    return B, A


def _turns(*given, word=lambda t, s: "BA"[t % 2], chain=True, broadcast=True):
    """`take_turns` with another schedule, ``word(t, s)``, or with one of its parts left out."""
    B, A, wanted, p, eta, gamma, S, T = given
    step = eta * (gamma if chain else 1)
    held = [(B, A)] * len(wanted)
    for t in range(T):
        for k, (b, a) in enumerate(held):
            for s in range(S):
                G, moves = gamma * b @ a - wanted[k], word(t, s)
                one = b - step * G @ a.T if "B" in moves else b
                two = a - step * b.T @ G if "A" in moves else a
                b, a = one, two
            held[k] = b, a
        B, A = (np.tensordot(p, [pair[i] for pair in held], 1) for i in (0, 1))
        held = [(B, A)] * len(wanted) if broadcast else held
    return B, A


a_first = partial(_turns, word=lambda t, s: "AB"[t % 2])
both_move = partial(_turns, word=lambda t, s: "AB")
turns_by_step = partial(_turns, word=lambda t, s: "BA"[s % 2])
a_never = partial(_turns, word=lambda t, s: "B")
without_the_scale = partial(_turns, chain=False)
plain_mean = vary(take_turns, p=lambda p: np.full(len(p), 1 / len(p)))
never_sent_back = partial(_turns, broadcast=False)


# ---- 06.2: the noise that is there after T rounds


def energy_in_turns(T, tau, d_out, d_in, r, gamma):
    N_B, N_A = (T + 1) // 2, T // 2
    linear = d_out * r / 3 * N_B * tau**2
    quadratic = d_out * d_in * r * N_B * N_A * tau**4
    return gamma**2 * (linear + quadratic)


def by_theory(T, tau, d_out, d_in, r, gamma):
    terms = theory.accumulated_noise_terms(d_out, r, d_in, tau, tau, T - T // 2, T // 2, gamma)
    return terms.total


def _energy(*given, rounds=lambda T: (T - T // 2, T // 2), start=1 / 3):
    """`energy_in_turns` with other numbers of rounds of B and A, or another energy of A's rows."""
    T, tau, d_out, d_in, r, gamma = given
    N_B, N_A = rounds(T)
    return gamma**2 * d_out * r * N_B * tau**2 * (start + d_in * N_A * tau**2)


every_round = partial(_energy, rounds=lambda T: (T, T))
energy_a_first = partial(_energy, rounds=lambda T: (T // 2, T - T // 2))
half_rounds = partial(_energy, rounds=lambda T: (T / 2, T / 2))
linear_alone = partial(_energy, rounds=lambda T: (T - T // 2, 0))
gamma_once = vary(energy_in_turns, gamma=np.sqrt)
orthonormal_start = partial(_energy, start=1)
lengths_added = partial(_energy, rounds=lambda T: ((T - T // 2) ** 2, (T // 2) ** 2))


# ---- 06.3: clip and noise in the space of the product


def release(dB, A, C, sigma, xi):
    total = np.zeros_like(xi)
    for change in dB @ A:
        total += change * min(1, C / np.linalg.norm(change))
    return (total + sigma * C * xi) @ np.linalg.pinv(A) / len(dB)


def by_the_librarys_rule(dB, A, C, sigma, xi):
    """Clips and noises on the rank axis: ‖dB (A Aᵀ)^½‖ is ‖dB A‖."""
    rule = product_space(torch.from_numpy(A @ A.T))
    root, back = rule.before.numpy(), rule.after.numpy()
    rows = dB @ root
    scale = np.minimum(1, C / norm(rows, axis=(1, 2)))[:, None, None]
    noise = sigma * C * xi @ (back @ A).T
    return ((rows * scale).sum(0) + noise) @ back / len(dB)


def _in_product(dB, A, C):
    return min(1, C / norm(dB @ A))


def _release(*given, scale=_in_product, noise=lambda A, C, xi: C * xi @ pinv(A), divided=True):
    dB, A, C, sigma, xi = given
    clipped = sum(change * scale(change, A, C) for change in dB)
    made = sigma * noise(A, C, xi)
    return clipped / len(dB) + made / (len(dB) if divided else 1)


clips_the_factor = partial(_release, scale=lambda dB, A, C: min(1, C / norm(dB)))
clips_the_largest_direction = partial(_release, scale=lambda dB, A, C: min(1, C / norm(dB @ A, 2)))
clips_for_the_worst = partial(_release, scale=lambda dB, A, C: min(1, C / norm(dB) / norm(A, 2)))
clips_nothing = partial(_release, scale=lambda dB, A, C: 1)
stretches = partial(_release, scale=lambda dB, A, C: C / norm(dB @ A))
transposed = partial(_release, noise=lambda A, C, xi: C * xi @ A.T)
without_C = partial(_release, noise=lambda A, C, xi: xi @ pinv(A))
noise_on_the_mean = partial(_release, divided=False)
summed = lambda *given: release(*given) * len(given[0])
stays_a_product = lambda dB, A, C, sigma, xi: release(dB, A, C, sigma, xi) @ A
