"""A review: the evidence of all checks judged together, as one table and one page."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedlora_lab._utils.environment import ignore_warnings
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.validation import check, check_number, check_whole
from fedlora_lab.privacy.accounting import epsilon
from fedlora_lab.review.checks import StepChecks
from fedlora_lab.review.claims import CHECKS, Claims, Evidence, Loader, Step, Verdict
from fedlora_lab.review.sampling import (
    most_participations,
    preparation_evidence,
    sampling_evidence,
)

if TYPE_CHECKING:
    import pandas as pd

LEAST_EXAMPLES = 8
EPSILON_SLACK = 0.01
"""Share by which a stated epsilon may lie below that of dp-accounting: the accountants' errors."""
OTHER_SEEDS = 104_729
"""What chance alone may have shown is looked at again that many seeds further."""
NEEDS_A_STEP = [name for name in CHECKS if name not in ("sampling", "accounting", "preparation")]


class Finding(NamedTuple):
    """One line of a review.

    Args:
        check: a name in `CHECKS`.
        verdict: "sound", "broken" or "cannot tell".
        number: what was measured, as ``CHECKS[check].asks`` says.
        example: the example or tensor that shows it.
        words: what was found, in a sentence.
        docs: where it is explained.
    """

    check: str
    verdict: Verdict
    number: float
    example: str
    words: str
    docs: str


@dataclass(frozen=True)
class Review:
    """What a review found.

    Args:
        findings: one for each check, in the order of `CHECKS`.
        epsilon: what the measured sensitivity, noise and sampling give at the claimed delta;
            infinite where no finite one can be stated; ``None`` without steps or delta.
        claims: what was claimed.
        title: heads the page.
    """

    findings: tuple[Finding, ...]
    epsilon: float | None
    claims: Claims
    title: str = "Is this private?"

    @property
    def sound(self) -> bool:
        """Nothing is broken; what could not be told may be."""
        return not self.broken

    @property
    def broken(self) -> frozenset[str]:
        """Names of the checks that found something broken."""
        return frozenset(one.check for one in self.findings if one.verdict == "broken")

    def __getitem__(self, name: str) -> Finding:
        return {one.check: one for one in self.findings}[name]

    @property
    def summary(self) -> str:
        """The outcome in two sentences."""
        broken = [one.check for one in self.findings if one.verdict == "broken"]
        open_ = sum(one.verdict == "cannot tell" for one in self.findings)
        count = len(self.findings)
        words = f"{count - open_} of {count} checks could tell, and found nothing broken."
        if broken:
            words = f"Broken: {', '.join(broken)}."
        return f"{words} {self._epsilon_words()}"

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

        rows = [one._asdict() for one in self.findings]
        return pd.DataFrame(rows).set_index("check")

    def __str__(self) -> str:
        rows = [f"{one.verdict:<12}{one.check:<20}{one.words}" for one in self.findings]
        return "\n".join([*rows, self.summary])

    def _repr_html_(self) -> str:
        rows = [(one.check, one.verdict, _digits(one.number), one.words) for one in self.findings]
        return html_table([*rows, ("", "", "", self.summary)], ("check", "verdict", "number", ""))

    def page(self) -> str:
        """One HTML page: the outcome, what to mend, every check, what it asks, the claims.

        It needs no network: what explains a check stands on the page, under a link of its own.
        """
        from jinja2 import Environment, StrictUndefined

        template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        claims = {
            name: value for name, value in vars(self.claims).items() if value not in (None, (), {})
        }
        address = repository_address()
        links = {name: documentation_link(one.docs, address) for name, one in CHECKS.items()}
        return environment.from_string(template).render(
            review=self, checks=CHECKS, links=links, claims=claims, digits=_digits
        )

    def save(self, path: "str | Path") -> Path:
        """Writes the page; returns its path."""
        target = Path(path)
        write_atomically(target, self.page(), shared=True)
        return target


def _digits(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.3g}"


def repository_address() -> str:
    """The address of the project's repository, as the installed package states it."""
    stated = metadata("fedlora_lab").get_all("Project-URL") or []
    return dict(one.split(", ", 1) for one in stated).get("Repository", "")


def documentation_link(docs: str, repository: str) -> str | None:
    """Where a page of the documentation can be read, or None as long as that is nowhere.

    Args: docs: a file of the repository, with a place in it. repository: its address.

    >>> documentation_link("docs/review.md#peft", "https://github.com/OWNER/fedlora_lab") is None
    True
    """
    public = repository and "/OWNER/" not in repository
    return f"{repository}/blob/main/{docs}" if public else None


