"""Rows are immutable data, schedules repeat, the table says what the rows say and was measured."""

import ast
import math
from typing import Any

import pytest
from calls import refused
from places import ROOT

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.published import measured_properties


def test_rows_are_hashable_and_found_by_their_slug():
    assert len({*methods.ALL.values()}) == len(methods.ALL) >= 20
    assert all(row.slug == slug and methods.get(slug) is row for slug, row in methods.ALL.items())
    assert all(row.source and row.note for row in methods.ALL.values())
    for name in ("", "---", None):
        with refused(r"^name=.*: expected a name with a letter or digit"):
            Method(name, "nowhere")  # type: ignore[arg-type]


@pytest.mark.parametrize("room", ["methods", "privacy", "lora", "tasks", "federated"])
def test_no_room_knows_a_method_by_name(room):
    """The core compares nothing with a slug or name, and looks nothing up by one."""
    names = {word for row in methods.ALL.values() for word in (row.slug, row.name)}
    names -= {"local"}  # a word of trust as well
    for path in sorted((ROOT / "fedlora_lab" / room).glob("**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Compare, ast.Subscript, ast.MatchValue)):
                constants = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
                assert not names & constants, path
            if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute):
                assert node.left.attr != "slug", path


@pytest.mark.parametrize("row", methods.ALL.values(), ids=list(methods.ALL))
def test_a_changed_row_carries_no_source_note_or_claim_of_another(row):
    """Nor does one whose rule changed under the old name; what is given is kept, and a change of
    the claims alone, or none, keeps the others.
    """
    other = fl.Cycle(("A", "B"))
    for changed in (row.replace(name="mine"), row.replace(schedule=other)):
        assert (changed.source, changed.exact) == ("", False)
        assert changed.note == f"derived from {row.name}"
        shown = fl.methods.table([changed]).iloc[0]
        assert not shown["exact"] and "arXiv" not in shown["source"] + shown["note"]
    given = row.replace(name="mine", source="my paper", exact=True, note="new")
    assert (given.source, given.exact, given.note) == ("my paper", True, "new")
    assert row.replace(schedule=row.schedule, name=row.name) == row == row.replace()
    assert row.replace(note="short").source == row.source


def test_the_table_is_the_rows():
    table: Any = fl.methods.table()
    assert list(table.index) == list(methods.ALL)
    for slug, column, expected in (
        ("rolora", "schedule", "B | A"),
        ("local", "uploaded_factors", "nothing"),
        ("deer", "precondition", "product_space"),
        ("la-lora", "filter", "Binomial(taps=5)"),
    ):
        assert table.loc[slug, column] == expected, slug
    mine = methods.FedLoRA.replace(name="mine", schedule=lambda t, s: "B", uploaded_factors="B")
    row = fl.methods.table([mine]).loc["mine"]
    assert (row["schedule"], row["uploaded_factors"]) == ("<lambda>", "B")
    assert math.isnan(row["up"])


def test_show_opens_functions_classes_and_methods():
    """Without docstrings; a thing without a source is refused in a line."""
    for thing, start, holds in (
        (fl.theory.noise_factor, "def noise_factor(", "return"),
        (fl.Ledger, "class Ledger", "def epsilon("),
        ("la-lora", "Method(", "class Binomial"),
    ):
        text = repr(fl.show(thing))
        assert text.startswith(start) and holds in text
        assert thing == "la-lora" or '"""' not in text, f"{start} keeps a docstring"
        compile(text, start, "exec")
    with refused(r"^thing=.*: expected a method's slug or row, or a "):
        fl.show(len)


def test_what_was_measured_are_rows_and_exact_rows_are_exact():
    found = measured_properties()["methods"]
    table = fl.methods.table()
    assert {*found} <= {*methods.ALL} and len(found) >= 20
    formed: Any = table.dropna(subset="deviation")
    assert len(formed) >= 18
    assert list(formed.index[formed["deviation"] < 1e-5]) == list(formed.index[formed["exact"]])
