"""Runs beside a run, on the same rows or others: what they spend together is said."""

import re

import numpy as np
import pytest
import toy_hubs
from calls import Options
from reports import settings as report_settings

import fedlora_lab as fl
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.report.neighbours import Neighbours
from fedlora_lab.report.run_folder import Folder, to_json

RUN: Options = {"rounds": 2, "local_steps": 1, "accountant": "rdp", "by": "site"}
RUN |= {"text": "text", "label": "label", "labels": ["kind", "harsh"], "lr": 0.1}


def tuned(folder, table, **options):
    """A short run, and what it said, each line with single blanks."""
    lines: list[str] = []
    model = toy_hubs.folder("bert")
    result = fl.finetune(model, table, out=folder, say=lines.append, **RUN | options)
    return result, "\n".join(" ".join(line.split()) for line in lines)


def total(*results):
    """What some runs spend together, as sentences have it."""
    spent = fl.Ledger.compose(*(run.ledger for run in results)).epsilon()
    return f"epsilon = {round_up(spent, '.4g')}"


@pytest.mark.slow
def test_runs_beside_a_run_are_counted_with_it(tmp_path, monkeypatch):
    """On the same rows, also in a folder that was moved and under a link; the sum is printed before
    and after, stands beside the adapter and in the report. A run that could go on is offered."""
    monkeypatch.chdir(tmp_path)
    table = toy_hubs.texts(40)
    first, said = tuned("runs/first", table)
    assert "\nspent" not in said and not first.notes
    (tmp_path / "runs/first").rename(tmp_path / "runs/moved")
    (tmp_path / "runs/link").symlink_to(tmp_path / "runs/moved")
    again, said = tuned("runs/again", table, epsilon=4)
    assert f"spent ε {first.record.epsilon:.3g} in runs/link, on the same rows" in said
    assert "instead" not in said, "another epsilon goes on with nothing"
    together = total(first, again)
    page = fl.report.report(again.folder).read_text("utf-8")
    card, promise = (
        (again.folder / "adapter" / name).read_text() for name in ("README.md", "PRIVACY.md")
    )
    for text in (said, again.notes[0], page, card, promise):
        assert together in text and "here and, on the same rows, in link beside it" in text
    _, said = tuned("runs/third", table)
    assert "instead out='runs/link' is this very run, finished: spends nothing" in said
    _, said = tuned("runs/fourth", table, rounds=3, max_epsilon=7.0)
    last, said = tuned("runs/fifth", table, rounds=3)
    stopped = r"^fourth beside it: rolora, seed none: stopped after round [12] of 3\. The same call"
    assert any(re.match(stopped, note) for note in last.notes)
    assert re.search("instead out='runs/fourth' is this very run, stopped after round [12]: ", said)


def test_the_same_rows_are_one_client_whatever_its_site_is_called(tmp_path):
    for place in ("first", "then"):
        folder = Folder(tmp_path / place)
        book = fl.Ledger(reproducible=False)
        book.record(1, [0, 1], 4, sample_rate=1.0, noise_multiplier=[2.0, 8.0])
        book.save(folder.cell("fedlora", None) / "ledger.json")
        content = report_settings(methods=["fedlora"], seeds=[None])
        content["task"]["fingerprint"] = folder.keyed_fingerprint("rows")
        (folder.path / "settings.json").write_text(to_json(content))
    truth = fl.Ledger()
    truth.record(1, None, 8, sample_rate=1.0, noise_multiplier=2.0)
    spent = Neighbours.of(tmp_path / "here", "rows").spent()
    assert spent == pytest.approx(truth.epsilon())


@pytest.mark.slow
def test_what_cannot_be_known_again_is_said(tmp_path):
    """A table that was sorted otherwise or has further rows, a folder that cannot be read, and one
    without its key are not taken for none."""
    table = toy_hubs.texts(40)
    tuned(tmp_path / "first", table)
    for name, other in {"sorted": table[::-1], "larger": toy_hubs.texts(44)}.items():
        tuned(tmp_path / name / "run", other)
        (tmp_path / name / "run").rename(tmp_path / f"then-{name}")
    last, said = tuned(tmp_path / "last", table)
    assert "Releases of other rows, or of these in another split, lie in" in said
    assert "On rows that they share with this run all together spend more than is stated" in said
    (tmp_path / "first/private/key").unlink()
    (tmp_path / "then-larger/checkpoints/rolora-release/ledger.json").write_text("{}")
    beside = Neighbours.of(last.folder, "of no rows here")
    assert not beside.same and str(tmp_path / "first") in beside.others
    sentences = "\n".join(beside.statements(Folder(last.folder), last.frame))
    assert "then-larger cannot be read (ledger.json: expected" in sentences
    # Lost files count as little for nothing spent.
    (tmp_path / "then-larger/checkpoints/rolora-release/ledger.json").unlink()
    (tmp_path / "then-sorted/settings.json").unlink()
    lost = Neighbours.of(last.folder, "of no rows here").unreadable
    assert lost.keys() == {str(tmp_path / "then-larger"), str(tmp_path / "then-sorted")}
    assert not (tmp_path / "first/private/key").exists(), "nothing is written beside a run"


@pytest.mark.slow
def test_a_fresh_run_is_added_whatever_order_its_rows_have(tmp_path):
    table = toy_hubs.texts(40).assign(who=np.arange(40) % 20)
    table["site"] = table["who"] % 2
    first, _ = tuned(tmp_path, table, person="who")
    again, _ = tuned(tmp_path, table, person="who", fresh=True)
    assert total(first, again) in again.notes[0]
    other, _ = tuned(tmp_path, table[::-1], person="who", fresh=True)
    assert total(first, again, other) in other.notes[0]
