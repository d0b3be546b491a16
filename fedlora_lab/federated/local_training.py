"""Local steps, many clients as one batch: draw, differentiate, clip, add noise, filter, descend."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check
from fedlora_lab.lora.independence import check_penalty
from fedlora_lab.lora.peft import AdaptedModel, matmuls
from fedlora_lab.lora.per_example import NotPerExample, per_example_gradients, split_batch
from fedlora_lab.methods.filters import Preconditioner, identity
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import OptimizerState, apply
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.state import MODES, ParamKey, cut_to_rank
from fedlora_lab.privacy import privatizer
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import ClipAndNoise, ClipCounts, noise_std
from fedlora_lab.tasks.task import Examples, Task, concatenate, take

ClientParams = dict[ParamKey, Tensor]


@dataclass(frozen=True)
class RunContext:
    """All that is fixed during a run: task, model, method, plan, noise."""

    task: Task
    adapted: AdaptedModel
    method: Method
    plan: Plan
    streams: Streams
    clip_norm: float  # of a local step; infinity where steps are not released
    noise_multiplier: tuple[float, ...]  # of sums, of each client; zeros where nothing is released
    data: Sequence[Examples] | Mapping[int, Examples]  # of the clients that work here, by number
    chunk: int | None = None  # at most so many examples at once
    lora: Lora = field(default=Lora())
    products: str = "float32"
    uncertified: str | None = None  # why no epsilon covers the method's preconditioner
    privacy: Privacy | None = None
    clip: Callable[..., tuple[ClientParams, ClipCounts]] = privatizer.clip_sum  # others: no epsilon
    # In the person unit: by number of the client, the person of each example, counted from 0.
    persons: Mapping[int, Tensor] = field(default_factory=dict)

    @cached_property
    def step_privatizer(self) -> ClipAndNoise:
        """Clips and noises local steps; where steps are not released it leaves them as they are."""
        return ClipAndNoise(self.clip_norm, self.method.clip_groups, self.clip)

    @cached_property
    def update_privatizer(self) -> ClipAndNoise:
        """Clips and noises clients' whole updates, in the client unit."""
        assert self.privacy is not None
        return ClipAndNoise(self.privacy.clip_norm, self.method.clip_groups, self.clip)

    @property
    def by_person(self) -> bool:
        """Whether a step draws and clips persons, with all their examples."""
        return self.privacy is not None and self.privacy.unit == "person"

    @cached_property
    def units(self) -> tuple[int, ...]:
        """Number of units each client draws from in a step: examples, or persons."""
        return self.task.sizes if self.privacy is None else self.privacy.units(self.task)

    @cached_property
    def sample_rate(self) -> tuple[float, ...]:
        """Each client's probability of drawing an example, or a person, in a step."""
        batch = self.plan.batch
        return tuple(1.0 if batch is None else min(1.0, batch / max(n, 1)) for n in self.units)

    @cached_property
    def noise_levels(self) -> Any:
        """`NoiseLevels` on the sum of the clients' updates; ``None`` without privacy."""
        if self.privacy is None:
            return None
        return self.privacy.noise_levels(len(self.task.sizes), self.plan)

    @cached_property
    def examples(self) -> Callable[[tuple[int, ...]], Examples]:
        """Concatenates some clients' examples; the last result is kept for the same clients."""
        data = self.data
        return lru_cache(maxsize=1)(lambda ids: concatenate([data[k] for k in ids]))

    @property
    def rank(self) -> int:
        """The adapter's rank."""
        return next(len(tensor) for key, tensor in self.adapted.initial.items() if key.side == "A")

    @cached_property
    def by_step(self) -> bool:
        """Whether clip, noise and filter act on each step; in the client unit: on updates."""
        return self.privacy is None or self.privacy.by_step


