"""Privacy as a plan: what is protected, how far a contribution may reach, how much noise hides it, who is trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, NamedTuple

from scipy.special import bdtr

from fedlora_lab import accounting
from fedlora_lab.checks import check, check_number, check_one_of, check_whole
from fedlora_lab.ledger import RELATION, Ledger, check_relation
from fedlora_lab.plan import Plan

Numbers = float | tuple[float, ...]


class NoiseLevels(NamedTuple):
    """Standard deviations of the noise that is added to a SUM of clipped contributions (not to their mean).

    Args:
        each: added by every uploading client; one per client when the noise multiplier is.
        server: added once, by a trusted server.
        shares: honest clients whose noise is relied on; with fewer uploads than these and the colluding clients
            together a round must not be released.
    """

    each: Numbers
    server: float
    shares: int


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """Differential privacy by clipping and Gaussian noise.

    Args:
        unit: what neighbours differ by. "example": every client runs DP-SGD on its own data, q = batch / n_k per step.
            "client": the whole update of a client is clipped, one release a round.
        relation: "zero-out", the only one covered: one unit's contribution is replaced by nothing. The number of
            clients and their sizes are public.
        clip_norm: C >= 0, the L2 norm of one unit's contribution over all tensors that move; ``inf`` (no clip) only
            without noise.
        noise_multiplier: sigma >= 0, noise in units of C; one number or, in the example unit, one per client.
            ``None``: not chosen yet, see ``calibrate``.
        sample_rate: q in [0, 1]; one number or, in the example unit, one per client; ``None``: taken from the plan.
        delta: in [1e-12, 1); must lie below 1 / number of units.
        accountant: "prv" (tight) or "rdp".
        trust: whom the noise protects from. "local": every upload is protected alone. "secagg": only the sum of the
            uploads is seen, each client adds its share of the noise. "central": the server sees the uploads and adds
            the noise. The example unit is always "local"; the client unit is "central" unless told otherwise.
        honest: secure aggregation only: honest clients whose noise share is relied on. A round with fewer uploads than
            ``honest + colluding`` is not released. ``None``: the 1 % quantile of the number of uploads less
            ``colluding``, at least 1.
        colluding: secure aggregation only: clients that may upload and tell the server their noise, so that it hides
            nothing.
        target: the epsilon this plan was calibrated for.
        releases: how many releases of each unit the target was calibrated for; set by ``calibrate``.

    Participation amplifies under "central" alone, against whoever sees the released models. Under "local" the uploads
    tell who takes part. Under "secagg" the server sees who sends, and everybody else reads their number off the noise
    of the released sum, to which each of them adds a share: q = 1.

    Guarantees: test_privacy_refuses_bad_values, test_trust_levels_add_up, test_calibrate_meets_its_target,
        test_attack_neighbours.py::test_one_example_less_moves_a_step_by_at_most_what_is_assumed,
        test_attack_neighbours.py::test_one_client_less_moves_a_round_by_at_most_what_is_assumed,
        test_attack_secagg.py::test_colluders_leave_enough_noise.
    Source: arXiv:1607.00133, algorithm 1 (example unit); arXiv:1710.06963, algorithm 1 (client unit).
    """

    unit: str = "example"
    clip_norm: float = 1.0
    noise_multiplier: Numbers | None = None
    sample_rate: Numbers | None = None
    delta: float = 1e-5
    accountant: str = "prv"
    trust: str | None = None
    honest: int | None = None
    target: float | None = None
    relation: str = RELATION
    colluding: int = 0
    releases: int | None = None

    def __post_init__(self) -> None:
        check_one_of("unit", self.unit, ("example", "client"))
        check_number("clip_norm", self.clip_norm, 0)
        accounting.check_delta(self.delta)
        check_one_of("accountant", self.accountant, ("prv", "rdp"))
        for name, high in (("noise_multiplier", math.inf), ("sample_rate", 1.0)):
            object.__setattr__(self, name, self._numbers(name, getattr(self, name), high))
        lengths = {len(v) for v in (self.noise_multiplier, self.sample_rate) if isinstance(v, tuple)}
        check(len(lengths) < 2, "sample_rate", self.sample_rate, "as many numbers as noise_multiplier has")
        bounded = self.clip_norm < math.inf or not any(_each(self.noise_multiplier))
        check(bounded, "clip_norm", self.clip_norm, "a finite number when noise_multiplier > 0: noise is sigma C")
        if self.target is not None:
            check_number("target", self.target, 0, open_low=True)
        if self.releases is not None:
            check_whole("releases", self.releases, 0)
        check_relation(self.relation)
        self._check_trust()

    def _numbers(self, name: str, value: Any, high: float) -> Numbers | None:
        """One float, a tuple of floats, or ``None``."""
        if value is None:
            return None
        several = hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
        common = "one number for unit='client': a round's noise and draw are common to all"
        check(not (several and self.unit == "client"), name, value, common)
        entries: tuple[Any, ...] = tuple(value) if several else (value,)
        check(len(entries) > 0, name, value, "one number, or one per client")
        for k, entry in enumerate(entries):
            check_number(f"{name}[{k}]" if several else name, entry, 0, high)
            check(entry < math.inf, name, value, "finite")
        return tuple(float(entry) for entry in entries) if several else float(value)

    def _check_trust(self) -> None:
        if self.trust is None:
            object.__setattr__(self, "trust", "local" if self.unit == "example" else "central")
        check_one_of("trust", self.trust, ("local", "secagg", "central"))
        if self.unit == "example":
            why = "'local' for unit='example': each client noises its own steps, so its upload is protected alone"
            check(self.trust == "local", "trust", self.trust, why)
        elif self.trust != "central" and self.sample_rate is not None:
            why = f"1 or None for trust={self.trust!r}: uploads, or the noise of their sum, tell who takes part"
            check(self.sample_rate == 1, "sample_rate", self.sample_rate, why)
        if self.honest is not None:
            check_whole("honest", self.honest, 1)
            check(self.trust == "secagg", "honest", self.honest, "None unless trust='secagg'")
        check_whole("colluding", self.colluding, 0)
        check(self.trust == "secagg" or not self.colluding, "colluding", self.colluding, "0 unless trust='secagg'")

    def _check_noise(self) -> None:
        why = "a number >= 0, or call calibrate(epsilon=..., task=..., plan=...)"
        check(self.noise_multiplier is not None, "noise_multiplier", None, why)

    def replace(self, **changes: Any) -> "Privacy":
        """The same plan, some fields changed; a new unit takes its default trust, other noise forgets the target."""
        if changes.keys() - {"clip_norm", "honest", "colluding"}:
            changes = {"target": None, "releases": None, **changes}
        if changes.get("unit", self.unit) != self.unit:
            changes = {"trust": None, "honest": None, "colluding": 0, **changes}
        return replace(self, **changes)

    def resolve(self, task: Any, plan: Plan) -> "Privacy":
        """The plan with ``sample_rate`` filled in, checked against the work it is for.

        Args:
            task: anything with ``sizes``, the number of examples of each client.
            plan: the work.

        Raises:
            ValueError: no noise multiplier; a sample rate other than the plan's; a tuple of the wrong length; more
                honest and colluding clients than there are; delta >= 1 / number of units; more releases than the
                target was calibrated for.

        Guarantees: test_resolve_refuses_contradictions, test_delta_must_lie_below_one_over_units,
            test_a_plan_longer_than_its_calibration_is_refused.
        """
        self._check_noise()
        fixed = replace(self, sample_rate=self._checked_rate(tuple(task.sizes), plan))
        fixed._check_releases(self._releases(plan))
        return fixed

    def _releases(self, plan: Plan) -> int:
        """Releases of each unit that the plan makes at most."""
        return plan.rounds * (plan.local_steps if self.unit == "example" else 1)

    def _check_releases(self, planned: int) -> None:
        if self.target is None or self.releases is None or planned <= self.releases:
            return
        spent = self.ledger(planned).epsilon()
        expected = (
            f"at most {self.releases}, for which epsilon = {self.target:g} was calibrated ({planned} would spend "
            f"{spent:.3g}): calibrate for this plan, or replace(target=None)"
        )
        check(False, "releases", planned, expected)

    def calibrate(self, *, epsilon: float, task: Any, plan: Plan) -> "Privacy":
        """The plan with the smallest noise that spends at most ``epsilon``: worst case, taking part in every round.

        The epsilon is against the ledger's default observer: the server, which sees who sends, unless it is trusted.
        With more than 16 distinct sample rates, those of a few per cent around are given the noise of the largest of
        them: nobody spends more, and nobody gets more noise than a client with (q_max / q_min)^(1/16) times its rate
        needs; at most that much more, about 9 % for sizes that differ up to 4 times, 33 % for 100 times.

        Args:
            epsilon: > 0, finite; in the example unit each client, with its own q and sigma, spends at most this.
            task: anything with ``sizes``.
            plan: the work: rounds x local_steps releases (example unit) or rounds (client unit).

        Raises:
            ValueError: as ``resolve`` does; or a target the accountant cannot certify.

        Guarantees: test_calibrate_meets_its_target.
        """
        check_number("epsilon", epsilon, 0, 1e9, open_low=True)
        rate = replace(self, noise_multiplier=None)._checked_rate(tuple(task.sizes), plan)
        steps = self._releases(plan)
        sigmas = accounting.noise_multipliers(epsilon, self.delta, _each(rate), steps, self.accountant)
        sigma = sigmas if isinstance(rate, tuple) else sigmas[0]
        return replace(self, sample_rate=rate, noise_multiplier=sigma, target=float(epsilon), releases=steps)

    def _checked_rate(self, sizes: tuple[int, ...], plan: Plan) -> Numbers:
        """The sample rate of this work, after all checks that need the task."""
        clients = len(sizes)
        units = sum(sizes) if self.unit == "example" else clients
        kind = "examples" if self.unit == "example" else "clients"
        check(self.delta * units < 1, "delta", self.delta, f"< {1 / max(units, 1):.3g} = 1 / {units} {kind}")
        if isinstance(self.noise_multiplier, tuple):
            fits = len(self.noise_multiplier) == clients
            check(fits, "noise_multiplier", self.noise_multiplier, f"{clients} numbers, one per client")
        self._check_shares(clients)
        if self.unit == "example":
            expected = tuple(1.0 if plan.batch is None else min(1.0, plan.batch / max(n, 1)) for n in sizes)
            source = "batch / n_k"
        elif self.trust == "central":
            expected, source = (float(plan.participation),), "participation"
        else:
            expected, source = (1.0,), f"no amplification under trust={self.trust!r}, where observers learn who sends"
        self._compare_rate(expected, source)
        return expected[0] if len(set(expected)) == 1 else expected

    def _compare_rate(self, expected: tuple[float, ...], source: str) -> None:
        if self.sample_rate is None:
            return
        if isinstance(self.sample_rate, tuple):
            fits = len(self.sample_rate) == len(expected)
            check(fits, "sample_rate", self.sample_rate, f"{len(expected)} numbers, one per client")
        given = self.sample_rate if isinstance(self.sample_rate, tuple) else (self.sample_rate,) * len(expected)
        for k, (mine, right) in enumerate(zip(given, expected, strict=True)):
            name = f"sample_rate[{k}]" if isinstance(self.sample_rate, tuple) else "sample_rate"
            check(math.isclose(mine, right, rel_tol=1e-9), name, mine, f"{right:.6g} = {source} of this plan")

    def noise(self, clients: int, plan: Plan) -> NoiseLevels:
        """Noise on the sum of clipped contributions; see ``NoiseLevels``.

        Args:
            clients: number of clients, >= 1.
            plan: the work; its participation and dropout set the default of ``honest``.

        Guarantees: test_trust_levels_add_up.
        Source: `theory.trust_level`.
        """
        check_whole("clients", clients, 1)
        self._check_noise()
        stds = tuple(sigma * self.clip_norm if sigma else 0.0 for sigma in _each(self.noise_multiplier))
        std: Numbers = stds if isinstance(self.noise_multiplier, tuple) else stds[0]
        if self.trust == "local":
            return NoiseLevels(each=std, server=0.0, shares=1)
        if self.trust == "central":
            return NoiseLevels(each=0.0, server=stds[0], shares=0)
        self._check_shares(clients)
        shares = self._shares(clients, plan)
        return NoiseLevels(each=stds[0] / math.sqrt(shares), server=0.0, shares=shares)

    def _shares(self, clients: int, plan: Plan) -> int:
        """Honest clients whose noise makes up sigma C."""
        sure = _sure_uploads(clients, plan.participation * (1 - plan.dropout))
        return self.honest or max(1, sure - self.colluding)

    def _check_shares(self, clients: int) -> None:
        if self.honest is not None:
            check_whole("honest", self.honest, 1, clients)
        there = (self.honest or 1) + self.colluding <= clients
        check(there, "colluding", self.colluding, f"at most {clients - (self.honest or 1)}: the others are honest")

    def entry(self, clients: Sequence[int] | None) -> dict[str, Any]:
        """What ``Ledger.record`` needs beside round, clients and count: the numbers of the clients that took part."""
        fields: dict[str, Any] = {"sample_rate": self.sample_rate, "noise_multiplier": self.noise_multiplier}
        for name, value in fields.items():
            if name == "sample_rate" and value is None:
                check(self.trust == "local" and self.unit == "client", name, None, "a number, or call resolve first")
                fields[name] = 1.0
            elif isinstance(value, tuple):
                fields[name] = value if clients is None else tuple(value[k] for k in clients)
        return fields

    def ledger(self, releases: int = 0, reproducible: bool = True) -> Ledger:
        """An empty ledger for this plan; with ``releases``, one to which every client has released that often.

        Raises:
            ValueError: with ``releases``, when the noise multiplier or the sample rate is open.
        """
        check_whole("releases", releases, 0)
        book = Ledger(
            unit=self.unit,
            delta=self.delta,
            accountant=self.accountant,
            reproducible=reproducible,
            trust=self.trust,
            relation=self.relation,
        )
        if releases:
            self._check_noise()
            several = [v for v in (self.sample_rate, self.noise_multiplier) if isinstance(v, tuple)]
            clients = range(len(several[0])) if several else None
            book.record(0, clients, releases, **self.entry(clients))
        return book


def _without_epsilon(init: Any) -> Any:
    """Answer ``Privacy(epsilon=8)`` with what to write."""

    @wraps(init)
    def wrapped(self: Privacy, *args: Any, **fields: Any) -> None:
        write = "to be met by a plan: Privacy(...).calibrate(epsilon=..., task=task, plan=plan)"
        check("epsilon" not in fields, "epsilon", fields.get("epsilon"), write)
        init(self, *args, **fields)

    return wrapped


Privacy.__init__ = _without_epsilon(Privacy.__init__)


def _each(value: Numbers | None) -> tuple[float, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)


def _sure_uploads(clients: int, probability: float) -> int:
    """1 % quantile of Binomial(clients, probability), at least 1: fewer uploads come in less than 1 % of the rounds."""
    if probability >= 1:
        return clients
    return max(1, next(k for k in range(clients + 1) if bdtr(k, clients, probability) >= 0.01))
