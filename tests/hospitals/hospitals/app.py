"""The public part of the federation: a frozen model, public examples, and how many examples each
site has.
"""

import torch
from torch import Tensor, nn

import fedlora_lab as fl
from fedlora_lab.flower import deployment
from fedlora_lab.flower.client import placeholder_examples

SIZES = (5, 8)


class Model(nn.Module):
    """Two linear maps with a mixing of tokens between them, and a head over their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        return self.head(torch.tanh(self.outer(hidden - 0.5 * hidden.flip(1))).mean(1))


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels that depend on them."""
    x = torch.randn(count, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x.sum((1, 2)) > 0).long() + (x[:, 0, 0] > 1).long()


def task() -> fl.tasks.Task:
    """What every site and the server hold."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Model().double()
    test = examples(9, 1)
    return fl.tasks.classification(
        model,
        list(placeholder_examples(SIZES, test)),
        test=test,
        targets=["inner", "outer"],
        head="head",
        name="hospitals",
    )


server = deployment.server(task)
client = deployment.client(task)
