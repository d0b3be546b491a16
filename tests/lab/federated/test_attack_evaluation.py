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
    LORA,
    PLAN,
    book,
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
from fedlora_lab.federated.local_training import MachineFailure
from fedlora_lab.methods.published import FedLoRA
from fedlora_lab.methods.quantization import normal_float

pytestmark = pytest.mark.attack
QUANTISED = FedLoRA.replace(name="quantised", broadcast=normal_float(width=4, block=8))


class Strict(nn.Module):
    """Texts of which all must have equally many marks, and none a word that it does not know; finds
    no memory for gradients once it is full.
    """

    full = False

    def __init__(self):
        super().__init__()
        self.words, self.map = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, x):
        if torch.is_grad_enabled() and Strict.full:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory"
            )  # as PyTorch's on a CPU
        if (x == 9).sum(1).unique().numel() > 1:
            raise ValueError("All examples must have the same number of <eos> tokens.")
        return torch.tanh(self.map(self.words(x))).mean(1)


def strict(word=0):
    """A task of two clients, of which the first has a text that begins with this word."""
    torch.manual_seed(0)
    x = torch.arange(48).reshape(12, 4) % 8
    x[0, 0] = word
    *clients, test = zip(x.split(4), (torch.arange(12) % 3).split(4), strict=True)
    persons = [[0, 0, 1, 1], [2, 2, 3, 3]]
    model = Strict().double()
    return fl.tasks.classification(model, clients, test=test, targets=["map"], persons=persons)


@pytest.mark.parametrize(("word", "unit"), [(9, "example"), (12, "client"), (12, "person")])
def test_no_example_stops_a_run(word, unit):
    """One that raises beside others is as if alone; one that raises alone counts as zero."""
    task = strict(word)
    plan = PLAN.replace(batch=None)
    last = play(task, FedLoRA, protected(unit), plan)[-1]
    alone = play(task, FedLoRA, protected(unit), plan, chunk_examples=1)[-1]
    over_messages = by_messages(task, FedLoRA, protected(unit), plan)[-1]
    assert gap(last, alone) < 1e-6 and gap(last, over_messages) < 1e-6
    assert last.nonfinite == (0 if word == 9 else PLAN.local_steps)
    with pytest.raises((ValueError, IndexError)):
        play(task, FedLoRA, None, plan)


@pytest.mark.parametrize("seed", [0, None])
def test_a_run_stops_where_memory_ends_and_goes_on_from_its_ledger(seed, tmp_path, monkeypatch):
    """Fault: every drawn example counted as zero, and the budget was spent on noise.

    Without a seed the run is for release.
    """
    terms = strict(), FedLoRA, private("example"), PLAN.replace(rounds=3)
    records = fl.run(*terms, lora=LORA, seed=seed, out=tmp_path)
    assert [next(records).index for _ in range(2)] == [0, 1]
    monkeypatch.setattr(Strict, "full", True)
    words = r"^an example that passed before the run no longer does \(RuntimeError: .*memory\)"
    with pytest.raises(MachineFailure, match=f"{words}.*; the ledger counts this round$"):
        next(records)
    monkeypatch.setattr(Strict, "full", False)
    counted = [entry.round for entry in fl.Ledger.load(tmp_path / store.LEDGER).releases]
    assert counted == [1, 2]
    _, *later = fl.run(*terms, lora=LORA, seed=seed, out=tmp_path)
    assert [record.index for record in later] == [2, 3]
    spent = [entry.round for entry in book(later[-1]).releases]
    # Under fresh noise round 2 is another release; from a seed it is the same one.
    assert spent == ([1, 2, 3] if seed == 0 else [1, 2, 2, 3])
    if seed == 0:
        assert gap(later[-1], play(*terms)[-1]) == 0 and not later[-1].nonfinite


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
