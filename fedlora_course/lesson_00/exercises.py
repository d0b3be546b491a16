"""Right and wrong answers to the exercises of lesson 00."""

import numpy as np

from fedlora_course.exercises import FunctionAnswer


def _noised(rng):
    """Factors of some clients as they would be without noise, and the noise on them."""
    clients, d_out, r, d_in = (int(x) for x in rng.permutation(np.arange(2, 9))[:4])
    B = rng.standard_normal((clients, d_out, r))
    A = rng.standard_normal((clients, r, d_in))
    return B, A, rng.standard_normal(B.shape), rng.standard_normal(A.shape)


def _step(rng):
    d_out, r, d_in = (int(x) for x in rng.permutation(np.arange(2, 8))[:3])
    B, A, G = (rng.standard_normal(shape) for shape in ((d_out, r), (r, d_in), (d_out, d_in)))
    return B, A, G, rng.uniform(0.1, 0.6), rng.uniform(1.5, 4)


def _pair(first, second):
    """A factor of two clients, of one number each."""
    return np.array([[[first]], [[second]]])


# So small that what comes out can be followed by hand.
TWO_CLIENTS = _pair(1.0, 3.0), _pair(2.0, 0.5), _pair(0.5, -0.5), _pair(1.0, 0.0)
ONE_NUMBER = np.array([[2.0]]), np.array([[3.0]]), np.array([[1.0]]), 0.5, 2.0
CALLS = {
    "00.2": FunctionAnswer("B, A, U and V", TWO_CLIENTS, draw=_noised),
    "00.3": FunctionAnswer("B, A, G, eta and gamma", ONE_NUMBER, draw=_step),
}


# ---- 00.2: the two parts of the deviation


def split(B, A, U, V):
    """Splits the deviation of one round into that of the data and that of the noise.

    Args:
        B, A: the clients' factors without noise, (clients, d_out, r) and (clients, r, d_in).
        U, V: the noise on B and on A, in their shapes.
    Returns: D_data and D_noise, each (d_out, d_in).
    """

    def missed(B, A):
        return B.mean(axis=0) @ A.mean(axis=0) - (B @ A).mean(axis=0)

    D_data = missed(B, A)
    return D_data, missed(B + U, A + V) - D_data


# ---- 00.3: the coupling of one step


def coupling(B, A, G, eta, gamma):
    """The change of B A that is there only because both factors move in one step.

    Args:
        B, A: the factors, (d_out, r) and (r, d_in).
        G: gradient of the loss in the whole weight, (d_out, d_in).
        eta: learning rate, > 0.
        gamma: scale of the product in the weight, > 0.
    Returns: (d_out, d_in).
    """
    new_B = B - eta * gamma * G @ A.T
    new_A = A - eta * gamma * B.T @ G
    by_B = new_B @ A - B @ A
    by_A = B @ new_A - B @ A
    return (new_B @ new_A - B @ A) - by_B - by_A
