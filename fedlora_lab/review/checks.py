"""The checks of a step: each a function from the record of trials to findings."""

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from scipy import stats

from fedlora_lab._utils.validation import error_text, few
from fedlora_lab.review.claims import Claims, Finding, Step, Verdict
from fedlora_lab.review.neighbours import LOUD, TRIED, Batch, holds_floats, scale
from fedlora_lab.review.noise import Tie, lacks_rank, ties_between, ties_within
from fedlora_lab.review.outputs import Outputs
from fedlora_lab.review.sensitivity import check_non_finite, check_sensitivity, extreme_examples
from fedlora_lab.review.trials import Trials, compare_noise, ratio_tails

NEED_NOISE = ("sensitivity", "non-finite", "noise law", "signal")
MAX_TESTED = 20_000
"""More numbers find deviations from the normal law that do not matter to epsilon."""


def step_findings(trials: Trials, others: Mapping[str, Step]) -> Iterator[Finding]:
    """All checks of a step. Args: trials: of it. others: further steps, by name."""
    # Without any noise there is no unit in which the other checks could measure.
    if trials.names:
        strong, *ends = extreme_examples(trials)
        moves = [*check_sensitivity(trials, strong, *ends)]
        yield from moves
        # Far beyond the limit, what is not finite adds nothing to what other examples do.
        most = max(finding.number for finding in moves)
        limit = max(trials.limit, most) if most <= 2 * trials.limit else math.inf
        yield from check_non_finite(trials, strong, limit)
        yield from check_noise_size(trials)
        yield from check_independence(trials, others)
        yield from check_law(trials)
    else:
        text = "every seed gives the same numbers: there is no noise, or it is always the same"
        yield Finding("noise size", text, 0.0, "all tensors", "broken")
        yield Finding("noise independence", text, 1.0, "all tensors", "broken")
        for name in NEED_NOISE:
            yield Finding(name, "there is no noise to compare with", verdict="cannot tell")
    yield from check_empty(trials)
    yield from check_un_noised(trials)
    yield from check_frozen(trials)


# ---- the noise


def check_noise_size(trials: Trials) -> Iterator[Finding]:
    """Whether the noise has the claimed size, in every tensor and whatever the data are."""
    check = "noise size"
    noise = trials.noise
    looks = []
    for name, part in {"all tensors": slice(None), **noise.parts}.items():
        values = noise.pairs[:, part]
        rms = float(np.sqrt(np.mean(values**2)))
        text = f"the noise has {rms:.3g} times the claimed standard deviation"
        looks.append(Finding(check, text, rms, name, p=2 * min(ratio_tails(rms**2, values.size))))
    yield looks.pop(0)
    # Of single tensors the one that differs most: a single one without noise stands out.
    odd = min(looks, key=lambda look: look.p or 0.0)
    yield odd._replace(p=min(1.0, len(looks) * (odd.p or 0.0)))
    for where, examples in noise_batches(trials):
        compared = compare_noise(trials, check, examples, where)
        if compared is not None:
            yield compared


def noise_batches(trials: Trials) -> Iterator[tuple[str, Batch]]:
    """Batches whose noise must be that of the first one."""
    batch = trials.batch
    if not trials.replaced:
        yield "twice the batch", [*batch, *batch]
    # Noise that follows the data, as that of a threshold from the batch, shrinks with them.
    if holds_floats(batch[0]):
        yield "a batch scaled by 1e-6", [scale(example, 1 / LOUD) for example in batch]
    yield from itertools.islice(silent_batches(trials), TRIED)


def silent_batches(trials: Trials) -> Iterator[tuple[str, Batch]]:
    """Batches of copies in which two draws give equal numbers: a step may skip its noise where a
    gradient is zero, or where every example is classified correctly."""
    for i, example in enumerate(trials.batch):
        copies = [example] * len(trials.batch)
        first = trials.in_clips(trials.out(copies, 0))
        if (first == trials.in_clips(trials.out(copies, 1))).any():
            yield f"copies of example {i}", copies


def strongest(ties: list[Tie], example: str) -> Finding:
    """The least likely of all correlations, with a p-value for all of them together."""
    p, r, where = min(ties)
    return Finding(
        "noise independence",
        f"the noise correlates by {r:.2g}: {where}",
        r,
        example,
        p=min(1.0, p * len(ties)),
    )


