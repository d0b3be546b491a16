"""What is made ready for a run: the adapted model and the examples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fedlora_lab._utils.torch_state import with_default_modes
from fedlora_lab._utils.validation import check
from fedlora_lab.federated.config import Config, Execution
from fedlora_lab.lora import adapters
from fedlora_lab.lora.independence import check_batch_independence, longest_probe
from fedlora_lab.lora.per_example import texts_at_once
from fedlora_lab.methods.aggregation import ServerRule
from fedlora_lab.methods.state import ServerState, TensorDict
from fedlora_lab.privacy.privatizer import ClipAndNoise, ClipSum
from fedlora_lab.tasks.task import Examples, mask_of


@dataclass(frozen=True)
class Prepared:
    """A run's adapted model and examples, ready to train.

    Args:
        config: of the run.
        adapted: the model in which every example may have factors of its own.
        data: examples of the clients that work here, by number: everyone's, one client's, or none.
        persons: in the person unit, by number of the client, the person of each example, from 0.
        execution: how the run is computed.
        chunk: at most so many examples go through the model at once; ``None``: no limit.
        clip: clips and sums in the place of `privatizer.clip_sum`: an injected bug, of which the
            ledger certifies no epsilon.
        made_up: of a private run, an example of no client, which passes the model where the machine
            works.
    """

    config: Config
    adapted: adapters.AdaptedModel
    data: Sequence[Examples] | Mapping[int, Examples]
    persons: Mapping[int, Tensor] = field(default_factory=dict)
    execution: Execution = field(default_factory=Execution)
    chunk: int | None = None
    clip: ClipSum | None = None
    made_up: Examples | None = None

    def __post_init__(self) -> None:
        # Asked for by every step, and refused now where a privatizer cannot be made.
        _ = (self.is_certified, self.step_privatizer)

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
    execution: Execution,
) -> Prepared:
    """Adapts the model and probes that no example touches another in it.

    Args:
        config: checked.
        data: clients' examples by their numbers: everyone's, one client's, or none.
        execution: how the run is computed.

    Raises: ``ValueError`` for a model in which examples touch each other, or that cannot be
        adapted.
    """
    task = config.task
    adapted = adapters.adapt(task, config.lora, execution.device)
    # A slip in the rank would otherwise ask for all memory.
    widest = max(max(weight.shape) for weight in adapted.weights.values())
    expected = f"at most {16 * widest}, 16 times the widest adapted layer: no more can be learned"
    check(config.lora.rank <= 16 * widest, "rank", config.lora.rank, expected)
    # Who owns which example stays with those who hold the data.
    persons = dict(enumerate(task.local_persons)) if config.by_person and data else {}
    # Probed with as many examples as pass the model together, half as many again as expected: of
    # texts no more than of those for testing, however short the private ones are.
    drawn = sum(n * rate for n, rate in zip(task.sizes, config.sample_rates, strict=True))
    mask = mask_of(task.test[0]) if adapted.device.type == "cpu" else None
    chunk = execution.chunk_examples or (None if mask is None else texts_at_once(mask))
    rows = math.ceil(min(1.5 * drawn, chunk or math.inf))
    keys = _start(config, adapted)
    check_batch_independence(task, adapted, config.method, rows, keys)
    # Made while there is memory for it.
    made_up = None if config.privacy is None else longest_probe(task, adapted)
    return Prepared(config, adapted, data, persons, execution, chunk, made_up=made_up)


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
