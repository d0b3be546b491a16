"""Checks that no example's gradient depends on the other examples of its batch.

Where they influence each other none has a gradient of its own, and no clip bounds what one of them
adds. A row with ``Method.differences`` releases differences of losses: there each example's loss
itself must be its own, since what others add to it without a gradient is in the difference. All
parts of a task or method that see private values before the clip, and what keeps each to one
example:

- The model, ``Task.loss`` and what a kind of tensor does to an
  output (`KINDS`): probed here; the loss is (N,) at every step.
- ``Method.penalty``: probed for each set of tensors that moves together, of a choice layer by layer
  for both extremes; (N,) at every step.
- ``Method.precondition``: sees factors, un-noised in the local steps of the client unit; each
  client's maps must be those of its own matrix.
- ``Plan.optimizer``: sees gradients, in the client unit without noise; each client's step must be
  its own (`make_config`).
- ``Method.filter`` sees noised values only; ``initial_factors``, ``broadcast`` and ``aggregate``
  what the server sent or received; ``clip_groups`` and ``schedule`` names and numbers.
- ``Task.metrics``: see test examples, which are public or not evaluated under privacy.

Two probes, once before training, find what mixes. In a batch of four, and in one as large as a
step's, each example must have the gradient that it has alone; and to the last digits the same
gradient beside others that are not numbers, or are huge. No pass may change a parameter or buffer,
here or in a step, and the probes leave the buffers' values as they were. They find mistakes, not
code that behaves otherwise when it is not probed, and know texts by their ``attention_mask``
(n, tokens).
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fedlora_lab._utils.validation import check, error_text, few, in_one_line, warn
from fedlora_lab.lora.adapters import AdaptedModel, matmuls
from fedlora_lab.lora.per_example import (
    depends_on,
    example_losses,
    model_outputs,
    per_example_gradients,
)
from fedlora_lab.methods.directions import ALONG
from fedlora_lab.methods.filters import Preconditioner
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.state import Keys, ParamKey, TensorDict, Tensors
from fedlora_lab.privacy.privatizer import maps_of, row_norms
from fedlora_lab.tasks.metrics import IGNORED
from fedlora_lab.tasks.task import (
    Examples,
    Task,
    concatenate,
    dense,
    map_inputs,
    mask_of,
    ragged,
    take,
)

PROBES = 4
"""Examples whose gradients are compared."""
MAX_EXAMPLES = 256
"""In the batch that is as large as a step: a probe must not cost much more than the step."""
DISTURBANCES = (float("nan"), 1e6)
"""What the others of a batch are multiplied by."""
MACHINE_EPSILON = {"bfloat16": 2.0**-7, "tf32": 2.0**-10}
"""Of the products; elsewhere it is that of the tensors' own type."""
_PROBED: "weakref.WeakKeyDictionary[Task, set[Any]]" = weakref.WeakKeyDictionary()
"""Task -> what was found sound: precision, device, row with a penalty, whether losses are released,
the tensors that move and the size of a batch. The runs of a comparison share it."""


def check_batch_independence(
    task: Task,
    adapted: AdaptedModel,
    matmul_precision: str,
    method: Method,
    plan: Plan,
    rows: int,
    keys: Iterable[ParamKey],
) -> None:
    """Refuses a model, loss or rule through which the examples of a batch influence each other.

    Finds batch statistics, attention across the batch, losses and penalties that reduce, broadcast
    or choose over the batch, computations that depend on the padded width, layers whose input does
    not come batch first, and models that keep something of their examples in a parameter or buffer.

    Args:
        task, adapted, matmul_precision: whose examples go through which model, in which precision.
        method, plan: whose penalty and preconditioner are probed, for which steps.
        rows: examples that a step passes at once, as far as is foreseen.
        keys: tensors with which the run begins, a core or an own kind's included.

    Raises: ``ValueError`` with the reason.
    Guarantees: tests/lab/lora/test_attack_examples.py.
    """
    trained = tuple(key for key in keys if key.kind.trained)
    _probe_once(task, adapted, matmul_precision, method, trained, rows, with_penalty=False)
    if method.penalty is not None:
        schedule = method.schedule
        period = len(schedule.rounds) if isinstance(schedule, Cycle) else plan.rounds
        steps = product(range(min(plan.rounds, period)), range(plan.local_steps))
        words = {method.factors_at_step(t, s) for t, s in steps}
        # Of a choice layer by layer, which the server settles later, the two extremes.
        words = {letters for word in words for letters in ("AB" if word == "*" else (word,))}
        for word in sorted(words):
            moving = tuple(k for k in trained if not k.kind.scheduled or k.name in word)
            _probe_once(task, adapted, matmul_precision, method, moving, rows)
    if method.clip_groups is not None:
        with in_one_line("clip_groups: expected a number or text for each tensor, but"):
            set(map(method.clip_groups, trained))
    if method.precondition is not None:
        rank = next(len(x) for key, x in adapted.initial.items() if key.name == "A")
        _probe_preconditioner(method.precondition, rank)


