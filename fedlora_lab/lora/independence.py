"""Checks, once before training, that no example's gradient depends on the others of its batch.

Where they influence each other none has a gradient of its own, and no clip bounds what one of them
adds. A row with ``Method.differences`` releases differences of losses: there each example's loss
itself must be its own, since what others add to it without a gradient is in the difference. All
parts of a task or method that see private values before the clip, and what keeps each to one
example:

- The model and ``Task.loss``: probed here; the loss is (N,) at every step.
- ``Method.precondition``: sees factors, un-noised in the local steps of the client unit; each
  client's maps must be those of its own matrix: probed here.
- ``Plan.optimizer``: sees gradients, in the client unit without noise; each client's step must be
  its own (`make_config`).
- ``Method.filter`` sees noised values only; ``initial_factors``, ``broadcast`` and ``aggregate``
  what the server sent or received; ``clip_groups`` and ``schedule`` names and numbers.
- ``Task.metrics``: see test examples, which are public or not evaluated under privacy.

There are two probes. In a batch as large as a step's each example must have the gradient that it
has alone. Beside others that are not numbers, or huge, or other texts, it must have the same
gradient to the last digits. They find mistakes, not code that behaves otherwise when it is not
probed.
"""

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fedlora_lab._utils.torch_state import full_precision
from fedlora_lab._utils.validation import check, in_one_line
from fedlora_lab.lora.adapters import AdaptedModel
from fedlora_lab.lora.per_example import example_losses, model_outputs, per_example_gradients
from fedlora_lab.methods.directions import ALONG
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import Keys, ParamKey, TensorDict, Tensors
from fedlora_lab.privacy.privatizer import maps_of, row_norms
from fedlora_lab.tasks.ragged import Ragged
from fedlora_lab.tasks.task import Examples, Task, concatenate, map_inputs, named_tensors, take

PROBES = 4
"""Examples whose gradients are compared."""
MAX_EXAMPLES = 256
"""In the batch that is as large as a step: a probe must not cost much more than the step."""
DISTURBANCES = (float("nan"), 1e6)
"""What the others of a batch are multiplied by."""
_PROBED: "weakref.WeakKeyDictionary[Task, set[Any]]" = weakref.WeakKeyDictionary()
"""Task -> what was found sound, by all that a verdict depends on; the runs of a comparison share
it."""


def check_batch_independence(
    task: Task,
    adapted: AdaptedModel,
    method: Method,
    rows: int,
    keys: Iterable[ParamKey],
) -> None:
    """Refuses a model, loss or rule through which the examples of a batch influence each other.

    Finds batch statistics, attention across the batch, losses that reduce, broadcast or choose over
    the batch, computations that depend on the padded width, layers whose input does
    not come batch first, random numbers, and models that keep something of their examples.

    Args:
        task, adapted: whose examples go through which model.
        method: whose preconditioner is probed, and whether it releases losses.
        rows: examples that a step passes at once, as far as is foreseen.
        keys: tensors with which the run begins, a core or an own kind's included.

    Raises: ``ValueError`` with the reason.
    Guarantees: tests/lab/lora/test_attack_examples.py.
    """
    moving = tuple(key for key in keys if key.kind.trained)
    rows = min(max(rows, PROBES), MAX_EXAMPLES)
    by_losses = method.differences is not None
    probed = _PROBED.setdefault(task, set())
    verdict = (str(adapted.device), by_losses, moving, rows)
    if verdict not in probed:
        setting = _Setting.drawn(task, adapted, moving)
        before = [buffer.clone() for buffer in adapted.model.buffers()]
        with full_precision():
            _probe(setting, rows)
            if by_losses:
                _probe(replace(setting, of_losses=True), rows)
        # Also what was written through ``.data``, which no pass notices.
        pairs = zip(before, adapted.model.buffers(), strict=True)
        same = all(torch.equal(old, new) for old, new in pairs)
        setting.refuse_unless(same, "passes that change no parameter or buffer of the model")
        probed.add(verdict)
    if method.clip_groups is not None:
        with in_one_line("clip_groups: expected a number or text for each tensor, but"):
            set(map(method.clip_groups, moving))
    if method.precondition is not None:
        rank = next(len(x) for key, x in adapted.initial.items() if key.name == "A")
        _probe_preconditioner(method, rank)


