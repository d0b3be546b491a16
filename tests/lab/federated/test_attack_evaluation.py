"""Attacks on what is scored and recorded: nothing private is scored outside the ledger, or told."""

import math
import pickle
import struct
from dataclasses import replace

import pandas as pd
import pytest
import torch
from calls import refused
from flower_runs import by_messages, protected
from torch import nn
from toy_tasks import (
    KEEPS_B,
    PLAN,
    gap,
    other_data,
    people,
    play,
    private,
    tensors,
    tokens,
    with_clients,
    with_private_test,
)

import fedlora_course as course
import fedlora_lab as fl
from fedlora_lab.federated import store
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.methods.quantization import normal_float

pytestmark = pytest.mark.attack
QUANTISED = FedLoRA.replace(name="quantised", broadcast=normal_float(width=4, block=8))


class Strict(nn.Module):
    """Texts of which all must have equally many marks, and none a word that it does not know."""

    def __init__(self):
        super().__init__()
        self.words, self.map = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, x):
        if (x == 9).sum(1).unique().numel() > 1:
            raise ValueError("All examples must have the same number of <eos> tokens.")
        return torch.tanh(self.map(self.words(x))).mean(1)


@pytest.mark.parametrize(("word", "unit"), [(9, "example"), (12, "client")])
def test_no_example_stops_a_run(word, unit):
    """One that raises beside others is as if alone; one that raises alone counts as zero."""
    torch.manual_seed(0)
    x = torch.arange(48).reshape(12, 4) % 8
    x[0, 0] = word
    parts = list(zip(x.split(4), (torch.arange(12) % 3).split(4), strict=True))
    task = fl.tasks.classification(Strict().double(), parts[:2], test=parts[2], targets=["map"])
    plan = PLAN.replace(batch=None)
    last = play(task, FedLoRA, protected(unit), plan)[-1]
    alone = play(task, FedLoRA, protected(unit), plan, chunk_examples=1)[-1]
    over_messages = by_messages(task, FedLoRA, protected(unit), plan)[-1]
    assert gap(last, alone) < 1e-6 and gap(last, over_messages) < 1e-6
    assert last.nonfinite == (0 if word == 9 else PLAN.local_steps)
    with pytest.raises((ValueError, IndexError)):
        play(task, FedLoRA, None, plan)


def test_no_measure_of_a_private_run_looks_at_private_rows():
    """Gradients and scores of a finished run were told unasked."""
    task = with_private_test(tokens())
    last = play(task, QUANTISED, private("example"))[-1]
    lesson = course.lesson(14)
    for measure in (
        lambda: fl.measures.gradients(task, last, task.targets[0]),
        lambda: lesson.score(last, lesson.held_after_rounds([last])[0]),
    ):
        with refused(r"^public_test=False: expected True: of a private"):
            measure()


@pytest.mark.parametrize("engine", [play, by_messages], ids=["loop", "messages"])
@pytest.mark.parametrize("row", [FedLoRA, QUANTISED, KEEPS_B], ids=lambda row: row.slug)
def test_private_test_examples_are_never_judged_under_privacy(row, engine):
    """Without privacy everything may be scored."""
    seen: list[int] = []

    def score(outputs, y):
        seen.append(len(y))
        return 0.0 * outputs.sum(1)

    task = replace(with_private_test(tokens()), metrics={"score": score})
    for record in engine(task, row, protected("example"), PLAN):
        names = {"score", "score_received"} if row is QUANTISED else {"score"}
        assert set(record.metrics) == names and all(map(math.isnan, record.metrics.values()))
    assert seen == []
    play(task, row, None)
    assert seen


def test_records_do_not_tell_who_took_part():
    """Where epsilon counts on it: numbers and bytes of a round grow with how many did."""
    plan = PLAN.replace(rounds=3, participation=0.5)
    for trust, work, seed, secret in (
        ("central", plan, None, True),
        ("central", plan, 0, False),  # may be drawn again by anyone who knows the seed
        ("central", plan.replace(participation=1.0), None, False),
        ("secagg", plan, None, False),  # the noise tells
    ):
        records = play(tokens(), "fedlora", private("client", trust=trust), work, seed=seed)
        told = [[record.participants, *record.traffic] for record in records]
        assert torch.tensor(told).isnan().all() if secret else torch.tensor(told).isfinite().all()


def public_start(weight, rank):
    """A start that no random number enters."""
    a = torch.linspace(-1, 1, rank * weight.shape[1]).reshape(rank, -1)
    return {"A": a.to(weight), "B": weight.new_zeros(len(weight), rank)}


@pytest.mark.parametrize(
    ("unit", "trust"),
    [
        ("example", None),
        ("person", None),
        ("client", "local"),
        ("client", "secagg"),
        ("client", "central"),
    ],
)
def test_without_a_clip_norm_a_release_does_not_depend_on_the_data(unit, trust, tmp_path):
    """C = 0: two data sets, one with examples that are not finite, give the same records, frame and
    folder, and the same tensors of the server, bit by bit.
    """
    row = FedLoRA.replace(name="public start", initial_factors=public_start)
    privacy = private(unit, clip=0.0, trust=trust)
    plan = PLAN.replace(batch=None)
    seen = []
    for place, task in enumerate((people(), other_data(people()))):
        folder = tmp_path / str(place)
        records = play(task, row, privacy, plan, seed=None, out=folder)
        state, settings = store.read(folder)
        tensors = {key: x.numpy().tobytes() for key, x in state.server.tensors.items()}
        files = [(folder / name).read_bytes() for name in (store.ROWS, store.LEDGER)]
        seen.append((fl.to_frame(records), files, tensors, {**settings, "task": ""}))
    (first, *public), (second, *also_public) = seen
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert public == also_public


def test_a_pickled_record_holds_no_example(tmp_path):
    canary = 12345.678901
    secret = struct.pack("<d", canary)
    (x, y), *others = tokens("head").clients
    x = x.clone()
    x[0, 0, 0] = canary
    task = with_clients(tokens("head"), [(x, y), *others])
    *_, last = play(task, "fedlora", private("client"))
    content = pickle.dumps(last)
    assert secret in pickle.dumps(task.clients) and secret not in content
    numbers = sum(x.numel() for x in tensors(last).values())
    assert len(content) < 8 * numbers + 30_000, "no tensor brings the storage of a larger one"
    with refused(r"^record='a copy, without its task': expected a record"):
        fl.save_adapter(pickle.loads(content), tmp_path)
