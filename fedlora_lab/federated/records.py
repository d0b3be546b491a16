"""What a run yields: frozen records, and the tidy frame made of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from html import escape
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_number, check_one_of
from fedlora_lab.federated.local_training import gradients_or_nan
from fedlora_lab.lora import peft, per_example
from fedlora_lab.lora.batch_independence import check_batch_independence
from fedlora_lab.measures.deviation import frame_of
from fedlora_lab.measures.statistics import COLUMNS
from fedlora_lab.methods.plan import Lora, lora_of
from fedlora_lab.methods.quantization import Traffic
from fedlora_lab.methods.state import ParamKey, ServerState
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.budget import Budget
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.tasks import metrics
from fedlora_lab.tasks.task import Task, check_examples, take

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from torch import Tensor


class Tick(NamedTuple):
    """Marks the end of one local step: round and step, from 1."""

    round: int
    step: int


@dataclass(frozen=True)
class Round:
    """The record of a round; index 0 is the model before training.

    Args:
        metrics: scores of the task's test examples, NaN in a private run where these are not
            public; with a quantised broadcast also ``<name>_received``, of the clients' copy of
            the model; where clients keep factors, the mean over their own models.
        deviation: ||server's product - mean of the clients' products||_F, relative to that mean,
            over all layers; what a quantised broadcast took from the factors is given back first.
            NaN where the server sees only a sum, or no product is formed because a factor stays
            with its client.
        adapter: layer -> global (A, B), shapes (r, d_in) and (d_out, r).
        head: name -> tensor of the trained head, if there is one.
        uploads: numbers and bytes up and down in this round, summed over the clients.
        participants: how many took part. With ``uploads`` NaN in a release of the client unit under
            central trust whose clients take part by chance: its epsilon counts on nobody knowing
            who did.
        seconds: the time it took; NaN in every release, since it may tell of a single example.
        clipped, nonfinite: share of examples (client unit: updates) that the clip scaled down, and
            how many were not finite and counted as zero. They read private values: NaN in release
            mode.
        unmeasured: measure -> why it is NaN: an optimiser's step mixes noise and signal, or the
            amplification follows from no closed form.
        clip_norm: where it adapts (`AdaptiveClip`): C after this round, the mean over the clients
            if each has its own; it follows from noised counts alone. ``None`` where C is fixed.
        source: the task, with everyone's examples, and what `save_adapter` and `predict` need
            beside it. It stays in this process: a copy shares it, a pickled record is without.

    Guarantees: tests/federated/test_attack_evaluation.py::test_a_pickled_record_holds_no_example.
    """

    index: int
    method: str
    task: str
    seed: int | None
    metrics: Mapping[str, float]
    deviation: float
    adapter: "Mapping[str, tuple[Tensor, Tensor]]"
    head: "Mapping[str, Tensor]"
    uploads: Traffic
    participants: float
    clipped: float
    nonfinite: float
    seconds: float
    ledger: Ledger | None
    rows: tuple[tuple[str, str, float], ...] = field(repr=False, default=())
    unmeasured: Mapping[str, str] = field(repr=False, default_factory=dict)
    source: "tuple[Task, Lora, ServerState] | None" = field(repr=False, default=None, compare=False)
    clip_norm: float | None = field(repr=False, default=None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "source": None}

    def __copy__(self) -> "Round":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Round":
        names = [f.name for f in fields(self) if f.name != "source"]
        return replace(self, **{name: deepcopy(getattr(self, name), memo) for name in names})

    def __repr__(self) -> str:
        scores = {name: float(f"{value:.4g}") for name, value in self.metrics.items()}
        return (
            f"Round(index={self.index}, method={self.method!r}, task={self.task!r}, "
            f"seed={self.seed}, metrics={scores}, epsilon={self.epsilon:.3g}, "
            f"participants={self.participants})"
        )

    def _repr_html_(self) -> str:
        title = f"{self.method} on {self.task}, seed {self.seed}, after round {self.index}"
        rows = [(name, f"{value:.4g}") for name, value in self.metrics.items()]
        rows += [
            ("ε spent", f"{self.epsilon:.3g}"),
            ("aggregation deviation", f"{self.deviation:.3g}"),
            ("share that was clipped", f"{self.clipped:.3g}"),
            ("participants", f"{self.participants:g}"),
            ("bytes up, down", f"{self.uploads.bytes_up:,}, {self.uploads.bytes_down:,}"),
            ("adapters", ", ".join(self.adapter)),
        ]
        return f"<p>{escape(title)}</p>{html_table(rows)}"

    @cached_property
    def epsilon(self) -> float:
        """Spent so far, the largest over clients; infinite where no epsilon can be certified."""
        if self.ledger is None:
            return float("inf") if self.index else 0.0
        return self.ledger.epsilon_or_inf()

    @property
    def layers(self) -> "pd.DataFrame":
        """The per-layer part of the frame: layer, measure, value."""
        return frame_of(list(self.rows))

    def measures(self) -> dict[str, float]:
        """Whole-model measures by name, as they stand in the frame."""
        named = {"epsilon": self.epsilon, "deviation": self.deviation, **self.uploads._asdict()}
        names = ("participants", "clipped", "nonfinite", "seconds")
        names += () if self.clip_norm is None else ("clip_norm",)
        return {**self.metrics, **named, **{name: getattr(self, name) for name in names}}


def to_frame(records: "Iterable[Round]") -> "pd.DataFrame":
    """Returns the tidy frame of some records: a row for each round, layer and measure.

    The layer "all" is the whole model.

    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> frame = fl.to_frame(fl.run(task, "rolora", None, fl.Plan(rounds=1, local_steps=2)))
    >>> list(frame.columns)
    ['task', 'method', 'seed', 'round', 'layer', 'measure', 'value']
    """
    import pandas as pd

    rows = []
    for record in records:
        check(isinstance(record, Round), "records", record, "records as run() yields them")
        key = (record.task, record.method, record.seed, record.index)
        rows += [(*key, "all", name, float(value)) for name, value in record.measures().items()]
        rows += [(*key, *row) for row in record.rows]
    return pd.DataFrame(rows, columns=COLUMNS)


def require_source(record: Round) -> tuple[Task, Lora, ServerState]:
    """Task, adapter and server's tensors of a record that a run yielded, or ``ValueError``."""
    found = getattr(record, "source", None)
    value = "a pickled copy, without its task" if isinstance(record, Round) else record
    check(found is not None, "record", value, "a record as run() yields it")
    return found  # type: ignore[return-value]