def _probe_once(
    task: Task,
    adapted: AdaptedModel,
    matmul_precision: str,
    method: Method,
    moving: Keys,
    rows: int,
    with_penalty: bool = True,
) -> None:
    """Refuses a model, or a row's penalty, that mixes examples where these tensors move.

    Args:
        task, adapted, matmul_precision, rows: see `check_batch_independence`.
        method: the row, whose ``differences`` say that losses are probed beside gradients.
        moving: the tensors that move.
        with_penalty: whether the row's penalty is probed, or the model alone.
    """
    rows = min(max(rows, PROBES), MAX_EXAMPLES)
    probed = _PROBED.setdefault(task, set())
    # All that a verdict depends on: another precision, penalty or set of tensors is probed anew,
    # and a model that was found sound by its gradients where the losses themselves are released.
    row = method if with_penalty else None
    by_losses = method.differences is not None
    key = (matmul_precision, str(adapted.device), row, by_losses, frozenset(moving), rows)
    if key in probed:
        return
    setting = _Setting.drawn(task, adapted, row, moving)
    before = [buffer.clone() for buffer in adapted.model.buffers()]
    with matmuls(matmul_precision):
        _probe(setting, matmul_precision, rows)
        if by_losses:
            _probe(replace(setting, of_losses=True), matmul_precision, rows)
    # Also what was written through ``.data``, which no pass notices.
    pairs = zip(before, adapted.model.buffers(), strict=True)
    same = all(torch.equal(old, new) for old, new in pairs)
    setting.refuse_unless(same, "passes that change no parameter or buffer of the model")
    probed.add(key)


def repeat_probe(
    task: Task, adapted: AdaptedModel, method: Method, moving: Keys, probe: Examples
) -> None:
    """Lets one of the `probes` pass alone once more, which raised nothing before the run.

    Args:
        task, adapted, method, moving: see `check_batch_independence`.
        probe: one example, by `longest_probe`.
    """
    setting = _Setting.drawn(task, adapted, method, moving)
    replace(setting, of_losses=method.differences is not None).rows(probe, torch.tensor([1]))


@dataclass(frozen=True)
class _Setting:
    """What is probed, and tensors of its own for each of the probed examples.

    Args:
        task, adapted, method, moving: the loss, the model, a row with a penalty, what moves.
        params, start: key -> (PROBES, ...): where the examples' clients are, and began.
        of_losses: whether the losses are compared, in the place of their gradients.
    """

    task: Task
    adapted: AdaptedModel
    method: Method | None
    moving: Keys
    params: Tensors
    start: Tensors
    of_losses: bool = False

    @classmethod
    def drawn(
        cls, task: Task, adapted: AdaptedModel, method: Method | None, moving: Keys
    ) -> "_Setting":
        # A generator of its own: a probe must not move the random numbers of its user.
        generator = torch.Generator().manual_seed(0)
        like = next(iter(adapted.initial.values()))
        shapes = {key: _shape(adapted, key) for key in (*adapted.shapes, *moving)}

        def draw() -> TensorDict:
            # A step passes examples of several clients at once: each has factors of its own.
            unit = {k: torch.randn(PROBES, *s, generator=generator) for k, s in shapes.items()}
            return {key: 0.1 * tensor.to(like) for key, tensor in unit.items()}

        return cls(task, adapted, method, moving, draw(), draw())

    def rows(self, data: Examples, owner: Tensor) -> Tensors:
        """Each example's gradient or, key -> (n, 1), its loss.

        Unequal weights find a loss whose gradient is divided by their sum.
        """
        # As a step has them: padded to the longest text of the pass, and no wider.
        data = ragged(data) if self.task.longest_text else data
        where = self.task, self.adapted, self.params, self.moving
        given = *where, data, owner, self.method, self.start
        if self.of_losses:
            return {ALONG: example_losses(*given)[:, None]}
        weights = torch.linspace(0.7, 1.6, PROBES, dtype=torch.float64)[owner]
        return per_example_gradients(*given, weights)

    def refuse_unless(self, ok: bool, expected: str) -> None:
        if self.method is None:
            check(ok, "model", type(self.task.model).__name__, expected)
        else:
            check(ok, "penalty", self.method.penalty, expected)


