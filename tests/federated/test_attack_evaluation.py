"""Attacks on what is scored and recorded: nothing private is scored outside the ledger, or told."""

import json
import math
import pickle
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from flower_runs import by_messages, protected
from torch import Tensor, nn
from toy_tasks import (
    LORA,
    PERSONS,
    PLAN,
    other_data,
    people,
    play,
    private,
    tensors,
    tokens,
)

import fedlora_lab as fl
from fedlora_lab.flower import InProcessGrid, SimulatedClients, client_app, open_run, rounds
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.methods.quantization import normal_float
from fedlora_lab.report.summary_table import summary

pytestmark = pytest.mark.attack
QUANTISED = FedLoRA.replace(name="quantised", broadcast=normal_float(width=4, block=8))
KEEPS_B = FedLoRA.replace(name="keeps B", share="A")


def watched(public: bool, seen: list[int]) -> Any:
    """A task that knows how often its test examples were scored."""
    task = tokens()

    def score(outputs: Tensor, y: Tensor) -> Tensor:
        seen.append(len(y))
        return task.metrics["accuracy"](outputs, y)

    def undefined(kept: Tensor, y: Tensor) -> float:
        seen.append(len(y))
        return math.nan

    whole = fl.tasks.OverAll(undefined)
    metrics = {"accuracy": score, "loss": task.metrics["loss"], "whole": whole}
    return replace(task, metrics=metrics, public_test=public)


