"""Checks that no example's gradient depends on the other examples of its batch.

Where they influence each other none has a gradient of its own, and no clip bounds what one of them
adds. All parts of a task or method that see private values before the clip, and what keeps each to
one example:

- ``Task.prepare``, ``Task.forward``, the model and ``Task.loss``: probed here, texts at the widths
  that padding gives them; the loss is (N,) at every step. A pass leaves the model as it was.
- ``Method.penalty``: probed for each set of tensors that moves together, before the run or, where
  the server chooses layer by layer, before the first such step; (N,) at every step.
- ``Method.precondition``: sees factors, un-noised in the local steps of the client unit; each
  client's maps must be those that it has alone.
- ``Method.filter`` sees noised values only; ``clip_reference``, ``start``, ``broadcast`` and
  ``aggregate`` what the server sent or received; ``clip_groups`` and ``train`` names and numbers.
- ``Task.metrics``: see test examples, which are public or not evaluated under privacy.

A probe finds mistakes, not code that behaves otherwise when it is not probed. It knows texts by
their ``attention_mask`` (n, tokens), and sees what modules hold as tensors and floats only.
"""

import weakref
import zlib
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedlora_lab._utils.validation import check
from fedlora_lab.lora.peft import (
    AdaptedModel,
    Adapter,
    PerExampleLinear,
    matmuls,
)
from fedlora_lab.lora.per_example import per_example_gradients, prepare_inputs
from fedlora_lab.methods.filters import Preconditioner
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Plan
from fedlora_lab.methods.state import Keys, ParamKey, Tensors
from fedlora_lab.privacy.mechanism import row_norms
from fedlora_lab.tasks.metrics import IGNORED
from fedlora_lab.tasks.task import Examples, Task, mask_of, take

PROBE_EXAMPLES, MAX_PROBE_EXAMPLES = 4, 256
"""Examples in a probe; and at most so many in the one that is as large as a step."""
DISTURBANCES = float("nan"), 1e6
"""What the others of a batch are multiplied by."""
MACHINE_EPSILON = {"bfloat16": 2.0**-7, "tf32": 2.0**-10}
"""Of the products; elsewhere it is that of the tensors' own type."""
MOST_ROUNDS = 1000
"""Rounds of a schedule that are looked at before the run; later ones when they come."""

_DONE: "weakref.WeakKeyDictionary[Task, dict[Any, int]]" = weakref.WeakKeyDictionary()
"""Task -> products, device, row with a penalty, and keys probed -> with how many examples."""


def check_batch_independence(
    task: Task,
    adapted: AdaptedModel,
    products: str = "float32",
    method: Method | None = None,
    plan: Plan | None = None,
    rows: int = PROBE_EXAMPLES,
    keys: Iterable[ParamKey] | None = None,
) -> None:
    """Refuses a model, loss or rule through which the examples of a batch influence each other.

    Four public examples have distinct inputs, targets that differ and that agree, and factors of
    their own. In a batch each must have the gradient that it has in a batch of one; to the last
    digits the same beside others that are not numbers or are huge; and so in a batch of ``rows``,
    of which each half is looked at alone.

    Finds batch statistics, attention across the batch, losses and penalties that reduce, broadcast
    or choose over the batch, computations that depend on the padded width, layers whose input does
    not come batch first, and models that keep something of the examples they have seen.

    Args:
        task, adapted, products: whose examples go through which model, in which precision.
        method, plan: whose penalty and preconditioner are probed, for which steps.
        rows: examples that a step passes at once, as far as is foreseen.
        keys: tensors with which the run begins; ``None``: all that the model has a place for.

    Raises: ``ValueError`` with the reason.
    Guarantees: test_models_that_mix_examples_are_refused, tests/lora/test_attack_examples.py.
    """
    _probe_once(task, adapted, products, None, tuple(adapted.shapes), rows)
    if method is not None and method.penalty is not None:
        plan = plan or Plan()
        steps = product(range(min(plan.rounds, MOST_ROUNDS)), range(plan.local_steps))
        words = {method.sides_at_step(t, s) for t, s in steps}
        # Of a choice layer by layer the two extremes; `check_penalty` sees the others.
        words = {side for word in words for side in ("AB" if word == "*" else (word,))}
        keys = [*adapted.shapes, *adapted.optional] if keys is None else keys
        keys = [key for key in keys if key.kind.trained]
        for word in sorted(words):
            moving = tuple(k for k in keys if not k.kind.scheduled or k.side in word)
            _probe_once(task, adapted, products, method, moving, rows)
    if method is not None and method.precondition is not None:
        _probe_preconditioner(method.precondition, next(iter(adapted.initial.values())))


