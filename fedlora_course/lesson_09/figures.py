"""The reader's server of notebook 09 as a server rule, and a picture of a mean and its gaps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedlora_lab import methods
from fedlora_lab.federated.run import run
from fedlora_lab.measures import record_aggregation
from fedlora_lab.methods.aggregation import MeanWithResidual, ServerRule, Uploads, client_values
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.state import ParamKey, ServerState
from fedlora_lab.plots import style
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Task

Serve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _Served(ServerRule):
    """Hands the uploads of each layer to ``serve``, all clients alike."""

    serve: Serve
    writes: ClassVar[tuple[str, ...]] = ("W",)

    def initial_state(self, state: ServerState) -> ServerState:
        return MeanWithResidual().initial_state(state)

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        changed = {}
        for layer in state.layers:
            keys = [ParamKey(name, layer) for name in "BAW"]
            factors = [client_values(state, broadcast, uploads, key) for key in keys[:2]]
            b, a, residual = self.serve(*(x.double().numpy() for x in factors))
            # Residuals add up in the frozen weight; the factors are replaced.
            total = state.tensors[keys[2]].double().numpy() + residual
            for key, value in zip(keys, (b, a, total), strict=True):
                changed[key] = torch.from_numpy(value).to(state.tensors[key])
        return state.replace_tensors(changed)


def served_by(serve: Serve) -> Method:
    """Makes FedEx-LoRA with a server of one's own.

    Args: serve: (B, A) of a layer -> mean B, mean A and the residual, as in exercise 09.1.
    Guarantees: test_lesson_09.py::test_the_readers_server_trains_as_the_library_s.
    """
    return methods.FedExLoRA.replace(name="exact server (09.1)", aggregate=_Served(serve))


@style.paper()
def mean_and_gap() -> style.Picture:
    """Draws the normal noises of two clients, and the same draws turned: √2 times mean and gap."""
    cloud = np.random.default_rng(0).standard_normal((500, 2))
    turned = np.stack([cloud.sum(1), cloud[:, 0] - cloud[:, 1]], axis=1) / 2**0.5
    figure, axes = style.subplots(7.2, 3.6, columns=2)
    for ax, points in zip(axes, (cloud, turned), strict=True):
        ax.plot(*points.T, ".", ms=3, color=style.GREY, alpha=0.5)
        ax.set(xlim=(-4, 4), ylim=(-4, 4), aspect="equal", xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    means = style.FACTOR["B"], style.FACTOR["A"]
    for slope, words, colour in zip((1, -1), ("mean", "gap"), means, strict=True):
        axes[0].axline((0, 0), slope=slope, color=colour, lw=1.6)
        axes[0].text(2.3, 2.9 * slope, words, color=colour, weight="bold", ha="right")
    axes[1].axhline(0, color=means[0], lw=1.6)
    axes[1].axvline(0, color=means[1], lw=1.6)
    axes[0].set(xlabel="noise of client 1", ylabel="noise of client 2", title="drawn")
    axes[1].set(title="the same, turned by 45 degrees")
    axes[1].set_xlabel("√2 times the mean", color=means[0])
    axes[1].set_ylabel("√2 times the gap of client 1", color=means[1])
    style.headline(figure, "A round cloud stays round: the gap is as large as the mean")
    return figure


def first_uploads(
    task: Task, sigma: float | Sequence[float], seed: int, lr: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Runs the first round of FedLoRA and returns what the server was sent.

    Args:
        task: whose clients train, every example protected.
        sigma: noise multiplier, of all clients or of each; 0 sends the same updates without noise.
        seed: of the run: batches and clip are those of any other sigma.
        lr: learning rate.
    Returns: of each layer the uploads (B, A), clients first.
    """
    watched, kept = record_aggregation(methods.FedLoRA)
    noise = tuple(sigma) if isinstance(sigma, Sequence) else sigma
    privacy = Privacy(delta=1e-4, noise_multiplier=noise)
    list(run(task, watched, privacy, Plan(rounds=1, lr=lr), seed=seed, evaluate_every=8))
    pairs = [kept[0].factors(name) for name in kept[0].state.layers]
    return [(B.double().numpy(), A.double().numpy()) for A, B in pairs]


def server_errors(
    sent: list[tuple[np.ndarray, np.ndarray]], clean: list[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Sums three squared distances over all layers.

    Args: sent, clean: the uploads (B, A) of each layer with noise and without, clients first.
    Returns: averaged factors to the wanted mean product, the exact server to it, and the two
        servers to each other, (3,).
    """
    distances = np.zeros(3)
    for (B, A), (clean_B, clean_A) in zip(sent, clean, strict=True):
        wanted = (clean_B @ clean_A).mean(0)
        averaged = B.mean(0) @ A.mean(0)
        exact = (B @ A).mean(0)
        for i, gap in enumerate((averaged - wanted, exact - wanted, averaged - exact)):
            distances[i] += np.square(gap).sum()
    return distances