@dataclass
class ClientBatch:
    """Clients that train together: key -> (clients, ...) or (1, ...) where all hold the same."""

    ids: tuple[int, ...]
    params: ClientParams  # their tensors
    start: ClientParams  # what these were when the round began
    noise: ClientParams = field(default_factory=dict)  # the noise in their tensors
    optimizer: OptimizerState = field(default_factory=dict)  # the optimiser's memory of gradients
    noise_optimizer: OptimizerState = field(default_factory=dict)  # and of the noise in them
    clipped: ClipCounts = field(default_factory=ClipCounts)


def ranks_of(context: RunContext, ids: tuple[int, ...]) -> Tensor | None:
    """The ranks of these clients, (clients,); ``None`` where all have the adapter's."""
    ranks = context.lora.ranks
    return None if ranks is None else torch.tensor([ranks[k] for k in ids])


def poisson_batch(
    context: RunContext, t: int, s: int, ids: tuple[int, ...]
) -> list[Int[Tensor, " n"]]:
    """Draws each client's Poisson batch of round t, step s, as places in the client's examples.

    Every example, or person, is drawn on its own at the client's rate; of a drawn person all
    examples count.

    Args:
        context: of the run.
        t, s: round and step, from 0.
        ids: the clients that draw.
    """

    # A stream of its own per client and step: no draw depends on who else takes part, and no batch
    # has a fixed size, which the accountants' amplification would not cover.
    def draw(k: int) -> Tensor:
        size, rate = context.units[k], context.sample_rate[k]
        if rate >= 1:
            return torch.arange(size)
        uniform = context.streams.uniform((size,), "sampling", t, k, s)
        return (uniform < rate).nonzero().squeeze(1)

    def draw_persons(k: int) -> Tensor:
        person, drawn = context.persons[k], torch.zeros(context.units[k], dtype=torch.bool)
        drawn[draw(k)] = True
        return drawn[person].nonzero().squeeze(1)

    return [draw_persons(k) if context.by_person else draw(k) for k in ids]


def preconditioners(
    method: Method,
    moving: tuple[ParamKey, ...],
    params: Mapping[ParamKey, Tensor],
    certified: bool = False,
) -> dict[ParamKey, Preconditioner]:
    """Makes each moving factor's preconditioner; empty for a method without one.

    Args:
        method, moving: whose rule, and the tensors that train.
        params: key -> (clients, ...), or (1, ...) where all hold the same.
        certified: whether the ledger states an epsilon.

    Raises: ``ValueError`` if ``certified`` and the epsilon would not hold, because noise and signal
        pass different maps.
    """
    found: dict[ParamKey, Preconditioner] = {}
    for key in moving if method.precondition else ():
        if key.side not in ("A", "B"):
            continue
        # In float64: the rule inverts this matrix, which enlarges the rounding in it.
        peer = params[ParamKey("B" if key.side == "A" else "A", key.layer)].double()
        gram = peer.mT @ peer if key.side == "A" else peer @ peer.mT
        gram = _finite(gram.to(params[key].dtype))
        found[key] = method.precondition(gram)  # type: ignore[misc]
        privatizer.check_maps(found[key], gram.shape, key)
    # A rule may differ from what it returned when the run opened: every answer is checked.
    sound = not certified or all(map(privatizer.maps_after_noise, found.values()))
    expected = "a rule that treats every peer alike: one map for signal and noise"
    check(sound, "precondition", method.precondition, expected)
    return found


def _finite(matrices: Tensor) -> Tensor:
    """Replaces matrices that are not finite by the identity.

    In the client unit they are not noised yet: a rule that raises would tell of one client's data.

    Guarantees: test_attack_clip.py::test_one_client_s_data_cannot_stop_a_run.
    """
    sound = matrices.isfinite().flatten(1).all(1).view(-1, 1, 1)
    eye = torch.eye(*matrices.shape[-2:], dtype=matrices.dtype, device=matrices.device)
    return torch.where(sound, matrices, eye)


def moving_keys(values: Mapping[ParamKey, Tensor], word: str) -> tuple[ParamKey, ...]:
    """Selects the tensors that a schedule's word moves, heads too; "*" asks each layer's mode."""
    modes = {key.layer: MODES[int(mode)] for key, mode in values.items() if key.side == "mode"}

    def moves(key: ParamKey) -> bool:
        chosen = "*" in word and modes.get(key.layer) == key.side
        return chosen or key.side in word or not key.kind.scheduled

    return tuple(key for key in values if key.kind.trained and moves(key))


