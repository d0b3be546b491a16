"""Small frames, settings and ledgers of the true schema, and the report page made of them."""

from html.parser import HTMLParser
from itertools import product
from typing import Any

from frames import tidy_frame

import fedlora_lab as fl

METHODS, SEEDS = ("fedlora", "rolora"), (0, 1, 2)
HOSTILE = '<script>alert(1)</script><img src=x onerror="alert(2)">"\'&amp; $x_{'
STRUCTURE = "html head meta title style body main div h1 h2 p ul li b span pre details summary dl"
TAGS = set(f"{STRUCTURE} dt dd table thead tbody tr th td figure figcaption img".split())


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.pieces = []
        self.feed(page)
        self.text = "".join(self.pieces)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.pieces.append(data)


def frame(task="digits", methods=METHODS, seeds=SEEDS):
    """A small frame of the true schema; seeds count from 0."""
    return tidy_frame(methods, len(seeds), layers=("blocks.0.query",)).assign(task=task)


def settings(task="digits", methods=METHODS, seeds=SEEDS):
    plan = {"rounds": 4, "local_steps": 5, "batch": 16, "lr": 0.3, "participation": 1.0}
    info: Any = {"name": task, "info": {"note": task}, "fingerprint": "0"}
    sigma = {"target_epsilon": 8.0, "noise_multiplier": [0.71, 0.9]}
    return {
        "format": 1,
        "commands": [f"fedlora-lab compare '{task}'"],
        "begun": "2026-01-01 00:00 UTC",
        "task": {**info, "sizes": [100, 50], "test": 10},
        "privacy": {"unit": "example", "delta": 1e-4, "trust": "local", **sigma},
        "lora": {"rank": 4, "alpha": 8.0},
        "plans": dict.fromkeys(methods, plan),
        "privacies": dict.fromkeys(methods),
        "methods": {method: {"name": method, "source": task} for method in methods},
        "rules": {"task": {"loss": "0"}} | {f"methods.{x}": {"filter": "0"} for x in methods},
        "seeds": list(seeds),
        "versions": {"fedlora-lab": "0.1.0", "torch": "2"},
    }


def ledgers(
    methods: tuple[str, ...] = METHODS, seeds=SEEDS, reproducible: bool = True
) -> dict[str, Any]:
    plan = fl.Privacy(noise_multiplier=0.8, sample_rate=0.1, delta=1e-4)
    ledger = plan.ledger(releases=20, reproducible=reproducible)
    return {f"{method}-{seed}": ledger for method, seed in product(methods, seeds)}
