"""Local steps, many clients as one batch: draw, differentiate, clip, add noise, filter, descend."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.torch_state import full_precision
from fedlora_lab._utils.validation import check, error_text
from fedlora_lab.federated.config import ClientIds, Config, RoundKeys, moving_keys
from fedlora_lab.federated.prepared import Prepared
from fedlora_lab.lora.per_example import (
    NotPerExample,
    gradients_at,
    loss_differences,
    per_example_gradients,
    split_batch,
)
from fedlora_lab.methods.directions import Basis, Differences, joint_basis, step_basis
from fedlora_lab.methods.filters import filter_factors, identity
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.optimizers import OptimizerState, apply_updates
from fedlora_lab.methods.preconditioners import Preconditioner, finite, orthonormal_columns
from fedlora_lab.methods.state import Keys, ParamKey, TensorDict, Tensors
from fedlora_lab.privacy import privatizer
from fedlora_lab.privacy.privatizer import (
    ClipCounts,
    Metric,
    OwnedRows,
)
from fedlora_lab.tasks.task import Inputs, concatenate, take


@dataclass
class ClientBatch:
    """Clients that train together: key -> (clients, ...) or (1, ...) where all hold the same.

    Args:
        ids: their numbers.
        params: their tensors.
        start: what they received at the start of the round; what a client kept from an earlier
            round is in ``params`` only.
        noise: the noise in their tensors.
        optimizer, noise_optimizer: the optimiser's memory of gradients, and of the noise in them.
        clip_counts: what the clip did in all steps so far.
    """

    ids: ClientIds
    params: TensorDict
    start: TensorDict
    noise: TensorDict = field(default_factory=dict)
    optimizer: OptimizerState = field(default_factory=dict)
    noise_optimizer: OptimizerState = field(default_factory=dict)
    clip_counts: ClipCounts = field(default_factory=ClipCounts)


# ---- the batch of a step


def poisson_batch(prepared: Prepared, t: int, s: int, ids: ClientIds) -> list[Int[Tensor, " n"]]:
    """Draws each client's Poisson batch of round t, step s, as places in the client's examples.

    Every example, or person, is drawn on its own at the client's rate; of a drawn person all
    examples count.

    Args:
        prepared: of the run.
        t, s: round and step, from 0.
        ids: the clients that draw.
    """
    config = prepared.config
    batches = []
    for k in ids:
        drawn = torch.ones(config.unit_counts[k], dtype=torch.bool)
        if config.sample_rates[k] < 1:
            # A stream of its own per client and step: no draw depends on who else takes part, and
            # no batch has a fixed size, which the accountants' amplification would not cover.
            uniform = config.streams.uniform((config.unit_counts[k],), "sampling", t, k, s)
            drawn = uniform < config.sample_rates[k]
        # Of a drawn person all examples.
        drawn = drawn[prepared.persons[k]] if config.by_person else drawn
        batches.append(drawn.nonzero().squeeze(1))
    return batches


class DrawnExamples(NamedTuple):
    """The drawn examples of the clients that train together, one client after the other.

    Args:
        x, y: inputs and targets.
        owner: (n,), the position of each example's client among them.
        person: (n,), in the person unit a number of its person, unique over the clients.
    """

    x: Inputs
    y: Tensor
    owner: Int[Tensor, " n"]
    person: Int[Tensor, " n"]


def drawn_examples(prepared: Prepared, ids: ClientIds, drawn: list[Tensor]) -> DrawnExamples:
    """Takes the drawn examples together.

    Args:
        prepared, ids: of the run, and the clients that draw.
        drawn: by client, (n_k,), places in its examples.
    """
    pairs = []
    persons = []
    before = 0
    for k, places in zip(ids, drawn, strict=True):
        x, y = prepared.data[k]
        pairs.append((take(x, places), y[places]))
        if prepared.config.by_person:
            # Person 0 of one client is another one than person 0 of the next.
            persons.append(prepared.persons[k][places] + before)
            before += prepared.config.unit_counts[k]
    x, y = concatenate(pairs)
    counts = torch.tensor([len(places) for places in drawn])
    owner = torch.arange(len(ids)).repeat_interleave(counts)
    return DrawnExamples(x, y, owner, torch.cat(persons) if persons else owner)


# ---- gradients of examples and of persons


class MachineFailure(RuntimeError):
    """Raised where a pass fails for want of memory, or otherwise because of the machine.

    The ledger counts the round, whose release nobody has seen. A run with a folder goes on there.
    """


def gradients_or_nan(
    gradients: Callable[[Tensor], TensorDict],
    index: Int[Tensor, " n"],
    sums: TensorDict,
    check_machine: Callable[[], None],
) -> TensorDict:
    """Computes these examples' gradients; NaN, zero to the clip, for an example that raises.

    Whether a run goes on must not hang on one example: no noise hides it. Where a pass over several
    raises each half passes alone, down to the example, so that the others are what they would be
    without it.

    Args:
        gradients: of the examples at some places.
        index: of the examples.
        sums: tensors of the shapes of a sum, for the keys to fill.
        check_machine: raises `MachineFailure` where no example would pass now.

    Raises: what no example decides: ``NotPerExample``, `MachineFailure`.
    Guarantees: test_attack_evaluation.py::test_no_example_stops_a_run,
        ::test_a_run_stops_where_memory_ends_and_goes_on_from_its_ledger.
    """
    try:
        return gradients(index)
    except NotPerExample:
        raise
    except Exception:
        # Of any class: out of memory is a RuntimeError on a CPU, and an example may raise one too.
        # What follows stands outside, since the error holds on to the memory of the pass.
        pass
    if len(index) > 1:
        # By halves: of n examples one that raises costs 2 log n passes, not n, and time tells less.
        halves = [
            gradients_or_nan(gradients, half, sums, check_machine) for half in index.tensor_split(2)
        ]
        return {key: torch.cat([half[key] for half in halves]) for key in sums}
    check_machine()
    # Between the two passes the machine may have recovered: only an example that raises on a
    # machine that works is counted as zero.
    try:
        return gradients(index)
    except NotPerExample:
        raise
    except Exception:
        return {key: torch.full_like(total[:1], torch.nan) for key, total in sums.items()}


def check_machine(prepared: Prepared) -> None:
    """Raises `MachineFailure` unless an example that passed before the run passes now.

    The pass hangs on no client's example and on no trained tensor: whether the run stops here tells
    nothing of them.

    Args: prepared: of the run.
    """
    config = prepared.config
    assert prepared.made_up is not None  # by `prepare_run` of every private run
    try:
        start = prepared.adapted.initial
        gradients_at(config.task, prepared.adapted, start, tuple(start), prepared.made_up)
    except Exception as error:  # whatever a library raises in place of a MemoryError
        # The words of an error may hold a value, here of a test example.
        words = f": {error_text(error, 160)}" if config.task.public_test else ""
        name = f"{type(error).__name__}{words}"
        reason = f"an example that passed before the run no longer does ({name})"
        advice = "a machine with enough memory for one example at a time"
        raise MachineFailure(
            f"{reason}: expected {advice}; the ledger counts this round"
        ) from error


def gradient_rows(
    prepared: Prepared,
    clients: ClientBatch,
    sums: TensorDict,
    drawn: list[Tensor],
    basis: Basis | None = None,
) -> OwnedRows:
    """Yields gradients of the drawn examples, or the means over persons, in chunks.

    Args:
        prepared, clients: of the run, and who draws.
        sums: of the keys to differentiate, key -> (clients, ...); their values are not read.
        drawn: by client, (n_k,), places in its examples.
        basis: directions along which differences of the loss stand for the gradient.
    """
    if not any(len(places) for places in drawn):
        return
    examples = drawn_examples(prepared, clients.ids, drawn)
    config = prepared.config

    def gradients(places: Int[Tensor, " m"]) -> TensorDict:
        model = config.task, prepared.adapted, clients.params
        data = (take(examples.x, places), examples.y[places]), examples.owner[places]
        measured = config.method.differences
        if basis is None or measured is None:
            return per_example_gradients(*model, tuple(sums), *data)
        return loss_differences(*model, basis, measured.step, *data)

    guard = partial(check_machine, prepared)
    if config.by_person:
        yield from _person_rows(prepared, gradients, examples, sums, guard)
        return
    device = prepared.adapted.device
    everything = torch.arange(len(examples.y))
    for places in split_batch(examples.x, everything, device, prepared.chunk):
        # Without privacy an error is the user's to see.
        private = config.privacy is not None
        rows = gradients_or_nan(gradients, places, sums, guard) if private else gradients(places)
        yield rows, examples.owner[places].to(device, non_blocking=True)


def _person_rows(
    prepared: Prepared,
    gradients: Callable[[Tensor], TensorDict],
    examples: DrawnExamples,
    sums: TensorDict,
    guard: Callable[[], None],
) -> OwnedRows:
    """Yields the mean gradient of each drawn person's examples."""
    device = prepared.adapted.device
    _, number, sizes = examples.person.unique(return_inverse=True, return_counts=True)
    client = torch.zeros_like(sizes).index_copy_(0, number, examples.owner)
    for persons in torch.arange(len(sizes)).split(prepared.chunk or len(sizes)):
        places = ((number >= persons[0]) & (number <= persons[-1])).nonzero().squeeze(1)
        total = {key: x.new_zeros(len(persons), *x.shape[1:]) for key, x in sums.items()}
        # A person's examples may go through the model in several parts: they meet here, before the
        # clip, which sees one vector for each person.
        for part in split_batch(examples.x, places, device, prepared.chunk):
            rows = gradients_or_nan(gradients, places[part], sums, guard)
            position = (number[places[part]] - persons[0]).to(device)
            for key, row in rows.items():
                total[key].index_add_(0, position, row)
        counts = sizes[persons].to(device)
        mean = {key: x / _per_row(counts, x) for key, x in total.items()}
        yield mean, client[persons].to(device)


