"""The widget of notebook 10."""

from functools import cache
from typing import Any

import pandas as pd

from fedlora_lab import methods
from fedlora_lab.course.lesson_10 import figures
from fedlora_lab.course.widgets import controls
from fedlora_lab.federated import dry_run
from fedlora_lab.methods.quantization import bytes_text
from fedlora_lab.plots import style

COUNT, RANKS = 8, (1, 2, 4, 8, 16, 32, 64)  # layers, and ranks
VERBS = {"both": "sends and receives", "up": "sends", "down": "receives"}


def exactness_explorer() -> controls.InteractiveFigure:
    """Offers width, rank and clients beside `exactness_map`; bytes are counted anew, the deviation
    is the measured one.
    """
    measured: Any = methods.table()
    rows = {slug: methods.ALL[slug] for slug in measured.index}
    schedules = {
        r: {slug: dry_run.play_rounds(m, rank=r) for slug, m in rows.items()} for r in RANKS
    }

    @cache
    def counted(width: int, rank: int, clients: int) -> pd.DataFrame:
        sent = {}
        for slug, method in rows.items():
            size: Any = {"rank": rank, "clients": clients, "layers": ((width, width),)}
            one = dry_run.client_bytes(method, **size, played=schedules[rank][slug])
            sent[slug] = COUNT * one.up, COUNT * one.down
        return pd.DataFrame.from_dict(sent, orient="index", columns=["up", "down"])

    def plot(way: str, width: int, rank: int, clients: int, mark: str) -> tuple[style.Picture, str]:
        sent, columns = counted(width, rank, clients), ["up", "down"] if way == "both" else [way]
        setting = f"bytes: {COUNT} layers of {width} x {width}, rank {rank}, {clients} clients; "
        setting += "deviation: as measured on digits"
        table = measured.assign(up=sent["up"], down=sent["down"])
        given: Any = {"mark": mark, "limits": (32.0, 4e9), "setting": setting}
        mine, plain = sent[columns].sum(axis=1)[[mark, "fedlora"]]
        gap = float(measured["deviation"].astype(float)[mark])
        server = "is exact" if gap < figures.ZERO else f"is {gap:.1%} off"
        server = "forms no common product" if gap != gap else server
        return figures.exactness_map(table, way, **given), (
            f"A client of {rows[mark].name} {VERBS[way]} {bytes_text(mine)} a round, "
            f"{mine / plain:.3g} times FedLoRA's {bytes_text(plain)}; its server {server}. "
            f"The layers themselves, sent whole, would be {bytes_text(4.0 * COUNT * width**2)}."
        )

    directions = [("both ways", "both"), ("up", "up"), ("down", "down")]
    names = [(row.name, slug) for slug, row in methods.ALL.items()]
    knob, layers = controls.value_slider, "d_in = d_out of each of eight layers"
    return controls.interactive_figure(
        plot,
        way=controls.menu("bytes", directions, "both", "which way the bytes go"),
        width=knob("layer width", (64, 256, 768, 4096), 64, layers),
        rank=knob("rank r", RANKS, 4, "inner dimension of B A"),
        clients=knob("clients", (2, 5, 10, 50, 200), 10, "how many upload in a round"),
        mark=controls.menu("method", names, "fedex-lora", "the method that is ringed and told"),
    )
