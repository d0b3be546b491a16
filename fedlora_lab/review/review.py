"""A review: all checks of one step, judged together, as one table."""

import itertools
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


@dataclass(frozen=True, repr=False)
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
        clear = sum(finding.verdict != "cannot tell" for finding in self.findings)
        text = f"{clear} of {len(self.findings)} checks could tell, and found nothing broken."
        if self.broken:
            text = f"Broken: {', '.join(name for name in CHECKS if name in self.broken)}."
        return f"{text} {self._epsilon_words()}"

    def _epsilon_words(self) -> str:
        stated = self.claims.epsilon
        claimed = "" if stated is None else f" (claimed: {stated:.4g})"
        if self.epsilon is None:
            return "No ε: it needs steps and delta among the claims."
        if math.isinf(self.epsilon):
            return f"No finite ε can be stated{claimed}."
        noise = self["noise size"]
        name = "ε of the claims" if noise.verdict == "cannot tell" else "ε really given"
        lower = self.broken - {"accounting", "sampling", "empty batch", "noise size"}
        least = "at least " if lower else ""
        # Noise and moves may both be too large by one factor, which changes no ε.
        if noise.verdict == "broken" and noise.number > 1:
            name, least = "ε if denominator and clip_norm are right", ""
        # Without amplification: other sampling may amplify too, by how much is not known.
        name = "ε without amplification" if "sampling" in self.broken else name
        return f"{name}: {least}{self.epsilon:.4g} at δ = {self.claims.delta:g}{claimed}."

    def table(self) -> "pd.DataFrame":
        """One row for each check, indexed by its name."""
        import pandas as pd

        return pd.DataFrame([finding._asdict() for finding in self.findings]).set_index("check")

    def __repr__(self) -> str:
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
    """
    check(isinstance(claims, Claims), "claims", claims, "fl.review.Claims(clip_norm=..., ...)")
    check(isinstance(others or {}, Mapping), "others", type(others).__name__, "name -> step")
    check_number("significance", significance, 0, 1, open_low=True)
    check_whole("draws", draws, 16)
    check_whole("seed", seed)
    findings = [*check_sampling(loader, claims, seed), *check_accounting(claims)]
    if function is None:
        findings += [
            Finding(name, "no step was given", verdict="cannot tell")
            for name in CHECKS
            if name not in NEED_NO_STEP
        ]
    else:
        size = batch_size(batch, claims, len(data))
        even = draws // 2 * 2  # noise is measured from pairs of calls
        with ignore_warnings(RuntimeWarning, ""):
            findings += step_findings(
                Trials(function, [*data], claims, batch=size, draws=even, seed=seed), others or {}
            )
    by_check = judge_findings(findings, significance)
    return Review(
        findings=tuple(by_check.values()),
        epsilon=epsilon_given(by_check, claims, loader, seed),
        claims=claims,
    )


def judge_findings(findings: Sequence[Finding], significance: float) -> dict[str, Finding]:
    """Check -> the finding that decides it, in the order of `CHECKS`.

    Args: findings: of all checks. significance: chance that any of them is rejected wrongly.
    """
    by_chance = sum(finding.p is not None for finding in findings)
    judged = []
    for finding in findings:
        # Bonferroni: each of so many p-values has its share. One that is no number is rejected.
        if finding.p is not None and not finding.p > significance / by_chance:
            finding = finding._replace(verdict="broken")
        judged.append(finding)
    shown: dict[str, Finding] = {}
    for name, verdict in itertools.product(CHECKS, ("broken", "cannot tell", "sound")):
        deciding = [x for x in judged if x.check == name and x.verdict == verdict]
        if deciding and name not in shown:
            shown[name] = worst(deciding)
    return shown


def worst(findings: Sequence[Finding]) -> Finding:
    """Of findings of one check and verdict the one that is shown: usually the first."""
    check = findings[0].check
    if check != "sensitivity" and findings[0].verdict != "broken":
        return findings[0]
    sign = -1 if check == "noise size" and findings[0].verdict == "broken" else 1

    def size(finding: Finding) -> float:
        # Rounded, so that of numbers that differ in their last digits the first is shown.
        return sign * round(-1.0 if math.isnan(finding.number) else abs(finding.number), 3)

    return max(findings, key=size)


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
