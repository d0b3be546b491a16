"""Small frames, settings and ledgers of the true schema, and the report page made of them."""

import json

import numpy as np
import pandas as pd

import fedlora_lab as fl
from fedlora_lab.files import write_atomically
from fedlora_lab.folder import to_json
from fedlora_lab.report import report

HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">"\'&amp; $x_{'


def frame(task: str = "digits", methods: tuple[str, ...] = ("fedlora", "rolora"), seeds=(0, 1, 2)) -> pd.DataFrame:
    """A small frame of the true schema."""
    draw = np.random.default_rng(0)
    rows = []
    for number, method in enumerate(methods):
        for seed in seeds:
            for round in range(5):
                values = {"accuracy": 0.6 + 0.04 * round + 0.01 * draw.normal(), "loss": 1.2 / (1 + round),
                          "epsilon": 2.0 * round, "deviation": 0.2 * (number == 0) * (round > 0), "bytes_up": 3e5,
                          "bytes_down": 3e5, "numbers_up": 8e4, "numbers_down": 8e4, "participants": 10.0,
                          "clipped": 0.4, "nonfinite": 0.0, "seconds": 0.2}  # fmt: skip
                rows += [(task, method, seed, round, "all", measure, value) for measure, value in values.items()]
                rows.append((task, method, seed, round, "blocks.0.query", "deviation", 0.1))
    return pd.DataFrame(rows, columns=["task", "method", "seed", "round", "layer", "measure", "value"])


def settings(task: str = "digits", methods: tuple[str, ...] = ("fedlora", "rolora"), seeds=(0, 1, 2)) -> dict:
    plan = {"rounds": 4, "local_steps": 5, "batch": 16, "lr": 0.3, "participation": 1.0}
    return {
        "format": 1,
        "commands": [f"fedlora-lab compare '{task}'"],
        "begun": "2026-01-01 00:00 UTC",
        "task": {"name": task, "info": {"note": task}, "sizes": [100, 50], "test": 10, "fingerprint": "0"},
        "privacy": {"unit": "example", "delta": 1e-4, "trust": "local", "target": 8.0, "noise_multiplier": [0.71, 0.9]},
        "lora": {"rank": 4, "alpha": 8.0},
        "plans": dict.fromkeys(methods, plan),
        "methods": {method: {"name": method, "source": task} for method in methods},
        "seeds": list(seeds),
        "versions": {"fedlora-lab": "0.1.0", "torch": "2"},
    }


def ledgers(methods: tuple[str, ...] = ("fedlora", "rolora"), seeds=(0, 1, 2), reproducible: bool = True) -> dict:
    plan = fl.Privacy(noise_multiplier=0.8, sample_rate=0.1, delta=1e-4)
    text = json.loads(plan.ledger(releases=20, reproducible=reproducible).to_json())
    return {f"{method}-{seed}": text for method in methods for seed in seeds}


def written(folder, **options):
    data = frame(**options)
    methods, seeds = tuple(data["method"].unique()), tuple(data["seed"].unique())
    task = str(data["task"].iloc[0])
    write_atomically(folder / "frame.csv", data.to_csv(index=False))
    write_atomically(folder / "settings.json", to_json(settings(task, methods, tuple(map(int, seeds)))))
    write_atomically(folder / "ledger.json", to_json(ledgers(methods, seeds)))
    return report(folder)
