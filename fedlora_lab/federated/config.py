"""What was asked of a run, checked once, and what is made ready for it.

`Config` holds the arguments that decide all numbers of a run, and what follows from them alone;
`Prepared` the adapted model and the examples. Neither changes while the run goes on.
"""

import hashlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check
from fedlora_lab.lora import adapters
from fedlora_lab.lora.independence import check_batch_independence, longest_probe
from fedlora_lab.lora.per_example import texts_at_once
from fedlora_lab.methods.aggregation import ServerRule
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.published import rule_name
from fedlora_lab.methods.state import KINDS, MODES, Keys, ParamKey, ServerState, TensorDict
from fedlora_lab.privacy.ledger import Ledger, LedgerEntry, per_client
from fedlora_lab.privacy.plan import NoiseLevels, Privacy
from fedlora_lab.privacy.privatizer import (
    ClipAndNoise,
    ClipSum,
    uncertified_reason,
)
from fedlora_lab.tasks.task import Examples, Task, add_to_digest, mask_of, take

MATMUL_PRECISIONS = ("float32", "tf32", "bfloat16")
"""Precisions in which the frozen base may multiply."""


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
    """The checked arguments of a run, which decide all of its numbers.

    What follows from them alone is computed once: a round only reads it.
    """

    task: Task
    method: Method
    privacy: Privacy | None
    plan: Plan
    lora: Lora
    streams: Streams

    def __post_init__(self) -> None:
        # What cannot be computed of these is refused now, and not in a round that first asks.
        _ = (self.weights, self.step_noise, self.uncertified, self.rates, self.charge)

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
        return (
            self.privacy is not None and not self.releases_steps and self.privacy.trust != "local"
        )

    @cached_property
    def is_secagg(self) -> bool:
        """Whether the server itself sees the sum of the uploads only (secure aggregation)."""
        return self.privacy is not None and self.privacy.trust == "secagg"

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
    def step_noise(self) -> tuple[float, ...]:
        """Standard deviation of the noise in each client's sum of a step; 0 without a release."""
        count = len(self.task.sizes)
        # In the client unit the noise is on whole updates.
        return per_client(self.noise_levels.each if self.releases_steps else 0.0, count)

    @cached_property
    def noise_levels(self) -> NoiseLevels:
        """Noise on the sum of a step or, in the client unit, of the clients' updates."""
        if self.privacy is None:
            return NoiseLevels(each=0.0, server=0.0, shares=0)
        return self.privacy.noise_levels(len(self.task.sizes), self.plan)

    @cached_property
    def least_uploads(self) -> int:
        """The fewest uploads whose sum holds as much noise as the ledger counts; 0: any number."""
        if self.privacy is None or not self.is_secagg:
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

    # ---- ranks and keys

    @cached_property
    def ranks(self) -> Int[Tensor, " clients"] | None:
        """The clients' ranks; ``None`` where all have the adapter's."""
        ranks = self.lora.ranks
        return None if ranks is None else torch.tensor(ranks)

    @cached_property
    def held_ranks(self) -> tuple[int, ...]:
        """Counts the ranks that each client holds."""
        return self.lora.ranks or (self.lora.rank,) * len(self.task.sizes)

    @cached_property
    def sent_ranks(self) -> tuple[int, ...]:
        """Counts the ranks that each client sends: its own, or all under secure aggregation.

        Under secure aggregation each client adds its share of the noise in every rank of the sum.
        Were a share cut to the ranks that its client holds, those that few clients hold would carry
        a part of the noise, and one client's whole change.

        Guarantees: test_attack_secagg.py::test_clients_of_low_rank_add_their_noise_to_every_rank.
        """
        every = (self.lora.rank,) * len(self.task.sizes)
        return every if self.is_secagg else self.held_ranks

    @cached_property
    def period(self) -> int:
        """The number of rounds after which the schedule repeats."""
        schedule = self.method.schedule
        return len(schedule.rounds) if isinstance(schedule, Cycle) else sys.maxsize

    @cached_property
    def rates(self) -> tuple[Mapping[str, float], ...]:
        """The learning rates of each round, from 0, by what moves."""
        rounds = range(self.plan.rounds)
        return tuple({name: self.plan.rate(name, t) for name in KINDS} for t in rounds)

    def words(self, t: int) -> tuple[str, ...]:
        """What the schedule moves at each local step of a round, in canonical order."""
        return self._words_of_phase(t % self.period)

    @cached_property
    def _words_of_phase(self) -> Callable[[int], tuple[str, ...]]:
        steps = range(self.plan.local_steps)
        at_step = self.method.factors_at_step
        return lru_cache(maxsize=64)(lambda t: tuple(at_step(t, s) for s in steps))

    @cached_property
    def keys_of_phase(self) -> Callable[[int, Keys, tuple[int, ...]], RoundKeys]:
        """(round in the period, tensors, modes) -> what moves; `local_training.round_keys` asks."""
        method = self.method

        # Rounds of a phase move the same tensors: they are found once.
        @lru_cache(maxsize=64)
        def find(t: int, names: Keys, modes: tuple[int, ...]) -> RoundKeys:
            words = self._words_of_phase(t)
            moved = moving_keys(names, method.factors_in_round(t, len(words)), modes)
            uploaded = tuple(key for key in moved if method.is_uploaded(key))
            kept = tuple(key for key in moved if key not in uploaded)
            of_word = {word: moving_keys(names, word, modes) for word in set(words)}
            return RoundKeys(tuple(of_word[word] for word in words), moved, uploaded, kept)

        return find

    # ---- what may be seen

    def visibility(self, remote: bool = False) -> Visibility:
        """What the records show.

        Args: remote: the clients train in other processes, which keep what they know.
        Guarantees: test_attack_evaluation.py::test_records_do_not_tell_who_took_part,
            ::test_private_test_examples_are_never_judged_under_privacy.
        """
        privacy = self.privacy
        # Without a seed nobody can draw the noise again.
        is_release = privacy is not None and self.streams.seed is None
        # An epsilon that is amplified by participation holds while nobody knows who took part.
        secret = self.releases_sum and not self.is_secagg and self.plan.participation < 1
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
        seeded = self.streams.seed is not None
        return self.privacy.ledger(reproducible=seeded, uncertified=uncertified)

    # ---- settings

    @property
    def replays_noise(self) -> bool:
        """Whether a round that was cut short is run again under the same noise.

        It then counts once, so it must release the same bits: the difference of two releases under
        one noise is not hidden at all.
        """
        return self.privacy is not None and self.streams.seed is not None

    def settings(self) -> dict[str, Any]:
        """The settings that a checkpoint and the run that resumes from it share, as JSON values."""
        # Target and number of rounds change no round that is done: a longer run may go on from it
        # with replace(target_epsilon=None). A rule that reads the planned rounds then sees more.
        free = ("rounds", "target_epsilon")
        plan = asdict(self.plan)
        privacy = {} if self.privacy is None else self.privacy.settings()
        settings = {
            "method": {x.name: rule_identity(getattr(self.method, x.name)) for x in fields(Method)},
            "plan": {name: value for name, value in plan.items() if name not in free},
            "lora": self.lora.settings(),
            "seed": self.streams.seed,
            "privacy": {name: value for name, value in privacy.items() if name not in free} or None,
            "task": f"{self.task.fingerprint} {rule_identity(self.task.loss)}",
            "targets": self.task.targets,
            "head": self.task.head,
            "model": hashlib.sha256(without_addresses(str(self.task.model)).encode()).hexdigest(),
            "package_version": __version__,
        }
        # As they come back from a file: tuples are lists there.
        return json.loads(json.dumps(settings, default=str))


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


