"""Learning rates that follow from public numbers alone.

No rate is tuned on private data: every look at their scores is a release that has to be counted
(arXiv:2110.03620).
"""

import math
from typing import NamedTuple

import torch

from fedlora_lab import methods
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.recipes import rehearsal
from fedlora_lab.recipes.dry_run import dry_run
from fedlora_lab.recipes.noise_on_outputs import OUTPUT_VARIANCE, noise_on_outputs, takes_turns
from fedlora_lab.tasks.task import Task

SUGGESTED_VARIANCE = 0.2
"""Where `suggest_lr` stops, on an output of the copy that a client trains on."""
FAR = 4.0
"""The factor between the ends of a dry run and of v beyond which the dry run decides."""
DRY_OCTAVES = range(-6, 7)
"""Rates of that dry run, in octaves above v's end."""
REHEARSED_OCTAVES = range(-2, 5)
"""Rates that `suggest_lr` rehearses, in octaves above the one that v suggests."""
UNREHEARSED = "with other layers or numbers of steps ranges ended up to 20 times farther on"
"""What to know of a rate that follows from v alone."""


class PublicSuggestion(NamedTuple):
    """A learning rate and a clip norm that follow from public numbers.

    Args:
        lr: of B; where A has another rate, it keeps its ratio to B's.
        clip_norm: C.
        origin: which of the two was chosen, and what for.
    """

    lr: float
    clip_norm: float
    origin: str


def suggest_lr(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    lora: "Lora | None" = None,
    *,
    rehearse: bool = False,
) -> PublicSuggestion:
    """Suggests a learning rate whose noise a run can bear, from public numbers alone.

    No data are looked at. With ``rehearse=True`` the rate is the best of seven octaves in a
    rehearsal on the task's public validation examples, see `fl.rehearse`: that takes as long as 14
    runs, and sees steps, layers and training, which the number below does not. Where a task has
    no such examples the number below decides, and the origin warns of it.

    The noise of all releases of a run puts a variance v on the outputs of an adapted layer, for
    inputs of mean square one: v = gamma^2 r / 3 N tau^2 (1 + rho) with gamma = alpha / r, tau the
    noise of one release on an entry of the averaged factors, and rho the amplification number, 0
    where A is frozen (see `theory.OutputVariance`). On digits a range of rates ends about where
    v = 0.35 (`noise_on_outputs.OUTPUT_VARIANCE`), with three points lost. Where a dry run on public
    examples of the task, see `fl.dry_run`, ends more than two octaves away from there, it decides,
    unless a head learns anew. A client trains on a copy of its
    own, whose noise has 1 + (K - 1) / T times the variance in the example unit
    (`NoiseForecast.client_noise_ratio`); a factor that stays with its client has K times.
    Suggested is the rate at which v of such a copy is 0.2; where the factors take turns, that rate
    over the root of two. In the example unit tau is the rate times sigma C / (b sqrt(K)). In the
    client unit no rate enters: tau is sigma C / (q K), so it is the clip norm that is chosen in
    this way, at the plan's rate.

    Args:
        task, method, privacy, plan, lora: see `run`, with the noise multiplier set; sigma does
            not depend on what is suggested.
        rehearse: on public examples, where the task has them.
    The origin says what a row does with its noise that is not counted: its server's rule, a map
    that shapes it, or a choice during the run.

    Raises: ``ValueError`` without noise; where B rests at zero, or stays with its client in the
        client unit, where it gets no noise; for optimisers whose noise is not known before a run;
        and for a row of differences, whose own error bounds its rates.
    Guarantees: test_suggested_rates.py::test_the_suggested_rate_meets_the_bound_of_its_noise.
    Source: derived; 0.35 is read off where the tuning runs on digits at epsilon = 3 lost three
        points, and 0.2 was chosen on digits afterwards. docs/rates.md has what the suggestion costs
        against the best of a grid of rates, and where it was not tried.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.digits(), fl.Plan(rounds=20, batch=32)
    >>> privacy = fl.Privacy(delta=1e-5, noise_multiplier=1.0)
    >>> for alpha in (8, 32):
    ...     lora = fl.Lora(rank=4, alpha=alpha)
    ...     for slug in ("fedlora", "ffa-lora"):
    ...         print(alpha, slug, round(suggest_lr(task, slug, privacy, plan, lora).lr, 2))
    8 fedlora 0.91
    8 ffa-lora 1.63
    32 fedlora 0.35
    32 ffa-lora 0.41
    """
    noise = noise_on_outputs(task, method, privacy, plan, lora, copies=True)
    factor = noise.factor(SUGGESTED_VARIANCE)
    origin = "the rate" if privacy.releases_steps else "the clip norm"
    origin += f" at which noise on an output has variance {SUGGESTED_VARIANCE:g}"
    if takes_turns(methods.get(method)):
        # Each factor has half of the noise, and some runs collapse before the mean does.
        factor /= math.sqrt(2)
        origin = f"0.7 times {origin}"
    if noise.uncounted:
        origin += f"; not counted: {noise.uncounted}"
    rate = plan.rate("B") or 1.0
    clip_norm = privacy.clip_norm
    asked = _asked_network(task, method, privacy, plan, lora)
    if asked != 1:
        factor *= asked
        origin += f", times {asked:.2g}: so much more or less the network bears, by a dry run"
    if rehearse:
        if task.validation is not None and task.public_test:
            return _rehearsed(task, method, privacy, plan, lora, rate * factor)
        origin += f"; no public examples to rehearse with, and {UNREHEARSED}"
    if privacy.releases_steps:
        return PublicSuggestion(rate * factor, clip_norm, origin)
    return PublicSuggestion(rate, clip_norm * factor, f"{origin}; the rate is the plan's")


