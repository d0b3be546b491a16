"""Edges of chance: noise that somebody knows, numbers with gaps, streams that are one stream."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedlora_lab.edges.edge import Edge
from fedlora_lab.streams import Streams

NUMBERS = 100_000


def published_seed() -> tuple[Streams, Streams]:
    """The noise's streams, and what the attacker makes of the log: the same."""
    return Streams(25), Streams(25)


def no_seed() -> tuple[Streams, Streams]:
    """Noise from the operating system; the attacker can only draw anew."""
    return Streams(None), Streams(None)


def left_after_subtraction(streams: Callable[[], tuple[Streams, Streams]]) -> float:
    """Distance per number between a noised value and what the attacker makes of it, in noise deviations."""
    ours, theirs = streams()
    released = 0.5 + ours.normal((NUMBERS,), "noise", 0)
    guess = released - theirs.normal((NUMBERS,), "noise", 0)
    return round(float((guess - 0.5).square().mean().sqrt()), 1)  # without a seed no two measurements are equal


def in_floating_point(value: float, xi: Tensor) -> Tensor:
    """Value plus noise, float32: what comes out is where such numbers lie dense enough."""
    return torch.tensor(value, dtype=torch.float32) + xi


def on_a_grid(value: float, xi: Tensor) -> Tensor:
    """The same, rounded to steps of 1/1024, alike for every value. Closes this hole; proves nothing about others."""
    return torch.round(in_floating_point(value, xi) * 1024) / 1024


def betrayed(release: Callable[[float, Tensor], Tensor]) -> float:
    """Share of releases of the value 0 that no noise could make of the value 1."""
    seen = release(0.0, Streams(26).normal((NUMBERS,), "noise", 0))
    back = release(1.0, seen - 1.0)
    return float((back != seen).float().mean())


def one_integer(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pretrained weights and the adapter's start, both from the same integer."""
    return np.random.default_rng(seed).standard_normal(4096), np.random.default_rng(seed).standard_normal(4096)


def two_purposes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same two from streams that are named by purpose."""
    streams = Streams(seed)
    return streams.numpy("pretraining").standard_normal(4096), streams.numpy("adapter").standard_normal(4096)


def alike(draw: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> float:
    """Correlation of the two streams."""
    return abs(float(np.corrcoef(*draw(0))[0, 1]))


DRAWN = "Chance"
EDGES = (
    Edge(
        number=25, title="Noise from a seed that others know", severity="fatal", group=DRAWN,
        wrong="Whoever knows the seed draws the noise again and subtracts it. Equal seeds at two clients cancel or "
        "double.",
        library="**Refuses** the word release: with a seed, the ledger says `reproducible: not for release`, and that "
        "cannot be set otherwise (`test_a_seeded_run_never_becomes_a_release`). With `seed=None` noise comes from the "
        "operating system and nothing of it is kept (`test_nothing_of_seed_or_noise_is_kept`), and so does every draw "
        "of batches and participants (`test_nothing_else_decides_a_run_for_release`). Each client has its own "
        "stream (`test_each_client_has_its_own_noise_in_the_example_unit`).",
        what="what an attacker who drew the noise again is off by, in noise deviations",
        broken=published_seed, fixed=no_seed, measure=left_after_subtraction, line=1.0, side="at least",
    ),
    Edge(
        number=26, title="Floating-point numbers taken for real ones", severity="note", group=DRAWN,
        wrong="The gaps between representable numbers can give a value away (Mironov 2012; Haney et al. 2022).",
        library="**Tells.** *Not hardened*: Gaussian samples are floating-point numbers, no discrete noise is used and "
        "nothing runs in constant time. The broken form below is what this library does; rounding to a common grid "
        "closes the hole that is measured, and no other.",
        what="share of releases of the value 0 that cannot be releases of the value 1 (σ = 1, float32)",
        broken=in_floating_point, fixed=on_a_grid, measure=betrayed, line=0.0,
    ),
    Edge(
        number=29, title="One integer seed for two purposes", severity="bug", group=DRAWN,
        wrong="If pretraining and the adapter both start from seed 0, A can come out aligned with the model: an "
        "accuracy of 0.33 where every other seed gave 0.89.",
        library="**Cannot say it.** Streams are named by purpose and derived by a hash (`test_digits_streams_differ`, "
        "`test_every_layer_and_seed_starts_elsewhere`).",
        what="correlation of the two streams of random numbers",
        broken=one_integer, fixed=two_purposes, measure=alike, line=0.1,
    ),
)  # fmt: skip
