"""The dials of notebook 04."""

from fedlora_lab.course.widgets.dial import Dial


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
