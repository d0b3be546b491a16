"""Taking turns inside a round (LA-LoRA): what coupling does to a step, and a low-pass filter to a spectrum."""

import numpy as np
from jaxtyping import Float

from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.theory.regulated import filter_weights


def coupled_step(b: float, a: float, lr: float, target: float = 1.0) -> tuple[float, float, float]:
    """What one step of both numbers at once does to b a on the loss (b a - target)^2 / 2.

    Returns: three parts that add up to the change of the product: by b's step, by a's step, by both together
        (the coupling, lr^2 times the product of the two gradients).

    Guarantees: test_coupled_step.
    Source: derived; the coupling is the term that arXiv:2602.19926 removes from each step.
    """
    check_number("lr", lr, 0)
    error = b * a - target
    return -lr * error * a * a, -lr * error * b * b, lr**2 * error**2 * a * b


def two_number_descent(
    start: tuple[float, float], lr: float, steps: int, turns: bool, target: float = 1.0
) -> Float[np.ndarray, "n 2"]:
    """The way of (b, a) down the loss (b a - target)^2 / 2, both at once or in turns, b first.

    In turns every step moves one number, so b moves in steps 0, 2, ... and a in the others.

    Returns: (steps + 1, 2); NaN from where a number has passed a million.

    Guarantees: in turns each step multiplies the error by 1 - lr * peer^2 (test_two_number_descent).
    Source: derived.
    """
    check_number("lr", lr, 0)
    check_whole("steps", steps, 0)
    path = np.full((steps + 1, 2), np.nan)
    b, a = start
    for step in range(steps + 1):
        if not max(abs(b), abs(a)) < 1e6:
            break
        path[step] = b, a
        error = b * a - target
        move_b, move_a = (step % 2 == 0, step % 2 == 1) if turns else (True, True)
        b, a = b - lr * error * a * move_b, a - lr * error * b * move_a
    return path


def filter_response(taps: int, size: int) -> Float[np.ndarray, " size"]:
    """Gain of the binomial filter at each frequency along ``size`` channels: cos^(taps - 1)(theta / 2).

    Frequencies theta = pi j / size, j = 0 ... size - 1, are those of the cosine transform (DCT-II): with mirrored edges
    these cosines are the filter's eigenvectors, so the gain is exact and no approximation for long rows.

    Guarantees: test_filter_response.
    Source: derived; the filter is that of arXiv:2602.19926.
    """
    filter_weights(taps)
    check_whole("size", size, 1)
    return np.cos(np.pi * np.arange(size) / (2 * size)) ** (taps - 1)


def kept_energy(energy: Float[np.ndarray, " n"], taps: int) -> float:
    """Share of a spectrum's energy that the filter leaves: sum g^2 E / sum E.

    A flat spectrum gives what white noise keeps; a signal must keep more than that for the filter to be of use.

    Args: energy: at each frequency of the cosine transform, >= 0, not all zero.
    Guarantees: test_kept_energy.
    Source: derived.
    """
    energy = np.asarray(energy, float)
    check(energy.ndim == 1 and bool(energy.sum() > 0), "energy", energy.shape, "one dimension, not all zero")
    return float(filter_response(taps, len(energy)) ** 2 @ energy / energy.sum())
