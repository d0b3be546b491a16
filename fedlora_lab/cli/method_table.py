"""The table of methods as text, and a row's rules in words."""

from typing import Any

import click

import fedlora_lab as fl
from fedlora_lab.report.summary_table import align_columns

RULE_FIELDS = (
    "start", "clip_groups", "clip_reference", "precondition", "filter", "penalty", "aggregate",
    "broadcast",
)  # fmt: skip
"""Columns of `fl.methods.table` that hold a rule."""
MOVES = {"AB": "A and B", "BA": "A and B", "R": "the core R", "*": "A or B, chosen layer by layer"}


def method_lines() -> list[str]:
    """Lists the methods: what each trains and sends, what it claims, where it was published."""
    rows = [["name", "moves", "sends", "exact", "source"]]
    notes = []
    for slug, row in fl.methods.table().iterrows():
        exact = "yes" if row["exact"] else "no"
        rows.append([str(slug), str(row["train"]), str(row["share"]), exact, str(row["source"])])
        rules = own_rules(row)
        notes.append(f"{row['note']}. Rules: {rules}" if rules else str(row["note"]))
    head, *body = align_columns(rows)
    lines = [head]
    for line, note in zip(body, notes, strict=True):
        lines += [line, click.wrap_text(note, 100, "    ", "    ")]
    return lines


def own_rules(row: Any) -> str:
    """Names the rules in which a row of the table differs from FedLoRA, the plain one."""
    plain = fl.methods.table().loc["fedlora"]
    there = [name for name in RULE_FIELDS if name in row]
    return ", ".join(str(row[name]) for name in there if row[name] != plain[name])


def describe_schedule(row: Any) -> str:
    """Says who moves when: "A and B", "B, then A, round by round", "…, step by step"."""
    rounds = [
        [MOVES.get(word, word) for word in part.split()] for part in str(row["train"]).split("|")
    ]
    if len(rounds) == 1:
        steps = rounds[0]
        return ", then ".join(steps) + (", step by step" if len(steps) > 1 else "")
    return ", then ".join(" and then ".join(steps) for steps in rounds) + ", round by round"
