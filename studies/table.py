"""The open table: a card of every row under one protocol.

    python -m studies.table predict        writes results/table/predicted.csv; trains nothing
    python -m studies.table run [ROW ...]  trains what is missing and writes results/table/ROW.json
    python -m studies.table show           prints a table of the cards for each setting

`recipes.protocol` has the protocol; `fedlora-lab submit` makes the card of a row of one's own.
Predicted, before any run, is where the range of rates of each row ends in each setting: where the
noise on a layer's output has the variance 0.35.
"""

import json
import sys
from typing import Any

import pandas as pd
from tqdm import tqdm

from fedlora_lab import methods
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.federated.compare import BAR
from fedlora_lab.recipes import protocol
from fedlora_lab.report.run_folder import to_json
from studies import RESULTS, ROOT

CARDS = RESULTS / "table"
PREDICTED = CARDS / "predicted.csv"
STORES = RESULTS / "runs" / "table"
PAGE = ROOT / "docs" / "table.md"
FIGURE = ROOT / "docs" / "figures" / "table.png"


def predict() -> pd.DataFrame:
    """Predicts the end of the range of rates of every row in every setting; NaN: not defined."""
    rows = []
    for row in methods.ALL.values():
        for name, setting in protocol.SETTINGS.items():
            end = protocol.predicted_end(row, setting)
            rows.append({"method": row.slug, "setting": name, "end": end})
    return pd.DataFrame(rows)


def load_cards() -> list[dict[str, Any]]:
    """The committed cards of today's protocol, by name."""
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(CARDS.glob("*.json"))]
    return [card for card in cards if card["protocol"] == protocol.protocol_digest()]


def run(slugs: list[str], jobs: int = -1) -> None:
    """Trains rows and writes their cards; what is finished is not trained again."""
    for slug in slugs or list(methods.ALL):
        path = CARDS / f"{slug}.json"
        if path.exists():
            continue
        with tqdm(disable=None, **BAR) as bar:
            store = STORES / f"{slug}.jsonl"
            card = protocol.run_protocol(methods.get(slug), jobs=jobs, store=store, bar=bar)
        write_atomically(path, to_json(card), shared=True)
        print("\n".join(protocol.card_lines(card)), flush=True)


# ---- tables


def table_of(setting: str, cards: list[dict[str, Any]]) -> str:
    """Writes the Markdown table of a setting, the best row first."""
    head = [
        "method",
        "accuracy",
        "rate",
        "range of rates",
        "octaves",
        "v at its end",
        "predicted end",
    ]
    head += ["deviation", "kB up", "kB down", "ε spent", "collapsed at 2 × the rate"]
    lines = []
    for card in cards:
        found = card["settings"].get(setting, {})
        if "accuracy" not in found:
            continue
        lines.append((found["accuracy"], _line(card, found)))
    return markdown_table([head, *(line for _, line in sorted(lines, reverse=True))])


def _line(card: dict[str, Any], found: dict[str, Any]) -> list[str]:
    def shown(value: float | None, text: str) -> str:
        return "not defined" if value is None else format(value, text)

    doubled = {one["lr"]: one["collapsed"] for one in found["rates"]}.get(2 * found["rate"])
    numbers = [found["begin"], found["end"]]
    return [
        card["name"],
        f"{found['accuracy']:.3f} ({shown(found['low'], '.3f')} to {shown(found['high'], '.3f')})",
        f"{found['rate']:g}",
        " to ".join(f"{x:.2g}" for x in numbers) + (" or more" if found["cut_off"] else ""),
        f"{found['octaves']:.1f}",
        shown(found["output_variance"], ".2g"),
        shown(found["predicted_end"], ".2g"),
        shown(found["deviation"], ".2g"),
        f"{found['bytes_up'] / 1000:.1f}",
        f"{found['bytes_down'] / 1000:.1f}",
        "none certified" if found["epsilon"] is None else round_up(found["epsilon"], ".3f"),
        "not tried" if doubled is None else f"{doubled} of {len(found['by_seed'])}",
    ]


def main(act: str, *slugs: str) -> None:
    if act == "predict":
        CARDS.mkdir(exist_ok=True)
        predict().to_csv(PREDICTED, index=False, float_format="%.4g")
    elif act == "run":
        run(list(slugs))
    elif act == "show":
        for name in protocol.SETTINGS:
            print(f"{name}\n\n{table_of(name, load_cards())}\n")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
