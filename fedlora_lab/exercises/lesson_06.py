"""Exercises of notebook 06: what if the factors take turns between rounds?"""

import math

import numpy as np

from fedlora_lab import theory
from fedlora_lab.exercises.exercise import Exercise, Mistake, near, number

STD, SCALING, RANK, SIDE = 0.05, 2.0, 4, 64


def cycle(parts: str = "both") -> float:
    """Energy of the noise in W after a B round and an A round from B = 0: all, or its linear or quadratic part."""
    B, A = np.zeros((SIDE, RANK)), np.eye(RANK, SIDE) / math.sqrt(3)  # |A|^2 = r / 3
    terms = theory.noise_terms(B, A, STD, STD, SCALING)
    return {"both": terms.total, "linear": terms.linear_B, "quadratic": terms.quadratic}[parts]


def multiplier() -> float:
    """The multiplier that protects, for a peer with singular values 2 and 0.5 and nominal sigma 1.5."""
    return theory.regulated_multiplier(np.diag([2.0, 0.5]), 1.5)


def spent(releases: int = 100, delta: float = 1 / 12, sigma: float = 1.12) -> float:
    """Client-level epsilon of full-participation releases."""
    return theory.gdp_epsilon(theory.gaussian_mu(sigma, releases), delta)


EXERCISES = (
    Exercise(
        key="06.1",
        question=(
            "A layer with d_out = d_in = 64, rank 4, s = 2, B = 0 and ‖A‖² = 4/3. RoLoRA does one B round, then one A "
            "round; each puts noise of standard deviation 0.05 on every entry of the factor that moves. Nothing else "
            "moves. How large is the expected energy ‖noise in W‖² after both rounds?"
        ),
        hint=(
            "After the B round, B is pure noise: how large is ‖B‖² then? The A round puts its noise behind that B, "
            "and s counts squared in an energy."
        ),
        solution=(
            "B round: s²·std²·d_out·‖A‖² = 4 · 0.0025 · 64 · 4/3 = 0.853. Now ‖B‖² = std²·d_out·r = 0.64. A round: "
            "s²·std²·d_in·‖B‖² = 4 · 0.0025 · 64 · 0.64 = 0.410, the quadratic term s²·std⁴·d_out·d_in·r. Together "
            "1.263, exactly what moving both at once gives."
        ),
        answer=cycle,
        read=number,
        right=near(cycle(), 2e-3),
        why="the A round multiplies its noise by a B that already is noise: the quadratic term is back, 0.41 of 1.26.",
        mistakes=(
            Mistake(
                0.853,
                near(cycle("linear"), 2e-3),
                "that is the B round alone; the A round multiplies its noise by a B that is no longer zero.",
            ),
            Mistake(0.41, near(cycle("quadratic"), 3e-3), "that is the A round alone; the B round's noise stays in W."),
            Mistake(
                1.7067,
                near(2 * cycle("linear"), 2e-3),
                "you counted the B round twice; in the A round the noise passes B, whose ‖B‖² is 0.64.",
            ),
            Mistake(0.3157, near(cycle() / 4, 2e-3), "you left out s: W holds s·B·A, and an energy takes s squared."),
            Mistake(0.6315, near(cycle() / 2, 2e-3), "s counts squared in an energy."),
            Mistake(1.1238, near(math.sqrt(cycle()), 2e-3), "that is the norm; the energy is its square."),
        ),
        others=(1.26293, "1.263", np.float64(cycle())),
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        key="06.2",
        question=(
            "The regulator as published: the change of B is clipped to C = 1, the noise is shaped by a resting A with "
            "singular values 2 and 0.5, the nominal noise multiplier is σ = 1.5. Which noise multiplier really "
            "protects the worst change?"
        ),
        hint="Shaped noise is smallest where A is largest. How many noise deviations long is a change of norm 1 there?",
        solution=(
            "Along A's largest direction the noise has standard deviation σ / 2 = 0.75, and a change of norm 1 may "
            "point exactly there. So the release hides it as plain noise with multiplier 1.5 / 2 = 0.75 would."
        ),
        answer=multiplier,
        read=number,
        right=near(0.75),
        why="σ / ‖A‖₂: the promise is that of half the nominal noise. Clipping ‖ΔB·A‖ instead gives 1.5 back.",
        mistakes=(
            Mistake(1.5, near(1.5), "1.5 is the nominal one; the noise is not equally large in all directions."),
            Mistake(3.0, near(3.0), "that direction hides best; a promise counts the one that hides worst."),
            Mistake(
                0.7276,
                near(1.5 / math.hypot(2, 0.5), 1e-3),
                "the Frobenius norm mixes both directions; the worst change lies along one, the largest.",
            ),
            Mistake(1.2, near(1.2), "the mean of the singular values is not what the worst change meets."),
            Mistake(0.375, near(0.375), "σ / ‖A‖² would be a variance; the multiplier is a standard deviation."),
        ),
        others=("0.75", 3 / 4),
        difficulty=2,
        minutes=5,
    ),
    Exercise(
        key="06.3",
        question=(
            "DEeR's released code takes σ from example-level accounting (about 1.12 for a nominal ε of 1 on Kvasir) "
            "but adds the noise to whole client updates: 12 clients, all in every round, 50 rounds of two phases, "
            "δ = 1/12. Suppose clip and noise were sound and joint. Which ε do the releases spend at client level? Use "
            "fl.theory.gaussian_mu and fl.theory.gdp_epsilon."
        ),
        hint="Nobody is sampled, so there is no amplification. How many Gaussian releases are there in 50 rounds?",
        solution=(
            "fl.theory.gdp_epsilon(fl.theory.gaussian_mu(1.12, 100), 1/12): each round releases twice, so μ = √100 / "
            "1.12 = 8.93 and ε is about 51, not 1. A δ of 1/12 among 12 clients is no protection either."
        ),
        answer=spent,
        read=number,
        right=near(spent(), 0.01),
        why="two releases a round, nobody sampled: about 51 where 1 was meant. The unit decides what σ is worth.",
        mistakes=(
            Mistake(1.0, near(1.0), "1 is the nominal ε, for another mechanism: sampled examples, not whole clients."),
            Mistake(spent(50), near(spent(50), 0.01), "each round has two phases, and each phase releases."),
            Mistake(spent(delta=1e-5), near(spent(delta=1e-5), 0.01), "that is at δ = 0.00001; here δ is 1/12."),
            Mistake(spent(1), near(spent(1), 0.01), "that is one release; there are two in each of 50 rounds."),
            Mistake(
                theory.gaussian_mu(1.12, 100),
                near(theory.gaussian_mu(1.12, 100), 0.01),
                "that is μ; turn it into ε with fl.theory.gdp_epsilon(mu, 1/12).",
            ),
        ),
        others=(round(spent(), 1), str(spent())),
        difficulty=3,
        minutes=8,
    ),
)
