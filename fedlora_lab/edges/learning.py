"""Edges of learning: privacy holds, and something other than what was meant is computed."""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab import tasks, theory
from fedlora_lab.edges.edge import Edge
from fedlora_lab.loop import run
from fedlora_lab.mechanism import clip_sum
from fedlora_lab.method import Cycle, Method, Slot
from fedlora_lab.methods import LALoRA
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.rules import binomial

CLIP = 1.0


def a_first() -> Method:
    """Takes turns and begins with A."""
    return LALoRA.replace(name="A first", train=Cycle(("A B",)))


def b_first() -> Method:
    """Takes turns and begins with B."""
    return LALoRA


def first_step(row: Callable[[], Method]) -> float:
    """How far the first step moves the factors without noise, in units of the learning rate."""
    task = tasks.regression(clients=2, examples=8, d_in=8, d_out=6, rank=2, test=4)
    plan = Plan(rounds=1, local_steps=1, batch=None, lr=0.1)
    before, after = run(task, row(), None, plan, lora=Lora(rank=2, alpha=2.0))
    pairs = [(x, y) for name in before.adapter for x, y in zip(before.adapter[name], after.adapter[name], strict=True)]
    return math.sqrt(sum(float((x - y).square().sum()) for x, y in pairs)) / 0.1


Rows = dict[Slot, Tensor]


def norm_over_all(rows: Rows, clip: float) -> Tensor:
    """Clips over both factors although A is frozen; what is left for B."""
    return clip_sum(rows, clip, torch.zeros(1, dtype=torch.int64), 1)[0][Slot("B", "layer")]


def norm_over_what_moves(rows: Rows, clip: float) -> Tensor:
    """Clips over B alone, the factor that moves."""
    moving = {slot: x for slot, x in rows.items() if slot.side == "B"}
    return clip_sum(moving, clip, torch.zeros(1, dtype=torch.int64), 1)[0][Slot("B", "layer")]


def left_for_b(clip: Callable[[Rows, float], Tensor]) -> float:
    """Norm of the clipped gradient of B, in units of C; the stale gradient of A is three times as long."""
    b, a = torch.zeros(1, 4, 2, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.float64)
    b[0, 0, 0], a[0, 0, 0] = 2.0, 6.0
    return float(clip({Slot("B", "layer"): b, Slot("A", "layer"): a}, CLIP).norm()) / CLIP


def smoothed_then_raw(weight: Tensor, noised: Tensor, rate: float) -> Tensor:
    """Takes the smoothed step by hand and lets the optimiser take its own."""
    weight = nn.Parameter((weight - rate * binomial(5)(noised, "B")).clone())
    weight.grad = noised
    torch.optim.SGD([weight], lr=rate).step()
    return weight.detach()


def smoothed(weight: Tensor, noised: Tensor, rate: float) -> Tensor:
    """Takes the smoothed step."""
    return weight - rate * binomial(5)(noised, "B")


def step_length(step: Callable[[Tensor, Tensor, float], Tensor]) -> float:
    """How far the mean entry moves, in steps: the filter keeps the mean."""
    noised = 1 + torch.randn(32, 2, generator=torch.Generator().manual_seed(18), dtype=torch.float64)
    moved = -step(torch.zeros_like(noised), noised, 0.1)
    return float(moved.mean() / (0.1 * noised.mean()))


def norm_by_a_bound(x: Tensor, g: Tensor) -> float:
    """Norm of the inputs times norm of the gradients: Cauchy-Schwarz over the tokens."""
    return float(x.norm() * g.norm())


def norm_of_the_gradient(x: Tensor, g: Tensor) -> float:
    """Norm of the gradient itself, from inner products of tokens."""
    return math.sqrt(float(((x @ x.mT) * (g @ g.mT)).sum()))


def claimed(norm: Callable[[Tensor, Tensor], float]) -> float:
    """Norm by which an example of 128 tokens is clipped, in units of its gradient's."""
    random = torch.Generator().manual_seed(19)
    x, g = (torch.randn(128, width, generator=random, dtype=torch.float64) for width in (768, 768))
    return norm(x, g) / float((g.mT @ x).norm())


def residual_unscaled(B: np.ndarray, A: np.ndarray, scaling: float) -> np.ndarray:
    """What the mean of factors misses, as if the model applied B A."""
    return -theory.deviation(B, A)


def residual_scaled(B: np.ndarray, A: np.ndarray, scaling: float) -> np.ndarray:
    """What the mean of factors misses, as the model applies it."""
    return -scaling * theory.deviation(B, A)


def off_the_mean(residual: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> float:
    """Distance of the server's change of W from the mean of the clients', relative; alpha / r = 4."""
    rng = np.random.default_rng(20)
    B, A, scaling = rng.standard_normal((5, 8, 2)), rng.standard_normal((5, 2, 8)), 4.0
    mean = scaling * (B @ A).mean(0)
    server = scaling * B.mean(0) @ A.mean(0) + residual(B, A, scaling)
    return float(np.linalg.norm(server - mean) / np.linalg.norm(mean))


def in_one_model(clients: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Trains the clients one after the other in the same tensor."""
    held, kept = torch.zeros(2, 3, dtype=torch.float64), []
    for x, y in clients:
        held = _trained(held, x, y)
        kept.append(held)
    return kept


def in_copies(clients: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Trains each client in its own copy."""
    return [_trained(torch.zeros(2, 3, dtype=torch.float64), x, y) for x, y in clients]


def _trained(start: Tensor, x: Tensor, y: Tensor) -> Tensor:
    for _ in range(5):
        start = start - 0.1 * (x @ start.mT - y).mT @ x / len(x)
    return start


def heard_by_the_next(train: Callable[[list[tuple[Tensor, Tensor]]], list[Tensor]]) -> float:
    """How far the second client's own factor moves when only the first client's data are others, relative."""
    random = torch.Generator().manual_seed(21)
    one, other, second = ((torch.randn(8, 3, generator=random, dtype=torch.float64),
                           torch.randn(8, 2, generator=random, dtype=torch.float64)) for _ in range(3))  # fmt: skip
    here, there = (train([first, second])[1] for first in (one, other))
    return float((here - there).norm() / here.norm())


def collected_too_early() -> tuple[nn.Module, nn.Module]:
    """Hands the optimiser the parameters that were there before the adapter was."""
    model, start = _model()
    parameters = list(model.parameters())
    adapted = _adapted(model)
    return start, _fitted(adapted, parameters)


def collected_after() -> tuple[nn.Module, nn.Module]:
    """Hands the optimiser what can be trained once the adapter is in."""
    model, start = _model()
    adapted = _adapted(model)
    return start, _fitted(adapted, [p for p in adapted.parameters() if p.requires_grad])


def _model() -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(23)
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    return model, copy.deepcopy(model)


def _adapted(model: nn.Module) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(24)
        return get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))  # type: ignore[arg-type]


