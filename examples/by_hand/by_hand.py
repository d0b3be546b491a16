"""A private federation by Opacus, PEFT and Flower, without this package but for the data and model.

    time python examples/by_hand/by_hand.py

Ten clients train LoRA on digits for 20 rounds of 5 local steps, every example protected at
epsilon 8; the server averages A and B. here.py does the same by this package, and
docs/other_software.md has the times, and what this file leaves out.
"""

import copy
import warnings
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from opacus import GradSampleModule
from opacus.accountants.utils import get_noise_multiplier
from opacus.optimizers import DPOptimizer
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

import fedlora_lab as fl

CLIENTS, ROUNDS, STEPS, BATCH, RATE = 10, 20, 5, 16, 0.32
EPSILON, DELTA = 8.0, 1e-4
client, server = ClientApp(), ServerApp()


def task() -> Any:
    """The data of all clients, and the pretrained model."""
    return fl.tasks.digits(clients=CLIENTS)


def adapted() -> Any:
    """The model with LoRA on query and value."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])
    return get_peft_model(copy.deepcopy(task().model), config)


def noise_multiplier(state: RecordDict, rate: float) -> float:
    """Seeks the noise that a client's steps need in all rounds, and keeps it for the next round."""
    if "noise" not in state:
        steps = ROUNDS * STEPS
        target: Any = {"target_epsilon": EPSILON, "target_delta": DELTA, "accountant": "prv"}
        sigma = get_noise_multiplier(sample_rate=rate, steps=steps, **target)
        state["noise"] = ConfigRecord({"sigma": sigma})
    return float(state["noise"]["sigma"])


@client.train()
def train(message: Message, context: Context) -> Message:
    """Five private steps of one client."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = adapted()
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    x, y = task().clients[int(context.node_config["partition-id"])]
    hooked = GradSampleModule(model.train())
    optimizer = DPOptimizer(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=RATE),
        noise_multiplier=noise_multiplier(context.state, BATCH / len(y)),
        max_grad_norm=1.0,
        expected_batch_size=BATCH,
    )
    for _ in range(STEPS):
        drawn = torch.rand(len(y)) < BATCH / len(y)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(hooked(x[drawn]), y[drawn]).backward()
        optimizer.step()
    arrays = ArrayRecord(get_peft_model_state_dict(model))
    content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}
    return Message(content=RecordDict(content), reply_to=message)


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Averages A and B for all rounds, saves the adapter and scores it."""
    model = adapted()
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    start = ArrayRecord(get_peft_model_state_dict(model))
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=ROUNDS)
    set_peft_model_state_dict(model, result.arrays.to_torch_state_dict())
    model.save_pretrained("runs/by-hand")
    x, y = task().test
    score = (model.eval()(x).argmax(1) == y).float().mean()
    print(f"by hand: accuracy {score:.3f}")


if __name__ == "__main__":
    run_simulation(server, client, CLIENTS)
