"""Thirty pitfalls that run: each as a broken and a sound form with one number between them.

The words stand in sharp_edges.toml, by number. Each function below returns the number of its
pitfall with the mistake (``broken``) or without it; `BUGS` are mistakes to inject in a run. The
broken forms live here, in the course and in tests only; nothing of the library imports them.

>>> import fedlora_lab as fl
>>> clip_of_the_mean = fl.sharp_edges.PITFALLS[3]
>>> clip_of_the_mean
Pitfall 3, fatal: Clipping the mean gradient of a batch
>>> clip_of_the_mean.measure()  # how far one example moves the sum, in units of the clip norm
Measurement(broken=32.0, sound=1.0)
"""

import copy
import math
import re
import tomllib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab import tasks, theory
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_one_of, check_whole
from fedlora_lab.audit.bounds import best_threshold_bound
from fedlora_lab.federated.run import run
from fedlora_lab.methods.filters import binomial, factor_space, product_space
from fedlora_lab.methods.method import Cycle
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.published import LALoRA
from fedlora_lab.methods.state import ParamKey, Tensors
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.mechanism import ClipCounts, clip_sum, gaussian_noise, row_norms

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BUGS", "GROUPS", "PITFALLS", "Measurement", "Pitfall", "measure_pitfalls"]

SEVERITIES = ("fatal", "serious", "bug", "bug and leak", "utility", "honesty", "note")
GROUPS = ("Counting", "Learning", "Saying what was found", "Chance")
ANSWERS = ("Not expressible", "Refuses", "Measures", "Tells")
SIDES = ("at most", "at least")
_TEXTS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

UP_TO_1 = 1 + 1e-9
"""The line of a number that may reach 1, rounding allowed for."""


class Measurement(NamedTuple):
    """What a pitfall's metric gives for its broken and its sound form."""

    broken: float
    sound: float


