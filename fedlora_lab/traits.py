"""What can be said of a row before it is run: which published one it is, and what its fields promise."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedlora_lab import rehearsal
from fedlora_lab.mechanism import uncertified
from fedlora_lab.method import Cycle, Method

TOLD = ("name", "source", "exact", "note")
"""Fields that say something of a row and do nothing in a run."""
HORIZON = 12
MEETS = {
    "never": "noise never multiplies noise: one factor moves, the product stays linear in it",
    "over rounds": "noise of one round multiplies noise of another: what a factor has taken up meets the other's",
    "within a round": "both factors take up noise in a round, at different steps: it multiplies in what is sent",
    "at once": "both factors are noised in one release: noise multiplies noise",
}


class Kin(NamedTuple):
    """Where a row stands among the published ones.

    Args:
        same: slug of the row whose fields are all equal; ``None``: the table knows of none.
        near: slug of a row with fewest other fields, itself where there is one.
        differs: the fields in which it differs from that one.
    """

    same: str | None
    near: str
    differs: tuple[str, ...]


class Traits(NamedTuple):
    """What a row's fields and functions say of it.

    Args:
        exact: the server holds the mean of the clients' products; ``None``: no common product is formed.
        meets: how noise can multiply noise, a key of `MEETS`.
        uncertified: why the ledger states no epsilon; ``None``: it states one.
        idle: the first step of the first round moves no factor that has a gradient: the one that starts at zero rests.
        learns: the factor that starts at zero moves some time; without it the product is zero for ever.
        up, down: bytes of one client in one round.
    """

    exact: bool | None
    meets: str
    uncertified: str | None
    idle: bool
    learns: bool
    up: float
    down: float


def fields(row: Method) -> dict[str, Any]:
    """Every field that does something, written in one way: equal behaviour of a schedule or a share is equal here."""
    found = {name: getattr(row, name) for name in Method.__dataclass_fields__ if name not in TOLD}
    if isinstance(row.train, Cycle):
        rounds = [_shortest(["AB" if word == "BA" else word for word in part.split()]) for part in row.train.rounds]
        found["train"] = _shortest(rounds)
    moved = set().union(*_words(row))
    if row.share is not None:
        found["share"] = None if moved <= set(row.share) else "".join(sorted(moved & set(row.share)))
    return found


def _shortest(parts: list) -> tuple:
    """The shortest beginning that repeats to the whole."""
    size = next(n for n in range(1, len(parts) + 1) if len(parts) % n == 0 and parts == parts[:n] * (len(parts) // n))
    return tuple(parts[:size])


def _words(row: Method) -> list[set[str]]:
    """What moves in each of the first rounds."""
    return [set(row.moved(t, HORIZON)) for t in range(HORIZON)]


def identify(row: Method, among: "Mapping[str, Method] | None" = None) -> Kin:
    """Which published method a row is, by its fields alone: its name and its words are not looked at.

    Args: among: slug -> row; ``None``: the table and its variants.
    Guarantees: every row of the table is itself under any name (test_traits.py::test_every_row_is_itself).
    """
    from fedlora_lab.methods import ALL, VARIANTS

    known, mine = ALL | VARIANTS if among is None else among, fields(row)
    apart = {}
    for slug, other in known.items():
        theirs = fields(other)
        apart[slug] = tuple(name for name in mine if mine[name] != theirs[name])
    near = min(apart, key=lambda slug: len(apart[slug]))
    return Kin(None if apart[near] else near, near, apart[near])


def meeting(row: Method) -> str:
    """How noise on one factor can come to multiply noise on another, a key of `MEETS`; in the example unit.

    In the client unit noise falls on all that moved in a round at once, so "within a round" is "at once" there.
    Noise that a server's rule writes into a factor is that of the product already: it is split, not multiplied.
    """
    rounds = _words(row)
    every = set().union(*rounds)
    if "*" not in every and len(every) < 2:
        return "never"
    if any(len(row.moves(t, s)) > 1 for t in range(HORIZON) for s in range(HORIZON)):
        return "at once"
    return "within a round" if any(len(moved) > 1 for moved in rounds) else "over rounds"


def traits(row: Method, *, rank: int = 4, clients: int = 10) -> Traits:
    """What the fields and functions of a row say of it, for a federation on digits; nothing is trained.

    Raises: whatever a rule of the row raises when it is played.
    Guarantees: test_traits.py::test_traits_of_the_table.
    """
    gap, sent = rehearsal.exactness(row, rank=rank, clients=clients), rehearsal.wire(row, rank=rank, clients=clients)
    every, nothing = set().union(*_words(row)), rehearsal.zero_at_start(row)
    return Traits(
        exact=None if gap is None else gap < rehearsal.EXACT,
        meets=meeting(row),
        uncertified=uncertified(row.whiten),
        idle=not nothing & set(row.moves(0, 0).replace("*", "B")),
        learns=nothing <= (every | ({"A", "B"} if "*" in every else set())),
        up=sent.up,
        down=sent.down,
    )


NAMES = {
    "train": "who moves when",
    "start": "the start",
    "share": "what is sent",
    "own_ranks": "what stays at home",
    "parts": "what is clipped together",
    "clips": "what the clip falls on",
    "whiten": "the whitening",
    "smooth": "the smoothing",
    "penalty": "the penalty",
    "aggregate": "what the server does",
    "broadcast": "what clients receive",
}
"""The fields that do something, in words."""


def named(kin: Kin) -> str:
    """Which published row it is, in words; or how near the nearest one is."""
    from fedlora_lab.methods import ALL, VARIANTS

    row = (ALL | VARIANTS).get(kin.near)
    name = kin.near if row is None else row.name
    if kin.same is not None:
        return f"This is {name}" + (f" ({row.source})." if row is not None and row.source else ".")
    fields = " and ".join(NAMES.get(field, field) for field in kin.differs)
    return f"Nobody has published this as far as the table knows. Nearest is {name}: it differs in {fields}."


def brief(found: Traits) -> str:
    """The same as `told` in a sentence."""
    from fedlora_lab.summary import size

    exact = {True: "exact server", False: "server misses the mean product", None: "no common product"}[found.exact]
    meets = {"never": "never multiplies", "over rounds": "multiplies over rounds"}.get(
        found.meets, f"multiplies {found.meets}"
    )
    sure = "ε certified" if found.uncertified is None else "no ε certified"
    text = (
        f"{exact[0].upper()}{exact[1:]}; noise {meets}; {sure}; {size(found.up)} up, {size(found.down)} down a round."
    )
    return text if found.learns else f"{text} It never learns."


def told(found: Traits) -> list[tuple[str, str]]:
    """What is to be said of a row, one (sign, line) a property; the sign is one that scores use, or "!"."""
    from fedlora_lab.summary import size

    exact = {
        True: ("=", "the server holds the mean of the products"),
        False: ("≠", "the server misses the mean of the products"),
        None: ("↺", "no common product is formed: something stays at home"),
    }
    sure = "the ledger certifies its ε" if found.uncertified is None else f"no ε is certified: {found.uncertified}"
    lines = [exact[found.exact], ("~", MEETS[found.meets]), ("ε", sure)]
    lines.append(("⇅", f"a client sends {size(found.up)} and receives {size(found.down)} a round (digits, rank 4)"))
    if not found.learns:
        lines.append(("!", "it never learns: the factor that starts at zero never moves, so the product stays zero"))
    elif found.idle:
        lines.append(("!", "its first step is noise alone: the factor that starts at zero rests, the gradient is zero"))
    return lines
