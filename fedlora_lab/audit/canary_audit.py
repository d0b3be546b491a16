"""Audits a run: trains it with canaries, and bounds its epsilon from their traces."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_whole, error_text
from fedlora_lab.audit import bounds, instruments
from fedlora_lab.audit.instruments import LEFT_OUT, Recorder, Rows, encode_marks, select_examples
from fedlora_lab.federated import local_training
from fedlora_lab.federated.records import Round, Tick, predict
from fedlora_lab.federated.run import Diverged
from fedlora_lab.lora import per_example
from fedlora_lab.methods.filters import identity
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan, lora_of
from fedlora_lab.methods.published import get
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.privacy.privatizer import (
    clip_sum,
    injected_bug_reason,
    map_rank_axis,
    precondition_rows,
    row_norms,
)
from fedlora_lab.tasks.task import Examples, Task, concatenate, take

CANARY_LOSS_WEIGHT = 10_000
"""Weight of a canary's loss, or of a crafted change: the clip always leaves a whole C of it."""
INVALID_NOTE = "the release itself is the finding, nothing is proved about epsilon"

# ---- the canaries: which examples, and where they are put


@dataclass(frozen=True)
class Canaries:
    """A task with its canaries inside.

    Args:
        task: targets carry marks; canaries that lost their coin are left out.
        examples: all m canaries (x, y), targets plain.
        owner, included, weights: each canary's client, coin, and weight of its loss.
        directions: key -> (m, ...), what canary clients send, if not what they trained.
    """

    task: Task
    examples: Examples
    owner: Int[Tensor, " m"]
    included: Bool[Tensor, " m"]
    weights: Int[Tensor, " m"]
    directions: Rows | None = None


def affordable_canaries(task: Task, plan: Plan, unit: str) -> int:
    """Returns a number of canaries in [16, 100] that adds about a fifth of the run's gradients.

    Args: task, plan, unit: an example costs one more gradient a round, a client one more a step.
    """
    batch = sum(n if plan.batch is None else min(plan.batch, n) for n in task.sizes)
    return min(100, max(16, int(0.2 * batch * (1 if unit == "client" else plan.local_steps))))


