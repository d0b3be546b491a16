"""What can be said of a method before training: its fields, its rules played on random numbers."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.methods.aggregation import client_values, mean
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.published import ALL, VARIANTS
from fedlora_lab.methods.quantization import bytes_text, rule_for
from fedlora_lab.methods.state import KINDS, ParamKey, ServerState, merge_own_ranks, shared_rank
from fedlora_lab.privacy.mechanism import uncertified_reason

EXACT = 1e-9
"""Relative gaps below this are rounding."""
LAYERS = ((64, 64),) * 8
"""The adapted layers of the task digits, (d_out, d_in) each."""
STEPS, HORIZON = 4, 12
"""Local steps in a round that is played; rounds and steps in which a schedule is looked at."""
DESCRIPTIVE = ("name", "source", "exact", "note")
"""Fields that say something of a method and do nothing in a run."""
DOUBLE: Any = {"dtype": torch.float64}
WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
NAMES, NOISE_PRODUCTS = WORDS["fields"], WORDS["noise_products"]


class Bytes(NamedTuple):
    """Bytes of one client in one round."""

    up: float
    down: float


class PlayedRound(NamedTuple):
    """A round that was played on one layer, "map"."""

    before: ServerState
    sent: ServerState  # what went down
    uploads: dict[ParamKey, Tensor]  # key -> (clients, ...)
    after: ServerState
    kept: bool  # something that moved stays with its client


def _start(row: Method, rank: int, size: int, random: Generator) -> dict[str, Tensor]:
    """The factors of one layer before training, float64."""
    weight = torch.randn(size, size, generator=random, **DOUBLE)
    uniform = torch.rand(rank, size, generator=random, **DOUBLE)
    values = {"A": (uniform * 2 - 1) / size**0.5, "B": torch.zeros(size, rank, **DOUBLE)}
    return values if row.start is None else values | row.start(weight, rank)


def _play(row: Method, rank: int, clients: int, size: int) -> Iterator[PlayedRound]:
    """Plays the opening round and some whole cycles; uploads are what was received plus noise."""
    from fedlora_lab.federated.local_training import moving_keys

    period = len(row.train.rounds) if isinstance(row.train, Cycle) else 4
    rounds = 1 + period * ceil(4 / period)
    random = torch.Generator().manual_seed(0)
    tensors = {ParamKey(side, "map"): x for side, x in _start(row, rank, size, random).items()}
    state = ServerState(tensors, planned=rounds, streams=Streams(0))
    rule: Any = row.aggregate
    state = rule.initial_state(state) if hasattr(rule, "initial_state") else state
    weights = torch.full((clients,), 1 / clients, **DOUBLE)
    for t in range(rounds):
        old = state.tensors
        sent = state.replace_tensors({k: rule_for(k, row.broadcast)(x) for k, x in old.items()})
        moved, uploads = moving_keys(old, row.sides_in_round(t, STEPS)), {}
        for key in (key for key in moved if row.is_shared(key)):
            start = sent.tensors[key]
            change = torch.randn(clients, *start.shape, generator=random, **DOUBLE) / size**0.5
            uploads[key] = start + change
            if row.own_ranks:
                shared = shared_rank(rank, row.own_ranks)
                uploads[key] = merge_own_ranks(key, uploads[key], start[None], shared)
        after = rule(state, sent, uploads, weights) if uploads else state
        kept = bool(row.own_ranks) or set(moved) != set(uploads)
        yield PlayedRound(state, sent, uploads, after, kept)
        state = replace(after, round=t + 1)


def aggregation_error(row: Method, *, clients: int = 10) -> float | None:
    """Returns the largest relative gap between the server's product and the clients' mean.

    0 (below `EXACT`) is exact; changes are random, so another size says nothing. What a quantised
    broadcast takes away is not counted. ``None`` where no common product is formed.

    Guarantees: test_dry_run.py::test_exactness_is_the_claim.
    """
    from fedlora_lab import measures

    check_whole("clients", clients, 1)
    worst = 0.0
    for played in _play(row, 4, clients, 64):
        if played.kept or not played.uploads:
            return None
        state, sent, uploads, after, _ = played
        ranked = {key: x for key, x in state.tensors.items() if key.kind.of_the_product}
        own = {
            key: client_values(state, sent, uploads, key) + (x - sent.tensors[key])
            for key, x in ranked.items()
        }
        weights = torch.full((clients,), 1 / clients, **DOUBLE)
        plain = mean(state, sent, uploads, weights)
        exchange = measures.Exchange(state, plain, after, own, weights, None)
        worst = max(worst, measures.layer_rows(exchange, lambda layer: 1.0)[1])
    return worst


def play_rounds(row: Method, *, rank: int = 4, clients: int = 10) -> list[PlayedRound]:
    """Plays the opening round and some cycles, on which `client_bytes` counts for any layers.

    Args:
        row: any method.
        rank, clients: of the federation.
    """
    return list(_play(row, rank, min(clients, 2), max(16, rank)))


def client_bytes(
    row: Method,
    *,
    rank: int = 4,
    clients: int = 10,
    layers: Sequence[tuple[int, int]] = LAYERS,
    played: Sequence[PlayedRound] | None = None,
) -> Bytes:
    """Returns the bytes of one client in a round, the mean over a cycle after the opening round.

    Args:
        row: any method.
        rank, clients: of the federation; all clients take part and hold this rank.
        layers: (d_out, d_in) of every adapted layer.
        played: what `play_rounds` gave for the same row and rank, and one client or several.

    Guarantees: test_dry_run.py::test_bytes_are_those_that_were_measured.
    """
    from fedlora_lab.federated.checkpoint import RunState
    from fedlora_lab.federated.uploads import count_traffic

    check(bool(layers), "layers", layers, "at least one (d_out, d_in)")
    lora, state, found = Lora(rank=rank), RunState(0, ServerState({}), {}, [0]), []
    for one in played or play_rounds(row, rank=rank, clients=clients):
        tensors = {
            ParamKey(key.side, f"{i}"): torch.empty(_shape(key, layer, rank, x), device="meta")
            for key, x in one.before.tensors.items()
            for i, layer in enumerate(layers)
        }
        state.server = ServerState(tensors)
        keys = [key for key in tensors if ParamKey(key.side, "map") in one.uploads]
        load = count_traffic(row, lora, state, [0], [0] if one.uploads else [], keys)
        found.append(Bytes(load.bytes_up, load.bytes_down))
        old, after = one.before.tensors, one.after.tensors
        sides = [key.side for key, x in after.items() if x is not old.get(key)]
        grown = {side: clients * rank if side == "W" else 0 for side in sides}
        state.changed.append({f"{i}.{s}": r for s, r in grown.items() for i in range(len(layers))})
        state.seen = [state.round]
        state.round += 1
    return Bytes(*(fmean(part) for part in zip(*found[1:], strict=True)))


def _shape(key: ParamKey, layer: tuple[int, int], rank: int, played: Tensor) -> Sequence[int]:
    """The shape of a tensor in a layer of this size; as played where no side of it enters."""
    rule = key.kind.shape
    if rule is None or rule(1, 1, rank) == rule(2, 2, rank):
        return played.shape
    return rule(*layer, rank)


class ClosestMethod(NamedTuple):
    """The published method whose fields are those of a row, or nearly so."""

    identical: str | None  # slug of the row whose fields are all equal
    nearest: str  # slug of a row with fewest other fields
    different_fields: tuple[str, ...]  # the fields in which it differs from that one


class Traits(NamedTuple):
    """What a row's fields and functions say of it."""

    exact: bool | None  # the server holds the mean of the clients' products; None: none is formed
    noise_product: str  # how noise can multiply noise, a key of NOISE_PRODUCTS
    uncertified: str | None  # why the ledger states no epsilon; None: it states one
    first_step_idle: bool  # the first step of the first round moves no factor that has a gradient
    can_learn: bool  # the factor that starts at zero moves some time
    up: float  # bytes of one client in one round
    down: float


