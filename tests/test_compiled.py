"""The blocks through torch's compiler: the numbers of before, and one line where it cannot be."""

from dataclasses import replace

import pytest
import shapes
import torch
from small import PLAN, examples, gap, play, private, tokens
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import config

import fedlora_lab as fl
from fedlora_lab.compute.compiled import fuse
from fedlora_lab.loop import Federation

# Torch's own: its compiler looks at the gradient of what a block is given, and uses parts that it calls outdated.
TORCH = ("ignore:The .grad attribute of a Tensor that is not a leaf", "ignore::DeprecationWarning")
pytestmark = pytest.mark.filterwarnings(*TORCH)


@pytest.fixture(autouse=True)
def no_shapes(monkeypatch):
    """What holds the shapes of arguments in these tests is not made to be traced."""
    monkeypatch.setattr(shapes, "FIRST", 0)


class Tower(nn.Module):
    """Two blocks of one kind, and what stands around them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def tower() -> fl.tasks.Task:
    """Three clients of unequal size."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tower().double()
    clients = [examples(count, 10 + k) for k, count in enumerate((5, 8, 3))]
    return fl.tasks.classification(model, clients, test=examples(9, 1), targets=["blocks.0.0", "blocks.1.0"])


def test_the_numbers_stay():
    """Traced, and the backward passes with it; factors in turn, batches of any size: the run and its ledger stay."""
    before = dict(counters["stats"])
    ways: tuple[dict, ...] = ({}, {"compile": "aot_eager"})
    plain, fused = (play(tower(), "la-lora", private("example"), PLAN, **how)[-1] for how in ways)
    assert counters["stats"]["unique_graphs"] > before.get("unique_graphs", 0), "nothing was compiled"
    assert gap(plain, fused) < 1e-9
    assert fused.ledger and plain.ledger and fused.ledger.to_json() == plain.ledger.to_json()


def test_a_model_without_blocks_is_compiled_whole():
    run = Federation.open(tokens(), "fedlora", None, PLAN, compile="aot_eager")
    assert run.setting.adapted.model._compiled_call_impl is not None


def test_gradients_that_came_out_otherwise_are_refused():
    """A backend that drops a sign would be noticed before the first step."""

    def wrong(graph, inputs):
        return lambda *values: [-out if isinstance(out, Tensor) else out for out in graph(*values)]

    setting = Federation.open(tower(), "fedlora", None, PLAN).setting
    with pytest.raises(ValueError, match=r"expected a model that torch\.compile leaves as it is"):
        fuse(setting, [], wrong)


def test_no_client_s_examples_decide_whether_a_model_can_be_compiled():
    """The gradients before and after are those of public examples: a client's may be no numbers."""
    task = tokens()
    x, y = task.clients[0]
    task = replace(task, clients=((torch.full_like(x, torch.nan), y), *task.clients[1:]))
    assert Federation.open(task, "fedlora", None, PLAN, compile="eager").setting.adapted.model._compiled_call_impl


def test_without_a_compiler_one_line_says_so():
    torch._dynamo.reset()
    nowhere = config.patch({"force_disable_caches": True, "cpp.cxx": ("no-such-compiler",)})
    with nowhere, pytest.raises(ValueError, match=r"compile=True: expected a model and a machine for torch\.compile"):
        play(tokens(), "fedlora", None, replace(PLAN, rounds=1), compile=True)
