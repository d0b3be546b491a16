"""Who may be the same client in several runs, and what one client can have spent in all of them.

A client is known again by its name. A name that a run lacks may be one of that run's clients under
another name, and clients without names may be any: of all ways to match them the worst counts.
"""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, product

from fedlora_lab.privacy.accounting import History

Spent = Mapping[tuple[float, float], int]
"""(noise multiplier, sample rate) -> releases."""
Runs = tuple[int, ...]
"""The runs that have a client, by number."""
MOST = 64
"""Ways to match clients that are counted one by one; of more a bound is counted."""
MOST_GROUPS = 10
"""Sets of runs that share a client, likewise."""


def add_up(*parts: Spent) -> dict[tuple[float, float], int]:
    """Adds releases of equal noise and rate."""
    total: dict[tuple[float, float], int] = {}
    for part in parts:
        for pair, count in part.items():
            total[pair] = total.get(pair, 0) + count
    return total


def as_history(spent: Spent) -> History:
    """The same as a history."""
    return tuple((*pair, count) for pair, count in spent.items())


def worst_histories(
    runs: Sequence[Mapping[Hashable, Spent]], common: Spent, client: Hashable | None = None
) -> list[History]:
    """Finds the histories that one client may have in all runs, among them the one that costs most.

    Args:
        runs: of each run, label -> what this client alone has spent. Equal labels are one client.
        common: what every client has spent, in all runs together.
        client: a label; ``None``: any client.

    Guarantees: no client has spent more, however clients of different labels are matched
        (test_ledger.py::test_a_sum_is_never_below_what_a_client_has_spent); where all runs have the
        same labels, or one has more, exactly what the labels say
        (::test_clients_are_known_by_name_wherever_they_stand).
    """
    where: dict[Hashable, Runs] = {}
    totals: dict[Hashable, dict[tuple[float, float], int]] = {}
    for number, run in enumerate(runs):
        for label, spent in run.items():
            where[label] = (*where.get(label, ()), number)
            totals[label] = add_up(totals.get(label, {}), spent)
    groups: dict[Runs, list[Spent]] = {}
    for label, spent in totals.items():
        groups.setdefault(where[label], []).append(spent)
    if client is not None:
        # Its own releases, and those of whoever it may be in the runs that lack its name.
        own = where.get(client, ())
        groups = {key: group for key, group in groups.items() if not {*key} & {*own}}
        if own:
            groups[own] = [totals[client]]
    if len(groups) > MOST_GROUPS:
        # Whatever the names say, a client is at most one client of each run.
        groups = {(number,): list(run.values()) for number, run in enumerate(runs) if run}
    largest = {key: undominated(map(as_history, group)) for key, group in groups.items()}
    histories = []
    for family in _disjoint_families(list(groups)):
        choices = _few_choices([largest[key] for key in family])
        histories += [_joined(common, choice) for choice in product(*choices)]
    return undominated(histories)


def _joined(common: Spent, choice: Iterable[History]) -> History:
    parts = ({(sigma or 0.0, q): steps for sigma, q, steps in history} for history in choice)
    return as_history(add_up(common, *parts))


def _disjoint_families(groups: list[Runs]) -> Iterator[list[Runs]]:
    """The largest sets of groups of which no two have a run in common.

    In a run that has two clients they are two: only clients of different runs may be one.
    """
    if not groups:
        yield []
        return
    first, *others = groups
    apart = [key for key in others if not {*key} & {*first}]
    for family in _disjoint_families(apart):
        yield [first, *family]
    if len(apart) < len(others):
        yield from _disjoint_families(others)


def _few_choices(choices: list[list[History]]) -> list[list[History]]:
    """At most `MOST` combinations: where there are more, histories with a bound of several."""
    most = math.prod(map(len, choices))
    size = max(map(len, choices), default=1)
    while most > MOST and size > 1 and len(choices) > 1:
        size -= 1
        most = math.prod(min(len(group), size) for group in choices)
    # Of one set of runs every client is counted for itself: nothing is combined.
    return choices if len(choices) < 2 else [_at_most(group, size) for group in choices]


def _at_most(histories: list[History], count: int) -> list[History]:
    """So many histories, of which each of the given ones is dominated by one."""
    if len(histories) <= count:
        return histories
    # Neighbours in noise have nearly the same rate where each client's noise was calibrated.
    ordered = sorted(histories, key=lambda history: min((s or 0.0) for s, _, _ in history))
    bounds = [len(ordered) * k // count for k in range(count + 1)]
    return [_bound(ordered[low:high]) for low, high in pairwise(bounds)]


def _bound(histories: list[History]) -> History:
    """A history that spends at least as much as each of these: epsilon never falls with less noise,
    a larger rate or more releases."""
    entries = [entry for history in histories for entry in history]
    sigma = min(sigma or 0.0 for sigma, _, _ in entries)
    rate = max(q for _, q, _ in entries)
    return ((sigma, rate, max(sum(steps for *_, steps in history) for history in histories)),)


def undominated(histories: Iterable[History]) -> list[History]:
    """The histories that no other dominates: one of them spends most.

    Epsilon never falls with less noise, a larger q or more releases. Entries are compared one by
    one in their order, so histories of different lengths never dominate each other, but the empty
    one, which every other dominates.
    """
    # Written so that each number, if larger, spends at least as much.
    costs = {
        tuple(
            number for sigma, q, steps in history for number in (-(sigma or 0.0), q, steps)
        ): history
        for history in histories
    }
    if len(costs) > 1:
        costs.pop((), None)
    largest: list[tuple[float, ...]] = []
    # The largest first: a later one may fall by an earlier one, and never the other way round.
    for cost in sorted(costs, reverse=True):
        rivals = (zip(rival, cost, strict=True) for rival in largest if len(rival) == len(cost))
        if not any(all(a >= b for a, b in pairs) for pairs in rivals):
            largest.append(cost)
    return [costs[cost] for cost in largest]
