"""The commands that train nothing."""

from pathlib import Path
from typing import Any

import click


@click.command(short_help="List the methods.")
def methods() -> None:
    """List the methods: what moves, what is sent, what is claimed, where it was published."""
    from fedlora_lab import methods as rows

    table: Any = rows.table()
    lines = [["name", "moves", "sends", "own rules", "exact", "source"]]
    lines += [
        [slug, row["train"], row["share"], own_rules(row), "yes" if row["exact"] else "no", row["source"]]
        for slug, row in table.iterrows()
    ]
    head, *body = aligned(lines)
    click.echo(head)
    for line, note in zip(body, table["note"]):
        click.echo(f"{line}\n    {note}")


def own_rules(row: Any) -> str:
    """The rules in which a row differs from FedLoRA, the plain one."""
    from fedlora_lab import methods as rows

    plain = rows.table().loc["fedlora"]
    fields = ("start", "parts", "clips", "whiten", "smooth", "penalty", "aggregate", "broadcast")
    return ", ".join(str(row[field]) for field in fields if row[field] != plain[field]) or "–"


def moves(row: Any) -> str:
    """Who moves when, in words: "A and B", "B, then A, round by round", "B, then A, step by step"."""
    names = {"AB": "A and B", "BA": "A and B", "R": "the core R", "*": "A or B, chosen layer by layer"}
    rounds = [[str(names.get(word, word)) for word in part.split()] for part in row["train"].split("|")]
    if len(rounds) == 1:
        return ", then ".join(rounds[0]) + (", step by step" if len(rounds[0]) > 1 else "")
    return ", then ".join(" and then ".join(words) for words in rounds) + ", round by round"


def aligned(rows: list[list[str]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of text as lines with columns of equal width; the columns in ``right`` are set flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:>{w}}" if i in right else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


@click.command(short_help="Write a run folder's report again.")
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write FOLDER/report.html again from what is in the run folder."""
    from fedlora_lab.folder import read_json
    from fedlora_lab.report import joint
    from fedlora_lab.report import report as write

    page = write(folder)
    for sentence in joint(folder, read_json(folder / "ledger.json")):
        click.echo(sentence)
    click.echo(f"report: {page}")


@click.command(short_help="Show what is installed and what is missing.")
def doctor() -> None:
    """Show what is installed, what runs here, and the command that adds what is missing."""
    from fedlora_lab import doctor as examine

    found = examine.findings()
    click.echo(examine.text(found))
    if not examine.healthy(found):
        raise SystemExit(1)
