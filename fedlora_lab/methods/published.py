"""The published methods, one row each. `ALL` maps a slug to its row, in this order."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab._utils.validation import check, check_one_of
from fedlora_lab.methods import (
    aggregation,
    clip_groups,
    filters,
    preconditioners,
    quantization,
    starts,
)
from fedlora_lab.methods.directions import Differences
from fedlora_lab.methods.method import Cycle, Method, check_names

if TYPE_CHECKING:
    import pandas as pd

# ---- which factor moves


# DP-LoRA and DP-FedLoRA are this row with a clip of each factor, or tensor, apart (clip_groups).
FedLoRA = Method(
    "FedLoRA",
    source="arXiv:2305.05644, arXiv:2312.17493",
    note="both factors move and are averaged apart: the mean of products is missed",
)
FFA = FedLoRA.replace(
    name="FFA-LoRA",
    source="arXiv:2403.12313",
    schedule=Cycle(("B",)),
    exact=True,
    note="A never moves: the mean is exact, noise stays linear, only B is sent",
)
RoLoRA = FedLoRA.replace(
    name="RoLoRA",
    source="arXiv:2409.02346",
    schedule=Cycle(("B", "A")),
    exact=True,
    note="the factors take turns from round to round: exact, only one is sent",
)

# ---- where clip and noise fall

# The sound form: clipped value and noise pass one map, so the ledger certifies it.
DEeR = RoLoRA.replace(
    name="DEeR",
    source="arXiv:2410.12926",
    precondition=preconditioners.product_space,
    exact=True,
    note="the factors take turns; clip and noise are on the change of the product",
)
# The released form, to be measured beside it. The noise passes a map that the clip does not bound.
DEeRLiteral = DEeR.replace(
    name="DEeR literal",
    source="arXiv:2410.12926",
    precondition=preconditioners.factor_space,
    clip_groups=clip_groups.each_tensor_to_c,
    exact=True,
    note="DEeR as it was released, for comparison: no epsilon can be stated for it",
)

PRISM = FedLoRA.replace(
    name="PRISM",
    source="arXiv:2606.00944",
    initial_factors=starts.principal,
    precondition=preconditioners.tangent_space,
    aggregate=aggregation.retraction,
    note="both factors move; clip and noise are on the change of their product",
)

# ---- what follows the noise

LALoRA = FedLoRA.replace(
    name="LA-LoRA",
    source="arXiv:2602.19926",
    schedule=Cycle(("B A",)),
    filter=filters.binomial(5),
    note="turns at every local step, noised gradient low-pass filtered",
)
LALoRAUnfiltered = LALoRA.replace(
    name="LA-LoRA unfiltered",
    source="arXiv:2602.19926",
    filter=filters.identity,
    note="turns at every local step, no filter",
)

# ---- what is measured of an example

FedZO = FedLoRA.replace(
    name="Fed-ZO",
    source="arXiv:2310.09639, arXiv:2401.04343, arXiv:2312.06353",
    differences=Differences(directions=8),
    note="no gradient: clients send how the loss changes along a few public random directions",
)

# ---- what the server sends, and what it makes of the uploads

FedLPP = FedLoRA.replace(
    name="FedLPP",
    source="arXiv:2406.10976",
    broadcast=quantization.normal_float(width=4, block=64),
    note="clients only ever receive a quantised adapter; a trained head goes down in full",
)
# A residual is never trained: it goes down as the factors of one round's change, or whole.
FedExLoRA = FedLoRA.replace(
    name="FedEx-LoRA",
    source="arXiv:2410.09432",
    aggregate=aggregation.mean_with_residual,
    exact=True,
    note="what the mean of factors misses goes into the frozen weight: exact, and many bytes down",
)
# A is drawn anew in every round: an optimiser of the server would step between coordinates.
FLoRA = FedLoRA.replace(
    name="FLoRA",
    source="arXiv:2409.05976",
    aggregate=aggregation.merge,
    exact=True,
    note="the stack of all factors is merged into the frozen weight, new factors every round",
)
# A is common in every round, so the merged product is exact from a sum too.
FedRAC = FFA.replace(
    name="Fed-RAC-LoRA",
    source="arXiv:2410.08305",
    aggregate=aggregation.merge,
    exact=True,
    note="B moves against an A drawn anew in every round, and is merged into the frozen weight",
)
FedMomentum = FedLoRA.replace(
    name="FedMomentum",
    source="arXiv:2603.08014",
    aggregate=aggregation.split_product,
    exact=True,
    note="the mean of products is cut to the rank, and the rest goes into the frozen weight",
)
FedRot = FedLoRA.replace(
    name="FedRot-LoRA",
    source="arXiv:2602.23638",
    aggregate=aggregation.rotated,
    note="each client's factors are rotated towards the common ones before the mean",
)
FedRPCA = FedLoRA.replace(
    name="FedRPCA",
    source="arXiv:2506.01194",
    aggregate=aggregation.robust_mean,
    note="what clients have in common is averaged, and what is each one's own counts twice",
)
FlexLoRA = FedLoRA.replace(
    name="FlexLoRA",
    source="arXiv:2402.11505",
    aggregate=aggregation.truncated_svd,
    note="the mean of products cut back to the rank by its singular values",
)
FedPower = FedLoRA.replace(
    name="FedPower",
    source="arXiv:2605.08443",
    aggregate=aggregation.subspace_iteration,
    note="the server finds the leading directions of the mean product by iteration; a "
    "reconstruction, noised before the server",
)
HetLoRA = FedLoRA.replace(
    name="HetLoRA",
    source="arXiv:2401.06432",
    aggregate=aggregation.norm_weighted,
    note="each client's factors count by the size of their product; all clients have one rank here",
)
# Nobody holds a common product: its deviation is not a number, and its test is by client.
FedSA = FedLoRA.replace(
    name="FedSA-LoRA",
    source="arXiv:2410.01463",
    uploaded_factors="A",
    note="every client keeps its own B and shares A: no common product is formed",
)
LoRAFAIR = FedLoRA.replace(
    name="LoRA-FAIR",
    source="arXiv:2411.14961",
    aggregate=aggregation.repair,
    note="the mean of B is moved to where its product fits the mean of products best",
)
FedSVD = FFA.replace(
    name="FedSVD",
    source="arXiv:2505.12805",
    aggregate=aggregation.truncated_svd,
    exact=True,
    note="B moves; after every round the server splits the product anew into B and A",
)
FedGSA = FFA.replace(
    name="FedGSA",
    source="arXiv:2608.03267",
    aggregate=aggregation.shared_outputs,
    note="B moves; the server keeps only the output directions that clients share",
)
FedASK = FFA.replace(
    name="FedASK",
    source="arXiv:2507.09990",
    aggregate=aggregation.sketch,
    exact=True,
    note="B moves; the server sees two thin sketches of each product",
)

# ---- what moves is no factor

# The bases come from the frozen weight. Those of an estimated update would be a release.
FedSB = FedLoRA.replace(
    name="Fed-SB",
    source="arXiv:2502.15436",
    schedule=Cycle(("R",)),
    initial_factors=starts.spectral,
    exact=True,
    note="only a small core between two fixed factors moves: exact, and almost no bytes",
)
# The mode of a layer is chosen by the server from released values: no gradient is looked at.
ASLoRA = FedLoRA.replace(
    name="AS-LoRA",
    source="arXiv:2605.05769",
    schedule=Cycle(("*",)),
    aggregate=aggregation.by_layer,
    exact=True,
    note="each layer draws in each round which factor moves",
)
# Gains move at every step, and are merged into their blocks before the mean.
RAVAN = FedLoRA.replace(
    name="RAVAN",
    source="arXiv:2506.05568",
    schedule=Cycle(("R",)),
    initial_factors=starts.heads(2),
    aggregate=aggregation.merge_gains,
    exact=True,
    note="several small cores between fixed random factors move",
)

# ---- this project's, and baselines

# How much larger A starts follows from public numbers: noise, rounds and shapes.
BalancedLoRA = FedLoRA.replace(
    name="Balanced LoRA",
    source="this project",
    balance=0.5,
    note="FedLoRA with a larger A at the start, beside which the noise on A is small",
)
Local = FedLoRA.replace(
    name="Local",
    source="baseline",
    uploaded_factors="",
    note="every client trains alone; nothing is sent",
)

# A row is listed by being a name of this module: a new one is added nowhere else.
_ROWS = {name: row for name, row in list(globals().items()) if isinstance(row, Method)}
ALL: dict[str, Method] = {row.slug: row for row in _ROWS.values()}
__all__ = ["ALL", "get", "table", *_ROWS]


def get(method: str | Method) -> Method:
    """Finds a row by its slug; a row is returned as it is.

    Raises: ``ValueError`` that names the slugs there are, and the one that is nearest.

    >>> get("la-lora").schedule
    Cycle(rounds=('B A',))
    """
    if isinstance(method, Method):
        return method
    check_one_of("method", method, tuple(ALL))
    return ALL[method]


# ---- the table as a frame

MEASURED_FILE = Path(__file__).parent / "measured.json"
DEFAULT = Method("default", "")
"""A row without any rule of its own."""


@cache
def measured_properties() -> dict[str, Any]:
    """Loads what scripts/measure_methods.py measured: "setting", and for each slug in "methods"."""
    return json.loads(MEASURED_FILE.read_text(encoding="utf-8"))


def rule_name(rule: object) -> str:
    """Writes a rule as tables show it: its function's name, or its call."""
    return getattr(rule, "__name__", None) or repr(rule)


