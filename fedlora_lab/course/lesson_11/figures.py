"""Figures of notebook 11: a scan read from a noised update, spans."""

from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab import theory
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.attacks.gradient_inversion import Victim, similarity
from fedlora_lab.attacks.reconstruction import (
    as_image,
    flattened_digits_task,
    input_from_a_gradient,
)
from fedlora_lab.methods.plan import Lora
from fedlora_lab.plots import style

LEAK_HUES = (style.FACTOR["B"], style.INK, style.FACTOR["A"])
CLIP, DELTA, PIXELS = 0.01, 1e-4, 64
NOISES = np.geomspace(0.003, 3, 120)


@style.paper()
def recovered_images(images: Mapping[str, Any], title: str = "") -> style.Picture:
    """Draws grey images in a row, each under its own words; black is 0, white 1.

    Args: images: words -> (height, width), values clipped to [0, 1].
    Raises: ``ValueError`` without an image.
    Guarantees: test_the_recovered_images_are_drawn.
    """
    count = len(images)
    check(count > 0, "images", images, "at least one")
    height, share = (2.15, 0.62) if title else (1.85, 0.74)
    places = [(i / count + 0.012, 0.2, 1 / count - 0.024, share) for i in range(count)]
    figure, axes = style.panels(max(1.45 * count, 3.0), height, *places)
    for ax, (words, image) in zip(axes, images.items(), strict=True):
        _image(ax, np.clip(np.asarray(image, float), 0, 1))
        ax.set_xlabel(words, color=style.SOFT, fontsize=8.5)
    if title:
        axes[0].set_title(title)
    return figure


def _image(ax: Any, image: Any, **words: Any) -> None:
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[], **words)
    ax.grid(visible=False)


class AttackedClient:
    """Holds one client whose noised updates for single scans are attacked.

    The network is that of `attacks.flattened_digits_task`; only A of its first layer is sent, and
    the clip cuts every gradient.
    """

    def __init__(self) -> None:
        task = self.task = flattened_digits_task()
        self.victim = lru_cache(
            lambda rank: Victim.from_task(task, Lora(rank, float(rank)), spread=0.2)
        )

    def read(
        self, noise: float, releases: int = 1, rank: int = 8, scan: int = 0, draw: int = 0
    ) -> tuple[Any, float]:
        """Attacks the update: the direction read, (64,), and its |cosine| with the scan.

        The mean of T releases of one gradient is drawn as one release with sigma / sqrt(T): the
        same distribution.

        Args: noise, releases, rank: of the updates; scan: which one; draw: seed of the noise.
        """
        check_whole("releases", releases, 1)
        x, y = (part[scan : scan + 1] for part in self.task.clients[0])
        victim, sigma = self.victim(rank), noise / releases**0.5
        upload = victim.upload((x, y), clip_norm=CLIP, noise_multiplier=sigma, draw=draw)
        image = input_from_a_gradient(upload[victim.layer(upload)])
        return image, similarity(image, x)


_client = cache(AttackedClient)


@style.paper()
def attack_under_noise(
    noise: float = 0.1, releases: int = 1, rank: int = 8, scan: int = 7
) -> tuple[style.Picture, str]:
    """Draws the scan, what is read of it, and where on the closed form this is; also in words.

    Args: noise, releases, rank, scan: as of `AttackedClient.read`.
    Guarantees: test_explorers.py::test_axes_stand_still.
    """
    image, cosine = _client().read(noise, releases, rank, scan)
    lost = theory.vanishing_noise(rank, PIXELS, releases)
    places = (0.015, 0.15, 0.225, 0.68), (0.255, 0.15, 0.225, 0.68), (0.58, 0.18, 0.405, 0.65)
    figure, (left, middle, ax) = style.panels(8.6, 3.1, *places)
    _image(left, _client().task.clients[0][0][scan].numpy(), title="the scan")
    _image(middle, as_image(image), title="read from the update")
    line = [theory.gradient_overlap(s, rank, PIXELS, releases) for s in NOISES]
    ax.axvspan(lost, NOISES[-1], color=style.RIGHT, alpha=0.12, lw=0)
    ax.plot(NOISES, line, color=style.INK, lw=2)
    style.dots(ax, [noise], [cosine], style.WRONG, 10, zorder=5, clip_on=False)
    ax.set(xscale="log", xlim=(NOISES[0], NOISES[-1]), ylim=(0, 1.03))
    ax.set_xlabel("noise multiplier σ of each release")
    style.log_axis(ax.xaxis, (0.01, 0.1, 1))
    ax.set_title("|cos| with the scan: closed form")
    if lost < 1.2:
        put: Any = {"weight": "bold", "ha": "right", "va": "top"}
        style.note(ax, 0.99, 0.94, "image lost", style.RIGHT, 9, **put)
    closed = theory.gradient_overlap(noise, rank, PIXELS, releases)
    spent = theory.gdp_epsilon(theory.gaussian_mu(noise, releases), DELTA)
    seen = "can be read" if noise < 0.6 * lost else "is going" if noise < lost else "is lost"
    price = f"{spent:,.0f}" if spent >= 10 else f"{spent:.2g}"
    return figure, (
        f"σ = {noise:g}, {releases} release{'s' if releases > 1 else ''}: |cos| with the scan "
        f"{cosine:.2f} (closed form {closed:.2f}). The image {seen}; in a large layer nothing "
        f"of it is left above σ = {lost:.2f}. Spent on this scan: ε = {price} at δ = 0.0001."
    )


