"""The settings of a run that are one plain value each, declared once: meaning, default and range.

`Plan`, `Lora` and `Privacy` take their defaults from here, the first two their ranges as well, and
the command line makes its options of these declarations. Nothing here loads torch.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any

from fedlora_lab._utils.trust import TRUST
from fedlora_lab._utils.validation import check_number, check_one_of, check_whole


@dataclass(frozen=True)
class Option:
    """What a setting means, and which values it may have.

    Args:
        meaning: one line, for people.
        low, high: ends of the range of a number, both included.
        above: ``low`` itself is not allowed.
        below: ``high`` itself is not allowed.
        whole: only whole numbers are allowed.
        choices: the words that are allowed, in place of numbers.
        word: what ``None`` stands for; "": it is not allowed.
    """

    meaning: str
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()
    word: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises ``ValueError`` (name, value, range) unless the value is allowed.

        Args: name: of the setting, for the message. value: of any type.
        """
        if self.word and value is None:
            return
        if self.choices:
            check_one_of(name, value, self.choices)
        elif self.whole:
            high = None if self.high == math.inf else int(self.high)
            check_whole(name, value, int(self.low), high)
        else:
            ends = {"open_low": self.above, "open_high": self.below}
            check_number(name, value, self.low, self.high, **ends)


def _option(default: Any, meaning: str, **limits: Any) -> Any:
    return field(default=default, metadata={"option": Option(meaning, **limits)})


UNITS = ("example", "person", "client")
# The names of `privacy.accounting.ACCOUNTANTS`, which loads SciPy: the command line shows these.
ACCOUNTANTS = ("pld", "rdp", "opacus-rdp", "opacus-prv")
LARGEST = 1e9


@dataclass(frozen=True)
class RunSettings:
    """Every setting of a run that is one plain value, with its default.

    ``None`` as default: it follows from others, as said.

    >>> RunSettings().rounds
    20
    >>> OPTIONS["rounds"].check("rounds", -1)
    Traceback (most recent call last):
    ValueError: rounds=-1: expected a whole number in [0, 1000000]
    """

    # The promise.
    epsilon: float | None = _option(
        8.0, "Privacy budget ε.", low=0, high=LARGEST, above=True, word="none"
    )
    # Of less an accountant's own rounding (1e-15 of a composition, 1e-16 of each release) would be
    # a part that counts.
    delta: float = _option(
        1e-5, "The δ of (ε, δ)-differential privacy.", low=1e-12, high=1, below=True
    )
    unit: str = _option("example", "What is protected.", choices=UNITS)
    clip_norm: float = _option(1.0, "Norm to which each unit's contribution is clipped.", low=0)
    accountant: str = _option(
        "pld", "How ε is computed: tight, Rényi, or as Opacus does.", choices=ACCOUNTANTS
    )
    trust: str | None = _option(None, "Who is trusted, in the client unit.", choices=tuple(TRUST))

    # The work.
    rounds: int = _option(20, "Communication rounds.", low=0, high=10**6, whole=True)
    local_steps: int = _option(5, "Steps of a client in a round.", low=1, high=10**6, whole=True)
    batch: int | None = _option(
        16, "Expected batch size of a client.", low=1, whole=True, word="all"
    )
    # Not 0: the mean of the uploads is divided by it.
    participation: float = _option(
        1.0, "Chance that a client takes part in a round.", low=1e-9, high=1
    )
    client_weights: str = _option("uniform", "How clients count.", choices=("uniform", "size"))

    # The adapter.
    rank: int = _option(4, "Rank of the adapter.", low=1, whole=True)
    lora_alpha: float = _option(
        8.0, "α of the adapter; its scale is α / rank.", low=0, high=LARGEST, above=True
    )

    # The data.
    clients: int | None = _option(None, "Number of clients.", low=1, whole=True)
    dirichlet: float | None = _option(
        None, "Dirichlet β of the data split; small is heterogeneous.", low=0, above=True
    )


OPTIONS: dict[str, Option] = {one.name: one.metadata["option"] for one in fields(RunSettings)}
"""The declaration of each setting by its name."""


def check_options(**values: Any) -> None:
    """Raises ``ValueError`` (name, value, range) unless each setting may have its value.

    Args: values: by the settings' names.
    """
    for name, value in values.items():
        OPTIONS[name].check(name, value)
