"""Figures of notebook 11: scans read from updates, spans, and what is left beyond the threshold."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm

from fedlora_lab import theory
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.attacks.membership_inference import Membership
from fedlora_lab.attacks.reconstruction import (
    Victim,
    as_image,
    flattened_digits_task,
    input_from_a_gradient,
    similarity,
)
from fedlora_lab.audit import bounds
from fedlora_lab.course.widgets.dial import Dial, round_to_digits
from fedlora_lab.methods.plan import Lora
from fedlora_lab.plots import style
from fedlora_lab.plots.tidy import bands, confidence_interval

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
        self.victim = cache(lambda r: Victim.from_task(task, Lora(r, float(r)), spread=0.2))

    def read(
        self, noise: float, releases: int = 1, rank: int = 8, scan: int = 0, draw: int = 0
    ) -> tuple[Any, float]:
        """Attacks the update: returns the direction read, (64,), and its |cosine| with the scan.

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
def beyond_threshold(
    noises: Sequence[float] = (0.05, 0.1, 0.15, 0.22, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0),
    draws: int = 1000,
) -> tuple[style.Picture, Any]:
    """Draws three attacks on one noised gradient of A, rank 8: image, name and presence.

    The image is the first singular vector; the name is the candidate, of all clients' scans, that
    explains the gradient best; presence is whether a given scan's gradient is there at all.

    Args: noises: in units of C; draws: of each, with another scan and noise.
    Returns: (figure, frame): columns noise, image with image_low and image_high (95 %, of at most
        300 draws), named with low and high (95 % Clopper-Pearson), most (no attack names more), auc
        with auc_low and auc_high (95 %, of ten parts), auc_closed.
    Guarantees: test_the_name_outlives_the_image.
    """
    check_whole("draws", draws, 100)
    victim, task = _client().victim(8), _client().task
    inputs, labels = (torch.cat(part) for part in zip(*task.clients, strict=True))
    traces = victim.traces((inputs, labels), "A", CLIP).double() / CLIP
    random, rows, chance = torch.Generator().manual_seed(11), [], 1 / len(traces)
    for sigma in noises:
        who = torch.randint(len(traces), (draws,), generator=random)
        noise = sigma * torch.randn(2, *traces[who].shape, generator=random, dtype=traces.dtype)
        sent = traces[who] + noise[0]
        # The log-likelihood of each candidate, up to what all candidates share.
        fits = sent @ traces.T - traces.square().sum(1) / 2
        right = int((fits.argmax(1) == who).sum())
        there, absent = ((given * traces[who]).sum(1).numpy() for given in (sent, noise[1]))
        parts = zip(np.split(there, 10), np.split(absent, 10), strict=True)
        areas = [Membership(*part).auc for part in parts]
        low = 1 - bounds.clopper_pearson_upper(draws - right, draws, 0.025)
        high = bounds.clopper_pearson_upper(right, draws, 0.025)
        seen = torch.linalg.svd(sent[:300].view(-1, 8, PIXELS), full_matrices=False)[2][:, 0]
        scans = torch.nn.functional.normalize(inputs[who[:300]].flatten(1).double(), dim=1)
        image = (seen * scans).sum(1).abs().numpy()
        most = float(norm.cdf(norm.ppf(chance) + 1 / sigma))
        closed = float(norm.cdf(0.5**0.5 / sigma))
        found = (sigma, image.mean(), *confidence_interval(image), right / draws, low, high, most)
        rows.append((*found, np.mean(areas), *confidence_interval(areas), closed))
    columns = ["noise", "image", "image_low", "image_high", "named", "low", "high", "most"]
    columns += ["auc", "auc_low", "auc_high", "auc_closed"]
    table = pd.DataFrame(rows, columns=columns)
    places = [(0.06 + 0.325 * i, 0.19, 0.265, 0.68) for i in range(3)]
    figure, axes = style.panels(10.6, 3.5, *places)
    near = (2 / np.pi / PIXELS) ** 0.5  # of a random direction
    lost, fine = theory.vanishing_noise(8, PIXELS), np.geomspace(noises[0], noises[-1], 200)
    panels = (
        ("The image goes first", "|cos| of image and scan", style.FACTOR["A"], near),
        ("The name goes later", f"share named, of {len(traces):,}", style.FACTOR["B"], chance),
        ("Presence goes last", "AUC: took part or not", style.INK, 0.5),
    )
    for ax, (title, label, hue, least) in zip(axes, panels, strict=True):
        ax.axvline(lost, color=style.GREY, lw=1.2, ls=style.DASHED)
        ax.axhline(least, color=style.GREY, lw=1, ls=style.DOTTED)
        ax.set(xscale="log", xlim=(noises[0], noises[-1]), ylim=(-0.02, 1.03), ylabel=label)
        ax.set_xlabel("noise multiplier σ")
        ax.set_title(title, color=hue)
        style.log_axis(ax.xaxis, (0.1, 0.3, 1, 3))
    ink: Any = {"fmt": "o", "ms": 5, "mec": style.CARD, "mew": 0.6}
    axes[0].plot(fine, [theory.gradient_overlap(s, 8, PIXELS) for s in fine], color=panels[0][2])
    axes[1].plot(fine, norm.cdf(norm.ppf(chance) + 1 / fine), color=style.WRONG, lw=1.2)
    style.note(axes[1], 0.97, 0.9, "no attack is above", style.WRONG, 8.5, ha="right", va="top")
    axes[2].plot(fine, norm.cdf(0.5**0.5 / fine), color=panels[2][2])
    kinds = ("image", "image_"), ("named", ""), ("auc", "auc_")
    for ax, (*_, hue, _), (name, ends) in zip(axes, panels, kinds, strict=True):
        errors = table[name] - table[f"{ends}low"], table[f"{ends}high"] - table[name]
        ax.errorbar(table["noise"], table[name], yerr=errors, color=hue, **ink)
    words = "lines: closed forms; dots: measured, with 95 % intervals; dotted: chance"
    style.footer(figure, f"{words}; dashed: the threshold 1 / (r d_in)^¼; {draws:,} draws a dot")
    return figure, table


