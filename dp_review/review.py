"""A review: all checks of one step, judged together, as one table."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dp_review._validation import check, check_number, check_whole, round_down, round_up
from dp_review.accounting import check_accounting, epsilon_given
from dp_review.checks import failure_finding, step_findings
from dp_review.claims import CHECKS, Claims, Finding, Loader, Step, Verdict
from dp_review.limitations import limitations
from dp_review.neighbours import Example
from dp_review.noise_size import DATA, SIZE
from dp_review.outputs import StepFailed
from dp_review.sampling import check_sampling
from dp_review.trials import Trials

LEAST_EXAMPLES = 8
USUAL_BATCH = 16


@dataclass(frozen=True, repr=False)
class Review:
    """What a review found.

    Args:
        findings: one for each check, in the order of `CHECKS`.
        epsilon: what the measured sensitivity, noise and sampling give at the claimed delta;
            infinite where no finite one can be stated; ``None`` without steps or delta.
        claims: what was claimed.
        limitations: what so many calls on these examples could not have shown, in sentences.
    """

    findings: tuple[Finding, ...]
    epsilon: float | None
    claims: Claims
    limitations: tuple[str, ...] = ()

    @property
    def sound(self) -> bool:
        """Nothing is broken; what could not be told, or is not as claimed, may be."""
        return not self.broken

    @property
    def broken(self) -> frozenset[str]:
        """Names of the checks that found something broken."""
        return self._checks("broken")

    @property
    def not_as_claimed(self) -> frozenset[str]:
        """Names of the checks that found what is not claimed but may be sound: values changed
        after the noise, or more noise."""
        return self._checks("not as claimed")

    @property
    def exit_status(self) -> int:
        """For a linter: 1 where something is broken, 2 where nothing is, but moves or noise could
        not be measured, and 0 otherwise."""
        untold = not {"sensitivity", "noise size"} <= {*self.looked_at}
        return 1 if self.broken else 2 * untold

    @property
    def looked_at(self) -> tuple[str, ...]:
        """Names of the checks that could tell, in the order of `CHECKS`."""
        return tuple(f.check for f in self.findings if f.verdict != "cannot tell")

    def _checks(self, verdict: Verdict) -> frozenset[str]:
        return frozenset(f.check for f in self.findings if f.verdict == verdict)

    def __getitem__(self, name: str) -> Finding:
        return {finding.check: finding for finding in self.findings}[name]

    @property
    def summary(self) -> str:
        """The outcome in two sentences."""
        looked = f"{len(self.looked_at)} of {len(self.findings)} checks could tell"
        text = f"{looked}, and found nothing broken."
        if self.not_as_claimed:
            text = f"{looked}. Not what is claimed, but may be sound: {names(self.not_as_claimed)}."
        if self.broken:
            text = f"Broken: {names(self.broken)}."
        return f"{text} {self._epsilon_words()}"

    def _epsilon_words(self) -> str:
        stated = self.claims.epsilon
        claimed = "" if stated is None else f" (claimed: {round_up(stated, '.4g')})"
        if self.epsilon is None:
            return "No ε: it needs steps and delta claimed."
        if math.isinf(self.epsilon):
            return f"No finite ε can be stated{claimed}."
        noise = self["noise size"]
        # What was done after the noise hides the noise that was added.
        untold = "cannot tell" in (noise.verdict, self["sensitivity"].verdict)
        name = "ε of the claims" if untold or self.not_as_claimed else "ε of what was looked at"
        least = "at least " if self.broken & {"sensitivity", "signal"} else ""
        # Noise and moves may both be too large by one factor, which changes no ε.
        if self.not_as_claimed == {"noise size"} and noise.number > 1:
            name, least = "ε if denominator and clip_norm are right", ""
        # Without amplification: other sampling may amplify too, by how much is not known.
        name = "ε without amplification" if "sampling" in self.broken else name
        number = (round_down if least else round_up)(self.epsilon, ".4g")
        return f"{name}: {least}{number} at δ = {round_up(self.claims.delta or 0.0, 'g')}{claimed}."

    def __repr__(self) -> str:
        rows = [f"{f.verdict:<16}{f.check:<20}{explained(f)}" for f in self.findings]
        unseen = (f"Not looked at: {limit}" for limit in self.limitations)
        return "\n".join([*rows, self.summary, *unseen])


def names(checks: frozenset[str]) -> str:
    """Names of checks, in the order of `CHECKS`."""
    return ", ".join(name for name in CHECKS if name in checks)


def explained(finding: Finding) -> str:
    """The words of a finding; of a broken one also what mends it, and where it is explained."""
    if finding.verdict != "broken":
        return finding.words
    check = CHECKS[finding.check]
    shown = "" if finding.example in finding.words else f" ({finding.example})"
    return f"{finding.words}{shown}. {check.remedy} See {check.docs}"


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

    The step is called some thousand times, always from the same state, with other examples and
    other seeds. A pass is no proof: it covers what the checks look at, near these examples.

    Args:
        function: (examples, seed) -> name -> array: everything that leaves one step, noised
            gradients or plain-SGD updates, buffers, metrics; ``examples`` is a list of any length,
            0 included. ``None``: only loader and claims are looked at.
        data: at least 8 examples, of any kind and in any order; floating-point arrays in them are
            what is scaled. Of more than 256 so many are tried one by one.
        claims: what the author says.
        loader: seed -> batches, each a list of indices into the data set.
        others: name -> a further step (another worker, the next step) whose noise at the same seed
            must be independent.
        batch: size of the batch that is varied; default 16.
        draws: calls from which the noise is measured, at least 16.
        seed: of the review; the step gets seeds derived from it.
        significance: chance that a sound step is called broken, over all checks together.

    Raises: ``ValueError`` for a step that does not return arrays by name, or for too few examples.
    Guarantees: test_sound_steps_are_called_broken_no_more_often_than_stated,
        test_every_wrong_step_is_found, test_every_mistake_is_found_by_its_check,
        test_a_sound_step_that_looks_like_a_wrong_one_is_not_blamed,
        test_what_may_be_sound_is_told_apart_from_what_is_broken,
        test_a_step_that_fails_is_a_finding_that_names_the_example,
        test_a_verdict_is_the_same_in_six_orders_of_the_rows,
        test_a_review_says_what_it_did_not_look_at.
    """
    check(isinstance(claims, Claims), "claims", claims, "dp_review.Claims(clip_norm=..., ...)")
    check(isinstance(others or {}, Mapping), "others", type(others).__name__, "name -> step")
    check_number("significance", significance, 0, 1)
    check_whole("draws", draws, 16)
    check_whole("seed", seed, 0)
    findings = [*check_sampling(loader, claims, seed), *check_accounting(claims)]
    unseen: tuple[str, ...] = ("Anything of the step: none was looked at.",)
    untold = "no step was given"
    if function is not None:
        size = batch_size(batch, len(data))
        even = draws // 2 * 2  # noise is measured from pairs of calls
        untold = "there is no noise to compare with"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                trials = Trials(function, [*data], claims, batch=size, draws=even, seed=seed)
                findings += step_findings(trials, others or {})
                untold = "what leaves was changed after the noise" if trials.processed else untold
                unseen = tuple(limitations(trials, level_of(findings, significance)))
            except StepFailed as failed:  # on the first batch: no other check could look
                first = f"{len(failed.examples)} ordinary examples"
                findings.append(failure_finding(first, failed, function, [*data], 1))
                untold = "the step failed before"
    told = {finding.check for finding in findings}
    findings += [Finding(x, untold, verdict="cannot tell") for x in CHECKS if x not in told]
    by_check = judge_findings(findings, significance)
    return Review(
        findings=tuple(by_check.values()),
        epsilon=epsilon_given(by_check, claims, loader, seed),
        claims=claims,
        limitations=unseen,
    )


