"""Attacks across examples: a model, a loss or a rule that carries one example's values into
another's gradient. All are refused when the run is opened.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toy_hubs
import transformers
from calls import refused
from peft import PeftModel
from torch import nn
from toy_tasks import (
    LORA,
    PLAN,
    Tokens,
    examples,
    play,
    private,
    random,
    seeded,
    tokens,
    two_layers,
    with_private_test,
)

import fedlora_lab as fl
from fedlora_lab.lora.per_example import split_batch
from fedlora_lab.methods.preconditioners import Preconditioner
from fedlora_lab.methods.published import FFA, FedLoRA, FedZO
from fedlora_lab.tasks.metrics import squared_error
from fedlora_lab.tasks.ragged import Ragged
from fedlora_lab.tasks.task import HeldOut, Layers, Task

pytestmark = [pytest.mark.attack, pytest.mark.filterwarnings(toy_hubs.NO_PAD)]
MODEL = r"^model='{}': expected examples that do not mix, batch first"


@pytest.mark.slow
def test_no_more_texts_train_together_than_were_probed():
    """However short the private ones are beside those for testing: a model that mixes the examples
    of larger batches only would pass the probe."""
    longer = toy_hubs.texts(6).assign(text=" ".join(toy_hubs.WORDS * 4))
    task: Any = toy_hubs.fresh("bert", test=longer)
    sizes = []

    def count(module, inputs):
        if torch.is_grad_enabled():
            sizes.append(len(inputs[0]))

    task.model.get_input_embeddings().register_forward_pre_hook(count)
    records = fl.run(task, "fedlora", private("example"), fl.Plan(rounds=1, batch=8))
    probed = max(sizes)
    sizes.clear()
    assert len([*records]) == 2
    assert sum(sizes) > max(sizes) <= probed < 16


def refuse_run(message, task, row=FedLoRA, unit="example"):
    with refused(message):
        fl.run(task, row, private(unit) if unit else None, PLAN)


@pytest.mark.parametrize("y", [torch.ones(6), torch.arange(6.0)], ids=["equal", "unequal"])
def test_targets_that_broadcast_over_the_batch_are_refused(y):
    """The usual slip of a regression: every example is compared with every other's target."""
    pair = examples(6, 0)[0].mean(1), y.double()
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 1)))
    task = Task("columns", model, Layers(("0",)), (pair,), HeldOut(pair), metrics={})
    for loss, message in (
        (squared_error, r"^outputs=\(4, 1\): expected \(4,\), the shape of y"),
        (
            lambda out, y: (out - y).square(),
            r"^loss=\(4, 4\): expected \(4,\), one number for each",
        ),
        (lambda out, y: (out - y).square().mean(1), MODEL.format("Sequential")),
    ):
        refuse_run(message, replace(task, loss=loss))
    sound = replace(task, loss=lambda out, y: (out[:, 0] - y).square())
    assert len(play(sound, "fedlora", private("example"))) == PLAN.rounds + 1


def test_a_scalar_loss_is_refused_at_every_step():
    """Also one that has the right shape whenever it is asked about few examples."""

    def loss(out, y):
        each = F.cross_entropy(out, y, reduction="none")
        return each if len(y) < 5 else each.sum()

    with refused(r"^loss=\(\): expected \(\d+,\), one number for each"):
        play(replace(tokens(), loss=loss), "fedlora", private("example"), PLAN.replace(batch=None))


def cross(out, y):
    return F.cross_entropy(out, y, reduction="none")


def alike(out, y):
    return (y[:, None] == y).to(out.dtype)


def kept_hardest(out, y):
    """Hard examples only: the batch decides which those are as soon as it has more than six."""
    loss = cross(out, y)
    hard = loss.topk(min(6, len(loss))).indices
    return loss * torch.zeros_like(loss).index_fill(0, hard, 1.0)


LOSSES: dict[str, Callable] = {
    "only equal labels touch": lambda out, y: (
        cross(out, y) + (alike(out, y) * (out[:, None] - out).square().sum(-1)).sum(1)
    ),
    "only unequal labels touch": lambda out, y: (
        cross(out, y) + ((1 - alike(out, y)) * (out[:, None] * out).sum(-1)).mean(1)
    ),
}
FAINT: dict[str, Callable] = {
    # Beside others that are not numbers only, however huge the finite ones are.
    "a mean without a gradient": lambda out, y: (
        cross(out, y) * (1 + 1e-30 * cross(out, y).detach().mean())
    ),
    # Beside huge others only.
    "a mean of numbers only": lambda out, y: (
        cross(out, y) * (1 + 1e-7 * cross(out, y).detach().nanmean())
    ),
}