def _warn_of_unused(setting: _Setting, examples: Examples) -> None:
    """Warns of layers on which no loss depends: their adapters learn nothing and still get noise.

    Guarantees: test_probed_layers.py::test_an_adapter_that_cannot_learn_is_told_by_name.
    """
    # An expert that no text was sent to may be called later. Of private rows nothing is told.
    if not setting.task.public_test:
        return
    reached = depends_on(setting.task, setting.adapted, setting.params, setting.moving, examples)
    used = {key.layer for key in reached}
    unused = {key.layer for key in setting.moving if key.name in ("A", "B")} - used
    if used and unused:
        event = f"no loss of a test example depends on {few(sorted(unused))}"
        warn(f"targets: {event}; such an adapter learns nothing and still gets noise")


def _probe(setting: _Setting, matmul_precision: str, rows: int) -> None:
    """Compares each example's gradient in a batch with the one it has alone or in another batch;
    or its loss.
    """
    task = setting.task
    like = next(iter(setting.adapted.initial.values()))
    try:
        x, y = probes(task, setting.adapted)
    except Exception as error:  # whatever a foreign model raises
        reason = error_text(error, 160) if task.public_test else type(error).__name__
        expected = f"a pass over the test examples where {matmul_precision=}, but: {reason}"
        setting.refuse_unless(False, expected)
        raise
    everyone = torch.arange(PROBES)
    calls = _EmbeddingCalls(setting.adapted.model)
    try:
        if setting.method is None and not setting.of_losses:
            _warn_of_unused(setting, (x, y))
        with calls.recorded(PROBES):
            together = setting.rows((x, y), everyone)
    except RuntimeError as error:
        # A model such as RWKV overwrites tensors that its backward pass would read.
        setting.refuse_unless(
            "inplace operation" not in str(error),
            "no operation in place on a tensor that the gradient needs",
        )
        raise
    what = "losses" if setting.of_losses else "gradients"
    finite = all(bool(tensor.isfinite().all()) for tensor in together.values())
    setting.refuse_unless(finite, f"finite {what} of the test examples (here they are not)")
    for key in together:
        called = key.name != "head" or bool(together[key].any())
        check(called, "head", key.layer, "modules that the model calls: this one has no gradient")
    # Where the model is sure of an example, its gradient is hardly more than rounding: a gap is
    # then measured against the gradients of the others.
    sizes = row_norms(together).cpu()
    sizes = sizes.clamp(min=max(1e-12, 0.03 * float(sizes.max())))

    def compare(i: int, gradient: Tensors, tolerance: float) -> None:
        change = {key: gradient[key] - together[key][i : i + 1] for key in together}
        gap = float(row_norms(change).cpu() / sizes[i])
        # "Not within" instead of "beyond": a gap that is not a number is refused as well, such as
        # that of a batch of one, which has no variance to divide by.
        # Of private test examples no number is told.
        size = f" (they differ by {gap:.1g})" if task.public_test else ""
        expected = f"examples that do not mix, batch first, and no random numbers{size}"
        if setting.of_losses:
            expected += "; a row of differences releases losses, with what has no gradient in them"
        setting.refuse_unless(gap <= tolerance, expected)

    # Nothing of the example's own has changed, nor any shape: there is hardly anything to round.
    exact = 20 * torch.finfo(like.dtype).eps
    # A batch of one is computed in another order than a batch of four, and rounds otherwise.
    rough = _tolerance(like, matmul_precision, task.model)
    for i in range(PROBES):
        single = everyone[i : i + 1]
        with calls.recorded(1):
            alone = setting.rows((take(x, single), y[single]), single)
        compare(i, alone, rough)
    for i, scale in product(range(PROBES), DISTURBANCES):
        compare(i, _beside_strange(setting, (x, y), i, scale, calls), exact)
    if rows > PROBES:
        # In a batch as large as a step's: a loss may keep the hardest of many alone.
        repeated = torch.arange(rows - PROBES) % len(task.test[1])
        width = task.longest_text
        others = map_inputs(lambda column: dense(column, width), take(task.test[0], repeated))
        many = concatenate([(x, y), (others, dense(task.test[1][repeated], width))])
        full = setting.rows(many, torch.arange(rows) % PROBES)
        for i in range(PROBES):
            compare(i, {key: tensor[i : i + 1] for key, tensor in full.items()}, rough)


