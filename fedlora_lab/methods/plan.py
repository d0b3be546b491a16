"""The adapter (`Lora`) and the work (`Plan`): what is trained, and for how long."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_one_of,
    check_whole,
    use_plain_numbers,
)
from fedlora_lab.methods.optimizers import SGD, optimizer_of


@dataclass(frozen=True)
class Lora:
    """The shape of the low-rank adapters.

    A weight W0 becomes W0 + (alpha / rank / start_scale) B A.

    Args:
        rank: r, the inner dimension, a whole number >= 1, the same for every client.
        alpha: the numerator of the scale, > 0.
        start_scale: c > 0: A starts c times as large, and the scale is divided by c. B's gradient
            and what B's noise does to the model stay as they are; A's own noise counts c^2 times
            less beside A. See ``Method.balance``, which chooses it.

    Which layers have adapters is the task's to say, see `fl.tasks.Layers`.

    Raises: ``ValueError`` (name, value, range).
    Guarantees: PEFT reads what is saved with the same numbers
        (test_loaders.py::test_every_usual_loader_gives_the_run_s_numbers).
    Source: Hu et al., arXiv:2106.09685, section 4.1; start_scale: this project.

    >>> Lora(rank=4, alpha=8).scaling
    2.0
    """

    rank: int = 4
    alpha: float = 8.0
    start_scale: float = 1.0

    def __post_init__(self) -> None:
        use_plain_numbers(self)
        check_whole("rank", self.rank, 1)
        check_number("alpha", self.alpha, 0, 1e9, open_low=True)
        check_number("start_scale", self.start_scale, 0, 1e9, open_low=True)

    @cached_property
    def scaling(self) -> float:
        """alpha / rank / start_scale, the factor before B A."""
        return self.alpha / self.rank / self.start_scale

    def replace(self, **changes: Any) -> "Lora":
        """Returns the same adapter with some fields changed."""
        return replace(self, **changes)


def lora_of(value: object) -> Lora:
    """The adapter that an argument ``lora=`` stands for.

    Args: value: a `Lora`, or ``None`` for ``Lora()``.
    Raises: ``ValueError`` for anything else.
    """
    check(value is None or isinstance(value, Lora), "lora", value, "a Lora, or None")
    return value if isinstance(value, Lora) else Lora()


@dataclass(frozen=True)
class Plan:
    """How a run trains: rounds, local steps, batches, learning rates and who takes part.

    Args:
        rounds: communication rounds, 0 to a million.
        local_steps: steps of every participating client in a round, 1 to a million.
        batch: expected number of examples in a client's step (each example is drawn on its own,
            with probability batch / n_k); ``None`` takes all of them in every step. Where persons
            are protected: of persons, with all their examples.
        lr: learning rate, one number >= 0, or one for each of "A", "B" and, where a head is
            trained, "head" (which follows "B" when it is not given).
        optimizer: how a client steps: `SGD` or `AdamW`, or a name, "sgd" or "adamw". Its state
            begins anew in every round.
        participation: probability with which a client takes part in a round, drawn on its own, in
            [1e-9, 1].
        client_weights: "uniform", every client counts alike, or "size", by its number of examples
            (where persons are protected: of persons), taken as public.

    >>> plan = Plan(rounds=5, lr={"A": 0.1, "B": 0.2})
    >>> plan.rate("head"), plan.replace(rounds=3).rounds
    (0.2, 3)
    """

    rounds: int = 20
    local_steps: int = 5
    batch: int | None = 16
    lr: float | Mapping[str, float] = 0.3
    optimizer: Any = field(default=SGD())
    participation: float = 1.0
    client_weights: str = "uniform"

    def __post_init__(self) -> None:
        use_plain_numbers(self)
        check_whole("rounds", self.rounds, 0, 10**6)
        check_whole("local_steps", self.local_steps, 1, 10**6)
        if self.batch is not None:
            check_whole("batch", self.batch, 1)
        # Not 0: the mean of the uploads is divided by it.
        check_number("participation", self.participation, 1e-9, 1)
        check_one_of("client_weights", self.client_weights, ("uniform", "size"))
        if isinstance(self.lr, Mapping):
            # A may learn at another rate than B; a head follows B.
            named = {*self.lr} <= {"A", "B", "head"}
            check(named, "lr", dict(self.lr), "rates of A, B and head")
            for name in ("A", "B"):
                check_number(f"lr[{name!r}]", self.lr.get(name), 0, 1e9)
            check_number("lr['head']", self.rate("head"), 0, 1e9)
        else:
            check_number("lr", self.lr, 0, 1e9)
        # A name becomes the optimiser itself.
        object.__setattr__(self, "optimizer", optimizer_of(self.optimizer))

    def rate(self, name: str) -> float:
        """Returns the learning rate of "A", "B" or "head"."""
        return self.lr.get(name, self.lr["B"]) if isinstance(self.lr, Mapping) else self.lr

    def sample_rates(self, sizes: Sequence[int]) -> tuple[float, ...]:
        """Returns each client's probability of drawing a unit in a step, in [0, 1].

        Steps draw by these rates and the ledger counts them: this is their one place.

        Args: sizes: public number of units of each client.
        """
        if self.batch is None:
            return (1.0,) * len(sizes)
        return tuple(min(1.0, self.batch / max(n, 1)) for n in sizes)

    def replace(self, **changes: Any) -> "Plan":
        """Returns the same plan with some fields changed."""
        return replace(self, **changes)