@pytest.mark.parametrize("distinct", [9, 1])
def test_a_loss_that_mixes_examples_is_refused_whatever_the_public_labels_are(distinct):
    x, y = (part[torch.arange(9) % distinct] for part in examples(9, 1))
    task = replace(tokens(), held_out=HeldOut((x, y)))
    for loss in LOSSES.values():
        refuse_run(MODEL.format("Tokens"), replace(task, loss=loss))
    assert fl.run(replace(task, loss=cross), "fedlora", private("example"), PLAN)


WITHOUT_GRADIENT: dict[str, Callable] = {
    "the error rate": lambda each, out, y: each + 10 * (out.argmax(1) != y).to(each).mean(),
    "the largest": lambda each, out, y: each + 1e3 * each.max().detach(),
}


@pytest.mark.parametrize("rule", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT)
def test_what_a_batch_adds_without_a_gradient_is_refused_where_losses_are_released(rule):
    """One example moved a sum of differences by 35 clip norms. On a task that a row of gradients
    trains: no gradient has anything of it.
    """
    task = replace(tokens(), loss=lambda out, y: rule(cross(out, y), out, y))
    assert len(play(task, FedLoRA, private("example"))) == PLAN.rounds + 1
    words = MODEL.format("Tokens") + ".*differences releases losses"
    refuse_run(words, task, FedZO)
    refuse_run(words, with_private_test(task), FedZO, "client")
    assert fl.run(tokens(), FedZO, private("example"), PLAN)


def test_a_loss_that_mixes_faintly_or_seldom_is_refused():
    """Such a loss looked sound beside ordinary examples, and one huge example moved a release by 96
    clip norms.
    """
    x = random(30, 6).float()
    y = torch.arange(30) % 3
    task = fl.tasks.classification(two_layers(), [(x, y)], (x, y), ["0"], public_test=False)
    plan = PLAN.replace(batch=None)
    assert fl.run(task, FFA, private("example"), plan)
    for loss in FAINT.values():
        with refused(MODEL.format("Sequential")):
            fl.run(replace(task, loss=loss), FFA, private("example"), plan)


def test_what_is_sound_in_a_small_step_is_probed_again_for_a_large_one():
    """The runs of a comparison share what was found of a task."""
    x = random(30, 6).float()
    pair = x, torch.arange(30) % 3
    task = fl.tasks.classification(two_layers(), [pair], pair, ["0"], public_test=False)
    task = replace(task, loss=kept_hardest)
    assert fl.run(task, FFA, private("example"), PLAN.replace(batch=2))
    with refused(MODEL.format("Sequential")):
        fl.run(task, FFA, private("example"), PLAN.replace(batch=None))


def test_a_model_that_is_sure_of_itself_is_not_refused():
    """Hardly a gradient is left of an example that is learned: what rounds with the batch's size is
    not small to it.
    """
    task = tokens()
    first = task.test[1][0]

    def sure(out, y):
        learned = cross(out + 16.0 * F.one_hot(y, 3) * (y == first)[:, None], y)
        # As a device rounds that adds up in another order.
        return learned + 1e-10 * len(y) * out.sum(1)

    assert len(play(replace(task, loss=sure), "fedlora", private("example"))) == PLAN.rounds + 1


@pytest.mark.parametrize("which", ["before", "after", "noise_map"])
def test_a_preconditioner_that_mixes_clients_is_refused(which):
    """In the client unit it sees un-noised factors of all clients at once."""

    def mixing(gram):
        mean = gram.mean(0, keepdim=True).expand_as(gram)
        return Preconditioner(gram, gram)._replace(**{which: mean})

    row = FedLoRA.replace(name="mixing", precondition=mixing)
    words = r"^precondition=.*expected maps of each client's own matrix alone"
    refuse_run(words, tokens(), row, "client")


def test_a_preconditioner_is_asked_about_the_rank_of_the_run():
    """Fault: a probe of rank 3, whatever the run's, ended in an error of the rule's own."""
    root = torch.diag(torch.arange(1.0, 3.0)).double()

    def of_two(gram):
        maps = [x.to(gram).expand_as(gram) for x in (root, root.inverse())]
        return Preconditioner(*maps)

    row = FedLoRA.replace(name="of two", precondition=of_two)
    assert LORA.rank == 2 and len(play(tokens(), row, private("example"))) == PLAN.rounds + 1
    with refused(r"^precondition: expected maps for Gram matrices \(3, 3, 3\), but: .*size"):
        play(tokens(), row, private("example"), lora=fl.Lora(rank=3))