@matmuls("float32")  # also after the clip: the sensitivity has no allowance for TF32 rounding
def local_step(context: RunContext, clients: ClientBatch, t: int, s: int) -> None:
    """Takes one step of every client of the group, in place.

    Args:
        context: of the run.
        clients: the group; its tensors, noise and optimiser's memory move.
        t, s: round and step, from 0.

    Guarantees: frozen factors get neither gradient nor noise; an empty batch still adds noise; the
        chunk size changes nothing beyond rounding (tests/methods/test_contract.py,
        tests/federated/test_local_training.py); no value is read from a GPU
        (tests/federated/test_compute.py::test_a_local_step_reads_nothing_from_the_device).
    """
    method, ids = context.method, clients.ids
    moving = moving_keys(clients.params, method.sides_at_step(t, s))
    if method.penalty is not None:  # what "*" moves is known only here
        check_penalty(context.task, context.adapted, context.products, method, moving)
    maps = preconditioners(method, moving, clients.params, context.uncertified is None)
    drawn = poisson_batch(context, t, s, ids)
    zeros = {
        key: clients.params[key].new_zeros(len(ids), *clients.params[key].shape[1:])
        for key in moving
    }
    rows = _gradient_rows(context, clients, zeros, drawn)
    std = [noise_std(context.noise_multiplier[k], context.clip_norm) for k in ids]
    where = [(t, k, s) for k in ids]
    release = context.step_privatizer.update(rows, zeros, std, {}, context.streams, where, maps)
    clients.clipped = clients.clipped + release.counts
    # What follows is a function of released values and costs no privacy. Lower ranks are cut after
    # the maps, which mix ranks: a cut before would leave signal unnoised.
    gradients = cut_to_rank(release.value, ranks_of(context, ids))
    noises = cut_to_rank(release.noise, ranks_of(context, ids))
    # The divisor is the expected batch: the drawn batch's size is private.
    expected = torch.tensor([context.units[k] * context.sample_rate[k] for k in ids])
    for part in (gradients, noises):
        for key, x in part.items():
            x = x / expected.to(x).view(-1, *[1] * (x.dim() - 1))
            # After the noise a filter is post-processing; before it would change the sensitivity.
            part[key] = method.filter(x, key.side) if _is_filtered(context, key) else x
    _descend(context, clients, gradients, noises, t, noised=any(std))


