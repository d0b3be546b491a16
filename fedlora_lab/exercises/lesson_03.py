"""Exercises of notebook 03: what exactly is promised by (ε, δ)?"""

import math
from typing import Any

import numpy as np

from fedlora_lab.exercises.exercise import Calls, Exercise, Mistake, near, number
from fedlora_lab.theory import membership_bound

C, EXPECTED = 2.0, 4.0


def gradients() -> np.ndarray:
    """Five gradients of three numbers: some longer than the threshold 2, some shorter."""
    return np.array([[3.0, 4.0, 0.0], [0.5, 0.0, -0.5], [0.0, -6.0, 8.0], [1.0, 1.0, 0.2], [-7.0, 0.0, 1.0]])


def release(g: Any, c: float, batch: float) -> Any:
    """Clip every row to length c, add up, divide by the expected batch."""
    return sum(row * min(1.0, c / float(np.linalg.norm(row))) for row in g) / batch


def vectorised(g: Any, c: float, batch: float) -> Any:
    """The same, written without a loop."""
    lengths = np.linalg.norm(g, axis=1, keepdims=True)
    return (g / np.maximum(1.0, lengths / c)).sum(axis=0) / batch


def _clip_the_mean(g: Any, c: float, batch: float) -> Any:
    total = g.sum(0) / batch
    return total * min(1.0, c / float(np.linalg.norm(total)))


def _each_number(g: Any, c: float, batch: float) -> Any:
    return np.clip(g, -c, c).sum(0) / batch


def _always_to_c(g: Any, c: float, batch: float) -> Any:
    return (c * g / np.linalg.norm(g, axis=1, keepdims=True)).sum(0) / batch


def _realised_batch(g: Any, c: float, batch: float) -> Any:
    return vectorised(g, c, len(g))


def _not_divided(g: Any, c: float, batch: float) -> Any:
    return vectorised(g, c, 1.0)


def _dropped(g: Any, c: float, batch: float) -> Any:
    return g[np.linalg.norm(g, axis=1) <= c].sum(0) / batch


def _unclipped(g: Any, c: float, batch: float) -> Any:
    return g.sum(0) / batch


CALLED = Calls("g, c and batch", (gradients(), C, EXPECTED), shape=(3,), within=1e-9)


def noise() -> float:
    """σ of 100 releases that together promise what one release promises at σ = 2."""
    return 2.0 * math.sqrt(100)


def found() -> float:
    """Largest share of members found at 1 % false positives under ε = 1, δ = 0.001."""
    return membership_bound(np.array([0.01]), 1.0, 0.001).item()


