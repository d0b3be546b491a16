"""What a row does, found by playing its rules on random numbers: is its server exact, what crosses the wire.

Nothing is trained and no data are read, so a row that nobody has run yet answers within milliseconds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from fedlora_lab.checks import check, check_whole
from fedlora_lab.method import Cycle, Global, Method, Slot

if TYPE_CHECKING:
    from torch import Generator, Tensor

EXACT = 1e-9
LAYERS = ((64, 64),) * 8
"""The adapted layers of the task digits, (d_out, d_in) each."""


class Bytes(NamedTuple):
    """Bytes of one client in one round."""

    up: float
    down: float


class _Round(NamedTuple):
    before: Global
    sent: Global
    uploads: "dict[Slot, Tensor]"
    after: Global
    kept: bool


def _start(row: Method, rank: int, size: int, random: "Generator") -> "dict[str, Tensor]":
    """The factors of one layer before training, float64."""
    import torch

    weight = torch.randn(size, size, generator=random, dtype=torch.float64)
    values = {
        "A": (torch.rand(rank, size, generator=random, dtype=torch.float64) * 2 - 1) / size**0.5,
        "B": torch.zeros(size, rank, dtype=torch.float64),
    }
    return values if row.start is None else values | row.start(weight, rank)


def zero_at_start(row: Method) -> set[str]:
    """The factors that are zero before training: the product is zero until they move."""
    import torch

    values = _start(row, 2, 6, torch.Generator().manual_seed(0))
    return {side for side, x in values.items() if not bool(x.any())}


def _opening(row: Method, rank: int, size: int, rounds: int, random: "Generator") -> Global:
    """What the server holds of one layer before the first round."""
    from fedlora_lab.aggregate import Rule
    from fedlora_lab.streams import Streams

    values = _start(row, rank, size, random)
    state = Global({Slot(side, "map"): x for side, x in values.items()}, planned=rounds, streams=Streams(0))
    return row.aggregate.open(state) if isinstance(row.aggregate, Rule) else state


def _play(row: Method, rank: int, clients: int, size: int, rounds: int, steps: int) -> Iterator[_Round]:
    """Rounds in which every client's upload is what it received plus random numbers."""
    import torch

    from fedlora_lab import engine
    from fedlora_lab.ranks import AXES, joined, shared_rank

    random = torch.Generator().manual_seed(0)
    state, weights = _opening(row, rank, size, rounds, random), torch.full((clients,), 1 / clients, dtype=torch.float64)
    shared = shared_rank(rank, row.own_ranks)
    for t in range(rounds):
        sent = state.with_({slot: row.broadcast(x) for slot, x in state.tensors.items() if slot.side in AXES})
        moved = engine.moving_slots(state.tensors, row.moved(t, steps))
        slots = engine.sent_slots(state.tensors, row, t, steps)
        uploads = {}
        for slot in slots:
            start = sent.tensors[slot]
            change = torch.randn(clients, *start.shape, generator=random, dtype=torch.float64) / size**0.5
            uploads[slot] = joined(slot, start + change, start[None], shared) if row.own_ranks else start + change
        after = row.aggregate(state, sent, uploads, weights) if uploads else state
        yield _Round(state, sent, uploads, after, bool(row.own_ranks) or set(moved) != set(slots))
        state = replace(after, round=t + 1)


