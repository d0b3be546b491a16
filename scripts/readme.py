"""Fill the generated parts of README.md: a comparison's figure and table, the table of the methods, the speed.

    fedlora-lab compare digits --out runs/digits
    python scripts/readme.py runs/digits

The figure goes to docs/figures/digits.png, the numbers beside it to docs/figures/digits.csv; the test that compares
README.md with them reads that file.
"""

import io
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab import methods, plots
from fedlora_lab.cli.small import moves, own_rules
from fedlora_lab.files import write_atomically
from fedlora_lab.folder import Folder, read_frame
from fedlora_lab.plots.style import name, png
from fedlora_lab.summary import markdown, summary, words

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
NUMBERS = ROOT / "docs" / "figures" / "digits.csv"
SPEED = ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "figures" / "digits.png"


def linked(source: str) -> str:
    """arXiv ids as links."""
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[\1](https://arxiv.org/abs/\1)", source)


def methods_table() -> str:
    """One line for each row of the table of methods."""
    table: Any = methods.table()
    rows = [["method", "slug", "moves", "own rules", "exact mean", "arXiv", "in one line"]]
    rows += [
        [row["name"], f"`{slug}`", moves(row), own_rules(row), "yes" if row["exact"] else "no",
         linked(row["source"]), row["note"]]
        for slug, row in table.iterrows()
    ]  # fmt: skip
    return markdown(rows)


def results_table(table: pd.DataFrame) -> str:
    """The summary of a comparison, as the report shows it."""
    rows = [["method", "accuracy", "deviation", "ε", "sent up", "sent down"]]
    keys = ("score", "deviation", "epsilon", "up", "down")
    rows += [[name(row["method"]), *(row[key] for key in keys)] for row in words(table)]
    return markdown(rows)


def speed_part() -> str:
    """What benchmarks/results holds: the first table of its page, and the largest crowd of which a share takes part."""
    page, crowd = ((SPEED / name).read_text(encoding="utf-8") for name in ("README.md", "crowd.csv"))
    table = re.search(r"(?:^\|.*\n)+", page, re.M)
    assert table
    rows = pd.read_csv(io.StringIO(crowd)).to_dict("records")
    most = max((row for row in rows if row["who"].startswith("1 %")), key=lambda row: row["clients"])
    return (
        f"{table[0]}\n{most['clients']:,} clients, {most['who']} in a round, {most['rounds']} rounds of one step: "
        f"{most['seconds']:.0f} s of one\ncore and {most['MiB'] / 1024:.1f} GiB (`python -m benchmarks.crowd`)."
    )


def filled(text: str, parts: dict[str, str]) -> str:
    """The text with what stands between ``<!-- name -->`` and ``<!-- /name -->`` replaced."""
    for part, content in parts.items():
        pattern = re.compile(rf"(<!-- {part} -->\n).*?(<!-- /{part} -->)", re.S)
        assert pattern.search(text), part
        text = pattern.sub(lambda found, content=content: found[1] + content + "\n" + found[2], text)
    return text


def main() -> None:
    if len(sys.argv) > 1:
        frame = read_frame(Path(sys.argv[1]) / "frame.csv")
        assert Folder(sys.argv[1]).settings["seeds"] == [0, 1, 2]
        FIGURE.write_bytes(png(plots.overview(frame)))
        write_atomically(NUMBERS, summary(frame).to_csv(index=False), shared=True)
    table = pd.read_csv(NUMBERS)
    parts = {"methods": methods_table(), "results": results_table(table), "speed": speed_part()}
    write_atomically(README, filled(README.read_text(encoding="utf-8"), parts), shared=True)


if __name__ == "__main__":
    main()
