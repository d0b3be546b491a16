"""Right and wrong answers to the exercises of lesson 06."""

from dataclasses import dataclass

import numpy as np
from numpy.linalg import norm

from fedlora_course.exercises import FunctionAnswer, Spoken


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
    "06.1": FunctionAnswer("B, A, gradient, combine, eta, gamma, S and T", FEW, draw=_federation),
    "06.2": FunctionAnswer(
        "T, tau, d_out, d_in, r and gamma", (8, 0.2, 30, 20, 3, 2.0), draw=_noise
    ),
}


# ---- 06.1: rounds in which the factors take turns


def take_turns(B, A, gradient, combine, eta, gamma, S, T):
    """Rounds of RoLoRA.

    Args:
        B, A: the factors, (d_out, r) and (r, d_in).
        gradient: takes gamma B A, one matrix or one for each client; returns the clients' gradients
            in the weight, (clients, d_out, d_in).
        combine: takes the clients' changes of one factor and the frozen other factor; returns what
            the server adds.
        eta: learning rate, > 0.
        gamma: scale of the product in the weight, > 0.
        S: local steps of a round.
        T: rounds.
    Returns: B and A.
    """
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


# ---- 06.2: the noise that is there after T rounds


def energy_in_turns(T, tau, d_out, d_in, r, gamma):
    """The expected energy of the noise in the product after rounds that take turns.

    Args:
        T: rounds, >= 0; B moves in the first.
        tau: standard deviation of the noise that one release puts on every entry, >= 0.
        d_out, d_in, r: outputs and inputs of the layer, and the rank.
        gamma: scale of the product in the weight, > 0.
    """
    N_B = (T + 1) // 2
    N_A = T // 2
    linear = d_out * r / 3 * N_B * tau**2
    quadratic = d_out * d_in * r * N_B * N_A * tau**4
    return gamma**2 * (linear + quadratic)
