"""Right and wrong answers to exercise 03.1: what DP-SGD releases before the noise."""

import numpy as np

from fedlora_lab.course.exercise import Calls

# Five gradients of three numbers, some longer than the threshold 2, some shorter.
GRADIENTS = np.array(
    [[3.0, 4.0, 0.0], [0.5, 0.0, -0.5], [0.0, -6.0, 8.0], [1.0, 1.0, 0.2], [-7.0, 0.0, 1.0]]
)
CALLS = {"03.1": Calls("g, c and batch", (GRADIENTS, 2.0, 4.0), shape=(3,), within=1e-9)}


def _lengths(g):
    return np.linalg.norm(g, axis=1, keepdims=True)


def clipped_mean(g, c, batch):
    return (g / np.maximum(1.0, _lengths(g) / c)).sum(axis=0) / batch


def with_a_loop(g, c, batch):
    return [sum(row[i] * min(1.0, c / np.linalg.norm(row)) for row in g) / batch for i in range(3)]


def clips_the_mean(g, c, batch):
    total = g.sum(0) / batch
    return total * min(1.0, c / np.linalg.norm(total))


def clips_each_number(g, c, batch):
    return np.clip(g, -c, c).sum(0) / batch


def always_to_c(g, c, batch):
    return (c * g / _lengths(g)).sum(0) / batch


def over_those_that_came(g, c, batch):
    return clipped_mean(g, c, len(g))


def clipped_sum(g, c, batch):
    return clipped_mean(g, c, 1.0)


def drops_long_rows(g, c, batch):
    return g[_lengths(g)[:, 0] <= c].sum(0) / batch


def unclipped(g, c, batch):
    return g.sum(0) / batch