@dataclass(frozen=True, kw_only=True)
class Pitfall:
    """One way to go wrong, as something that runs.

    Args:
        number: 1 to 30, as on the page of sharp edges.
        metric: runs a small mechanism with the mistake (``True``) or without it (``False``) and
            returns a number; the same number every time.
        line: the number that a sound mechanism keeps to.
        side: the side of the line that is sound, "at most" or "at least".
        title: the mistake in a few words.
        severity: one of `SEVERITIES`; their meaning stands on the page.
        group: one of `GROUPS`, the section of the page.
        wrong: what really happens, Markdown.
        library: what this library does about it, Markdown; begins with one of `ANSWERS` in bold and
            names its tests.
        what: what the number is, in words, with its unit.

    Guarantees: the broken form crosses its line, the sound one does not
        (test_the_line_lies_between_broken_and_sound).
    """

    number: int
    metric: Callable[[bool], float]
    line: float
    side: str = "at most"
    title: str
    severity: str
    group: str
    wrong: str
    library: str
    what: str

    def __post_init__(self) -> None:
        check_whole("number", self.number, 1)
        for name, allowed in (("severity", SEVERITIES), ("group", GROUPS), ("side", SIDES)):
            check_one_of(name, getattr(self, name), allowed)
        check_one_of("answer", self.answer, ANSWERS)

    @property
    def answer(self) -> str:
        """What the library does, in the page's few words."""
        bold = re.match(r"\*\*(.*?)\.?\*\*", self.library)
        return bold[1] if bold else ""

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the tests that stand against it."""
        return tuple(re.findall(r"`(test_\w+)`", self.library))

    def measure(self) -> Measurement:
        """Measures both forms now."""
        return Measurement(broken=self.metric(True), sound=self.metric(False))

    def is_sound(self, value: float) -> bool:
        """Whether a number is on the sound side of the line."""
        return value <= self.line if self.side == "at most" else value >= self.line

    def __repr__(self) -> str:
        return f"Pitfall {self.number}, {self.severity}: {self.title}"


def pitfall(
    number: int, line: float, side: str = "at most"
) -> Callable[[Callable[[bool], float]], Pitfall]:
    """Makes a metric the pitfall of this number, with its words from sharp_edges.toml.

    Args: number, line, side: see `Pitfall`.
    """
    words: Any = {name: " ".join(text.split()) for name, text in _TEXTS[str(number)].items()}
    return lambda metric: Pitfall(number=number, metric=metric, line=line, side=side, **words)


def proved_epsilon(inside: np.ndarray, outside: np.ndarray, delta: float) -> float:
    """Returns the epsilon that the scores of an attack prove, 95 % sure.

    Args:
        inside, outside: (n,) scores of independent runs with and without the example; the first
            halves choose the threshold, the second halves are judged by it.
        delta: of the privacy definition.
    """
    (learn_in, judge_in), (learn_out, judge_out) = (np.array_split(x, 2) for x in (inside, outside))
    learn = np.concatenate([learn_in, learn_out])
    grid = np.unique(np.quantile(learn, np.linspace(0.001, 0.999, 200)))
    bound = partial(best_threshold_bound, delta=delta, significance=0.05)
    best = grid[int(np.argmax([bound(learn_in, learn_out, thresholds=[t]) for t in grid]))]
    return bound(judge_in, judge_out, thresholds=[best])


# ---- privacy: what is counted, how it is clipped, and what gets past the noise

ONE = ParamKey("B", "layer")
DELTA, CLIP = 1e-5, 1.0

# What is counted


@pitfall(1, 5.42, "at least")
def ledger_of_the_last_round(broken: bool) -> float:
    """Returns the epsilon stated after 100 rounds; the mistake opens a ledger for every round."""
    ledger = Ledger(delta=DELTA, accountant="rdp")
    for t in range(100):
        ledger = Ledger(delta=DELTA, accountant="rdp") if broken else ledger
        ledger.record(t, None, 125, sample_rate=32 / 4000, noise_multiplier=1.0)
    return ledger.epsilon()


@pitfall(2, 6.0)
def noise_for_one_round(broken: bool) -> float:
    """Returns the epsilon spent by sixty rounds, an epoch each, where 6 was meant."""
    q, steps, rounds = 1 / 400, 400, 60
    planned = steps if broken else steps * rounds
    sigma = accounting.noise_multiplier(6.0, DELTA, q, planned, "rdp")
    return accounting.epsilon(((sigma, q, steps * rounds),), DELTA, "rdp")


def _calibrated(privacy: Privacy, epsilon: float, plan: Plan, sizes: tuple[int, ...]) -> float:
    task, privacy = SimpleNamespace(sizes=sizes), privacy.replace(accountant="rdp")
    sigma = privacy.calibrate(epsilon=epsilon, task=task, plan=plan).noise_multiplier
    assert isinstance(sigma, float)
    return sigma


@pitfall(5, 1.0)
def noise_for_examples(broken: bool) -> float:
    """Returns the epsilon of one client after a hundred noised updates, where 1 was meant.

    The mistake takes the noise for draws of 128 of 6,400 examples.
    """
    delta, plan = 1e-3 / 12, Plan(rounds=100, local_steps=50, batch=128)
    if broken:
        sigma = _calibrated(Privacy(unit="example", delta=delta), 1.0, plan, (6400,))
    else:
        privacy = Privacy(unit="client", delta=delta, trust="local")
        sigma = _calibrated(privacy, 1.0, plan, (6400,) * 12)
    return theory.gdp_epsilon(theory.gaussian_mu(sigma, 100), delta)


@pitfall(6, 0.02)
def delta_of_one_over_units(broken: bool) -> float:
    """Returns the chance that somebody is published outright, each with chance delta."""
    units, trials, delta = 100, 20_000, 1 / 100
    if not broken:
        privacy = Privacy(unit="client", delta=0.01 / units, noise_multiplier=1.0)
        delta = privacy.resolve(SimpleNamespace(sizes=(1,) * units), Plan()).delta
    published = np.random.default_rng(6).binomial(units, delta, trials)
    return float((published > 0).mean())


@pitfall(9, 1.0)
def textbook_sigma(broken: bool) -> float:
    """Returns the true delta of one release at epsilon = 12, in units of the delta meant.

    The mistake uses the textbook's formula where it was never proven.
    """
    sigma = math.sqrt(2 * math.log(1.25 / DELTA)) / 12.0
    if not broken:
        sigma = accounting.noise_multiplier(12.0, DELTA, 1.0, 1)
    return theory.gdp_delta(1 / sigma, 12.0) / DELTA


@pitfall(13, 2.0)
def noise_for_the_expected(broken: bool) -> float:
    """Returns the largest epsilon of 100 clients drawn round by round, where 2 was meant.

    The mistake counts the ten rounds that a client has on average, not all forty.
    """
    rounds, share, steps, q = 40, 0.25, 5, 0.1
    if broken:
        sigma = accounting.noise_multiplier(2.0, DELTA, q, int(rounds * share) * steps, "rdp")
    else:
        plan = Plan(rounds=rounds, local_steps=steps, batch=10, participation=share)
        sigma = _calibrated(Privacy(delta=DELTA), 2.0, plan, (100,))
    most = int(np.random.default_rng(13).binomial(rounds, share, 100).max())
    return accounting.epsilon(((sigma, q, most * steps),), DELTA, "rdp")


@pitfall(14, 1.0)
def shuffled_batches(broken: bool) -> float:
    """Returns what 2 x 20,000 runs of 200 noised steps prove about epsilon, 95 % sure.

    The mistake cuts the examples into batches once. The attacker weighs each step by the chance,
    known to him, that the example is in it: the likelihood ratio.
    """
    runs, steps, sigma, rng, scores = 20_000, 200, 0.8, np.random.default_rng(14), []
    own = np.arange(steps) == steps // 2
    for there in (1, 0):
        member = np.tile(own, (runs, 1)) if broken else rng.random((runs, steps)) < 1 / steps
        chance = own.astype(float) if broken else np.full(steps, 1 / steps)
        seen = there * member + sigma * rng.standard_normal((runs, steps))
        scores.append(np.log1p(chance * np.expm1((2 * seen - 1) / (2 * sigma**2))).sum(1))
    return proved_epsilon(scores[0], scores[1], DELTA)


@pitfall(22, 3.77, "at least")
def central_limit(broken: bool) -> float:
    """Returns the epsilon stated for q = 0.1, sigma = 3, 512 steps, delta = 1e-6."""
    q, sigma, steps, delta = 0.1, 3.0, 512, 1e-6
    if broken:
        return theory.gdp_epsilon(theory.clt_mu(q, sigma, steps), delta)
    return accounting.epsilon(((sigma, q, steps),), delta)


@pitfall(30, 1.6)
def sketch_taken_for_noise(broken: bool) -> float:
    """Returns what 2 x 20,000 releases of four clients prove about epsilon, 95 % sure.

    Each sends a sketch of its clipped change in 16 numbers, with noise of 0.1013. The attacker has
    the other changes and the sketch's matrix, and looks along the image of the one that he seeks.
    """
    runs, size, rng, scores = 20_000, 16, np.random.default_rng(30), []
    noise = 2 * 0.1013 if broken else 1 / 0.4  # 0.4-GDP: epsilon is 1.55 for one release
    for there in (1, 0):
        image = rng.standard_normal((runs, size)) / size**0.5
        length = np.linalg.norm(image, axis=1, keepdims=True)
        image = image if broken else image / np.maximum(length, 1)  # the sound form clips it again
        seen = there * image + noise * rng.standard_normal((runs, size))
        scores.append((image * seen).sum(1) / np.linalg.norm(image, axis=1))
    return proved_epsilon(scores[0], scores[1], DELTA)


# How it is clipped


def _clip(rows: Tensors, clip: float = CLIP) -> Tensors:
    """Clips every row over all its tensors and adds up, as the library does; key -> (...)."""
    count = len(next(iter(rows.values())))
    sums, _ = clip_sum(rows, clip, torch.zeros(count, dtype=torch.int64), 1)
    return {key: total[0] for key, total in sums.items()}


def _largest_move(release: Callable[[Tensors], Tensors], rows: Tensors) -> float:
    """Returns how far leaving out one row moves what is released at most, in units of C."""
    count, whole, moves = len(next(iter(rows.values()))), release(rows), []
    for i in range(count):
        part = release({key: x[torch.arange(count) != i] for key, x in rows.items()})
        squares = (float((whole[key] - part[key]).square().sum()) for key in whole)
        moves.append(math.sqrt(sum(squares)))
    return max(moves) / CLIP


@pitfall(3, UP_TO_1)
def clip_of_the_mean(broken: bool) -> float:
    """Returns how far one of 16 examples moves the sum: a huge one against fifteen others."""

    def clip_the_mean(rows: Tensors) -> Tensors:
        mean = {key: x.sum(0, keepdim=True) / 16 for key, x in rows.items()}
        return {key: 16 * x for key, x in _clip(mean).items()}

    rows = torch.zeros(16, 4, dtype=torch.float64)
    rows[:15, 0], rows[15, 0] = 2.0, -1e4
    return _largest_move(clip_the_mean if broken else _clip, {ONE: rows})


@pitfall(4, UP_TO_1)
def threshold_from_the_batch(broken: bool) -> float:
    """Returns how far one of 17 examples moves the sum, in thresholds; broken: the median norm."""
    rows = torch.zeros(17, 2, dtype=torch.float64)
    rows[:8, 0], rows[8:, 0] = 1.0, 100.0

    def release(rows: Tensor) -> tuple[Tensor, float]:
        clip = float(row_norms({ONE: rows}).quantile(0.5)) if broken else CLIP
        return _clip({ONE: rows}, clip)[ONE], clip

    whole, _ = release(rows)
    parts = [release(rows[torch.arange(17) != i]) for i in range(17)]
    return max(float((whole - part).norm()) / clip for part, clip in parts)


@pitfall(7, UP_TO_1)
def clip_of_each_tensor(broken: bool) -> float:
    """Returns how far one example moves the sum over four tensors, in units of C."""

    def clip_each(rows: Tensors) -> Tensors:
        return {key: _clip({key: x})[key] for key, x in rows.items()}

    random = torch.Generator().manual_seed(7)
    draws = [9 * torch.randn(5, 3, generator=random, dtype=torch.float64) for _ in range(4)]
    rows = {ParamKey("B", f"layer {i}"): x for i, x in enumerate(draws)}
    return _largest_move(clip_each if broken else _clip, rows)


@pitfall(8, UP_TO_1)
def clip_of_the_weights(broken: bool) -> float:
    """Returns how far a client that trained a little moves a model of norm 3 C, in units of C."""
    start = torch.tensor([3.0, 0.0], dtype=torch.float64) * CLIP
    trained = start + torch.tensor([0.0, 0.1], dtype=torch.float64) * CLIP
    if broken:
        move = _clip({ONE: trained[None]})[ONE] - start
    else:
        move = _clip({ONE: trained[None] - start})[ONE]
    return float(move.norm()) / CLIP


@pitfall(10, UP_TO_1)
def weights_by_size(broken: bool) -> float:
    """Returns how far one of eight clients moves the mean, in the noise's units of C / K."""
    sizes = torch.tensor([400.0, 100, 80, 60, 40, 40, 20, 10], dtype=torch.float64)
    each, everyone = torch.eye(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)

    def mean(there: Tensor) -> Tensor:
        weights = sizes / sizes.sum() * there if broken else there / 8
        return weights @ (CLIP * each)

    moves = [float((mean(everyone) - mean(everyone - each[k])).norm()) for k in range(8)]
    return max(moves) / (CLIP / 8)


