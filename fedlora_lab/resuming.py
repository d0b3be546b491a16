"""A run taken up where a folder's checkpoint left it: the same run, and a ledger that has forgotten nothing."""

import warnings
from pathlib import Path

from fedlora_lab import checkpoint
from fedlora_lab.agreement import Agreement
from fedlora_lab.checkpoint import State
from fedlora_lab.checks import check
from fedlora_lab.ledger import Ledger
from fedlora_lab.release import Release


def taken_up(folder: Path, asked: Agreement, fresh: State, opened: Ledger | None) -> tuple[State, Ledger | None]:
    """The state and the ledger to go on with.

    Where no checkpoint is whole and a ledger is there, the run begins anew: what was spent stays spent.

    Args:
        fresh, opened: those of a run that begins anew, with which the folder's must agree.

    Raises: ``ValueError`` where the folder is of another run, or its ledger not the one that this run would have
        written.
    Guarantees: test_attack_spending.py::test_a_lost_checkpoint_forgets_no_release.
    """
    found = checkpoint.newest(folder)
    if found is None and opened is not None and (folder / checkpoint.LEDGER).exists():
        text = "no checkpoint in it is whole; the run begins anew, and what stands in its ledger stays spent"
        warnings.warn(f"resume={str(folder)!r}: {text}", stacklevel=2)
        return fresh, _continued(folder / checkpoint.LEDGER, asked, fresh, opened)
    check(found is not None, "resume", str(folder), "a folder with a whole checkpoint")
    assert found is not None
    state, theirs = found
    for name, ours in checkpoint.disguised(folder, asked.settings()).items():
        check(theirs.get(name) == ours, "resume", str(folder), f"the same {name} as in this run")
    check(len(state.seen) == len(fresh.seen), "resume", str(folder), f"{len(fresh.seen)} clients")
    return checkpoint.ordered(state, fresh.server), _continued(folder / checkpoint.LEDGER, asked, state, opened)


def _continued(book: Path, asked: Agreement, state: State, opened: Ledger | None) -> Ledger | None:
    """The folder's ledger, entry by entry as this run writes it."""
    if opened is None or not (state.round or book.exists()):
        return opened
    # Also before the first round is done: what was spent in one that was cut short stays spent.
    check(book.exists(), "ledger", str(book), "the ledger of the rounds done")
    found = Ledger.load(book)
    check(found.terms == opened.terms, "ledger", found.terms, f"{opened.terms}, those of this run")
    check(found.uncertified == opened.uncertified, "ledger", found.uncertified, "what this run says")
    for entry in found.releases:
        known = all(k < len(state.seen) for k in entry.clients or ())
        check(known, "ledger", entry, "clients of this run")
        ours = Release.of(entry.round, entry.clients, **asked.entry(entry.clients))
        check(entry == ours, "ledger", entry, f"{ours}, as this run writes it")
    written = {entry.round for entry in found.releases}
    check(written >= set(range(1, state.round + 1)), "ledger", sorted(written), f"all {state.round} rounds done")
    return found
