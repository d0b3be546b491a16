"""The checks of a step: each a function from the record of trials to findings.

`step_findings` and `noised_findings` list all that look at a step. Those of the noise's size stand
in `noise_size`, and those of a single example's move in `sensitivity`; `sampling` and `accounting`
have what `review.step` looks at beside the step.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy import stats

from dp_review._validation import first_of
from dp_review.claims import Claims, Finding, Step, Verdict
from dp_review.neighbours import Example
from dp_review.noise import Tie, lacks_rank, ties_between, ties_within
from dp_review.noise_size import (
    check_noise_and_data,
    check_noise_size,
    compare_noise,
)
from dp_review.outputs import Outputs, StepFailed, failing_example
from dp_review.post_processing import processing_of
from dp_review.sensitivity import check_non_finite, check_sensitivity, extreme_examples
from dp_review.trials import Trials

MAX_TESTED = 20_000
"""More numbers find deviations from the normal law that do not matter to epsilon."""
FEW_BEYOND = 20
"""Normal numbers that are expected beyond the last size at which they are counted."""


def step_findings(trials: Trials, others: Mapping[str, Step]) -> Iterator[Finding]:
    """All checks of a step. Args: trials: of it. others: further steps, by name."""
    # Without any noise there is no unit in which the other checks could measure.
    for name in trials.seeds:
        text = f"{name} tells the seed: whoever sees it draws the noise again, and takes it away"
        yield Finding("noise independence", text, 1.0, name, "broken")
    if trials.names:
        with trials.noting_failures("an ordinary batch"):
            yield from noised_findings(trials, others)
    else:
        text = "every seed gives the same numbers: there is no noise, or it is always the same"
        yield Finding("noise size", text, 0.0, "all tensors", "broken")
        yield Finding("noise independence", text, 1.0, "all tensors", "broken")
    yield from check_empty(trials)
    yield from check_un_noised(trials)
    yield from check_frozen(trials)
    yield from check_failure(trials)


def noised_findings(trials: Trials, others: Mapping[str, Step]) -> Iterator[Finding]:
    """The checks of a step that has noise. Args: see `step_findings`."""
    check = "post-processing"
    trials.processed, share = processing_of(trials.noise)
    if trials.processed:
        # What was done after the noise may explain every difference from a noised sum.
        text = f"not what is claimed, but may be sound: {trials.processed}"
        yield Finding(check, text, share, "all noise", "not as claimed")
        return
    yield Finding(check, "nothing was plainly changed after the noise", share, "all noise")
    strong, *ends = extreme_examples(trials.batch)
    moves = [*check_sensitivity(trials, strong, *ends)]
    # Far beyond the limit, what is not finite adds nothing to what other examples do.
    most = max(finding.number for finding in moves)
    limit = max(1.0, most) if most <= 2 else math.inf
    yield from moves
    for findings in (
        check_non_finite(trials, strong, limit),
        check_noise_size(trials),
        check_noise_and_data(trials),
        check_independence(trials, others),
        check_law(trials),
    ):
        # Where one check cannot go on, the others still look.
        with trials.noting_failures("an ordinary batch"):
            yield from findings


# ---- the noise


def strongest(ties: list[Tie], example: str) -> Finding:
    """The least likely of all correlations, with a p-value for all of them together."""
    p, r, where = min(ties)
    text = f"the noise correlates by {r:.2g}: {where}"
    return Finding("noise independence", text, r, example, p=min(1.0, p * len(ties)))


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
    yield strongest(ties_between(noise, noise, "the step"), "calls")
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
    """Whether the noise is normal: how many numbers are large, and the sizes of whole calls."""
    check = "noise law"
    # A scale that was estimated makes these tests miss more, never alarm more.
    noise = np.hstack([unit_size(trials.noise.centred[:, x]) for x in trials.noise.parts.values()])
    z = noise.ravel()
    where = f"{len(z):,} numbers of noise"
    if not np.isfinite(z).all():
        yield Finding(check, "the noise is NaN or infinite", example=where, verdict="broken")
        return
    kurtosis = float(stats.kurtosis(z))
    text = f"excess kurtosis {kurtosis:.2g} over {where}"
    tested = trials.rng.permutation(z)[:MAX_TESTED]
    law = Finding(check, text, kurtosis, where, p=large_numbers_p_value(tested))
    yield law
    # One factor for all numbers of a call leaves each of them nearly normal, and whole calls not.
    spread, p = spread_of_calls(noise)
    text = f"the size of whole calls varies {spread:.3g} times as much as that of normal noise"
    yield law._replace(words=text, example=f"{len(noise)} calls", p=p)


def unit_size(noise: np.ndarray) -> np.ndarray:
    """Noise whose mean square is 1, if there is any."""
    return noise / max(float(np.sqrt(np.mean(noise**2))), 1e-300)


def large_numbers_p_value(z: np.ndarray) -> float:
    """Tests how many of these numbers are larger than each of some sizes: binomial, and exact."""
    # The last size is one that a few of so many normal numbers exceed.
    sizes = (0.6745, 1.5, 2.0, 3.0, float(stats.norm.isf(FEW_BEYOND / (2 * max(z.size, 50)))))
    p_values = [
        stats.binomtest(int((np.abs(z) > size).sum()), z.size, 2 * stats.norm.sf(size)).pvalue
        for size in sizes
    ]
    return min(1.0, len(p_values) * float(min(p_values)))


def spread_of_calls(noise: np.ndarray) -> tuple[float, float]:
    """How much the squared lengths of whole calls vary, in units of chi-square, and a p-value.

    Args: noise: (calls, numbers), of mean square 1.
    """
    calls, numbers = noise.shape
    squares = (noise**2).sum(1)
    # Each length as a normal number. One is not free, since the noise has mean square 1.
    scores = stats.norm.isf(stats.chi2.sf(squares, numbers))
    spread = float((scores**2).sum())
    law = stats.chi2(calls - 1)
    return spread / (calls - 1), 2 * float(min(law.sf(spread), law.cdf(spread)))


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
    verdict, reason = empty_verdict(trials.claims)
    try:
        trials.out([], 0)
    except StepFailed as failed:
        text = f"the step fails on an empty batch: {failed}{reason}"
        yield Finding(check, text, 0.0, "no example", verdict)
        return
    if not trials.names or trials.processed:
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
    exempt = {*trials.claims.public, *trials.claims.frozen, *trials.seeds, *trials.copies}
    # Numbers of a tensor that was cut after the noise may rest.
    exempt |= {*trials.names} if trials.processed else set()
    changes = trials.out.changes(trials.noised)
    moved = {name: change for name, change in changes.items() if change and name not in exempt}
    if moved:
        name = max(moved, key=lambda name: moved[name])
        text = f"{first_of(moved, 4)}: without noise, and other with other data; {name}"
        yield Finding(check, f"{text} by {moved[name]:.3g}", moved[name], name, "broken")
        return
    bare = sorted({*trials.out.places} - {*trials.names} - exempt)
    text = f"{first_of(bare, 4)}: without noise, and the same for all data that were tried"
    yield Finding(check, text if bare else "no number leaves without noise", 0.0)


def check_frozen(trials: Trials) -> Iterator[Finding]:
    """Whether what is claimed frozen was the same in all calls."""
    changes = trials.out.changes(trials.noised)
    for name in trials.claims.frozen:
        change = changes[name]
        verdict: Verdict = "broken" if change else "sound"
        yield Finding("frozen", f"{name} changes by {change:.3g}", change, name, verdict)
    if not trials.claims.frozen:
        yield Finding("frozen", "nothing is claimed frozen", verdict="cannot tell")


def check_failure(trials: Trials) -> Iterator[Finding]:
    """Whether the step went through on every batch of ordinary and of large examples."""
    check = "failure"
    if not trials.failures:
        yield Finding(check, "no call failed", 0.0)
        return
    words, failed = trials.failures[0]
    yield failure_finding(words, failed, trials.out.function, trials.given, len(trials.failures))


def failure_finding(
    words: str, failed: StepFailed, function: Step, data: Sequence[Example], count: int
) -> Finding:
    """What is said of a step that raises, with the example that is enough to make it fail.

    Args: words: name the batch. failed: what was raised. function: the step. data: all examples.
    count: of the batches that failed.
    """
    text = f"the step fails on {words} ({failed}); whoever sees that it failed learns of the batch"
    alone = failing_example(function, failed.examples, data)
    if alone is not None:
        text += f"; example {alone} alone is enough"
    return Finding("failure", text, count, words if alone is None else f"example {alone}", "broken")