def fields(row: Method) -> dict[str, Any]:
    """Returns the fields that do something; schedules that do the same are written alike."""
    names = [name for name in Method.__dataclass_fields__ if name not in DESCRIPTIVE]
    found = {name: getattr(row, name) for name in names}
    if isinstance(row.train, Cycle):
        words = [part.replace("BA", "AB").split() for part in row.train.rounds]
        found["train"] = _shortest([_shortest(part) for part in words])
    if row.share is not None:
        moved, shared = set().union(*_words(row)), set(row.share)
        found["share"] = None if moved <= shared else "".join(sorted(moved & shared))
    return found


def _shortest(parts: list) -> tuple:
    """The shortest beginning that repeats to the whole."""
    sizes = range(1, len(parts) + 1)
    return tuple(next(parts[:n] for n in sizes if parts == parts[:n] * (len(parts) // n)))


def _words(row: Method) -> list[set[str]]:
    """What moves in each of the first rounds."""
    return [set(row.sides_in_round(t, HORIZON)) for t in range(HORIZON)]


def identify(row: Method) -> ClosestMethod:
    """Finds the published method that a row is nearest to, by its fields alone, not by its words.

    Guarantees: test_dry_run.py::test_every_row_is_identified_by_its_fields.
    """
    mine, known = fields(row), {slug: fields(other) for slug, other in (ALL | VARIANTS).items()}
    apart = {slug: tuple(k for k in mine if mine[k] != own[k]) for slug, own in known.items()}
    nearest = min(apart, key=lambda slug: len(apart[slug]))
    return ClosestMethod(None if apart[nearest] else nearest, nearest, apart[nearest])


def _made(row: Method) -> set[str]:
    """The kinds of tensors that a layer begins with."""
    return set(_start(row, 2, 6, torch.Generator().manual_seed(0)))


def noise_product(row: Method) -> str:
    """Says how noise on one factor can multiply noise on another: a key of `NOISE_PRODUCTS`.

    That is for the example unit. In the client unit noise falls on all that moved in a round at
    once, so "within a round" is "at once" there. Noise that a server's rule writes into a factor is
    that of the product already: it is split, not multiplied.
    """
    rounds = _words(row)
    every = set().union(*rounds)
    if any(KINDS[x].of_the_product and not KINDS[x].scheduled for x in _made(row) if x in KINDS):
        return "at once"
    if "*" not in every and len(every) < 2:
        return "never"
    if any(len(row.sides_at_step(t, s)) > 1 for t in range(HORIZON) for s in range(HORIZON)):
        return "at once"
    return "within a round" if any(len(moved) > 1 for moved in rounds) else "over rounds"


def traits(row: Method) -> Traits:
    """Finds what a row's fields and functions say of it, for clients on digits; nothing trains.

    Raises: whatever a rule of the row raises when it is played.
    Guarantees: test_dry_run.py::test_traits_of_the_table_are_those_measured.
    """
    gap, load, every = aggregation_error(row), client_bytes(row), set().union(*_words(row))
    start = _start(row, 2, 6, torch.Generator().manual_seed(0))
    # The product is zero until a factor that is zero at the start moves.
    zero = {side for side, x in start.items() if not bool(x.any())}
    return Traits(
        exact=None if gap is None else gap < EXACT,
        noise_product=noise_product(row),
        uncertified=uncertified_reason(row.precondition, row.clip_groups),
        first_step_idle=bool(zero) and not zero & set(row.sides_at_step(0, 0).replace("*", "B")),
        can_learn=zero <= (every | ({"A", "B"} if "*" in every else set())),
        up=load.up,
        down=load.down,
    )


def describe_closest(closest: ClosestMethod) -> str:
    """Says which published row it is, or how near the nearest one is."""
    row = (ALL | VARIANTS)[closest.nearest]
    if closest.identical is not None:
        return f"This is {row.name}" + (f" ({row.source})." if row.source else ".")
    differs = " and ".join(NAMES[name] for name in closest.different_fields)
    known = "Nobody has published this as far as the table knows."
    return f"{known} Nearest is {row.name}: it differs in {differs}."


def describe(found: Traits) -> list[tuple[str, str]]:
    """Says what is known of a row, one (sign, line) a property; "!" marks a warning."""
    sign, _, exact = WORDS["exactness"][str(found.exact)]
    sure = f"no ε is certified: {found.uncertified}" if found.uncertified else None
    load = f"sends {bytes_text(found.up)} and receives {bytes_text(found.down)} a round"
    lines = [(sign, exact), ("~", NOISE_PRODUCTS[found.noise_product])]
    lines += [("ε", sure or "the ledger certifies its ε")]
    lines += [("⇅", f"a client {load} (digits, rank 4)")]
    if found.first_step_idle or not found.can_learn:
        lines += [("!", WORDS["idle" if found.can_learn else "never_learns"])]
    return lines
