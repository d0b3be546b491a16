"""The range of each symbol of the closed forms, checked by name."""

from fedlora_lab._utils import validation

_LEAST_COUNT = {"steps": 0, "draws": 2} | dict.fromkeys(
    ("d_out", "d_in", "rank", "clients", "participants", "releases", "relied", "honest", "block"), 1
)


def check(**values: float) -> None:
    """Raises unless each value lies in the range that a symbol of its name has everywhere.

    Counts are whole and at least 1 (``steps`` 0, ``draws`` 2); a ``delta`` or ``level`` lies inside
    (0, 1), a ``sample_rate`` in [0, 1]; ``mu`` and ``alpha`` are > 0; all others are >= 0.
    """
    for name, value in values.items():
        if name in _LEAST_COUNT:
            validation.check_whole(name, value, _LEAST_COUNT[name])
        elif name in ("delta", "level"):
            inside = validation.is_number(value) and 0 < value < 1
            validation.check(inside, name, value, "a number in (0, 1)")
        elif name == "sample_rate":
            validation.check_number(name, value, 0, 1)
        else:
            validation.check_number(name, value, 0, open_low=name in ("mu", "alpha"))


def check_noise(noise_multiplier: float) -> None:
    """Raises unless sigma > 0, where no release is without noise."""
    validation.check_number("noise_multiplier", noise_multiplier, 0, open_low=True)
