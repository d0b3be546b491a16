"""What methods are made of: the values that the rows of the table give to each field, to be put together anew."""

from collections.abc import Mapping
from typing import Any

from fedlora_lab.catalogue import rule_name
from fedlora_lab.method import Cycle, Method
from fedlora_lab.rules import binomial
from fedlora_lab.wire import full, normal_float

FURTHER: Mapping[str, tuple[Any, ...]] = {
    "train": (Cycle(("A",)), Cycle(("B", "B", "A")), Cycle(("AB", "B")), Cycle(("B", "B A"))),
    "smooth": (binomial(3), binomial(9)),
    "broadcast": tuple(normal_float(width) for width in (2, 3, 8)),
    "share": ("B",),
}
"""Values beside those of the table."""
PLAIN = {"start": "A random, B zero", "whiten": "none", "penalty": "none", "smooth": "none", "share": "what moved",
         "parts": "all together", "clips": "the change", "own_ranks": "nothing", "aggregate": "mean",
         "broadcast": "full, 32 bits"}  # fmt: skip
COMPOSED = ("train", "start", "aggregate", "whiten", "smooth", "share", "own_ranks", "parts", "clips", "broadcast")
"""The fields one can choose."""


def said(field: str, value: Any) -> str:
    """A value of a field in words."""
    if value == getattr(Method("plain", ""), field) and field in PLAIN:
        return PLAIN[field]
    if field == "own_ranks":
        return f"{value:.0%} of the ranks"
    if field == "broadcast" and value != full:
        return f"{getattr(value, 'width', '?')} bits"
    if isinstance(value, Cycle):
        return " | ".join(value.rounds)
    return (
        {"": "nothing", "A": "A only", "B": "B only"}.get(value, value) if isinstance(value, str) else rule_name(value)
    )


def offered() -> dict[str, list[tuple[str, Any]]]:
    """Field -> (words, value) of all that rows and variants of the table use there, the default first, and `FURTHER`.

    Guarantees: every row can be put together from it (test_composer.py::test_every_row_can_be_composed).
    """
    from fedlora_lab.methods import ALL, VARIANTS

    plain, found = Method("plain", ""), {}
    for field in COMPOSED:
        values: list[Any] = [getattr(plain, field)]
        for value in [*(getattr(row, field) for row in (ALL | VARIANTS).values()), *FURTHER.get(field, ())]:
            values += [] if value in values else [value]
        found[field] = [(said(field, value), value) for value in values]
    return found


def compose(name: str, choice: Mapping[str, Any]) -> Method:
    """The row with these fields; it claims to be exact if its rules are, when they are played.

    Raises: ``ValueError`` for fields that do not go together.
    Guarantees: test_composer.py::test_a_composed_row_claims_what_it_does.
    """
    from fedlora_lab import rehearsal

    row = Method(name, "", **dict(choice))
    gap = rehearsal.exactness(row)
    return row.replace(exact=gap is not None and gap < rehearsal.EXACT)