def rule_identity(rule: object, inside: bool = False) -> str:
    """A text that differs where a rule's qualified name differs, or the data that it holds.

    These are the fields of an object, the defaults and the closure of a function and the arguments
    of a partial. Its code is not read: the version of the package stands for that.

    Args:
        rule: a function, an object, or data.
        inside: whether it is what a rule holds; an object other than a dataclass then counts by its
            text alone, which ends the search.
    Guarantees: test_checkpoint.py::test_a_rule_is_known_by_its_name_and_its_data.
    """
    held = partial(rule_identity, inside=True)
    if isinstance(rule, Tensor | np.ndarray):  # of a large one the text leaves numbers out
        return add_to_digest(hashlib.sha256(), {"": torch.as_tensor(rule)}).hexdigest()
    if isinstance(rule, dict):
        return str([(held(name), held(value)) for name, value in rule.items()])
    if isinstance(rule, tuple | list):
        return str([held(value) for value in rule])
    if isinstance(rule, set | frozenset):  # whose order is another one in another process
        return str(sorted(map(held, rule)))
    if isinstance(rule, partial):
        return f"partial {held((rule_identity(rule.func), rule.args, rule.keywords))}"
    function = getattr(rule, "__func__", rule)
    if inspect.isfunction(function):
        closure = [cell.cell_contents for cell in function.__closure__ or ()]
        owner = vars(rule.__self__) if inspect.ismethod(rule) else {}
        data = (closure, function.__defaults__ or (), function.__kwdefaults__ or {}, owner)
        return f"{function.__module__}.{function.__qualname__} {held(data)}"
    if type(rule).__module__ == "builtins" or (inside and not is_dataclass(rule)):
        return without_addresses(rule_name(rule))
    data = (
        {x.name: getattr(rule, x.name) for x in fields(rule)} if is_dataclass(rule) else vars(rule)
    )
    return f"{type(rule).__module__}.{type(rule).__qualname__} {held(data)}"


