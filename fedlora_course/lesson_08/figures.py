"""Figures of lesson 08: turns inside a round, and what a low-pass filter keeps."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.fft import dct, idct
from torch import nn

import fedlora_lab as fl
from fedlora_course.lesson_04.figures import drawn_gradients
from fedlora_lab._utils.validation import check_number, check_one_of
from fedlora_lab.lora.source import Trained, require_source
from fedlora_lab.measures.gradients import private_gradients
from fedlora_lab.methods import LALoRA
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import TensorDict
from fedlora_lab.privacy.privatizer import clip_sum
from fedlora_lab.tasks.metrics import squared_error
from fedlora_lab.tasks.task import HeldOut, Layers, Task
from fedlora_lab.theory.products import FactorA, FactorB

CHANNELS = 64
Gradients = Callable[[FactorB, FactorA], tuple[np.ndarray, np.ndarray]]


def three_clients() -> Callable[[int], Gradients]:
    """Returns what a client's local steps ask of three clients' digits, for one layer at γ = 1.

    Returns: gradients_of(k) -> a function of (B, A), the gradients g_B (n, d_out, r) and g_A
        (n, r, d_in) of a batch of about 32 that client k draws.
    """
    task = fl.tasks.digits(clients=3, dirichlet=0.5, targets=("blocks.1.value",))
    start = next(fl.run(task, "fedlora", None, fl.Plan(), lora=fl.Lora(rank=4, alpha=4), seed=0))
    rng = np.random.default_rng(0)

    def gradients_of(k: int) -> Gradients:
        def gradients(B: FactorB, A: FactorA) -> tuple[np.ndarray, np.ndarray]:
            g_B, g_A = drawn_gradients(start, B, A, batch=32, rng=rng)
            return g_B[k], g_A[k]

        return gradients

    return gradients_of


def filtered_by(
    filtered: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
) -> Method:
    """Makes LA-LoRA with a filter of one's own.

    Args: filtered: of gradients of B and A, as in exercise 08.2.
    """

    def rule(tensor: torch.Tensor, name: str) -> torch.Tensor:
        # The filter mixes channels alone, so the clients' matrices may stand side by side in one.
        # The exercise filters both factors, a step releases one: the other is the same, turned.
        values = np.moveaxis(tensor.double().numpy(), -2 if name == "B" else -1, 0)
        columns = values.reshape(len(values), -1)
        smooth_B, smooth_A = filtered(columns, columns.T)
        smooth = (smooth_B if name == "B" else smooth_A.T).reshape(values.shape)
        smooth = np.moveaxis(smooth, 0, -2 if name == "B" else -1)
        return torch.from_numpy(np.ascontiguousarray(smooth)).to(tensor)

    return LALoRA.replace(name="my LA-LoRA", filter=rule)


def sensors(shuffle: bool = False) -> Task:
    """Builds a regression task on 64 sensors in a row, whose neighbours read alike.

    Readings are sums of the eight slowest waves, so neighbours are alike, and so is the truth: the
    frozen layer (the identity) plus a map of rank 4 between slow waves. Before training the loss is
    1 plus the variance of the measurement, 0.01.

    Args: shuffle: renumber the places at random, inputs and outputs alike. The task is the same.
    """
    rng = np.random.default_rng(0)
    waves = idct(np.eye(CHANNELS), norm="ortho")[:8]
    core = rng.standard_normal((8, 4)) @ rng.standard_normal((4, 8))
    change = waves.T @ (core * np.sqrt(8 / np.sum(core**2))) @ waves
    order = np.random.default_rng(1).permutation(CHANNELS) if shuffle else np.arange(CHANNELS)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = rng.standard_normal((count, 8)) @ waves * np.sqrt(CHANNELS / 8)
        y = x + x @ change.T + 0.1 * rng.standard_normal(x.shape)
        inputs, outputs = (torch.from_numpy(z[:, order]).float() for z in (x, y))
        return inputs, outputs

    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(CHANNELS, CHANNELS, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.eye(CHANNELS))
    model = nn.Sequential()
    model.add_module("map", layer)
    return Task(
        name="sensors",
        model=model,
        layers=Layers(("map",)),
        clients=[draw(128) for _ in range(10)],
        held_out=HeldOut(draw(256)),
        loss=squared_error,
        metrics={"loss": squared_error},
    )


def spectrum(tensor: "torch.Tensor | np.ndarray", factor: str) -> Float[np.ndarray, " n"]:
    """Computes the energy at each frequency along the long axis of a factor.
    Shapes are (..., r, n) for A and (..., n, r) for B.

    Of the cosine transform (DCT-II), slow ones first; it sums to the squared Frobenius norm.
    """
    check_one_of("factor", factor, ("A", "B"))
    rows = np.moveaxis(np.asarray(tensor, float), -1 if factor == "A" else -2, -1)
    energy = np.square(np.asarray(dct(rows, norm="ortho", axis=-1)))
    return energy.reshape(-1, rows.shape[-1]).sum(0)


def gradient_spectra(record: Trained, clip_norm: float = 1.0) -> pd.DataFrame:
    """Computes spectra of the mean clipped gradient over all private examples, by layer.

    One factor moves at a time, as in LA-LoRA. It reads private values: never for a release.

    Returns: columns layer, factor, frequency (0 to 1), energy.
    Guarantees: those of the mean gradient
        (test_lesson_08.py::test_gradient_spectra_are_those_of_the_mean_gradient).
    """
    check_number("clip_norm", clip_norm, 0, open_low=True)
    origin = require_source(record)
    frames = []
    for factor in "AB":
        totals: TensorDict = {}
        for rows in private_gradients(origin, factor):
            owner = torch.zeros(len(next(iter(rows.values()))), dtype=torch.int64)
            sums, _ = clip_sum(rows, clip_norm, owner, 1)
            totals = {key: x[0] + totals.get(key, 0) for key, x in sums.items()}
        for key, total in totals.items():
            energy = spectrum(total / sum(origin[0].sizes), factor)
            place = np.arange(len(energy)) / len(energy)
            columns = {"layer": key.layer, "factor": factor, "frequency": place, "energy": energy}
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)
