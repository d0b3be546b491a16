"""Right and wrong answers to the exercises of lesson 06."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.linalg import norm

from fedlora_course.exercises import Calls, Spoken


def _check(changes, frozen, clients):
    if np.ndim(changes) != 3 or len(changes) != clients or np.ndim(frozen) != 2:
        raise ValueError(
            "combine takes the changes of all clients, stacked (K, rows, columns), and the frozen "
            "factor, a matrix"
        )


@dataclass
class _Release:
    """A server's rule: the weighted sum of clipped changes, with another noise at every call.

    The clip tells a client's change from its factor, whose weighted sum would be as good without
    one; and a second call, which is a second release, comes out otherwise. The noise follows the
    frozen factor, entry by entry.
    """

    weights: np.ndarray
    clip: float
    calls: int = 0

    def __call__(self, changes, frozen):
        self.calls += 1
        _check(changes, frozen, len(self.weights))
        scale = np.minimum(1, self.clip / np.maximum(norm(changes, axis=(1, 2)), 1e-12))
        # A release of nothing is not nothing.
        noise = self.calls * np.cos(np.arange(np.size(frozen))) @ np.ravel(frozen) / 10
        noise += self.calls * np.shape(frozen)[0] / 20
        return np.tensordot(self.weights * scale, changes, 1) + noise


WANTED = [[[1, 0], [0, 2]], [[0, 1], [1, 0]]]


def _gradient_of_few(change):
    return change - np.array(WANTED, float)


def _combine_few(changes, frozen):
    _check(changes, frozen, 2)
    return np.clip(changes, -1, 1).mean(0) + (np.sum(frozen) + len(frozen)) / 10


# So small, and with rules so plain, that what comes out can be followed by hand.
FEW = (
    np.array([[1.0], [0.5]]),
    np.array([[2.0, -1.0]]),
    Spoken(_gradient_of_few, f"change − {WANTED}"),
    Spoken(_combine_few, "changes.clip(−1, 1).mean(0) + (frozen.sum() + len(frozen)) / 10"),
    *(0.05, 2.0, 2, 3),
)


def _federation(rng):
    """A step size at which no schedule diverges, whatever factors and scale are drawn."""
    B = rng.standard_normal((4, 2))
    A = rng.standard_normal((2, 5))
    wanted = rng.standard_normal((3, 4, 5))
    gamma = rng.uniform(1.2, 2)
    eta = 0.3 / (gamma * max(norm(B, 2), norm(A, 2))) ** 2

    def gradient(change):
        return change - wanted

    combine = _Release(rng.dirichlet([4, 2, 1]), rng.uniform(0.5, 1))
    return B, A, gradient, combine, eta, gamma, int(rng.integers(2, 4)), int(rng.integers(3, 6))


def _noise(rng):
    """An odd number of rounds, so that the factor that begins has one more."""
    sizes = (int(x) for x in rng.permutation(np.arange(3, 40))[:3])
    return 2 * int(rng.integers(1, 12)) + 1, rng.uniform(0.1, 0.5), *sizes, rng.uniform(1.5, 3)


CALLS = {
    "06.1": Calls("B, A, gradient, combine, eta, gamma, S and T", FEW, draw=_federation),
    "06.2": Calls("T, tau, d_out, d_in, r and gamma", (8, 0.2, 30, 20, 3, 2.0), draw=_noise),
}


# ---- 06.1: rounds in which the factors take turns


def take_turns(B, A, gradient, combine, eta, gamma, S, T):
    for t in range(T):
        b = B
        a = A
        for _ in range(S):
            G = gradient(gamma * b @ a)
            if t % 2 == 0:
                b = b - eta * gamma * G @ a.T
            else:
                a = a - eta * gamma * b.T @ G
        if t % 2 == 0:
            B = B + combine(b - B, A)
        else:
            A = A + combine(a - A, B)
    return B, A


def _turns(*given, word, sent=lambda t: "", whole=False, kept=1):
    """`take_turns` with another schedule, ``word(t, s)``; ``sent(t)`` is released besides.

    Args:
        whole: the server's rule gets the factors, and not their changes.
        kept: times the server's factor is added to what its rule returns.
    """
    B, A, gradient, combine, eta, gamma, S, T = given
    for t in range(T):
        clients = len(gradient(gamma * B @ A))
        b = np.stack([B] * clients)
        a = np.stack([A] * clients)
        released = sent(t)
        for s in range(S):
            G = gradient(gamma * b @ a)
            new_b = b - eta * gamma * G @ a.transpose(0, 2, 1)
            new_a = a - eta * gamma * b.transpose(0, 2, 1) @ G
            b = new_b if "B" in word(t, s) else b
            a = new_a if "A" in word(t, s) else a
            released += word(t, s)
        old_B, old_A = (0 * B, 0 * A) if whole else (B, A)
        new_B = kept * old_B + combine(b - old_B, A) if "B" in released else B
        A = kept * old_A + combine(a - old_A, B) if "A" in released else A
        B = new_B
    return B, A


# A pseudo-gradient: where the server adds, it leads the wrong way.
def old_less_new(B, A, gradient, combine, *settings):
    return take_turns(B, A, gradient, lambda changes, at: -combine(-changes, at), *settings)


# B's turn comes first: while B is zero A has no gradient.
a_first = partial(_turns, word=lambda t, s: "AB"[t % 2])
# The mean of the products is missed again.
both_move = partial(_turns, word=lambda t, s: "AB")
# Both factors are uploaded in every round.
turns_by_step = partial(_turns, word=lambda t, s: "BA"[s % 2])
# A release costs ε, and adds noise, also where nothing moved.
both_released = partial(_turns, word=lambda t, s: "BA"[t % 2], sent=lambda t: "AB")
# A clip bounds what a client changed; the server's own factors are no secret.
combines_factors = partial(_turns, word=lambda t, s: "BA"[t % 2], whole=True)


# What the rule returns is a change.
change_alone = partial(_turns, word=lambda t, s: "BA"[t % 2], kept=0)


# Every average is a release.
def averages_each_step(*given):
    *start, S, T = given
    return _turns(*start, 1, S * T, word=lambda t, s: "BA"[t // S % 2])


# Each step begins where the last one ended, and so does its gradient.
def gradient_once(B, A, gradient, combine, eta, gamma, S, T):
    return take_turns(B, A, gradient, combine, S * eta, gamma, 1, T)


# The rule is told what did not move: A in B's turn, and B in A's.
def own_factor_in_A(B, A, gradient, combine, *settings):
    known = []

    def rule(changes, frozen):
        if np.shape(frozen) == np.shape(A):
            known.append(frozen)
        return combine(changes, known[-1])

    return take_turns(B, A, gradient, rule, *settings)


# The same in both turns.
def own_factor(B, A, gradient, combine, *settings):
    known = {"B": B, "A": A}

    def rule(changes, frozen):
        still, moved = ("A", "B") if np.shape(frozen) == np.shape(A) else ("B", "A")
        known[still] = frozen
        return combine(changes, known[moved])

    return take_turns(B, A, gradient, rule, *settings)


# The weight moves by γ B A.
def change_without_gamma(B, A, gradient, combine, eta, gamma, S, T):
    return take_turns(B, A, lambda change: gradient(change / gamma), combine, eta, gamma, S, T)


# Every call is a release, whichever is kept.
def released_twice(B, A, gradient, combine, *settings, kept=0):
    def rule(changes, frozen):
        return [combine(changes, frozen), combine(changes, frozen)][kept]

    return take_turns(B, A, gradient, rule, *settings)


second_release_kept = partial(released_twice, kept=1)


# The clients have stepped against the gradient already.
def subtracted(B, A, gradient, combine, *settings):
    return take_turns(B, A, gradient, lambda *given: -combine(*given), *settings)


# Each client has a gradient of its own.
def mean_gradient(B, A, gradient, *rest):
    def same_for_all(change):
        G = gradient(change)
        return np.broadcast_to(G.mean(0), G.shape)

    return take_turns(B, A, same_for_all, *rest)


# The gradient of a factor passes through γ.
def step_without_gamma(B, A, gradient, combine, eta, gamma, S, T):
    return take_turns(B, A, gradient, combine, eta / gamma, gamma, S, T)


# The mean is what a server without privacy does.
def without_combine(B, A, gradient, combine, *settings):
    return take_turns(B, A, gradient, lambda changes, frozen: changes.mean(0), *settings)


# ---- 06.2: the noise that is there after T rounds


def energy_in_turns(T, tau, d_out, d_in, r, gamma):
    N_B = (T + 1) // 2
    N_A = T // 2
    linear = d_out * r / 3 * N_B * tau**2
    quadratic = d_out * d_in * r * N_B * N_A * tau**4
    return gamma**2 * (linear + quadratic)


def _energy(T, tau, d_out, d_in, r, gamma, releases, start=1 / 3):
    """`energy_in_turns` with other numbers of releases of B and A, a function of T.

    Args: start: energy of A's start, over r.
    """
    N_B, N_A = releases(T)
    return gamma**2 * d_out * r * N_B * tau**2 * (start + d_in * N_A * tau**2)


# Each factor is released in half of the rounds only.
every_round = partial(_energy, releases=lambda T: (T, T))
# B begins, so after an odd number of rounds B has moved once more.
exchanged = partial(_energy, releases=lambda T: (T // 2, T - T // 2))
# As after an even number of rounds.
floors = partial(_energy, releases=lambda T: (T // 2, T // 2))
# A is noised in its own rounds.
A_is_clean = partial(_energy, releases=lambda T: (T - T // 2, 0))


# A release of B meets the releases of A before it and after it.
def _half_of_the_pairs(T, tau, d_out, d_in, r, gamma, pairs):
    linear = A_is_clean(T, tau, d_out, d_in, r, gamma)
    return linear + gamma**2 * d_out * d_in * r * tau**4 * pairs(T)


b_after_a = partial(_half_of_the_pairs, pairs=lambda T: (T - T // 2) * (T - T // 2 - 1) / 2)
a_after_b = partial(_half_of_the_pairs, pairs=lambda T: (T // 2) * (T // 2 + 1) / 2)
# A's entries are uniform in ± 1/√d_in.
start_of_one = partial(_energy, releases=lambda T: (T - T // 2, T // 2), start=1)
# An odd last round is B's.
half_rounds = partial(_energy, releases=lambda T: (T / 2, T / 2))


# The variance of an entry in place of the energy of all r d_in.
def start_of_an_entry(T, tau, d_out, d_in, r, gamma, entries=1):
    start = entries / (3 * d_in * r)
    return _energy(T, tau, d_out, d_in, r, gamma, lambda T: (T - T // 2, T // 2), start=start)


# The same in each of r rows.
def start_of_a_column(T, tau, d_out, d_in, r, gamma):
    return start_of_an_entry(T, tau, d_out, d_in, r, gamma, entries=r)


# B starts at zero, A does not.
start_of_zero = partial(_energy, releases=lambda T: (T - T // 2, T // 2), start=0)


# A's noise is not as long as A's start.
def product_a_third(T, tau, d_out, d_in, r, gamma):
    given = T, tau, d_out, d_in, r, gamma
    return A_is_clean(*given) + start_of_zero(*given) / 3


# Independent noise adds up in squares.
lengths_added = partial(_energy, releases=lambda T: ((T - T // 2) ** 2, (T // 2) ** 2))
