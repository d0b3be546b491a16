"""Checks a set-up against what its ledger claims, on the user's own task, method, privacy and plan.

Five trials: with a clip norm of zero nothing depends on the data; leaving out an example or a
client moves a release by at most the clip norm; the noise has the law and the independence that the
ledger claims; so has the sampling; the ledger holds every release that was made.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number
from fedlora_lab.audit import instruments
from fedlora_lab.audit.instruments import LEFT_OUT, Recorder, Rows, mark_examples, ordinary_marks
from fedlora_lab.federated import local_training, uploads
from fedlora_lab.federated.records import Round, Tick
from fedlora_lab.methods.filters import identity
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan, lora_of
from fedlora_lab.methods.published import get
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.privacy.mechanism import (
    in_noise_units,
    map_rank_axis,
    shares_bound,
    uncertified_reason,
)
from fedlora_lab.tasks.task import Task

CLIENTS, EXAMPLES, OF_A_PERSON = 3, 6, 2
MARKED_LOSS_WEIGHT = 1_000_000
"""Weight of a marked example's loss: its gradient exceeds every clip."""
SLACK, BATCH_DRAWS = 1e-3, 4
ROUNDING = 1e-5
"""In units of C: another batch is multiplied in other blocks, and rounded otherwise (float32)."""
NOISE_DRAWS, BATCHES = 4, 300


class CheckResult(NamedTuple):
    """One result: a value that must not exceed its limit; without one, a p-value."""

    trial: str
    what: str
    value: float
    limit: float | None = None


# ---- p-values of what was seen under what the ledger claims


def normality_p_value(values: np.ndarray, rng: np.random.Generator) -> float:
    """Tests a sample against N(0, 1) (Kolmogorov-Smirnov), at most 20,000 values of it."""
    values = values.ravel()
    values = values if len(values) <= 20_000 else rng.choice(values, 20_000, replace=False)
    return float(stats.kstest(values, "norm").pvalue) if np.isfinite(values).all() else 0.0


def variance_p_value(values: np.ndarray) -> float:
    """Tests that independent normal numbers have variance 1 (chi-square, two-sided)."""
    total = float(np.square(values).sum())
    return _two_sided(stats.chi2.cdf(total, values.size), stats.chi2.sf(total, values.size))


