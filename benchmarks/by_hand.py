"""A federation of LoRA under differential privacy as one writes it with Flower, PEFT and Opacus.

Ten clients, FedAvg over the LoRA tensors, DP-SGD with Poisson batches in every client, noise
calibrated for the whole run, an adapter for PEFT at the end. Of this package it takes the model and
the data alone, so that `benchmarks` can set it beside `benchmarks.by_library`.
"""

import copy
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from opacus import PrivacyEngine
from opacus.accountants import PRVAccountant
from opacus.accountants.utils import get_noise_multiplier
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch.utils.data import DataLoader, TensorDataset

import fedlora_lab as fl

CLIENTS, ROUNDS, STEPS, BATCH, RATE = 10, 20, 5, 16, 0.3
CLIP, EPSILON, DELTA = 1.0, 8.0, 1e-4

client_app = ClientApp()


@cache
def data() -> Any:
    """The frozen model and the clients' examples, loaded once in a process."""
    return fl.tasks.digits(clients=CLIENTS)


def build_model() -> PeftModel:
    """The model with a fresh adapter on query and value."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    return get_peft_model(copy.deepcopy(data().model), config)


def noise_for(rate: float, steps: int) -> float:
    """The noise multiplier that spends the whole budget in so many steps."""
    return get_noise_multiplier(
        target_epsilon=EPSILON,
        target_delta=DELTA,
        sample_rate=rate,
        steps=steps,
        accountant="prv",
    )


def endless(loader: DataLoader) -> Iterator[Any]:
    """Batch after batch, epoch after epoch."""
    while True:
        yield from loader


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Trains one client's adapter for a round under DP-SGD."""
    arrays: Any = message.content["arrays"]
    config: Any = message.content["config"]
    x, y = data().clients[int(context.node_config["partition-id"])]
    loader = DataLoader(TensorDataset(x, y), batch_size=min(BATCH, len(y)))
    # Opacus draws each example with this probability, so batches are a little smaller than BATCH.
    rate, rounds = 1 / len(loader), int(config["rounds"])
    state: Any = context.state
    if "privacy" not in state:  # calibrated once, for all rounds of this client
        sigma = noise_for(rate, rounds * STEPS)
        state["privacy"] = MetricRecord({"sigma": sigma, "steps": 0})
    sigma = state["privacy"]["sigma"]

    model = build_model()
    set_peft_model_state_dict(model, arrays.to_torch_state_dict())
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE)
    made: Any = PrivacyEngine(accountant="prv").make_private(
        module=model,
        optimizer=optimizer,
        data_loader=loader,
        noise_multiplier=sigma,
        max_grad_norm=CLIP,
        poisson_sampling=True,
    )
    private, optimizer, loader = made
    for inputs, labels in islice(endless(loader), STEPS):
        optimizer.zero_grad()
        F.cross_entropy(private(inputs), labels).backward()
        optimizer.step()
    state["privacy"]["steps"] += STEPS

    metrics: dict[str, Any] = {"num-examples": len(y)}
    if config["server-round"] == rounds:
        accountant = PRVAccountant()
        # The engine of this round knows nothing of the rounds before.
        accountant.history = [(sigma, rate, state["privacy"]["steps"])]
        metrics |= {"epsilon": accountant.get_epsilon(DELTA), "sigma": sigma, "rate": rate}
    content: Any = {
        "arrays": ArrayRecord(get_peft_model_state_dict(model)),
        "metrics": MetricRecord(metrics),
    }
    return Message(RecordDict(content), reply_to=message)


def accuracy_of(model: torch.nn.Module) -> float:
    """The share of test examples that the model labels right."""
    x, y = data().test
    model.eval()
    with torch.inference_mode():
        return (model(x).argmax(1) == y).float().mean().item()


class Strategy(FedAvg):
    """FedAvg that keeps what the clients say of themselves."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Averages the adapters, weighted by the clients' numbers of examples."""
        replies = list(replies)
        self.said = [dict(r.content["metrics"]) for r in replies if not r.has_error()]
        return super().aggregate_train(server_round, replies)


def serve(grid: Grid, out: Path, rounds: int) -> dict[str, Any]:
    """The server's part: FedAvg, a score after every round, the adapter in a folder at the end.

    Args: grid: to the clients. out: the folder. rounds: how many.
    """
    model = build_model()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": accuracy_of(model)})

    strategy = Strategy(fraction_evaluate=0.0, min_train_nodes=CLIENTS, min_available_nodes=CLIENTS)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(model)),
        num_rounds=rounds,
        train_config=ConfigRecord({"rounds": rounds}),
        evaluate_fn=evaluate,
    )
    set_peft_model_state_dict(model, result.arrays.to_torch_state_dict())
    model.save_pretrained(str(out))
    scores = result.evaluate_metrics_serverapp
    accuracy = [scores[r]["accuracy"] for r in sorted(scores)]
    return {"accuracy": accuracy, "clients": strategy.said}


def federate(out: Path, rounds: int = ROUNDS, workers: int = 2) -> dict[str, Any]:
    """Trains the federation and saves its adapter; returns accuracy by round, and each client's ε.

    Args: out: folder of the adapter. rounds: how many. workers: processes that play the clients.
    """
    result: dict[str, Any] = {}
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        result.update(serve(grid, out, rounds))

    backend: Any = {
        "init_args": {"num_cpus": workers, "log_to_driver": False, "include_dashboard": False},
        "client_resources": {"num_cpus": 1},
    }
    run_simulation(server_app, client_app, CLIENTS, backend_config=backend)
    return result
