"""The sentences of a ledger."""

from typing import Any

from fedlora_lab import report
from fedlora_lab._utils.html_table import CELL
from fedlora_lab.privacy.ledger import Ledger


def ledger(observer_trust: str | None = None, **terms: Any) -> Ledger:
    if observer_trust is not None:
        terms |= {"unit": "client", "trust": observer_trust}
    book = Ledger(delta=1e-3, **terms)
    book.record(0, None, 20, sample_rate=0.2, noise_multiplier=2.0)
    return book


def test_a_statement_has_all_its_parts() -> None:
    """Epsilon, delta, unit, relation, observer, what attackers reach, and the seed."""
    seeded, fresh = ledger(), ledger(reproducible=False)
    said = report.statement(seeded)
    for part in (f"{seeded.epsilon():.4g}", "0.001", "one example", "zero-out", "every upload"):
        assert part in said
    assert f"share {seeded.tradeoff(0.01):.2g} of the members" in said
    assert "promised to whoever knows it." in said and "seed" not in report.statement(fresh)


def test_a_statement_names_its_observer() -> None:
    summed, trusted = ledger("secagg"), ledger("central")
    assert "the server, which sees the sum of the uploads" in report.statement(summed)
    assert "whoever sees the released models only" in report.statement(summed, "released")
    assert "whoever sees the released models only" in report.statement(trusted)
    both = report.statement(Ledger.compose(summed, trusted))
    assert "each part's own observer (released or server)" in both
    twice = "sees two runs of one seed, which share their noise"
    assert twice in both
    assert twice not in report.statement(
        Ledger.compose(summed, ledger("secagg", reproducible=False))
    )
    row = f">server</td><td {CELL}>{summed.epsilon(observer='server'):.3g}<"
    assert row in report.statement_html(summed)


def test_an_uncertified_ledger_states_its_reason_and_no_number() -> None:
    book = ledger()
    book.uncertified = "noise shaped by the peer"
    assert "not certified: noise shaped by the peer" in report.statement(book)
    assert "attacker" not in report.statement(book) and "<td" not in report.statement_html(book)
