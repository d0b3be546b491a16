"""A straight line through measured points, and where it is zero."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from fedlora_lab._utils.validation import check


@dataclass(frozen=True)
class Line:
    """A straight line through points, by least squares, with 95 % intervals by Student's t.

    Args:
        mean_x, mean_y: of the points, where the line goes through.
        slope: of the line.
        half_slope: half the width of the slope's interval.
        half_mean: half the width of the line's band at ``mean_x``.
    """

    mean_x: float
    mean_y: float
    slope: float
    half_slope: float
    half_mean: float

    def at(self, x: Any) -> tuple[np.ndarray, np.ndarray]:
        """The line at ``x``, and half the width of its band there."""
        away = np.asarray(x, float) - self.mean_x
        return self.mean_y + self.slope * away, np.hypot(self.half_mean, self.half_slope * away)

    @property
    def zero(self) -> tuple[float, float, float]:
        """Where the line is zero, with Fieller's interval: all x at which zero lies in the band.

        NaN where the slope's interval holds zero: such a line may have no zero, or be one.
        """
        inner = self.slope**2 - self.half_slope**2
        if inner <= 0:
            return math.nan, math.nan, math.nan
        # All d with (mean_y + slope d)^2 <= half_mean^2 + half_slope^2 d^2.
        middle = -self.mean_y * self.slope / inner
        root = math.sqrt(middle**2 - (self.mean_y**2 - self.half_mean**2) / inner)
        zero = self.mean_x - self.mean_y / self.slope
        return zero, self.mean_x + middle - root, self.mean_x + middle + root


def fit_line(x: Any, y: Any) -> Line:
    """Fits a straight line to points.

    Args: x, y: of the points, three or more, not all at one x.
    Guarantees: intervals hold the truth as often as they say (test_a_line_and_where_it_is_zero).
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    check(len(x) >= 3 and np.ptp(x) > 0, "x", x.tolist(), "three points or more, not all at one x")
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    left = y - y.mean() - slope * away
    wide = float(stdtrit(len(x) - 2, 0.975)) * math.sqrt(float(left @ left) / (len(x) - 2))
    half_slope = wide / math.sqrt(float(away @ away))
    return Line(float(x.mean()), float(y.mean()), slope, half_slope, wide / math.sqrt(len(x)))