def _per_row(values: Tensor, like: Tensor) -> Tensor:
    """One number for each row, in a shape that divides the rows of a tensor."""
    return values.to(like).view(-1, *[1] * (like.dim() - 1))


# ---- preconditioners


def preconditioners(
    method: Method,
    moving: Keys,
    params: Tensors,
    certified: bool = False,
    of_change: bool = False,
) -> Metric:
    """Makes each moving factor's preconditioner; empty for a method without one.

    Args:
        method, moving: whose rule, and the tensors that train.
        params: key -> (clients, ...), or (1, ...) where all hold the same.
        certified: whether the ledger states an epsilon.
        of_change: what is released is a change of the factors, and not a gradient: a rule may have
            other maps of it.

    Raises: ``ValueError`` if ``certified`` and the epsilon would not hold, because noise and signal
        pass different maps.
    """
    maps: dict[ParamKey, Preconditioner] = {}
    rule = method.precondition
    if rule is None:
        return maps
    find_maps = getattr(rule, "of_change", rule) if of_change else rule
    for key in moving:
        if key.name not in ("A", "B"):
            continue
        # In float64: the rule inverts this matrix, which enlarges the rounding in it.
        peer = params[ParamKey("B" if key.name == "A" else "A", key.layer)].double()
        gram = peer.mT @ peer if key.name == "A" else peer @ peer.mT
        gram = finite(gram.to(params[key].dtype))
        found = privatizer.maps_of(find_maps, gram, key)
        if key.name == "B" and getattr(rule, "complement", False):
            found = found._replace(complement=orthonormal_columns(params[key]))
        maps[key] = found
    # A rule may differ from what it returned when the run opened: every answer is checked.
    sound = not certified or all(found.noise_map is None for found in maps.values())
    expected = "a rule that treats every peer alike: one map for signal and noise"
    check(sound, "precondition", method.precondition, expected)
    return maps


