"""The grammar: a method is a row of data. Fields that are data stay data; fields that are rules are pure functions.

Vary a method with ``method.replace(...)``, never by subclass and never by a branch on its name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlora_lab.checks import check, check_number
from fedlora_lab.rules import identity, received, together

if TYPE_CHECKING:
    from numpy.random import Generator
    from torch import Tensor

    from fedlora_lab.streams import Streams

WORDS = ("A", "B", "AB", "BA", "R", "*")
TRAINED = ("A", "B", "R", "head")
MODES = "BA"
"""What moves in a layer whose mode is 0, and whose mode is 1."""


class Slot(NamedTuple):
    """The address of one tensor: its side and the name of its layer.

    Trained by clients: "A", "B", the core "R" between them, and "head". Kept by a server rule: "W", added to the
    product B A; "mode", which factor of the layer moves; and what else the rule needs to remember.
    """

    side: str
    layer: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.side}"


@dataclass(frozen=True)
class Global:
    """What the server holds: one tensor for each slot; A is (r, d_in), B is (d_out, r), W = W0 + scaling B A.

    With a core the product is B R A, R (r, r); with a residual W it is W + B A, W (d_out, d_in).

    Args:
        round: rounds done.
        planned: rounds there will be.
        streams: where a server rule's own random numbers come from.
    """

    tensors: "Mapping[Slot, Tensor]"
    round: int = 0
    planned: int = 0
    streams: "Streams | None" = field(default=None, compare=False, repr=False)

    def side(self, side: str) -> "dict[str, Tensor]":
        """Layer name -> tensor of one side."""
        return {slot.layer: tensor for slot, tensor in self.tensors.items() if slot.side == side}

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the adapted layers, in the model's order."""
        return tuple(self.side("B"))

    def with_(self, changes: "Mapping[Slot, Tensor]") -> "Global":
        """A copy in which some tensors are others."""
        return replace(self, tensors={**self.tensors, **changes})

    def factored(self) -> "Global":
        """The same products from A and B alone: a core is multiplied into B."""
        return self.with_(
            {Slot("B", name): self.tensors[Slot("B", name)] @ core for name, core in self.side("R").items()}
        )

    def random(self, layer: str) -> "Generator":
        """Random numbers of the server's own for a layer in this round; they are public and read no data."""
        from fedlora_lab.streams import Streams

        return (self.streams or Streams(0)).numpy(f"server {layer}", self.round)


@dataclass(frozen=True)
class Cycle:
    """Which factors move when: one string per round, in it one word per local step; both repeat.

    ``Cycle(("AB",))`` moves both always, ``Cycle(("B", "A"))`` takes turns between rounds, ``Cycle(("B A",))`` takes
    turns between the local steps of a round. "R" moves the core between the factors; "*" moves in every layer the
    factor that the layer's mode in the server's state names.

    Raises: ``ValueError`` unless every word is "A", "B", "AB" (or "BA", which is the same), "R" or "*".
    Guarantees: repeats with period ``len(rounds)`` (test_cycle_repeats).
    """

    rounds: tuple[str, ...]

    def __post_init__(self) -> None:
        ok = (
            isinstance(self.rounds, tuple)
            and self.rounds
            and all(isinstance(r, str) and r.split() for r in self.rounds)
        )
        check(bool(ok), "rounds", self.rounds, 'a tuple of strings such as ("B", "A") or ("B A",)')
        for word in " ".join(self.rounds).split():
            check(word in WORDS, "word", word, '"A", "B", "AB", "R" or "*"')

    def __call__(self, t: int, s: int) -> str:
        """The factors that move in round t at local step s, both counted from 0."""
        words = self.rounds[t % len(self.rounds)].split()
        return words[s % len(words)]


def _mean() -> Callable:
    from fedlora_lab.aggregate import mean

    return mean


def _full() -> Callable:
    from fedlora_lab.wire import full

    return full