def step(
    function: "Step | None",
    data: Sequence[Any],
    claims: Claims,
    *,
    loader: "Loader | None" = None,
    others: "Mapping[str, Step] | None" = None,
    prepare: "Callable[[list[Any]], Sequence[Any]] | None" = None,
    batch: int | None = None,
    draws: int = 64,
    seed: int = 0,
    significance: float = 0.01,
    title: str = "Is this private?",
) -> Review:
    """Looks at a private training step from outside, and says what of its claims holds.

    The step is called some hundred times, always from the same state, with other examples and
    other seeds. A pass is no proof: it covers what the checks look at, near these examples.

    Args:
        function: (examples, seed) -> name -> array: everything that leaves one step, noised
            gradients or plain-SGD updates, buffers, metrics; ``examples`` is a list of any length,
            0 included. ``None``: only loader, claims and preparation are looked at.
        data: at least 8 examples, of any kind; floating-point arrays in them are what is scaled.
        claims: what the author says.
        loader: seed -> batches, each a list of indices into the data set.
        others: name -> a further step (another worker, the next step) whose noise at the same seed
            must be independent.
        prepare: raw examples -> examples; ``data`` are raw then.
        batch: size of the batch that is varied; default 16, under "replace" the denominator.
        draws: calls from which the noise is measured, at least 16.
        seed: of the review; the step gets seeds derived from it.
        significance: chance that a sound step is called broken, over all checks together.
        title: heads the page.

    Raises: ``ValueError`` for a step that does not return arrays by name, or for too few examples.
    Guarantees: test_sound_steps_are_called_broken_no_more_often_than_stated,
        test_two_looks_raise_no_more_false_alarms_than_stated,
        test_every_planted_mistake_is_found,
        test_noise_that_is_tied_to_that_of_another_call_is_found,
        test_a_step_that_skips_its_noise_beside_a_bad_example_is_found,
        test_a_step_that_skips_its_noise_where_little_is_left_to_learn_is_found,
        test_a_step_that_drops_others_with_a_bad_example_is_found,
        test_a_step_whose_batch_decides_who_counts_is_found.

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
    >>> found.sound, round(found["reach"].number, 3)
    (True, 1.0)
    """
    check(isinstance(claims, Claims), "claims", claims, "fl.review.Claims(clip_norm=..., ...)")
    data = [*data]
    check(isinstance(others or {}, Mapping), "others", type(others).__name__, "name -> step")
    check_number("significance", significance, 0, 1, open_low=True)
    check_whole("draws", draws, 16)
    check_whole("seed", seed)
    subject: Any = {"function": function, "data": data, "claims": claims, "loader": loader}
    subject |= {"others": others, "prepare": prepare, "batch": batch, "draws": draws}
    looks = [_all_evidence(**subject, seed=seed)]
    if is_doubtful(looks[0], significance):
        looks.append(_all_evidence(**subject, seed=seed + OTHER_SEEDS))
    findings = judge_evidence(looks, significance)
    return Review(findings, _epsilon_given(findings, claims, loader, seed), claims, title)


