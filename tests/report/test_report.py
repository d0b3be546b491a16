"""The report: one page that stands alone and shows what the frame holds. That no name becomes
markup: test_no_surprises.py."""

import json
import re
from typing import Any

import numpy as np
import pytest
from reports import Reader, frame, ledgers, settings, write_folder

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.report import html_page
from fedlora_lab.report.html_page import (
    composed_spending,
    ledger_rows,
    privacy_statement,
    render,
    report,
)
from fedlora_lab.report.run_folder import first_difference, read_frame, to_json


@pytest.fixture(scope="module")
def text():
    return render(frame(), settings(), ledgers())


@pytest.fixture(scope="module")
def page(text):
    return Reader(text)


def figures_of(page: Reader) -> list[str]:
    return [attributes["alt"].split(".")[0] for tag, attributes in page.tags if tag == "img"]


@pytest.mark.slow
def test_table_and_every_figure(page):
    whole = "method == 'rolora' and measure == 'accuracy' and round == 4 and layer == 'all'"
    last = frame().query(whole)["value"]
    half = 4.302652729911275 * last.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees, 97.5 %
    assert f"{last.mean():.3f} ± {half:.3f}" in page.text and "RoLoRA" in page.text
    assert "1.5 MB" in page.text, "3e5 bytes in each of 5 rounds"
    traffic = ["Sent to the server", "Received from the server"]
    assert figures_of(page) == ["Accuracy", "Loss", "Deviation", "Privacy spent", *traffic]


def test_a_task_without_accuracy_and_without_privacy():
    data: Any = frame(seeds=(0,))
    data = data[data["measure"] != "accuracy"].copy()
    data.loc[data["measure"] == "epsilon", "value"] = np.inf
    plain, none = settings(seeds=(0,)) | {"privacy": None}, dict.fromkeys(ledgers(seeds=(0,)))
    page = Reader(render(data, plain, none))
    assert figures_of(page) == ["Loss", "Deviation"]
    assert "not private" in page.text and "loss after" in page.text
    assert "±" not in page.text, "one seed has no interval"


@pytest.mark.slow
def test_page_stands_alone(text, page):
    """It loads nothing, fits a phone, and shows settings with short numbers."""
    found = dict(html_page.flatten_settings({"a": {"b": [0.123456789], "c": None}, "d": {}}))
    assert found == {"a.b": "[0.12346]", "a.c": "null", "d": "{}"}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|url\(|@import", text)
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert ("meta", viewport) in page.tags


@pytest.mark.slow
def test_same_run_same_page(tmp_path):
    path = write_folder(tmp_path)
    data, spent = read_frame(tmp_path / "frame.csv"), html_page.folder_spending(tmp_path, ledgers())
    again = render(data, settings(), ledgers(), spent)
    assert path.read_text(encoding="utf-8") == again


def test_promise_names_unit_trust_and_mode():
    seeded, released = (
        " ".join(privacy_statement(settings(), ledgers(reproducible=r))) for r in (True, False)
    )
    assert "one example of one client" in seeded and "every single upload" in seeded
    assert "not for release" in seeded and "not for release" not in released
    client = settings()
    client["privacy"] |= {"unit": "client", "trust": "central"}
    unit, trust, *_ = privacy_statement(client, ledgers())
    assert "all examples of one client" in unit and "is trusted" in trust
    assert "nothing is promised" in privacy_statement(settings() | {"privacy": None}, {})[0]


def of(releases: int = 20, reproducible: bool = True, **fields: Any) -> fl.Ledger:
    """The ledger of a run on three clients."""
    plan: Any = {"noise_multiplier": 0.8, "sample_rate": (0.1, 0.2, 0.1), "delta": 1e-4, **fields}
    return fl.Privacy(**plan).ledger(releases=releases, reproducible=reproducible)


@pytest.mark.slow
def test_runs_on_the_same_data_are_added_up():
    """Three runs of 20 releases are 60; runs with seeds are added as if they were released; one run
    needs no sum."""
    (line,) = composed_spending([of()] * 3)
    spent = f"epsilon = {of(60).epsilon():.4g} at delta"
    assert line.startswith(f"All 3 runs together, if they were all released: {spent}")
    assert of(60).epsilon() > 1.3 * of().epsilon()
    assert "against the server" in line and "zero-out" in line
    both = [of(reproducible=False)] * 2
    released, everything, plain = composed_spending([*both, of(), None])
    assert released.startswith("All 2 runs without a seed")
    assert f"epsilon = {of(40).epsilon():.4g} " in released
    assert everything.startswith("All 3 runs together")
    assert f"epsilon = {of(60).epsilon():.4g} " in everything
    gone = "including interrupted and deleted ones) promise nothing"
    assert plain.startswith(f"Runs without privacy (1 here, {gone}")
    assert composed_spending([of(), None]) == [plain]
    assert composed_spending([None, None]) == [plain.replace("1 here", "2 here")]
    assert composed_spending([of()]) == composed_spending([]) == []
    assert "no epsilon can be stated (delta=" in composed_spending([of(), of(delta=1e-5)])[0]
    unsure = of()
    unsure.uncertified = "the noise does not match"
    assert "not certified: the noise does not match" in composed_spending([of(), unsure])[0]


def test_every_row_of_the_ledger_names_relation_and_observer():
    summed = of(3, trust="secagg", sample_rate=1.0, unit="client", noise_multiplier=1.0)
    unsure = of()
    unsure.uncertified = "the noise does not match"
    books = {"plain": of(), "summed": summed, "unsure": unsure}
    rows = ledger_rows({k: json.loads(x.to_json()) for k, x in books.items()} | {"none": None})
    assert [row["observer"] for row in rows] == ["server", "server", "server", "–"]
    assert [row["relation"] for row in rows] == ["zero-out"] * 3 + ["–"]
    assert rows[1]["epsilon"] == f"{summed.epsilon():.3f}"
    assert rows[2]["epsilon"] == "not private (the noise does not match)"


@pytest.mark.slow
def test_a_report_states_what_attackers_reach():
    """Of the run that hides least; of runs without a certified epsilon nothing."""
    weak, unsure = of(noise_multiplier=0.5), of()
    unsure.uncertified = "the noise does not match"
    texts = {k: json.loads(x.to_json()) for k, x in (("a", of()), ("b", weak), ("c", unsure))}
    rows = ledger_rows(texts | {"none": None})
    found = f"{weak.advantage():.2g} · {weak.tradeoff(0.01):.2g} · {weak.tradeoff(0.001):.2g}"
    assert rows[1]["found"] == found != rows[0]["found"]
    assert [row["found"] for row in rows[2:]] == ["–", "–"]
    (said,) = html_page.attack_bounds(texts | {"none": None})
    assert f"advantage at most {weak.advantage():.2g}; " in said
    assert f"at most {weak.tradeoff(0.01):.2g} where 1 %" in said
    assert html_page.attack_bounds({"c": texts["c"], "none": None}) == []


def test_report_needs_a_finished_cell(tmp_path):
    with pytest.raises(ValueError, match=r"folder=.*: expected a run folder \(with settings"):
        report(tmp_path)
    write_atomically(tmp_path / "settings.json", to_json(settings()))
    with pytest.raises(ValueError, match=r"folder=.*: expected at least one finished cell"):
        report(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b is 1 there and 2 now"),
        ({"a": 1}, {}, "a is 1 there and null now"),
        ([1.0, 2.0], [1.0, 2.0 + 1e-12], None),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.1]}, "a is [1.0, 2.0] there and [1.0, 2.1] now"),
    ],
)
def test_first_difference_names_the_place(old, new, line):
    assert first_difference(old, new) == line