def without_addresses(text: str) -> str:
    """A text as another process would write it, where objects lie elsewhere in memory.

    >>> without_addresses("<Balanced object at 0x7f00c0ffee>")
    '<Balanced object>'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)


# ---- the prepared run


@dataclass(frozen=True)
class Prepared:
    """A run's adapted model and examples, ready to train.

    Args:
        config: of the run.
        adapted: the model in which every example may have factors of its own.
        data: examples of the clients that work here, by number: everyone's, one client's, or none.
        persons: in the person unit, by number of the client, the person of each example, from 0.
        matmul_precision: precision in which the frozen base multiplies, one of `MATMUL_PRECISIONS`.
        chunk: at most so many examples go through the model at once; ``None``: no limit.
        clip: clips and sums in the place of `privatizer.clip_sum`: an injected bug, of which the
            ledger certifies no epsilon.
        made_up: an example of no client, which passes the model where the machine works; ``None``:
            the first for testing.
    """

    config: Config
    adapted: adapters.AdaptedModel
    data: Sequence[Examples] | Mapping[int, Examples]
    persons: Mapping[int, Tensor] = field(default_factory=dict)
    matmul_precision: str = "float32"
    chunk: int | None = None
    clip: ClipSum | None = None
    made_up: Examples | None = None

    def __post_init__(self) -> None:
        # Asked for by every step, and refused now where a privatizer cannot be made.
        _ = (self.is_certified, self.step_privatizer)

    @property
    def probe(self) -> Examples:
        """One example of the clients' shapes that is none of theirs."""
        if self.made_up is not None:
            return self.made_up
        x, y = self.config.task.test
        return take(x, torch.tensor([0])), y[:1]

    @cached_property
    def privatizer(self) -> ClipAndNoise:
        """Clips and noises what is released: steps or, in the client unit, whole updates."""
        privacy = self.config.privacy
        norm = math.inf if privacy is None else privacy.clip_norm
        return ClipAndNoise(norm, self.config.method.clip_groups, self.clip)

    @property
    def uncertified(self) -> str | None:
        """Why no epsilon covers the releases of this run: of its mechanism, or the method's rules.

        Guarantees: a mechanism that does not say what it spends is covered by no epsilon
            (test_attack_clip.py::test_a_mechanism_of_another_class_is_certified_by_nobody).
        """
        reasons = (self.privatizer.uncertified, self.config.uncertified)
        return "; ".join(reason for reason in reasons if reason) or None

    @cached_property
    def is_certified(self) -> bool:
        """Whether the run's ledger states an epsilon."""
        return self.config.privacy is not None and self.uncertified is None

    @cached_property
    def step_privatizer(self) -> ClipAndNoise:
        """Sums local steps; where they are not released, finite rows stay as they are."""
        if self.config.releases_steps:
            return self.privatizer
        return ClipAndNoise(math.inf, self.config.method.clip_groups, self.clip)


