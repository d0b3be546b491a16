"""Right and wrong answers to the exercises of lesson 00."""

import numpy as np

from fedlora_course.exercises import Calls, vary
from fedlora_lab import theory


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
    "00.2": Calls("B, A, U and V", TWO_CLIENTS, draw=_noised),
    "00.3": Calls("B, A, G, eta and gamma", ONE_NUMBER, draw=_step),
}


# ---- 00.2: the two parts of the deviation


def split(B, A, U, V):
    def missed(B, A):
        return B.mean(axis=0) @ A.mean(axis=0) - (B @ A).mean(axis=0)

    D_data = missed(B, A)
    return D_data, missed(B + U, A + V) - D_data


# The noise also meets the factors themselves, which this leaves out.
def noise_alone(B, A, U, V):
    return theory.deviation_matrix(B, A), theory.deviation_matrix(U, V)


# B and A are the factors before the noise.
def noise_taken_off(B, A, U, V):
    D_data = theory.deviation_matrix(B - U, A - V)
    return D_data, theory.deviation_matrix(B, A) - D_data


# Gives the whole deviation in the place of the noise's part.
whole_and_data = vary(split, then=lambda parts: (parts[0], sum(parts)))


# The sum of products grows with the clients; the mean factors do not.
def summed_products(B, A, U, V):
    def missed(B, A):
        return B.mean(axis=0) @ A.mean(axis=0) - (B @ A).sum(axis=0)

    return missed(B, A), missed(B + U, A + V) - missed(B, A)


# Two sums hold K² and K times what the means hold.
def sums(B, A, U, V):
    def missed(B, A):
        return B.sum(axis=0) @ A.sum(axis=0) - (B @ A).sum(axis=0)

    return missed(B, A), missed(B + U, A + V) - missed(B, A)


# Gives the deviation of what the clients send in the place of the data's part.
whole_and_noise = vary(split, then=lambda parts: (sum(parts), parts[1]))
# The mean of products less the product of means: the opposite sign.
turned = vary(split, then=np.negative)


# ---- 00.3: the coupling of one step


def coupling(B, A, G, eta, gamma):
    new_B = B - eta * gamma * G @ A.T
    new_A = A - eta * gamma * B.T @ G
    by_B = new_B @ A - B @ A
    by_A = B @ new_A - B @ A
    return (new_B @ new_A - B @ A) - by_B - by_A


# Keeps the two changes that each factor makes alone.
def whole_change(B, A, G, eta, gamma):
    step = eta * gamma
    return (B - step * G @ A.T) @ (A - step * B.T @ G) - B @ A


# Both gradients are taken at the old factors where they move together.
def in_turns(B, A, G, eta, gamma):
    step = eta * gamma
    new_B = B - step * G @ A.T
    new_A = A - step * new_B.T @ G  # A's gradient at the new B
    return (new_B - B) @ (new_A - A)


# Both gradients are taken at the old factors where they move together.
def in_turns_from_A(B, A, G, eta, gamma):
    step = eta * gamma
    new_A = A - step * B.T @ G
    new_B = B - step * G @ new_A.T  # B's gradient at the new A
    return (new_B - B) @ (new_A - A)


# Three products less than B A each, where only two of them are taken away.
def base_missing(B, A, G, eta, gamma):
    return coupling(B, A, G, eta, gamma) - B @ A


# What the two gradients ask for; the coupling is what comes on top.
def asked_for(B, A, G, eta, gamma):
    return -eta * gamma * (G @ A.T @ A + B @ B.T @ G)


# Forgets that a change of B A changes the layer γ times as much.
without_scale = vary(coupling, gamma=1)


# The change of the layer, where that of B A was asked for.
def scaled_again(B, A, G, eta, gamma):
    return gamma * coupling(B, A, G, eta, gamma)