class Strict(nn.Module):
    """Texts of which all must have equally many marks, and none a word that it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.map = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if (x == 9).sum(1).unique().numel() > 1:
            raise ValueError("All examples must have the same number of <eos> tokens.")
        return torch.tanh(self.map(self.words(x))).mean(1)


@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("word", [9, 12], ids=["beside others", "alone"])
def test_no_example_stops_a_run(unit, word):
    """One that raises beside others is as if alone; one that raises alone counts as zero."""
    torch.manual_seed(0)
    x = torch.arange(48).reshape(12, 4) % 8
    y = torch.arange(12) % 3
    x[0, 0] = word
    pairs = [(x[:4], y[:4]), (x[4:8], y[4:8])]
    options: dict[str, Any] = {"test": (x[8:], y[8:]), "targets": ["map"]}
    task = fl.tasks.classification(Strict().double(), pairs, **options)
    parts = task, FedLoRA, protected(unit), PLAN.replace(batch=None)
    last = play(*parts)[-1]
    for other in (play(*parts, chunk_examples=1)[-1], by_messages(*parts)[-1]):
        for key, value in tensors(last).items():
            torch.testing.assert_close(value, tensors(other)[key], atol=1e-12, rtol=1e-5)
    assert last.nonfinite == (0 if word == 9 else PLAN.local_steps)
    with pytest.raises((ValueError, IndexError)):
        play(*parts[:2], None, parts[3])


def test_no_measure_of_a_private_run_looks_at_private_rows():
    """Sharpness, gradients and scores of a finished run were told unasked."""
    task = replace(tokens(), public_test=False)

    def measured(privacy: fl.Privacy | None) -> list[Any]:
        watched_row, seen = fl.measures.record_aggregation(QUANTISED)
        last = play(task, watched_row, privacy)[-1]
        return [
            lambda: fl.measures.flatness(task, last),
            lambda: fl.measures.gradients(task, last, task.targets[0]),
            lambda: fl.course.lesson(8).model_protection(last, QUANTISED, seen, last=2),
        ]

    words = r"^public_test=False: expected True: of a private run only public"
    for measure in measured(private("example")):
        with pytest.raises(ValueError, match=words):
            measure()
    assert all(measure() is not None for measure in measured(None))


@pytest.mark.parametrize(
    ("row", "unit", "seed"),
    [
        (FedLoRA, "example", 0),
        (QUANTISED, "client", None),
        (KEEPS_B, "example", None),
        (KEEPS_B, "client", 0),
    ],
    ids=lambda x: getattr(x, "slug", x),
)
def test_private_test_examples_are_never_judged_under_privacy(row, unit, seed):
    """Without privacy everything may be scored, and public examples always."""
    seen: list[int] = []
    names = {"accuracy", "loss", "whole"}
    names |= {f"{name}_received" for name in names} if row is QUANTISED else set()
    for record in play(watched(False, seen), row, private(unit), seed=seed):
        assert set(record.metrics) == names
        assert all(math.isnan(value) for value in record.metrics.values())
    assert seen == []
    for public, privacy in ((False, None), (True, private("example"))):
        seen.clear()
        play(watched(public, seen), row, privacy, seed=seed)
        assert seen


@pytest.mark.parametrize("row", ["fedlora", KEEPS_B], ids=["fedlora", "keeps B"])
def test_over_messages_private_test_examples_are_not_judged_either(row):
    """Nor are models of which clients keep a part, whose scores only they could tell."""
    seen: list[int] = []
    records = by_messages(watched(False, seen), row, protected("example"), PLAN)
    assert seen == [] and all(math.isnan(v) for r in records for v in r.metrics.values())


TOLD = ("participants", "numbers_up", "bytes_up", "numbers_down", "bytes_down")


def test_records_do_not_tell_who_took_part():
    """Where epsilon counts on it: numbers and bytes of a round grow with how many did."""
    plan = PLAN.replace(rounds=3, participation=0.5)
    central = private("client", trust="central")
    records = play(tokens(), "fedlora", central, plan, seed=None)
    assert all(math.isnan(record.measures()[name]) for record in records for name in TOLD)
    table = fl.to_frame(records)
    assert table.loc[table["measure"].isin(TOLD), "value"].isna().all()
    for privacy, work, seed in (
        (central, plan, 0),  # may be drawn again by anyone who knows the seed
        (central, plan.replace(participation=1.0), None),
        (
            private("client", trust="secagg"),
            plan,
            None,
        ),  # the noise tells
    ):
        others = play(tokens(), "fedlora", privacy, work, seed=seed)
        assert all(math.isfinite(record.measures()[name]) for record in others for name in TOLD)


def public_start(weight: Tensor, rank: int) -> dict[str, Tensor]:
    """A start that no random number enters."""
    a = torch.linspace(-1, 1, rank * weight.shape[1]).reshape(rank, -1)
    return {"A": a.to(weight), "B": weight.new_zeros(len(weight), rank)}


def shown(folder: Path) -> dict[str, Any]:
    """What a folder holds outside private/, but for digests under a key that is drawn for it."""
    files: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if not path.is_file() or name.startswith(("private", ".lock")):
            continue
        files[name] = path.read_bytes()
        if name.startswith("round-") and path.suffix == ".json":
            files[name] = json.loads(files[name])["content"]
            del files[name]["settings"]["task"]
    return files


RELEASES = [
    ("example", None, True),
    ("person", None, False),
    ("client", "secagg", True),
    ("client", "central", False),
]


@pytest.mark.parametrize(("unit", "trust", "over_messages"), RELEASES)
def test_without_a_clip_norm_a_release_does_not_depend_on_the_data(
    unit, trust, over_messages, tmp_path
):
    """C = 0: two data sets, one with examples that are not finite, give the same records, frame and
    folder, bit by bit; only what may differ between any two releases, such as a time, could differ.
    """
    row = FedLoRA.replace(name="public start", start=public_start)
    privacy = private(unit, clip=0.0, trust=trust)
    plan = PLAN.replace(batch=None)
    frames = []
    folders = []
    for place, task in enumerate((people(), replace(other_data(people()), persons=PERSONS))):
        folder = tmp_path / str(place)
        if over_messages:
            who = SimulatedClients(task, row, privacy, plan, LORA, None)
            own = who.participant()
            grid = InProcessGrid(client_app(who), len(task.sizes))
            records = list(rounds(grid, own, open_run(own, folder)))
        else:
            records = play(task, row, privacy, plan, seed=None, checkpoint=folder)
        frames.append(fl.to_frame(records))
        folders.append(shown(folder))
        assert "seconds" in set(frames[-1]["measure"])
        assert summary(frames[-1])["seconds"].isna().all()
    first, second = frames
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert folders[0].keys() == folders[1].keys()
    assert folders[0] == folders[1]


def test_a_pickled_record_holds_no_example(tmp_path):
    task = tokens("head")
    canary = 12345.678901
    pairs = tuple((x.clone(), y) for x, y in task.clients)
    for x, _ in pairs:
        x[0, 0, 0] = canary
    task, secret = replace(task, clients=pairs), struct.pack("<d", canary)
    *_, last = play(task, "fedlora", private("client"))
    assert pickle.dumps(task.clients).count(secret) == 3, "what is looked for is found where it is"
    content = pickle.dumps(last)
    assert secret not in content and secret not in pickle.dumps(last.ledger)
    numbers = sum(x.numel() for x in tensors(last).values())
    assert len(content) < 8 * numbers + 30_000, "no tensor brings the storage of a larger one"
    back = pickle.loads(content)
    assert back.source is None and back.measures() == pytest.approx(last.measures(), nan_ok=True)
    with pytest.raises(ValueError, match=r"^record='a copy, without its task': expected a record"):
        fl.save_adapter(back, tmp_path)
