"""States what the runs of a folder spend, one by one and together."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.statement import statement

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
    books = {name: ledger for name, ledger in ledgers.items() if ledger is not None}
    released = {name: ledger for name, ledger in books.items() if not ledger.reproducible}
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
    for title, summands in sums.items():
        try:
            sentence = statement(Ledger.compose(*summands))
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