EXERCISES = (
    Exercise(
        key="03.1",
        question=(
            "Write clipped_mean(g, c, batch). g holds one example's gradient in each row, a NumPy array (n, p). Return "
            "the vector of p numbers that DP-SGD releases before the noise is added, for the threshold c and a batch "
            "whose expected size is `batch`; the number of rows that were really drawn may be another one."
        ),
        hint="Three verbs, in this order: shorten, add up, divide. What must one example never be able to change?",
        solution=(
            "lengths = np.linalg.norm(g, axis=1, keepdims=True); return (g * np.minimum(1, c / lengths)).sum(axis=0) / "
            "batch. Each row is shortened as a whole, only if it is longer than c, and the divisor is a constant: then "
            "one row more or less moves the result by c / batch at most."
        ),
        answer=lambda: release,
        read=CALLED,
        right=CALLED.gives(release),
        why="one example more or less now moves the release by c / batch at most, whoever it is.",
        mistakes=(
            Mistake(_clip_the_mean, CALLED.gives(_clip_the_mean),
                    "you clipped the mean: one huge example still steers it. "
                    "Clip every row before you add."),
            Mistake(_each_number, CALLED.gives(_each_number),
                    "you clipped every number by itself; a row of p numbers may "
                    "then still be as long as c·√p. Scale the row as a whole."),
            Mistake(_always_to_c, CALLED.gives(_always_to_c),
                    "you stretched the short rows too: a clip only ever shortens."),
            Mistake(_realised_batch, CALLED.gives(_realised_batch),
                    "you divided by the number of rows that came. That number "
                    "is private; divide by the expected batch."),
            Mistake(_not_divided, CALLED.gives(_not_divided),
                    "that is the clipped sum; divide it by the expected batch."),
            Mistake(_dropped, CALLED.gives(_dropped), "you left the long rows out; they are shortened, not dropped."),
            Mistake(_unclipped, CALLED.gives(_unclipped),
                    "nothing is clipped yet: the long rows come through as they are."),
        ),
        others=(vectorised, lambda g, c, batch: np.array([release(g, c, batch)[i] for i in range(3)])),
        difficulty=2,
        minutes=8,
    ),
    Exercise(
        key="03.2",
        question=(
            "One release of the whole data (q = 1) under σ = 2 keeps a certain promise. You will now make 100 such "
            "releases and want all of them together to keep the very same promise. Which σ must each of them have?"
        ),
        hint="For Gaussian releases without sampling everything depends on μ = √T / σ.",
        solution="One release has μ = 1/2. A hundred have μ = √100 / σ = 10 / σ. Equal promises: σ = 20.",
        answer=noise,
        read=number,
        right=near(20.0),
        why="ten times the noise pays for a hundred releases: privacy adds up like variances, not like lengths.",
        mistakes=(
            Mistake(200.0, near(200.0), "that adds up the ε's, as if all releases were as unlucky as the worst. "
                    "Gaussian noise composes with the square root of their number."),
            Mistake(2.0, near(2.0), "that is noise for one release; used a hundred times it promises far less. This "
                    "mistake has been published."),
            Mistake(0.2, near(0.2), "the wrong way round: more releases need more noise."),
            Mistake(10.0, near(10.0), "√100 is the factor; the noise you start from was σ = 2."),
            Mistake(2 * 100**0.25, near(2 * 100**0.25), "one root too many: μ grows with √T, and σ must follow it."),
        ),
        others=("20", 2 * math.sqrt(100), np.float32(20)),
        difficulty=2,
        minutes=4,
    ),
    Exercise(
        key="03.3",
        question=(
            "A model was trained with ε = 1 and δ = 0.001 for each example. An attacker guesses who was in the "
            "training data and wrongly accuses 1 % of those who were not. What share of the true members can the "
            "attack find at most?"
        ),
        hint="The two worlds may differ in the odds of any event by e^ε, and by δ on top.",
        solution="True positives ≤ e^ε · false positives + δ = 2.71828 · 0.01 + 0.001 = 0.0282, so 2.8 % of the "
                "members.",
        answer=found,
        read=number,
        right=near(math.e * 0.01 + 0.001, 1e-4),
        why="at ε = 1 hardly better than guessing; at ε = 8 the same formula would allow everything.",
        mistakes=(
            Mistake(math.e * 0.01, near(math.e * 0.01, 1e-5), "δ is missing: it comes on top of e^ε · 1 %."),
            Mistake(0.01, near(0.01), "1 % is what guessing finds; ε = 1 allows a little more."),
            Mistake(0.021, near(0.021), "you took 1 + ε for e^ε; that is close only for small ε."),
            Mistake(0.011, near(0.011), "that is ε = 0: you multiplied by ε or left it out; the factor is e^ε."),
            Mistake(100 * (math.e * 0.01 + 0.001), near(100 * (math.e * 0.01 + 0.001), 1e-2),
                    "right in per cent; give the share, a number between 0 and 1."),
            Mistake(0.01 / math.e + 0.001, near(0.01 / math.e + 0.001, 1e-4),
                    "that is less than guessing: multiply by e^ε, do not divide."),
        ),
        others=(0.0281828, "0.02818", np.exp(1) / 100 + 1e-3),
        difficulty=1,
        minutes=4,
    ),
)  # fmt: skip