# ---- directions


@lru_cache(maxsize=16)
def _drawn_basis(
    rule: Differences,
    streams: Streams,
    where: tuple[int, int],
    shapes: tuple[tuple[ParamKey, torch.Size], ...],
) -> Basis:
    """The directions of a step, which are drawn once for all clients."""
    return step_basis(rule, dict(shapes), streams, where)


def directions(
    config: Config, values: Tensors, t: int, s: int | None = None, keys: Keys | None = None
) -> Basis | None:
    """The public directions of a release; ``None`` where a row releases tensors as they are.

    Args:
        config: of the run.
        values: the server's tensors or the clients', (1, ...) or (clients, ...).
        t, s: round and step, from 0; without a step those of all steps together.
        keys: of an update, the tensors that are sent.
    """
    rule = config.method.differences
    if rule is None:
        return None
    moving = round_keys(config, values, t)

    def drawn(step: int) -> Basis:
        shapes = tuple((key, values[key].shape[1:]) for key in moving.steps[step])
        return _drawn_basis(rule, config.streams, (t, step), shapes)

    if s is not None:
        basis = drawn(s)
    else:
        shapes = {key: values[key].shape[1:] for key in keys or moving.moved}
        basis = joint_basis(map(drawn, range(len(moving.steps))), shapes)
    return basis._replace(rows=basis.rows.to(values[moving.moved[0]]))


# ---- a step


