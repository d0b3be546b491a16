"""Attacks across examples: a penalty, a loss or a rule that carries one example's values into another's gradient."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hubs import NO_PAD, folder, texts
from peft import PeftModel
from small import PLAN, Tokens, examples, play, private, regression, tokens
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.aggregate.choice import ByLayer
from fedlora_lab.method import Slot
from fedlora_lab.methods import FedLoRA
from fedlora_lab.rules import Whitening
from fedlora_lab.tasks import Task
from fedlora_lab.tasks.encode import trimmed
from fedlora_lab.tasks.task import cross_entropy, squared_error
from fedlora_lab.tasks.validate import frozen_copy

pytestmark = pytest.mark.attack


def gaps(rows: Any, start: Any) -> Tensor:
    """Squared distance of each example's tensors from what its client received, (N,)."""
    return torch.stack([(rows[slot] - start[slot]).square().flatten(1).sum(1) for slot in rows]).sum(0)


SHAPES: dict[str, tuple[Callable, str]] = {
    "the scalar of FedProx": (
        lambda rows, start: sum((rows[slot] - start[slot]).square().sum() for slot in rows),
        r"penalty=\(\): expected",
    ),
    "a column": (lambda rows, start: gaps(rows, start)[:, None], r"penalty=\(\d+, 1\): expected"),
    "one number": (lambda rows, start: gaps(rows, start).mean(0, keepdim=True), r"penalty=\(1,\): expected"),
    "nothing": (lambda rows, start: None, "penalty='NoneType': expected"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_penalty_of_another_shape_is_refused(name):
    """Each of them is differentiated without an error; none has gradients of single examples."""
    penalty, message = SHAPES[name]
    row = FedLoRA.replace(name="leash", penalty=penalty)
    with pytest.raises(ValueError, match=message + r" \(\d+,\), one number for each example: reduce over all but"):
        fl.run(tokens(), row, private("example"), PLAN)


MIXING: dict[str, Callable] = {
    "the mean of the batch": lambda rows, start: gaps(rows, start).mean() + 0 * gaps(rows, start),
    "against the batch": lambda rows, start: gaps(rows, {slot: rows[slot].mean(0) for slot in rows}),
    "the next one's": lambda rows, start: gaps(rows, start).roll(1),
    "weights that sum to one": lambda rows, start: torch.softmax(gaps(rows, start), 0),
}


@pytest.mark.parametrize("unit", [None, "example", "client"])
@pytest.mark.parametrize("name", MIXING)
def test_a_penalty_that_mixes_examples_is_refused(name, unit):
    row = FedLoRA.replace(name="mixing", penalty=MIXING[name])
    with pytest.raises(ValueError, match=r"^penalty=.*expected examples that do not mix"):
        fl.run(tokens(), row, unit and private(unit), PLAN)


@pytest.mark.parametrize("slug", ["ffa-lora", "rolora", "fedask", "as-lora", "fedsa-lora"])
def test_a_penalty_is_asked_about_what_moves(slug):
    """One that mixes a single factor only, at the steps that move it, with or without a core."""
    asked = []

    def sound(rows, start):
        asked.append(frozenset(slot.side for slot in rows))
        return gaps(rows, start)

    def mixing(rows, start):
        only = {slot: x for slot, x in rows.items() if slot.side == "B"}
        return gaps(rows, start) + (gaps(only, start).mean() if only else 0)

    row, plan = fl.methods.get(slug), PLAN.replace(rounds=2)
    trained = {frozenset(s for s in row.moves(t, 0) if s in "ABR") for t in range(2)}
    trained = {sides for sides in trained if sides} or {frozenset("A"), frozenset("B")}
    fl.run(tokens(), row.replace(name="leash", penalty=sound), None, plan)
    assert set(asked) == trained
    with pytest.raises(ValueError, match=r"^penalty=.*expected examples that do not mix"):
        fl.run(tokens(), row.replace(name="mixing", penalty=mixing), None, plan)


class Fixed(ByLayer):
    """A in one layer and B in the other, as a schedule may choose."""

    def open(self, state):
        return super().open(state).with_({Slot("mode", "inner"): torch.tensor(1.0, dtype=torch.float64)})


def test_a_penalty_is_asked_about_every_choice_of_layers():
    """One that mixes only where A of the one and B of the other move together."""
    choice = {Slot("A", "inner"), Slot("B", "outer")}

    def mixing(rows, start):
        return gaps(rows, start).mean() + 0 * gaps(rows, start) if set(rows) == choice else gaps(rows, start)

    row = fl.methods.get("as-lora").replace(name="mixing", penalty=mixing)
    assert len(play(tokens(), row, private("example"), PLAN.replace(rounds=1))) == 2
    with pytest.raises(ValueError, match=r"^penalty=.*expected examples that do not mix"):
        play(tokens(), row.replace(aggregate=Fixed()), private("example"))


def test_a_sound_penalty_trains():
    row = FedLoRA.replace(name="leash", penalty=lambda rows, start: 0.1 * gaps(rows, start))
    assert len(play(tokens("head"), row, private("example"))) == PLAN.rounds + 1


class Column(nn.Module):
    """One output for each example, (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


def columns(loss: Callable, equal: bool, count: int = 6) -> Task:
    """Outputs (N, 1), targets (N,), which are all one number where they are equal."""
    random = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = frozen_copy(Column().double())

    def pair() -> tuple[Tensor, Tensor]:
        x = torch.randn(count, 3, generator=random, dtype=torch.float64)
        return x, torch.ones(count, dtype=torch.float64) if equal else x.sum(1)

    return Task("columns", model, ("map",), (pair(), pair()), pair(), loss=loss, metrics={"loss": loss})


@pytest.mark.parametrize("equal", [True, False])
def test_targets_that_broadcast_over_the_batch_are_refused(equal):
    """The usual slip of a regression: every example is compared with every other's target."""
    with pytest.raises(ValueError, match=r"^outputs=\(4, 1\): expected \(4,\), the shape of y"):
        fl.run(columns(squared_error, equal), "fedlora", private("example"), PLAN)
    with pytest.raises(ValueError, match=r"^loss=\(4, 4\): expected \(4,\), one number for each example"):
        fl.run(columns(lambda out, y: (out - y).square(), equal), "fedlora", private("example"), PLAN)
    with pytest.raises(ValueError, match=r"^model='Column': expected examples that do not mix"):
        fl.run(columns(lambda out, y: (out - y).square().mean(1), equal), "fedlora", private("example"), PLAN)
    sound = columns(lambda out, y: (out[:, 0] - y).square(), equal)
    assert len(play(sound, "fedlora", private("example"))) == PLAN.rounds + 1


def test_a_scalar_loss_is_refused_at_every_step():
    """Also one that has the right shape whenever it is asked about few examples."""

    def loss(out: Tensor, y: Tensor) -> Tensor:
        each = F.cross_entropy(out, y, reduction="none")
        return each if len(y) < 5 else each.sum()

    with pytest.raises(ValueError, match=r"^loss=\(\): expected \(\d+,\), one number for each example"):
        play(replace(tokens(), loss=loss), "fedlora", private("example"), PLAN.replace(batch=None))


def cross(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out, y, reduction="none")


def contrast(out: Tensor, y: Tensor) -> Tensor:
    """Pulls examples of one class together: only equal labels touch."""
    alike = (y[:, None] == y).to(out.dtype)
    return cross(out, y) + (alike * (out[:, None] - out).square().sum(-1)).sum(1)


def focal(out: Tensor, y: Tensor) -> Tensor:
    """Weights by how common a class is in the batch: no gradient passes from one example to another."""
    return cross(out, y) / (y[:, None] == y).sum(1)


def ranked(out: Tensor, y: Tensor) -> Tensor:
    """Pushes examples of different classes apart: only unequal labels touch."""
    apart = (y[:, None] != y).to(out.dtype)
    return cross(out, y) + (apart * (out[:, None] * out).sum(-1)).mean(1)


LOSSES = {
    "the next one's": lambda out, y: cross(out, y).roll(1),
    "centred": lambda out, y: cross(out, y) - cross(out, y).mean() + cross(out, y).detach().mean(),
    "contrast": contrast,
    "focal": focal,
    "ranked": ranked,
}


@pytest.mark.parametrize("labels", ["as drawn", "all equal", "one row again and again"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_mixes_examples_is_refused_whatever_the_public_labels_are(name, labels):
    x, y = examples(9, 1)
    if labels == "all equal":
        y = torch.full_like(y, 1)
    if labels == "one row again and again":
        x, y = x[:1].expand_as(x), y[:1].expand_as(y)
    task = replace(tokens(), test=(x, y), loss=LOSSES[name])
    with pytest.raises(ValueError, match=r"^model='Tokens': expected examples that do not mix"):
        fl.run(task, "fedlora", private("example"), PLAN)
    assert fl.run(replace(tokens(), test=(x, y), loss=cross), "fedlora", private("example"), PLAN)


def kept_hardest(out: Tensor, y: Tensor, count: int = 6) -> Tensor:
    """Hard examples only: the batch decides which those are, as soon as it has more than so many."""
    loss = F.cross_entropy(out, y, reduction="none")
    return loss * torch.zeros_like(loss).index_fill(0, loss.topk(min(count, len(loss))).indices, 1.0)


FAINT: dict[str, Callable] = {
    "a mean, 1e-7 of it": lambda out, y: cross(out, y) + 1e-7 * (out - out.mean(0)).square().sum(1),
    "a mean without a gradient": lambda out, y: cross(out, y) * (1 + 1e-7 * cross(out, y).detach().mean()),
    "a mean of numbers only": lambda out, y: cross(out, y) + 1e-7 * (out - out.nanmean(0)).square().sum(1),
    "the hardest of many": kept_hardest,
}


@pytest.mark.parametrize("products", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FAINT)
def test_a_loss_that_mixes_faintly_or_seldom_is_refused(name, products):
    """Such a loss looked sound beside ordinary examples, and one huge example moved a release by 96 clip norms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    x, y = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
    task = fl.tasks.classification(model, [(x, y)], test=(x, y), targets=["0"])
    plan = PLAN.replace(batch=None)
    assert play(task, "ffa-lora", private("example"), plan, products=products)
    with pytest.raises(ValueError, match=r"^model=.*: expected examples that do not mix"):
        play(replace(task, loss=FAINT[name]), "ffa-lora", private("example"), plan, products=products)


@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_faint_penalty_is_refused(unit):
    row = FedLoRA.replace(name="faint", penalty=lambda rows, start: 1e-9 * MIXING["against the batch"](rows, start))
    with pytest.raises(ValueError, match=r"^penalty=.*expected examples that do not mix"):
        play(tokens(), row, private(unit))


@pytest.mark.parametrize("again", [False, True])
def test_a_preparation_that_normalises_over_the_batch_is_refused(again):
    x, y = examples(9, 1)
    x = x[:1].expand_as(x) if again else x
    task = replace(tokens(), test=(x, y), prepare=lambda x: x - x.mean(0))
    with pytest.raises(ValueError, match=r"^model='Tokens': expected examples that do not mix"):
        fl.run(task, "fedlora", private("example"), PLAN)


def test_a_whitening_that_mixes_clients_is_refused():
    """In the client unit it sees un-noised factors of all clients at once."""

    def mixing(gram: Tensor) -> Whitening:
        mean = (gram.mean(0, keepdim=True) if gram.ndim == 3 else gram).expand_as(gram)
        return Whitening(mean, mean, mean)

    row = FedLoRA.replace(name="mixing", whiten=mixing)
    with pytest.raises(ValueError, match=r"^whiten=.*expected maps of each client's own matrix alone"):
        fl.run(tokens(), row, private("client"), PLAN)


def test_a_model_that_answers_with_no_number_is_refused():
    task = replace(tokens(), forward=lambda model, x: model(x) * float("nan"))
    with pytest.raises(ValueError, match=r"^model='Tokens': expected finite gradients of public examples"):
        fl.run(task, "fedlora", private("example"), PLAN)


def test_a_model_that_is_sure_of_itself_is_not_refused():
    """Hardly a gradient is left of an example that is learned: what rounds with the batch's size is not small to it."""
    task = tokens()
    first = task.test[1][0]

    def sure(outputs: Tensor, labels: Tensor) -> Tensor:
        learned = cross(outputs + 16.0 * F.one_hot(labels, 3) * (labels == first)[:, None], labels)
        return learned + 1e-10 * len(labels) * outputs.sum(1)  # as a device rounds that adds up in another order

    assert len(play(replace(task, loss=sure), "fedlora", private("example"))) == PLAN.rounds + 1


def test_the_probe_of_one_row_says_nothing_of_another():
    """The same task, first with a sound row, then with others that are not."""
    task = tokens()
    fl.run(task, "fedlora", None, PLAN)
    fl.run(task, FedLoRA.replace(name="leash", penalty=lambda rows, start: gaps(rows, start)), None, PLAN)
    with pytest.raises(ValueError, match="expected examples that do not mix"):
        fl.run(task, FedLoRA.replace(name="leash", penalty=MIXING["the next one's"]), None, PLAN)


def pulled(rows: Any, start: Any) -> Tensor:
    """Pulls A to the mean of the batch, and leaves B alone."""
    only = {slot: x for slot, x in rows.items() if slot.side == "A"}
    return gaps(rows, start) + (gaps(only, {slot: x.mean(0) for slot, x in only.items()}) if only else 0)


@dataclass(frozen=True)
class Late:
    """A schedule of one's own: B moves, and from some round on A."""

    begin: int

    def __call__(self, t: int, s: int) -> str:
        return "A" if t >= self.begin else "B"


@pytest.mark.parametrize(("train", "rounds"), [(fl.Cycle(("B", "A")), 1), (Late(1), 2), (Late(120), 121)])
def test_a_penalty_is_probed_on_all_that_its_schedule_moves(train, rounds):
    """A cycle as a whole, however short the plan; of another schedule every step, however late."""
    row = FedLoRA.replace(name="pulled", train=train, penalty=pulled)
    with pytest.raises(ValueError, match=r"^penalty=.*expected examples that do not mix"):
        fl.run(tokens(), row, private("example"), PLAN.replace(rounds=rounds))


def test_the_probe_of_a_short_plan_says_nothing_of_a_longer_one():
    task, row = replace(tokens()), FedLoRA.replace(name="pulled", train=Late(1), penalty=pulled)
    assert fl.run(task, row, private("example"), PLAN.replace(rounds=1))
    with pytest.raises(ValueError, match=r"^penalty=.*expected examples that do not mix"):
        fl.run(task, row, private("example"), PLAN.replace(rounds=2))


def test_of_an_endless_schedule_every_word_is_probed():
    row = FedLoRA.replace(name="pulled", train=Late(10**9), penalty=pulled)
    with pytest.raises(ValueError, match=r"^penalty=.*expected examples that do not mix"):
        fl.run(tokens(), row, private("example"), PLAN.replace(rounds=10**7))


class Remembers(Tokens):
    """Subtracts a mean of all that it has seen, so slowly that no batch shows it."""

    def __init__(self, kept: str) -> None:
        super().__init__()
        self.kept = kept
        if kept in ("buffer", "hidden buffer"):
            self.register_buffer("mean", torch.zeros(5), persistent=kept == "buffer")
        elif kept == "parameter":
            self.mean = nn.Parameter(torch.zeros(5))
        else:
            self.mean = {"tensor": torch.zeros(5).double(), "list": [torch.zeros(5).double()], "number": 0.0}[kept]

    def forward(self, x: Tensor) -> Tensor:
        held: Any = self.mean[0] if self.kept == "list" else self.mean
        out = super().forward(x - held)
        if self.kept == "number":
            self.mean += 1e-9 * float(x.detach().mean())
        else:
            held.data.lerp_(x.detach().mean((0, 1)), 1e-9)
        return out


@pytest.mark.parametrize("kept", ["buffer", "hidden buffer", "parameter", "tensor", "list", "number"])
def test_a_model_that_keeps_something_of_its_examples_is_refused(kept):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = replace(tokens(), model=frozen_copy(Remembers(kept).double()))
    with pytest.raises(
        ValueError, match=r"^model\.mean='changed by a pass': expected a model whose passes change noth"
    ):
        fl.run(task, "fedlora", private("example"), PLAN)


class Tables(nn.Module):
    """Texts; the positions' table is made anew for each width, and kept: a function of the width alone."""

    def __init__(self, bound: int | None) -> None:
        super().__init__()
        self.words, self.map, self.bound = nn.Embedding(20, 4), nn.Linear(4, 3), bound
        self.register_buffer("table", torch.zeros(0), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        width = input_ids.shape[1]
        if len(self.table) != width:
            self.table = torch.arange(width).to(self.words.weight) / 10
        factor = 2.0 if self.bound is not None and width > self.bound else 1.0
        hidden = torch.tanh(factor * self.map(self.words(input_ids) + self.table[:, None]))
        seen = attention_mask[..., None].to(hidden)
        return (hidden * seen).sum(1) / seen.sum(1)


def padded(lengths: list[int], width: int = 12) -> tuple[dict[str, Tensor], Tensor]:
    """Random texts of these lengths, and two classes that take turns."""
    random = torch.Generator().manual_seed(len(lengths))
    ids, mask = torch.randint(1, 20, (len(lengths), width), generator=random), torch.zeros(len(lengths), width).long()
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = 1
    return {"input_ids": ids * mask, "attention_mask": mask}, torch.arange(len(lengths)) % 2


@pytest.mark.parametrize("public", [[4, 5, 4, 6], [12, 12, 12, 12]], ids=["short", "long"])
@pytest.mark.parametrize("bound", [None, 3, 7, 11])
def test_a_model_that_sees_how_wide_a_batch_is_padded_is_refused(public, bound):
    """Whatever lengths the public texts have: one private text decides how the others are computed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = frozen_copy(Tables(bound).double())
    task = Task("texts", model, ("map",), (padded([4, 12, 5, 3, 9]),), padded(public), prepare=trimmed)
    if bound is None:
        assert len(play(task, "fedlora", private("example"))) == PLAN.rounds + 1
        return
    with pytest.raises(ValueError, match=r"^model='Tables': expected examples that do not mix"):
        fl.run(task, "fedlora", private("example"), PLAN)


class Shared(Tables):
    """Every text gets a hundred-millionth of the batch's mean embedding, below the first adapted layer."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = self.words(input_ids)
        seen = attention_mask[..., None].to(words)
        return (torch.tanh(self.map(words + 1e-8 * words.mean(0))) * seen).sum(1) / seen.sum(1)


def test_a_frozen_part_that_mixes_texts_faintly_is_refused():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = frozen_copy(Shared(None).double())
    task = Task("texts", model, ("map",), (padded([4, 12, 5, 3, 9]),), padded([4, 5, 4, 6]), prepare=trimmed)
    with pytest.raises(ValueError, match=r"^model='Shared': expected examples that do not mix"):
        fl.run(task, "fedlora", private("example"), PLAN)


@pytest.mark.filterwarnings(NO_PAD)
def test_rotary_factors_chosen_by_the_longest_text_are_refused():
    """Phi-3's long context: beyond its original length one text changes the angles of the whole batch."""
    from transformers import AutoTokenizer, Phi3Config, Phi3ForSequenceClassification

    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
    sizes: dict[str, Any] = {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 24, "vocab_size": 62, "initializer_range": 0.4, "num_labels": 2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 0, "max_position_embeddings": 64, "original_max_position_embeddings": 10,
        "rope_scaling": {**rope, "type": "longrope", "original_max_position_embeddings": 10},
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Phi3ForSequenceClassification(Phi3Config(**sizes))
    words = texts()
    words.loc[0, "text"] = "good film " * 8
    task = fl.tasks.hub(
        model, words, text="text", label="label", clients=1, test=words[1:9], public_test=True, head=None,
        targets=["qkv_proj"], tokenizer=AutoTokenizer.from_pretrained(folder("gpt2")),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"^model='Phi3ForSequenceClassification': expected examples that do not mix"):
        fl.run(task, "ffa-lora", private("example"), PLAN)


def test_whole_outputs_are_compared_with_whole_targets():
    assert squared_error(torch.ones(3), torch.zeros(3)).tolist() == [1, 1, 1]
    task = regression()
    x, y = task.test
    assert task.loss(task.forward(task.model, x), y).shape == (len(y),)
    for outputs, labels in ((torch.ones(3), torch.ones(3)), (torch.ones(3, 2, 4), torch.ones(3, 4).long())):
        with pytest.raises(ValueError, match=r"^outputs="):
            cross_entropy(outputs, labels)


class Heads(nn.Module):
    """Three linear maps whose names end alike, and one to adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.xfc, self.fc = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b = nn.ModuleDict({"fc": nn.Linear(4, 3)})

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x.mean(1)))
        return self.fc(torch.tanh(self.xfc(hidden))) + self.b["fc"](hidden)


def heads(**options: Any) -> Task:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Heads().double()
    pairs = [examples(6, k) for k in range(2)]
    return fl.tasks.classification(
        model, pairs, **{"test": examples(5, 9), "targets": ["body"], "head": "fc", **options}
    )


@pytest.mark.parametrize("head", ["fc", "b.fc", "xfc"])
def test_a_head_is_one_module(head, tmp_path):
    """PEFT matches the end of a name: "fc" stands for b.fc and xfc as well. What was not named stays as it was."""
    task = heads(head=head)
    *_, last = play(task, "fedlora", None)
    assert set(last.head) == {f"{head}.weight", f"{head}.bias"}
    folder = fl.save_adapter(last, tmp_path / "adapter")
    loaded: Any = PeftModel.from_pretrained(copy.deepcopy(task.model), str(folder)).eval()
    x = task.test[0]
    torch.testing.assert_close(loaded(x), fl.predict(task, last, x), rtol=1e-9, atol=1e-9)
    merged = loaded.merge_and_unload()
    for name in {"fc", "b.fc", "xfc"} - {head}:
        assert torch.equal(merged.get_parameter(f"{name}.weight"), task.model.get_parameter(f"{name}.weight"))
    assert not torch.equal(merged.get_parameter(f"{head}.weight"), task.model.get_parameter(f"{head}.weight"))


def test_a_head_that_cannot_be_told_apart_is_refused():
    with pytest.raises(ValueError, match="targets='xfc': expected a module outside 'xfc': its name ends with the head"):
        heads(targets=["xfc"])
    nested = nn.Sequential(OrderedDict(fc=nn.Linear(4, 3)))
    model = nn.Sequential(OrderedDict(body=nn.Linear(5, 4), fc=nested)).double()
    x, y = examples(6, 0)
    with pytest.raises(
        ValueError, match=r"head='fc': expected a name with which no module inside .* ends; fc\.fc does"
    ):
        fl.tasks.classification(model, [(x.mean(1), y)], test=(x.mean(1), y), targets=["body"], head="fc")


def test_targets_are_matched_at_a_dot():
    """As documented: "fc" adapts fc and b.fc, and never xfc."""
    task = heads(targets=["fc"], head=None)
    first, *_ = play(task, "fedlora", None)
    assert set(first.adapter) == {"fc", "b.fc"}


def test_weights_and_public_examples_are_finite():
    x, y = examples(6, 0)
    spoilt = Heads().double()
    with torch.no_grad():
        spoilt.xfc.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"^model.xfc.weight='NaN or infinity': expected finite weights"):
        fl.tasks.classification(spoilt, [(x, y)], test=(x, y), targets=["body"])
    bad = x.clone()
    bad[1, 0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"^test x='NaN or infinity': expected finite numbers"):
        heads(test=(bad, y))
    with pytest.raises(ValueError, match=r"^validation x='NaN or infinity': expected finite numbers"):
        heads(validation=(bad, y))
    assert fl.tasks.classification(Heads().double(), [(bad, y)], test=(x, y), targets=["body"])
