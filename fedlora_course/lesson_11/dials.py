"""The dial of notebook 11: a scan, and what an attacker reads of it from a noised update."""

import math
from functools import partial

import numpy as np

from fedlora_course.lesson_11.figures import LOST, PIXELS, AttackedClient, read_cosine
from fedlora_course.lesson_11.scans import as_image
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, area, axis, dots, line, panel, picture, text
from fedlora_lab import theory
from fedlora_lab._utils.rounding import round_up

NOISES = (0.01, 0.02, 0.05, 0.1, 0.15, 0.22, 0.3, 0.5, 0.7, 1, 2, 3)
RANK = 8
DELTA = 1e-4


def _attack_scene(client: AttackedClient, noise: float, releases: int, scan: int) -> Scene:
    """Draws a scan, what is read of it from an update, and how near that is on average."""
    scans = client.task.clients[0][0]
    sigmas = np.geomspace(NOISES[0], NOISES[-1], 40)
    # The mean of N releases has the noise of one at sigma / sqrt(N).
    usual = [read_cosine(PIXELS, sigma / releases**0.5, 100, RANK) for sigma in (*sigmas, noise)]
    image, cosine = client.read(noise, releases, RANK, scan)
    lost = LOST * releases**0.5
    spent = theory.gdp_epsilon(theory.gaussian_mu(noise, releases), DELTA)
    seen = "can be read" if usual[-1] > 2 / 3 else "fades" if noise < lost else "is lost"
    edge = min(lost, NOISES[-1])
    panels = [
        picture("The scan", scans[scan].numpy()),
        picture(f"Read from the update: it {seen}", as_image(image)),
        panel(
            f"|cos| with the scan: {cosine:.2f}",
            axis("noise multiplier σ of each release", NOISES[0], NOISES[-1], log=True),
            axis("|cos|", 0, 1.04),
            area([edge, NOISES[-1], NOISES[-1], edge], [0, 0, 1.04, 1.04], "grey", 0.13),
            text(NOISES[-1], 0.95, "image lost", "soft", anchor="end", dx=-6),
            line(sigmas, usual[:-1], "ink", "on average"),
            dots(noise, cosine, "red", 7),
            wide=True,
            height=220,
        ),
    ]
    price = f"{math.ceil(spent):,}" if spent >= 10 else round_up(spent, ".2g")
    return panels, [
        f"σ = {noise:g}, releases: {releases}; |cos| with the scan ",
        f"{cosine:.2f} ",
        f"(on average {usual[-1]:.2f}; a random image has 0.10). The image {seen}. ",
        f"Spent on this scan: ε = {price} at δ = 0.0001.",
    ]


def attack_explorer() -> Dial:
    """Makes a dial for noise, releases and scan: the reconstruction from an update of rank 8.

    Guarantees: the picture is what `AttackedClient.read` reads, the line is `read_cosine`
        (test_dials.py::test_a_dial_shows_what_its_scene_draws).
    """
    return Dial(
        "11/attack_explorer",
        partial(_attack_scene, AttackedClient()),
        noise=NOISES,
        releases=(1, 10, 100),
        scan=(0, 3, 7),
    )
