"""A check of a set-up against what its ledger claims, run on the user's own task, method, privacy and plan."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedlora_lab.audit import books, chance, reach
from fedlora_lab.audit.bench import Bench, small
from fedlora_lab.audit.found import Found
from fedlora_lab.audit.watch import Watched
from fedlora_lab.checks import check, check_number
from fedlora_lab.method import Method
from fedlora_lab.methods import get
from fedlora_lab.plan import Lora, Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Task

ROUNDS = 3


@dataclass(frozen=True)
class SelfCheck:
    """What a self-check found.

    Args:
        found: every result, in the order of the trials.
        significance: chance that a sound set-up fails at all, shared by all chances among the results.
    """

    method: str
    unit: str
    found: tuple[Found, ...]
    significance: float

    @property
    def least(self) -> float:
        """A chance below this one fails (Bonferroni)."""
        return self.significance / max(1, sum(one.limit is None for one in self.found))

    def passes(self, one: Found) -> bool:
        """Whether one result is as it must be."""
        return one.value <= one.limit if one.limit is not None else one.value >= self.least

    @property
    def failed(self) -> tuple[Found, ...]:
        """The results that are not."""
        return tuple(one for one in self.found if not self.passes(one))

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.failed

    def __str__(self) -> str:
        lines = []
        for trial in dict.fromkeys(one.trial for one in self.found):
            mine = [one for one in self.found if one.trial == trial]
            bad = [one for one in mine if not self.passes(one)]
            lines.append(f"{'FAILED' if bad else 'ok':<7}{trial}: {len(mine)} results")
            lines += [f"       {one.what}: {_words(one, self.least)}" for one in bad]
        return "\n".join(lines)


def _words(one: Found, least: float) -> str:
    if one.limit is None:
        return f"chance {one.value:.1g} under the claim, least {least:.1g}"
    return f"{one.value:.3g}, at most {one.limit:.3g}"


def self_check(
    task: Task,
    method: "Method | str",
    privacy: Privacy,
    plan: Plan,
    *,
    lora: Lora | None = None,
    seed: int = 0,
    significance: float = 1e-3,
    bug: "Callable[..., Any] | None" = None,
) -> SelfCheck:
    """Try the set-up where its promise could break, on a few of its examples at a random state.

    No clip norm, no trace (bit for bit); sensitivity under loud, infinite and missing examples; the noise's law and
    independence; the law of the sampling; the ledger against the releases made. A pass is no proof: it looks at what
    these trials look at. A set-up without noise passes as well where its ledger says so, with an infinite epsilon.

    Args:
        significance: chance that a sound set-up fails, in (0, 1).
        bug: clips in the place of the library's own clip, one of `fl.edges.BUGS`: to see that it is found.

    Raises: ``ValueError`` where the parts do not fit, as ``run`` does.
    Guarantees: every planted bug fails (tests/test_self_check.py), no row of the table does
        (tests/test_self_check_alarms.py).
    """
    row = get(method)
    check(isinstance(privacy, Privacy), "privacy", privacy, "a Privacy with its noise set")
    check_number("significance", significance, 0, 1, open_low=True)
    privacy = privacy.replace(target=None)  # the plans that are tried are not the one that it was calibrated for
    rng, noisy = Streams(seed).numpy("self-check"), bool(np.any(np.asarray(privacy.noise_multiplier or 0.0)))
    user = Watched.opened(task, row, privacy, plan, lora=lora, seed=seed, bug=bug)
    found = []
    if privacy.clip_norm > 0 and privacy.clip_norm < float("inf"):
        found += reach.invariance(Bench.of(task, row, privacy, plan, lora, seed, smooth=True, bug=bug))
        bench = Bench.of(task, row, privacy, plan, lora, seed, bug=bug)
        sensitivity = reach.sensitivity_of_steps if privacy.unit == "example" else reach.sensitivity_of_updates
        found += sensitivity(bench)
        if row.whiten is not None:  # what the noise hides depends on the size of the peer
            found += sensitivity(Bench.of(task, row, privacy, plan, lora, seed, spread=1.0, bug=bug))
        found += chance.noise_law(bench, rng) if noisy else []
    found += chance.sampling_law(user, rng)
    short = plan.replace(rounds=min(max(plan.rounds, 1), ROUNDS))
    few = small(task)
    sigma = privacy.noise_multiplier
    if isinstance(sigma, tuple):
        sigma = tuple(sigma[k % len(sigma)] for k in range(len(few.sizes)))
    own = privacy.replace(sample_rate=None, honest=None, colluding=0, noise_multiplier=sigma)
    found += books.ledger(Watched.opened(few, row, own, short, lora=_even(lora), seed=seed, bug=bug))
    return SelfCheck(row.slug, privacy.unit, tuple(found), significance)


def _even(lora: Lora | None) -> Lora | None:
    return None if lora is None else Lora(lora.rank, lora.alpha)
