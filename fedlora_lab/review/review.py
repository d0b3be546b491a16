"""A review: all checks of one step, judged together, as one table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.review.accounting import check_accounting, epsilon_given
from fedlora_lab.review.checks import step_findings
from fedlora_lab.review.claims import CHECKS, Claims, Finding, Loader, Step
from fedlora_lab.review.neighbours import Example
from fedlora_lab.review.sampling import check_sampling
from fedlora_lab.review.trials import Trials

if TYPE_CHECKING:
    import pandas as pd

LEAST_EXAMPLES = 8
USUAL_BATCH = 16
NEED_NO_STEP = ("sampling", "accounting")


@dataclass(frozen=True)
class Review:
    """What a review found.

    Args:
        findings: one for each check, in the order of `CHECKS`.
        epsilon: what the measured sensitivity, noise and sampling give at the claimed delta;
            infinite where no finite one can be stated; ``None`` without steps or delta.
        claims: what was claimed.
    """

    findings: tuple[Finding, ...]
    epsilon: float | None
    claims: Claims

    @property
    def sound(self) -> bool:
        """Nothing is broken; what could not be told may be."""
        return not self.broken

    @property
    def broken(self) -> frozenset[str]:
        """Names of the checks that found something broken."""
        return frozenset(f.check for f in self.findings if f.verdict == "broken")

    def __getitem__(self, name: str) -> Finding:
        return {finding.check: finding for finding in self.findings}[name]

    @property
    def summary(self) -> str:
        """The outcome in two sentences."""
        broken = [finding.check for finding in self.findings if finding.verdict == "broken"]
        clear = sum(finding.verdict != "cannot tell" for finding in self.findings)
        text = f"{clear} of {len(self.findings)} checks could tell, and found nothing broken."
        if broken:
            text = f"Broken: {', '.join(broken)}."
        return f"{text} {self._epsilon_words()}"

    def _epsilon_words(self) -> str:
        stated = self.claims.epsilon
        claimed = "" if stated is None else f" (claimed: {stated:.4g})"
        if self.epsilon is None:
            return "No ε: it needs steps and delta among the claims."
        if math.isinf(self.epsilon):
            return f"No finite ε can be stated{claimed}."
        least = "at least " if self.broken - {"accounting", "sampling"} else ""
        # Without amplification: other sampling may amplify too, by how much is not known.
        name = "ε without amplification" if "sampling" in self.broken else "ε really given"
        return f"{name}: {least}{self.epsilon:.4g} at δ = {self.claims.delta:g}{claimed}."

    def table(self) -> "pd.DataFrame":
        """One row for each check, indexed by its name."""
        import pandas as pd

        return pd.DataFrame([finding._asdict() for finding in self.findings]).set_index("check")

    def __str__(self) -> str:
        rows = [f"{f.verdict:<12}{f.check:<20}{explained(f)}" for f in self.findings]
        return "\n".join([*rows, self.summary])

    def _repr_html_(self) -> str:
        rows = [(f.check, f.verdict, f"{f.number:.3g}", explained(f)) for f in self.findings]
        return html_table([*rows, ("", "", "", self.summary)], ("check", "verdict", "number", ""))


def explained(finding: Finding) -> str:
    """The words of a finding; of a broken one also what mends it, and where it is explained."""
    if finding.verdict != "broken":
        return finding.words
    check = CHECKS[finding.check]
    return f"{finding.words} ({finding.example}). {check.remedy} See {check.docs}"


def step(
    function: "Step | None",
    data: Sequence[Example],
    claims: Claims,
    *,
    loader: "Loader | None" = None,
    others: "Mapping[str, Step] | None" = None,
    batch: int | None = None,
    draws: int = 64,
    seed: int = 0,
    significance: float = 0.01,
) -> Review:
    """Looks at a private training step from outside, and says what of its claims holds.

    The step is called some hundred times, always from the same state, with other examples and
    other seeds. A pass is no proof: it covers what the checks look at, near these examples.

    Args:
        function: (examples, seed) -> name -> array: everything that leaves one step, noised
            gradients or plain-SGD updates, buffers, metrics; ``examples`` is a list of any length,
            0 included. ``None``: only loader and claims are looked at.
        data: at least 8 examples, of any kind; floating-point arrays in them are what is scaled.
        claims: what the author says.
        loader: seed -> batches, each a list of indices into the data set.
        others: name -> a further step (another worker, the next step) whose noise at the same seed
            must be independent.
        batch: size of the batch that is varied; default 16, under "replace" the denominator.
        draws: calls from which the noise is measured, at least 16.
        seed: of the review; the step gets seeds derived from it.
        significance: chance that a sound step is called broken, over all checks together.

    Raises: ``ValueError`` for a step that does not return arrays by name, or for too few examples.
    Guarantees: test_sound_steps_are_called_broken_no_more_often_than_stated,
        test_every_wrong_step_is_found, test_every_mistake_is_found_by_its_check,
        test_a_sound_step_that_looks_like_a_wrong_one_is_not_blamed.

    >>> import numpy as np
    >>> import fedlora_lab as fl
    >>> def private_sum(examples, seed):
    ...     total = np.zeros(20)
    ...     for x in examples:  # the clip norm is 1
    ...         total = total + x / max(1.0, np.linalg.norm(x))
    ...     return {"gradient": total + 2.0 * np.random.default_rng(seed).normal(size=20)}
    >>> data = list(np.random.default_rng(0).normal(size=(16, 20)))
    >>> claims = fl.review.Claims(clip_norm=1.0, noise_multiplier=2.0)
    >>> found = fl.review.step(private_sum, data, claims)
    >>> found.sound, round(found["sensitivity"].number, 3)
    (True, 1.0)
    """
    check(isinstance(claims, Claims), "claims", claims, "fl.review.Claims(clip_norm=..., ...)")
    check(isinstance(others or {}, Mapping), "others", type(others).__name__, "name -> step")
    check(
        function is None or callable(function), "function", function, "(examples, seed) -> arrays"
    )
    check_number("significance", significance, 0, 1, open_low=True)
    check_whole("draws", draws, 16)
    check_whole("seed", seed)
    examples = [*data]
    findings = [*check_sampling(loader, claims, seed), *check_accounting(claims)]
    if function is None:
        needing = [name for name in CHECKS if name not in NEED_NO_STEP]
        findings += [Finding(name, "no step was given", verdict="cannot tell") for name in needing]
    else:
        size = batch_size(batch, claims, len(examples))
        even = draws // 2 * 2  # noise is measured from pairs of calls
        with ignore_warnings(RuntimeWarning, ""):
            trials = Trials(function, examples, claims, batch=size, draws=even, seed=seed)
            findings += step_findings(trials, others or {})
    by_check = {one.check: one for one in judge_findings(findings, significance)}
    epsilon = epsilon_given(by_check, claims, loader, seed)
    return Review(tuple(by_check.values()), epsilon, claims)


def judge_findings(findings: Sequence[Finding], significance: float) -> list[Finding]:
    """One finding for each check, in the order of `CHECKS`: the one that decides.

    Args: findings: of all checks. significance: chance that any of them is rejected wrongly.
    """
    by_chance = sum(one.p is not None for one in findings)
    judged = []
    for one in findings:
        # Bonferroni: each of so many p-values has its share. One that is no number is rejected.
        if one.p is not None and not one.p > significance / by_chance:
            one = one._replace(verdict="broken")
        judged.append(one)
    shown = []
    for name in CHECKS:
        of_check = [one for one in judged if one.check == name]
        for verdict in ("broken", "cannot tell", "sound"):
            deciding = [one for one in of_check if one.verdict == verdict]
            if deciding:
                shown.append(worst(deciding))
                break
    return shown


def worst(findings: Sequence[Finding]) -> Finding:
    """Of findings of one check and verdict the one that is shown: usually the first."""

    def size(finding: Finding) -> float:
        # Rounded, so that of numbers that differ in their last digits the first is shown.
        return -1.0 if math.isnan(finding.number) else round(abs(finding.number), 3)

    first = findings[0]
    if first.check == "noise size" and first.verdict == "broken":
        return min(findings, key=size)
    if first.check == "sensitivity" or first.verdict == "broken":
        return max(findings, key=size)
    return first


def batch_size(batch: int | None, claims: Claims, count: int) -> int:
    """The size of the batch that is varied. Args: batch, claims: see `step`. count: of examples."""
    size = min(count, USUAL_BATCH)
    if claims.relation == "replace" and claims.denominator >= 2:
        size = round(claims.denominator)
    if batch is not None:
        check_whole("batch", batch, 2, max(count, 2))
        size = batch
    least = max(LEAST_EXAMPLES, size)
    check(count >= least, "data", f"{count} examples", f"at least {least}")
    return size