def _points() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(25)
    return torch.randn(16, 6, generator=random), torch.randn(16, 2, generator=random)


def _fitted(model: nn.Module, parameters: list[nn.Parameter]) -> nn.Module:
    x, y = _points()
    optimiser = torch.optim.SGD(parameters, lr=0.5)
    for _ in range(10):
        optimiser.zero_grad()
        (model(x) - y).square().mean().backward()
        optimiser.step()
    return model


def learned(train: Callable[[], tuple[nn.Module, nn.Module]]) -> float:
    """How far ten steps move the model's outputs."""
    start, end = train()
    with torch.no_grad():
        return float((start(_points()[0]) - end(_points()[0])).norm())


LEARNED = "Learning"
EDGES = (
    Edge(
        number=16, title="A first, while B is zero", severity="utility", group=LEARNED,
        wrong="The gradient of A is s·BᵀG: exactly zero. The step, or the round, is pure noise.",
        library="**Tells**, for rows of your own. Every row of the table opens with the factor that starts at zero "
        "(`test_the_schedule_opens_with_what_is_zero`).",
        what="how far the first step moves the factors without noise, in learning rates",
        broken=a_first, fixed=b_first, measure=first_step, line=0.01, side="at least",
    ),
    Edge(
        number=17, title="A frozen factor in the norm, or in the noise", severity="utility", group=LEARNED,
        wrong="Its gradient eats the clip's budget though nothing moves.",
        library="**Cannot say it.** Only what moves in a step is in the norm and gets noise "
        "(`test_noise_is_sigma_c_on_what_moves`, `test_frozen_and_unsent_stay_put`).",
        what="what the clip leaves of a long gradient of B, in units of C",
        broken=norm_over_all, fixed=norm_over_what_moves, measure=left_for_b, line=1 - 1e-9, side="at least",
    ),
    Edge(
        number=18, title="The smoothed step, and then the raw one as well", severity="bug", group=LEARNED,
        wrong="An optimiser that is called after a hand-made step.",
        library="**Cannot say it.** A filter is a function from the noised gradient to the one that is used; there is "
        "one step (`test_steps_are_those_of_torch_sgd`, `test_smoothing_comes_after_the_noise`).",
        what="how many steps the mean entry moves in one step",
        broken=smoothed_then_raw, fixed=smoothed, measure=step_length, line=1 + 1e-9,
    ),
    Edge(
        number=19, title="A bound in place of each example's norm", severity="utility", group=LEARNED,
        wrong="For sequences, Cauchy–Schwarz over-clips by about √T, T the number of tokens.",
        library="**Cannot say it.** Norms are those of each example's exact gradient (`test_equals_batches_of_one`, "
        "`test_equals_opacus`).",
        what="norm by which an example of 128 tokens is clipped, in units of its true norm",
        broken=norm_by_a_bound, fixed=norm_of_the_gradient, measure=claimed, line=1 + 1e-9,
    ),
    Edge(
        number=20, title="A residual or product without α/r", severity="bug", group=LEARNED,
        wrong="The \"exact\" mean is then exact for another model.",
        library="**Measures.** Products are compared as the model applies them; the deviation of a row that claims "
        "`exact` must vanish (`test_deviates_unless_exact`).",
        what="distance from the mean of the clients' products, relative, at α/r = 4",
        broken=residual_unscaled, fixed=residual_scaled, measure=off_the_mean, line=1e-9,
    ),
    Edge(
        number=21, title="What should stay with its client, in one shared model", severity="bug and leak",
        group=LEARNED,
        wrong="Client k + 1 starts from what client k learned.",
        library="**Cannot say it.** Every client has its own copy, and what is not sent comes back to its owner only "
        "(`test_kept_factors_stay_with_their_client`).",
        what="how far a client's own factor moves when only another's data change, relative",
        broken=in_one_model, fixed=in_copies, measure=heard_by_the_next, line=0.0,
    ),
    Edge(
        number=23, title="Adapters on another device, or not trained at all", severity="bug", group=LEARNED,
        wrong="Loss and ε look normal, the model is useless.",
        library="**Measures.** Everything runs on one device, each target's two factors are asked for by name "
        "(`test_every_target_has_its_two_factors`), and a saved adapter must give PEFT the same outputs "
        "(`test_peft_reads_the_folder_and_gives_the_same_logits`). *No check exists yet* that a run of yours has "
        "learned anything: look at round 0.",
        what="how far ten steps of training move the model's outputs",
        broken=collected_too_early, fixed=collected_after, measure=learned, line=0.1, side="at least",
    ),
)  # fmt: skip
