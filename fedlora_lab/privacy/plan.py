"""The privacy settings: unit of privacy, clip norm, noise, sampling, accountant and trust."""

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from scipy.special import bdtr

from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.trust import TRUST, TrustModel
from fedlora_lab._utils.validation import (
    check,
    check_number,
    check_whole,
    use_plain_numbers,
)
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.ledger import Ledger, PerClient, as_floats, check_terms, per_client

if TYPE_CHECKING:
    from fedlora_lab.methods.plan import Plan

CLIP_NORMS = (1e-30, 1e30)
"""C under noise: below, rounding lengthens a clipped row; above, a sum of rows may overflow."""

MAX_NOISE = 1e35
"""The largest sigma C: the largest draws of a hundred times as much are numbers in float32."""


class Federation(Protocol):
    """What `Privacy` reads of a task: the number of examples of each client, and for the person
    unit ``persons`` and ``person_counts``."""

    @property
    def sizes(self) -> tuple[int, ...]: ...


class NoiseLevels(NamedTuple):
    """Standard deviations of the noise added to a SUM of clipped contributions (not to their mean).

    Args:
        each: added by every uploading client; one per client when the noise multiplier is.
        server: added once, by a trusted server.
        shares: number of clients whose noise together makes up sigma C; 0 with a trusted
            server. Under secure aggregation a round with fewer uploads than
            ``shares + colluding_clients`` must not be released.

    >>> from fedlora_lab import Plan
    >>> Privacy(noise_multiplier=2.0, clip_norm=0.5).noise_levels(3, Plan()).each
    1.0
    """

    each: PerClient
    server: float
    shares: int


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The privacy settings of a run: what is protected, by which clip and how much noise.

    An example, a person or a client is hidden by clipping what it adds and adding Gaussian noise.

    Neighbouring data sets differ by one unit's contribution, replaced by nothing ("zero-out"). The
    number of clients and of units of each is public; how many examples a person has is not.

    Args:
        unit: what neighbours differ by. "example": every client runs DP-SGD on its own data, q =
            batch / n_k per step. "person": the same over the persons of ``Task.persons``: a step
            draws each of a client's n_k persons with q = batch / n_k, so ``batch`` counts persons;
            the mean of a drawn person's gradients, over all examples of that person at the client,
            is clipped as one vector. "client": its whole update is clipped, one release a round.
        clip_norm: C >= 0, the L2 norm of one unit's contribution over all tensors that move;
            ``inf`` (no clip) only without noise.
        noise_multiplier: sigma >= 0, noise in units of C; one number or, except in the client
            unit, one per client. ``None``: not chosen yet, see ``calibrate``.
        sample_rate: q in [0, 1]; one number or, except in the client unit, one per client;
            ``None``: taken from the plan.
        delta: in [1e-12, 1); must lie below 1 / number of units.
        accountant: "pld" (tight), "rdp", "opacus-rdp" or "opacus-prv", see `accounting.epsilon`.
        trust: whom the noise protects from. "local", always except in the client unit: every upload
            is protected alone. "secagg": only the sum of the uploads is seen, each client adds its
            share of the noise. "central", the default in the client unit: the server sees the
            uploads and adds the noise.
        colluding_clients: under "secagg": how many clients may upload and tell the server their
            noise. A round is released where as many upload as do in 99 % of the rounds, and the
            noise of the others makes up sigma C.
        target_epsilon: the epsilon it was calibrated for; a plan that would spend more is refused.

    Sampling of clients amplifies privacy under "central" only, for an observer of the released
    models. Under "local" the uploads reveal who takes part. Under "secagg" the server sees who
    sends, and the variance of the noise, to which each client adds a share, tells everybody else
    how many did. Both count with q = 1. In the example unit the batch is drawn inside the client,
    so its q counts.

    Guarantees: bad values are refused (test_privacy_refuses_bad_values); the noise on a sum has the
        standard deviation sigma C under every trust, also where clients collude
        (test_exchange.py::test_noise_in_the_mean_has_the_stated_size); one unit less moves a
        release by at most C, but for rounding
        (test_contract.py::test_leaving_out_one_example_moves_the_sum_by_at_most_c,
        test_attack_neighbours.py::
        test_one_client_less_moves_a_round_by_at_most_what_is_assumed;
        test_persons.py::test_a_person_is_clipped_once_as_the_mean_of_single_gradients).
    Source: arXiv:1607.00133, algorithm 1 (example unit); arXiv:1710.06963, algorithm 1 (client
        unit).

    >>> privacy = Privacy(clip_norm=1.0, noise_multiplier=2.0, sample_rate=0.1, accountant="rdp")
    >>> round(privacy.ledger(releases=100).epsilon(), 2)
    2.58
    """

    unit: str = "example"
    clip_norm: float = 1.0
    noise_multiplier: PerClient | None = None
    sample_rate: PerClient | None = None
    delta: float = 1e-5
    accountant: str = "pld"
    trust: str | None = None
    colluding_clients: int = 0
    target_epsilon: float | None = None

    def __post_init__(self) -> None:
        use_plain_numbers(self)
        trust = check_terms(self.unit, self.delta, self.accountant, self.trust)
        object.__setattr__(self, "trust", trust)
        for name, high in (("noise_multiplier", math.inf), ("sample_rate", 1.0)):
            object.__setattr__(self, name, self._checked_numbers(name, high))
        sigma = self.noise_multiplier
        rate = self.sample_rate
        clip = self.clip_norm
        check_number("clip_norm", clip, 0)
        # Of no clip norm at all nothing is released, and without noise nothing is promised.
        if clip and max(per_client(sigma or 0.0)):
            check_number("clip_norm", clip, *CLIP_NORMS)
            most = max(per_client(sigma or 0.0))
            expected = f"at most {MAX_NOISE / clip:.4g}: beyond, sigma C leaves float32's range"
            check(most * clip <= MAX_NOISE, "noise_multiplier", most, expected)
        if self.target_epsilon is not None:
            check_number("target_epsilon", self.target_epsilon, 0, open_low=True)
        if not (self.releases_steps or TRUST[trust].hides_participants) and rate is not None:
            reason = "uploads, or the noise of their sum, tell who takes part"
            check(rate == 1, "sample_rate", rate, f"1 or None for trust={trust!r}: {reason}")
        check_whole("colluding_clients", self.colluding_clients, 0)
        # Elsewhere every upload, or the server, has noise of its own: nobody's share is relied on.
        shared = TRUST[trust].clients_share_noise or not self.colluding_clients
        check(shared, "colluding_clients", self.colluding_clients, "0 unless trust='secagg'")

    def _checked_numbers(self, name: str, high: float) -> PerClient | None:
        """A field of one number, or of one for each client, as floats."""
        value = getattr(self, name)
        if value is None:
            return None
        numbers = as_floats(name, value, high)
        common = "one number for unit='client': a round's noise and draw are common to all"
        check(self.releases_steps or isinstance(numbers, float), name, value, common)
        check(numbers != (), name, value, "one number, or one per client")
        return numbers

    @property
    def trust_model(self) -> TrustModel:
        """Who adds the noise, and what is seen."""
        return TRUST[str(self.trust)]

    @property
    def releases_steps(self) -> bool:
        """Whether clients release every step, clipped by example or person; else their update."""
        return self.unit != "client"

    def unit_counts(self, task: Federation) -> tuple[int, ...]:
        """Number of units each client draws from in a step: examples, or persons.

        Raises: ``ValueError`` in the person unit for a task that does not say whose examples are
            whose.
        """
        if self.unit != "person":
            return tuple(task.sizes)
        where = "person= of fl.tasks.from_trainer or persons= of fl.tasks.classification says it"
        persons = getattr(task, "persons", None)
        check(persons is not None, "persons", None, f"whose each example is, {where}")
        counts: tuple[int, ...] = getattr(task, "person_counts", ())
        return counts

    def settings(self) -> dict[str, Any]:
        """Its fields as plain values."""
        return asdict(self)

    def replace(self, **changes: Any) -> "Privacy":
        """Changes some fields. A new unit takes its default trust; changes of what epsilon depends
        on forget the target.
        """
        # sigma is in units of C: the clip norm alone changes no epsilon.
        if changes.keys() - {"clip_norm", "colluding_clients"}:
            changes = {"target_epsilon": None, **changes}
        if changes.get("unit", self.unit) != self.unit:
            changes = {"trust": None, "colluding_clients": 0, **changes}
        return replace(self, **changes)

    # ---- for a task and a plan

    def resolve(self, task: Federation, plan: "Plan") -> "Privacy":
        """Fills in ``sample_rate`` and checks the settings against the work they are for.

        Args:
            task: anything with ``sizes``, the number of examples of each client; in the person
                unit a `Task` with persons.
            plan: the work.

        Raises: ``ValueError``: no noise multiplier; a sample rate other than the plan's; a tuple of
            the wrong length; as many colluding clients as there are; delta >= 1 / number
            of units; a plan that spends more than the target; public test rows
            that are private ones, see `Task.check_public`.
        Guarantees: refuses what contradicts the plan (test_resolve_refuses_contradictions), a delta
            at which one unit could be published (test_delta_must_lie_below_one_over_units), and a
            plan that would overspend (test_a_plan_longer_than_its_calibration_is_refused).
        """
        self._check_noise()
        # Every private run passes here, whoever built its task.
        if check_public := getattr(task, "check_public", None):
            check_public()
        fixed = replace(self, sample_rate=self._plan_rate(self.unit_counts(task), plan))
        if self.target_epsilon is not None:
            releases = self._planned(plan)
            spent = fixed.ledger(releases).epsilon()
            # The rounding of an accountant's grid is no overspending.
            instead = (
                f"at least {round_up(spent, '.4g')}, which {releases} releases of this plan spend: "
            )
            instead += "calibrate for this plan, or replace(target_epsilon=None)"
            check(
                spent <= self.target_epsilon * (1 + 1e-6),
                "target_epsilon",
                self.target_epsilon,
                instead,
            )
        return fixed

    def calibrate(self, *, epsilon: float, task: Federation, plan: "Plan") -> "Privacy":
        """Sets the smallest noise that spends at most ``epsilon``.

        The noise is for a client that takes part in every round, and for the ledger's default
        observer. More than 64 distinct sample rates are rounded up to a grid of 1 %, so nobody
        spends more than the target. Of more than 16 the noise is guessed from rates nearby, and
        checked by the accountant.

        Args:
            epsilon: > 0, finite. Outside the client unit each client has its own q and sigma, and
                spends at most this.
            task: as for `resolve`.
            plan: the work: rounds x local_steps releases, or rounds (client unit).

        Raises: ``ValueError`` as `resolve` does; or a target the accountant cannot certify.
        Guarantees: each client spends at most epsilon, and at least 99 % of it
            (test_calibrate_meets_its_target).
        """
        check_number("epsilon", epsilon, 0, 1e9, open_low=True)
        check(hasattr(task, "sizes"), "task", task, "a Task")
        from fedlora_lab.methods.plan import Plan  # its package loads torch

        check(isinstance(plan, Plan), "plan", plan, "a Plan")
        rate = replace(self, noise_multiplier=None)._plan_rate(self.unit_counts(task), plan)
        # All rounds count: by expected participation an unlucky client would spend too much.
        steps = self._planned(plan)
        sigmas = accounting.noise_multipliers(
            epsilon=epsilon,
            delta=self.delta,
            sample_rates=per_client(rate),
            steps=steps,
            accountant=self.accountant,
        )
        sigma = sigmas if isinstance(rate, tuple) else sigmas[0]
        return replace(
            self, sample_rate=rate, noise_multiplier=sigma, target_epsilon=float(epsilon)
        )

    def _planned(self, plan: "Plan") -> int:
        """Counts the plan's releases of each unit."""
        return plan.rounds * (plan.local_steps if self.releases_steps else 1)

    def _check_noise(self) -> None:
        target = "..." if self.target_epsilon is None else f"{self.target_epsilon:g}"
        expected = f"a number >= 0, or call calibrate(epsilon={target}, task=..., plan=...)"
        check(self.noise_multiplier is not None, "noise_multiplier", None, expected)

    def _check_units(self, sizes: tuple[int, ...]) -> None:
        """Refuses what does not fit so many clients and units.

        Args: sizes: as `unit_counts` gives them.
        """
        clients = len(sizes)
        units = sum(sizes) if self.releases_steps else clients
        # At delta >= 1 / units a mechanism that publishes one unit outright would pass.
        limit = f"< {1 / max(units, 1):.3g} = 1 / {units} {self.unit}s"
        check(self.delta * units < 1, "delta", self.delta, limit)
        for name in ("noise_multiplier", "sample_rate"):
            value = getattr(self, name)
            fits = not isinstance(value, tuple) or len(value) == clients
            check(fits, name, value, f"{clients} numbers, one per client")
        self._check_shares(clients)

    def _plan_rate(self, sizes: tuple[int, ...], plan: "Plan") -> PerClient:
        """The sample rate of this work, after all checks that need the task.

        Args:
            sizes: as `unit_counts` gives them.
            plan: the work.
        """
        self._check_units(sizes)
        if self.releases_steps:
            # Each example is drawn on its own: `batch` is only the expected number of them.
            source = "batch / n_k"
            expected = plan.sample_rates(sizes)
        elif self.trust_model.hides_participants:
            source = "participation"
            expected = (float(plan.participation),)
        else:
            source = f"no amplification under trust={self.trust!r}, where observers learn who sends"
            expected = (1.0,)
        # A rate that is not the plan's own would state an epsilon of another mechanism.
        instead = ""
        if self.target_epsilon is not None:
            instead = (
                f": calibrate(epsilon={self.target_epsilon:g}, task=task, plan=plan) for this plan"
            )
        rate = self.sample_rate
        rates = rate if isinstance(rate, tuple) else (rate,) * len(expected)
        for k, (stated, right) in enumerate(zip(rates, expected, strict=True)):
            name = f"sample_rate[{k}]" if isinstance(rate, tuple) else "sample_rate"
            agrees = stated is None or math.isclose(stated, right, rel_tol=1e-9)
            check(agrees, name, stated, f"{right:.6g} = {source} of this plan{instead}")
        return expected[0] if len(set(expected)) == 1 else expected

    def _check_shares(self, clients: int) -> None:
        limit = f"at most {clients - 1}: another is honest"
        check(self.colluding_clients < clients, "colluding_clients", self.colluding_clients, limit)

    def noise_levels(self, clients: int, plan: "Plan") -> NoiseLevels:
        """The noise on the sum of clipped contributions, see `NoiseLevels`.

        Args:
            clients: number of clients, >= 1.
            plan: the work; of its participation depends how many uploads are relied on.

        Guarantees: the noise on the sum has the standard deviation sigma C
            (test_exchange.py::test_noise_in_the_mean_has_the_stated_size).
        Source: derived; distributed noise as in arXiv:2102.06387.
        """
        check_whole("clients", clients, 1)
        self._check_noise()
        # Without noise C may be infinite, and 0 times infinity is not a number.
        stds = tuple(
            sigma * self.clip_norm if sigma else 0.0
            for sigma in per_client(self.noise_multiplier or 0.0)
        )
        # Alone, an upload is hidden by its own noise only: each has all of sigma C.
        if self.trust_model.uploads_are_seen:
            several = isinstance(self.noise_multiplier, tuple)
            return NoiseLevels(each=stds if several else stds[0], server=0.0, shares=1)
        if self.trust_model.server_adds_noise:
            return NoiseLevels(each=0.0, server=stds[0], shares=0)
        self._check_shares(clients)
        chance = plan.participation
        # Fewer uploads than this come in less than 1 % of the rounds: Binomial(clients, chance).
        counts = range(clients + 1)
        sure = next((k for k in counts if bdtr(k, clients, chance) >= 0.01), clients)
        # Colluders know their own noise: the honest clients' shares alone must make up sigma C.
        shares = max(1, sure - self.colluding_clients)
        # Variances of independent shares add up: each of n shares is sigma C / sqrt(n).
        return NoiseLevels(each=stds[0] / math.sqrt(shares), server=0.0, shares=shares)

    def ledger(
        self,
        releases: int = 0,
        reproducible: bool = True,
        uncertified: str | None = None,
    ) -> Ledger:
        """Makes a ledger for these settings, in which every client has made so many releases.

        Args:
            releases: number, >= 0.
            reproducible, uncertified: see `Ledger`.

        Raises: ``ValueError`` with ``releases``, when the noise multiplier or sample rate is open.
        """
        check_whole("releases", releases, 0)
        ledger = Ledger(
            unit=self.unit,
            delta=self.delta,
            accountant=self.accountant,
            trust=self.trust,
            reproducible=reproducible,
            uncertified=uncertified,
        )
        if releases:
            self._check_noise()
            rate = self.sample_rate
            if rate is None:
                # Who uploads is no secret then.
                public = not (self.releases_steps or self.trust_model.hides_participants)
                check(public, "sample_rate", None, "a number, or call resolve first")
                rate = 1.0
            sigma = self.noise_multiplier
            several = [value for value in (rate, sigma) if isinstance(value, tuple)]
            clients = range(len(several[0])) if several else None
            ledger.record(0, clients, releases, sample_rate=rate, noise_multiplier=sigma)
        return ledger