def round_keys(config: Config, values: Tensors, t: int) -> RoundKeys:
    """Which tensors move, are sent and stay in a round, by the schedule and the modes.

    Args:
        config: of the run.
        values: the server's tensors, or the clients'.
        t: the round, from 0.
    """
    modes = tuple(int(x) for key, x in values.items() if key.name == "mode")
    names = tuple(values)
    method = config.method
    words = config.words(t)
    moved = moving_keys(names, method.factors_in_round(t, len(words)), modes)
    uploaded = tuple(key for key in moved if method.is_uploaded(key))
    kept = tuple(key for key in moved if key not in uploaded)
    of_word = {word: moving_keys(names, word, modes) for word in words}
    return RoundKeys(tuple(of_word[word] for word in words), moved, uploaded, kept)


@full_precision()  # the sensitivity has no allowance for the rounding of TF32
def local_step(prepared: Prepared, clients: ClientBatch, t: int, s: int) -> None:
    """Takes one step of every client of the batch, in place.

    Args:
        prepared: of the run.
        clients: the batch; its tensors, noise and optimiser's memory move.
        t, s: round and step, from 0.

    Guarantees: frozen factors get neither gradient nor noise; an empty batch still adds noise; the
        chunk size changes nothing beyond rounding (tests/lab/methods/test_contract.py,
        tests/lab/federated/test_local_training.py); no value is read from a GPU
        (tests/lab/federated/test_compute.py::test_a_local_step_reads_nothing_from_the_device).
    """
    config = prepared.config
    moving = round_keys(config, clients.params, t).steps[s]
    maps = preconditioners(config.method, moving, clients.params, prepared.is_certified)
    basis = directions(config, clients.params, t, s)
    drawn = poisson_batch(prepared, t, s, clients.ids)
    like = {key: clients.params[key] for key in moving}
    zeros = {key: x.new_zeros(len(clients.ids), *x.shape[1:]) for key, x in like.items()}
    if basis is not None:
        zeros = basis.zeros(len(clients.ids))
    where, std = config.release_noise(clients.ids, t, s)
    release = prepared.step_privatizer.update(
        rows=gradient_rows(prepared, clients, zeros, drawn, basis),
        zeros=zeros,
        std=std,
        streams=config.streams,
        where=where,
        metric=maps,
    )
    clients.clip_counts = clients.clip_counts + release.counts
    # What follows is a function of released values and costs no privacy.
    # The divisor is the expected batch: the drawn batch's size is private.
    expected = config.expected_batch[list(clients.ids)]
    rule = config.method.filter if config.releases_steps else identity
    gradients = released_means(release.value, expected, rule, basis)
    # Noise passes the same map, so that it stays known.
    noises = released_means(release.noise, expected, rule, basis)
    _descend(config, clients, gradients, noises, noised=any(std))


def released_means(
    sums: TensorDict,
    divisors: Tensor,
    rule: Callable[..., Tensor],
    basis: Basis | None = None,
) -> TensorDict:
    """Turns released sums into means, and filters those of the factors.

    Args:
        sums: key -> (owners, ...), noised or the noise alone.
        divisors: (owners,) or (1,).
        rule: the filter of the factors.
        basis: the directions in which the sums are, if in any.
    """
    sums = sums if basis is None else basis.tensors(sums)
    means = {key: x / _per_row(divisors, x) for key, x in sums.items()}
    # After the noise a filter is post-processing; before it would change the sensitivity.
    return filter_factors(rule, means)


def _descend(
    config: Config,
    clients: ClientBatch,
    gradients: TensorDict,
    noises: TensorDict,
    noised: bool,
) -> None:
    """Takes a step of the clients' optimiser, and moves the noise in their tensors alike."""
    rule = config.plan.optimizer
    rates = {key: config.plan.rate(key.name) for key in gradients}
    steps, clients.optimizer = rule.update(gradients, clients.optimizer, clients.params, rates)
    clients.params.update(apply_updates({key: clients.params[key] for key in steps}, steps))
    if not rule.nonlinear:  # then the step moves noise as it moves gradients, exactly
        old = {key: clients.noise.get(key, x.new_zeros(1)) for key, x in noises.items()}
        steps, clients.noise_optimizer = rule.update(noises, clients.noise_optimizer, old, rates)
        clients.noise.update(apply_updates(old, steps))
    elif noised:
        # Unknown: NaN, rather than a number that looks measured.
        for key, x in noises.items():
            clients.noise[key] = x.new_full((1, *x.shape[1:]), torch.nan)
