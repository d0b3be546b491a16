"""A run that keeps, of its last round, what an auditor with full access looks at."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedlora_lab import engine
from fedlora_lab.loop import Federation
from fedlora_lab.method import Slot
from fedlora_lab.observe import Outcome
from fedlora_lab.record import Round
from fedlora_lab.upload import Received

RELEASED = ("A", "B", "R", "W", "head")
"""Sides of the server's tensors that hold numbers of the model; others hold what its rule remembers."""


@dataclass
class Watched(Federation):
    """The same run; nothing that it computes changes, except that ``absent`` clients never take part.

    Args:
        everyone: the clients of the round at its end, all that moved stacked over them.
        outcome: what was sent, and what the server had in hand.
        received: what it had in hand before its rule acted on it.
        group: the clients that train now, or trained last.
        kept: what clients had kept for themselves before the round, slot -> (all clients, ...).
    """

    absent: frozenset[int] = frozenset()
    everyone: engine.Clients | None = None
    group: engine.Clients | None = None
    outcome: Outcome | None = None
    received: Received | None = None
    kept: dict[Slot, Tensor] = field(default_factory=dict)

    @classmethod
    def opened(cls, *parts: Any, **options: Any) -> "Watched":
        """As `Federation.open`."""
        run = cls.open(*parts, **options)
        assert isinstance(run, Watched)
        return run

    def _participants(self, t: int) -> tuple[int, ...]:
        return tuple(k for k in super()._participants(t) if k not in self.absent)

    def _clients(self, *parts: Any) -> engine.Clients:
        self.group = super()._clients(*parts)
        return self.group

    def _advance(self, everyone: engine.Clients, *rest: Any) -> None:
        self.everyone, self.kept = everyone, dict(self.state.personal)
        super()._advance(everyone, *rest)

    def close_round(self, opened: Any, received: Received, *rest: Any) -> Outcome:
        """As it is, once what was received is kept: the server's rule may fail on what is not finite."""
        self.received = received
        return super().close_round(opened, received, *rest)

    @property
    def finite(self) -> bool:
        """Whether all that is released now is numbers: uploads, the server's model, in the example unit each step."""
        released = [self.state.server.tensors]
        released += [] if self.received is None else [self.received.uploads]
        if self.asked.privacy is None or self.asked.privacy.unit == "example":
            released += [clients.bank for clients in (self.group, self.everyone) if clients is not None]
        return all(bool(x.isfinite().all()) for part in released for slot, x in part.items() if slot.side in RELEASED)

    def _record(self, outcome: Outcome, *rest: Any) -> Round:
        self.outcome = outcome
        return super()._record(outcome, *rest)
