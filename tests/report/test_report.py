"""The report: one page that stands alone and shows what the frame holds. That no name becomes
markup: test_no_surprises.py."""

import json
import re
from typing import Any

import numpy as np
import pytest
from reports import Reader, frame, ledgers, settings

from fedlora_lab.report.page import render, report


@pytest.fixture(scope="module")
def text():
    return render(frame(), settings(), ledgers())


@pytest.fixture(scope="module")
def page(text):
    return Reader(text)


def figures_of(page):
    return [attributes["alt"].split(".")[0] for tag, attributes in page.tags if tag == "img"]


@pytest.mark.slow
def test_table_and_every_figure(page):
    rows = "method == 'rolora' and measure == 'accuracy' and round == 4 and layer == 'all'"
    last = frame().query(rows)["value"]
    half = 4.302652729911275 * last.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees, 97.5 %
    assert f"{last.mean():.3f} ± {half:.3f}" in page.text and "RoLoRA" in page.text
    assert "8.0 kB" in page.text, "2000 bytes in each of 4 rounds"
    assert figures_of(page) == ["Accuracy", "Loss", "Deviation", "Privacy spent"]
    assert "fedlora_lab 0.1.0 (CITATION.cff)" in page.text and "rolora, digits." in page.text


def test_a_task_without_accuracy_and_without_privacy():
    data: Any = frame(seeds=(0,))
    data = data[data["measure"] != "accuracy"].copy()
    data.loc[data["measure"] == "epsilon", "value"] = np.inf
    plain = settings(seeds=(0,)) | {"privacy": None}
    page = Reader(render(data, plain, dict.fromkeys(ledgers(seeds=(0,)))))
    assert figures_of(page) == ["Loss", "Deviation"]
    assert "not private" in page.text and "loss after" in page.text
    assert "nothing is promised" in page.text
    assert "±" not in page.text, "one seed has no interval"


@pytest.mark.slow
def test_page_stands_alone(text, page):
    """It loads nothing, fits a phone, and holds no date."""
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", text)
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert ("meta", viewport) in page.tags
    assert render(frame(), settings(), ledgers()) == text, "the same run gives the same page"


@pytest.mark.parametrize("kind", ["link", "hard link", "link to nothing", "link to a folder"])
def test_nothing_is_written_through_a_link(tmp_path, kind):
    """In a folder from elsewhere report.html may lead to any file of the reader's."""
    folder, mine = tmp_path / "run", tmp_path / "mine"
    folder.mkdir()
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    frame().to_csv(folder / "frame.csv", index=False)
    (folder / "settings.json").write_text(json.dumps(settings()))
    page = folder / "report.html"
    if kind == "hard link":
        page.hardlink_to(mine / "thesis.tex")
    else:
        names = {"link": "thesis.tex", "link to nothing": "new.html", "link to a folder": "."}
        page.symlink_to(mine / names[kind])
    assert report(folder) == page and "Result" in page.read_text("utf-8")
    assert not page.is_symlink() and (mine / "thesis.tex").read_text() == "mine"
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
