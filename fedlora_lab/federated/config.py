"""What was asked of a run: `Config` decides its numbers, `Execution` how they are computed.

Neither changes while the run goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.state import MODES, Keys, ParamKey
from fedlora_lab.privacy.ledger import Ledger, LedgerEntry, per_client
from fedlora_lab.privacy.plan import NoiseLevels, Privacy
from fedlora_lab.privacy.privatizer import (
    uncertified_reason,
)
from fedlora_lab.tasks.task import Task

SERVER = -1
"""In the place of a client's number: the stream of the server's own noise."""

ClientIds = tuple[int, ...]
"""Numbers of clients, from 0."""


class RoundKeys(NamedTuple):
    """The tensors of a round, the same in all rounds of a phase.

    Args:
        steps: for each local step those that train.
        moved: those that train in some step.
        uploaded: those of them that are sent up.
        kept: those of them that stay with their client, in part or whole.
    """

    steps: tuple[Keys, ...]
    moved: Keys
    uploaded: Keys
    kept: Keys


class Visibility(NamedTuple):
    """What a run's records show besides released values; NaN stands for what nobody may see.

    Args:
        clips: what the clips did, and the noise: they are made of private values.
        participants: how many took part, and the bytes that they sent.
        seconds: the time a round took.
        scores: what the server's model scores on the test examples.
        own_scores: what the models score of which clients keep a part.
    """

    clips: bool
    participants: bool
    seconds: bool
    scores: bool
    own_scores: bool


@dataclass(frozen=True)
class Config:
    """All that decides the numbers of a run: its six arguments, checked.

    What follows from them alone is computed once: a round only reads it. `make_config` makes one
    of what a user gives.

    Args:
        task, method, privacy, plan, lora, seed: see `run`.
    """

    task: Task
    method: Method
    privacy: Privacy | None
    plan: Plan
    lora: Lora
    seed: int | None

    def __post_init__(self) -> None:
        # What cannot be computed of these is refused now, and not in a round that first asks.
        _ = (self.streams, self.weights, self.uncertified, self.charge)
        _ = self.noise_levels

    @cached_property
    def streams(self) -> Streams:
        """The streams of all random numbers. Raises ``ValueError`` for what is no seed."""
        return Streams(self.seed)

    # ---- the mechanism

    @cached_property
    def releases_steps(self) -> bool:
        """Whether clip, noise and filter act on each step; in the client unit: on updates."""
        return self.privacy is None or self.privacy.releases_steps

    @cached_property
    def by_person(self) -> bool:
        """Whether a step draws and clips persons, with all their examples."""
        return self.privacy is not None and self.privacy.unit == "person"

    @cached_property
    def releases_sum(self) -> bool:
        """Whether the server's rule is given one noised sum of the uploads, and no single one."""
        return self.privacy is not None and not self.privacy.trust_model.uploads_are_seen

    @cached_property
    def clients_share_noise(self) -> bool:
        """Whether the sum holds a share of the noise of each client (secure aggregation)."""
        return self.privacy is not None and self.privacy.trust_model.clients_share_noise

    @cached_property
    def unit_counts(self) -> tuple[int, ...]:
        """Number of units each client draws from in a step: examples, or persons."""
        return self.task.sizes if self.privacy is None else self.privacy.unit_counts(self.task)

    @cached_property
    def sample_rates(self) -> tuple[float, ...]:
        """Each client's probability of drawing an example, or a person, in a step."""
        # From the public number of units: the number that a step really draws is private.
        return self.plan.sample_rates(self.unit_counts)

    @cached_property
    def expected_batch(self) -> Float[Tensor, " clients"]:
        """The number of units that each client is expected to draw in a step."""
        pairs = zip(self.unit_counts, self.sample_rates, strict=True)
        return torch.tensor([size * rate for size, rate in pairs])

    @cached_property
    def weights(self) -> Float[Tensor, " clients"]:
        """w_k = p_k / participation: absent clients leave their weight to the old state."""
        # The denominator is fixed: one that counted who came would change the sensitivity.
        counts = self.unit_counts
        sizes = counts if self.plan.client_weights == "size" else (1,) * len(counts)
        return torch.tensor(sizes).double() / sum(sizes) / self.plan.participation

    @cached_property
    def noise_levels(self) -> NoiseLevels:
        """Noise on the sum of a step or, in the client unit, of the clients' updates."""
        if self.privacy is None:
            return NoiseLevels(each=0.0, server=0.0, shares=0)
        return self.privacy.noise_levels(len(self.task.sizes), self.plan)

    def release_noise(
        self, ids: ClientIds, t: int, s: int | None = None
    ) -> tuple[list[tuple[int, ...]], list[float]]:
        """The noise of one release: its streams and its standard deviations, pair by pair.

        Args:
            ids: the clients whose sums of a step, or updates, are released.
            t, s: round and step, from 0; without a step whole updates are released.
        Returns: a pair for each client; one, the server's own, where a trusted server adds it.
        Guarantees: test_exchange.py::test_noise_in_the_mean_has_the_stated_size.
        """
        # Without the number of a step: no name here is that of the stream of a local step's noise.
        if s is None and self.releases_sum and not self.clients_share_noise:
            return [(t, SERVER)], [self.noise_levels.server]
        # Each client's is from its own stream, so that it is the same whoever else takes part.
        where: list[tuple[int, ...]] = [(t, k) if s is None else (t, k, s) for k in ids]
        if self.releases_steps != (s is not None):  # in the client unit no step is noised
            return where, [0.0] * len(ids)
        each = per_client(self.noise_levels.each, len(self.task.sizes))
        return where, [each[k] for k in ids]

    @cached_property
    def least_uploads(self) -> int:
        """The fewest uploads whose sum holds as much noise as the ledger counts; 0: any number."""
        if self.privacy is None or not self.clients_share_noise:
            return 0
        # Those who collude upload as well, and know their own noise: their shares hide nothing.
        return self.noise_levels.shares + self.privacy.colluding_clients

    @cached_property
    def uncertified(self) -> str | None:
        """Why no epsilon covers the method's rules; ``None`` where one does."""
        # Asked about as many matrices of the rank as a run asks about.
        return uncertified_reason(
            self.method.precondition,
            self.method.clip_groups,
            rank=self.lora.rank,
            owners=len(self.task.sizes),
        )

    def words(self, t: int) -> tuple[str, ...]:
        """What the schedule moves at each local step of a round, in canonical order."""
        steps = range(self.plan.local_steps)
        return tuple(self.method.factors_at_step(t, s) for s in steps)

    # ---- what may be seen

    def visibility(self, remote: bool = False) -> Visibility:
        """What the records show.

        Args: remote: the clients train in other processes, which keep what they know.
        Guarantees: test_attack_evaluation.py::test_records_do_not_tell_who_took_part,
            ::test_private_test_examples_are_never_judged_under_privacy.
        """
        privacy = self.privacy
        # Without a seed nobody can draw the noise again.
        is_release = privacy is not None and self.seed is None
        # An epsilon that is amplified by participation holds while nobody knows who took part.
        hidden = privacy is not None and privacy.trust_model.hides_participants
        secret = hidden and self.plan.participation < 1
        # An exact score of private examples is a release without noise.
        scores = privacy is None or self.task.public_test
        return Visibility(
            clips=not is_release and not remote,
            participants=not (is_release and secret),
            # One example that raises may make a round much longer: no noise hides that.
            seconds=not is_release,
            scores=scores,
            # What clients keep in the client unit carries no noise.
            own_scores=scores and not remote and (self.releases_steps or not is_release),
        )

    # ---- the ledger

    @cached_property
    def charge(self) -> LedgerEntry | None:
        """The ledger entry of a round in which all take part: releases, rates and noise.

        ``None`` without privacy. See `LedgerEntry.at` for a round, and for those who take part.
        """
        privacy = self.privacy
        if privacy is None:
            return None
        sample_rate = privacy.sample_rate
        assert sample_rate is not None  # by `Privacy.resolve`
        # A sum counts for every client. An upload counts for its sender, who is seen.
        whom = None if self.releases_sum else range(len(self.task.sizes))
        count = self.plan.local_steps if self.releases_steps else 1
        return LedgerEntry(0, whom, count, sample_rate, privacy.noise_multiplier)

    def ledger(self, uncertified: str | None = None) -> Ledger | None:
        """A ledger without releases; ``None`` without privacy.

        Args: uncertified: why it can state no epsilon, if so.
        """
        if self.privacy is None:
            return None
        # Whoever knows the seed can draw the noise again and subtract it.
        seeded = self.seed is not None
        return self.privacy.ledger(reproducible=seeded, uncertified=uncertified)

    @property
    def replays_noise(self) -> bool:
        """Whether a round that was cut short is run again under the same noise.

        It then counts once, so it must release the same bits: the difference of two releases under
        one noise is not hidden at all.
        """
        return self.privacy is not None and self.seed is not None


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is computed, which changes its numbers by rounding only.

    Args:
        evaluate_every: rounds from one score of the model to the next, >= 1.
        chunk_examples: at most so many examples go through the model at once, >= 1; ``None``: see
            `run`.
        device: of local steps and evaluation; ``None``: where the task's model is.
    Raises: ``ValueError`` (name, value, range).
    """

    evaluate_every: int = 1
    chunk_examples: int | None = None
    device: "str | torch.device | None" = None

    def __post_init__(self) -> None:
        check_whole("evaluate_every", self.evaluate_every, 1)
        if self.chunk_examples is not None:
            check_whole("chunk_examples", self.chunk_examples, 1)


EXACT = Execution()
"""All at once, where the model is."""


def moving_keys(names: Sequence[ParamKey], word: str, modes: Sequence[int] = ()) -> Keys:
    """Selects the tensors that a schedule's word moves, heads too.

    Args:
        names: of all tensors.
        word: of the schedule; "*" moves in each layer the factor that its mode names.
        modes: one for each tensor that is a mode.
    """
    chosen = set()
    if "*" in word:
        layers = [key.layer for key in names if key.name == "mode"]
        chosen = {ParamKey(MODES[mode], x) for mode, x in zip(modes, layers, strict=True)}
    trained = (key for key in names if key.kind.trained)
    return tuple(k for k in trained if not k.kind.scheduled or k.name in word or k in chosen)