def check_penalty(
    task: Task, adapted: AdaptedModel, products: str, method: Method, moving: Keys
) -> None:
    """Refuses a penalty that mixes examples where just these tensors move; probed once for a set.

    Called at every step, since a schedule that chooses layer by layer settles what moves only then.

    Args:
        task, adapted, products, method: as for `check_batch_independence`.
        moving: the tensors that move in this step.

    Raises: ``ValueError`` with the reason, before the penalty sees an example of a client.
    Guarantees: test_a_penalty_is_asked_about_every_choice_of_layers.
    """
    if method.penalty is not None and moving:
        _probe_once(task, adapted, products, method, moving, PROBE_EXAMPLES)


def _probe_once(
    task: Task, adapted: AdaptedModel, products: str, row: Method | None, moving: Keys, rows: int
) -> None:
    rows, done = min(max(rows, PROBE_EXAMPLES), MAX_PROBE_EXAMPLES), _DONE.setdefault(task, {})
    # All that a verdict depends on: another precision, penalty or set of tensors is probed anew.
    key = products, str(adapted.device), row, frozenset(moving)
    if done.get(key, 0) < rows:
        with matmuls(products):
            _probe(task, adapted, products, row, moving, rows)
        done[key] = rows


def _probe(
    task: Task, adapted: AdaptedModel, products: str, row: Method | None, moving: Keys, rows: int
) -> None:
    """Compares each example's gradient in a batch with the one it has alone or in another batch."""
    # A generator of its own: a probe must not move the random numbers of its user.
    random, like = torch.Generator().manual_seed(0), next(iter(adapted.initial.values()))
    shapes = {key: _shape(adapted, key) for key in (*adapted.shapes, *moving)}
    # Factors of its own for each example: a step passes examples of several clients at once.
    params, start = (
        {
            k: 0.1 * torch.randn(PROBE_EXAMPLES, *s, generator=random).to(like)
            for k, s in shapes.items()
        }
        for _ in range(2)
    )
    weights = torch.linspace(0.7, 1.6, PROBE_EXAMPLES, dtype=torch.float64)
    name, value = ("model", type(task.model).__name__) if row is None else ("penalty", row.penalty)

    def gradients(data: Examples, who: Tensor, params: Any = params, start: Any = start) -> Tensors:
        w = weights[who]
        return per_example_gradients(task, adapted, params, moving, data, who, row, start, w)

    def part_of(data: Examples, index: Tensor) -> Tensors:
        return gradients((take(data[0], index), data[1][index]), index % PROBE_EXAMPLES)

    def compare(found: Tensors, whole: Tensors, index: Tensor, tolerance: float) -> None:
        # Where the model is sure of an example, its gradient is hardly more than rounding: the gap
        # is then measured against the gradients of the others.
        sizes = row_norms(whole).cpu()
        sizes = sizes.clamp(min=max(1e-12, 0.03 * float(sizes.max())))[index]
        gaps = row_norms({key: found[key] - whole[key][index] for key in moving}).cpu() / sizes
        # "Not within" instead of "beyond": a gap that is not a number is refused as well, such as
        # that of a batch of one, which has no variance to divide by.
        mixing = gaps[~(gaps <= tolerance)]
        far = float(mixing.nan_to_num(torch.inf).max()) if len(mixing) else 0.0
        words = f"examples that do not mix, batch first (they differ by {far:.1g})"
        check(not len(mixing), name, value, words)

    everyone, data = torch.arange(PROBE_EXAMPLES), probes(task)
    # One text as short as can be beside two as long as the task's longest.
    for i, fill in ((0, True), (1, False), (PROBE_EXAMPLES - 1, True)) if row is None else ():
        data = _resized(task, data, i, fill)
    rough, same = _tolerance(like, products), 20 * torch.finfo(like.dtype).eps
    together = gradients(data, everyone)
    finite = all(bool(tensor.isfinite().all()) for tensor in together.values())
    check(finite, name, value, "finite gradients of public examples (here they are not)")
    for one in everyone.split(1):
        compare(part_of(data, one), together, one, rough)
    if row is None:
        # Both passes have the task's width: a table that depends on the width alone is no memory of
        # an example.
        part_of(data, everyone[:1])
        before = _contents(adapted.model)
        part_of(data, everyone[-1:])
        after, words = _contents(adapted.model), "a model whose passes change nothing in it"
        for what in before | after:
            check(before.get(what) == after.get(what), what, "changed by a pass", words)
    # Others that are not numbers show any arithmetic that reaches across examples, however small
    # its coefficient; huge ones show what passes over such values.
    embeddings = [module for module in adapted.model.modules() if isinstance(module, nn.Embedding)]
    for i, scale in product(range(PROBE_EXAMPLES), DISTURBANCES):

        def strange(module: Any, given: Any, out: Any, i: int = i, scale: float = scale) -> Any:
            """What an embedding gives for the other rows: tokens themselves cannot be strange."""
            rows = isinstance(out, Tensor) and out.ndim > 2 and len(out) == PROBE_EXAMPLES
            return _strange(out, i, scale) if rows else out

        x, y, factors, begin = (_strange(part, i, scale) for part in (*data, params, start))
        with ExitStack() as hooks:
            for module in embeddings:
                hooks.enter_context(module.register_forward_hook(strange))
            try:
                found = gradients((x, y), everyone, factors, begin)
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
                words = f"passes that no example can stop (beside others times {scale:g}: {reason})"
                found = check(False, name, value, words) or {}
        # Nothing of its own has changed, nor any shape: there is hardly anything to round.
        one = everyone[i : i + 1]
        compare({key: x[one] for key, x in found.items()}, together, one, same)
    # Half of a batch as large as a step's shows what depends on how many examples there are.
    if rows > PROBE_EXAMPLES:
        index, (x, y) = torch.arange(rows), task.test
        many = take(x, index % len(y)), y[index % len(y)]
        full = part_of(many, index)
        for half in index.tensor_split(2):
            compare(part_of(many, half), full, half, rough)