def source_for(task: Task, record: Round) -> tuple[Lora, ServerState]:
    """Adapter and server's tensors of a record, to use on a task.

    Args: task: that of the run, or one of the same model. record: as `run` yields it.
    Raises: ``ValueError`` for anything else.
    """
    own, lora, state = require_source(record)
    check(isinstance(task, Task), "task", task, "a Task")

    def places(task: Task) -> Any:
        shapes = {name: tensor.shape for name, tensor in task.model.named_parameters()}
        return task.targets, task.head, shapes

    # PEFT would adapt other layers of another model, and leave them as they were.
    same = task is own or places(task) == places(own)
    words = f"{own.name!r}, of which the record is, or a task of the same model and targets"
    check(same, "task", task.name, words)
    return lora, state


def save_adapter(record: Round, path: "str | Path") -> "Path":
    """Writes the record's adapter as a folder for ``peft.PeftModel.from_pretrained(base, path)``.

    Args:
        record: as a run yields it.
        path: a new folder, or one with an adapter.

    Guarantees: the loaded model gives the run's logits (tests/lora/test_adapters.py).

    >>> import tempfile
    >>> import fedlora_lab as fl
    >>> task = fl.tasks.regression(clients=2, examples=4, d_in=3, d_out=3, rank=1, test=4)
    >>> *_, last = fl.run(task, "rolora", None, fl.Plan(rounds=1, local_steps=2))
    >>> folder = tempfile.mkdtemp()
    >>> sorted(path.name for path in fl.save_adapter(last, folder).glob("*.safetensors"))
    ['adapter_model.safetensors']
    """
    task, lora, state = require_source(record)
    check(isinstance(path, (str, PurePath)), "path", path, "a path")
    place = task.model, task.targets, task.head, lora
    return peft.save(*place, state.tensors, path, task.new_modules)


# ---- a score of private examples

ACCURACIES = (metrics.accuracy, metrics.next_token_accuracy)
"""Of an accuracy of the user's own nobody knows that one example moves it by at most 1 / n."""
Z = 1.959963984540054  # of a two-sided interval at 95 %


