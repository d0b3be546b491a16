"""What a ledger promises, in sentences and as a small table."""

from html import escape

from fedlora_lab._utils.html_table import html_table
from fedlora_lab.privacy.ledger import Ledger

VIEWS = {"secagg": "the sum of the uploads", "local": "every upload"}
UNITS = {
    "example": "one example of one client",
    "person": "one person's rows at one client",
    "client": "all data of one client",
}
RATES = (0.01, 0.001)


def statement(ledger: Ledger, observer: str | None = None) -> str:
    """States epsilon, delta, unit, neighbours, observer, what attackers reach, and a seed.

    Args:
        ledger: of a run, or a composition.
        observer: as of `Ledger.epsilon`.

    Guarantees: test_promise.py::test_a_statement_has_all_its_parts.

    >>> from fedlora_lab import Ledger
    >>> ledger = Ledger(reproducible=False)
    >>> ledger.record(0, None, 4, sample_rate=1.0, noise_multiplier=2.0)
    >>> statement(ledger)[:70]
    'epsilon = 4.377 at delta = 1e-05 against the server, which sees every '
    """
    reason = ledger.uncertified
    value = f"not certified: {reason}," if reason else f"{ledger.epsilon(None, observer):.4g}"
    counted = "persons of each" if ledger.unit == "person" else "examples"
    sentences = [
        f"epsilon = {value} at delta = {ledger.delta:g} against {_against(ledger, observer)}, for "
        f"neighbours that differ by {UNITS[ledger.unit]} replaced by nothing ({ledger.relation}: "
        f"how many clients and {counted} there are is public)."
    ]
    if not reason:
        sentences.append(_attack(ledger, observer))
    seeded = sum(part.reproducible for part in ledger.parts or (ledger,))
    if seeded:
        twice = " or sees two runs of one seed, which share their noise" if seeded > 1 else ""
        sentences.append(
            f"The noise came from a seed: nothing is promised to whoever knows it{twice}."
        )
    return " ".join(sentences)


def _against(ledger: Ledger, observer: str | None) -> str:
    """The observer, in words."""
    defaults = sorted({part.observers[0] for part in ledger.parts or (ledger,)})
    if observer is None and len(defaults) > 1:
        return f"each part's own observer ({' or '.join(defaults)})"
    if (observer or defaults[0]) == "released":
        return "whoever sees the released models only"
    view = VIEWS.get(ledger.trust, "uploads or sums")
    return f"the server, which sees {view} and who sends"


def _attack(ledger: Ledger, observer: str | None) -> str:
    """What the best attacker reaches, in words."""
    hundredth, thousandth = (f"{ledger.tradeoff(fpr, None, observer):.2g}" for fpr in RATES)
    return (
        f"Then no attacker finds more than a share {hundredth} of the members where 1 % of the "
        f"others are accused (0.1 %: {thousandth}); advantage at most "
        f"{ledger.advantage(None, observer):.2g}."
    )


def statement_html(ledger: Ledger) -> str:
    """The statement, with epsilon and what attackers reach against each observer in a table."""
    head = ("against", "ε", "advantage", "TPR at FPR 1 %", "TPR at FPR 0.1 %")
    rows = []
    for name in ledger.observers if ledger.uncertified is None else ():
        found = [ledger.tradeoff(fpr, None, name) for fpr in RATES]
        numbers = (ledger.epsilon(None, name), ledger.advantage(None, name), *found)
        rows.append((name, *(f"{number:.3g}" for number in numbers)))
    return f"<p>{escape(statement(ledger))}</p>{html_table(rows, head) if rows else ''}"