def correlation_p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Tests for no correlation; 0 where a sample is not finite or both are constant and equal."""
    one, other = one.ravel(), other.ravel()
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return 0.0
    if len(one) < 3 or one.std() == 0 or other.std() == 0:
        return 1.0 if len(one) < 3 or not (np.array_equal(one, other) and one.any()) else 0.0
    r = float(np.corrcoef(one, other)[0, 1])
    return float(2 * stats.norm.sf(abs(r) * np.sqrt(len(one))))


def _paired_correlation(pairs: "list[tuple[Any, Any]]") -> float:
    """`correlation_p_value` over pairs of arrays, of each as many columns as the narrower one."""
    cut = [(a[..., : b.shape[-1]], b[..., : a.shape[-1]]) for a, b in pairs]
    return correlation_p_value(*(np.concatenate([np.ravel(x) for x in part]) for part in zip(*cut)))


def binomial_p_value(
    counts: np.ndarray, trials: int, rate: float, rng: np.random.Generator
) -> float:
    """Tests against Binomial(trials, rate) (Kolmogorov-Smirnov), randomised to be exact.

    Args: counts: (n,), each of so many trials at this rate; rng: for the places in the atoms.
    """
    low, atom = stats.binom.cdf(counts - 1, trials, rate), stats.binom.pmf(counts, trials, rate)
    return float(stats.kstest(low + rng.random(len(counts)) * atom, "uniform").pvalue)


def total_p_value(count: int, trials: int, rate: float) -> float:
    """Tests one count, two-sided. Args: count, trials, rate: of a binomial law, rate in (0, 1)."""
    return _two_sided(stats.binom.cdf(count, trials, rate), stats.binom.sf(count - 1, trials, rate))


def _two_sided(below: Any, above: Any) -> float:
    chance = 2 * float(min(below, above))
    return 0.0 if np.isnan(chance) else min(1.0, chance)


# ---- the user's set-up cut down to a few examples at a random state, tried again and again


def _few_examples(task: Task) -> Task:
    """Keeps the first three clients with six examples each, repeated where there are fewer."""
    clients = [task.clients[k % len(task.clients)] for k in range(CLIENTS)]
    few = tuple(
        instruments.select_examples(pair, torch.arange(EXAMPLES) % len(pair[1])) for pair in clients
    )
    test = instruments.select_examples(task.test, torch.arange(4) % len(task.test[1]))
    persons = None
    if task.persons is not None:
        of_all = torch.arange(CLIENTS * EXAMPLES) // OF_A_PERSON
        persons = tuple(of_all.split(EXAMPLES))
    changes: Any = {"test": test, "validation": None, "persons": persons}
    return replace(task, clients=few, client_names=(), **changes)


def _few_clients(privacy: Privacy) -> Privacy:
    """Adapts the privacy plan to as many clients as `_few_examples` leaves."""
    sigma = privacy.noise_multiplier
    if isinstance(sigma, tuple):
        sigma = tuple(sigma[k % len(sigma)] for k in range(CLIENTS))
    free: Any = {"sample_rate": None, "honest": None, "colluding": 0, "person_examples": None}
    return privacy.replace(noise_multiplier=sigma, **free)


class _Testbed:
    """A run of the small task at a random state of what is trained.
    ``spread`` is the standard deviation of what is added. Every client takes part, and learning
    rates are 1.
    """

    def __init__(self, setup: Any, *, keep_filter: bool = False, spread: float = 0.1) -> None:
        task, row, privacy, plan, lora, seed, bug = setup
        self.task, self.privacy, self.seed = _few_examples(task), _few_clients(privacy), seed
        self.by_step, size = privacy.by_step, OF_A_PERSON if privacy.unit == "person" else 1
        self.units = torch.arange(EXAMPLES).split(size)  # a client's examples by what is protected
        row = row if keep_filter else row.replace(filter=identity)
        self.steps = range(min(plan.local_steps, 2))
        plan = plan.replace(batch=None, lr=1.0, lr_decay=1.0, local_steps=len(self.steps))
        plan = plan.replace(participation=1.0, dropout=0.0, weights="uniform", server_lr=1.0)
        plan = plan.replace(optimizer="sgd", server_optimizer="sgd")
        marked, streams = mark_examples(self.task, ordinary_marks(self.task)), Streams(seed)
        options: Any = {"lora": lora, "seed": seed, "bug": bug}
        self.run = run = Recorder.open(marked, row, self.privacy, plan, **options)
        server, shapes = run.state.server, run.context.adapted.shapes
        moved = [(key, "bench", i) for i, key in enumerate(shapes)]
        moved += [(key, "bench core", i) for i, key in enumerate(server.tensors) if key.side == "R"]
        values = {}
        for key, name, i in moved:
            x = server.tensors[key]
            values[key] = x + (spread * streams.normal(x.shape, name, i)).to(x)
        run.state.server = server.replace_tensors(values)

    def run_before(
        self,
        t: int,
        *,
        task: Task | None = None,
        marks: "list[Tensor] | None" = None,
        batch: int | None = None,
        draw: int = 0,
        rounds: int = 1,
        absent: frozenset[int] = frozenset(),
        **changes: Any,
    ) -> Recorder:
        """Returns a run that stands before round t, with what is given changed.

        Args:
            task, marks: other data of the same sizes, and marks on the examples.
            batch: expected size of a batch; ``None``: all examples.
            draw: another number draws other batches and other noise.
            rounds: how many may follow.
            absent: clients that do not take part.
            changes: noise_multiplier, clip_norm.
        """
        base = self.run
        assert base.spec.privacy is not None
        honest: Any = {"honest": 1} if absent and self.privacy.server_sees_only_sum else {}
        privacy = replace(base.spec.privacy, sample_rate=None, **changes, **honest)
        task = self.task if task is None else task
        task = mark_examples(task, ordinary_marks(task) if marks is None else marks)
        plan = base.context.plan.replace(rounds=t + rounds, batch=batch)
        work = {"task": task, "plan": plan}
        context = replace(base.context, privacy=privacy, data=task.clients, **work)
        context = replace(context, streams=Streams(self.seed * 1000 + draw))
        if self.by_step:  # of the client unit no step is released
            sigma = changes.get("noise_multiplier")
            level = context.noise_multiplier if sigma is None else (sigma,) * CLIENTS
            context = replace(context, clip_norm=privacy.clip_norm, noise_multiplier=level)
        spec = replace(base.spec, privacy=privacy.resolve(task, plan), **work)
        run = Recorder.from_spec(spec, context)
        run.state.round, run.state.server = t, replace(base.state.server, round=t)
        run.state.changed = [{} for _ in range(t)]
        run.resumed, run.absent = True, absent
        return run

    def release(self, run: Recorder, s: int = 0) -> tuple[Rows, Rows]:
        """Returns what the next round, or step s of it, releases, key -> (rows, ...); its start."""
        return _release_of_step(run, s) if self.by_step else _release_of_round(run)


def _release_of_step(run: Recorder, s: int) -> tuple[Rows, Rows]:
    """Returns each client's sum over its examples in step s, and where it stood."""
    context = run.context
    clients = run.start_clients((*range(CLIENTS),), uploads.broadcast(context, run.state.server))
    start, released = dict(clients.params), {}
    local_training.local_step(context, clients, run.state.round, s)
    rates = zip(context.units, context.sample_rate, strict=True)
    expected = torch.tensor([n * q for n, q in rates])
    for key, after in clients.params.items():
        if after is not start[key]:
            change = (start[key] - after).expand(CLIENTS, *after.shape[1:])
            released[key] = change * expected.to(change).view(-1, *[1] * (change.dim() - 1))
    return released, start