def _shape(adapted: AdaptedModel, key: ParamKey) -> tuple[int, ...]:
    """The shape of a tensor, also of one that only a method's ``start`` makes."""
    if key in adapted.shapes:
        return adapted.shapes[key]
    rank = adapted.shapes[ParamKey("A", key.layer)][0]
    return key.kind.shape(*adapted.weights[key.layer].shape, rank)  # type: ignore[misc]


def _tolerance(like: Tensor, products: str) -> float:
    """Far above what rounding does to a gradient, far below what a mean over the batch does."""
    eps = max(torch.finfo(like.dtype).eps, MACHINE_EPSILON.get(products, 0.0))
    return max(20 * eps, min(10 * eps**0.5, 0.01))


def _strange(x: Any, i: int, scale: float) -> Any:
    """The same rows, but all except row i multiplied or, of whole numbers, exchanged."""
    if isinstance(x, Mapping):
        return {key: _strange(value, i, scale) for key, value in x.items()}
    others = [j for j in range(len(x)) if j != i]
    x = x.clone()
    # Added as well: zero times anything is zero.
    x[others] = (x[others] + 1) * scale if x.is_floating_point() else x[[*others[1:], others[0]]]
    return x


def _contents(model: nn.Module) -> dict[str, list[Any]]:
    """Name -> type, shape and checksum of what is held under it, but for what passes put into our
    own modules.
    """

    def content(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return repr(x)
        if x.is_meta:
            return x.shape, x.dtype
        flat = x.detach().cpu().contiguous().flatten().view(torch.uint8)
        return x.shape, x.dtype, zlib.crc32(flat.numpy())  # type: ignore[arg-type]

    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, (Adapter, PerExampleLinear)):
            own = {k: v for k, v in vars(module).items() if k not in ("_parameters", "_buffers")}
            for key, value in (own | module._parameters | module._buffers).items():
                leaves = [x for x in tree_leaves(value) if isinstance(x, (Tensor, float))]
                path = ".".join(filter(None, (name, key)))
                found[f"model.{path}"] = [content(x) for x in leaves]
    return found


def _probe_preconditioner(rule: Any, like: Tensor) -> None:
    """Compares several clients' maps at once with those of each alone and beside huge ones."""
    name, words = "precondition", "maps of each client's own matrix alone"

    def maps(gram: Float[Tensor, "n r r"]) -> list[Tensor]:
        found = rule(gram)
        check(isinstance(found, Preconditioner), name, rule, "a rule that gives a Preconditioner")
        for x in found:
            expected = f"{tuple(gram.shape)}, a map for each matrix"
            check(x.shape == gram.shape, name, tuple(x.shape), expected)
        return list(found)

    half = torch.randn(PROBE_EXAMPLES, 3, 8, generator=torch.Generator().manual_seed(0)).to(like)
    gram = half @ half.mT
    together = maps(gram)
    for i in range(PROBE_EXAMPLES):
        alone, beside_huge = maps(gram[i : i + 1]), maps(_strange(gram, i, 1e6))
        for own, one, many in zip(together, alone, beside_huge, strict=True):
            gap = float((own[i] - one[0]).norm() / one[0].norm().clamp(min=1e-12))
            near = gap <= _tolerance(like, "float32")
            check(near, name, rule, f"{words} (they differ by {gap:.1g})")
            same = bool((own[i] - many[i]).abs().max() <= 1e-6 * many[i].norm())
            check(same, name, rule, f"{words}, however large the others are")