def test_a_refusal_tells_no_number_of_private_test_examples():
    """Nor what an error says of them."""
    private_test = with_private_test(tokens())
    mixing = replace(private_test, loss=lambda out, y: (out - out.mean(0)).square().mean(1))
    refuse_run(MODEL.format("Tokens") + ", and no random numbers$", mixing)

    def raises(out, y):
        if not out.isfinite().all():
            raise RuntimeError(f"y={y}")
        return out.square().mean(1)

    words = r"^model='Tokens': expected a pass .* \(others times nan: RuntimeError\)$"
    refuse_run(words, replace(private_test, loss=raises))


class Changed(Tokens):
    """A rule on the outputs."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x):
        return self.rule(super().forward(x))


def test_a_model_without_gradients_is_refused():
    model = seeded(lambda: Changed(lambda out: out * float("nan")))
    task = replace(tokens(), model=model)
    refuse_run(r"^model='Changed': expected finite gradients of the test examples", task)


def test_random_numbers_in_a_forward_are_refused():
    model = seeded(lambda: Changed(lambda out: F.dropout(out, 0.1, training=True)))
    refuse_run(MODEL.format("Changed") + ".* and no random num", replace(tokens(), model=model))


class SequenceFirst(Tokens):
    """Turns a batch of sequences round, as some encoders do, before the first map."""

    def __init__(self, length):
        super().__init__()
        self.length = length

    def forward(self, x):
        turned = x.mean(1).expand(self.length, -1, -1)
        return self.head(self.outer(torch.tanh(self.inner(turned))).mean(0))


@pytest.mark.parametrize("length", [1, 8])
def test_a_layer_whose_input_has_the_examples_second_is_refused(length):
    task = replace(tokens(), model=seeded(lambda: SequenceFirst(length)))
    refuse_run("^(first dimension=|model='SequenceFirst': expected examples .* batch first)", task)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_base_in_half_precision_is_no_mixture(kind, dtype):
    """It rounds in other places where the batch has another size."""
    load: Any = transformers.AutoModelForCausalLM
    model = load.from_pretrained(toy_hubs.folder(kind), dtype=dtype)
    records = play(toy_hubs.fresh_answers(kind, model=model), "rolora", private("example"))
    assert all(x.isfinite().all() for pair in records[-1].adapter.values() for x in pair)


class Remembers(Tokens):
    """Subtracts a mean of all that it has seen, so slowly that no batch shows it."""

    seen = 0.0

    def forward(self, x):
        out = super().forward(x - self.seen)
        self.seen += 1e-9 * float(x.detach().mean())
        return out


class RunningMean(Tokens):
    """Subtracts a running mean of what it has seen but of what is huge, from some pass on."""

    def __init__(self, first, write):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.passes = 0
        self.first = first
        self.write = write

    def forward(self, x):
        self.passes += 1
        out = super().forward(x - self.mean)
        seen = x.detach().mean()
        if self.passes > self.first and seen.abs() < 100:
            self.write(self, 1e-30 * seen)
        return out


WRITES = {
    "in place": lambda model, seen: model.mean.add_(seen),
    "anew": lambda model, seen: setattr(model, "mean", model.mean + seen),
    "past autograd": lambda model, seen: model.mean.data.add_(seen),
}


OWN_VALUES = {
    "in place": lambda model, _: model.mean.copy_(model.mean.clone()),
    "anew": lambda model, _: model.register_buffer("mean", model.mean.clone()),
}


@pytest.mark.parametrize("write", OWN_VALUES.values(), ids=OWN_VALUES)
def test_a_table_that_is_written_with_its_own_values_keeps_nothing(write):
    """By values, not by the count of writes: rotary embeddings pick their table in every pass."""
    task = replace(tokens(), model=seeded(lambda: RunningMean(0, write)))
    assert len(play(task, "fedlora", private("example"))) == PLAN.rounds + 1


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_model_that_keeps_something_of_its_examples_is_refused(write):
    """When the run is opened or, of one that begins late, at its first such step."""
    refuse_run(MODEL.format("Remembers"), replace(tokens(), model=seeded(Remembers)))
    words = "^model='RunningMean': expected passes that change no parameter or buffer of the model"
    task = replace(tokens(), model=seeded(lambda: RunningMean(0, write)))
    refuse_run(words, task)
    assert task.model.mean == 0, "the user's own model is left as it was"
    if write is not WRITES["past autograd"]:
        late = replace(tokens(), model=seeded(lambda: RunningMean(64, write)))
        with refused(words):
            play(late, "fedlora", private("example"), PLAN.replace(rounds=40))


class Tables(nn.Module):
    """Texts. Beyond a bound the width changes the outputs; ``shared`` of the batch's mean embedding
    is added below the first adapted layer.
    """

    def __init__(self, bound=math.inf, shared=0.0):
        super().__init__()
        self.words = nn.Embedding(20, 4)
        self.map = nn.Linear(4, 3)
        self.bound = bound
        self.shared = shared

    def forward(self, input_ids, attention_mask):
        words = self.words(input_ids)
        if self.shared:
            words = words + self.shared * words.mean(0)
        factor = 2.0 if input_ids.shape[1] > self.bound else 1.0
        hidden = torch.tanh(factor * self.map(words))
        seen = attention_mask[..., None].to(hidden)
        return (hidden * seen).sum(1) / seen.sum(1)


def texts(lengths):
    """Texts of these lengths, and two classes that take turns."""
    sizes = torch.tensor(lengths)
    ids = torch.arange(12 * len(sizes)).view(-1, 12) * 7 % 19 + 1
    columns = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    x = {name: Ragged.of_padded(column, sizes, 0) for name, column in columns.items()}
    return x, torch.arange(len(sizes)) % 2


def texts_task(public, **options):
    model = seeded(lambda: Tables(**options))
    clients = [texts([4, 12, 5, 3, 9])]
    return Task("texts", model, Layers(("map",)), clients, HeldOut(texts(public)))


@pytest.mark.parametrize(
    ("public", "bound"),
    [([4, 5, 4, 6], math.inf), ([4, 5, 4, 6], 3), ([4, 5, 4, 6], 11), ([12, 12, 12, 12], 3)],
)
def test_a_model_that_sees_how_wide_a_batch_is_padded_is_refused(public, bound):
    """Whatever lengths public texts have: one private text decides how others are computed."""
    task = texts_task(public, bound=bound)
    if bound == math.inf:
        assert len(play(task, "fedlora", private("example"))) == PLAN.rounds + 1
    else:
        refuse_run(MODEL.format("Tables"), task)


def test_a_frozen_part_that_mixes_texts_faintly_is_refused():
    refuse_run(MODEL.format("Tables"), texts_task([4, 5, 4, 6], shared=1e-8))


class Heads(nn.Module):
    """Three linear maps whose names end alike, one to adapt, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 4)
        self.bypassed = nn.Linear(4, 4)
        self.xfc = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)
        self.b = nn.ModuleDict({"fc": nn.Linear(4, 3)})

    def forward(self, x):
        hidden = F.linear(torch.tanh(self.body(x.mean(1))), self.bypassed.weight)
        return self.fc(torch.tanh(self.xfc(hidden))) + self.b["fc"](hidden)