# What gets past the noise


@pitfall(11, 0.93)
def share_of_the_noise(broken: bool) -> float:
    """Returns the epsilon of one of a hundred uploads for whoever looks at it; sigma = 4.

    The mistake adds what is enough for a sum that nobody takes apart.
    """
    trust = "secagg" if broken else "local"
    privacy = Privacy(unit="client", trust=trust, noise_multiplier=4.0, delta=1e-3)
    each = privacy.noise_levels(100, Plan()).each
    assert isinstance(each, float)
    return theory.gdp_epsilon(CLIP / each, 1e-5)


@pitfall(12, UP_TO_1)
def noise_shaped_by_a_pseudo_inverse(broken: bool) -> float:
    """Returns by how many noise deviations the worst allowed change stands out; peer norm 3."""
    peer = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    shape = (factor_space if broken else product_space)(peer @ peer.mT)
    return float(torch.linalg.matrix_norm(torch.linalg.pinv(shape.noise) @ shape.after, ord=2))


@pitfall(15, 0.0)
def raw_score(broken: bool) -> float:
    """Returns how many released numbers depend on the data although C = 0 lets nothing through.

    Beside the noised sum goes the norm of the raw gradients (broken), or that of the sum.
    """

    def release(rows: Tensor) -> Tensor:
        xi = gaussian_noise({ONE: rows.shape[1:]}, [1.0], Streams(15), [(0, 0, 0)])[ONE][0]
        sent = _clip({ONE: rows}, 0.0)[ONE] + xi
        return torch.cat([sent, (rows if broken else sent).norm().reshape(1)])

    data = (torch.tensor(np.random.default_rng(seed).standard_normal((6, 5))) for seed in (0, 1))
    one, other = map(release, data)
    return float((one != other).sum())


