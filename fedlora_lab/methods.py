"""The table: one row for each published method. `ALL` maps a slug to its row."""

import inspect
from typing import TYPE_CHECKING

from fedlora_lab.aggregate import straight_through
from fedlora_lab.checks import check
from fedlora_lab.method import Cycle, Method
from fedlora_lab.rules import binomial, factor_space, identity, product_space
from fedlora_lab.wire import normal_float

if TYPE_CHECKING:
    import pandas as pd

FedLoRA = Method(
    "FedLoRA",
    source="arXiv:2305.05644, arXiv:2312.17493",
    note="both factors move and are averaged apart: the mean of products is missed",
)
FFA = FedLoRA.replace(
    name="FFA-LoRA",
    source="arXiv:2403.12313",
    train=Cycle(("B",)),
    exact=True,
    note="A never moves: the mean is exact, noise stays linear, half the bytes",
)
RoLoRA = FedLoRA.replace(
    name="RoLoRA",
    source="arXiv:2409.02346",
    train=Cycle(("B", "A")),
    exact=True,
    note="the factors take turns from round to round: exact, half the bytes a round",
)
DEeR = RoLoRA.replace(
    name="DEeR",
    source="arXiv:2410.12926",
    whiten=product_space,
    note="two phases, each averaged; clip and noise live in the space of the product",
)
DEeRLiteral = DEeR.replace(
    name="DEeR literal",
    whiten=factor_space,
    note="the regulator as published: factor clipped, noise shaped by the peer; no epsilon is certified",
)
LALoRA = FedLoRA.replace(
    name="LA-LoRA",
    source="arXiv:2602.19926",
    train=Cycle(("B A",)),
    smooth=binomial(5),
    note="turns at every local step, noised gradient low-pass filtered",
)
LALoRAUnfiltered = LALoRA.replace(
    name="LA-LoRA unfiltered", smooth=identity, note="turns at every local step, no filter"
)
FedLPP = FedLoRA.replace(
    name="FedLPP",
    source="arXiv:2406.10976",
    aggregate=straight_through(),
    broadcast=normal_float(width=4, block=64),
    note="clients only ever receive a quantised adapter",
)
Local = FedLoRA.replace(name="Local", source="baseline", share="", note="every client trains alone; nothing is sent")

ALL: dict[str, Method] = {row.slug: row for row in list(globals().values()) if isinstance(row, Method)}


def get(method: str | Method) -> Method:
    """The row with this slug; a row is returned as it is. Raises ``ValueError`` naming the slugs there are."""
    if isinstance(method, Method):
        return method
    check(isinstance(method, str) and method in ALL, "method", method, "one of " + ", ".join(ALL))
    return ALL[method]


def rule_name(rule: object) -> str:
    """How a rule is written in tables: its function's name, or its call."""
    return getattr(rule, "__name__", None) or repr(rule)


def table(methods: "list[Method] | None" = None) -> "pd.DataFrame":
    """Every method as a frame: one row a method, one column a field, slug as index."""
    import pandas as pd

    rows = []
    for method in methods or ALL.values():
        train = method.train
        rows.append(
            {
                "slug": method.slug,
                "name": method.name,
                "train": " | ".join(train.rounds) if isinstance(train, Cycle) else rule_name(train),
                "share": "what moved" if method.share is None else method.share or "nothing",
                "whiten": "" if method.whiten is None else rule_name(method.whiten),
                "smooth": "" if method.smooth is identity else rule_name(method.smooth),
                "penalty": "" if method.penalty is None else rule_name(method.penalty),
                "aggregate": rule_name(method.aggregate),
                "broadcast": rule_name(method.broadcast),
                "exact": method.exact,
                "source": method.source,
                "note": method.note,
            }
        )
    return pd.DataFrame(rows).set_index("slug")


class Source(str):
    """Text that a notebook shows as it is."""

    def __repr__(self) -> str:
        return str(self)


def show(method: str | Method) -> Source:
    """The row and the source of the rules that it does not share with the default, as text."""
    method, plain = get(method), Method("plain", "")
    fields = [name for name in Method.__dataclass_fields__ if getattr(method, name) != getattr(plain, name)]
    row = ",\n    ".join(f"{name}={_written(getattr(method, name))}" for name in fields)
    rules = {}
    for name in fields:
        rule = getattr(method, name)
        if callable(rule):
            rules[rule if inspect.isfunction(rule) else type(rule)] = None
    return Source("\n\n".join([f"Method(\n    {row},\n)", *(inspect.getsource(rule).rstrip() for rule in rules)]))


def _written(value: object) -> str:
    return value.__name__ if inspect.isfunction(value) else repr(value)
