"""What a run of `fl.finetune` leaves and says tells of a person's rows only what is noised."""

import os
import random
import re
import warnings

import numpy as np
import pytest
import toy_hubs
from calls import Options

import fedlora_lab as fl
from fedlora_lab._utils import random_streams

SHORT: Options = {"rounds": 1, "local_steps": 1, "accountant": "rdp", "lr": 0.0}
"""At this rate whatever is noised stays as it was: all that is stored must then be equal."""
LONG = " ".join(toy_hubs.WORDS * 2)
TEXT: Options = {"text": "text", "label": "label", "labels": ["kind", "harsh"], "max_length": 6}
IMAGES: Options = {"image": "image", "label": "label", "labels": [0, 1, 2]}
PROMPTS: Options = {"prompt": "question", "answer": "answer", "max_length": 16}
OTHER = {
    "bert": {"text": LONG, "label": "harsh"},
    "vit": {"image": np.zeros((30, 4, 3), np.uint8), "label": 2},
    "llama": {"answer": LONG},
}
"""Cells of the row that is another one."""


def others(kind, unit):
    """A table, and one in which the first person, or row, is another."""
    table = {"bert": toy_hubs.texts, "vit": toy_hubs.images, "llama": toy_hubs.questions}[kind](40)
    table["who"] = np.arange(40) % 20
    table["site"] = table["who"] % 2
    changed = table.copy()
    first = table.index[table["who"] == 0] if unit == "person" else table.index[:1]
    for row in first:
        for column, value in OTHER[kind].items():
            changed.at[row, column] = value
    if unit == "person":  # and has many more rows
        changed = changed.iloc[[*first] * 5 + [*range(40)]]
    if unit == "client":
        changed = changed[::-1].reset_index(drop=True)
        changed["site"] = table["site"]
    return table, changed


def released(folder):
    """File -> content of all that is not private, but for dates and digests."""
    content = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "private" not in path.parts:
            text = re.sub(rb"[0-9a-f]{64}", b"DIGEST", path.read_bytes())
            text = text.replace(os.fsencode(folder), b"FOLDER")
            content[str(path.relative_to(folder))] = re.sub(
                rb"\d{4}-\d\d-\d\d( \d\d:\d\d)?", b"DATE", text
            )
    return content


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "unit", "options", "finished"),
    [
        ("bert", "person", TEXT | {"clients": 2, "test": 0.2}, False),
        ("bert", "client", TEXT | {"by": "site"}, True),
        ("vit", "example", IMAGES, False),
        ("llama", "person", PROMPTS | {"by": "site"}, True),
    ],
)
def test_files_and_lines_of_neighbours_are_equal(
    tmp_path, monkeypatch, kind, unit, options, finished
):
    """A number of cut texts, of equal or empty rows, a length, a count of classes, a time; also of
    a task that was made before."""
    given: Options = {"person": "who", **options} if unit == "person" else options
    stated = []
    for name, table in zip(("one", "two"), others(kind, unit)):
        folder = tmp_path / name / "run"  # so that neither lies beside the other
        lines: list[str] = []
        run: Options = {"out": folder, "say": lines.append, "unit": unit} | SHORT
        model = toy_hubs.folder(kind)
        # Equal noise in both runs: what differs is what no noise hides.
        monkeypatch.setattr(random_streams.os, "urandom", random.Random(0).randbytes)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if finished:
                builder = fl.tasks.prompts if kind == "llama" else fl.tasks.hub
                held_out: Options = {"test": 0.2, **given}
                result = fl.finetune(builder(model, table, **held_out), **run)
            else:
                result = fl.finetune(model, table, **given, **run)
        fl.report.report(folder)
        said = [*lines, repr(result), *result.notes, *(str(w.message) for w in caught)]
        files = released(folder)
        assert fl.Ledger.load(folder / "adapter/ledger.json").mode == "release"
        assert {"report.html", "settings.json", "frame.csv", "adapter/README.md"} <= files.keys()
        stated.append(([line.replace(str(folder), "FOLDER") for line in said], files))
    assert stated[0][0] == stated[1][0]
    assert [*stated[0][1]] == [*stated[1][1]]
    for name, content in stated[0][1].items():
        assert content == stated[1][1][name], name
