"""Attacks on what is evaluated and recorded: nothing private is judged outside the ledger, or told beside it."""

import copy
import io
import math
import pickle
import struct
from dataclasses import replace
from typing import Any

import hubs
import pytest
import torch
from flowers import by_messages, protected
from small import LORA, PLAN, frame, play, private, tensors, tokens
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.flower.client import evaluate
from fedlora_lab.flower.simulation import everyone
from fedlora_lab.methods import FedLoRA
from fedlora_lab.record import Tick, origin
from fedlora_lab.wire import normal_float

pytestmark = pytest.mark.attack

ROWS = {
    "server's model": FedLoRA,
    "a quantised broadcast": FedLoRA.replace(name="quantised", broadcast=normal_float(width=4, block=8)),
    "clients keep a factor": FedLoRA.replace(name="keeps B", share="A"),
}
PUBLIC = {"server's model": 2, "a quantised broadcast": 4, "clients keep a factor": 2}


def watched(public: bool, seen: list[int]) -> Any:
    """A task that knows how often its test examples were judged."""
    task = tokens()

    def score(outputs: Tensor, y: Tensor) -> Tensor:
        seen.append(len(y))
        return task.metrics["accuracy"](outputs, y)

    return replace(task, metrics={"accuracy": score, "loss": task.metrics["loss"]}, public_test=public)


class Strict(nn.Module):
    """Texts of which all must have equally many marks, and none a word that it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.map = nn.Embedding(10, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if (x == 9).sum(1).unique().numel() > 1:
            raise ValueError("All examples must have the same number of <eos> tokens.")
        return torch.tanh(self.map(self.words(x))).mean(1)


def strict(word: int | None) -> fl.tasks.Task:
    """Two clients, whose first text has this word in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Strict().double()
    x, y = torch.arange(48).reshape(12, 4) % 8, torch.arange(12) % 3
    first = x[:4].clone()
    first[0, 0] = first[0, 0] if word is None else word
    return fl.tasks.classification(model, [(first, y[:4]), (x[4:8], y[4:8])], test=(x[8:], y[8:]), targets=["map"])


@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("word", [9, 12], ids=["beside others", "alone"])
def test_no_example_stops_a_run(unit, word):
    """One that makes the model raise beside others is as if it were alone; one that raises alone counts as zero."""
    plan, privacy = PLAN.replace(batch=None), protected(unit)
    last = play(strict(word), "fedlora", privacy, plan)[-1]
    one_by_one = play(strict(word), "fedlora", privacy, plan, chunk_examples=1)[-1]
    by_flower = by_messages(strict(word), FedLoRA, privacy, plan)[-1]
    for other in (one_by_one, by_flower):
        assert tensors(last).keys() == tensors(other).keys()
        assert all(torch.allclose(x, tensors(other)[slot], atol=1e-12) for slot, x in tensors(last).items())
    assert last.nonfinite == (0 if word == 9 else PLAN.local_steps)
    with pytest.raises((ValueError, IndexError)):
        play(strict(word), "fedlora", None, plan)


def test_no_measure_of_a_private_run_looks_at_private_rows():
    """Sharpness, gradients and scores of a finished run, on rows held out of the private data, were told unasked."""
    task, row = replace(tokens(), public_test=False), ROWS["a quantised broadcast"]
    layer = task.targets[0]

    def measured(privacy: fl.Privacy | None) -> list[Any]:
        watched_row, seen = fl.measures.watch(row)
        last = play(task, watched_row, privacy)[-1]
        return [
            lambda: fl.measures.sharpness([last]),
            lambda: fl.measures.flatness(task, last),
            lambda: fl.measures.gradients(task, last, layer),
            lambda: fl.measures.protection(last, row, seen, last=2),
        ]

    for measure in measured(private("example")):
        with pytest.raises(ValueError, match=r"^public_test=False: expected True: of a private run only public"):
            measure()
    for measure in measured(None):
        assert measure() is not None


@pytest.mark.parametrize("seed", [0, None])
@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("name", ROWS)
def test_private_test_examples_are_never_judged_under_privacy(name, unit, seed):
    seen: list[int] = []
    records = play(watched(False, seen), ROWS[name], private(unit), seed=seed)
    assert seen == []
    for record in records:
        names = {"accuracy", "loss"} | ({"accuracy_received", "loss_received"} if "quantised" in name else set())
        assert set(record.metrics) == names
        assert all(math.isnan(value) for value in record.metrics.values())
    play(watched(False, seen), ROWS[name], None, seed=seed)
    assert seen, "without privacy everything may be judged"
    seen.clear()
    play(watched(True, seen), ROWS[name], private("example"), seed=seed)
    assert seen, "public examples may always be judged"


def test_over_messages_private_test_examples_are_not_judged_either():
    seen: list[int] = []
    task, row = watched(False, seen), ROWS["clients keep a factor"]
    records = by_messages(task, row, protected("example"), PLAN)
    assert seen == [] and all(math.isnan(v) for r in records for v in r.metrics.values())
    party = everyone(task, row, protected("example"), PLAN, LORA, 0).party()
    with pytest.raises(ValueError, match="public_test=False: expected True: scores would tell"):
        evaluate(party, 0, None, None)  # type: ignore[arg-type]  # whatever it is asked
    by_messages(watched(True, seen), row, protected("example"), PLAN)
    assert seen


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_one_held_out_row_of_a_hub_task_moves_nothing_that_is_recorded():
    """An exact accuracy on rows held out of private data tells a label within a round."""
    table = hubs.texts()
    options: dict[str, Any] = {"text": "text", "label": "label", "clients": 3}
    plan, privacy = fl.Plan(rounds=1, local_steps=1, batch=4), private("example")
    task = fl.tasks.hub(hubs.folder("bert"), table, **options)
    held = task.test[0]["input_ids"]
    text = next(
        i for i in range(len(table)) if not torch.equal(changed(options, table, i).test[1], task.test[1])
    )  # the number of a row that is held out
    other = changed(options, table, text)
    assert torch.equal(other.test[0]["input_ids"], held)
    left, right = (frame(play(t, "ffa-lora", privacy, plan)) for t in (task, other))
    assert left.equals(right)
    judged = [frame(play(replace(t, public_test=True), "ffa-lora", privacy, plan), "loss") for t in (task, other)]
    assert not judged[0].equals(judged[1]), "the accuracy would have told"


