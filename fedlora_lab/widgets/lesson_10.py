"""Widget of notebook 10: what exactness costs on the wire, for a federation and layers of one's own."""

from functools import cache
from typing import TYPE_CHECKING, Any

from fedlora_lab.plots.exactness import WAYS, exactness_map
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.dial import Dial, dial

if TYPE_CHECKING:
    from fedlora_lab.plots.style import Picture

LIMITS = (32.0, 4e9)
COUNT = 8
RANKS = (1, 2, 4, 8, 16, 32, 64)


def bytes_map() -> Dial:
    """Turn width, rank and clients; bytes are counted anew for every row, the deviation is the measured one.

    Guarantees: test_lesson_10.py::test_the_map_widget_says_what_it_shows.
    """
    from fedlora_lab import methods, rehearsal
    from fedlora_lab.summary import size

    measured: Any = methods.table()
    played = {rank: {slug: rehearsal.turns(methods.ALL[slug], rank=rank) for slug in measured.index} for rank in RANKS}

    @cache
    def counted(width: int, rank: int, clients: int) -> "dict[str, rehearsal.Bytes]":
        one = {
            slug: rehearsal.wire(
                methods.ALL[slug], rank=rank, clients=clients, layers=((width, width),), played=played[rank][slug]
            )
            for slug in measured.index
        }
        return {slug: rehearsal.Bytes(COUNT * sent.up, COUNT * sent.down) for slug, sent in one.items()}

    def plot(way: str, width: int, rank: int, clients: int, mark: str) -> "tuple[Picture, str]":
        sent = counted(width, rank, clients)
        table = measured.assign(up=[b.up for b in sent.values()], down=[b.down for b in sent.values()])
        setting = f"bytes: {COUNT} layers of {width} x {width}, rank {rank}, {clients} clients; "
        setting += "deviation: as measured on digits"
        figure = exactness_map(table, way, mark=mark, limits=LIMITS, setting=setting)
        mine, plain = (sum(getattr(sent[slug], part) for part in WAYS[way]) for slug in (mark, "fedlora"))
        gap = float(measured["deviation"].astype(float)[mark])
        off = "forms no common product" if gap != gap else "is exact" if gap < 1e-5 else f"is {gap:.1%} off"
        words = {"both": "sends and receives", "up": "sends", "down": "receives"}[way]
        text = f"A client of {methods.ALL[mark].name} {words} {size(mine)} a round, {mine / plain:.3g} times "
        text += f"FedLoRA's {size(plain)}; its server {off}. "
        text += f"The layers themselves, sent whole, would be {size(4.0 * COUNT * width**2)}."
        return figure, text

    names = [(row.name, slug) for slug, row in methods.ALL.items()]
    return dial(
        plot,
        way=controls.choice(
            "bytes", [("both ways", "both"), ("up", "up"), ("down", "down")], "both", "which way the bytes go"
        ),
        width=controls.steps("layer width", (64, 256, 768, 4096), 64, "d_in = d_out of each of eight layers"),
        rank=controls.steps("rank r", RANKS, 4, "inner dimension of B A"),
        clients=controls.steps("clients", (2, 5, 10, 50, 200), 10, "how many upload in a round"),
        mark=controls.choice("method", names, "fedex-lora", "the method that is ringed and told"),
    )
