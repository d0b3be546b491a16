"""States what a ledger promises, in sentences: to whom, for which unit, with which caveats.

Every number is computed from the ledger itself, so that a stored one is checked by reading it.
"""

from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.trust import TRUST
from fedlora_lab.privacy.ledger import RELATION, UNITS, Ledger

RATES = (0.01, 0.001)
"""Shares of non-members that are wrongly accused, at which attacks are bounded."""
NO_PRIVACY = "Trained without privacy: nothing is promised."
SEEDED = (
    "The noise came from a recorded seed, so that the run can be repeated: whoever knows the seed "
    "can subtract the noise. For study, not for release."
)
ALWAYS = (
    "How many clients there are and how many units each has is public. To replace one unit by "
    "another is two such changes.",
    "Classes that were read from the labels of private rows, and not declared, are told as they "
    "are: no ε covers them.",
    "Other runs on the same data, and choices made by looking at them (learning rate, clip norm, "
    "the best of several runs), spend more: count those too.",
    "Outside are time, memory and network as side channels, poisoned updates, and who may read the "
    "data where they lie.",
)
"""Caveats of every ledger."""
SAME_CLIENTS = (
    "The sum takes a client for the same data in every run: of sites that were merged or split in "
    "between it may be too small."
)
"""Caveat of a sum over runs in the client unit."""


def statement(ledger: Ledger) -> str:
    """States epsilon, delta, unit, neighbours, observer, what attackers reach, and a seed.

    The observer is the first of ``ledger.observers``, of a composition each part's own.

    Args: ledger: of a run, or a composition.
    Guarantees: all of these stand in it (test_promise.py::test_a_statement_has_all_its_parts), and
        no number is rounded down (::test_what_is_written_is_never_less_than_the_ledger_says).

    >>> from fedlora_lab import Ledger
    >>> ledger = Ledger(reproducible=False)
    >>> ledger.record(0, None, 4, sample_rate=1.0, noise_multiplier=2.0)
    >>> statement(ledger)[:70]
    'epsilon = 4.378 at delta = 1e-05 against the server, which sees every '
    """
    reason = ledger.uncertified
    value = f"not certified: {reason},"
    if not reason:
        value = round_up(ledger.epsilon(), ".4g")
    counted = "persons of each" if ledger.unit == "person" else "examples"
    delta = round_up(ledger.delta, "g")
    sentences = [
        f"epsilon = {value} at delta = {delta} against {_against(ledger)}, for "
        f"neighbours that differ by {UNITS[ledger.unit].replaced} replaced by nothing ({RELATION}: "
        f"how many clients and {counted} there are is public)."
    ]
    if not reason:
        hundredth, thousandth = (round_up(ledger.tradeoff(fpr), ".2g") for fpr in RATES)
        sentences.append(
            f"Then no attacker finds more than a share {hundredth} of the members where 1 % of the "
            f"others are accused (0.1 %: {thousandth}); advantage at most "
            f"{round_up(ledger.advantage(), '.2g')}."
        )
    seeded = sum(part.reproducible for part in ledger.parts or (ledger,))
    if seeded:
        twice = " or sees two runs of one seed, which share their noise" if seeded > 1 else ""
        sentences.append(
            f"The noise came from a seed: nothing is promised to whoever knows it{twice}."
        )
    if len(ledger.parts) > 1 and ledger.unit == "client" and not reason:
        sentences.append(SAME_CLIENTS)
    return " ".join(sentences)


def _against(ledger: Ledger) -> str:
    """The observer, in words."""
    observers = sorted({part.observers[0] for part in ledger.parts or (ledger,)})
    if len(observers) > 1:
        return f"each part's own observer ({' or '.join(observers)})"
    if observers == ["released"]:
        return "whoever sees the released models only"
    views = {TRUST[part.trust].view for part in ledger.parts or (ledger,)}
    view = views.pop() if len(views) == 1 else "uploads or sums"
    return f"the server, which sees {view} and who sends"


def caveats(ledger: Ledger) -> list[str]:
    """Says what the numbers of a ledger do not cover."""
    # A composition may have parts under several trusts: what each of them leaves open counts.
    trusts = sorted({part.trust for part in ledger.parts or (ledger,)})
    lines = [SEEDED] if ledger.reproducible else []
    lines.append(UNITS[ledger.unit].caveat)
    lines += [TRUST[trust].caveat for trust in trusts if TRUST[trust].caveat]
    return [*lines, *ALWAYS]


def privacy_page(ledger: Ledger | None) -> str:
    """Writes the page that lies beside an adapter; ``None``: it was trained without privacy."""
    if ledger is None:
        return f"# Privacy\n\n{NO_PRIVACY}\n"
    lines = "\n".join(f"- {line}" for line in caveats(ledger))
    again = '`fl.privacy.privacy_page(fl.Ledger.load("ledger.json"))` computes this page again.'
    promise = statement(ledger)
    return (
        f"# Privacy\n\n{promise}\n\nMode: {ledger.mode}. Accountant: {ledger.accountant}.\n\n"
        f"## What this does not say\n\n{lines}\n\n{again}\n"
    )
