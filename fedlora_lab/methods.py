"""The table: one row for each published method. `ALL` maps a slug to its row."""

from typing import TYPE_CHECKING

from fedlora_lab.aggregate import (
    by_layer,
    mean_with_residual,
    merge,
    norm_weighted,
    repair,
    sketch,
    straight_through,
    truncated_svd,
)
from fedlora_lab.checks import check
from fedlora_lab.method import Cycle, Method
from fedlora_lab.rules import (
    binomial,
    by_side,
    by_tensor,
    factor_space,
    identity,
    origin,
    product_space,
    spectral,
)
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
FedExLoRA = FedLoRA.replace(
    name="FedEx-LoRA",
    source="arXiv:2410.09432",
    aggregate=mean_with_residual,
    exact=True,
    note="what the mean of factors misses goes into the frozen weight: exact, and many bytes down",
)
FLoRA = FedLoRA.replace(
    name="FLoRA",
    source="arXiv:2409.05976",
    aggregate=merge,
    exact=True,
    note="the stack of all factors is merged into the frozen weight, new factors every round",
)
FlexLoRA = FedLoRA.replace(
    name="FlexLoRA",
    source="arXiv:2402.11505",
    aggregate=truncated_svd,
    note="the mean of products cut back to the rank by its singular values",
)
HetLoRA = FedLoRA.replace(
    name="HetLoRA",
    source="arXiv:2401.06432",
    aggregate=norm_weighted,
    note="clients of unequal rank, padded with zeros and weighted by the size of their product; ranks are not pruned",
)
FedSA = FedLoRA.replace(
    name="FedSA-LoRA",
    source="arXiv:2410.01463",
    share="A",
    note="every client keeps its own B and shares A: no common product is formed",
)
SDFLoRA = FedLoRA.replace(
    name="SDFLoRA",
    source="arXiv:2601.11219",
    own_ranks=0.5,
    note="half of the ranks are averaged, the other half never leaves its client",
)
LoRAFAIR = FedLoRA.replace(
    name="LoRA-FAIR",
    source="arXiv:2411.14961",
    aggregate=repair(0.01),
    note="the mean of B is moved to where its product fits the mean of products best",
)
FedSVD = FFA.replace(
    name="FedSVD",
    source="arXiv:2505.12805",
    aggregate=truncated_svd,
    note="B moves; after every round the product is split anew, A gets orthonormal rows",
)
FedASK = FFA.replace(
    name="FedASK",
    source="arXiv:2507.09990",
    aggregate=sketch(),
    note="B moves; the server sees two sketches of the product and splits it evenly",
)
FedSB = FedLoRA.replace(
    name="Fed-SB",
    source="arXiv:2502.15436",
    train=Cycle(("R",)),
    start=spectral,
    exact=True,
    note="only an r x r core between two fixed factors moves: exact, and almost no bytes",
)
ASLoRA = FedLoRA.replace(
    name="AS-LoRA",
    source="arXiv:2605.05769",
    train=Cycle(("*",)),
    aggregate=by_layer(),
    exact=True,
    note="every layer moves the factor that gained more so far, read from released values only",
)
DPLoRA = FedLoRA.replace(
    name="DP-LoRA",
    source="arXiv:2312.17493",
    parts=by_side,
    note="each factor clipped apart; published with one step a round",
)
DPFedLoRA = FedLoRA.replace(
    name="DP-FedLoRA",
    source="arXiv:2509.09097",
    parts=by_tensor,
    clips=origin,
    note="every tensor clipped apart; in the client unit the weights themselves, not their change",
)
Local = FedLoRA.replace(name="Local", source="baseline", share="", note="every client trains alone; nothing is sent")

_ROWS = [row for row in list(globals().values()) if isinstance(row, Method)]

VARIANTS: dict[str, Method] = {
    row.slug: row
    for row in (
        LALoRA.replace(
            name="LA-LoRA A first", train=Cycle(("A B",)), note="as in an older release: the first step is noise"
        ),
        FedASK.replace(
            name="FedASK both", train=Cycle(("AB",)), exact=False, note="a sketch of the rank is too narrow"
        ),
        FedASK.replace(
            name="FedASK wide", train=Cycle(("AB",)), exact=False, aggregate=sketch(32), note="a wider sketch"
        ),
    )
}
"""What the literature leaves open, by slug: rows for comparison that the table does not recommend."""

ALL: dict[str, Method] = {row.slug: row for row in _ROWS}


def get(method: str | Method) -> Method:
    """The row with this slug; a row is returned as it is. Raises ``ValueError`` naming the slugs there are."""
    if isinstance(method, Method):
        return method
    known = ALL | VARIANTS
    check(isinstance(method, str) and method in known, "method", method, "one of " + ", ".join(ALL))
    return known[method]


def table(methods: "list[Method] | None" = None) -> "pd.DataFrame":
    """Every method as a frame, slug as index: one row a method, one column a field, and what was measured of it."""
    from fedlora_lab.catalogue import table_of

    return table_of(list(ALL.values()) if methods is None else methods)


def show(method: str | Method) -> str:
    """The row and the source of the rules that it does not share with the default, as text."""
    from fedlora_lab.catalogue import written

    return written(get(method))