@dataclass(frozen=True)
class _Setting:
    """What is probed, and tensors of its own for each of the probed examples.

    Args:
        task, adapted, moving: the loss, the model, what moves.
        params: key -> (PROBES, ...): where the examples' clients are.
        of_losses: whether the losses are compared, in the place of their gradients.
    """

    task: Task
    adapted: AdaptedModel
    moving: Keys
    params: Tensors
    of_losses: bool = False

    @classmethod
    def drawn(cls, task: Task, adapted: AdaptedModel, moving: Keys) -> "_Setting":
        # A generator of its own: a probe must not move the random numbers of its user.
        generator = torch.Generator().manual_seed(0)
        like = next(iter(adapted.initial.values()))
        shapes = {key: _shape(adapted, key) for key in (*adapted.shapes, *moving)}

        # A step passes examples of several clients at once: each has factors of its own.
        unit = {k: torch.randn(PROBES, *s, generator=generator) for k, s in shapes.items()}
        params = {key: 0.1 * tensor.to(like) for key, tensor in unit.items()}
        return cls(task, adapted, moving, params)

    def rows(self, data: Examples, owner: Tensor) -> Tensors:
        """Each example's gradient or, key -> (n, 1), its loss.

        Unequal weights find a loss whose gradient is divided by their sum.
        """
        where = self.task, self.adapted, self.params
        if self.of_losses:
            return {ALONG: example_losses(*where, data, owner)[:, None]}
        weights = torch.linspace(0.7, 1.6, PROBES, dtype=torch.float64)[owner]
        return per_example_gradients(*where, self.moving, data, owner, weights)

    def beside_strange(self, data: Examples, i: int, scale: float) -> Tensors:
        """Each example's gradient, or its loss, where all but example i are disturbed."""

        def strange(x: Any) -> Any:
            return _strange(x, i, scale)

        params = {key: strange(tensor) for key, tensor in self.params.items()}
        setting = replace(self, params=params)
        try:
            return setting.rows(
                (map_inputs(strange, data[0]), strange(data[1])), torch.arange(PROBES)
            )
        except Exception as error:  # whatever a foreign model raises
            reason = f"others times {scale:g}: {type(error).__name__}"
            expected = f"a pass that the values of no example stop ({reason})"
            setting.refuse_unless(False, expected)
            raise

    def refuse_unless(self, ok: bool, expected: str) -> None:
        check(ok, "model", type(self.task.model).__name__, expected)


def _probe(setting: _Setting, rows: int) -> None:
    """Compares each example's gradient, or its loss, in a batch with the one it has otherwise.

    Args:
        setting: what is compared.
        rows: of the batch that is as large as a step's.
    """
    task = setting.task
    like = next(iter(setting.adapted.initial.values()))
    with in_one_line("model: expected a pass over the test examples, but"):
        examples = probes(task, setting.adapted)
    together = setting.rows(examples, torch.arange(PROBES))
    what = "losses" if setting.of_losses else "gradients"
    finite = all(bool(tensor.isfinite().all()) for tensor in together.values())
    setting.refuse_unless(finite, f"finite {what} of the test examples (here they are not)")
    # Where the model is sure of an example, its gradient is hardly more than rounding: a gap is
    # then measured against the gradients of the others.
    sizes = row_norms(together).cpu()
    sizes = sizes.clamp(min=max(1e-12, 0.03 * float(sizes.max())))

    def compare(i: int, one: Tensors, other: Tensors, tolerance: float) -> None:
        gap = float(row_norms({key: one[key] - other[key] for key in one}).cpu() / sizes[i])
        expected = "examples that do not mix, batch first, and no random numbers"
        if setting.of_losses:
            expected += "; a row of differences releases losses, with what has no gradient in them"
        # "Not within" instead of "beyond": a gap that is not a number is refused as well, such as
        # that of a batch of one, which has no variance to divide by.
        setting.refuse_unless(gap <= tolerance, expected)

    # A batch of one is computed in another order than a large one, and rounds otherwise.
    rough = _tolerance(like, task.model)
    # As large as a step's: a loss may keep the hardest of many alone.
    repeated = torch.arange(rows - PROBES) % len(task.test[1])
    others = [(take(task.test[0], repeated), task.test[1][repeated])] if len(repeated) else []
    full = setting.rows(concatenate([examples, *others]), torch.arange(rows) % PROBES)
    # Nothing of the example's own has changed, nor any shape: there is hardly anything to round.
    exact = 20 * torch.finfo(like.dtype).eps
    for i in range(PROBES):
        one = torch.tensor([i])
        alone = setting.rows((take(examples[0], one), examples[1][one]), one)
        compare(i, _row(full, i), alone, rough)
        for scale in DISTURBANCES:
            strange = setting.beside_strange(examples, i, scale)
            compare(i, _row(together, i), _row(strange, i), exact)


def _row(rows: Tensors, i: int) -> TensorDict:
    return {key: tensor[i : i + 1] for key, tensor in rows.items()}