def probes(task: Task) -> Examples:
    """Makes four examples of public ones: inputs differ, the first and the last target agree.

    Where they repeat, floating inputs are disturbed, tokens change places and classes are put in.
    """
    x, y = task.test
    index = torch.arange(PROBE_EXAMPLES) % len(y)
    classes, x, y = y.unique(), take(x, index), y[index]
    for i in range(1, PROBE_EXAMPLES):
        rows = tree_leaves(x)
        if any(all(torch.equal(v[i], v[j]) for v in rows) for j in range(i)):
            if isinstance(x, Mapping):
                mask, moved = mask_of(x), [k for k in x if "mask" not in k and "type" not in k]
                x = {**x, **{k: _disturbed(x[k], i, mask) for k in moved}}
            else:
                x = _disturbed(x, i)
    if y.ndim == 1 and not y.is_floating_point():
        if len(classes) == 1:
            with torch.no_grad():
                device = next(task.model.parameters()).device
                outputs = task.forward(task.model, prepare_inputs(task, x, device))
            many = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else 1
            classes = (classes + torch.arange(max(many, 1))) % max(many, int(classes) + 1)
        return x, classes[torch.tensor([0, 1, 2, 0]) % len(classes)]
    if any(not torch.equal(y[0], y[i]) for i in range(1, PROBE_EXAMPLES - 1)):
        return x, y
    y = y.clone()
    if y.is_floating_point():
        steps = (torch.tensor([0, 1, 2, 0]).to(y) / PROBE_EXAMPLES).view(-1, *[1] * (y.ndim - 1))
        # Probabilities stay probabilities.
        return x, (y - steps).abs() if bool(((y >= 0) & (y <= 1)).all()) else y + steps
    mask, there = mask_of(x), y != IGNORED
    there = there & mask.bool() if mask is not None and mask.shape == y.shape else there
    for i in range(1, PROBE_EXAMPLES - 1):
        y[i] = _rotated(y[i], i, there[i])
    return x, y


def widest_probes(task: Task) -> Examples:
    """Makes `probes` whose texts fill the whole width of the task's."""
    data = probes(task)
    for i in range(PROBE_EXAMPLES):
        data = _resized(task, data, i, fill=True)
    return data


def _disturbed(x: Tensor, i: int, mask: Tensor | None = None) -> Tensor:
    """A copy with another row i: noise on floating numbers; others change places in the mask."""
    x = x.clone()
    if x.is_floating_point():
        noise = torch.randn(x[i].shape, generator=torch.Generator().manual_seed(i)).to(x)
        x[i] += noise * (x.double().std(correction=0).to(x) * 0.3).clamp(min=1e-2)
    elif x.ndim > 1:
        there = torch.ones_like(x[i]) if mask is None or mask.shape != x.shape else mask[i]
        x[i] = _rotated(x[i], i, there.bool())
    return x


def _rotated(row: Tensor, places: int, there: Tensor) -> Tensor:
    """The numbers at some places of a row, each in the place of another; padding stays."""
    found = row[there]
    return row.masked_scatter(there, found.roll(1 + (places - 1) % max(len(found) - 1, 1)))


def _resized(task: Task, data: Examples, i: int, fill: bool) -> Examples:
    """Row i of texts filled up to the task's width, or cut to what equals its first or last token.

    Those are mostly marks, so an inner token is repeated. Padding is taken from the public examples
    or, where they have none, from the model's configuration.
    """
    (x, y), mask, public = data, mask_of(data[0]), mask_of(task.test[0])
    there = mask[i].nonzero().flatten().tolist() if mask is not None and mask.ndim == 2 else []
    if not there or mask is None or public is None:
        return data
    ids: Any = x.get("input_ids")
    width, known = mask.shape[1], getattr(ids, "shape", None) == mask.shape
    tokens = ids[i, there].tolist() if known else list(range(len(there)))
    marks = [j for j, token in enumerate(tokens) if token in (tokens[0], tokens[-1])]
    if fill:
        inner = [j for j in range(len(tokens)) if j not in marks] or [len(tokens) // 2]
        j = inner[len(inner) // 2]
        source = [*there[:j], *[there[j]] * (width - len(there) + 1), *there[j + 1 :]]
        to = list(range(width))
    else:
        source = [there[j] for j in marks]
        to = there[: len(source)] if there[0] == 0 else there[-len(source) :]
    padding = (public == 0).nonzero()[:1]

    def moved(rows: Tensor, like: Tensor, usual: int) -> Tensor:
        if rows.shape[:2] != mask.shape:
            return rows
        rows, old = rows.clone(), rows[i]
        rows[i] = like[tuple(padding[0])] if len(padding) else usual
        rows[i, to] = old[source]
        return rows

    config: Any = getattr(task.model, "config", None)
    usual = {"input_ids": getattr(config, "pad_token_id", None) or 0}
    x = {key: moved(rows, task.test[0][key], usual.get(key, 0)) for key, rows in x.items()}
    return x, y if y.is_floating_point() else moved(y, task.test[1], IGNORED)
