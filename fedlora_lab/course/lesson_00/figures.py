"""The figures of notebook 00: what the clients hold, and one round of federated LoRA."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from fedlora_lab.course import drawing
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


# ---- a round of federated LoRA

CLIENTS = {0: "client 1", 1: "client 2", 9: "client 10"}
"""Place among a task's clients -> its name; the others are three dots."""
SCANS = 5


def _model(ax: Axes, x: float, y: float, place: str) -> None:
    """Draws an adapted weight: the frozen square, and the two thin factors beside it."""
    drawing.box(ax, x, y, 0.8, 0.8, "W₀", fc=style.FAINT, color=style.SOFT)
    ax.text(x + 0.97, y + 0.4, "+ γ", ha="center", va="center", fontsize=9, color=style.INK)
    drawing.box(ax, x + 1.18, y, 0.22, 0.8, fc=style.FACTOR["B"])
    drawing.box(ax, x + 1.48, y + 0.58, 0.8, 0.22, fc=style.FACTOR["A"])
    factor: Any = {"ha": "center", "fontsize": 9, "weight": "bold"}
    ax.text(x + 1.29, y + 0.86, f"B{place}", color=style.FACTOR["B"], **factor)
    ax.text(x + 1.88, y + 0.86, f"A{place}", color=style.FACTOR["A"], **factor)


@style.paper()
def federated_round(task: Task) -> style.Picture:
    """Draws one round: the server sends its factors, clients train them, and it averages.

    Args: task: of digits with ten clients, whose scans stay in their boxes.
    """
    figure, (ax,) = style.subplots(9.6, 5.2)
    ax.set(xlim=(0, 12), ylim=(0, 6.5))
    ax.axis("off")
    ax.grid(visible=False)
    words: Any = {"fontsize": 9, "color": style.INK, "va": "center"}
    drawing.box(ax, 3.4, 4.85, 5.2, 1.5, fc=style.CARD, ec=style.GREY)
    ax.text(3.6, 6.05, "server", weight="bold", **words)
    _model(ax, 3.7, 5.0, "")
    ax.text(6.4, 5.45, "4  averages the B's,\n    and the A's separately", **words)
    for index, (client, name) in enumerate(CLIENTS.items()):
        x = 0.1 + 4.1 * index + 0.15 * (index == 2)
        drawing.box(ax, x, 0.1, 3.4, 3.15, fc=style.CARD, ec=style.GREY)
        ax.text(x + 0.2, 3.0, f"{name}: its own scans", weight="bold", **words)
        scans = task.clients[client][0][:: len(task.clients[client][0]) // SCANS][:SCANS].numpy()
        strip = np.pad(scans, [(0, 0), (0, 0), (0, 2)]).swapaxes(0, 1).reshape(len(scans[0]), -1)
        place = (x + 0.2, x + 0.2 + 0.06 * strip.shape[1], 2.3, 2.3 + 0.06 * len(strip))
        ax.imshow(strip, cmap="Greys", vmin=0, vmax=1, extent=place, aspect="auto", zorder=2)
        _model(ax, x + 0.3, 1.1, "₁₂"[index] if index < 2 else "₁₀")
        ax.text(
            x + 0.2,
            0.55,
            "2  a few steps on its scans: clips\n    each gradient, adds noise",
            **words,
        )
        top, bottom = 4.0 + 1.9 * index, x + 1.5
        drawing.arrow(ax, (top - 0.25, 4.75), (bottom - 0.25, 3.35))
        drawing.arrow(ax, (bottom + 0.25, 3.35), (top + 0.25, 4.75))
    ax.text(8.05, 1.5, "…", ha="center", fontsize=14, color=style.SOFT)
    ax.text(0.1, 4.65, "1  the server sends B and A", **words)
    ax.text(8.9, 4.65, "3  clients send B and A back", **words)
    style.headline(figure, "One round: scans stay where they are, factors travel")
    figure.set_label(
        "the server sends B and A to ten clients; each takes a few steps on its own scans, with "
        "clipped gradients and noise, and sends its B and A back; the server averages the B's, and "
        "the A's separately"
    )
    return figure
