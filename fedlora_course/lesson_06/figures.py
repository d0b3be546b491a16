"""The real network, as the turns of lesson 06 ask for it: as functions of one layer's change."""

from collections.abc import Callable

import numpy as np

from fedlora_course.lesson_05.figures import Layer
from fedlora_lab.tasks.task import Task


def real_network(
    task: Task,
) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], float]]:
    """Returns the clients' gradients in W, and the test accuracy, as functions of the change of W.

    Args: task: adapts one layer, 64 × 64.
    Returns: gradient(change) -> (clients, 64, 64), each over all examples of a client, and
        accuracy(change) -> a share. Of a change that is stacked over clients the first counts: in
        turns of one local step all clients stand where the server does.
    """
    layer = Layer(task)
    rng = np.random.default_rng(0)

    def gradient(change: np.ndarray) -> np.ndarray:
        W = np.reshape(change, (-1, 64, 64))[0]
        rows = layer.drawn_gradients(W, batch=10**6, rng=rng)  # so large a batch draws everybody
        return np.stack([examples.mean(axis=0) for examples in rows])

    return gradient, layer.accuracy
