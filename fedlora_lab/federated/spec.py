"""What was asked of a run, checked once, and what is made ready for it.

`RunSpec` holds the arguments that decide all numbers of a run; `Prepared` the adapted model and the
examples. Neither changes while the run goes on.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_one_of, check_whole
from fedlora_lab.lora import adapters
from fedlora_lab.lora.independence import check_batch_independence
from fedlora_lab.lora.per_example import TEXTS_AT_ONCE
from fedlora_lab.methods.aggregation import Rule
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.published import rule_name
from fedlora_lab.methods.state import ParamKey, ServerState
from fedlora_lab.privacy.ledger import Ledger, per_client
from fedlora_lab.privacy.plan import NoiseLevels, Privacy
from fedlora_lab.privacy.privatizer import (
    ClipAndNoise,
    ClipCounts,
    Privatizer,
    noise_std,
    uncertified_reason,
)
from fedlora_lab.tasks.task import Examples, Task, concatenate, mask_of

PRODUCTS = ("float32", "tf32", "bfloat16")
"""Precisions in which the frozen base may multiply."""
ClipSum = Callable[..., tuple[dict[ParamKey, Tensor], ClipCounts]]
"""A function with the arguments of `privatizer.clip_sum`."""


@dataclass(frozen=True)
class RunSpec:
    """The checked arguments of a run, which decide all of its numbers."""

    task: Task
    method: Method
    privacy: Privacy | None
    plan: Plan
    lora: Lora
    streams: Streams

    @property
    def by_step(self) -> bool:
        """Whether clip, noise and filter act on each step; in the client unit: on updates."""
        return self.privacy is None or self.privacy.by_step

    @property
    def by_person(self) -> bool:
        """Whether a step draws and clips persons, with all their examples."""
        return self.privacy is not None and self.privacy.unit == "person"

    @property
    def is_release(self) -> bool:
        """Whether the run is private and nobody can draw its noise again."""
        return self.privacy is not None and self.streams.seed is None

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Number of units each client draws from in a step: examples, or persons."""
        return self.task.sizes if self.privacy is None else self.privacy.units(self.task)

    @cached_property
    def sample_rates(self) -> tuple[float, ...]:
        """Each client's probability of drawing an example, or a person, in a step."""
        # From the public number of units: the number that a step really draws is private.
        return self.plan.sample_rates(self.units)

    @cached_property
    def step_clip_norm(self) -> float:
        """The clip norm of a local step; infinity where steps are not released."""
        return self.privacy.clip_norm if self.privacy is not None and self.by_step else math.inf

    @cached_property
    def step_noise(self) -> tuple[float, ...]:
        """Standard deviation of the noise in each client's sum of a step; 0 without a release."""
        count = len(self.task.sizes)
        # In the client unit the noise is on whole updates, see `update_noise`.
        if self.privacy is None or not self.by_step:
            return (0.0,) * count
        sigmas = per_client(self.privacy.noise_multiplier or 0.0, count)
        return tuple(noise_std(sigma, self.step_clip_norm) for sigma in sigmas)

    @cached_property
    def update_noise(self) -> NoiseLevels:
        """Noise on the sum of the clients' updates, in the client unit."""
        assert self.privacy is not None
        return self.privacy.noise_levels(len(self.task.sizes), self.plan)

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

    @property
    def server_sees_only_sum(self) -> bool:
        """Whether the server sees the sum of the uploads and no upload (secure aggregation)."""
        return self.privacy is not None and self.privacy.server_sees_only_sum

    def settings(self) -> dict[str, Any]:
        """The settings that a checkpoint and the run that resumes from it share, as JSON values."""
        names = Method.__dataclass_fields__
        # What the noise was calibrated for and how long the run is change no round that is done: a
        # longer run may go on from it with replace(target=None).
        free = ("rounds", "target")
        plan = asdict(self.plan)
        privacy = {} if self.privacy is None else self.privacy.settings()
        settings = {
            "method": {name: rule_name(getattr(self.method, name)) for name in names},
            "plan": {name: value for name, value in plan.items() if name not in free},
            "lora": self.lora.settings(),
            "seed": self.streams.seed,
            "privacy": {name: value for name, value in privacy.items() if name not in free} or None,
            "task": self.task.fingerprint,
        }
        # As they come back from a file: tuples are lists there.
        return json.loads(json.dumps(settings, default=str))

    def counted(self, ids: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Whom the releases of these clients count for; ``None`` is everybody.

        A client that is alone holds the data of all, as where they are pooled: in another run on
        these data, with which this one is composed, they may lie with any client.

        Guarantees: test_pooled_data_are_spent_for_every_client.
        """
        return None if ids == (0,) and len(self.task.sizes) == 1 else ids

    def entry(self, ids: tuple[int, ...] | None) -> dict[str, Any]:
        """The ledger entry of these clients in a round: number of releases, rates and noise."""
        assert self.privacy is not None
        steps = self.plan.local_steps if self.privacy.by_step else 1
        terms = {"count": steps, **self.privacy.entry(ids)}
        # The entry of a single client is one for everybody, which has one number.
        if len(self.task.sizes) == 1:
            terms = {k: x[0] if isinstance(x, tuple) and x else x for k, x in terms.items()}
        return terms

    @property
    def everyone(self) -> tuple[int, ...] | None:
        """All clients, as a ledger entry counts them: in the client unit ``None``."""
        in_entries = self.privacy is not None and self.privacy.unit != "client"
        return tuple(range(len(self.task.sizes))) if in_entries else None

    def ledger(self, uncertified: str | None = None) -> Ledger | None:
        """A ledger without releases; ``None`` without privacy.

        Args: uncertified: why it can state no epsilon, if so.
        """
        if self.privacy is None:
            return None
        # Whoever knows the seed can draw the noise again and subtract it.
        seeded = self.streams.seed is not None
        return self.privacy.ledger(reproducible=seeded, uncertified=uncertified)


@dataclass(frozen=True)
class Prepared:
    """A run's adapted model and examples, ready to train.

    Args:
        spec: of the run.
        adapted: the model in which every example may have factors of its own.
        data: examples of the clients that work here, by number: everyone's, one client's, or none.
        persons: in the person unit, by number of the client, the person of each example, from 0.
        products: precision in which the frozen base multiplies, one of `PRODUCTS`.
        chunk: at most so many examples go through the model at once; ``None``: no limit.
        clip: clips and sums in the place of `privatizer.clip_sum`: an injected bug, of which the
            ledger certifies no epsilon.
    """

    spec: RunSpec
    adapted: adapters.AdaptedModel
    data: Sequence[Examples] | Mapping[int, Examples]
    persons: Mapping[int, Tensor] = field(default_factory=dict)
    products: str = "float32"
    chunk: int | None = None
    clip: ClipSum | None = None

    @cached_property
    def step_privatizer(self) -> Privatizer:
        """Clips and noises local steps; not released, their finite rows stay as they are."""
        return ClipAndNoise(self.spec.step_clip_norm, self.spec.method.clip_groups, self.clip)

    @cached_property
    def update_privatizer(self) -> Privatizer:
        """Clips and noises clients' whole updates, in the client unit."""
        assert self.spec.privacy is not None
        return ClipAndNoise(self.spec.privacy.clip_norm, self.spec.method.clip_groups, self.clip)

    @cached_property
    def examples(self) -> Callable[[tuple[int, ...]], Examples]:
        """Concatenates some clients' examples; the last result is kept for the same clients."""
        # Most rounds ask for the same clients in every step.
        data = self.data
        return lru_cache(maxsize=1)(lambda ids: concatenate([data[k] for k in ids]))


def check_compute(
    device: "str | torch.device | None", products: str, chunk_examples: int | None
) -> None:
    """Refuses a place, precision or number of examples that torch has not got.

    Args: device, products, chunk_examples: as of `run`.
    """
    check_one_of("products", products, PRODUCTS)
    if chunk_examples is not None:
        check_whole("chunk_examples", chunk_examples, 1)
    try:
        # On "meta" a tensor holds no values.
        usable = torch.empty(0, device=device).device.type != "meta"
    except (RuntimeError, AssertionError, ValueError, TypeError):
        usable = False
    check(usable, "device", str(device), "a device that torch finds here, such as 'cpu' or 'cuda'")


def prepare_run(
    spec: RunSpec,
    data: Sequence[Examples] | Mapping[int, Examples],
    *,
    device: "str | torch.device | None" = None,
    products: str = "float32",
    chunk_examples: int | None = None,
) -> Prepared:
    """Adapts the model and probes that no example touches another in it.

    Args:
        spec: checked.
        data: clients' examples by their numbers: everyone's, one client's, or none.
        device, products, chunk_examples: as of `run`.

    Raises: ``ValueError`` for a model in which examples touch each other, or that cannot be
        adapted.
    """
    check_compute(device, products, chunk_examples)
    task = spec.task
    adapted = adapters.adapt(task.model, task.targets, task.head, spec.lora, device, products)
    # A slip in the rank would otherwise ask for all memory.
    widest = max(max(weight.shape) for weight in adapted.weights.values())
    expected = f"at most {16 * widest}, 16 times the widest adapted layer: no more can be learned"
    check(spec.lora.rank <= 16 * widest, "rank", spec.lora.rank, expected)
    expected = "float32 or float64: in half precision a sum may move by more than the clip norm"
    for key, tensor in adapted.initial.items():
        precise = tensor.dtype in (torch.float32, torch.float64)
        check(precise, f"dtype of {key}", tensor.dtype, expected)
    # Who owns which example stays with those who hold the data.
    persons = dict(enumerate(task.local_persons)) if spec.by_person and data else {}
    # Probed with as many examples as pass the model together, half as many again as expected.
    drawn = sum(n * rate for n, rate in zip(task.sizes, spec.sample_rates, strict=True))
    texts = adapted.device.type == "cpu" and mask_of(task.test[0]) is not None
    most = chunk_examples or (TEXTS_AT_ONCE if texts else math.inf)
    rows = math.ceil(min(1.5 * drawn, most))
    # A penalty reads what may move, a core or a gain included.
    keys = _start(spec, adapted) if spec.method.penalty is not None else ()
    check_batch_independence(task, adapted, products, spec.method, spec.plan, rows, keys)
    return Prepared(spec, adapted, data, persons, products, chunk_examples)


def _start(spec: RunSpec, adapted: adapters.AdaptedModel) -> dict[ParamKey, Tensor]:
    """The tensors of the model before the first round."""
    return adapters.initial_values(adapted, spec.streams, spec.method.start, spec.lora.start_scale)


def initial_server(prepared: Prepared) -> ServerState:
    """The server's tensors before the first round, with what the method's rule keeps there."""
    spec = prepared.spec
    start = _start(spec, prepared.adapted)
    server = ServerState(start, planned=spec.plan.rounds, streams=spec.streams)
    rule = spec.method.aggregate
    return rule.initial_state(server) if isinstance(rule, Rule) else server
