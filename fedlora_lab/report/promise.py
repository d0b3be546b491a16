"""States what the runs of a folder spend, one by one and together."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.statement import RATES, statement

if TYPE_CHECKING:
    from fedlora_lab.report.run_folder import Folder


def total_statements(ledgers: Mapping[str, Ledger | None], shown: Iterable[str]) -> list[str]:
    """States what runs on the same data spend together; nothing for a single one.

    Runs with recorded seeds are not for release: of those the sentences state what they would spend
    if they were.

    Args: ledgers: of all runs by name, ``None`` without privacy. shown: names that a table shows; a
        single release that it does not is told too.
    Guarantees: test_promise.py::test_runs_on_the_same_data_are_added_up.
    """
    books = {name: one for name, one in ledgers.items() if one is not None}
    released = {name: one for name, one in books.items() if not one.reproducible}
    gone = "including interrupted and deleted ones"
    sums: dict[str, list[Ledger]] = {}
    if len(released) > 1:
        title = f"All {len(released)} runs without a seed together, {gone}"
        sums[title] = list(released.values())
    elif released.keys() - set(shown):
        sums["A run without a seed that was interrupted or deleted"] = list(released.values())
    if len(books) > max(1, len(released)):
        sums[f"All {len(books)} runs together, if they were all released"] = list(books.values())
    sentences = []
    for title, parts in sums.items():
        try:
            sentence = statement(Ledger.compose(*parts))
        except ValueError as error:
            sentence = f"no epsilon can be stated ({error})."
        sentences.append(f"{title}: {sentence}")
    if count := len(ledgers) - len(books):
        sentences.append(
            f"Runs without privacy ({count} here, {gone}) promise nothing: no ε covers what they "
            f"reveal about the data."
        )
    return sentences


def folder_statements(folder: "Folder") -> list[str]:
    """States what all runs of a folder spend together, and which of them were stopped.

    Guarantees: test_attack_spending.py::test_a_run_without_privacy_is_never_forgotten.
    """
    shown = folder.shown()
    return [*folder.stopped_cells(), *total_statements(shown | folder.ledgers(), shown)]


def ledger_row(name: str, ledger: Ledger | None) -> dict[str, str]:
    """Tabulates what one run released, what that spent, and whether it may be released.

    Args: name: of the run. ledger: of it; ``None`` without privacy.
    """
    columns = ("unit", "relation", "observer", "releases", "epsilon", "attacks", "mode")
    row = {"cell": name, **dict.fromkeys(columns, "–")}
    if ledger is None:
        return row | {"epsilon": "not private", "mode": "no privacy"}
    row |= {
        "unit": ledger.unit,
        "relation": ledger.relation,
        "observer": ledger.observers[0],
        "releases": str(_most_releases(ledger)),
        "epsilon": f"not private ({ledger.uncertified})",
        "mode": f"{ledger.accountant}, δ = {ledger.delta:g}, {ledger.mode}",
    }
    if ledger.uncertified is None:
        epsilon = ledger.epsilon()
        row["epsilon"] = "not private" if math.isinf(epsilon) else f"{epsilon:.3f}"
        numbers = [ledger.advantage(), *(ledger.tradeoff(rate) for rate in RATES)]
        row["attacks"] = " · ".join(f"{number:.2g}" for number in numbers)
    return row


def _most_releases(ledger: Ledger) -> int:
    """How many releases the client has made who has made most."""
    clients = ledger.clients or (None,)
    return max(sum(count for *_, count in ledger.history(client)) for client in clients)