def _gradient_rows(
    context: RunContext, clients: ClientBatch, sums: ClientParams, drawn: list[Tensor]
) -> Iterator[tuple[ClientParams, Tensor]]:
    """Gradients of the drawn examples, or persons, in chunks: key -> (n, ...), and whose (n,).

    Args:
        context, clients: of the run, and who draws.
        sums: of the keys to differentiate, key -> (clients, ...); their values are not read.
        drawn: places of each client's drawn examples.
    """
    params = clients.params
    owner = torch.arange(len(drawn)).repeat_interleave(
        torch.tensor([len(index) for index in drawn])
    )
    if not len(owner):
        return
    lengths = (len(context.data[k][1]) for k in clients.ids)
    index = torch.cat(drawn) + torch.tensor([0, *accumulate(lengths)])[owner]
    x, y = context.examples(clients.ids)

    def gradients(these: Tensor) -> ClientParams:
        data = take(x, index[these]), y[index[these]]
        parts = params, tuple(sums), data, owner[these], context.method, clients.start
        with matmuls(context.products):  # what is rounded here is clipped afterwards
            return per_example_gradients(context.task, context.adapted, *parts)

    def by_example() -> Iterator[tuple[ClientParams, Tensor]]:
        for part in split_batch(x, index, context.adapted.device, context.chunk):
            rows = (
                gradients(part)
                if context.privacy is None
                else gradients_or_nan(gradients, part, sums)
            )
            yield rows, owner[part]

    def by_person() -> Iterator[tuple[ClientParams, Tensor]]:
        person = torch.cat([context.persons[k][i] for k, i in zip(clients.ids, drawn, strict=True)])
        # Persons are counted over all these clients: whoever is at two of them counts twice.
        numbers = (
            person + torch.tensor([0, *accumulate(context.units[k] for k in clients.ids)])[owner]
        )
        _, number, examples = numbers.unique(return_inverse=True, return_counts=True)
        client = torch.zeros_like(examples).index_copy_(0, number, owner)
        for some in torch.arange(len(examples)).split(context.chunk or len(examples)):
            mine = ((number >= some[0]) & (number <= some[-1])).nonzero().squeeze(1)
            total = {key: like.new_zeros(len(some), *like.shape[1:]) for key, like in sums.items()}
            # A person's examples may go through the model in several parts: they meet here, before
            # the clip, which sees one vector for each person.
            for part in split_batch(x, index[mine], context.adapted.device, context.chunk):
                rows = gradients_or_nan(gradients, mine[part], sums)
                place = (number[mine[part]] - some[0]).to(context.adapted.device)
                for key, own in rows.items():
                    total[key].index_add_(0, place, own)
            count_of = examples[some].to(context.adapted.device)
            mean = {k: v / count_of.to(v).view(-1, *[1] * (v.dim() - 1)) for k, v in total.items()}
            yield mean, client[some]

    for rows, own in by_person() if context.by_person else by_example():
        yield rows, own.to(context.adapted.device, non_blocking=True)


def gradients_or_nan(
    gradients: Callable[[Tensor], ClientParams], these: Tensor, sums: ClientParams
) -> ClientParams:
    """Computes these examples' gradients; NaN, zero to the clip, for an example that raises.

    Whether a run goes on must not hang on one example: no noise hides it. Where a pass over several
    raises each half passes alone, down to the example, so that the others are what they would be
    without it.

    Args:
        gradients: of the examples at some positions, as sums over them.
        these: positions of the examples, shape (n,).
        sums: tensors of the shapes of a sum, for the keys to fill.

    Raises: what the code or the machine decides and no example: ``NotPerExample``, no memory.
    Guarantees: test_attack_evaluation.py::test_no_example_stops_a_run.
    """
    try:
        return gradients(these)
    except (NotPerExample, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:
        if len(these) == 1:
            return {key: torch.full_like(total[:1], torch.nan) for key, total in sums.items()}
    # By halves: of n examples one that raises costs 2 log n passes and not n, and time tells less.
    parts = [gradients_or_nan(gradients, half, sums) for half in these.tensor_split(2)]
    return {key: torch.cat([part[key] for part in parts]) for key in sums}


def _is_filtered(context: RunContext, key: ParamKey) -> bool:
    """Whether the method's filter acts on this tensor's gradient: it belongs where the noise is."""
    return key.side in "AB" and context.by_step and context.method.filter is not identity


def _descend(
    context: RunContext,
    clients: ClientBatch,
    gradients: ClientParams,
    noises: ClientParams,
    t: int,
    noised: bool,
) -> None:
    """Takes a step of the clients' optimiser, and moves the noise in their tensors alike."""
    rule, memory = context.plan.optimizer, clients.optimizer
    rates = {key: context.plan.rate(key.side, t) for key in gradients}
    steps, clients.optimizer = rule.update(gradients, memory, clients.params, rates)
    clients.params.update(apply({key: clients.params[key] for key in steps}, steps))
    if rule.linear:  # then the step moves noise as it moves gradients, exactly
        # In the place of the parameters: weight decay shrinks the noise in them as well.
        old = {key: clients.noise.get(key, x.new_zeros(1)) for key, x in noises.items()}
        steps, clients.noise_optimizer = rule.update(noises, clients.noise_optimizer, old, rates)
        clients.noise.update(apply(old, steps))
    elif noised:  # unknown: NaN, rather than a number that looks measured
        for key, x in noises.items():
            clients.noise[key] = x.new_full((1, *x.shape[1:]), torch.nan)
