"""Measure the bytes of one client in a round, the server's deviation and what a row sees of the
gauge, for every row.

    python scripts/measure_methods.py [--rows prism fedpower]

Writes fedlora_lab/methods/measured.json, which `fl.methods.table()` shows. No noise is added for
the first two: the deviation is that of the server's rule alone. The first round is left out of the
bytes, since a client then knows the start already. The learning rate is one at which every row
learns: where a run diverges, rounding decides the deviation.
"""

import argparse
import json
import math
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check
from fedlora_lab.federated import uploads
from fedlora_lab.federated.checkpoint import RunState
from fedlora_lab.federated.local_training import local_step
from fedlora_lab.federated.run import Run
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.published import MEASURED_FILE
from fedlora_lab.methods.state import ParamKey, ServerState
from fedlora_lab.report.run_folder import to_json

PLAN = {"rounds": 5, "local_steps": 5, "batch": 16, "lr": 0.025}
LORA = {"rank": 4, "alpha": 8.0}


def measured(row: Method, lr: float = PLAN["lr"]) -> dict[str, float | None]:
    """Bytes up and down of one client in one round, and the largest relative deviation, or None."""
    task, plan = fl.tasks.digits(seed=0), fl.Plan(**PLAN).replace(lr=lr)
    records = list(fl.run(task, row, None, plan, lora=fl.Lora(**LORA), seed=0))
    gain = records[-1].metrics["accuracy"] - records[0].metrics["accuracy"]
    learned = not fl.measures.find_collapsed(np.array([gain]))[0]
    check(learned, "lr", lr, f"a rate at which {row.slug} ends above its start")
    records = records[2:]
    worst = max(record.deviation for record in records)
    return {
        "up": fmean(record.uploads.bytes_up / record.participants for record in records),
        "down": fmean(record.uploads.bytes_down / record.participants for record in records),
        "deviation": None if math.isnan(worst) else worst,
    }


def gauge_gaps(row: Method, draws: int = 100) -> list[float] | None:
    """How far the product's path is from itself where the factors begin as B G, G^-1 A.

    The same random numbers make the noise of both runs; a core begins as G^-1 R G. Two rounds of
    two noised steps, as a share of the way that the products went; ``None`` without a common one.

    Args:
        row: any method.
        draws: of G = Q1 diag(e^x) Q2, x normal with deviation 1/2.
    """
    kept = row.share is not None or row.own_ranks
    if kept:
        return None
    sizes: dict[str, Any] = {"clients": 3, "examples": 8, "d_in": 10, "d_out": 9, "rank": 3}
    task = fl.tasks.regression(**sizes, dtype="float64")
    plan = fl.Plan(rounds=2, local_steps=2, batch=None, lr=0.05)
    privacy = fl.Privacy(delta=1e-3, noise_multiplier=1.0, clip_norm=0.5)
    lora, random = fl.Lora(rank=3, alpha=3.0), torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def path(start: ServerState) -> Tensor:
        run.state, products = RunState(0, start, {}, [-1] * len(task.sizes), []), []
        for _ in range(plan.rounds):  # the public steps of a round; no record is made
            opened = run.begin_round()
            clients = run.start_clients(opened.ids, opened.sent)
            for step in range(plan.local_steps):
                local_step(run.context, clients, opened.t, step)
            keys = uploads.round_keys(run.context, opened.before.tensors, opened.t)
            everyone = uploads.stack_clients(run.context, [clients], keys.moved, opened.sent)
            sent = torch.arange(len(opened.ids)), keys.sent, opened.sent
            received = uploads.release_round(run.context, everyone, *sent, opened.t)
            run.finish_round(opened, received, everyone, keys.kept, opened.ids)
            products.append(product(run.state.server.without_core(), key.layer))
        return torch.stack(products)

    def product(state: ServerState, layer: str) -> Tensor:
        a, b = (state.tensors[ParamKey(side, layer)] for side in "AB")
        return state.tensors.get(ParamKey("W", layer), 0.0) + b @ a

    run = Run.open(task, row, privacy, plan, lora=lora, seed=0)
    begun, key = run.state.server, next(key for key in run.state.server.tensors if key.side == "B")
    if not begun.tensors[key].any():
        begun = begun.replace_tensors({key: 0.3 * draw(*begun.tensors[key].shape)})
    plain, gaps = path(begun), []
    way = float((plain - product(begun.without_core(), key.layer)).square().sum().sqrt())
    for _ in range(draws):
        left, right = (torch.linalg.qr(draw(3, 3))[0] for _ in range(2))
        g = left * torch.exp(0.5 * draw(3)) @ right
        a, core = ParamKey("A", key.layer), ParamKey("R", key.layer)
        turned = {key: begun.tensors[key] @ g, a: torch.linalg.solve(g, begun.tensors[a])}
        if core in begun.tensors and begun.tensors[core].any():
            turned[core] = torch.linalg.solve(g, begun.tensors[core]) @ g
        gap = path(begun.replace_tensors(turned)) - plain
        gaps.append(float(gap.square().sum().sqrt()) / way)
    return gaps


def gauge(row: Method) -> dict[str, float | None]:
    """The median over the draws, and the largest."""
    gaps = gauge_gaps(row)
    return {
        "gauge": None if gaps is None else median(gaps),
        "gauge_largest": None if gaps is None else max(gaps),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=[], help="slugs; the others are kept")
    asked = parser.parse_args().rows
    known = fl.methods.ALL | fl.methods.VARIANTS
    rows: Any = tqdm([row for slug, row in known.items() if not asked or slug in asked])
    setting = {"task": "digits", "clients": 10, "plan": PLAN, "lora": LORA, "seed": 0}
    found = json.loads(MEASURED_FILE.read_text(encoding="utf-8"))["methods"] if asked else {}
    for row in rows:
        found[row.slug] = measured(row) | (gauge(row) if row.slug in fl.methods.ALL else {})
    found = {slug: found[slug] for slug in known if slug in found}
    content = {"setting": setting | {"privacy": None}, "methods": found}
    write_atomically(MEASURED_FILE, to_json(content), shared=True)


if __name__ == "__main__":
    main()
