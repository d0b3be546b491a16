"""What is asked of a model before a run: that examples come first, and draw nothing at random; and
that neither half precision nor a table that a pass writes looks like a mixture of examples.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import toy_hubs
import transformers
from calls import Options, refused
from torch import Tensor, nn
from toy_tasks import private, seeded

import fedlora_lab as fl

pytestmark = pytest.mark.filterwarnings(toy_hubs.NO_PAD)
STEP = fl.Plan(rounds=1, local_steps=1, batch=4, lr=0.1)


class Two(nn.Module):
    """Two linear maps; what the first one adds is a function of the map and the input."""

    def __init__(self, first):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.first = first

    def forward(self, x):
        return self.b(torch.tanh(x + self.first(self.a, x)))


def task_of(model, **options):
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    parts = [(x[i::3], y[i::3]) for i in range(3)]
    called: Options = {"targets": ["a", "b"], "test": (x[:9], y[:9])} | options
    return fl.tasks.classification(seeded(lambda: model).float(), parts, **called)


def train(task, **options):
    return list(fl.run(task, "rolora", private("example"), STEP, seed=0, **options))


class SequenceFirst(nn.Module):
    """Turns a batch of sequences round, as some encoders do, before the first map."""

    def __init__(self, length):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.length = length

    def forward(self, x):
        turned = x.unsqueeze(0).expand(self.length, -1, -1)
        return self.b(self.a(turned).mean(0))


@pytest.mark.parametrize("length", [1, 8])
def test_a_layer_whose_input_has_the_examples_second_is_refused(length):
    with refused("^(first dimension=|model='SequenceFirst': expected examples .* batch first)"):
        train(task_of(SequenceFirst(length)))


def test_random_numbers_in_a_forward_are_refused():
    model = Two(lambda a, x: F.dropout(a(x), 0.1, training=True))
    with refused("^model='Two': expected examples that do not mix, .* and no random numbers"):
        train(task_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_base_in_half_precision_is_no_mixture(kind, dtype):
    """It rounds in other places where the batch has another size."""
    load: Any = transformers.AutoModelForCausalLM
    model = load.from_pretrained(toy_hubs.folder(kind), dtype=dtype)
    task = toy_hubs.fresh_answers(kind, model=model)
    assert all(x.isfinite().all() for pair in train(task)[-1].adapter.values() for x in pair)


# ---- tables that a pass writes


def put_back(model: "Table") -> None:
    model.table.copy_(model.table.clone())


def replace_by_its_copy(model: "Table") -> None:
    model.register_buffer("table", model.table.clone())


class Table(Two):
    """Writes its table in every pass."""

    table: Tensor

    def __init__(self, write):
        super().__init__(lambda a, x: a(x))
        self.register_buffer("table", torch.zeros(6))
        self.write = write

    def forward(self, x):
        self.write(self)
        return super().forward(x + self.table)


@pytest.mark.parametrize("write", [put_back, replace_by_its_copy])
def test_a_table_that_is_written_with_its_own_values_keeps_nothing(write):
    """By values, not by the count of writes: rotary embeddings pick their table in every pass.
    What does keep something: test_a_model_that_keeps_something_of_its_examples_is_refused.
    """
    assert len(train(task_of(Table(write)))) == 2
