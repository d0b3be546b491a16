"""The evidence of all checks judged together, from one look or from two."""

import math
from collections.abc import Mapping, Sequence

from fedlora_lab.review.claims import CHECKS, Evidence, Finding, Verdict


def check_p_values(look: Sequence[Evidence]) -> dict[str, float]:
    """The p-value of each check that chance decides: of all its evidence together (Bonferroni)."""
    by_check: dict[str, list[float]] = {}
    for evidence in look:
        if evidence.p is not None:  # of what is not finite it is no number either
            p = 0.0 if math.isnan(evidence.p) else evidence.p
            by_check.setdefault(evidence.check, []).append(p)
    return {name: min(1.0, len(values) * min(values)) for name, values in by_check.items()}


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
    for name, p in sorted(p_values.items(), key=lambda pair: pair[1]):
        if p > significance / (len(p_values) - len(rejected)):
            break
        rejected.add(name)
    return rejected


def is_doubtful(look: Sequence[Evidence], significance: float) -> bool:
    """Whether one look calls something broken that two might not.

    Args: look: evidence of all checks. significance: see `rejected_checks`.
    """
    p_values = check_p_values(look)
    # What one look rejects by itself stays, and what no p-value decides needs no second one.
    alone = {name: two_looks_p_value(p, 1.0) for name, p in p_values.items()}
    plain = {seen.check for seen in look if seen.verdict == "broken"}
    sure = rejected_checks(alone, significance)
    return bool(rejected_checks(p_values, significance) - sure - plain)


def judge_evidence(looks: Sequence[Sequence[Evidence]], significance: float) -> tuple[Finding, ...]:
    """One finding for each check, from one look, or from two with other seeds.

    What does not depend on chance counts in either look. Where chance decides, the two looks have
    one p-value. As a rejection needs it whether a second look is made or not, the choice of making
    one adds no false alarm.

    Args: looks: evidence of all checks in each. significance: see `rejected_checks`.
    """
    first, second = [*map(check_p_values, looks), {}][:2]
    p_values = {
        name: two_looks_p_value(first.get(name, 1.0), second.get(name, 1.0))
        for name in {*first, *second}
    }
    rejected = rejected_checks(p_values, significance)
    evidence = [seen for look in looks for seen in look]
    findings = []
    for name in CHECKS:
        of_check = [seen for seen in evidence if seen.check == name]
        findings.append(_finding(name, of_check, name in rejected, significance))
    return tuple(findings)


def _finding(
    name: str, evidence: Sequence[Evidence], rejected: bool, significance: float
) -> Finding:
    """What one check found. Args: rejected: by chance. The others: see `judge_evidence`."""
    broken = [seen for seen in evidence if seen.verdict == "broken"]
    if rejected:
        # Of a check that is rejected every piece of evidence beyond the limit is shown.
        by_chance = [(seen.p or 0.0, seen) for seen in evidence if seen.p is not None]
        least = min(p for p, _ in by_chance)
        limit = max(least, significance / len(by_chance))
        broken += [seen for p, seen in by_chance if p <= limit]
    unsure = [seen for seen in evidence if seen.verdict == "cannot tell"]
    verdict: Verdict = "broken" if broken else "cannot tell" if unsure else "sound"
    deciding = broken or unsure or evidence
    shown = deciding[0]
    # The largest number shows these best; of other checks the first thing that was tried.
    if name == "reach" or (name == "noise independence" and broken):
        shown = max(deciding, key=lambda seen: round(_size(seen.number), 3))
    return Finding(name, verdict, shown.number, shown.example, shown.words, CHECKS[name].docs)


def _size(number: float) -> float:
    return -1.0 if math.isnan(number) else abs(number)