@dataclass(frozen=True)
class PrivateScore:
    """A score of private examples, released with noise.

    Args:
        metric: "accuracy" or "loss".
        value: the mean over the units, with noise; it may lie outside the metric's range.
        low, high: interval at 95 % for the mean over the population that the units were drawn
            from: it counts the noise, and the draw as if the scores spread as widely as they can.
        noise: standard deviation of the noise in ``value``.
        units: how many there are; public.
        ledger: what was spent.
    """

    metric: str
    value: float
    low: float
    high: float
    noise: float
    units: int
    ledger: Ledger

    @property
    def epsilon(self) -> float:
        """Spent by this score alone."""
        return self.ledger.epsilon()

    def __float__(self) -> float:
        return self.value

    def __repr__(self) -> str:
        unit = self.ledger.unit
        return (
            f"PrivateScore({self.metric} {self.value:.4g}, 95 % interval [{self.low:.4g}, "
            f"{self.high:.4g}], of {self.units} {unit}s, noise {self.noise:.2g}, "
            f"epsilon={self.epsilon:.3g} at delta={self.ledger.delta:g} for each {unit})"
        )


def private_score(
    task: Task,
    record: Round,
    data: Any = None,
    metric: str = "accuracy",
    *,
    epsilon: float,
    delta: float | None = None,
    unit: str | None = None,
    max_loss: float = 5.0,
    budget: Budget | None = None,
    seed: int | None = None,
) -> PrivateScore:
    """Releases the accuracy or mean loss of a record's model on private examples, with noise.

    Each unit's score is clipped to [0, 1] (a loss to [0, max_loss]) and Gaussian noise is added to
    their sum, so that leaving one unit out moves it by at most its clip. What clients keep of
    their own is not used.

    Args:
        task, record: of the run.
        data: held-out (x, y), each example a unit; or a list of such pairs, each pair a unit with
            the mean over its examples: one client's, or one person's. ``None``: the test examples.
        metric: "accuracy" or "loss".
        epsilon, delta: what the score spends, > 0; delta by default that of the budget or of the
            record's ledger, else 1e-5.
        unit: of a list "client" (default) or "person"; of one pair "example".
        max_loss: the loss at which a unit's is clipped, > 0; public, not looked up in the data.
        budget: it stands there before the examples are looked at. It counts for everyone, since
            nobody knows that held-out examples are in no run.
        seed: as of `run`; a number is for rehearsals.

    Raises: ``ValueError`` for other metrics, and where the budget does not suffice.
    Guarantees: test_budget.py::test_a_score_moves_by_no_more_than_its_noise_covers,
        ::test_the_interval_of_a_score_covers, ::test_a_score_is_in_the_budget_before_it_is_known.
    Source: arXiv:1805.06530, theorem 8 (noise); Wilson's interval with the noise's variance.

    >>> import fedlora_lab as fl
    >>> task, plan = fl.tasks.digits(), fl.Plan(rounds=1, local_steps=1)
    >>> *_, last = fl.run(task, "fedlora", None, plan)
    >>> score = fl.private_score(task, last, epsilon=1.0, seed=0)
    >>> score.units, round(score.noise, 3), score.low < score.value < score.high
    (360, 0.01, True)
    """
    lora, state = source_for(task, record)
    several = isinstance(data, (list, Sequence)) and not isinstance(data, tuple)
    units = list(data) if several else [task.test if data is None else data]
    # Before the budget is asked: a score that cannot be computed must not spend anything.
    like = check_examples("test", task.test)
    for k, pair in enumerate(units):
        name = f"data[{k}]" if several else "data"
        kinds = check_examples(name, pair)
        check(kinds == like, name, kinds, f"what the test examples have: {like}")
    check_one_of("metric", metric, ("accuracy", "loss"))
    own = task.loss if metric == "loss" else task.metrics.get("accuracy")
    expected = "'loss', or a task whose accuracy is the library's: one example moves it by 1 / n"
    check(metric == "loss" or own in ACCURACIES, "metric", metric, expected)
    check_number("max_loss", max_loss, 0, 1e9, open_low=True)
    check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    unit = unit or ("client" if several else "example")
    check_one_of("unit", unit, ("client", "person") if several else ("example",))
    check(isinstance(budget, Budget | None), "budget", budget, "an fl.Budget, or None")
    known = budget or record.ledger
    delta = delta if delta is not None else 1e-5 if known is None else known.delta
    count = len(units) if several else len(units[0][1])
    check(count > 0, "data", count, "at least one unit")
    check(delta * count < 1, "delta", delta, f"< {1 / count:.3g} = 1 / {count} {unit}s")
    sigma = accounting.noise_multiplier(epsilon, delta, 1.0, 1)
    streams = Streams(seed)
    ledger = Ledger(unit=unit, delta=delta, reproducible=seed is not None)
    ledger.record(0, None, 1, sample_rate=1.0, noise_multiplier=sigma)
    # Before any example is looked at: a process that ends while it scores has spent this.
    if budget is not None:
        budget.spend(task, "score", f"{metric} of {record.method} on {task.name}", ledger)
    high = max_loss if metric == "loss" else 1.0

    def clipped(outputs: Any, y: "Tensor") -> "Tensor":
        # What is not a number counts as the worst: the sum stays finite, and moves by no more.
        values = own(outputs, y).double() if own is not None else y
        return values.nan_to_num(high if metric == "loss" else 0.0, high, 0.0).clamp(0, high) / high

    total = metrics.OverAll(lambda kept, y: float(kept.sum()), clipped)
    judged = replace(task, metrics={"score": total})
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
    sums = [
        per_example.evaluate(judged, adapted, state.tensors, pair)["score"]
        / (len(pair[1]) if several else 1)
        for pair in units
    ]
    noised = math.fsum(sums) + sigma * float(streams.normal((1,), "score", record.index).double())
    # Rounded to a grid far coarser than floating-point numbers' and far finer than the noise: which
    # values can come out must not depend on the sum (Mironov 2012).
    mean = round(noised * 2**20) / 2**20 / count
    low, top = _interval(mean, count, sigma / count)
    value, low, top, noise = (high * x for x in (mean, low, top, sigma / count))
    return PrivateScore(metric, value, low, top, noise, count, ledger.snapshot())


