"""Verdicts of intervals: one is shown, and one that holds together with those of all other claims decides."""

from typing import NamedTuple

from fedlora_lab.claims import Gap

HOLDS, FAILS, OPEN = "holds", "does not hold here", "cannot be tested at this scale"
WAITS = "not run yet"
ALONE = "undecided: it {} by itself, not together with the other claims"
VERDICTS = (HOLDS, FAILS, OPEN, WAITS)


class Verdict(NamedTuple):
    """What was measured for a claim, in words with intervals; the verdict; and the reason for it."""

    measured: str
    verdict: str
    reason: str = ""


def beyond(gaps: tuple[Gap, Gap], what: str, by: float, fallen: str = "") -> Verdict:
    """Whether a difference is larger than ``by``.

    Args: gaps: with the interval that is shown, and with the one that decides. fallen: words on runs that fell apart.
    """
    shown, found = gaps
    measured = f"{what}: {shown}, {shown.seeds} seeds{f'; asked: above {by:+.2f}' if by else ''}{fallen}"
    if found.low > by:
        return Verdict(measured, HOLDS)
    if found.high < by:
        side = "the other is ahead" if found.high < 0 else "it is ahead, but by less" if found.low > 0 else ""
        return Verdict(measured, FAILS, side or f"the whole interval is below {by:+.2f}")
    alone = "holds" if shown.low > by else "fails" if shown.high < by else ""
    return Verdict(measured, OPEN, ALONE.format(alone) if alone else f"undecided: the interval holds {by:g}")


def alike(gaps: tuple[Gap, Gap], what: str, bound: float) -> Verdict:
    """Whether a difference is at most ``bound`` to either side. Args: gaps: as for `beyond`."""
    shown, found = gaps
    measured = f"{what}: {shown}, {shown.seeds} seeds; asked: within ±{bound:g}"
    if max(abs(found.low), abs(found.high)) <= bound:
        return Verdict(measured, HOLDS)
    if found.low > bound or found.high < -bound:
        return Verdict(measured, FAILS, f"they differ by more than {bound:g}")
    inside = max(abs(shown.low), abs(shown.high)) <= bound
    alone = "holds" if inside else "fails" if shown.low > bound or shown.high < -bound else ""
    reason = ALONE.format(alone) if alone else f"undecided: the interval reaches beyond ±{bound:g}"
    return Verdict(measured, OPEN, reason)
