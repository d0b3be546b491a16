"""The figure of notebook 00: printed and handwritten digits, and which of them a client holds."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fedlora_lab.plots import style
from fedlora_lab.tasks.task import Task, concatenate


def printed_digit(digit: int) -> np.ndarray:
    """Draws a printed digit as the scans are stored: 32 pixels high, counted in 4 x 4 blocks."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 36)
    page = Image.new("L", (64, 64))
    ImageDraw.Draw(page).text((32, 32), str(digit), font=font, fill=255, anchor="mm")
    ink = page.crop(page.getbbox())
    wide = min(32, round(32 * ink.width / ink.height))
    bitmap = np.zeros((32, 32))
    left = (32 - wide) // 2
    bitmap[:, left : left + wide] = np.asarray(ink.resize((wide, 32))) > 127
    return bitmap.reshape(8, 4, 8, 4).sum((1, 3)) / 16


@style.paper()
def client_data(task: Task) -> style.Picture:
    """Draws printed digits above handwritten ones, and how many of each digit a client holds.

    Args: task: of digits.
    """
    figure, (scans, mix) = style.subplots(9.6, 3.5, columns=2)
    x, y = concatenate(task.clients)
    # Ten printed digits, then five handwritten examples of each.
    rows = [[printed_digit(digit) for digit in range(10)]]
    rows += [[x[y == digit][which].numpy() for digit in range(10)] for which in range(0, 15, 3)]
    # Two white pixels right of each and below it keep them apart.
    tiles = np.pad(rows, [(0, 0), (0, 0), (0, 2), (0, 2)])
    page = tiles.swapaxes(1, 2).reshape(10 * len(rows), 100)
    scans.imshow(page[:-2, :-2], cmap="Greys", vmin=0, vmax=1)
    scans.set_anchor("N")
    scans.axis("off")
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