@with_default_modes
def prepare_run(
    config: Config,
    data: Sequence[Examples] | Mapping[int, Examples],
    *,
    device: "str | torch.device | None" = None,
    matmul_precision: str = "float32",
    chunk_examples: int | None = None,
) -> Prepared:
    """Adapts the model and probes that no example touches another in it.

    Args:
        config: checked.
        data: clients' examples by their numbers: everyone's, one client's, or none.
        device, matmul_precision, chunk_examples: see `run`.

    Raises: ``ValueError`` for a model in which examples touch each other, or that cannot be
        adapted.
    """
    task = config.task
    adapted = adapters.adapt(task, config.lora, device, matmul_precision)
    adapters.warn_of_unreached(task, config.lora, tuple(adapted.weights))
    # A slip in the rank would otherwise ask for all memory.
    widest = max(max(weight.shape) for weight in adapted.weights.values())
    expected = f"at most {16 * widest}, 16 times the widest adapted layer: no more can be learned"
    check(config.lora.rank <= 16 * widest, "rank", config.lora.rank, expected)
    expected = (
        "float32 or float64, which model.float() makes: in half precision a sum may move by more "
        "than the clip norm"
    )
    for key, tensor in adapted.initial.items():
        precise = tensor.dtype in (torch.float32, torch.float64)
        check(precise, f"dtype of {key}", tensor.dtype, expected)
    # Who owns which example stays with those who hold the data.
    persons = dict(enumerate(task.local_persons)) if config.by_person and data else {}
    # Probed with as many examples as pass the model together, half as many again as expected: of
    # texts no more than of those for testing, however short the private ones are.
    drawn = sum(n * rate for n, rate in zip(task.sizes, config.sample_rates, strict=True))
    mask = mask_of(task.test[0]) if adapted.device.type == "cpu" else None
    chunk = chunk_examples or (None if mask is None else texts_at_once(mask))
    rows = math.ceil(min(1.5 * drawn, chunk or math.inf))
    keys = _start(config, adapted)
    check_batch_independence(task, adapted, matmul_precision, config.method, rows, keys)
    # Made while there is memory for it.
    made_up = None if config.privacy is None else longest_probe(task, adapted)
    return Prepared(config, adapted, data, persons, matmul_precision, chunk, made_up=made_up)


def _start(config: Config, adapted: adapters.AdaptedModel) -> TensorDict:
    """The tensors of the model before the first round."""
    return adapters.initial_values(
        adapted, config.streams, config.method.initial_factors, config.lora.start_scale
    )


def initial_server(prepared: Prepared) -> ServerState:
    """The server's tensors on the CPU before the first round, with what the method's rule keeps."""
    config = prepared.config
    start = {key: x.cpu() for key, x in _start(config, prepared.adapted).items()}
    server = ServerState(start, planned=config.plan.rounds, streams=config.streams)
    rule = config.method.aggregate
    return rule.initial_state(server) if isinstance(rule, ServerRule) else server
