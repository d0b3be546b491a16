"""The report: one page that stands alone, shows what the frame holds, and lets no text of the data become markup."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from reports import HOSTILE, frame, ledgers, settings, written

import fedlora_lab as fl
from fedlora_lab.files import write_atomically
from fedlora_lab.folder import read_frame, to_json
from fedlora_lab.report import flat, joint, ledger_rows, promise, render, report, together

STRUCTURE = "html head meta title style body main div h1 h2 p ul li b span pre details summary dl dt dd"
TAGS = set(f"{STRUCTURE} table thead tbody tr th td figure figcaption img".split())


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_table_shows_mean_and_interval():
    data = frame()
    page = Reader(render(data, settings(), ledgers()))
    last = data.query("method == 'rolora' and measure == 'accuracy' and round == 4 and layer == 'all'")["value"]
    half = 4.302652729911275 * last.std(ddof=1) / np.sqrt(3)  # the 97.5 % point of Student's t with two degrees
    assert f"{last.mean():.3f} ± {half:.3f}" in page.text
    assert "RoLoRA" in page.text
    assert "1.5 MB" in page.text, "3e5 bytes in each of 5 rounds"


def test_every_figure_is_there_and_described():
    page = Reader(render(frame(), settings(), ledgers()))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [image["alt"].split(".")[0] for image in images] == [
        "Accuracy", "Loss", "Deviation", "Privacy spent", "Sent to the server", "Received from the server"
    ]  # fmt: skip
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in images)


def test_a_task_without_accuracy_and_without_privacy():
    data: Any = frame(seeds=(0,))
    data = data[data["measure"] != "accuracy"].copy()
    data.loc[data["measure"] == "epsilon", "value"] = np.inf
    plain = settings(seeds=(0,)) | {"privacy": None}
    page = Reader(render(data, plain, dict.fromkeys(ledgers(seeds=(0,)))))
    titles = [attributes["alt"].split(".")[0] for tag, attributes in page.tags if tag == "img"]
    assert titles == ["Loss", "Deviation"]
    assert "not private" in page.text
    assert "loss after" in page.text
    assert "±" not in page.text, "one seed has no interval"


def test_hostile_names_are_escaped():
    data = frame(task=HOSTILE, methods=(HOSTILE,))
    text = render(data, settings(HOSTILE, (HOSTILE,)), {HOSTILE: next(iter(ledgers().values()))})
    page = Reader(text)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert "<script" not in text.lower()
    assert page.text.count("<script>alert(1)</script>") >= 5, "the name is shown as what it is"


def test_page_stands_alone():
    text = render(frame(), settings(), ledgers())
    page = Reader(text)
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http://" not in text
    assert "https://" not in text
    assert not re.search(r"url\(|@import", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags


def test_same_run_same_page():
    assert render(frame(), settings(), ledgers()) == render(frame(), settings(), ledgers())


def test_promise_names_unit_trust_and_mode():
    whole = " ".join(promise(settings(), ledgers()))
    assert "one example of one client" in whole
    assert "every single upload" in whole
    assert "not for release" in whole
    assert "not for release" not in " ".join(promise(settings(), ledgers(reproducible=False)))
    client = settings()
    client["privacy"] |= {"unit": "client", "trust": "central"}
    whole = " ".join(promise(client, ledgers()))
    assert "all examples of one client" in whole
    assert "is trusted" in whole
    assert "nothing is promised" in promise(settings() | {"privacy": None}, {})[0]


def test_an_uncertified_ledger_says_why():
    sealed = fl.Privacy(noise_multiplier=0.8, sample_rate=0.1, delta=1e-4).ledger(releases=20)
    sealed.uncertified = "the noise does not match the sensitivity"
    page = Reader(render(frame(), settings(), {"deer-literal-0": json.loads(sealed.to_json())}))
    assert "not private (the noise does not match the sensitivity)" in page.text


def of(releases: int = 20, reproducible: bool = True, **fields: Any) -> fl.Ledger:
    """The ledger of a run on three clients."""
    plan = fl.Privacy(**{"noise_multiplier": 0.8, "sample_rate": (0.1, 0.2, 0.1), "delta": 1e-4, **fields})
    return plan.ledger(releases=releases, reproducible=reproducible)


def test_runs_on_the_same_data_are_added_up():
    """Three runs of 20 releases are 60; runs with seeds are added as if they were released; one run needs no sum."""
    (line,) = together([of()] * 3)
    assert line.startswith(f"All 3 runs together, if they were all released: epsilon = {of(60).epsilon():.4g} at delta")
    assert of(60).epsilon() > 1.3 * of().epsilon()
    assert "against the server" in line and "zero-out" in line
    released, everything, plain = together([of(reproducible=False), of(reproducible=False), of(), None])
    assert released.startswith("All 2 runs without a seed") and f"epsilon = {of(40).epsilon():.4g} " in released
    assert everything.startswith("All 3 runs together") and f"epsilon = {of(60).epsilon():.4g} " in everything
    assert plain.startswith("Runs without privacy, 1 here, cut short or cleared away ones included, promise nothing")
    assert together([of(), None]) == [plain] and together([None, None]) == [plain.replace("1 here", "2 here")]
    assert together([of()]) == together([]) == []
    assert "no epsilon can be stated (delta=" in together([of(), of(delta=1e-5)])[0]
    unsure = of()
    unsure.uncertified = "the noise does not match"
    assert "not certified: the noise does not match" in together([of(), unsure])[0]


def test_every_row_of_the_ledger_names_relation_and_observer():
    central = fl.Privacy(unit="client", noise_multiplier=1.0, sample_rate=0.2, delta=1e-4).ledger(releases=3)
    shares = fl.Privacy(unit="client", noise_multiplier=1.0, trust="secagg", sample_rate=1.0, delta=1e-4).ledger(
        releases=3
    )
    books = {"a-0": of(), "b-0": central, "c-0": shares}
    rows = ledger_rows({name: json.loads(book.to_json()) for name, book in books.items()} | {"d-0": None})
    assert [row["observer"] for row in rows] == ["server", "released", "server", "–"]
    assert [row["relation"] for row in rows] == ["zero-out"] * 3 + ["–"]
    assert rows[2]["epsilon"] == f"{shares.epsilon():.3f}" != rows[1]["epsilon"]
    page = Reader(render(frame(), settings(), ledgers(), together([of()] * 3)))
    assert "zero-out" in page.text and f"epsilon = {of(60).epsilon():.4g} " in page.text


def test_settings_are_flattened_with_short_numbers():
    assert dict(flat({"a": {"b": [0.123456789], "c": None}, "d": {}})) == {"a.b": "[0.12346]", "a.c": "null", "d": "{}"}


def test_report_reads_the_folder(tmp_path):
    path = written(tmp_path)
    assert path == tmp_path / "report.html"
    again = render(read_frame(tmp_path / "frame.csv"), settings(), ledgers(), joint(tmp_path, ledgers()))
    assert path.read_text(encoding="utf-8") == again


def test_report_needs_a_finished_cell(tmp_path):
    with pytest.raises(ValueError, match="expected a run folder"):
        report(tmp_path)
    write_atomically(tmp_path / "settings.json", to_json(settings()))
    with pytest.raises(ValueError, match="at least one finished cell"):
        report(tmp_path)


def test_what_a_release_hides_is_a_dash():
    """In release mode who took part stays hidden: bytes and seconds are dashes in the table, and figures say so."""
    from fedlora_lab import report
    from fedlora_lab.summary import summary, words

    task, plan = fl.tasks.digits(clients=4, seed=1), fl.Plan(rounds=2, local_steps=1, participation=0.5)
    privacy = fl.Privacy(unit="client", delta=1e-2).calibrate(epsilon=8, task=task, plan=plan)
    frame = fl.to_frame(fl.run(task, "fedlora", privacy, plan, seed=None))
    row = words(summary(frame))[0]
    assert [row[name] for name in ("up", "down", "seconds", "deviation")] == ["–"] * 4
    assert "Sent to the server" not in [figure["title"] for figure in report.figures(frame)]
