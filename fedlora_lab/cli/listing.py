"""Lists the methods and describes a row in words."""

from typing import Any

import click

from fedlora_lab import methods

RULES = "start clip_groups clip_reference precondition filter penalty aggregate broadcast"
MOVES = {"AB": "A and B", "BA": "A and B", "R": "the core R", "*": "A or B, chosen layer by layer"}


def align_columns(rows: list[list[str]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of text as lines with columns of equal width; those in ``right`` are set flush right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    sides = [">" if i in right else "<" for i in range(len(widths))]
    return [
        "  ".join(f"{cell:{side}{w}}" for cell, side, w in zip(row, sides, widths)).rstrip()
        for row in rows
    ]


def own_rules(row: Any) -> str:
    """The rules in which a row differs from FedLoRA, the plain one."""
    plain = methods.table().loc["fedlora"]
    return ", ".join(str(row[f]) for f in RULES.split() if row[f] != plain[f]) or "–"


def describe_schedule(row: Any) -> str:
    """Who moves when, in words: "A and B", "B, then A, round by round", "…, step by step"."""
    rounds = [[MOVES.get(w, w) for w in part.split()] for part in str(row["train"]).split("|")]
    if len(rounds) == 1:
        return ", then ".join(rounds[0]) + (", step by step" if len(rounds[0]) > 1 else "")
    return ", then ".join(" and then ".join(words) for words in rounds) + ", round by round"


@click.command("methods")
def methods_command() -> None:
    """List the methods: what moves, what is sent, what is claimed, where it was published."""
    table: Any = methods.table()
    lines = [["name", "moves", "sends", "own rules", "exact", "source"]]
    for slug, row in table.iterrows():
        exact = "yes" if row["exact"] else "no"
        lines.append([slug, row["train"], row["share"], own_rules(row), exact, row["source"]])
    head, *body = align_columns(lines)
    click.echo(head)
    for line, note in zip(body, table["note"]):
        click.echo(f"{line}\n    {note}")