def _release_of_round(run: Recorder) -> tuple[Rows, Rows]:
    """Returns what the server receives, a sum where it sees a sum, and what it sent."""
    next(event for event in run.events() if isinstance(event, Round))
    assert run.outcome is not None
    received, sent = run.outcome.received, run.outcome.sent
    start = {key: x[None] for key, x in sent.tensors.items()}
    reference, scale = run.context.method.clip_reference, 1 if received.per_client else CLIENTS
    rows = received.uploads.items()
    return {key: scale * (x - reference(start[key])) for key, x in rows}, start


def _in_noise_units(run: Recorder, change: Rows, start: Rows, own: bool = False) -> Rows:
    """Converts a release to where its noise is white; ``own``: to those of its clip."""
    maps = local_training.preconditioners(run.context.method, tuple(change), start)
    if own:
        return {
            k: map_rank_axis(k, maps[k].before, x) if k in maps else x for k, x in change.items()
        }
    return {k: in_noise_units(k, maps[k], x) if k in maps else x for k, x in change.items()}


def _in_clip_units(run: Recorder, change: Rows, start: Rows) -> Tensor:
    """Converts a release to where its clip must hold, (rows, numbers).
    That is in units of the noise, unless the ledger knows that the noise does not cover the clip.
    In double precision; NaN stays.
    """
    warned = run.ledger is not None and run.ledger.uncertified is not None
    row = run.context.method
    own = warned and uncertified_reason(row.precondition, row.clip_groups) is not None
    parts = [x.flatten(1) for x in _in_noise_units(run, change, start, own).values()]
    rows = torch.cat(parts, 1).double() if parts else torch.zeros(CLIENTS, 0).double()
    groups = {row.clip_groups(key) for key in change}
    # Where each of p groups is clipped to C they have sqrt(p) C together, and the ledger says so.
    return rows / len(groups) ** 0.5 if own and not shares_bound(row.clip_groups) else rows


def _nan_to_inf(value: "float | Tensor") -> float:
    """Replaces NaN by infinity: no limit is kept by it."""
    return math.inf if math.isnan(value) else float(value)


# ---- the trials


def _change_inputs(task: Task, change: Callable[[Tensor], Tensor], clients: int) -> Task:
    """Returns the task with the inputs of the first clients changed."""

    def changed(x: Any) -> Any:
        return change(x) if isinstance(x, Tensor) else {k: change(v) for k, v in x.items()}

    first = [(changed(x), y) for x, y in task.clients[:clients]]
    return replace(task, clients=(*first, *task.clients[clients:]))


