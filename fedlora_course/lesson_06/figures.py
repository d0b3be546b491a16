"""The real network as functions of one layer's change, and the noise that turns leave."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from fedlora_course.lesson_05.figures import Layer
from fedlora_lab.plots import style
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


@style.paper()
def noise_of_turns(table: pd.DataFrame) -> style.Picture:
    """Draws the energy of the noise over the rounds, measured and by the closed form.

    Args: table: columns x (the round), closed, mean, low, high, and group, one of two.
    """
    figure, (ax,) = style.subplots(8.2, 4.0)
    colours = {"both at once": style.INK, "in turns": style.look("rolora").colour}
    labels = []
    for group, colour in colours.items():
        rows = table[table["group"] == group]
        labels.append(style.named_line(ax, rows["x"], rows["closed"], group, colour, lw=1.8))
        ax.vlines(rows["x"], rows["low"], rows["high"], color=colour, lw=1.2)
        style.draw_dots(ax, rows["x"], rows["mean"], colour, 5, zorder=4)
    share = labels[1].y / labels[0].y
    ax.set(xlim=(0, 20.5), ylim=(0, None), xlabel="round", ylabel="energy of the noise in W")
    ax.set_xticks(range(0, 21, 5))
    ax.set_title(f"After 20 rounds turns leave {share:.0%} of the noise".replace("%", " %"))
    style.label_ends(ax, labels)
    style.footer(figure, "lines: closed form; dots: means of 5 seeds, bars: their 95 % intervals")
    return figure