# Bugs in the place of the library's clip, for tests and lesson 12 only. Each has the signature of
# `mechanism.clip_sum`; the ledger of a run with one is uncertified.


def _clips_nothing(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Adds up the rows as they are."""
    return clip_sum(rows, math.inf, owner, owners)


def _clips_the_mean(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Adds up first and clips each owner's sum, as if its mean were one row (pitfall 3)."""
    sums, counts = clip_sum(rows, math.inf, owner, owners)
    scaled = clip * max(1, len(owner)) / owners
    return clip_sum(sums, scaled, torch.arange(owners), owners)[0], counts


def _clips_each_tensor(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Clips every tensor to C and counts one release (pitfall 7)."""
    parts = [clip_sum({key: x}, clip, owner, owners) for key, x in rows.items()]
    sums = {key: x for part, _ in parts for key, x in part.items()}
    return sums, sum((n for _, n in parts), ClipCounts())


def _clips_at_the_median(rows: Any, clip: float, owner: Any, owners: int, *rest: Any) -> Any:
    """Takes the threshold from the batch (pitfall 4)."""
    norms = row_norms(rows)
    norms = norms[norms.isfinite()]
    return clip_sum(rows, float(norms.median()) if len(norms) else clip, owner, owners)


BUGS: dict[str, Callable[..., Any]] = {
    bug.__name__.strip("_").replace("_", " "): bug
    for bug in (_clips_nothing, _clips_the_mean, _clips_each_tensor, _clips_at_the_median)
}
"""Name -> bug. A review finds every one (test_lesson_12.py::test_every_bug_is_found)."""


# ---- learning and reporting: another model than meant, or a number that says too much

# Another model than meant


@pitfall(16, 0.01, "at least")
def alternation_begins_with_a(broken: bool) -> float:
    """Returns how far the first step moves the factors, in units of the learning rate."""
    row = LALoRA.replace(name="A first", train=Cycle(("A B",))) if broken else LALoRA
    task = tasks.regression(clients=2, examples=8, d_in=8, d_out=6, rank=2, test=4)
    plan = Plan(rounds=1, local_steps=1, batch=None, lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one of the factors never moves in a single step
        before, after = run(task, row, None, plan, lora=Lora(rank=2, alpha=2.0))
    squares = (
        float((x - y).square().sum())
        for name in before.adapter
        for x, y in zip(before.adapter[name], after.adapter[name], strict=True)
    )
    return math.sqrt(sum(squares)) / 0.1


@pitfall(17, 1 - 1e-9, "at least")
def norm_over_a_frozen_factor(broken: bool) -> float:
    """Returns the norm of B's clipped gradient, in units of C.

    The mistake takes the norm over both factors, though A is frozen; its stale gradient is three
    times as long.
    """
    b, a = torch.zeros(1, 4, 2, dtype=torch.float64), torch.zeros(1, 2, 4, dtype=torch.float64)
    b[0, 0, 0], a[0, 0, 0] = 2.0, 6.0
    key = ParamKey("B", "layer")
    rows = {key: b} | ({ParamKey("A", "layer"): a} if broken else {})
    return float(clip_sum(rows, 1.0, torch.zeros(1, dtype=torch.int64), 1)[0][key].norm())


@pitfall(18, UP_TO_1)
def smoothed_step_taken_twice(broken: bool) -> float:
    """Returns how far the mean entry moves, in steps: the filter keeps the mean.

    The mistake takes the smoothed step by hand and lets the optimiser take its own as well.
    """
    random = torch.Generator().manual_seed(18)
    noised = 1 + torch.randn(32, 2, generator=random, dtype=torch.float64)
    weight = nn.Parameter(torch.zeros_like(noised) - 0.1 * binomial(5)(noised, "B"))
    if broken:
        weight.grad = noised
        torch.optim.SGD([weight], lr=0.1).step()
    return float(-weight.detach().mean() / (0.1 * noised.mean()))


@pitfall(19, UP_TO_1)
def norm_by_a_bound(broken: bool) -> float:
    """Returns the norm by which an example of 128 tokens is clipped, in units of its gradient's.

    The mistake multiplies the norms of inputs and gradients: Cauchy-Schwarz over the tokens.
    """
    random = torch.Generator().manual_seed(19)
    x, g = (torch.randn(128, width, generator=random, dtype=torch.float64) for width in (768, 768))
    norm = float(x.norm() * g.norm())
    if not broken:
        norm = math.sqrt(float(((x @ x.mT) * (g @ g.mT)).sum()))
    return norm / float((g.mT @ x).norm())


@pitfall(20, 1e-9)
def unscaled_residual(broken: bool) -> float:
    """Returns the distance of the server's change of W from the clients' mean; alpha / r = 4."""
    rng = np.random.default_rng(20)
    B, A, scaling = rng.standard_normal((5, 8, 2)), rng.standard_normal((5, 2, 8)), 4.0
    mean = scaling * (B @ A).mean(0)
    residual = -theory.deviation_matrix(B, A) * (1.0 if broken else scaling)
    server = scaling * B.mean(0) @ A.mean(0) + residual
    return float(np.linalg.norm(server - mean) / np.linalg.norm(mean))


@pitfall(21, 0.0)
def clients_in_one_model(broken: bool) -> float:
    """Returns how far the second client's factor moves when only the first's data change.

    The mistake trains the clients one after the other in the same tensor.
    """
    random = torch.Generator().manual_seed(21)
    draws = [torch.randn(8, d, generator=random, dtype=torch.float64) for d in (3, 2) * 3]
    one, other, second = zip(draws[::2], draws[1::2], strict=True)

    def trained(start: Tensor, x: Tensor, y: Tensor) -> Tensor:
        for _ in range(5):
            start = start - 0.1 * (x @ start.mT - y).mT @ x / len(x)
        return start

    zero = torch.zeros(2, 3, dtype=torch.float64)
    firsts = [trained(zero, *data) if broken else zero for data in (one, other)]
    here, there = (trained(start, *second) for start in firsts)
    return float((here - there).norm() / here.norm())


@pitfall(23, 0.1, "at least")
def parameters_collected_too_early(broken: bool) -> float:
    """Returns how far ten steps move the outputs of a model with an adapter.

    The mistake hands the optimiser the parameters that were there before the adapter was.
    """
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(23)
        model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
        start, parameters = copy.deepcopy(model), list(model.parameters())
        torch.manual_seed(24)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["0"])
        adapted = get_peft_model(model, config)
    if not broken:
        parameters = [p for p in adapted.parameters() if p.requires_grad]
    random, optimiser = torch.Generator().manual_seed(25), torch.optim.SGD(parameters, lr=0.5)
    x, y = torch.randn(16, 6, generator=random), torch.randn(16, 2, generator=random)
    for _ in range(10):
        optimiser.zero_grad()
        (adapted(x) - y).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        return float((start(x) - adapted(x)).norm())


# A number that says too much


@pitfall(24, 1.0)
def best_round(broken: bool) -> float:
    """Returns the points by which runs of a model that is 80 % right report too much.

    1,000 runs of 20 rounds report their best (broken) or last round on 100 examples.
    """
    curves = np.random.default_rng(24).binomial(100, 0.8, (1000, 20)) / 100
    reported = curves.max(1) if broken else curves[:, -1]
    return 100 * (float(np.mean([float(value) for value in reported])) - 0.8)


@pitfall(27, 4.38)
def best_of_twenty(broken: bool) -> float:
    """Returns what 2 x 20,000 runs prove about epsilon, 95 % sure; one score is 1-GDP.

    Published is the best of twenty private scores (broken), or one that was fixed beforehand.
    """
    rng, published = np.random.default_rng(27), []
    for there in (1.0, 0.0):
        scores = there + rng.standard_normal((20_000, 20))
        published.append(scores.max(1) if broken else scores[:, 0])
    return proved_epsilon(published[0], published[1], 1e-5)


@pitfall(28, 0.0)
def scaled_by_the_data(broken: bool) -> float:
    """Returns how far leaving out one of 20 values moves what they are normalised with."""
    values = np.random.default_rng(28).uniform(0, 16, 20)

    def scale(values: np.ndarray) -> np.ndarray:
        return np.array([values.mean(), values.std()] if broken else [8.0, 16.0])

    moves = (scale(values) - scale(np.delete(values, i)) for i in range(20))
    return max(float(np.abs(move).max()) for move in moves)


# Chance


@pitfall(25, 1.0, "at least")
def published_seed(broken: bool) -> float:
    """Returns by how many noise deviations an attacker misses a noised value.

    With a published seed he draws the same noise; without one he can only draw anew.
    """
    ours, theirs = (Streams(25 if broken else None) for _ in range(2))
    released = 0.5 + ours.normal((100_000,), "noise", 0)
    guess = released - theirs.normal((100_000,), "noise", 0)
    # Rounded, for without a seed no two measurements are equal.
    return round(float((guess - 0.5).square().mean().sqrt()), 1)


@pitfall(26, 0.0)
def floating_point_noise(broken: bool) -> float:
    """Returns the share of releases of the value 0 that no noise could make of the value 1.

    Rounding to steps of 1/1024 closes this hole, and proves nothing about others.
    """

    def release(value: float, xi: Tensor) -> Tensor:
        noised = torch.tensor(value, dtype=torch.float32) + xi
        return noised if broken else torch.round(noised * 1024) / 1024

    seen = release(0.0, Streams(26).normal((100_000,), "noise", 0))
    back = release(1.0, seen - 1.0)
    return float((back != seen).float().mean())


@pitfall(29, 0.1)
def one_integer_for_two_purposes(broken: bool) -> float:
    """Returns the correlation of pretrained weights with the adapter's start."""
    purposes = ("pretraining", "adapter")
    one, other = (
        np.random.default_rng(0) if broken else Streams(0).numpy(purpose) for purpose in purposes
    )
    return abs(float(np.corrcoef(one.standard_normal(4096), other.standard_normal(4096))[0, 1]))


_EDGES = [one for one in globals().values() if isinstance(one, Pitfall)]
PITFALLS: dict[int, Pitfall] = dict(sorted((one.number, one) for one in _EDGES))
"""Number -> pitfall, 1 to 30."""


def measure_pitfalls(numbers: Iterable[int] | None = None) -> "pd.DataFrame":
    """Measures pitfalls and lists what their broken and sound forms give.

    Args:
        numbers: which; ``None``: all of them, some seconds.

    Returns:
        Indexed by number; columns edge, severity, measured (what, in words), broken, sound, line.

    Raises:
        KeyError: for a number that is none.
    """
    import pandas as pd

    rows = {}
    for number in PITFALLS if numbers is None else numbers:
        one = PITFALLS[number]
        line = f"{one.side} {one.line:.3g}"
        rows[number] = (one.title, one.severity, one.what, *one.measure(), line)
    columns = ["edge", "severity", "measured", "broken", "sound", "line"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename_axis("number")