class _EmbeddingCalls:
    """How long the outputs of a model's embeddings were in passes of several sizes.

    A table of positions may have as many rows as a batch has examples: what an embedding gives is
    of the examples only where it is as long as the batch in every pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        self.fits: dict[tuple[nn.Module, int], bool] = {}

    @contextmanager
    def hooked(self, act: Callable[[nn.Module, int, Tensor], Tensor | None]) -> Iterator[None]:
        """Lets ``act`` see the embedding, the number of its call in this pass and its output."""
        numbers: Counter[nn.Module] = Counter()

        def hook(module: nn.Module, given: Any, output: Any) -> Any:
            numbers[module] += 1
            return act(module, numbers[module], output) if isinstance(output, Tensor) else None

        with ExitStack() as hooks:
            for module in self.embeddings:
                hooks.enter_context(module.register_forward_hook(hook))
            yield

    @contextmanager
    def recorded(self, count: int) -> Iterator[None]:
        """Notes which outputs are as long as a batch of ``count`` examples."""

        def note(module: nn.Module, number: int, output: Tensor) -> None:
            key = module, number
            self.fits[key] = self.fits.get(key, True) and len(output) == count

        with self.hooked(note):
            yield

    def of_examples(self, module: nn.Module, number: int, output: Tensor) -> bool:
        """Whether an output of this call, (n, tokens, d), goes through the examples."""
        return output.ndim > 2 and len(output) == PROBES and self.fits.get((module, number), True)


def _beside_strange(
    setting: _Setting, data: Examples, i: int, scale: float, calls: _EmbeddingCalls
) -> Tensors:
    """The gradient of example i, or its loss, where all others are disturbed.

    Others that are not numbers show any arithmetic that reaches across examples, however small its
    coefficient; huge ones show what passes over such values.
    """

    def disturb(module: nn.Module, number: int, output: Tensor) -> Tensor | None:
        """What an embedding gives for the other rows: tokens themselves cannot be strange."""
        return _strange(output, i, scale) if calls.of_examples(module, number, output) else None

    strange = replace(
        setting,
        params={key: _strange(tensor, i, scale) for key, tensor in setting.params.items()},
        start={key: _strange(tensor, i, scale) for key, tensor in setting.start.items()},
    )
    x = map_inputs(lambda value: _strange(value, i, scale), data[0])
    y = _strange(data[1], i, scale)
    with calls.hooked(disturb):
        try:
            rows = strange.rows((x, y), torch.arange(PROBES))
        except Exception as error:  # whatever a foreign model raises
            reason = type(error).__name__
            if setting.task.public_test:
                reason += f": {error_text(error, 80)}"
            expected = (
                f"a pass that the values of no example stop (others times {scale:g}: {reason})"
            )
            setting.refuse_unless(False, expected)
            raise
    return {key: tensor[i : i + 1] for key, tensor in rows.items()}


def _strange(x: Tensor, i: int, scale: float) -> Tensor:
    """The same rows, but all except row i multiplied or, of whole numbers, exchanged."""
    neighbours = torch.tensor([j for j in range(len(x)) if j != i], dtype=torch.int64)
    x = x.clone()
    # Added as well: zero times anything is zero.
    if x.is_floating_point():
        x[neighbours] = (x[neighbours] + 1) * scale
    else:
        x[neighbours] = x[neighbours.roll(-1)]
    return x


def _shape(adapted: AdaptedModel, key: ParamKey) -> tuple[int, ...]:
    """The shape of a tensor, also of one that only a method's ``initial_factors`` make."""
    if key in adapted.shapes:
        return adapted.shapes[key]
    assert key.kind.shape is not None
    rank = adapted.shapes[ParamKey("A", key.layer)][0]
    d_out, d_in = adapted.weights[key.layer].shape
    return key.kind.shape(d_out, d_in, rank)


def _tolerance(like: Tensor, matmul_precision: str, model: nn.Module) -> float:
    """Far above what rounding does to a gradient, far below what a mean over the batch does."""
    # A base in half precision rounds as such, whatever its adapters have.
    dtypes = {like.dtype, *(x.dtype for x in model.parameters() if x.is_floating_point())}
    eps = max(
        MACHINE_EPSILON.get(matmul_precision, 0.0), *(torch.finfo(dtype).eps for dtype in dtypes)
    )
    return max(20 * eps, min(10 * eps**0.5, 0.01))