@style.paper()
def presence_in_plans(table: Any) -> style.Picture:
    """Draws how well members of an update's batches are told from other scans, over the noise.

    Args: table: columns plan, noise and auc, one row a draw.
    Guarantees: test_presence_is_drawn_with_its_intervals.
    """
    figure, (ax,) = style.panels(8.0, 3.6, (0.08, 0.17, 0.68, 0.72))
    labels = []
    for hue, (plan, part) in zip(style.SERIES, table.groupby("plan", sort=False), strict=False):
        noise, mean, *band = bands(part, "noise", "auc")
        mark: Any = {"marker": "o", "mec": style.CARD}
        labels.append(style.named_line(ax, noise, mean, str(plan), hue, *band, **mark))
    fine = np.linspace(1e-3, table["noise"].max(), 200)
    best = norm.cdf(0.5**0.5 / fine)  # of one example in one step
    ax.plot(fine, best, color=style.WRONG, lw=1.2, ls=style.DASHED)
    words = "no attack on one step is above"
    labels.append(style.Label(float(fine[-1]), float(best[-1]), words, style.WRONG))
    ax.axhline(0.5, color=style.GREY, lw=1, ls=style.DOTTED)
    ax.set(xlabel="noise multiplier σ", ylabel="AUC: in the batches or not", ylim=(0.45, 1.02))
    ax.set_title("Without noise, five steps of sixteen scans hide few of them")
    style.draw_labels(ax, labels, together=False, wide=16)
    draws = int(table.groupby(["plan", "noise"]).size().min())
    style.footer(figure, f"dots: mean of {draws} draws; bands: its 95 % interval; dotted: guessing")
    return figure


@style.paper()
def attack_under_noise(
    noise: float = 0.1, releases: int = 1, rank: int = 8, scan: int = 7
) -> tuple[style.Picture, str]:
    """Draws a scan, its reconstruction from a noised update, and the closed form.

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
    ax.set(xlabel="noise multiplier σ of each release", ylabel="|cos| with the scan")
    style.log_axis(ax.xaxis, (0.01, 0.1, 1))
    if lost < 1.2:
        put: Any = {"weight": "bold", "ha": "right", "va": "top"}
        style.note(ax, 0.99, 0.94, "lost", style.RIGHT, 9, **put)
    closed = theory.gradient_overlap(noise, rank, PIXELS, releases)
    spent = theory.gdp_epsilon(theory.gaussian_mu(noise, releases), DELTA)
    seen = "can be read" if noise < 0.6 * lost else "fades" if noise < lost else "is lost"
    ax.set_title(f"The image {seen}")
    style.footer(
        figure, "line: closed form; dot: this update; green: nothing left in a large layer"
    )
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
    ax.set_title("One noised update shows the scan up to a threshold")
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
    for who, part in table.groupby("who"):
        size, mean, *band = bands(part, "size")
        labels.append(style.named_line(ax, size, mean, str(who), hues[str(who)], *band, **mark))
    ax.axvline(rank, color=style.INK, lw=1.2, ls=style.DASHED)
    ax.text(rank + 0.25, 0.95, f"rank r = {rank}", color=style.INK, fontsize=9, va="top")
    ax.set(xlim=(0.5, table["size"].max() + 0.5), ylim=(-0.03, 1))
    ax.set(xlabel="examples in the update", ylabel="share outside the span")
    ax.set_title(f"Up to {rank} scans the span of ∇A gives the batch away")
    style.draw_labels(ax, labels, together=False)
    draws = int(table.groupby(["who", "size"]).size().min())
    style.footer(figure, f"dots: mean of {draws} batches; bands: its 95 % interval")
    return figure


SCANS = 10


def attack_explorer() -> Dial:
    """Makes a dial for noise, releases, rank and scan: the reconstruction from an update.

    The browser makes the update of A and attacks it: a gradient clipped to C, noise on every entry.

    Guarantees: line and threshold are `theory.gradient_overlap` and `theory.vanishing_noise`
        (tests/browser/test_dials.py::test_formulas).
    """
    scans = flattened_digits_task().clients[0][0][:SCANS].flatten(1).double().numpy()
    about = "A scan, and what an attacker reads of it from one noised update."
    values = {"noise": 0.1, "releases": 1, "rank": 8, "scan": 7}
    return Dial(11, "attack_explorer", about, {"scans": round_to_digits(scans, 3)}, **values)