def _rounds(row: Method) -> int:
    """The opening round and some whole cycles."""
    period = len(row.train.rounds) if isinstance(row.train, Cycle) else 4
    return 1 + period * max(1, -(-4 // period))


def exactness(row: Method, *, rank: int = 4, clients: int = 10, size: int = 64, steps: int = 4) -> float | None:
    """How far the server's product is from the mean of the clients' products, relative, the worst round.

    The clients' changes are random, so the size of the gap says nothing of a training; only whether it is zero does:
    below `EXACT` it is rounding. What a quantised broadcast takes away is not counted, as in a run's deviation.

    Args:
        row: any method.
        rank, clients, size: of the one layer that is played, ``size`` by ``size``.
        steps: local steps in a round.

    Returns: ``None`` where no common product is formed: something that moved stays with its client.
    Raises: whatever a rule of the row raises.
    Guarantees: zero exactly for the rows that claim it (test_traits.py::test_exactness_is_the_claim).
    """
    from fedlora_lab import measures
    from fedlora_lab.aggregate import mean
    from fedlora_lab.aggregate.rule import held
    from fedlora_lab.ranks import AXES

    for name, value in (("rank", rank), ("clients", clients), ("size", size), ("steps", steps)):
        check_whole(name, value, 1)
    worst = 0.0
    for one in _play(row, rank, clients, size, _rounds(row), steps):
        if one.kept or not one.uploads:
            return None
        own = {s: held(one.before, one.sent, one.uploads, s) for s in one.before.tensors if s.side in AXES}
        own = {s: x + (one.before.tensors[s] - one.sent.tensors[s]) for s, x in own.items()}
        weights = one.before.tensors[Slot("B", "map")].new_full((clients,), 1 / clients)
        plain = mean(one.before, one.sent, one.uploads, weights)
        seen = measures.Exchange(one.before, plain, one.after, own, weights, None)
        worst = max(worst, measures.layer_rows(seen, 1.0)[1])
    return worst


class Turn(NamedTuple):
    """A round as far as bytes depend on it.

    ``shapes``: of what the server holds of the one layer that was played; ``sent``: what goes up; ``new``: what the
    server holds anew afterwards.
    """

    shapes: dict[Slot, tuple[int, ...]]
    sent: frozenset[Slot]
    new: tuple[Slot, ...]


def turns(row: Method, *, rank: int = 4, clients: int = 10, steps: int = 4) -> list[Turn]:
    """The opening round and some cycles of a row, played on one layer; the width of real layers plays no part in it."""
    found = []
    for one in _play(row, rank, min(clients, 2), max(16, rank), _rounds(row), steps):
        old, after = one.before.tensors, one.after.tensors
        new = tuple(slot for slot, x in after.items() if x is not old.get(slot))
        found.append(Turn({slot: tuple(x.shape) for slot, x in old.items()}, frozenset(one.uploads), new))
    return found


def wire(
    row: Method,
    *,
    rank: int = 4,
    clients: int = 10,
    layers: Sequence[tuple[int, int]] = LAYERS,
    steps: int = 4,
    played: "Sequence[Turn] | None" = None,
) -> Bytes:
    """Bytes that one client sends and receives in a round, mean over a cycle after the opening round.

    Args:
        row: any method.
        rank, clients: of the federation; all clients take part and hold this rank.
        layers: (d_out, d_in) of every adapted layer.
        steps: local steps in a round.
        played: what `turns` gave for the same row, rank and steps, and one client or several, where it is known.

    Guarantees: equals what the runs of the table were measured to send
        (test_traits.py::test_bytes_are_those_that_were_measured).
    """
    import torch

    from fedlora_lab.checkpoint import State
    from fedlora_lab.plan import Lora
    from fedlora_lab.traffic import traffic

    check(bool(layers), "layers", layers, "at least one (d_out, d_in)")
    lora, state, found = Lora(rank=rank), State(0, Global({}), {}, [0]), []
    for one in turns(row, rank=rank, clients=clients, steps=steps) if played is None else played:
        state.server = Global(
            {
                Slot(slot.side, f"{i}"): torch.empty(shape, device="meta")
                for slot, shape in one.shapes.items()
                for i, shape in enumerate(_shapes(slot, shape, rank, layers))
            }
        )
        slots = [slot for slot in state.server.tensors if Slot(slot.side, "map") in one.sent]
        load = traffic(row, lora, state, [0], [0] if one.sent else [], slots)
        found.append(Bytes(load.bytes_up, load.bytes_down))
        grown = clients * rank  # of what the uploads add to a residual
        state.changed.append(
            {f"{i}.{slot.side}": grown if slot.side == "W" else 0 for slot in one.new for i in range(len(layers))}
        )
        state.seen = [state.round]
        state.round += 1
    return Bytes(*(fmean(part) for part in zip(*found[1:], strict=True)))


def _shapes(slot: Slot, played: Sequence[int], rank: int, layers: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """The shape of a tensor in every layer; what is no factor keeps the one that it was played with."""
    known = {
        "A": lambda tall, wide: (rank, wide),
        "B": lambda tall, wide: (tall, rank),
        "R": lambda tall, wide: (rank, rank),
        "W": lambda tall, wide: (tall, wide),
    }
    return [known.get(slot.side, lambda tall, wide: tuple(played))(*layer) for layer in layers]