def _strange(x: Any, i: int, scale: float) -> Any:
    """The same rows, but all except row i multiplied or, of whole numbers, copies of another."""
    others = torch.arange(len(x)) != i
    if x.is_floating_point():
        # Added as well: zero times anything is zero.
        rows = others.to(x.device).view(-1, *[1] * (x.ndim - 1))
        return torch.where(rows, (x + 1) * scale, x)
    # Tokens cannot be strange, but others: those of the second text. It is the longest, and the
    # first is short, so that the batch is as wide as it was, and as much of it is padding: without
    # any, attention takes another way, which rounds otherwise.
    return x[torch.where(others, torch.tensor([0, 1, 1, 1]), i)]


def _shape(adapted: AdaptedModel, key: ParamKey) -> tuple[int, ...]:
    """The shape of a tensor, also of one that only a method's ``initial_factors`` make."""
    if key in adapted.shapes:
        return adapted.shapes[key]
    assert key.kind.shape is not None
    rank = adapted.shapes[ParamKey("A", key.layer)][0]
    d_out, d_in = adapted.weights[key.layer].shape
    return key.kind.shape(d_out, d_in, rank)


def _tolerance(like: Tensor, model: torch.nn.Module) -> float:
    """Far above what rounding does to a gradient, far below what a mean over the batch does."""
    # A base in half precision rounds as such, whatever its adapters have.
    dtypes = {like.dtype, *(x.dtype for x in model.parameters() if x.is_floating_point())}
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    return max(20 * eps, min(10 * eps**0.5, 0.01))


def _probe_preconditioner(method: Method, rank: int) -> None:
    """Compares the maps of several clients with those beside huge matrices of others.

    Args: method: with the rule. rank: of the run's factors: a rule may know no other.
    """
    assert method.precondition is not None
    # Matrices as the rule sees them: symmetric, and positive definite.
    random = torch.Generator().manual_seed(0)
    half = torch.randn(PROBES, rank, 2 * rank + 2, generator=random)
    gram = half @ half.mT
    together = maps_of(method.precondition, gram)
    for i, which in product(range(PROBES), ("before", "after", "of_noise")):
        own_map = getattr(together, which)[i]
        crowded = getattr(maps_of(method.precondition, _strange(gram, i, 1e6)), which)[i]
        expected = "maps of each client's own matrix alone, however large the others are"
        # Nothing of the client's own has changed: there is hardly anything to round.
        same = bool((own_map - crowded).norm() <= 1e-6 * own_map.norm())
        check(same, "precondition", method.precondition, expected)


# ---- what is probed


def probes(task: Task, adapted: AdaptedModel) -> Examples:
    """Makes four examples of the test's, of which the first and the last have one target.

    Equal targets find a loss that compares examples of one class, unequal ones all others. Of texts
    the first is cut to its ends, and the second is as long as any of the task's: of a model that
    sees how wide a batch is padded one long text decides how others are computed.
    """
    index = torch.arange(PROBES) % len(task.test[1])
    x = take(task.test[0], index)
    y = task.test[1][index]
    columns = [column for part in task.parts.values() for column in named_tensors(part).values()]
    longest = max((column.shape[1] for column in columns if isinstance(column, Ragged)), default=0)
    if longest:
        x = map_inputs(lambda column: _of_both_lengths(column, longest), x)
    if isinstance(y, Ragged):
        return x, _of_both_lengths(y, longest)
    if y.ndim == 1 and not y.is_floating_point():
        # Of the adapted copy: a pass might write into the user's own model.
        outputs = model_outputs(task, adapted, adapted.initial, x)
        scores = isinstance(outputs, Tensor) and outputs.ndim == 2
        return x, torch.tensor([0, 1, 2, 0]) % (outputs.shape[1] if scores else int(y.max()) + 1)
    return x, y[torch.tensor([0, 1, 2, 0])]


def longest_probe(task: Task, adapted: AdaptedModel) -> Examples:
    """One of the `probes`; of texts the one as long as any example of the task can be."""
    x, y = probes(task, adapted)
    place = torch.tensor([1])
    return take(x, place), y[place]


def _of_both_lengths(column: Any, longest: int) -> Any:
    """Four texts, the first cut to its ends, the second drawn out by a token in its middle."""
    if not isinstance(column, Ragged):
        return column
    first, second, *rest = column.rows()
    middle = len(second) // 2
    repeats = second[middle].repeat(longest - len(second))
    # A text keeps its ends: some classifiers refuse one that has its end mark never or twice.
    first = first[[0, -1]][: len(first)]
    second = torch.cat([second[:middle], repeats, second[middle:]])
    return Ragged.of_rows([first, second, *rest], column.padding)