def _probe_preconditioner(rule: Callable[[Tensor], Preconditioner], rank: int) -> None:
    """Compares the maps of several clients with those beside huge matrices of others.

    Args: rule: of the method. rank: of the run's factors: a rule may know no other.
    """
    # Matrices as the rule sees them: symmetric, and positive definite.
    random = torch.Generator().manual_seed(0)
    half = torch.randn(PROBES, rank, 2 * rank + 2, generator=random)
    gram = half @ half.mT
    together = maps_of(rule, gram)
    for i in range(PROBES):
        crowded = maps_of(rule, _strange(gram, i, 1e6))
        for which in ("before", "after", "of_noise"):
            own_map = getattr(together, which)[i]
            change = (own_map - getattr(crowded, which)[i]).norm()
            expected = "maps of each client's own matrix alone, however large the others are"
            # Nothing of the client's own has changed: there is hardly anything to round.
            check(bool(change <= 1e-6 * own_map.norm()), "precondition", rule, expected)


# ---- what is probed


def probes(task: Task, adapted: AdaptedModel) -> Examples:
    """Makes four examples of the test's: inputs differ, the first and the last target agree.

    Floating inputs are disturbed, tokens change places. Of texts one is cut short, and one fills
    the task's whole width, whatever lengths those of the test have. Also of a test that is not
    public: random tokens would not be texts that every model takes.
    """
    x, y = task.test
    index = torch.arange(PROBES) % len(y)
    width = task.longest_text
    x = map_inputs(lambda column: dense(column, width), take(x, index))
    y = dense(y[index], width)
    mask = mask_of(x)
    for i in range(1, PROBES):
        if isinstance(x, Mapping):
            moved = [key for key in x if "mask" not in key and "type" not in key]
            x = {**x, **{key: _disturbed(x[key], i, mask) for key in moved}}
        else:
            x = _disturbed(x, i)
    # Equal targets find a loss that compares examples of one class, unequal ones all others.
    steps = torch.tensor([0, 1, 2, 0])
    if y.is_floating_point():
        y = y[torch.tensor([0, 1, 2, 0])]
        steps = (steps.to(y) / PROBES).view(-1, *[1] * (y.ndim - 1))
        # Probabilities stay probabilities.
        y = (y - steps).abs() if bool(((y >= 0) & (y <= 1)).all()) else y + steps
    elif y.ndim == 1:
        # Of the adapted copy: a pass might write into the user's own model.
        outputs = model_outputs(task, adapted, adapted.initial, x)
        scores = isinstance(outputs, Tensor) and outputs.ndim == 2
        y = steps % (outputs.shape[1] if scores else int(y.max()) + 1)
    if mask is not None and mask.ndim == 2 and isinstance(x, Mapping):
        config: Any = getattr(task.model, "config", None)
        return _of_both_widths(x, y, getattr(config, "pad_token_id", None) or 0)
    return x, y


def longest_probe(task: Task, adapted: AdaptedModel) -> Examples:
    """One of the `probes`; of texts the one as wide as any example of the task can be."""
    x, y = probes(task, adapted)
    place = torch.tensor([1])
    return take(x, place), y[place]


def _of_both_widths(x: Mapping[str, Tensor], y: Tensor, pad: int) -> Examples:
    """The same texts, the first cut to two tokens, the second drawn out to the whole width.

    Args: x, y: inputs with a mask (n, tokens), and targets. pad: the token for padding.
    """
    present = x["attention_mask"].bool()
    first, second = (present[i].nonzero().flatten() for i in (0, 1))
    # A text keeps its ends: some classifiers refuse one that has its end mark never or twice.
    shorter = first[[0, -1]][: len(first)]
    middle = len(second) // 2
    repeats = second[middle].repeat(present.shape[1] - len(second) + 1)
    longer = torch.cat([second[:middle], repeats, second[middle + 1 :]])

    def resized(rows: Tensor, nothing: int) -> Tensor:
        if rows.shape[:2] != present.shape:
            return rows
        rows = rows.clone()
        rows[1] = rows[1, longer]
        rows[0, first[:2]] = rows[0, shorter]
        rows[0, first[2:]] = nothing
        return rows

    # Some classifiers find a text's last token by the padding's number.
    x = {key: resized(rows, pad if key == "input_ids" else 0) for key, rows in x.items()}
    return x, y if y.is_floating_point() else resized(y, IGNORED)


def _disturbed(x: Tensor, i: int, mask: Tensor | None = None) -> Tensor:
    """A copy with another row i: noise on floating numbers; others change places in the mask."""
    x = x.clone()
    if x.is_floating_point():
        noise = torch.randn(x[i].shape, generator=torch.Generator().manual_seed(i)).to(x)
        x[i] += noise * (x.double().std(correction=0).to(x) * 0.3).clamp(min=1e-2)
    elif x.ndim > 1:
        present = torch.ones_like(x[i]) if mask is None or mask.shape != x.shape else mask[i]
        row = x[i][present.bool()]
        x[i] = x[i].masked_scatter(present.bool(), row.roll(i))
    return x
