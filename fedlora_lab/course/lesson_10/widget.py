"""The dial of notebook 10."""

from typing import Any

import pandas as pd

from fedlora_lab import methods
from fedlora_lab.course.widgets.dial import Dial
from fedlora_lab.federated import dry_run

RANKS, WIDTHS, CLIENTS = (1, 2, 4, 8, 16, 32, 64), (64, 256, 768, 4096), (2, 5, 10, 50, 200)


def exactness_explorer() -> Dial:
    """Offers width, rank, clients and a method beside its bytes and its measured deviation.

    The bytes of a layer are counted here for every choice, on one dry run of each method, and sent;
    where the clients do not matter, once.

    Guarantees: bytes are `dry_run.client_bytes` (test_lesson_10.py::test_the_dial_counts_bytes).
    """
    table: Any = methods.table()
    rows = [_row(slug, table.loc[slug]) for slug in table.index]
    data = {"methods": rows, "widths": list(WIDTHS), "ranks": list(RANKS), "counts": list(CLIENTS)}
    about = "What an exact server costs: deviation against the bytes of a client's round."
    values = {"mark": "fedex-lora", "way": "both", "width": 64, "rank": 4, "clients": 10}
    return Dial(10, "exactness_explorer", about, data, **values)


def _row(slug: str, row: Any) -> dict[str, Any]:
    """One method: name, deviation, bytes up and down of a layer for each width and rank."""
    method = methods.ALL[slug]
    played = dry_run.play_rounds(method)
    up, down = [], []
    for width in WIDTHS:
        sent, received = [], []
        for rank in RANKS:
            size: Any = {"rank": rank, "layers": ((width, width),), "played": played}
            each = [dry_run.client_bytes(method, clients=n, **size) for n in CLIENTS]
            sent.append(int(each[0].up))
            falls = [int(one.down) for one in each]
            received.append(falls if len(set(falls)) > 1 else falls[0])
        up.append(sent)
        down.append(received)
    deviation = None if pd.isna(row["deviation"]) else float(row["deviation"])
    return {"slug": slug, "name": method.name, "deviation": deviation, "up": up, "down": down}
