"""The figures of notebook 00: the clients' data, where runs end, and who leads where."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fedlora_lab.plots import style
from fedlora_lab.tasks.task import Task, concatenate

if TYPE_CHECKING:
    from fedlora_lab.federated.records import Round


def printed_digit(digit: int) -> np.ndarray:
    """Draws a printed digit as the scans are stored: 32 pixels high, counted in 4 x 4 blocks."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font, page = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 36), Image.new("L", (64, 64))
    ImageDraw.Draw(page).text((32, 32), str(digit), font=font, fill=255, anchor="mm")
    ink = page.crop(page.getbbox())
    wide = min(32, round(32 * ink.width / ink.height))
    bitmap, left = np.zeros((32, 32)), (32 - wide) // 2
    bitmap[:, left : left + wide] = np.asarray(ink.resize((wide, 32))) > 127
    return bitmap.reshape(8, 4, 8, 4).sum((1, 3)) / 16


@style.paper()
def client_data(task: Task) -> style.Picture:
    """Draws printed digits above handwritten ones, and how many of each digit a client holds.

    Args: task: of digits.
    """
    figure, (scans, mix) = style.row(9.6, 3.5, (0.14, 0.74), (0.075, 0.42), (0.56, 0.42))
    x, y = concatenate(task.clients)
    rows = [[printed_digit(digit) for digit in range(10)]]
    rows += [[x[y == digit][which].numpy() for digit in range(10)] for which in range(0, 15, 3)]
    page = np.zeros((10 * len(rows) - 2, 10 * 10 - 2))
    for i, images in enumerate(rows):
        for j, image in enumerate(images):
            page[10 * i : 10 * i + 8, 10 * j : 10 * j + 8] = image
    scans.imshow(page, cmap="Greys", vmin=0, vmax=1)
    scans.set_anchor("N")
    scans.set(xticks=[], yticks=[])
    scans.grid(False)
    scans.spines[:].set_visible(False)
    scans.axhline(8.6, color=style.RIGHT, lw=1.5)
    put: Any = {"transform": scans.transData, "ha": "right", "va": "center"}
    style.note(scans, -3, 4, "printed:\nknown", style.RIGHT, 9, **put)
    style.note(scans, -3, 34, "hand-\nwritten:\nnew", style.INK, 9, **put)
    scans.set_title("The model knows print, not handwriting")
    counts = np.array([np.bincount(np.asarray(labels), minlength=10) for _, labels in task.clients])
    mix.imshow(counts, cmap="Blues", vmax=1.3 * counts.max(), aspect="auto")
    mix.grid(False)
    for (k, digit), count in np.ndenumerate(counts):
        if count:
            mix.text(digit, k, f"{count}", ha="center", va="center", fontsize=7.5)
    mix.set_xticks(range(10))
    mix.set_yticks(range(len(counts)), [f"{k + 1}" for k in range(len(counts))])
    mix.set(xlabel="digit", ylabel="client", title="Every client holds its own mix of digits")
    return figure


@style.paper()
def learning_curves(runs: "Mapping[str, Sequence[Round]]", title: str) -> style.Picture:
    """Draws the accuracy of runs over the rounds in which it was measured, and before training.

    Args: runs: words -> records, from one start; title: the finding.
    """
    figure, (ax,) = style.panels(7.2, 3.3, (0.09, 0.15, 0.58, 0.74))
    labels = []
    for colour, (words, records) in zip(style.SERIES, runs.items(), strict=False):
        points = [(record.index, record.metrics["accuracy"]) for record in records]
        rounds, accuracy = zip(*(point for point in points if np.isfinite(point[1])), strict=True)
        words = f"{words} {accuracy[-1]:.2f}"
        labels.append(style.named_line(ax, rounds, accuracy, words, colour, lw=2.2))
    first = next(iter(runs.values()))
    before = first[0].metrics["accuracy"]
    ax.axhline(before, color=style.GREY, lw=1, ls=style.DOTTED)
    labels.append(style.Label(first[-1].index, before, f"before training {before:.2f}", style.SOFT))
    ax.set(xlim=(0, first[-1].index), ylim=(0.6, 1.0), xlabel="round", ylabel="test accuracy")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_title(title)
    style.draw_labels(ax, labels, together=False, wide=28)
    return figure
