"""A scan read from a noised update: the image as the noise grows, the closed form for it, and spans that fill up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab import theory
from fedlora_lab.checks import check, check_whole
from fedlora_lab.plots.clipping import log_axis
from fedlora_lab.plots.curves import footer
from fedlora_lab.plots.labels import Label, beside
from fedlora_lab.plots.style import CARD, FACTOR, GREY, INK, RIGHT, SOFT, WRONG, Picture, paper, picture

CLIP, DELTA, PIXELS = 0.01, 1e-4, 64
GRID = np.geomspace(0.003, 3, 120)
HUES = (FACTOR["B"], INK, FACTOR["A"])


class Fading:
    """One client's update for one scan, noised as asked; calling it draws what an attacker reads from it.

    The network is `attacks.whole_scans`; only A of its first layer is sent, and the clip cuts every gradient.

    Guarantees: test_lesson_11.py::test_the_dial_says_what_it_shows, ::test_the_axes_stand_still.
    """

    def __init__(self) -> None:
        from fedlora_lab.attacks import whole_scans

        self.task, self._victims = whole_scans(), {}

    def _victim(self, rank: int) -> Any:
        from fedlora_lab.attacks import Victim
        from fedlora_lab.plan import Lora

        if rank not in self._victims:
            self._victims[rank] = Victim.of(self.task, Lora(rank, float(rank)), spread=0.2)
        return self._victims[rank]

    def read(self, noise: float, releases: int = 1, rank: int = 8, scan: int = 0, draw: int = 0) -> tuple[Any, float]:
        """The direction read, (64,), and its |cosine| with the scan.

        The mean of T releases of one gradient is drawn as one release with sigma / sqrt(T): the same distribution.
        """
        from fedlora_lab.attacks import direction, similarity

        check_whole("releases", releases, 1)
        x, y = (part[scan : scan + 1] for part in self.task.clients[0])
        victim = self._victim(rank)
        upload = victim.upload((x, y), clip_norm=CLIP, noise_multiplier=noise / releases**0.5, draw=draw)
        found = direction(upload[victim.layer(upload)])
        return found, similarity(found, x)

    def __call__(self, noise: float = 0.1, releases: int = 1, rank: int = 8, scan: int = 7) -> tuple[Picture, str]:
        """The scan, what is read, and where on the closed form this is; the same in words."""
        from fedlora_lab.attacks import shown

        found, cosine = self.read(noise, releases, rank, scan)
        closed = theory.overlap(noise, rank, PIXELS, releases)
        lost = theory.vanishing_noise(rank, PIXELS, releases)
        with paper():
            figure = picture(8.6, 3.1)
            true = self.task.clients[0][0][scan].numpy()
            for left, image, words in ((0.015, true, "the scan"), (0.255, shown(found), "read from the update")):
                ax = figure.add_axes((left, 0.15, 0.225, 0.68))
                ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                ax.grid(visible=False)
                ax.set_title(words)
            self._curve(figure.add_axes((0.58, 0.18, 0.405, 0.65)), rank, releases, lost, (noise, cosine))
        spent = theory.gdp_epsilon(theory.gaussian_mu(noise, releases), DELTA)
        seen = "can be read" if noise < 0.6 * lost else "is going" if noise < lost else "is lost"
        price = f"{spent:,.0f}" if spent >= 10 else f"{spent:.2g}"
        text = (
            f"σ = {noise:g}, {releases} release{'s' if releases > 1 else ''}: |cos| with the scan {cosine:.2f} (closed "
            f"form {closed:.2f}). The image {seen}; in a large layer nothing of it is left above σ = {lost:.2f}. "
            f"Spent on this scan: ε = {price} at δ = 0.0001."
        )
        return figure, text

    def _curve(self, ax: Any, rank: int, releases: int, lost: float, now: tuple[float, float]) -> None:
        ax.axvspan(lost, GRID[-1], color=RIGHT, alpha=0.12, lw=0)
        ax.plot(GRID, [theory.overlap(s, rank, PIXELS, releases) for s in GRID], color=INK, lw=2)
        ax.plot(*now, "o", ms=10, color=WRONG, mec=CARD, zorder=5, clip_on=False)
        ax.set(xscale="log", xlim=(GRID[0], GRID[-1]), ylim=(0, 1.03), xlabel="noise multiplier σ of each release")
        log_axis(ax.xaxis, (0.01, 0.1, 1))
        ax.set_title("|cos| with the scan: closed form")
        if lost < 1.2:
            ax.text(GRID[-1] * 0.93, 0.97, "image lost", color=RIGHT, fontsize=9, weight="bold", ha="right", va="top")


def fading(noise: float = 0.1, releases: int = 1, rank: int = 8, scan: int = 7) -> tuple[Picture, str]:
    """The figure of the dial and its words, see `Fading`."""
    return Fading()(noise, releases, rank, scan)


def leak_check(
    ranks: Sequence[int] = (2, 8, 32),
    noises: Sequence[float] = (0.01, 0.02, 0.04, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 1.0),
    draws: int = 100,
) -> tuple[Picture, Any]:
    """|cosine| of scan and image read, mean of draws, against `theory.overlap`; and the table that is drawn.

    Returns: (figure, frame): columns rank, noise, measured, half (of the 95 % interval of the mean), closed, lost.
    Guarantees: test_lesson_11.py::test_the_closed_form_holds_the_images.
    """
    check_whole("draws", draws, 2)
    under, rows = Fading(), []
    for rank in ranks:
        for noise in noises:
            found = np.array([under.read(noise, 1, rank, draw % 10, draw)[1] for draw in range(draws)])
            half, closed = 1.96 * found.std(ddof=1) / draws**0.5, theory.overlap(noise, rank, PIXELS)
            rows.append((rank, noise, found.mean(), half, closed, noise >= theory.vanishing_noise(rank, PIXELS)))
    table: Any = pd.DataFrame(rows, columns=["rank", "noise", "measured", "half", "closed", "lost"])
    with paper():
        figure = picture(8.0, 3.9)
        ax = figure.add_axes((0.08, 0.17, 0.76, 0.73))
        labels = []
        for hue, (rank, part) in zip(HUES, table.groupby("rank", sort=False), strict=False):
            line = np.array([theory.overlap(s, int(rank), PIXELS) for s in GRID])
            ax.plot(GRID, line, color=hue, lw=1.8)
            ax.errorbar(part["noise"], part["measured"], yerr=part["half"], fmt="o", ms=5, color=hue, mec=CARD, mew=0.6)
            labels.append(Label(GRID[-1], float(part["measured"].iloc[-1]), f"rank {rank}", hue))
        ax.axhline((2 / np.pi / PIXELS) ** 0.5, color=GREY, lw=1.2, ls=(0, (4, 2)))
        ax.text(GRID[0] * 1.1, (2 / np.pi / PIXELS) ** 0.5 + 0.02, "a random direction", color=SOFT, fontsize=8)
        ax.set(xscale="log", xlim=(GRID[0], GRID[-1]), ylim=(0, 1.03), xlabel="noise multiplier σ")
        ax.set_ylabel("|cos| of image and scan")
        log_axis(ax.xaxis, (0.01, 0.1, 1))
        ax.set_title("How much of the scan one noised update shows")
        beside(ax, labels, together=False)
        footer(figure, f"lines: closed form; dots: mean of {draws} draws over ten scans, with its 95 % interval")
    return figure, table


def spans(table: Any, rank: int) -> Picture:
    """Share of inputs outside the span of one gradient against the size of the batch; see `attacks.outside_by_batch`.

    Args: table: columns size, who, value. rank: of the adapter, marked.
    """
    check(isinstance(table, pd.DataFrame) and len(table) > 0, "table", type(table).__name__, "a frame with rows")
    with paper():
        figure = picture(8.0, 3.5)
        ax = figure.add_axes((0.09, 0.17, 0.69, 0.72))
        labels, hues = [], {"in the batch": WRONG, "somebody else": GREY}
        groups: Any = table.groupby("who")
        for who, part in groups:
            line, hue = part.groupby("size")["value"].mean(), hues[who]
            ax.plot(line.index, line, "o-", color=hue, mec=CARD, ms=6)
            labels.append(Label(float(line.index[-1]), float(line.iloc[-1]), str(who), hue))
        ax.axvline(rank, color=INK, lw=1.2, ls=(0, (4, 2)))
        ax.text(rank + 0.25, 0.95, f"rank r = {rank}", color=INK, fontsize=9, va="top")
        ax.set(xlim=(0.5, table["size"].max() + 0.5), ylim=(-0.03, 1), xlabel="examples in the update")
        ax.set_ylabel("share outside the span")
        ax.set_title("Whose scans lie in the span of ∇A?")
        beside(ax, labels, together=False)
    return figure