def _interval(mean: float, count: int, noise: float) -> tuple[float, float]:
    """Means p in [0, 1] with |mean - p| <= z sqrt(p (1 - p) / count + noise^2)."""
    z2 = Z * Z
    a, b, c = 1 + z2 / count, 2 * mean + z2 / count, mean * mean - z2 * noise * noise
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    low, high = (min(1.0, max(0.0, (b + sign * root) / (2 * a))) for sign in (-1, 1))
    return low, high


# ---- which layers get an adapter


@dataclass(frozen=True)
class LayerChoice:
    """The layers chosen by noised gradient norms.

    Args:
        layers: those chosen, the largest score first.
        scores: layer -> noised sum over the examples of its share of the squared gradient norm.
        lora: the adapter of these layers only.
        ledger: what the choice spent; a run on the same data comes on top (`Ledger.compose`).
    """

    layers: tuple[str, ...]
    scores: Mapping[str, float]
    lora: Lora
    ledger: Ledger

    @property
    def epsilon(self) -> float:
        """What the choice spent at the delta of its ledger."""
        return self.ledger.epsilon()

    def __repr__(self) -> str:
        some = f"{len(self.layers)} of {len(self.scores)} layers"
        return f"LayerChoice({some}, epsilon {self.epsilon:.3g} at delta {self.ledger.delta:g})"