def changed(options: dict[str, Any], table: Any, row: int) -> Any:
    """The task in which the label of one row is another one."""
    twin = table.copy()
    twin.loc[row, "label"] = next(v for v in table["label"].unique() if v != table.loc[row, "label"])
    return fl.tasks.hub(hubs.folder("bert"), twin, **options)


def test_of_every_form_test_rows_of_a_hub_task_are_private_unless_declared():
    table = hubs.texts()
    options: dict[str, Any] = {"text": "text", "label": "label", "clients": 2}
    parts = {"train": table[:30], "test": table[30:].reset_index(drop=True)}
    for data, test in ((table, 0.2), (parts, "test"), (parts["train"], parts["test"])):
        assert not fl.tasks.hub(hubs.folder("bert"), data, test=test, **options).public_test
        assert fl.tasks.hub(hubs.folder("bert"), data, test=test, public_test=True, **options).public_test
    with pytest.raises(ValueError, match="public_test='yes': expected True or False"):
        fl.tasks.hub(hubs.folder("bert"), table, public_test="yes", **options)  # type: ignore[arg-type]


TOLD = ("participants", "seconds", "numbers_up", "bytes_up", "numbers_down", "bytes_down")


def test_records_do_not_tell_who_took_part():
    """Where epsilon counts on it: numbers, bytes and time of a round grow with how many did."""
    plan, privacy = PLAN.replace(rounds=3, participation=0.5), private("client", trust="central")
    records = play(tokens(), "fedlora", privacy, plan, seed=None)
    told = [value for record in records for name, value in record.measures().items() if name in TOLD]
    assert len(told) == len(TOLD) * len(records) and all(math.isnan(value) for value in told)
    table = fl.to_frame(records)
    assert all(math.isnan(value) for value in table.loc[table["measure"].isin(TOLD), "value"])
    for others in (
        play(tokens(), "fedlora", privacy, plan, seed=0),  # may be drawn again by anyone who knows the seed
        play(tokens(), "fedlora", privacy, plan.replace(participation=1.0), seed=None),
        play(tokens(), "fedlora", private("client", trust="local"), plan, seed=None),  # amplified against nobody
        play(tokens(), "fedlora", private("client", trust="secagg"), plan, seed=None),  # nor here: the noise tells
        play(tokens(), "fedlora", private("example"), plan, seed=None),
        play(tokens(), "fedlora", None, plan, seed=None),
    ):
        assert all(math.isfinite(record.measures()[name]) for record in others for name in TOLD)


CANARY = 12345.678901


def marked() -> Any:
    """A task of which every client holds a number that is found nowhere else."""
    task = tokens("head")
    pairs = []
    for x, y in task.clients:
        x = x.clone()
        x[0, 0, 0] = CANARY
        pairs.append((x, y))
    return replace(task, clients=tuple(pairs))


@pytest.mark.parametrize("unit", [None, "example", "client"])
def test_a_pickled_record_holds_no_example(unit, tmp_path):
    task, secret = marked(), struct.pack("<d", CANARY)
    *_, last = play(task, "fedlora", unit and private(unit))
    buffer = io.BytesIO()
    torch.save(last, buffer)
    whole = pickle.dumps(last)
    assert pickle.dumps(task.clients).count(secret) == 3, "what is looked for is found where it is"
    others = [pickle.dumps(part) for part in (last.ledger, fl.to_frame([last]), Tick(1, 1))]
    assert not any(secret in content for content in (whole, buffer.getvalue(), *others))
    numbers = sum(x.numel() for x in tensors(last).values())
    assert len(whole) < 8 * numbers + 30_000, "no tensor brings the storage of a larger one"
    back = pickle.loads(whole)
    assert back.source is None and back.measures() == pytest.approx(last.measures(), nan_ok=True)
    assert all(torch.equal(x, tensors(last)[name]) for name, x in tensors(back).items())
    line = "^record='a pickled copy, without its task': expected a record as run"
    with pytest.raises(ValueError, match=line):
        fl.save_adapter(back, tmp_path / "adapter")
    with pytest.raises(ValueError, match=line):
        fl.predict(task, back, task.test[0])


def test_copies_in_one_process_keep_their_task(tmp_path):
    task = tokens("head")
    *_, last = play(task, "fedlora", private("example"))
    for i, twin in enumerate((copy.copy(last), copy.deepcopy(last), replace(last, seed=7))):
        assert torch.equal(fl.predict(task, twin, task.test[0]), fl.predict(task, last, task.test[0]))
        assert fl.save_adapter(twin, tmp_path / str(i)).is_dir()
        assert origin(twin)[0] is task, "nobody's data are copied"
    assert copy.deepcopy(last).adapter["inner"][0] is not last.adapter["inner"][0]


def test_a_record_is_shown_in_a_line():
    *_, last = play(tokens("head"), "fedlora", private("example"))
    text = repr(last)
    assert len(text) < 200 and "tensor" not in text
    assert text.startswith("Round(index=2, method='fedlora', task='tokens', seed=0, metrics={'accuracy': ")
    assert f"epsilon={last.epsilon:.3g}, participants=3)" in text
