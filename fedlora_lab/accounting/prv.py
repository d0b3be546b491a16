"""Numerical composition of privacy loss random variables (PRV), on Opacus' discretisation.

Only the order of the work differs from Opacus' ``PRVAccountant``: the spectrum of one release is kept and raised to a
power, on a grid laid out for more steps than were taken, so a history that grows costs one short inverse transform and
not a new accountant. A finer and wider grid than needed keeps the error bound of Gopi et al.
"""

import math
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import fft

from fedlora_lab.accounting import renyi
from fedlora_lab.accounting.renyi import Key

EPSILON_ERROR = 1e-2
"""What the reported value may lie above the exact one. The share of delta set aside for truncation costs up to 1e-3 of
it; the half width of the interval on epsilon is ``_HALF_WIDTH`` at most, a tenth of that where epsilon is small."""

_HALF_WIDTH = 8e-3

_TAIL_ORDERS = (*range(2, 33), 40, 48, 64, 96, 128, 256)  # whole orders cost Opacus microseconds,
_LOW_ORDERS = (1.15, 1.3, 1.5, 1.75)  # fractional ones milliseconds: only where epsilon is large, which needs them
_LARGEST = 1 << 22  # points; beyond, one evaluation takes seconds and hundreds of megabytes
_LARGEST_KEPT = 1 << 18  # points; beyond, a spectrum is not worth its memory
_BLOCK = 32  # most points that one can stand for, see `_thinning`
_SHORTEST = 128  # a grid is laid out for at least so many steps, else for the next power of two


def epsilon(key: Key, delta: float) -> float:
    """Upper end of the PRV interval for epsilon.

    Raises:
        RuntimeError, ValueError, ArithmeticError, MemoryError: where no grid of acceptable size is accurate enough.

    Source: arXiv:2106.02848, algorithm 1.
    """
    planned = tuple((sigma, q, max(_SHORTEST, 1 << (steps - 1).bit_length())) for sigma, q, steps in key)
    size, mesh, error = _grid(planned, delta)
    product, shift, count = np.ones(size // 2 + 1, complex), 0.0, 0
    for sigma, q, steps in key:
        spectrum, reach, mean = (_spectrum if size <= _LARGEST_KEPT else _spectrum.__wrapped__)(sigma, q, size, mesh)
        # frequencies beyond `heard` are below rounding once raised to the power
        heard = int(np.count_nonzero(reach >= -40 / steps))
        product = product[:heard] * _power(spectrum[: len(product)][:heard], steps)
        shift, count = shift + steps * mean, count + steps
    every = _thinning(len(product), size, mesh)
    # a sum of `count` grid indices has each of their origins in it; one origin is to be left
    turn, rest = divmod((count - 1) * _origin(size) % size, every)
    pmf = np.roll(np.asarray(fft.irfft(product, n=size // every)), -turn)
    domain = _domain(size, mesh, every).shift_right(shift - rest * mesh)
    with np.errstate(all="ignore"):
        _, _, upper = (
            renyi.analysis().prv.DiscretePRV(pmf=pmf, domain=domain).compute_epsilon(delta, _slack(delta), error)
        )
    if not math.isfinite(upper):
        raise RuntimeError("no finite epsilon on this grid")
    return max(0.0, float(upper))


def _slack(delta: float) -> float:
    """The part of delta given to truncation and discretisation, as in Opacus."""
    return delta / 1000


@lru_cache(maxsize=1024)
def _grid(planned: Key, delta: float) -> tuple[int, float, float]:
    """Points, mesh and epsilon error of a grid that is safe for every history up to ``planned``; remark 5.6."""
    slack, total = _slack(delta), sum(steps for *_, steps in planned)
    whole = _tail(planned, slack / 4)
    tails = [whole, *(_tail(((sigma, q, 1),), slack / (8 * total)) for sigma, q, _ in planned)]
    error = min(_HALF_WIDTH, max(_HALF_WIDTH / 10, whole / 500))
    mesh = error / math.sqrt(total * math.log(12 / slack) / 2)
    points = 2 * (max(tails) + 3) / mesh
    if not points < _LARGEST:
        raise MemoryError("the PRV grid would be too large")
    size = 2 * _BLOCK * fft.next_fast_len(math.ceil((points + 2) / (2 * _BLOCK)), real=True)  # type: ignore[operator]
    return size, mesh, error


def _tail(key: Key, delta: float) -> float:
    """A bound on the privacy loss that is exceeded with probability ``delta`` at most, from few Renyi orders."""
    bound = renyi.epsilon(key, delta, _TAIL_ORDERS)
    return bound if bound < 40 else min(bound, renyi.epsilon(key, delta, _LOW_ORDERS))


def _origin(size: int) -> int:
    """Index at which the privacy loss is 0."""
    return size // 2 - 1


def _domain(size: int, mesh: float, every: int = 1) -> Any:
    low = -_origin(size) * mesh
    return renyi.analysis().prv.Domain(t_min=low, t_max=low + (size // every - 1) * every * mesh, size=size // every)


def _thinning(heard: int, size: int, mesh: float) -> int:
    """How many points of the grid one point can stand for, once so few frequencies are left.

    The density is then band-limited, so its samples miss nothing; the kink of (1 - e^(epsilon - t))+ under the sum
    costs about (4e-3)^2 / 8, some 1e-6 of epsilon.
    """
    every = 1
    while every < _BLOCK and 4 * every * heard < size and 2 * every * mesh <= 4e-3:
        every *= 2
    return every


@lru_cache(maxsize=96)  # about 2 MB each
def _spectrum(sigma: float, q: float, size: int, mesh: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Fourier transform of one discretised release; the log of its largest size from each frequency on; the shift that
    keeps its mean."""
    from scipy.integrate import IntegrationWarning

    prv = renyi.analysis().prv
    domain = _domain(size, mesh)
    release = prv.PoissonSubsampledGaussianPRV(q, sigma)
    with np.errstate(all="ignore"), warnings.catch_warnings():  # log(0) off the support; quad at the truncation
        warnings.simplefilter("ignore", IntegrationWarning)
        one = prv.discretize(prv.TruncatedPrivacyRandomVariable(release, domain.t_min, domain.t_max), domain)
    spectrum = np.asarray(fft.rfft(one.pmf))
    sizes = np.maximum.accumulate(np.abs(spectrum)[::-1])[::-1]
    return spectrum, np.log(np.maximum(sizes, 1e-300)).astype(np.float32), float(one.domain.shifts)


def _power(x: np.ndarray, n: int) -> np.ndarray:
    """x**n for a whole n >= 1 by repeated squaring, several times faster than complex ``**``."""
    result = np.ones(1, complex)
    while n:
        if n & 1:
            result = result * x
        n >>= 1
        x = x * x if n else x
    return result