def mislabel(task: Task, count: int, streams: Streams) -> Examples:
    """Gives public examples wrong targets: another class, or the answer to another example.

    Args: task: its validation examples, else its test examples. count: >= 2. streams: of the run.
    """
    check_whole("canaries", count, 2)
    public = task.validation or task.test
    rng, size = streams.numpy("audit canaries"), len(public[1])
    order = np.concatenate([rng.permutation(size) for _ in range(-(-count // size))])
    x, y = select_examples(public, torch.from_numpy(order[:count]))
    classes = int(task.test[1].max()) + 1 if not y.is_floating_point() else 0
    if y.dim() == 1 and classes > 1:
        return x, (y + torch.from_numpy(rng.integers(1, classes, count))) % classes
    return x, y.roll(1, 0)


def insert_canaries(
    task: Task, unit: str, examples: Examples, weights: Int[Tensor, " m"], streams: Streams
) -> Canaries:
    """Deals canaries to the clients in turn, or makes each a client of its own.
    In the person unit each is a person of its own.

    Args:
        task, unit: where they go, and "example", "person" or "client".
        examples, weights: all m canaries (x, y), and the weights of their losses.
        streams: of the run; the coins are drawn from it.

    Guarantees: test_canaries_are_dealt_evenly.
    """
    count, old = len(examples[1]), len(task.clients)
    included = torch.from_numpy(streams.numpy("audit coins").random(count) < 0.5)
    canary_marks = torch.where(included, weights, LEFT_OUT)
    clients, marks = list(task.clients), instruments.ordinary_marks(task)
    if unit == "client":
        owner = old + torch.arange(count)
        clients += [select_examples(examples, torch.tensor([i])) for i in range(count)]
        marks += canary_marks.split(1)
    else:
        owner = torch.arange(count) % old
        for k in range(old):
            mine = (owner == k).nonzero().squeeze(1)
            clients[k] = concatenate([clients[k], select_examples(examples, mine)])
            marks[k] = torch.cat([marks[k], canary_marks[mine]])
    changes: Any = {}
    if task.persons is not None:
        new = int(torch.cat(task.persons).max()) + 1 + torch.arange(count)
        old_ones = dict(enumerate(task.persons))
        changes["persons"] = tuple(
            torch.cat([old_ones.get(k, new[:0]), new[owner == k]]) for k in range(len(clients))
        )
    names = (*task.client_names, *(f"canary {i}" for i in range(len(clients) - old)))
    info: Any = {**task.info, "canaries": count}
    full = replace(task, clients=tuple(clients), client_names=names, info=info, **changes)
    marked = instruments.mark_examples(full, marks)
    return Canaries(marked, examples, owner, included, weights)


def _weights_at_clip_norm(run: Recorder, examples: Examples) -> Int[Tensor, " m"]:
    """Computes weights that carry the update of a one-example client to the clip norm.
    They are judged by the public start, at which the run stands.
    """
    adapted, plan, task = run.context.adapted, run.context.plan, run.context.task
    start = {key: tensor[None] for key, tensor in run.state.server.tensors.items()}
    keys, owner = tuple(adapted.shapes), torch.zeros(len(examples[1]), dtype=torch.int64)
    rows = per_example.per_example_gradients(task, adapted, start, keys, examples, owner)
    norms = row_norms({key: plan.rate(key.side) * plan.local_steps * x for key, x in rows.items()})
    scale = _clip_norm(run) / norms.clamp(min=1e-12)
    return scale.nan_to_num(CANARY_LOSS_WEIGHT).clamp(1, CANARY_LOSS_WEIGHT).ceil().long()


def _clip_norm(run: Recorder) -> float:
    """Returns the clip norm of the run; 1 without privacy."""
    return 1.0 if run.spec.privacy is None else run.spec.privacy.clip_norm


def _replace_training(run: Recorder, canaries: Canaries) -> None:
    """Puts each canary's direction, or no change at all, in the place of what it trained."""
    group, owners = run.group, canaries.owner.tolist()
    if group is None or canaries.directions is None:
        return
    pairs = [(i, owners.index(k)) for i, k in enumerate(group.ids) if k in owners]
    if not pairs:
        return
    place, canary = (torch.tensor(part) for part in zip(*pairs, strict=True))
    loud = CANARY_LOSS_WEIGHT * canaries.included[canary].double()
    for key, value in canaries.directions.items():
        before, after = group.start[key], group.params[key]
        if after is not before:
            begin = before.expand(len(group.ids), *value.shape[1:])
            own = value[canary] * loud.to(value).view(-1, *[1] * (value.dim() - 1))
            group.params[key] = after.expand_as(begin).index_copy(0, place, begin[place] + own)


# ---- what is seen of them: losses under the released model, and traces in a round's releases


def _canary_losses(run: Recorder, record: Round, canaries: Canaries) -> Float[Tensor, " m"]:
    """Computes each canary's loss under the released model, by example with its client's part."""
    (x, y), task, personal = canaries.examples, canaries.task, run.state.personal
    y, server = encode_marks(y), run.state.server.tensors
    if not personal or not run.context.by_step:
        return task.loss(predict(task, record, x), y).detach().double()
    losses = torch.zeros(len(y), dtype=torch.float64)
    for k in canaries.owner.unique().tolist():
        mine = (canaries.owner == k).nonzero().squeeze(1)
        values = {**server, **{key: own[k] for key, own in personal.items()}}
        outputs = per_example.model_outputs(task, run.context.adapted, values, take(x, mine))
        losses[mine] = task.loss(outputs, y[mine]).double()
    return losses


class _Trace(NamedTuple):
    """The traces of n canaries in one round.

    Args:
        who, release: (n,), their numbers, and the number of the release that holds each.
        signal, seen: key -> (n, ...), in units of the noise: what each would add, clipped; and
            that release.
    """

    who: Int[Tensor, " n"]
    signal: Rows
    seen: Rows
    release: Int[Tensor, " n"]


def _trace_round(run: Recorder, canaries: Canaries) -> _Trace | None:
    """Returns the canaries' traces in the round just made; ``None`` if nothing was released.

    Example unit: in each client's sum of noised gradients. Client unit: in the noised update, of
    all together, or of each canary where uploads are seen alone.
    """
    outcome, everyone, t = run.outcome, run.everyone, run.state.round - 1
    if outcome is None or everyone is None:
        return None
    context, uploads, by_step = run.context, outcome.received.uploads, run.context.by_step
    place, owners = {k: i for i, k in enumerate(everyone.ids)}, canaries.owner.tolist()
    start: dict[ParamKey, Tensor]
    if by_step:
        rate = {key: context.plan.rate(key.side, t) for key in everyone.params}
        start = dict(everyone.start)
        start |= {key: own[list(everyone.ids)] for key, own in run.personal.items()}
        moved = {key: x for key, x in everyone.params.items() if rate[key]}
        seen = {k: (start[k].double() - x) / rate[k] for k, x in moved.items()}
    else:
        rate = {key: -context.plan.rate(key.side, t) for key in uploads}
        start = {key: tensor[None] for key, tensor in outcome.sent.tensors.items()}
        reference = context.method.clip_reference
        seen = {key: x.double() - reference(start[key]) for key, x in uploads.items()}
        arrived = run.arrivals(t, everyone.ids).tolist()
        place = {everyone.ids[i]: row for row, i in enumerate(arrived)}
        if not outcome.received.per_client:
            place = dict.fromkeys(owners, 0)
    who = torch.tensor([i for i, k in enumerate(owners) if k in place], dtype=torch.int64)
    release = torch.tensor([place[owners[i]] for i in who.tolist()], dtype=torch.int64)
    if not len(who) or not seen:
        return None
    seen = {key: x[release] for key, x in seen.items()}
    owner = release if by_step else torch.zeros_like(release)
    if canaries.directions is not None:
        signal = {key: CANARY_LOSS_WEIGHT * canaries.directions[key][who] for key in seen}
    else:  # of each canary's loud loss where the round began, whether it took part or not
        x, y = canaries.examples
        data = (take(x, who), encode_marks(y[who], canaries.weights[who]))
        parts = (canaries.task, context.adapted, start, tuple(seen), data, owner)
        signal = per_example.per_example_gradients(*parts, context.method, everyone.start)
        if not by_step:
            signal = {key: rate[key] * x for key, x in signal.items()}
    return _Trace(who, *_clip_and_whiten(run, signal, seen, start, owner), release)


def _clip_and_whiten(
    run: Recorder, signal: Rows, seen: Rows, values: Mapping[ParamKey, Tensor], owner: Tensor
) -> tuple[Rows, Rows]:
    """Clips a signal as the mechanism does, and brings both to where the noise is white.

    A row that is not finite is zero, as in the mechanism: nothing of it is in the release. What was
    seen is in double precision, in which no product with a clipped float32 row overflows.
    """
    maps = local_training.preconditioners(run.context.method, tuple(signal), values)
    before = precondition_rows(signal, maps, owner)
    # Each row is the whole of its own sum: the mechanism itself clips it, group by group; in
    # float64, where it takes no scale for zero.
    alone, groups = torch.arange(len(owner)), run.context.method.clip_groups
    wide = {key: x.double() for key, x in before.items()}
    found, _ = clip_sum(wide, _clip_norm(run), alone, len(alone), groups)
    clipped, white = {}, dict(seen)
    for key, x in {key: found[key].to(x) for key, x in before.items()}.items():
        if key in maps:
            back, after = torch.linalg.pinv(maps[key].noise), maps[key].after
            own = [matrix if len(matrix) == 1 else matrix[owner] for matrix in (after, back)]
            x = map_rank_axis(key, own[1], map_rank_axis(key, own[0], x))
            white[key] = map_rank_axis(key, own[1].to(seen[key]), seen[key])
        clipped[key] = x
    return clipped, white


def decorrelate(signal: Rows, release: Int[Tensor, " n"], clip_norm: float) -> Rows:
    """Finds directions (U U^T + C^2)^-1 U that answer to one canary and little to the others.

    Args:
        signal: key -> (n, ...), the clipped gradients U.
        release: (n,), the number of the release that holds each.
        clip_norm: C.
    """
    flat = torch.cat([rows.flatten(1) for rows in signal.values()], 1).double()
    for one in release.unique():
        mine = release == one
        ridge = max(clip_norm, 1e-12) ** 2 * torch.eye(int(mine.sum()), dtype=flat.dtype)
        flat[mine] = torch.linalg.solve(flat[mine] @ flat[mine].T + ridge, flat[mine])
    parts = flat.split([rows[0].numel() for rows in signal.values()], 1)
    pairs = zip(signal.items(), parts, strict=True)
    return {key: part.view_as(rows).to(rows) for (key, rows), part in pairs}


@dataclass
class _Observed:
    """What is seen of a run with canaries, and why the audit is invalid if it is.

    Args:
        cosines: (3, m), of each crafted direction u and the releases v that may hold it: u.v, u.u
            and v.v, over ``numbers`` numbers.
        sides: side -> (m,), the canaries' traces summed over the rounds.
    """

    run: Recorder
    canaries: Canaries
    cosines: Tensor
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    sides: dict[str, Tensor] = field(default_factory=dict)
    numbers: int = 0
    rounds: int = 0
    seconds: float = 0.0
    stage: str = "the start"
    invalid: str | None = None

    @classmethod
    def of(cls, run: Recorder, canaries: Canaries) -> "_Observed":
        """Makes the run and scores its canaries; ends with the first release that is not finite."""
        self = cls(run, canaries, torch.zeros(3, len(canaries.owner), dtype=torch.float64))
        try:
            self.invalid = self._score()
        except (Diverged, torch.linalg.LinAlgError, np.linalg.LinAlgError) as error:
            why = error_text(error, 100)
            self.invalid = f"{self.stage} cannot be computed ({why})"
            if not run.finite:
                self.invalid = f"the release of round {self.rounds + 1} is not finite"
        return self

    def _score(self) -> str | None:
        run, canaries, first, last = self.run, self.canaries, None, None
        crafted = canaries.directions is not None
        for event in run.events():
            if isinstance(event, Tick):
                if crafted and event.step == run.context.plan.local_steps:
                    _replace_training(run, canaries)
                continue
            t = event.index
            self.rounds, self.seconds = t, self.seconds + event.seconds
            if not run.finite:
                return f"the release of round {t} is not finite"
            self.stage = f"the scores after round {t}"
            last, first = event, _canary_losses(run, event, canaries) if first is None else first
            if t and (trace := _trace_round(run, canaries)) is not None:
                self._add(trace)
                if not all(total.isfinite().all() for total in self.sides.values()):
                    return f"the traces of the canaries in round {t} are not finite"
            self.stage = f"round {t + 1}"
        assert first is not None and last is not None
        views, sides = {}, self.sides
        if not crafted or not sides:
            views = {"loss": first - _canary_losses(run, last, canaries)}
            if not views["loss"].isfinite().all():
                which = f"of round {last.index}" if first.isfinite().all() else "before training"
                return f"the model {which} gives losses that are not finite"
        if sides:
            views["update"] = torch.stack(list(sides.values())).sum(0)
        if len(sides) > 1:
            views |= {f"update {side}": sides[side] for side in sorted(sides)}
        self.scores = {view: values.numpy() for view, values in views.items()}
        return None

    def _add(self, trace: _Trace) -> None:
        """Adds a round to the scores of the sides and, of crafted canaries, to the cosines."""
        method, who, signal = self.run.context.method, trace.who, trace.signal
        if self.canaries.directions is not None:
            for key, rows in signal.items():
                u, v = rows.flatten(1).double(), trace.seen[key].flatten(1).double()
                products = ((u * v).sum(1), u.square().sum(1), v.square().sum(1))
                self.cosines[:, who] += torch.stack(products)
                self.numbers += u.shape[1]
        if method.filter is not identity:
            factors = {k: method.filter(x, k.side) for k, x in signal.items() if k.side != "head"}
            signal = signal | factors
        clip = _clip_norm(self.run)
        own = decorrelate(signal, trace.release, clip if clip < math.inf else 1.0)
        for key, rows in own.items():
            score = (rows.double() * trace.seen[key]).flatten(1).sum(1)
            self.sides.setdefault(key.side, torch.zeros_like(self.cosines[0]))[who] += score

    def estimate(self, delta: float) -> float:
        """`epsilon_estimate` of the crafted canaries that took part; NaN where little is seen."""
        dot, u, v = self.cosines
        cosine = (dot / (u * v).sqrt().clamp(min=1e-300)).numpy()[self.canaries.included.numpy()]
        enough = self.invalid is None and len(cosine) >= 2 and self.numbers >= 1000
        if not enough or not cosine.any() or not np.isfinite(cosine).all():
            return math.nan
        return bounds.epsilon_estimate(cosine, self.numbers, delta)


# ---- the audit


@dataclass(frozen=True, repr=False)
class Audit:
    """The result of an audit.

    Args:
        included: (m,), the canaries' coins.
        scores: view -> (m,), high where a canary looks included. "loss": black box. "update": white
            box, everything released; "update A", "update B", ...: the same of one side alone.
        lower: view -> lower bound on epsilon; together they hold with the stated confidence.
        epsilon_lower: the largest of them; NaN where the audit is invalid.
        ceiling: what as many canaries would show if every guess were right.
        epsilon_upper: the ledger's, of the audited run; infinite where none is certified.
        epsilon_nominal: what the ledger would state of the same releases if it were certified.
        estimate: of crafted canaries, `bounds.epsilon_estimate`; it may exceed the truth. NaN
            without them, and where the audit is invalid.
        seconds, rounds: of training, scoring left out; an invalid audit ends early.
        bug: the injected one, in words; ``None`` without.
        invalid: why nothing can be said, with the round: a release is not finite, or a score of a
            finite one is not. Then ``scores`` and ``lower`` are empty. ``None``: valid.
    """

    method: str
    task: str
    unit: str
    seed: int
    delta: float
    confidence: float
    canaries: int
    guesses: tuple[bounds.Guesses, ...]
    included: Bool[np.ndarray, " m"]
    scores: dict[str, Float[np.ndarray, " m"]]
    lower: dict[str, float]
    epsilon_lower: float
    ceiling: float
    epsilon_upper: float
    epsilon_nominal: float
    estimate: float
    seconds: float
    rounds: int
    bug: str | None = None
    invalid: str | None = None

    @property
    def claimed(self) -> float:
        """The epsilon to refute: the ledger's, or the nominal one where a bug was injected."""
        return self.epsilon_upper if self.bug is None else self.epsilon_nominal

    @property
    def holds(self) -> bool:
        """The audit is valid and its lower bound does not exceed what is claimed."""
        return self.invalid is None and self.epsilon_lower <= self.claimed

    @property
    def gaussian_lower(self) -> float:
        """The lower bound for noised sums without sampling, which is sharper; NaN where invalid.

        It is that of `bounds.gaussian_one_run_lower_bound`.
        Guarantees: test_the_gaussian_bound_of_an_audit_is_the_sharper_one.
        """
        share = (1 - self.confidence) / len(self.guesses) / max(1, len(self.scores))
        tries = [(scores, pair) for scores in self.scores.values() for pair in self.guesses]
        right = [bounds.count_correct(scores, self.included, pair) for scores, pair in tries]
        lower, given = bounds.gaussian_one_run_lower_bound, (self.delta, share)
        found = (lower(self.canaries, sum(p), v, *given) for (_, p), v in zip(tries, right))
        return max(found, default=math.nan)

    @property
    def could_fail(self) -> bool:
        """Whether as many canaries, all guessed right, would have exceeded what is claimed."""
        return self.ceiling > self.claimed

    def __str__(self) -> str:
        bug = "" if self.bug is None else f"; {self.bug}: nothing is certified"
        if self.invalid is not None:
            return f"{self.method}, {self.unit}: invalid: {self.invalid} ({INVALID_NOTE}){bug}"
        power = f"{self.canaries} canaries can show {self.ceiling:.3g}"
        words = f"{self.epsilon_lower:.3g} {'<=' if self.holds else '>'} {self.claimed:.3g}"
        words = f"epsilon {words} at delta {self.delta:g}"
        return f"{self.method}, {self.unit}: {words} ({self.confidence:.0%} sure; {power}){bug}"

    def __repr__(self) -> str:
        return f"Audit: {self}"


def canaries(
    task: Task,
    method: "Method | str",
    privacy: Privacy | None,
    plan: Plan,
    *,
    canaries: int | None = None,
    crafted: bool = False,
    confidence: float = 0.95,
    lora: Any = None,
    seed: int = 0,
    bug: "Callable[..., Any] | None" = None,
    **options: Any,
) -> Audit:
    """Runs once with canaries inside, and bounds epsilon from below by guessing which took part.

    In the example unit canaries are further examples of the clients, in the person unit further
    persons, in the client unit further clients, of one example. Each has a fair coin. Sizes, and
    with them sample rates, count every canary, in or out: epsilon_upper is that of the run as
    audited, a little below that of the same
    plan without canaries. A release that is not finite ends the audit, which is then invalid.

    Args:
        task, method, privacy, plan, lora: as of `fl.run`.
        canaries: how many, >= 2; ``None``: as many as cost about a fifth of the run. They are
            public examples with wrong targets and a loud loss, so that the clip always acts.
        crafted: client unit only: canary clients send random directions at the clip norm, not what
            they trained. Then there is no view "loss", and an estimate beside the bound.
        confidence: with which all lower bounds hold together, in (0, 1).
        seed: of the run and of the coins.
        bug: clips in the library's place, one of `fl.review.mistakes.BUGS`: to see whether it is
            found. The ledger then certifies nothing; ``epsilon_nominal`` is what is to be refuted.
        options: chunk sizes, as of `fl.run`.

    Guarantees: test_no_row_is_refuted, test_a_run_without_noise_is_seen,
        test_the_audit_changes_nothing_of_the_run, test_a_release_that_is_not_finite_is_invalid.
    Source: arXiv:2305.08846.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> privacy, plan = fl.Privacy(noise_multiplier=1.0, delta=1e-5), fl.Plan(rounds=1)
    >>> canaries(task, "fedlora", privacy, plan, canaries=8).holds
    True
    """
    row, unit = get(method), "example" if privacy is None else privacy.unit
    check_number("confidence", confidence, 0, 1, open_low=True)
    check(confidence < 1, "confidence", confidence, "a number in (0, 1)")
    expected = f"False in the {unit} unit: gradients follow the data"
    check(not crafted or unit == "client", "crafted", crafted, expected)
    check(isinstance(seed, int), "seed", seed, "a whole number: an audit must know its coins")
    if privacy is not None:  # the noise was calibrated for the plan without canaries
        privacy = privacy.replace(target=None)
    streams, delta = Streams(seed), 1e-5 if privacy is None else privacy.delta
    m = affordable_canaries(task, plan, unit) if canaries is None else canaries
    examples, weights = mislabel(task, m, streams), torch.full((m,), CANARY_LOSS_WEIGHT)
    if unit == "client":
        start = Recorder.open(task, row, privacy, plan, lora=lora, seed=seed)
        weights = _weights_at_clip_norm(start, examples)
    inserted = insert_canaries(task, unit, examples, weights, streams)
    sizes = inserted.task.sizes
    lora = lora_of(lora)
    if lora.ranks is not None:  # a canary client has the full rank
        lora = replace(lora, ranks=(*lora.ranks, *[lora.rank] * (len(sizes) - len(lora.ranks))))
    resized = None if privacy is None else privacy.replace(sample_rate=None)
    options |= {"lora": lora, "seed": seed, "bug": bug}
    run = Recorder.open(inserted.task, row, resized, plan, **options)
    # Where a trusted server adds the noise, a client that is out is not there at all.
    if privacy is not None and privacy.trust == "central":
        run.absent = frozenset(inserted.owner[~inserted.included].tolist())
    if crafted:
        directions = {
            key: streams.normal((m, *value.shape), "audit directions", number).to(value)
            for number, (key, value) in enumerate(run.state.server.tensors.items())
            if key.kind.trained
        }
        inserted = replace(inserted, directions=directions)
    observed = _Observed.of(run, inserted)
    tried, views = bounds.default_guesses(m), max(1, len(observed.scores))
    significance, included = 1 - confidence, inserted.included.numpy()
    parts = included, delta, significance / views, tried  # Bonferroni over the views
    lower = {view: bounds.one_run_best_bound(x, *parts) for view, x in observed.scores.items()}
    stated = (math.inf, math.inf)
    if run.ledger is not None:
        stated = run.ledger.epsilon_or_inf(), run.ledger.nominal_epsilon()
    return Audit(
        *(row.slug, task.name, unit, seed, delta, confidence, m, tried, included),
        *(observed.scores, lower, max(lower.values(), default=math.nan)),
        *(bounds.one_run_ceiling(m, delta, significance, tried, views), *stated),
        *(observed.estimate(delta), observed.seconds, observed.rounds),
        *(injected_bug_reason(run.context.clip), observed.invalid),
    )
