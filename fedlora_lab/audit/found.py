"""One result of a self-check."""

from typing import NamedTuple


class Found(NamedTuple):
    """One result: a value that must not exceed its limit or, where the limit is ``None``, a chance."""

    trial: str
    what: str
    value: float
    limit: float | None = None