@dataclass(frozen=True)
class Method:
    """One federated LoRA method.

    Args:
        name: as published.
        source: arXiv id, with the algorithm or equation where it is known.
        train: ``(t, s) -> word``, what moves in round t at local step s, counted from 0 (see `Cycle`).
        start: ``(weight, rank) -> {"A": ..., "B": ..., "R": ...}`` from a layer's frozen weight
            (d_out, d_in); ``None``: A as PEFT draws it, B zero, no core.
        share: the factors sent up; ``None``: those that moved in the round; "": nothing, a trained head included. What
            moved and was not sent stays with its client and is there again in the next round.
        own_ranks: share of the ranks, in [0, 1), the last ones, that stay with their client although their factor is
            sent.
        parts: ``slot -> key``; tensors of one key are clipped together, each of p parts to C / sqrt(p): all of them are
            bounded by C. The default is one part.
        clips: ``start -> tensor``; in the client unit clip and noise fall on what a client holds minus this, by default
            its change.
        whiten: ``gram -> Whitening``: maps applied to a factor before the clip and after the noise, from the peer
            factor's Gram matrix (see ``rules.product_space``); ``None``: none.
        smooth: ``(tensor, side) -> tensor``, applied once, where the noise is: to each step's noised gradient in the
            example unit (and without privacy), to the noised update in the client unit. Free of privacy cost.
        penalty: ``(tensors, start) -> (N,)``, added to each example's loss and so clipped with it. Both arguments map a
            `Slot` to (N, ...): the example's own copy of the moving tensors, and what its client received. Reduce over
            all but the first dimension: other shapes, and terms that depend on other examples' rows, are refused.
        aggregate: ``(state, sent, uploads, weights) -> state``, the server's rule (see `aggregate`).
        broadcast: what clients receive of the factors; a rule with ``__call__(tensor)`` and ``bits(numbers)``.
        exact: the claim that the server's product is the mean of the clients' products, all of the same rank.
        note: one line of meaning for tables and diagrams.

    Guarantees: a row is immutable and hashable; every row of the table passes tests/test_contract.py.
    """

    name: str
    source: str
    train: Callable[[int, int], str] = field(default=Cycle(("AB",)))
    start: Callable | None = None
    share: str | None = None
    own_ranks: float = 0.0
    parts: Callable[[Slot], Any] = together
    clips: Callable = received
    whiten: Callable | None = None
    smooth: Callable = identity
    penalty: Callable | None = None
    aggregate: Callable = field(default_factory=_mean)
    broadcast: Any = field(default_factory=_full)
    exact: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        check(isinstance(self.name, str) and bool(self.slug), "name", self.name, "a name with a letter or digit")
        check(isinstance(self.source, str), "source", self.source, "a string")
        check(self.share in (None, "", *WORDS[:-1]), "share", self.share, 'None, "", "A", "B", "AB" or "R"')
        check_number("own_ranks", self.own_ranks, 0, 1 - 1e-9)
        check(isinstance(self.exact, bool), "exact", self.exact, "True or False")
        for name in ("train", "parts", "clips", "smooth", "aggregate", "broadcast"):
            check(callable(getattr(self, name)), name, getattr(self, name), "a function")
        for name in ("start", "whiten", "penalty"):
            rule = getattr(self, name)
            check(rule is None or callable(rule), name, rule, "None or a function")
        check(hasattr(self.broadcast, "bits"), "broadcast", self.broadcast, "a rule with bits(numbers)")
        words = " ".join(self.train.rounds) if isinstance(self.train, Cycle) else ""
        chooses = "mode" in getattr(self.aggregate, "writes", ())
        said = "no '*' unless the server's rule chooses, as by_layer() does"
        check("*" not in words or chooses, "train", words, said)
        check("R" not in words or self.start is not None, "train", words, "no 'R' unless start makes a core R")

    @property
    def slug(self) -> str:
        """The name used in tables, frames and on the command line."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    def replace(self, **changes: Any) -> "Method":
        """The same row with some fields changed."""
        return replace(self, **changes)

    def moves(self, t: int, s: int) -> str:
        """What moves at (t, s), checked and in canonical order."""
        word = self.train(t, s)
        check(word in WORDS, f"train({t}, {s})", word, '"A", "B", "AB", "R" or "*"')
        return "AB" if word == "BA" else word

    def moved(self, t: int, local_steps: int) -> str:
        """What moves at some step of round t."""
        return "".join(side for side in "ABR*" if any(side in self.moves(t, s) for s in range(local_steps)))

    def sent(self, t: int, local_steps: int) -> str:
        """What is sent up at the end of round t: the shared among the moved."""
        moved = self.moved(t, local_steps)
        return moved if self.share is None else "".join(side for side in moved if side in self.share)
