"""The table of methods as text and as a frame: what each row says, and what was measured of it."""

import inspect
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab.method import Cycle, Method
from fedlora_lab.rules import origin

if TYPE_CHECKING:
    import pandas as pd

FILE = Path(__file__).parent / "data" / "measured.json"
PLAIN = Method("plain", "")
MEASURED = ("up", "down", "deviation")


def rule_name(rule: object) -> str:
    """How a rule is written in tables: its function's name, or its call."""
    return getattr(rule, "__name__", None) or repr(rule)


def _other(method: Method, name: str) -> str:
    """A rule by name where it is not the default one, else nothing."""
    rule = getattr(method, name)
    return "" if rule is None or rule == getattr(PLAIN, name) else rule_name(rule)


def shared(method: Method) -> str:
    """What goes up, in words."""
    words = "what moved" if method.share is None else method.share or "nothing"
    return f"{1 - method.own_ranks:.0%} of the ranks" if method.own_ranks else words


def noised(method: Method) -> str:
    """Where noise enters: in the example unit at every step, in the client unit at the end of the round."""
    moved = {side for t in range(8) for side in method.moved(t, 8)}
    names = {"R": "core", "*": "chosen factor"}
    what = " and ".join(names.get(side, side) for side in "ABR*" if side in moved)
    shape = "" if method.whiten is None else ", shaped by the peer"
    after = "" if method.smooth == PLAIN.smooth else ", then filtered"
    own = "weights" if method.clips is origin else "change"
    return f"gradient of {what}, or the round's {own}{shape}{after}"


@cache
def measurements() -> dict[str, Any]:
    """What scripts/measure_methods.py measured: "setting", and "methods": slug -> up, down (bytes), deviation."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {"methods": {}}


def table_of(methods: Iterable[Method]) -> "pd.DataFrame":
    """The rows as a frame, one column a field, slug as index.

    ``up`` and ``down`` are bytes of one client in one round, ``deviation`` the largest relative gap between the
    server's product and the mean of the clients' products, without noise; measured in the setting of `measurements`,
    NaN for a row that was not, and for a deviation where no common product is formed.
    """
    import pandas as pd

    rows = []
    for method in methods:
        train, found = method.train, measurements()["methods"].get(method.slug, {})
        rows.append(
            {
                "slug": method.slug,
                "name": method.name,
                "train": " | ".join(train.rounds) if isinstance(train, Cycle) else rule_name(train),
                "start": _other(method, "start"),
                "share": shared(method),
                "noise": noised(method),
                **{name: _other(method, name) for name in ("parts", "clips", "whiten", "smooth", "penalty")},
                "aggregate": rule_name(method.aggregate),
                "broadcast": rule_name(method.broadcast),
                "exact": method.exact,
                **{name: found.get(name, float("nan")) for name in MEASURED},
                "source": method.source,
                "note": method.note,
            }
        )
    return pd.DataFrame(rows).set_index("slug")


class Source(str):
    """Text that a notebook shows as it is."""

    def __repr__(self) -> str:
        return str(self)


def written(method: Method) -> Source:
    """The row and the source of the rules that it does not share with the default, as text."""
    fields = [name for name in Method.__dataclass_fields__ if getattr(method, name) != getattr(PLAIN, name)]
    row = ",\n    ".join(f"{name}={_written(getattr(method, name))}" for name in fields)
    rules = {}
    for name in fields:
        rule = getattr(method, name)
        if callable(rule):
            rules[rule if inspect.isfunction(rule) else type(rule)] = None
    return Source("\n\n".join([f"Method(\n    {row},\n)", *(inspect.getsource(rule).rstrip() for rule in rules)]))


def _written(value: object) -> str:
    return value.__name__ if inspect.isfunction(value) else repr(value)
