"""Federations without a signal: what is left of the clients' noise when the server averages factors, or products."""

from collections.abc import Sequence
from typing import Any

from fedlora_lab import theory
from fedlora_lab.checks import check_number, check_whole

SIDE = 64


def averaged_noise(clients: Sequence[int], std: float = 0.2, seeds: int = 40, rank: int = 4) -> Any:
    """Energy that one release of both factors puts into the product, over the number of clients.

    Real runs of FedLoRA, whose server averages factors, and of FedEx-LoRA, whose server holds the mean of the products,
    on a task whose loss is always zero: one round, one local step, from B = 0 and A as PEFT draws it.

    Args:
        clients: numbers of clients.
        std: of each client's noise on every entry of both factors, > 0.
        seeds: runs of each.

    Returns: columns x (clients), group, mean, low, high (of the measured mean), closed, quadratic (of it).
    Guarantees: closed is `theory.factor_average_terms` and `theory.product_average_terms` at the expected A, whose
        squared norm is rank / 3 (test_lesson_10.py::test_noise_that_an_exact_server_keeps).
    """
    import pandas as pd

    from fedlora_lab import tasks
    from fedlora_lab.comparison import compare
    from fedlora_lab.plan import Lora, Plan
    from fedlora_lab.privacy import Privacy

    check_number("std", std, 0, open_low=True)
    check_whole("seeds", seeds, 2)
    servers = {"fedlora": theory.factor_average_terms, "fedex-lora": theory.product_average_terms}
    names = {"fedlora": "mean of factors", "fedex-lora": "mean of products"}
    plan, rows = Plan(rounds=1, local_steps=1, batch=8, lr=8 * std), []
    noise, start = Privacy(noise_multiplier=1.0, delta=1e-3, accountant="rdp"), _expected(rank)
    for place, count in enumerate(clients):
        task = tasks.silent(tasks.regression(clients=count, examples=8, d_in=SIDE, d_out=SIDE, test=1))
        frame: Any = compare(
            task,
            list(servers),
            noise,
            plan,
            seeds=range(place * seeds, (place + 1) * seeds),
            lora=Lora(rank=rank, alpha=rank),
            progress=False,
        )
        last = frame[(frame["measure"] == "norm") & (frame["round"] == 1)]
        for slug, closed in servers.items():
            energy = last[last["method"] == slug]["value"].to_numpy() ** 2
            form = closed(*start, std, std, count)
            rows.append((count, names[slug], *theory.mean_band(energy, 1.96), form.total, form.quadratic))
    return pd.DataFrame(rows, columns=["x", "group", "mean", "low", "high", "closed", "quadratic"])


def _expected(rank: int) -> tuple[Any, Any]:
    """B = 0, and an A of the size that the start has on average."""
    import numpy as np

    return np.zeros((SIDE, rank)), np.full((rank, SIDE), (1 / (3 * SIDE)) ** 0.5)
