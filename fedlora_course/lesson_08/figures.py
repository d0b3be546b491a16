"""Figures of lesson 08: turns inside a round, and what a low-pass filter keeps."""

from collections.abc import Callable
from typing import Any

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
from fedlora_lab.plots import style
from fedlora_lab.privacy.privatizer import clip_sum
from fedlora_lab.tasks.metrics import squared_error
from fedlora_lab.tasks.task import HeldOut, Layers, Task
from fedlora_lab.theory.products import FactorA, FactorB

CHANNELS = 64
Gradients = Callable[[FactorB, FactorA], tuple[np.ndarray, np.ndarray]]
TURNS = style.look("la-lora").colour


def two_number_descent(
    start: tuple[float, float], lr: float, steps: int, turns: bool
) -> Float[np.ndarray, "n 2"]:
    """Computes the path of (b, a) down (b a - 1)^2 / 2, both at once or alternating.

    In turns b moves in steps 0, 2, ... and a in the others.

    Args: start: (b, a); lr, steps: of the descent; turns: one number a step.
    Returns: (steps + 1, 2); NaN from where a number has passed a million.
    Guarantees: in turns each step shrinks the error (test_in_turns_each_step_shrinks_the_error).
    """
    path = np.full((steps + 1, 2), np.nan)
    point = np.array(start, float)
    for step in range(steps + 1):
        if not np.abs(point).max() < 1e6:
            break
        path[step] = point
        # Of each number: the error times the other number.
        gradient = (point.prod() - 1) * point[::-1]
        if turns:
            gradient[(step + 1) % 2] = 0.0
        point = point - lr * gradient
    return path


@style.paper()
def coupling(lr: float = 0.8) -> style.Picture:
    """Draws two numbers b and a on the loss (b a - 1)^2 / 2: both move at once, or in turns.

    Args: lr: learning rate, of 12 steps from b = 0 and a = 1.
    Guarantees: test_lesson_08.py::test_in_turns_each_step_shrinks_the_error.
    """
    start, steps = (0.0, 1.0), 12
    figure, (plane, right) = style.subplots(9.6, 4.0, columns=2, width_ratios=[4, 3])
    b, a = np.meshgrid(np.linspace(-0.3, 2.3, 160), np.linspace(-0.3, 2.3, 160))
    plane.contour(
        b,
        a,
        np.abs(b * a - 1),
        levels=(0.25, 0.5, 0.75, 1.5, 2.5),
        colors=style.FAINT,
        linewidths=1,
    )
    curve = np.linspace(0.43, 2.3, 100)
    plane.plot(curve, 1 / curve, color=style.RIGHT, lw=3, alpha=0.55)
    style.note(plane, 0.99, 0.1, "b·a = 1", style.RIGHT, 9, weight="bold", ha="right")
    labels = []
    for words, in_turns, colour, marker in (
        ("both at once", False, style.INK, "o"),
        ("in turns", True, TURNS, "v"),
    ):
        line: Any = {"marker": marker, "ms": 5, "mec": style.CARD}
        path = two_number_descent(start, lr, steps, in_turns)
        # Steps to and fro would fill the plane between their ends.
        plane.plot(*path.T, mew=0.6, lw=1.6 if in_turns else 0.5, color=colour, **line)
        error = np.maximum(np.abs(path.prod(1) - 1), 1e-6)
        end = style.named_line(right, np.arange(steps + 1), error, words, colour, **line)
        labels.append(end._replace(y=float(np.clip(np.nan_to_num(end.y, nan=9), 1e-6, 9))))
    plane.plot(*start, "o", ms=10, mfc="none", mec=style.INK, mew=1.6)
    plane.text(start[0] + 0.1, start[1] + 0.08, "start", fontsize=9)
    plane.set(xlim=(-0.2, 1.6), ylim=(0.4, 1.6), xlabel="b", ylabel="a")
    plane.set_title(f"Two numbers, learning rate {lr:g}")
    right.set(yscale="log", xlim=(0, steps), ylim=(1e-6, 10), xlabel="step")
    right.set_ylabel("|b·a − 1| (10⁻⁶ where less)")
    both, turns = (label.y for label in labels)
    sooner = "in turns" if turns < both else "both at once"
    finding = f"Both settle, {sooner} sooner"
    if both > 0.1 > turns:
        finding = "In turns it settles; both at once does not"
    right.set_title(finding)
    style.label_ends(right, labels)
    return figure


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
