"""The ledger against the releases that a run makes."""

import math

from fedlora_lab import accounting
from fedlora_lab.audit.bench import finite
from fedlora_lab.audit.found import Found
from fedlora_lab.audit.watch import Watched
from fedlora_lab.checks import check
from fedlora_lab.record import Tick


def ledger(run: Watched) -> list[Found]:
    """The ledger holds every release before it is made, as often as it is made, and its epsilon is theirs."""
    privacy, book = run.asked.privacy, run.ledger
    assert privacy is not None and book is not None
    made: dict[int | None, int] = {}
    late, ticks, last = 0, 0, None
    for event in run.events():
        if isinstance(event, Tick):
            ticks += event.step > 0
            late += run.ledger is None or len(run.ledger.releases) < event.round
        elif event.index and run.everyone is not None:
            for k in run.everyone.ids if privacy.unit == "example" else (None,):
                made[k] = made.get(k, 0) + (ticks if privacy.unit == "example" else 1)
            ticks, last = 0, event
    check(last is not None and run.ledger is not None, "rounds", run.setting.plan.rounds, "at least one")
    assert run.ledger is not None
    found = [Found("ledger", "steps made before they were written down", float(late), 0.0)]
    missing, spent = 0, 0.0
    for k, count in made.items():
        missing += abs(sum(steps for *_, steps in run.ledger.history(k)) - count)
        entry = privacy.entry(None if k is None else (k,))
        sigma, q = (
            float(v[0] if isinstance(v, tuple) else v) for v in (entry["noise_multiplier"], entry["sample_rate"])
        )
        if privacy.unit == "client" and privacy.trust != "central":
            q = 1.0  # the server knows who sends
        spent = max(spent, finite(accounting.epsilon(((sigma, q, count),), privacy.delta, privacy.accountant)))
    found.append(Found("ledger", "releases that it lacks or that were never made", float(missing), 0.0))
    stated = run.ledger.nominal()  # also where the ledger certifies nothing: it must still have counted
    short = 0.0 if math.isinf(stated) else spent - stated
    found.append(
        Found(
            "ledger", "epsilon spent and not stated", finite(short), 1e-6 * max(1.0, spent) if spent < math.inf else 0.0
        )
    )
    return found