@style.paper()
def leak_check(
    ranks: Sequence[int] = (2, 8, 32),
    noises: Sequence[float] = (0.01, 0.02, 0.04, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 1.0),
    draws: int = 100,
) -> tuple[style.Picture, Any]:
    """Draws the mean |cosine| of scan and image read over `theory.gradient_overlap`.

    Args: ranks, noises: of the updates; draws: of each, over ten scans.
    Returns: (figure, frame): columns rank, noise, measured, half (of the 95 % interval of the
        mean), closed, lost.
    Guarantees: test_lesson_11.py::test_the_closed_form_holds_the_images.
    """
    check_whole("draws", draws, 2)
    rows = []
    for rank in ranks:
        lost = theory.vanishing_noise(rank, PIXELS)
        for s in noises:
            values = np.array([_client().read(s, 1, rank, i % 10, i)[1] for i in range(draws)])
            half = 1.96 * values.std(ddof=1) / draws**0.5
            closed = theory.gradient_overlap(s, rank, PIXELS)
            rows.append((rank, s, values.mean(), half, closed, s >= lost))
    table: Any = pd.DataFrame(rows, columns=["rank", "noise", "measured", "half", "closed", "lost"])
    figure, (ax,) = style.panels(8.0, 3.9, (0.08, 0.17, 0.76, 0.73))
    labels, chance = [], (2 / np.pi / PIXELS) ** 0.5
    for hue, (rank, part) in zip(LEAK_HUES, table.groupby("rank", sort=False), strict=False):
        line = [theory.gradient_overlap(s, int(rank), PIXELS) for s in NOISES]
        label = style.named_line(ax, NOISES, line, f"rank {rank}", hue, lw=1.8)
        dots: Any = {"fmt": "o", "ms": 5, "color": hue, "mec": style.CARD, "mew": 0.6}
        ax.errorbar(part["noise"], part["measured"], yerr=part["half"], **dots)
        labels.append(label._replace(y=float(part["measured"].iloc[-1])))
    ax.axhline(chance, color=style.GREY, lw=1.2, ls=style.DASHED)
    ax.text(NOISES[0] * 1.1, chance + 0.02, "a random direction", color=style.SOFT, fontsize=8)
    ax.set(xscale="log", xlim=(NOISES[0], NOISES[-1]), ylim=(0, 1.03))
    ax.set(xlabel="noise multiplier σ", ylabel="|cos| of image and scan")
    style.log_axis(ax.xaxis, (0.01, 0.1, 1))
    ax.set_title("How much of the scan one noised update shows")
    style.draw_labels(ax, labels, together=False)
    mean = f"mean of {draws} draws over ten scans, with its 95 % interval"
    style.footer(figure, f"lines: closed form; dots: {mean}")
    return figure, table


@style.paper()
def span_by_batch_size(table: Any, rank: int) -> style.Picture:
    """Draws the share of inputs outside the span of one gradient against the size of the batch.

    Args:
        table: columns size, who, value, as of `attacks.span_residual_by_batch_size`.
        rank: of the adapter.
    """
    filled = isinstance(table, pd.DataFrame) and len(table) > 0
    check(filled, "table", type(table).__name__, "a frame with rows")
    figure, (ax,) = style.panels(8.0, 3.5, (0.09, 0.17, 0.69, 0.72))
    labels, hues = [], {"in the batch": style.WRONG, "somebody else": style.GREY}
    mark: Any = {"marker": "o", "ms": 6, "mec": style.CARD}
    means: Any = table.groupby(["who", "size"])["value"].mean()
    for who in means.index.levels[0]:
        line = means[who]
        labels.append(style.named_line(ax, line.index, line, who, hues[who], **mark))
    ax.axvline(rank, color=style.INK, lw=1.2, ls=style.DASHED)
    ax.text(rank + 0.25, 0.95, f"rank r = {rank}", color=style.INK, fontsize=9, va="top")
    ax.set(xlim=(0.5, table["size"].max() + 0.5), ylim=(-0.03, 1))
    ax.set(xlabel="examples in the update", ylabel="share outside the span")
    ax.set_title("Whose scans lie in the span of ∇A?")
    style.draw_labels(ax, labels, together=False)
    return figure
