"""The dials of notebook 04."""

import json
from pathlib import Path
from typing import Any

from fedlora_lab.course.widgets.dial import Dial, round_to_digits

FILM = Path(__file__).with_name("decisions.json")


def noise_explorer() -> Dial:
    """Offers noise, rank, α, width and the size of B beside the energies of the three noise terms.

    Guarantees: the energies are `theory.noise_terms` (tests/browser/test_dials.py::test_formulas).
    """
    about = "What noise on both factors becomes in the product: its three terms over τ."
    values = {"std": 0.05, "width": 64, "rank": 4, "alpha": 8, "size_B": 0.0}
    return Dial(4, "noise_explorer", about, **values)


def noise_signal() -> Dial:
    """Offers a plan's knobs beside the noise that gathers in the product, over the rounds.

    Noise is that of `theory.accumulated_noise_terms`: in the client unit σC/K on each round's mean,
    in the example unit ησC/(b√K) on each step's. The signal is the largest that the clip allows.

    Guarantees: ρ is `theory.amplification` (tests/browser/test_dials.py::test_formulas).
    """
    about = "Linear noise, noise × noise and the largest signal of a plan, round by round."
    privacy = {"unit": "client", "sigma": 3.0, "C": 0.7}
    work = {"clients": 100, "rounds": 40, "lr": 0.5, "batch": 16, "steps": 5}
    adapter = {"width": 64, "rank": 4, "scale": 1}
    return Dial(4, "noise_signal", about, **privacy, **work, **adapter)


def film(probabilities: Any, task: Any, scans: Any) -> dict[str, Any]:
    """Brings what `figures.decisions` gives to the form that the dial draws.

    Args:
        probabilities: (rounds + 1, 2, examples, classes), with the gathered noise and without.
        task: whose test scans they are.
        scans: numbers of the ones to be shown.
    Returns: for each scan its pixels, its digit, and its probabilities; and over all test scans,
        round by round, the share whose decision the noise changes.
    """
    x, y = task.test
    said = probabilities.argmax(-1)
    return {
        "examples": len(y),
        "changed": round_to_digits((said[:, 0] != said[:, 1]).mean(1), 3),
        "right": round_to_digits((said == y.numpy()).mean(2).T, 3),
        "scans": [
            {
                "number": int(scan),
                "truth": int(y[scan]),
                "pixels": round_to_digits(x[scan].flatten().numpy(), 2),
                "noisy": round_to_digits(probabilities[:, 0, scan], 3),
                "clean": round_to_digits(probabilities[:, 1, scan], 3),
            }
            for scan in scans
        ],
    }


def decisions_film() -> dict[str, Any]:
    """Returns the stored film: `film` of seed 0 of this notebook's runs, written by
    scripts/decision_film.py.

    Guarantees: it is what the run gives (test_the_film_is_of_the_run).
    """
    return json.loads(FILM.read_text(encoding="utf-8"))


def decision_film() -> Dial:
    """Offers a scan and a round; shows what the model says with the noise and without it.

    Guarantees: it plays the stored probabilities
        (tests/browser/test_dials.py::test_a_film_plays_and_pauses).
    """
    about = (
        "What a privately trained model says of one scan, round by round, with and without noise."
    )
    data = decisions_film()
    return Dial(4, "decision_film", about, data, scan=0, round=len(data["changed"]) - 1)
