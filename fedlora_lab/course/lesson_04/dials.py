"""The dials of notebook 04: noise on the factors, seen in the product, in a plan and on a scan."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fedlora_lab import theory
from fedlora_lab.course.lesson_04.figures import factors_at_start
from fedlora_lab.course.widgets.dial import Dial, menu, slider
from fedlora_lab.course.widgets.scene import Scene, axis, bars, dots, line, panel, picture, text

WIDTHS = (64, 256, 768, 4096)
TERMS = (("noise on B", "blue"), ("noise on A", "orange"), ("noise × noise", "purple"))
NOISES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1)
ALPHA = 8


def _noise_scene(std: float, width: int, rank: int, size_B: float) -> Scene:
    """Draws the three noise terms over τ, and their shares at one τ."""

    ends = np.array([NOISES[0], NOISES[-1]])
    B, A = factors_at_start(rank, width, size_B)
    one = theory.noise_terms(B, A, 1.0, 1.0, ALPHA / rank)
    here = theory.noise_terms(B, A, std, std, ALPHA / rank)
    cross = float(np.sqrt((one.linear_B + one.linear_A) / one.quadratic))
    parts = zip(TERMS, one, here, (2, 2, 4), strict=False)
    marks = []
    shares = []
    for (name, colour), at_one, value, power in parts:
        # Where a term is zero its line is empty: a logarithm has no zero.
        energy = at_one * ends**power if at_one else np.full(2, np.nan)
        dash = "7 4" if name == "noise on A" else None
        marks.append(line(ends, energy, colour, name, labelled=True, dash=dash))
        marks.append(dots(std, value or np.nan, colour))
        shares.append(value / here.total)
    rows = [bars(0, i - 0.32, shares[i], i + 0.32, TERMS[i][1]) for i in range(3)]
    panels = [
        panel(
            f"Noise × noise takes over at τ = {cross:.2g}",
            axis("τ, std of the noise on each entry of B and A", *ends, log=True),
            axis("energy in γ B A", 1e-6, 1e8, log=True),
            line([std, std], [1e-6, 1e8], "soft", dash="3 3", width=1.4),
            *marks,
            dots(cross, (one.linear_B + one.linear_A) * cross**2, "ink", 6),
            wide=True,
        ),
        panel(
            f"Shares of the energy at τ = {std:g}",
            axis("share of the energy", 0, 1.2, ticks=[0, 0.5, 1]),
            axis("", 2.6, -0.6, ticks=[0, 1, 2], names=[name for name, _ in TERMS]),
            *rows,
            *(text(shares[i], i, f"{shares[i]:.0%}", dx=6, dy=4) for i in range(3)),
        ),
    ]
    return panels, [
        f"Noise of τ = {std:g} on both factors of a {width} × {width} layer, ",
        f"rank {rank}, α = {ALPHA}: the product moves by ",
        f"{here.total**0.5:.3g} (root mean square norm). Noise × noise carries ",
        f"{shares[2]:.0%} of that energy; from τ = {cross:.2g} on it carries more than half.",
    ]


def noise_explorer() -> Dial:
    """Makes a dial for noise, width, rank and the size of B: energies of three noise terms.

    Guarantees: the energies are `theory.noise_terms`
        (test_dials.py::test_a_dial_shows_what_its_scene_draws).
    """
    return Dial(
        _noise_scene,
        title="Noise on the factors, seen in the product",
        lead="Turn the noise up. Where does noise × noise take over?",
        about="What noise on both factors becomes in the product: its three terms over τ.",
        controls={
            "std": slider("noise τ", "on every entry of both factors", NOISES),
            "width": slider("layer width", "d_in = d_out of the layer", WIDTHS),
            "rank": slider("rank r", "inner dimension of B A", (1, 4, 16, 64)),
            "size_B": slider("norm of B", "0 before training", (0, 0.5, 1, 2), "× A's"),
        },
        presets={
            "at the start of training": {"std": 0.02, "width": 64, "rank": 4, "size_B": 0},
            "same noise, wide layer": {"std": 0.02, "width": 4096, "rank": 4, "size_B": 0},
            "after training": {"std": 0.02, "width": 64, "rank": 4, "size_B": 1},
        },
        std=0.05,
        width=64,
        rank=4,
        size_B=0,
    )


PLANS = {
    "client": {"rounds": 40, "releases": 40, "reach": 0.7},
    "example": {"rounds": 20, "releases": 100, "reach": 0.5},
}
"""Unit -> rounds, releases in them, and the longest step of a factor in one release. In the client
unit C is 0.7; in the example unit η = 0.5, C = 1, batches of 16 and 5 local steps."""
RANK = 4


def released_noise(unit: str, sigma: float, clients: int) -> float:
    """Computes the std of one release's noise on an entry of the averaged factor.

    Args: unit: "example" or "client"; sigma: noise multiplier; clients: how many are averaged.
    """
    reach = PLANS[unit]["reach"]
    return reach * sigma / clients if unit == "client" else reach * sigma / 16 / clients**0.5


def _plan_scene(unit: str, sigma: float, clients: int, width: int, scale: float) -> Scene:
    """Draws noise and the largest signal over the rounds, and the share of noise × noise."""
    plan = PLANS[unit]
    rounds = int(plan["rounds"])
    count = int(plan["releases"])
    tau = released_noise(unit, sigma, clients)
    rho = theory.amplification(tau, count, width, scale)
    sizes = (width, RANK, width)
    terms = theory.accumulated_noise_terms(*sizes, tau, tau, count, count, 1.0, scale)
    largest = count * plan["reach"] * scale / 3**0.5
    linear = terms.linear_B**0.5 / largest
    quadratic = terms.quadratic**0.5 / largest
    share = rho / (1 + rho)
    ends = np.array([1, rounds])
    passed = ends / rounds
    at = np.linspace(0, rounds, 13)
    panels = [
        panel(
            "Norms in the product: 1 is the largest signal that the run can reach",
            axis("round", 1, rounds, log=True),
            axis("norm, relative", 1e-3, 1e3, log=True),
            line(ends, passed, "green", "signal at most", labelled=True, dash="7 4"),
            line(ends, linear * passed**0.5, "blue", "linear noise", labelled=True),
            line(ends, quadratic * passed, "purple", "noise × noise", labelled=True),
            wide=True,
        ),
        panel(
            f"ρ = 3 d N τ² / c² = {rho:.3g}",
            axis("round", 0, rounds),
            axis("noise × noise, share of energy", 0, 1),
            line([0, rounds], [0.5, 0.5], "soft", dash="3 3", width=1.4),
            text(rounds, 0.5, "ρ = 1: one half", "soft", anchor="end", dy=-5, bold=False),
            line(at, (rho * at / (rounds + rho * at)).round(3), "purple", "share", width=3),
            dots(rounds, share, "purple"),
        ),
    ]
    crossing = int(np.ceil(rounds / rho))
    crosses = f"crosses the linear noise in round {crossing} of {rounds}"
    if crossing > rounds:
        crosses = f"stays below the linear noise in all {rounds} rounds"
    return panels, [
        f"One release puts noise of std τ = {tau:.2g} on an entry of the averaged factors; ",
        f"{count} releases make ",
        f"ρ = {rho:.3g}: noise × noise {crosses}. At the end the noise is ",
        f"{np.hypot(linear, quadratic):.2g} times the largest signal, which needs all clients "
        f"and steps to agree, and noise × noise is {share:.0%} of its energy.",
    ]


def noise_signal() -> Dial:
    """Makes a dial for a plan's settings: the noise gathered in the product over the rounds.

    Noise is that of `theory.accumulated_noise_terms`: in the client unit σC/K on each round's mean,
    in the example unit ησC/(b√K) on each step's. The signal is the largest that the clip allows.
    """
    client = {"unit": "client", "sigma": 3, "clients": 100, "width": 64}
    example = {"unit": "example", "sigma": 1, "clients": 10, "scale": 1}
    return Dial(
        _plan_scene,
        title="Noise against signal over the rounds",
        lead="Where does noise × noise cross the linear noise, and where noise the signal?",
        about="Linear noise, noise × noise and the largest signal of a plan, round by round.",
        controls={
            "unit": menu(
                "protected unit",
                "what is clipped and noised; both plans are those of this notebook",
                {
                    "client": "client: the round's update, T = 40",
                    "example": "example: each of 5 steps, T = 20",
                },
            ),
            "sigma": slider("noise multiplier σ", "noise on a sum has std σC", (0.3, 1, 3, 10)),
            "clients": slider("clients K", "averaged in a round", (10, 100, 1000)),
            "width": slider("layer width d", "d_in = d_out", WIDTHS),
            "scale": slider("start scale c", "A starts c times as large", (1, 2, 4)),
        },
        presets={
            "client unit, 100 clients": client | {"scale": 1},
            "the same, c = 4": client | {"scale": 4},
            "example unit": example | {"width": 64},
            "the same, wide layer": example | {"width": 4096},
        },
        **client,
        scale=1,
    )


FILM = Path(__file__).with_name("decisions.json")


@cache
def decisions_film() -> dict[str, Any]:
    """Loads what the model of the notebook's run of seed 0 says of three test scans, by round.

    Its keys: ``scans``, each with pixels, digit and class probabilities of the model as it is
    ("noisy") and of B̂ Â, without the noise gathered in its factors ("clean"), see
    `figures.split_run`; over all test scans ``changed``, the share that noise decides otherwise,
    and ``right``, the accuracy of both models.

    Guarantees: it is what the run gives (test_the_film_is_of_the_run).
    """
    return json.loads(FILM.read_text(encoding="utf-8"))


def _film_scene(scan: int, round: int) -> Scene:
    """Draws a scan, its class probabilities in a round, and those of its class over the rounds."""

    film = decisions_film()
    rounds = len(film["changed"]) - 1
    digits = np.arange(10)
    shown = film["scans"][scan]
    truth = shown["truth"]
    noisy = np.array(shown["noisy"])
    clean = np.array(shown["clean"])
    says = int(noisy[round].argmax())
    would = int(clean[round].argmax())
    verdict = f"{says} either way" if says == would else f"{says}; without the noise, {would}"
    panels = [
        picture(f"The scan: a {truth}", np.reshape(shown["pixels"], (8, 8))),
        panel(
            f"Round {round}: it says {verdict}",
            axis("digit", -0.6, 9.6, ticks=list(range(10))),
            axis("probability", 0, 1),
            bars(digits - 0.4, 0, digits, noisy[round], "purple"),
            bars(digits, 0, digits + 0.4, clean[round], "green"),
            wide=True,
        ),
        panel(
            f"Probability of the {truth} over the rounds",
            axis("round", 0, rounds),
            axis("", 0, 1),
            line(range(rounds + 1), clean[:, truth], "green", "noise taken out", labelled=True),
            line(range(rounds + 1), noisy[:, truth], "purple", "as trained", labelled=True),
            dots(round, clean[round, truth], "green"),
            dots(round, noisy[round, truth], "purple"),
            wide=True,
        ),
    ]
    return panels, [
        f"Round {round} of {rounds}: the model, with the noise that its factors have gathered, "
        f"gives the {truth} a probability of {noisy[round, truth]:.0%} and says {says}. With "
        f"that noise taken out (γ B̂ Â alone) it would be {clean[round, truth]:.0%}, and it "
        f"would say {would}. ",
        f"Of all {film['examples']} test scans {film['changed'][round]:.0%} are decided "
        f"differently; {film['right'][0][round]:.0%} are right as trained and "
        f"{film['right'][1][round]:.0%} with the noise taken out.",
    ]


def decision_film() -> Dial:
    """Makes a dial for scan and round: class probabilities with and without the noise."""

    film = decisions_film()
    rounds = len(film["changed"]) - 1
    truths = {i: f"a {shown['truth']}" for i, shown in enumerate(film["scans"])}
    return Dial(
        _film_scene,
        title="One scan, round by round",
        lead="Press Play. The scan stays the same. What becomes of the decision as noise gathers?",
        about="What a privately trained model says of one scan, round by round, with and without "
        "noise.",
        controls={
            "scan": menu("scan", "of the test scans", truths),
            "round": slider("round", "0 is before training", range(rounds + 1)),
        },
        presets={words: {"scan": i, "round": rounds} for i, words in truths.items()},
        play="round",
        scan=0,
        round=rounds,
    )