def table(methods: Iterable[Method | str] | None = None) -> "pd.DataFrame":
    """Returns every method as a frame, slug as index: a column for each field and measurement.

    ``up`` and ``down`` are bytes of one client in one round, ``deviation`` the largest relative gap
    between the server's product and the mean of the clients', without noise; measured in the
    setting of `measured_properties`, NaN where that was not done or no common product is formed.

    Raises: ``ValueError`` for two rows of one name.

    >>> table().loc["ffa-lora", "schedule"]
    'B'
    """
    import pandas as pd

    several = isinstance(methods, Iterable | None) and not isinstance(methods, str)
    check(several, "methods", methods, 'a list, such as ["fedlora", "ffa-lora"]')
    rows = list(ALL.values()) if methods is None else [get(row) for row in methods]
    check_names((row.slug, row) for row in rows)
    index = pd.Index([row.slug for row in rows], name="slug")
    return pd.DataFrame([_table_row(row) for row in rows], index=index)


def _table_row(method: Method) -> dict[str, object]:
    """The columns of one method."""

    def own(name: str) -> str:
        """A rule of the row, "" where it is the default's."""
        rule = getattr(method, name)
        return "" if rule in (None, getattr(DEFAULT, name)) else rule_name(rule)

    words = method.schedule
    initial = own("initial_factors")
    if method.balance:
        initial = f"balance={method.balance:g}"
    sent = "what moved" if method.uploaded_factors is None else method.uploaded_factors or "nothing"
    rules = ("clip_groups", "differences", "precondition", "filter")
    measured = measured_properties()["methods"].get(method.slug, {})
    return {
        "name": method.name,
        "schedule": " | ".join(words.rounds) if isinstance(words, Cycle) else rule_name(words),
        "initial_factors": initial,
        "uploaded_factors": sent,
        **{name: own(name) for name in rules},
        "aggregate": rule_name(method.aggregate),
        "broadcast": rule_name(method.broadcast),
        "exact": method.exact,
        **{name: measured.get(name, float("nan")) for name in ("up", "down", "deviation")},
        "source": method.source,
        "note": method.note,
    }