def private_layers(
    task: Task,
    *,
    share: float = 0.3,
    epsilon: float,
    delta: float = 1e-5,
    clip_norm: float = 1.0,
    lora: Any = None,
    budget: Budget | None = None,
    seed: int | None = None,
) -> LayerChoice:
    """Chooses the layers that get an adapter by their gradients at the start, with noise.

    Each client sums, example by example, the squared gradient norm of every layer, of the whole
    gradient clipped to ``clip_norm``, and adds noise; the server takes the layers with the largest
    sums. The gradient is that of B at the start of an adapter in every target, which is what A's
    rows hold of the weight's.

    The squares of a gradient of norm F add up to F^2 at most, so one example moves a client's sums
    by F^2: the noise is for that, and not for F.

    Args:
        task, lora: as of `run`; the targets among which is chosen.
        share: of the layers, in (0, 1]; rounded up.
        epsilon, delta: what the choice spends, > 0 each, for one example of one client.
        clip_norm: F > 0.
        budget: it stands there before the examples are looked at.
        seed: as of `run`; a number is for rehearsals.

    Raises: ``ValueError`` (name, value, range), and where the budget does not suffice.
    Guarantees: test_one_example_moves_the_layers_scores_by_f_squared,
        test_the_choice_of_layers_is_noised_and_in_the_budget.
    Source: arXiv:2605.30312 (DP-SAPF), probe of the frozen base, with noise for F, which is the
        sensitivity at F = 1 only; there of full weights.

    >>> import fedlora_lab as fl
    >>> chosen = fl.private_layers(fl.tasks.digits(), epsilon=1.0, share=0.5, seed=0)
    >>> chosen, chosen.lora.option("target_modules") == sorted(chosen.layers)
    (LayerChoice(4 of 8 layers, epsilon 1 at delta 1e-05), True)
    """
    lora = lora_of(lora)
    check_number("share", share, 0, 1, open_low=True)
    check_number("epsilon", epsilon, 0, 1e9, open_low=True)
    check_number("clip_norm", clip_norm, 0, 1e9, open_low=True)
    accounting.check_delta(delta)
    # At delta >= 1 / examples a mechanism that publishes one example outright would pass.
    count = sum(task.sizes)
    check(delta * count < 1, "delta", delta, f"< {1 / max(count, 1):.3g} = 1 / {count} examples")
    check(isinstance(budget, Budget | None), "budget", budget, "an fl.Budget, or None")
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
    check_batch_independence(task, adapted)
    sigma, streams = accounting.noise_multiplier(epsilon, delta, 1.0, 1), Streams(seed)
    ledger = Ledger(unit="example", delta=delta, reproducible=seed is not None)
    ledger.record(0, None, 1, sample_rate=1.0, noise_multiplier=sigma)
    if budget is not None:
        budget.spend(task, "layers", f"choice of layers on {task.name}", ledger)
    values = peft.initial_values(adapted, streams)
    sums = []
    for k, pair in enumerate(task.clients):
        own = clipped_squares(task, adapted, values, pair, clip_norm)
        # Each client noises for itself: the server is trusted with no sum.
        xi = streams.normal(tuple(own.shape), "layer scores", k).to(own)
        sums.append(own + sigma * clip_norm**2 * xi)
    names = [key.layer for key in values if key.side == "B"]
    scores = dict(zip(names, sum(sums[1:], sums[0]).tolist(), strict=True))
    count = math.ceil(share * len(names) - 1e-9)
    layers = tuple(sorted(names, key=lambda name: -scores[name])[:count])
    options = {**(lora.peft or {}), "target_modules": sorted(layers)}
    return LayerChoice(layers, scores, replace(lora, peft=options), ledger.snapshot())


def clipped_squares(
    task: Task, adapted: Any, values: Mapping[ParamKey, "Tensor"], pair: Any, clip_norm: float
) -> "Tensor":
    """Sums over examples the squared norm of each layer's gradient of B, (layers,), float64.

    Args:
        task, adapted, values: the model and where it stands, public.
        pair: examples (x, y).
        clip_norm: F, of an example's gradient over all layers; what is not finite adds zero.

    Guarantees: test_one_example_moves_the_layers_scores_by_f_squared.
    """
    keys = tuple(key for key in values if key.side == "B")
    params, (x, y) = {key: value[None] for key, value in values.items()}, pair
    like = {key: values[key][None] for key in keys}
    found = torch.zeros(len(keys), dtype=torch.float64)

    def gradients(index: "Tensor") -> dict[ParamKey, "Tensor"]:
        data, owner = (take(x, index), y[index]), torch.zeros(len(index), dtype=torch.int64)
        return per_example.per_example_gradients(task, adapted, params, keys, data, owner)

    for part in torch.arange(len(y)).split(128):
        # A pass that one example breaks must not tell of it, as in a local step.
        rows = gradients_or_nan(gradients, part, like)
        # In float64, where the squares of float32 numbers neither overflow nor vanish.
        squares = torch.stack([rows[key].double().square().flatten(1).sum(1) for key in keys], 1)
        whole = squares.sum(1, keepdim=True)
        scaled = squares * (clip_norm**2 / whole.clamp(min=1e-300)).clamp(max=1)
        # An example may be anything: one without a finite gradient must not spoil the sum.
        finite = whole.isfinite()
        found += torch.where(finite, scaled, torch.zeros_like(scaled)).sum(0).cpu()
    return found
