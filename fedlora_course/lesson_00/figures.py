"""The figures of notebook 00: what the clients hold, and one round of federated LoRA."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from fedlora_course import drawing
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
STEP = "2  a few steps on its scans: clips\n    each gradient, adds noise"
WORDS: Any = {"fontsize": 9, "color": style.INK, "va": "center"}
EFFECTS = (
    "noise on B meets\nnoise on A",
    "each factor moves as if\nthe other stood still",
    "every client can keep the\nmodel that it was sent",
)
"""Effects 2 to 4, each drawn into one client; effect 1 stands at the server."""


def _model(ax: Axes, x: float, y: float, place: str) -> None:
    """Draws an adapted weight: the frozen square, and the two thin factors beside it."""
    drawing.box(ax, x, y, 0.8, 0.8, "W₀", fc=style.FAINT, color=style.SOFT)
    ax.text(x + 0.97, y + 0.4, "+ γ", ha="center", va="center", fontsize=9, color=style.INK)
    drawing.box(ax, x + 1.18, y, 0.22, 0.8, fc=style.FACTOR["B"])
    drawing.box(ax, x + 1.48, y + 0.58, 0.8, 0.22, fc=style.FACTOR["A"])
    factor: Any = {"ha": "center", "fontsize": 9, "weight": "bold"}
    ax.text(x + 1.29, y + 0.86, f"B{place}", color=style.FACTOR["B"], **factor)
    ax.text(x + 1.88, y + 0.86, f"A{place}", color=style.FACTOR["A"], **factor)


def _effect(ax: Axes, x: float, y: float, number: int, words: str) -> None:
    """Writes an effect beside its number in a red dot."""
    ax.plot(x, y, "o", ms=15, color=style.WRONG)
    ax.text(x, y, f"{number}", color="white", weight="bold", ha="center", va="center", fontsize=9)
    ax.text(x + 0.3, y, words, **WORDS)


def _noise(ax: Axes, x: float, y: float, width: float, height: float) -> None:
    """Draws noise over a factor, a grey value for each small square."""
    shape = (round(height / 0.055), round(width / 0.055))
    squares = np.random.default_rng(0).uniform(size=shape)
    place = (x, x + width, y, y + height)
    ax.imshow(
        squares,
        cmap="Greys",
        extent=place,
        alpha=0.6,
        aspect="auto",
        zorder=3,
        interpolation="none",
    )


def _draw_effects(ax: Axes, corners: list[float]) -> None:
    """Draws the four effects where they arise. Args: corners: left ends of the clients' boxes."""
    _effect(ax, 6.6, 5.55, 1, "B̄ Ā is not the\nmean of the B\u2096A\u2096")
    for number, x, words in zip((2, 3, 4), corners, EFFECTS, strict=True):
        _effect(ax, x + 0.35, 0.55, number, words)
    noised, moving, kept = (x + 0.3 for x in corners)
    _noise(ax, noised + 1.18, 1.1, 0.22, 0.8)
    _noise(ax, noised + 1.48, 1.68, 0.8, 0.22)
    drawing.arrow(ax, (moving + 1.29, 1.05), (moving + 1.6, 0.85))
    drawing.arrow(ax, (moving + 1.88, 1.63), (moving + 2.19, 1.43))
    drawing.box(ax, kept - 0.12, 1.0, 2.54, 1.22, fc="none", ec=style.WRONG, ls="--")


@style.paper()
def federated_round(task: Task, effects: bool = False) -> style.Picture:
    """Draws one round: the server sends its factors, clients train them, and it averages.

    Args: task: of digits with ten clients, whose scans stay in their boxes; effects: whether the
        four effects that make a private round hard stand where they arise, in place of the steps.
    """
    figure, (ax,) = style.subplots(9.6, 5.2)
    ax.set(xlim=(0, 12), ylim=(0, 6.5))
    ax.axis("off")
    ax.grid(visible=False)
    drawing.box(ax, 3.4, 4.85, 5.2, 1.5, fc=style.CARD, ec=style.GREY)
    ax.text(3.6, 6.05, "server", weight="bold", **WORDS)
    _model(ax, 3.7, 5.0, "")
    corners = [0.1 + 4.1 * index + 0.15 * (index == 2) for index in range(3)]
    for index, (x, (client, name)) in enumerate(zip(corners, CLIENTS.items(), strict=True)):
        drawing.box(ax, x, 0.1, 3.4, 3.15, fc=style.CARD, ec=style.GREY)
        ax.text(x + 0.2, 3.0, f"{name}: its own scans", weight="bold", **WORDS)
        scans = task.clients[client][0][:: len(task.clients[client][0]) // SCANS][:SCANS].numpy()
        strip = np.pad(scans, [(0, 0), (0, 0), (0, 2)]).swapaxes(0, 1).reshape(len(scans[0]), -1)
        place = (x + 0.2, x + 0.2 + 0.06 * strip.shape[1], 2.3, 2.3 + 0.06 * len(strip))
        ax.imshow(strip, cmap="Greys", vmin=0, vmax=1, extent=place, aspect="auto", zorder=2)
        _model(ax, x + 0.3, 1.1, ("₁", "₂", "₁₀")[index])
        top, bottom = 4.0 + 1.9 * index, x + 1.5
        drawing.arrow(ax, (top - 0.25, 4.75), (bottom - 0.25, 3.35))
        drawing.arrow(ax, (bottom + 0.25, 3.35), (top + 0.25, 4.75))
    ax.text(8.05, 1.5, "…", ha="center", fontsize=14, color=style.SOFT)
    if effects:
        _draw_effects(ax, corners)
        style.headline(figure, "The same round, and where the four effects arise in it")
        figure.set_label(
            "effect 1 stands at the server: its product is not the mean of the clients' products; "
            "effects 2 to 4 at the clients: noise on B meets noise on A, each factor moves as if "
            "the other stood still, and a client can keep the model that it was sent"
        )
        return figure
    ax.text(6.4, 5.45, "4  averages the B's,\n    and the A's separately", **WORDS)
    ax.text(0.1, 4.65, "1  the server sends B and A", **WORDS)
    ax.text(8.9, 4.65, "3  clients send B and A back", **WORDS)
    for x in corners:
        ax.text(x + 0.2, 0.55, STEP, **WORDS)
    style.headline(figure, "One round: scans stay where they are, factors travel")
    figure.set_label(
        "the server sends B and A to ten clients; each takes a few steps on its own scans, with "
        "clipped gradients and noise, and sends its B and A back; the server averages the B's, and "
        "the A's separately"
    )
    return figure