def _check_invariance(bed: _Testbed) -> list[CheckResult]:
    """Checks that with C = 0 rounds on other data, some not a number, release the same bits."""

    def other(x: Tensor) -> Tensor:
        x = x.flip(0)
        if x.is_floating_point():
            x = 3 * x + 1
            x[0], x[1] = math.nan, math.inf
        return x

    changed = _change_inputs(bed.task, other, CLIENTS)
    changed = replace(changed, clients=tuple((x, y.roll(1, 0)) for x, y in changed.clients))
    both, same = [], True
    for task in (bed.task, changed):
        run, seen = bed.run_before(0, task=task, clip_norm=0.0, rounds=2, batch=EXAMPLES // 2), []
        for event in run.events():
            if isinstance(event, Round) and run.outcome is not None and run.everyone is not None:
                sent = list(run.outcome.received.uploads.values())
                # What is not a number in both would look alike, whatever it was made of.
                same = same and all(bool(x.isfinite().all()) for x in sent)
                seen += [*run.state.server.tensors.values(), *sent]
                seen += run.everyone.params.values() if bed.by_step else ()
        both.append(seen)
    same = same and len(both[0]) == len(both[1])
    same = same and all(torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in zip(*both))
    what = "tensors that depend on the data"
    return [CheckResult("no clip norm, no trace", what, float(not same), 0.0)]


def _check_sensitivity(bed: _Testbed) -> list[CheckResult]:
    """Checks that one example, person or client moves a sum by at most C.
    The sum is also that of its parts; some inputs are huge, infinite or not a number.
    """
    huge = 1 if len(bed.units) == EXAMPLES else EXAMPLES - 1  # none of those of the loud person

    def outliers(x: Tensor) -> Tensor:
        if x.is_floating_point():
            x = x.clone()
            x[huge], x[2], x[3] = x[huge] * 1e30, math.nan, math.inf
        return x

    plain = isinstance(bed.task.clients[0][0], Tensor)
    task = _change_inputs(bed.task, outliers, 1) if plain else bed.task
    if bed.by_step:  # one (round, step) for each thing that the schedule moves
        tried = [(t, s) for t in range(4) for s in bed.steps]
        moved = {bed.run.context.method.sides_at_step(*at): at for at in reversed(tried)}
        places = {f"round {t + 1}, step {s + 1}": (t, s) for t, s in reversed(moved.values())}
    else:
        places = {f"round {t + 1}": (t, 0) for t in (0, 1)}
    check_one = _step_sensitivity if bed.by_step else _client_sensitivity
    return [
        CheckResult("sensitivity", f"{where}: {what}", value, limit)
        for where, at in places.items()
        for what, value, limit in check_one(bed, task, *at)
    ]


Limited = tuple[str, float, float]


def _bounded(one: str, shifts: "list[Tensor]", clip: float) -> list[Limited]:
    largest = max(_nan_to_inf(shift) for shift in shifts)
    # A clip that leaves nothing would pass every other limit.
    loudest = (f"0.1 / loudest {one}", 0.1 * clip / max(largest, 1e-30), 1.0)
    return [(f"one {one}, in units of C", largest / clip, 1 + SLACK), loudest]


def _step_sensitivity(bed: _Testbed, task: Task, t: int, s: int) -> list[Limited]:
    clip, loud, half = bed.run.context.clip_norm, ordinary_marks(task), len(bed.units) // 2
    one = bed.privacy.unit
    loud[0][0] = MARKED_LOSS_WEIGHT

    def release(marks: list[Tensor], **options: Any) -> tuple[Tensor, Recorder]:
        run = bed.run_before(t, task=task, marks=marks, noise_multiplier=0.0, **options)
        return _in_clip_units(run, *bed.release(run, s)), run

    (whole, _), parts = release(loud), []
    for unit in bed.units:
        marks = [mark.clone() for mark in loud]
        marks[0][unit] = LEFT_OUT
        parts.append(whole - release(marks)[0])
    others = _nan_to_inf(torch.stack(parts)[:, 1:].abs().max())
    found = _bounded(one, [part[0].norm() for part in parts], clip)
    found.append((f"one client's {one} moves another client", others / clip, ROUNDING))
    for draw in range(BATCH_DRAWS):
        sampled, run = release(loud, batch=half, draw=draw)
        drawn = set(local_training.poisson_batch(run.context, t, s, (0,))[0].tolist())
        inside = [part[0] for part, unit in zip(parts, bed.units) if int(unit[0]) in drawn]
        rest = sampled[0] - sum(inside, torch.zeros_like(sampled[0]))
        gap = _nan_to_inf(rest.norm()) / clip
        found.append((f"batch less its {one}s, in units of C", gap, SLACK * 6))
    return found


def _client_sensitivity(bed: _Testbed, task: Task, t: int, s: int) -> list[Limited]:
    clip, marks = bed.privacy.clip_norm, ordinary_marks(task)
    marks[0][:], marks[1][:] = 10_000, 1_000

    def release(*absent: int) -> Tensor:
        options: Any = {"marks": marks, "noise_multiplier": 0.0, "absent": frozenset(absent)}
        run = bed.run_before(t, task=task, **options)
        return _in_clip_units(run, *bed.release(run))

    whole = release()
    if not whole.numel():
        return []
    if bed.privacy.trust == "local":
        return _bounded("client", list(whole.norm(dim=1)), clip)
    parts = torch.stack([whole[0] - release(k)[0] for k in range(CLIENTS)])
    gap = _nan_to_inf((parts.sum(0) - whole[0]).norm()) / clip
    total = ("sum less its clients, in units of C", gap, SLACK * 3)
    return [total, *_bounded("client", list(parts.norm(dim=1)), clip)]


def _noise_of(bed: _Testbed, draw: int, t: int, s: int) -> tuple[Rows, int]:
    """Returns a release's noise in units of the claim, and how many numbers lack noise."""
    small = len(bed.units) // 2 if draw % 2 else 1  # small batches are empty now and then
    batch = small if bed.by_step else None

    def release(**changes: Any) -> tuple[Recorder, Rows]:
        run = bed.run_before(t, batch=batch, draw=draw, **changes)
        if bed.by_step:
            run.charge_ledger(t, tuple(range(CLIENTS)))
        white = _in_noise_units(run, *bed.release(run, s))
        return run, {key: x.flatten(1).double() for key, x in white.items()}

    (run, noisy), (_, signals) = release(), release(noise_multiplier=0.0)
    unit = torch.zeros(0)
    if run.ledger is not None and run.ledger.releases:
        level = torch.tensor(run.ledger.releases[-1].noise_multiplier, dtype=torch.float64)
        unit = level.view(-1, 1) * bed.privacy.clip_norm
    bare, noise_of = 0, {}
    for key, signal in signals.items():
        noise = noisy[key] - signal
        noised = (noise != 0).any(0)
        bare += int(((signal != 0).any(0) & ~noised).sum())
        noise_of[key] = noise[:, noised] / (unit if len(unit) in (1, len(noise)) else torch.nan)
    return noise_of, bare


def _check_noise(bed: _Testbed, rng: np.random.Generator) -> list[CheckResult]:
    """Checks that noise is normal, independent, as wide as claimed, and on every number."""
    steps = bed.steps if bed.by_step else (0,)
    places = [(draw, t, s) for draw in range(NOISE_DRAWS) for t in (0, 1) for s in steps]
    trials = {at: _noise_of(bed, *at) for at in places}
    seen, bare = {at: x for at, (x, _) in trials.items()}, sum(n for _, n in trials.values())
    parts: dict[Any, list[np.ndarray]] = {}
    for rows in seen.values():
        for key, x in rows.items():
            parts.setdefault(key, []).append(x.numpy().ravel())
    values = {key: x for key, some in parts.items() if len(x := np.concatenate(some))}
    found = [("numbers that carry data and no noise", float(bare), 0.0)]
    found += [(f"spread of {key}", variance_p_value(x), None) for key, x in values.items()]
    for side in dict.fromkeys(key.side for key in values):
        whole = np.concatenate([x for key, x in values.items() if key.side == side])
        found.append((f"normal, side {side}", normality_p_value(whole, rng), None))
    pairs: dict[str, Any] = {name: [] for name in ("clients", "steps", "rounds", "layers")}
    for (d, t, s), rows in seen.items():
        for key, x in rows.items():
            pairs["clients"] += combinations(x, 2)
            for name, other in (("steps", (d, t, s + 1)), ("rounds", (d, t + 1, s))):
                if key in seen.get(other, {}):
                    pairs[name].append((x, seen[other][key]))
        pairs["layers"] += pairwise(rows.values())
    for name, some in pairs.items():
        if some:
            found.append((f"independent between {name}", _paired_correlation(some), None))
    return [CheckResult("noise law", *one) for one in found]


def _draws(run: Recorder) -> dict[str, tuple[np.ndarray, float]]:
    """Returns who is drawn, name -> (draws, numbers), and at which rate by the ledger."""
    privacy, plan, sizes = run.spec.privacy, run.context.plan, run.context.units
    assert privacy is not None
    if privacy.unit == "client":
        drawn = np.zeros((BATCHES, len(sizes)), bool)
        for t in range(BATCHES):
            drawn[t, list(run.participants(t))] = True
        return {"clients": (drawn, float(plan.participation))}
    clients = tuple(range(min(CLIENTS, len(sizes))))
    claim = privacy.entry(clients)["sample_rate"]
    rates = list(claim) if isinstance(claim, tuple) else [claim] * len(clients)
    found = {f"client {k}": (np.zeros((BATCHES, sizes[k]), bool), rates[k]) for k in clients}
    for i in range(BATCHES):
        batches = local_training.poisson_batch(run.context, i // 2, i % 2, clients)
        for k, (drawn, _), index in zip(clients, found.values(), batches, strict=True):
            drawn[
                i, (run.context.persons[k][index] if run.context.by_person else index).numpy()
            ] = True
    return found


def _check_sampling(run: Recorder, rng: np.random.Generator) -> list[CheckResult]:
    """Checks that each example (person, client) is drawn alone, at the rate the ledger claims."""
    found: list[Any] = []
    draws = _draws(run)
    for name, (here, q) in draws.items():
        if q == 1:
            found.append((f"{name}: left out although q = 1", float((~here).sum()), 0.0))
            continue
        n, each = here.shape[1], (here.sum(0) - BATCHES * q) / (BATCHES * q * (1 - q)) ** 0.5
        p_values = {
            "how many in all": total_p_value(int(here.sum()), here.size, q),
            "sizes of batches": binomial_p_value(here.sum(1), n, q, rng),
            "everyone alike": variance_p_value(each),
            "steps apart": correlation_p_value(here[:-1] * 1.0, here[1:] * 1.0),
        }
        found += [(f"{name}: {what}", value, None) for what, value in p_values.items()]
    random = [here * 1.0 for here, q in draws.values() if q < 1]
    if pairs := list(combinations(random, 2)):
        found.append(("clients apart", _paired_correlation(pairs), None))
    return [CheckResult("sampling law", *one) for one in found]


def _check_ledger(run: Recorder) -> list[CheckResult]:
    """Checks that the ledger holds every release before it is made, and the epsilon of all."""
    privacy = run.spec.privacy
    assert privacy is not None
    by_step = privacy.by_step
    made: dict[int | None, int] = {}
    late, ticks, rounds = 0, 0, 0
    for event in run.events():
        if isinstance(event, Tick):
            ticks += event.step > 0
            late += run.ledger is None or len(run.ledger.releases) < event.round
        elif event.index and run.everyone is not None:
            for k in run.everyone.ids if by_step else (None,):
                made[k] = made.get(k, 0) + (ticks if by_step else 1)
            ticks, rounds = 0, rounds + 1
    check(rounds > 0 and run.ledger is not None, "rounds", rounds, "at least one")
    assert run.ledger is not None
    missing, spent = 0, 0.0
    for k, count in made.items():
        missing += abs(sum(steps for *_, steps in run.ledger.history(k)) - count)
        entry = privacy.entry(None if k is None else (k,))
        pair = (entry["noise_multiplier"], entry["sample_rate"])
        sigma, q = (float(v[0] if isinstance(v, tuple) else v) for v in pair)
        if not by_step and privacy.trust != "central":
            q = 1.0  # the server knows who sends
        epsilon = accounting.epsilon(((sigma, q, count),), privacy.delta, privacy.accountant)
        spent = max(spent, _nan_to_inf(epsilon))
    stated = run.ledger.nominal_epsilon()  # an uncertified ledger must have counted as well
    short = 0.0 if math.isinf(stated) else _nan_to_inf(spent - stated)
    slack = 1e-6 * max(1.0, spent) if spent < math.inf else 0.0
    found = [("steps made before they were written down", float(late), 0.0)]
    found += [("releases that it lacks or that were never made", float(missing), 0.0)]
    found += [("epsilon spent and not stated", short, slack)]
    return [CheckResult("ledger", *one) for one in found]


# ---- the whole check


@dataclass(frozen=True)
class SelfCheck:
    """The findings of a self-check.

    Args:
        findings: every result, in the order of the trials.
        significance: chance that a sound set-up fails at all, shared by all p-values.
    """

    method: str
    unit: str
    findings: tuple[CheckResult, ...]
    significance: float

    @property
    def least(self) -> float:
        """A p-value below this one fails (Bonferroni)."""
        return self.significance / max(1, sum(one.limit is None for one in self.findings))

    def passes(self, one: CheckResult) -> bool:
        """Tells whether one result is as it must be."""
        return one.value <= one.limit if one.limit is not None else one.value >= self.least

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The results that are not as they must be."""
        return tuple(one for one in self.findings if not self.passes(one))

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.failed

    def __str__(self) -> str:
        lines = []
        for trial in dict.fromkeys(one.trial for one in self.findings):
            mine = [one for one in self.findings if one.trial == trial]
            bad = [one for one in mine if not self.passes(one)]
            lines.append(f"{'FAILED' if bad else 'ok':<7}{trial}: {len(mine)} results")
            for one in bad:
                words = f"chance {one.value:.1g} under the claim, least {self.least:.1g}"
                if one.limit is not None:
                    words = f"{one.value:.3g}, at most {one.limit:.3g}"
                lines.append(f"       {one.what}: {words}")
        return "\n".join(lines)


def self_check(
    task: Task,
    method: "Method | str",
    privacy: Privacy,
    plan: Plan,
    *,
    lora: Any = None,
    seed: int = 0,
    significance: float = 1e-3,
    bug: "Callable[..., Any] | None" = None,
) -> SelfCheck:
    """Tries the set-up where its promise could break, on a few of its examples at a random state.

    A pass is no proof: it covers what the five trials of this module look at. A set-up without
    noise passes as well where its ledger says so, with an infinite epsilon.

    Args:
        task, method, privacy, plan, lora: as of `fl.run`.
        seed: of the trials.
        significance: chance that a sound set-up fails, in (0, 1].
        bug: clips in the library's place, one of `fl.sharp_edges.BUGS`: to see that it is found.

    Guarantees: every planted bug fails (test_every_planted_bug_is_found,
        test_every_broken_clip_is_found), no row of the table does (test_no_row_fails).

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> privacy, plan = fl.Privacy(noise_multiplier=1.0, delta=1e-5), fl.Plan(rounds=1)
    >>> self_check(task, "fedlora", privacy, plan).ok
    True
    """
    row = get(method)
    check(isinstance(privacy, Privacy), "privacy", privacy, "a Privacy with its noise set")
    check_number("significance", significance, 0, 1, open_low=True)
    # The plans that are tried are not the one that the noise was calibrated for.
    privacy = privacy.replace(target=None)
    rng = Streams(seed).numpy("self-check")
    user = Recorder.open(task, row, privacy, plan, lora=lora, seed=seed, bug=bug)
    findings, lora = [], replace(lora_of(lora), ranks=None)
    if 0 < privacy.clip_norm < math.inf:
        setup = (task, row, privacy, plan, lora, seed, bug)
        findings += _check_invariance(_Testbed(setup, keep_filter=True))
        bed = _Testbed(setup)
        findings += _check_sensitivity(bed)
        if row.precondition is not None:  # what the noise hides depends on the size of the peer
            findings += _check_sensitivity(_Testbed(setup, spread=1.0))
        if np.any(np.asarray(privacy.noise_multiplier or 0.0)):
            findings += _check_noise(bed, rng)
    findings += _check_sampling(user, rng)
    short = plan.replace(rounds=min(max(plan.rounds, 1), 3))
    parts = (_few_examples(task), row, _few_clients(privacy), short)
    findings += _check_ledger(Recorder.open(*parts, lora=lora, seed=seed, bug=bug))
    return SelfCheck(row.slug, privacy.unit, tuple(findings), significance)