def _asked_network(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    lora: "Lora | None",
) -> float:
    """By what factor the end of a dry run differs from v's; 1 where it is near, or cannot tell.

    v knows one layer's noise, and no network: it is right where many usual layers are adapted, and
    off by octaves where a single late one is.

    Args: task, method, privacy, plan, lora: see `suggest_lr`.
    """
    y = (task.validation or task.test)[1]
    classes = y.ndim == 1 and y.dtype == torch.int64
    # Where a head learns anew, noise spoils answers that mean nothing yet: a dry run ends octaves
    # too early, and by another factor for each random start of the head.
    if not task.public_test or not classes or task.head is not None:
        return 1.0
    noise = noise_on_outputs(task, method, privacy, plan, lora)
    end = (plan.rate("B") or 1.0) * noise.factor(OUTPUT_VARIANCE)
    near = dry_run(task, method, privacy, plan, (end / FAR, end * FAR), lora=lora)
    if end / FAR < near.end < math.inf:
        return 1.0
    rates = [end * 2.0**octave for octave in DRY_OCTAVES]
    found = dry_run(task, method, privacy, plan, rates, lora=lora)
    sure = found.warning is None and math.isfinite(found.end)
    return found.end / end if sure and abs(math.log(found.end / end)) > math.log(FAR) else 1.0


def _rehearsed(
    task: Task,
    method: Method | str,
    privacy: Privacy,
    plan: Plan,
    lora: "Lora | None",
    middle: float,
) -> PublicSuggestion:
    """The best of octaves around a rate, in a rehearsal.

    Args: task, method, privacy, plan, lora: see `suggest_lr`. middle: what v suggests.
    """
    rates = [middle * 2.0**octave for octave in REHEARSED_OCTAVES]
    found = rehearsal.rehearse(task, method, privacy, plan, rates, lora=lora)
    count = len(task.validation[1]) if task.validation else 0
    origin = f"the best of {len(rates)} rates in a rehearsal on {count} public examples"
    if found.at_edge:
        origin += ", at the edge of those tried"
    if privacy.releases_steps:
        return PublicSuggestion(found.lr, privacy.clip_norm, origin)
    return PublicSuggestion(found.lr, found.clip_norm, f"rate and clip norm: {origin}")