def level_of(findings: Sequence[Finding], significance: float) -> float:
    """The one error budget of a review, in equal shares (Bonferroni): what each p-value may use.

    Args: findings: of all checks. significance: chance that any of them is rejected wrongly.
    """
    return significance / max(1, sum(finding.p is not None for finding in findings))


def judge_findings(findings: Sequence[Finding], significance: float) -> dict[str, Finding]:
    """Check -> the finding that decides it, in the order of `CHECKS`.

    Args: findings: of all checks. significance: chance that any of them is rejected wrongly.
    """
    level = level_of(findings, significance)
    judged = []
    for finding in findings:
        # A p-value that is no number is rejected.
        if finding.p is not None and not finding.p > level:
            finding = finding._replace(verdict=finding.rejected)
        judged.append(finding)
    shown: dict[str, Finding] = {}
    verdicts = ("broken", "not as claimed", "cannot tell", "sound")
    for name, verdict in itertools.product(CHECKS, verdicts):
        deciding = [x for x in judged if x.check == name and x.verdict == verdict]
        if deciding and name not in shown:
            shown[name] = worst(deciding)
    return shown


def worst(findings: Sequence[Finding]) -> Finding:
    """Of findings of one check and verdict the one that is shown: usually the first."""
    check = findings[0].check
    if check != "sensitivity" and findings[0].verdict != "broken":
        return findings[0]
    # Of noise the smallest is the worst.
    sign = -1 if check in (SIZE, DATA) else 1

    def size(finding: Finding) -> float:
        # Rounded, so that of numbers that differ in their last digits the first is shown.
        return sign * round(-1.0 if math.isnan(finding.number) else abs(finding.number), 3)

    return max(findings, key=size)


def batch_size(batch: int | None, count: int) -> int:
    """The size of the batch that is varied. Args: batch: see `step`. count: of examples."""
    size = min(count, USUAL_BATCH)
    if batch is not None:
        check_whole("batch", batch, 2, max(count, 2))
        size = batch
    least = max(LEAST_EXAMPLES, size)
    check(count >= least, "data", f"{count} examples", f"at least {least}")
    return size