def heads(target, head):
    clients = [examples(6, k) for k in range(2)]
    return fl.tasks.classification(seeded(Heads), clients, examples(5, 9), [target], head)


def test_a_head_is_what_peft_takes_for_it(tmp_path):
    """PEFT matches the end of a name for a head, and at a dot for a target."""
    task = heads("body", "fc")
    last = play(task, "fedlora", None)[-1]
    assert {name.rpartition(".")[0] for name in last.head} == {"fc", "b.fc", "xfc"}
    folder = fl.save_adapter(last, tmp_path / "adapter")
    loaded: Any = PeftModel.from_pretrained(copy.deepcopy(task.model), str(folder)).eval()
    x = task.test[0]
    torch.testing.assert_close(loaded(x), fl.predict(task, last, x))
    assert set(play(heads("fc", None), "fedlora", None)[0].adapter) == {"fc", "b.fc"}


def test_targets_that_the_model_never_calls_are_refused():
    """They were answered by autograd, in words about tensors without a history."""
    words = r"^targets=\('bypassed',\): expected linear maps that the model calls"
    refuse_run(words, heads("bypassed", None))


def test_no_mask_stops_the_batch():
    """A mask of floats that is not finite, of one text."""
    x = {"attention_mask": torch.tensor([[1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])}
    parts = split_batch(x, torch.arange(3), torch.device("cpu"))
    assert sorted(torch.cat(list(parts)).tolist()) == [0, 1, 2]