def _all_evidence(
    function: "Step | None",
    data: Sequence[Any],
    claims: Claims,
    loader: "Loader | None",
    others: "Mapping[str, Step] | None",
    prepare: "Callable[[list[Any]], Sequence[Any]] | None",
    batch: int | None,
    draws: int,
    seed: int,
) -> list[Evidence]:
    """What all checks find. Args: see `step`."""
    evidence: list[Evidence] = []
    if function is None:
        words = "no step was given"
        evidence += [Evidence(name, words, verdict="cannot tell") for name in NEEDS_A_STEP]
    else:
        check(callable(function), "function", function, "a function of (examples, seed)")
        prepared = data if prepare is None else prepare([*data])
        listed = hasattr(prepared, "__iter__")
        check(listed, "prepare", type(prepared).__name__, "to return a list of examples")
        prepared = [*prepared]
        least = max(LEAST_EXAMPLES, _batch_size(batch, claims, len(prepared)))
        check(len(prepared) >= least, "data", f"{len(prepared)} examples", f"at least {least}")
        size = _batch_size(batch, claims, len(prepared))
        options: Any = {"others": dict(others or {}), "batch": size, "seed": seed}
        with ignore_warnings(RuntimeWarning, ""):
            evidence += StepChecks(function, prepared, claims, draws=draws // 2 * 2, **options)
    evidence += sampling_evidence(loader, claims, seed)
    evidence += preparation_evidence(prepare, data)
    evidence += _accounting(claims)
    return evidence


def _batch_size(batch: int | None, claims: Claims, count: int) -> int:
    if batch is not None:
        check_whole("batch", batch, 2, count)
        return batch
    if claims.relation == "replace" and claims.denominator and claims.denominator >= 2:
        return round(claims.denominator)
    return min(count, 16)


def check_p_values(look: Sequence[Evidence]) -> dict[str, float]:
    """The p-value of each check that chance decides: of all its evidence together (Bonferroni)."""
    found: dict[str, list[float]] = {}
    for one in look:
        if one.p is not None:  # of what is not finite it is no number either
            found.setdefault(one.check, []).append(0.0 if math.isnan(one.p) else one.p)
    return {name: min(1.0, len(values) * min(values)) for name, values in found.items()}


def two_looks_p_value(p: float, q: float) -> float:
    """The p-value of two independent looks (Fisher): far beyond chance in either, it stays so.

    Args: p, q: p-values of the two; 1 for a look that was not made, which takes nothing back.

    >>> two_looks_p_value(1e-12, 1.0) < 1e-10, two_looks_p_value(1e-3, 0.5) > 4e-3
    (True, True)
    """
    product = p * q
    return product * (1 - math.log(product)) if product > 0 else 0.0


def rejected_checks(p_values: Mapping[str, float], significance: float) -> set[str]:
    """The checks that are beyond chance, all judged together (Holm).

    Args: p_values: of each check. significance: chance that any of them is rejected wrongly.
    """
    rejected: set[str] = set()
    for name, p in sorted(p_values.items(), key=lambda one: one[1]):
        if p > significance / (len(p_values) - len(rejected)):
            break
        rejected.add(name)
    return rejected


def is_doubtful(look: Sequence[Evidence], significance: float) -> bool:
    """Whether one look calls something broken that two might not.

    Args: look: evidence of all checks. significance: see `rejected_checks`.
    """
    p_values = check_p_values(look)
    worst = {name: two_looks_p_value(p, 1.0) for name, p in p_values.items()}
    plain = {one.check for one in look if one.verdict == "broken"}
    sure = rejected_checks(worst, significance)
    return bool(rejected_checks(p_values, significance) - sure - plain)


def judge_evidence(looks: Sequence[Sequence[Evidence]], significance: float) -> tuple[Finding, ...]:
    """One finding for each check, from one look, or from two with other seeds.

    What does not depend on chance counts in either look. Where chance decides, the two looks have
    one p-value. As a rejection needs it whether a second look is made or not, the choice of making
    one adds no false alarm.

    Args: looks: evidence of all checks in each. significance: see `rejected_checks`.
    """
    first, *others = map(check_p_values, looks)
    second = others[0] if others else {}
    names = {*first, *second}
    p_values = {
        name: two_looks_p_value(first.get(name, 1.0), second.get(name, 1.0)) for name in names
    }
    rejected = rejected_checks(p_values, significance)
    evidence = [one for look in looks for one in look]
    findings = []
    for name, known in CHECKS.items():
        mine = [one for one in evidence if one.check == name]
        broken = [one for one in mine if one.verdict == "broken"]
        if name in rejected:
            by_chance = [one for one in mine if one.p is not None]
            least = min(one.p or 0.0 for one in by_chance)
            limit = max(least, significance / len(by_chance))
            broken += [one for one in by_chance if (one.p or 0.0) <= limit]
        unsure = [one for one in mine if one.verdict == "cannot tell"]
        verdict: Verdict = "broken" if broken else "cannot tell" if unsure else "sound"
        told = broken or unsure or mine
        # The largest number shows these best; of other checks the first thing that was tried.
        if name == "reach":
            one = max(told, key=lambda one: _rank(one.number))
        elif name == "noise independence" and broken:
            one = max(told, key=lambda one: round(_rank(one.number), 3))
        else:
            one = told[0]
        findings.append(Finding(name, verdict, one.number, one.example, one.words, known.docs))
    return tuple(findings)


def _rank(number: float) -> float:
    return -1.0 if math.isnan(number) else abs(number)


# ---- epsilon


def _history(claims: Claims, sigma: float) -> tuple[tuple[float, float, int], ...]:
    """Releases of this noise under the claimed sampling, for one unit."""
    q, steps = claims.sample_rate or 1.0, claims.steps or 1
    sigma = sigma / 2 if claims.relation == "replace" else sigma
    if claims.sampling == "shuffle":
        return ((sigma, 1.0, math.ceil(steps * q - 1e-9)),)
    amplified = claims.sampling == "poisson" and claims.relation == "add/remove"
    return ((sigma, q if amplified else 1.0, steps),)


def _spent(claims: Claims, sigma: float) -> float:
    """Epsilon at the claimed delta."""
    assert claims.delta is not None and claims.steps is not None
    q, n = claims.sample_rate or 1.0, claims.dataset_size
    if claims.sampling == "fixed" and claims.relation == "replace" and n and q < 1 and sigma:
        import dp_accounting as dp
        from dp_accounting.rdp import RdpAccountant

        neighbours = dp.NeighboringRelation.REPLACE_ONE
        event = dp.SampledWithoutReplacementDpEvent(n, round(q * n), dp.GaussianDpEvent(sigma / 2))
        renyi = RdpAccountant(neighboring_relation=neighbours).compose(event, claims.steps)
        return float(renyi.get_epsilon(claims.delta))
    return epsilon(_history(claims, sigma), claims.delta)


def _accounting(claims: Claims) -> Iterator[Evidence]:
    if claims.delta is None or claims.steps is None:
        words = "needs steps and delta among the claims, and epsilon to compare with"
        yield Evidence("accounting", words, verdict="cannot tell")
        return
    spent = _spent(claims, claims.noise_multiplier)
    how = {None: "no amplification by sampling", "fixed": "fresh batches of one size"}
    how |= {"poisson": "Poisson batches", "shuffle": "shuffled batches, without amplification"}
    words = f"{claims.steps} steps, {how[claims.sampling]}: ε = {spent:.4g} at δ = {claims.delta:g}"
    if claims.epsilon is None:
        yield Evidence("accounting", f"{words}; none is claimed", spent, verdict="cannot tell")
    else:
        least = spent * (1 - EPSILON_SLACK)
        verdict: Verdict = "sound" if claims.epsilon >= least else "broken"
        words = f"{words}; claimed {claims.epsilon:.4g}"
        yield Evidence("accounting", words, spent, "all steps", verdict=verdict)
    if claims.dataset_size is not None and claims.delta * claims.dataset_size >= 1:
        words = f"δ = {claims.delta:g} allows one of {claims.dataset_size} to be published outright"
        yield Evidence("accounting", words, spent, "delta", verdict="broken")


HIDES_NOTHING = ("non-finite", "noise law", "un-noised output", "preparation")


def _epsilon_given(
    findings: Sequence[Finding], claims: Claims, loader: "Loader | None", seed: int
) -> float | None:
    """The epsilon of what was measured: the claim holds where nothing broken was found."""
    if claims.delta is None or claims.steps is None:
        return None
    broken = {one.check: one for one in findings if one.verdict == "broken"}
    if any(name in broken for name in HIDES_NOTHING):
        return math.inf
    sigma, delta = claims.noise_multiplier, claims.delta
    for name in ("noise size", "noise per tensor"):
        if name in broken:
            sigma *= min(1.0, broken[name].number)
    if "reach" in broken:
        limit = 2.0 if claims.relation == "replace" else 1.0
        sigma *= limit / max(limit, broken["reach"].number)
    if "noise independence" in broken:
        # Along a difference of correlated numbers the noise is smaller by this factor.
        shared = min(1.0, abs(broken["noise independence"].number))
        sigma *= math.sqrt(1 - shared) if shared < 0.99 else 0.0
    if "empty batch" in broken:
        q, n = claims.sample_rate or 1.0, claims.dataset_size or 1
        delta -= min(1.0, (1 - q) ** n * claims.steps)
    if sigma <= 0 or not sigma < math.inf or delta <= 0:
        return math.inf
    values: dict[str, Any] = dict(vars(claims)) | {"delta": delta}
    if "sampling" in broken and loader is not None and claims.dataset_size is not None:
        steps = most_participations(loader, claims.steps, claims.dataset_size, seed)
        values |= {"sampling": None, "sample_rate": None, "steps": steps}
    return _spent(Claims(**values), sigma)