def check_independence(trials: Trials, others: Mapping[str, Step]) -> Iterator[Finding]:
    """Whether tensors, numbers, calls and workers have noise of their own."""
    check = "noise independence"
    noise = trials.noise
    workers = {"the step": noise}
    for name, function in others.items():
        workers[name] = trials.noise_of(trials.quiet, Outputs(function, trials.seed, trials.batch))
    for name, drawn in workers.items():
        if not np.isfinite(drawn.rows).all():
            text = f"{name} returns NaN or infinity for ordinary examples"
            yield Finding(check, text, example=name, verdict="broken")
            return
    if lacks_rank(noise):
        text = "a combination of numbers has no noise"
        yield Finding(check, text, 1.0, "exact ties", "broken")
    yield strongest(ties_within(noise), "all noise")
    # Workers with one generator each from one seed: their noise cancels in a difference.
    for (first, one), (second, other) in itertools.combinations(workers.items(), 2):
        ties = ties_between(one, other, f"{first} and {second}")
        if ties:
            yield strongest(ties, second)
        else:
            text = f"{second} returns none of the outputs of {first}"
            yield Finding(check, text, example=second, verdict="cannot tell")


def check_law(trials: Trials) -> Iterator[Finding]:
    """Whether the noise is normal, by its distribution."""
    check = "noise law"
    noise = trials.noise.centred
    # A scale that was estimated makes this test miss more, never alarm more.
    z = (noise / max(float(np.sqrt(np.mean(noise**2))), 1e-300)).ravel()
    where = f"{len(z):,} numbers of noise"
    if not np.isfinite(z).all():
        yield Finding(check, "the noise is NaN or infinite", example=where, verdict="broken")
        return
    kurtosis = float(stats.kurtosis(z))
    text = f"excess kurtosis {kurtosis:.2g} over {where}"
    tested = trials.rng.permutation(z)[:MAX_TESTED]
    yield Finding(check, text, kurtosis, where, p=float(stats.kstest(tested, "norm").pvalue))


# ---- empty batches, and what leaves without noise


def empty_verdict(claims: Claims) -> tuple[Verdict, str]:
    """How an empty batch without noise is judged, and why if it hardly ever comes."""
    if claims.sampling is None:
        return "cannot tell", "; the claimed sampling never gives one"
    chance = 1.0
    if claims.sample_rate and claims.dataset_size:
        chance = (1 - claims.sample_rate) ** claims.dataset_size * (claims.steps or 1)
    if chance < (claims.delta or 1e-5) / 1000:
        return "sound", f"; all steps together have a chance of {chance:.1g} of one"
    return "broken", ""


def check_empty(trials: Trials) -> Iterator[Finding]:
    """Whether an empty batch gets the noise of any other."""
    check = "empty batch"
    if trials.replaced and trials.claims.sampling is None:
        yield Finding(check, "batches have one size, so that none is empty", 1.0)
        return
    verdict, reason = empty_verdict(trials.claims)
    try:
        trials.out([], 0)
    except Exception as error:
        text = f"an empty batch is refused: {error_text(error, 100)}{reason}"
        yield Finding(check, text, 0.0, "no example", verdict)
        return
    if not trials.names:
        yield Finding(check, "there is no noise to compare with", verdict="cannot tell")
        return
    if not trials.quiet:
        text = "an empty batch gets noise; all of the noise was measured there"
        yield Finding(check, text, 1.0, "no example")
        return
    compared = compare_noise(trials, check, [], "an empty batch")
    if compared is None:
        text = f"an empty batch makes what leaves NaN or infinite{reason}"
        compared = Finding(check, text, math.nan, "no example", verdict)
    elif reason and (compared.number < 1 or trials.claims.sampling is not None):
        compared = compared._replace(words=compared.words + reason, p=None, verdict=verdict)
    yield compared


def check_un_noised(trials: Trials) -> Iterator[Finding]:
    """Whether a number that leaves without noise was the same in all calls."""
    check = "un-noised output"
    # What the author calls public may depend on the data; what is frozen has a check of its own.
    exempt = {*trials.claims.public, *trials.claims.frozen}
    changes = trials.out.changes(trials.noised)
    moved = {name: change for name, change in changes.items() if change and name not in exempt}
    if moved:
        name = max(moved, key=moved.__getitem__)
        text = f"{few(moved, 4)}: without noise, and other with other data; {name}"
        yield Finding(check, f"{text} by {moved[name]:.3g}", moved[name], name, "broken")
        return
    bare = sorted({*trials.out.places} - {*trials.names} - trials.copies - exempt)
    text = f"{few(bare, 4)}: without noise, and the same for all data that were tried"
    yield Finding(check, text if bare else "no number leaves without noise", 0.0)


def check_frozen(trials: Trials) -> Iterator[Finding]:
    """Whether what is claimed frozen was the same in all calls."""
    names = trials.claims.frozen
    if not names:
        yield Finding("frozen", "nothing is claimed frozen", verdict="cannot tell")
        return
    changes = trials.out.changes(trials.noised)
    name = max(names, key=changes.__getitem__)
    if changes[name]:
        yield Finding(
            "frozen", f"{name} changes by {changes[name]:.3g}", changes[name], name, "broken"
        )
    else:
        yield Finding("frozen", f"{few(names, 4)}: the same in every call", 0.0, name)
