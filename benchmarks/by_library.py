"""The federation of `benchmarks.by_hand`, as one writes it with this library."""

from pathlib import Path
from typing import Any

import fedlora_lab as fl

CLIENTS, ROUNDS, STEPS, BATCH, RATE = 10, 20, 5, 16, 0.3
CLIP, EPSILON, DELTA = 1.0, 8.0, 1e-4


def federate(out: Path, rounds: int = ROUNDS) -> dict[str, Any]:
    """Trains the federation and saves its adapter; returns accuracy by round, and ε at the end.

    Args: out: folder of the adapter. rounds: how many.
    """
    task = fl.tasks.digits(clients=CLIENTS)
    plan = fl.Plan(rounds=rounds, local_steps=STEPS, batch=BATCH, lr=RATE, weights="size")
    privacy = fl.Privacy(clip_norm=CLIP, delta=DELTA)
    privacy = privacy.calibrate(epsilon=EPSILON, task=task, plan=plan)
    records = list(fl.run(task, "fedlora", privacy, plan, lora=fl.Lora(4, 8), seed=None))
    fl.save_adapter(records[-1], out)
    accuracy = [record.metrics["accuracy"] for record in records]
    return {"accuracy": accuracy, "epsilon": records[-1].epsilon}
