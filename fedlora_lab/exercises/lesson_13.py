"""Exercises of notebook 13: whom do you trust?"""

import math

from fedlora_lab import theory
from fedlora_lab.exercises.exercise import Exercise, Mistake, near, number


def needed(clients: int = 100, colluders: int = 36, sigma: float = 2.0) -> float:
    """Standard deviation of each client's noise, C = 1, so that the honest ones alone make up sigma."""
    return sigma / math.sqrt(clients - colluders)


def bits(clients: int = 1000, levels: int = 2**16) -> int:
    """The least power of two, as an exponent, above the sum of all clients' levels."""
    return (clients * levels).bit_length()


EXERCISES = (
    Exercise(
        key="13.1",
        question=(
            "Secure aggregation, 100 clients, C = 1, noise multiplier σ = 2 for the sum. You expect that up to 36 of "
            "them side with the server. How large must the standard deviation of each client's own noise be, so that "
            "the promise holds against all of them together?"
        ),
        hint="Who sides with the server subtracts his own noise. How many noises are left, and how do variances add?",
        solution="64 honest noises of standard deviation s add up to 8·s. That must be 2, so s = 2/√64 = 0.25.",
        answer=needed,
        read=number,
        right=near(needed(), 1e-3),
        why="σC/√(honest): relying on 64 shares instead of 100 costs a quarter more noise on the sum.",
        mistakes=(
            Mistake(0.2, near(0.2, 1e-3), "that relies on all 100; 36 of these noises are known to the server."),
            Mistake(2.0, near(2.0, 1e-3), "that protects every upload alone; the masks let you share the noise."),
            Mistake(
                2 / 64, near(2 / 64, 1e-3), "standard deviations do not add up; variances do, so divide by the root."
            ),
            Mistake(2 / 6, near(2 / 6, 1e-3), "36 is the number of the dishonest; the honest ones hide the rest."),
        ),
        others=("0.25", 1 / 4),
        difficulty=2,
        minutes=5,
    ),
    Exercise(
        key="13.2",
        question=(
            "A thousand clients write every number with 16 bits (levels 0 to 2^16) and add up modulo 2^b. What is the "
            "smallest b for which the sum can never wrap?"
        ),
        hint="How large can the sum get when every client sends the highest level?",
        solution="1000 · 2^16 = 65,536,000 lies between 2^25 and 2^26, so b = 26: 16 bits and 10 for the clients.",
        answer=bits,
        read=number,
        right=near(26, 1e-9),
        why="16 bits for the levels and log₂ 1000, rounded up, for the clients. One bit less, and sums wrap unseen.",
        mistakes=(
            Mistake(16, near(16, 1e-9), "that holds one client's number; the sum of a thousand is larger."),
            Mistake(25, near(25, 1e-9), "2^25 is about 33.6 million; the sum may reach 65.5 million."),
            Mistake(
                math.log2(1000 * 2**16),
                near(math.log2(1000 * 2**16), 1e-3),
                "the modulus needs a whole number of bits; round up.",
            ),
            Mistake(16000, near(16000, 1e-9), "bits do not add up over clients; the sum grows by their logarithm."),
        ),
        others=("26", 26.0),
        difficulty=1,
        minutes=5,
    ),
    Exercise(
        key="13.3",
        question=(
            "Under secure aggregation each of 100 clients adds noise σC/√100 with σ = 4. The masks turn out to be "
            "broken, and the server reads single uploads. Which ε does one client face from one release at δ = "
            "0.00001? Use fl.theory.gdp_epsilon."
        ),
        hint="μ of Gaussian DP is the sensitivity over the standard deviation of the noise that is left: one share.",
        solution="One share is 0.4 C, so μ = 1/0.4 = 2.5: fl.theory.gdp_epsilon(2.5, 1e-5) is about 13.2, not 0.93.",
        answer=lambda: theory.gdp_epsilon(2.5, 1e-5),
        read=number,
        right=near(theory.gdp_epsilon(2.5, 1e-5), 2e-3),
        why="13.2 where 0.93 was promised: a share of noise protects nobody by itself.",
        mistakes=(
            Mistake(
                theory.gdp_epsilon(0.25, 1e-5),
                near(theory.gdp_epsilon(0.25, 1e-5), 5e-3),
                "that is the sum's ε; the server no longer sees the sum alone.",
            ),
            Mistake(2.5, near(2.5, 1e-3), "that is μ; turn it into ε with fl.theory.gdp_epsilon(mu, 1e-5)."),
            Mistake(
                theory.gdp_epsilon(25.0, 1e-5),
                near(theory.gdp_epsilon(25.0, 1e-5), 2e-3),
                "you divided σ by 100; each adds σC over the root of 100.",
            ),
        ),
        others=(round(theory.gdp_epsilon(2.5, 1e-5), 2),),
        difficulty=2,
        minutes=6,
    ),
)
