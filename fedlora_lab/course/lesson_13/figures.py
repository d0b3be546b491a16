"""Figures of notebook 13: ε by observer, colluding clients and masks."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float

from fedlora_lab import theory
from fedlora_lab.audit.bounds import DELTA, gaussian_noise_multiplier
from fedlora_lab.course.lesson_13.dials import TRUSTS, epsilon_by_observer
from fedlora_lab.plots import style

Numbers = Float[np.ndarray, " d"]


def epsilon_table(sigma: float, clients: int, colluders: int) -> pd.DataFrame:
    """Tabulates `epsilon_by_observer` for every kind of trust; infinite where there is no noise.

    Args: sigma, clients, colluders: as of `epsilon_by_observer`.
    """
    rows = {trust: epsilon_by_observer(trust, sigma, clients, colluders) for trust in TRUSTS}
    observers = {
        "public": "who sees the model",
        "server": "the server",
        "together": f"the server and {colluders} of {clients}",
    }
    return pd.DataFrame(rows).T.rename(columns=observers)


def collusion_table(clients: int, epsilon: float, relied: Sequence[int]) -> pd.DataFrame:
    """Computes ε against a server with colluders, by how many honest shares the noise counts on.

    Args: clients: >= 2; epsilon: promised, for one release; relied: numbers of honest noise shares
        that together make up sigma C.
    Returns: columns colluding, noise (words), epsilon.
    """
    sigma = gaussian_noise_multiplier(epsilon)
    rows = []
    for shares in relied:
        for colluding in range(clients):
            left = theory.surviving_multiplier(sigma, shares, clients - colluding)
            spent = theory.gdp_epsilon(1 / left, DELTA)
            rows.append((colluding, f"counts on {shares} shares", spent))
    return pd.DataFrame(rows, columns=["colluding", "noise", "epsilon"])


@style.paper()
def masked_upload(
    update: Numbers,
    upload: Numbers,
    true: Numbers,
    opened: Numbers,
) -> style.Picture:
    """Draws a client's numbers against what the server receives, and the true sum against its own.

    Args: update: noised; upload: masked, as a share of the modulus; true, opened: sums.
    """
    figure, (left, right) = style.subplots(8.8, 3.7, columns=2)
    style.draw_dots(left, update, upload, style.SERIES[1], 2.4, mew=0, alpha=0.5)
    left.set(ylim=(-0.02, 1.02), xlabel="a number of one client's update")
    left.set(ylabel="received, share of the modulus", title="One upload tells nothing")
    style.draw_dots(right, true, opened, style.RIGHT, 2.6, mew=0, alpha=0.7)
    right.set_xlabel("true sum of the clients that arrived")
    right.set(ylabel="sum that the server opens", title="The sum is right")
    return figure
