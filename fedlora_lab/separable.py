"""Examples that touch each other have no gradient of their own: what lets them is found and refused.

Every function of a task or a method that sees private values before the clip, and what keeps it to one example:

- ``Task.prepare``, ``Task.forward``, the model, ``Task.loss``: the probe below, and the loss is (N,) at every step.
  Texts are probed at the widths that padding gives them: one as long as the task's longest, one as short as can be.
- A model's buffers and other values it keeps: they must be the same after a pass as before it.
- ``Method.penalty``: probed once for each set of tensors that the schedule moves, before the run; where it chooses
  layer by layer, before the first step that moves the set. It is (N,) at every step.
- ``Method.whiten``: sees the factors, un-noised at the local steps of the client unit; each client's maps must be those
  that it has alone.
- ``Method.smooth``: sees noised values only.
- ``Method.clips``, ``start``, ``broadcast``, ``aggregate``: see what the server sent or received.
- ``Method.parts``, ``train``: see names and round numbers.
- ``Task.metrics``: see test examples, which are public or not evaluated under privacy (``Task.public_test``).

A probe finds mistakes. It cannot find code that behaves otherwise when it is not probed. It knows texts by their
``attention_mask`` (n, tokens) only, and sees the values that modules hold as tensors and floating numbers only.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fedlora_lab.adapters import Adapted
from fedlora_lab.checks import check
from fedlora_lab.compute.placing import matmuls
from fedlora_lab.mechanism import row_norms
from fedlora_lab.method import Cycle, Method, Slot
from fedlora_lab.passes import per_example_gradients, ready
from fedlora_lab.plan import Plan
from fedlora_lab.rules import Whitening
from fedlora_lab.stacked import Adapter, Stacked
from fedlora_lab.tasks.encode import IGNORED
from fedlora_lab.tasks.task import Examples, Task, mask_of, take

PROBES, MOST = 4, 256
"""Examples in a probe; and at most so many in the one that is as large as a step."""
SCALES = float("nan"), 1e6
"""What the others of a batch are multiplied by."""
PLAIN = Method("plain", "")
"""Stands for the model and the loss alone, which are probed once for all rows."""
EPS = {"bfloat16": 2.0**-7, "tf32": 2.0**-10}
MOST_STEPS = 200_000
"""Steps of a schedule that are looked at; of a longer one every word is probed."""
_Probed = weakref.WeakKeyDictionary[Method, dict[frozenset[Slot] | str, int]]
Bank = dict[Slot, Tensor]
_SEPARABLE: "weakref.WeakKeyDictionary[Task, dict[Any, _Probed]]" = weakref.WeakKeyDictionary()
"""Task -> products and device -> row -> what was probed, the sets of slots that moved together, and "whiten", with how
many examples."""


def check_separable(
    task: Task,
    adapted: Adapted,
    products: str = "float32",
    method: Method = PLAIN,
    plan: Plan | None = None,
    rows: int = PROBES,
) -> None:
    """Refuse a model, loss or rule through which examples touch each other.

    Four public examples with distinct inputs, targets that differ and targets that agree, and factors of their own.
    The gradient of a sum of their losses with unequal weights must be, for each of them, its weight times the gradient
    it has in a batch of one: so neither the values of other examples enter it, nor does its loss depend on their
    factors, nor on how far the longest text pads the others. It must stay so, to the last digits, beside others that
    are not numbers or are huge; and in a batch of ``rows``, of which each half is looked at alone.

    Finds batch statistics, attention across the batch, losses and penalties that reduce, broadcast or choose over the
    batch, computations that depend on the padded width, layers whose input does not come batch first, and models that
    keep something of the examples they have seen. Done once for a task, the type of its products, the rules of a row
    and each set of slots that its schedule moves together.

    Args: rows: examples that a step passes at once, as far as is foreseen; more than ``MOST`` are not probed.
    Raises: ``ValueError`` with the reason.
    Guarantees: tests/test_engine.py::test_models_that_mix_examples_are_refused, tests/test_attack_examples.py.
    """
    _ask(task, adapted, products, PLAIN, tuple(adapted.shapes), min(rows, MOST))
    for moving in _moving(method, adapted, plan or Plan()) if method.penalty is not None else ():
        _ask(task, adapted, products, method, moving, min(rows, MOST))
    probed = _probed(task, adapted, products).setdefault(method, {})
    if method.whiten is not None and "whiten" not in probed:
        with matmuls(products):
            _probe_whitening(method, next(iter(adapted.given.values())))
        probed["whiten"] = PROBES


def check_penalty(task: Task, adapted: Adapted, products: str, method: Method, moving: tuple[Slot, ...]) -> None:
    """Refuse a penalty that mixes examples where just these slots move: asked at every step, done once for a set.

    A schedule that chooses layer by layer settles what moves only then.

    Raises: ``ValueError`` with the reason, before the penalty sees an example of a client.
    Guarantees: tests/test_attack_examples.py::test_a_penalty_is_asked_about_every_choice_of_layers.
    """
    if method.penalty is not None:
        _ask(task, adapted, products, method, moving, PROBES)


def _probed(task: Task, adapted: Adapted, products: str) -> _Probed:
    key = products, str(adapted.device)
    return _SEPARABLE.setdefault(task, {}).setdefault(key, weakref.WeakKeyDictionary())


def _ask(task: Task, adapted: Adapted, products: str, row: Method, moving: tuple[Slot, ...], rows: int) -> None:
    known, rows = _probed(task, adapted, products).setdefault(row, {}), max(rows, PROBES)
    if known.get(frozenset(moving), 0) < rows:
        with matmuls(products):
            _probe(task, adapted, products, row, moving, rows)
        known[frozenset(moving)] = rows


def _moving(row: Method, adapted: Adapted, plan: Plan) -> list[tuple[Slot, ...]]:
    """The sets of slots that move together at some step; of a choice layer by layer its two extremes."""
    words = {side for word in _words(row, plan) for side in ("AB" if word == "*" else (word,))}
    slots = [*adapted.shapes, *(Slot("R", layer) for layer in adapted.weights)]
    return [tuple(slot for slot in slots if slot.side == "head" or slot.side in word) for word in sorted(words)]


def _words(row: Method, plan: Plan) -> set[str]:
    """Every word of a cycle, whatever the plan; of another schedule those of the plan's steps."""
    if isinstance(row.train, Cycle):
        return {"AB" if word == "BA" else word for word in " ".join(row.train.rounds).split()}
    if plan.rounds * plan.local_steps > MOST_STEPS:
        return {"A", "B", "AB"} | ({"R"} if row.start is not None else set())
    return {row.moves(t, s) for t, s in product(range(plan.rounds), range(plan.local_steps))}


def _probe(task: Task, adapted: Adapted, products: str, row: Method, moving: tuple[Slot, ...], rows: int) -> None:
    """Compare each example's gradient in a batch with what it is alone, beside strange others, and in a larger batch.

    Others that are not numbers show any arithmetic that reaches across examples, however small its coefficient; others
    that are huge show what passes over such values; half of a batch as large as a step's shows what depends on how many
    there are. The model must be after a pass what it was before.
    """
    random = torch.Generator().manual_seed(0)
    like = next(iter(adapted.given.values()))
    shapes = {slot: adapted.shapes.get(slot) or _core(adapted, slot) for slot in (*adapted.shapes, *moving)}
    bank, start = (
        {slot: 0.1 * torch.randn(PROBES, *shape, generator=random).to(like) for slot, shape in shapes.items()}
        for _ in range(2)
    )
    weights = torch.linspace(0.7, 1.6, PROBES, dtype=torch.float64)
    given, owner = probes(task, adapted), torch.arange(PROBES)
    whole = _lengthened(task, _shortened(task, given, 1), 0) if row is PLAIN else given

    def gradients(data: Examples, who: Tensor, bank: Bank = bank, start: Bank = start) -> dict[Slot, Tensor]:
        return per_example_gradients(task, adapted, bank, moving, data, who, row, start, weights[who])

    def by_itself(data: Examples, i: int) -> dict[Slot, Tensor]:
        one = owner[i : i + 1]
        return gradients((take(data[0], one), data[1][one]), one)

    together = gradients(whole, owner)
    name, value = ("model", type(task.model).__name__) if row is PLAIN else ("penalty", row.penalty)
    finite = all(bool(tensor.isfinite().all()) for tensor in together.values())
    check(finite, name, value, "finite gradients of public examples (here they are not)")
    sizes = row_norms(together).cpu()
    # Of an example that the model is sure of hardly a gradient is left, and that rounds: it is held to the others'.
    sizes = sizes.clamp(min=max(1e-12, 0.03 * float(sizes.max())))

    def compare(found: dict[Slot, Tensor], expected: dict[Slot, Tensor], who: Tensor, tolerance: float) -> None:
        gaps = row_norms({slot: found[slot] - expected[slot] for slot in moving}).cpu() / sizes[who]
        # Written so that a gap that is not a number is refused as well: a batch of one has no variance to divide by.
        mixing = gaps[~(gaps <= tolerance)]
        far = float(mixing.nan_to_num(torch.inf).max()) if len(mixing) else 0.0
        check(not len(mixing), name, value, f"examples that do not mix, batch first (they differ by {far:.1g})")

    rough, same = _tolerance(like, products), 20 * torch.finfo(like.dtype).eps
    for i in range(PROBES):
        one = owner[i : i + 1]
        compare(by_itself(whole, i), {slot: x[one] for slot, x in together.items()}, one, rough)
    if row is PLAIN:
        # Both texts have the task's width: a table that depends on the width alone says nothing of an example.
        by_itself(whole, 0)
        before = _held(adapted.model)
        by_itself(_lengthened(task, given, PROBES - 1), PROBES - 1)
        _check_same(before, _held(adapted.model))
    for i, scale in product(range(PROBES), SCALES):
        one = owner[i : i + 1]
        with _embeddings(adapted.model, i, scale):
            data = _strange(whole[0], i, scale), _strange(whole[1], i, scale)
            strange = [{slot: _strange(x, i, scale) for slot, x in part.items()} for part in (bank, start)]
            try:
                found = gradients(data, owner, *strange)
            except Exception as error:
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
                check(False, name, value, f"passes that no example can stop (beside others times {scale:g}: {said})")
                raise
        # Nothing of its own has changed, nor the shape of anything: there is hardly anything to round.
        compare({slot: x[one] for slot, x in found.items()}, {slot: x[one] for slot, x in together.items()}, one, same)
    if rows > PROBES:
        data, who = _many(given, rows), torch.arange(rows) % PROBES
        full = gradients(data, who)
        for half in torch.arange(rows).tensor_split(2):
            part = gradients((take(data[0], half), data[1][half]), who[half])
            compare(part, {slot: tensor[half] for slot, tensor in full.items()}, who[half], rough)


def _strange(x: Any, i: int, scale: float) -> Any:
    """The same rows, all but row i replaced: floating numbers multiplied, others handed round among themselves."""
    if isinstance(x, Mapping):
        return {key: _strange(value, i, scale) for key, value in x.items()}
    others = [j for j in range(len(x)) if j != i]
    x = x.clone()
    # Added as well: zero times anything is zero.
    x[others] = (x[others] + 1) * scale if x.is_floating_point() else x[[*others[1:], others[0]]]
    return x


@contextmanager
def _embeddings(model: nn.Module, i: int, scale: float) -> Iterator[None]:
    """Within, what an embedding gives for the other rows is strange too: of tokens nothing else can be."""

    def strange(module: nn.Module, given: tuple[Any, ...], found: Any) -> Any:
        rows = isinstance(found, Tensor) and found.ndim > 2 and len(found) == PROBES
        return _strange(found, i, scale) if rows else found

    hooks = [module.register_forward_hook(strange) for module in model.modules() if isinstance(module, nn.Embedding)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _many(given: Examples, rows: int) -> Examples:
    """So many examples: the probes again and again, floating inputs disturbed each time."""
    index = torch.arange(rows) % PROBES
    random = torch.Generator().manual_seed(1)

    def disturbed(x: Tensor) -> Tensor:
        many = x[index]
        if not x.is_floating_point():
            return many
        return many + 0.1 * many.abs().double().mean().to(many) * torch.randn(many.shape, generator=random).to(many)

    x, y = given
    return {key: disturbed(value) for key, value in x.items()} if isinstance(x, Mapping) else disturbed(x), y[index]


def _held(model: nn.Module) -> dict[str, list[Any]]:
    """Name -> copies of the tensors and floating numbers that a module holds under it; of a parameter its sum.

    Left out are the values that every pass puts into our own stacked modules.
    """
    found: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            known = parameter.is_floating_point() and parameter.element_size() > 1 and not parameter.is_meta
            found[f"{name}.{key}"] = [parameter.detach().sum(dtype=torch.float64)] if known else []
        if isinstance(module, (Adapter, Stacked)):
            continue
        own = {key: value for key, value in vars(module).items() if key not in ("_parameters", "_modules", "_buffers")}
        for key, value in {**own, **dict(module.named_buffers(recurse=False))}.items():
            leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in tree_leaves(value)]
            found[f"{name}.{key}"] = [leaf for leaf in leaves if isinstance(leaf, (Tensor, float))]
    return found


def _check_same(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> None:
    """Refuse a model that a pass has changed: what it keeps of one example reaches the others later."""
    for name in {**before, **after}:
        old, new = before.get(name, []), after.get(name, [])
        same = len(old) == len(new) and all(_equal(a, b) for a, b in zip(old, new, strict=True))
        what = name.removeprefix("base_model.model.")
        check(same, f"model.{what}", "changed by a pass", "a model whose passes change nothing in it")


def _equal(a: Any, b: Any) -> bool:
    """Whether type, shape and values are the same; NaN counts as equal to NaN."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and bool(a == b or (a != a and b != b))
    alike = (a.shape, a.dtype, a.is_meta) == (b.shape, b.dtype, b.is_meta)
    return alike and (a.is_meta or bool(((a == b) | ((a != a) & (b != b))).all()))


def _tolerance(like: Tensor, products: str) -> float:
    """Far above what rounding does to a gradient in these products, far below what a mean over the batch does."""
    eps = max(torch.finfo(like.dtype).eps, EPS.get(products, 0.0))
    return max(20 * eps, min(10 * eps**0.5, 0.01))


def _core(adapted: Adapted, slot: Slot) -> torch.Size:
    rank = adapted.shapes[Slot("A", slot.layer)][0]
    return torch.Size((rank, rank))


def _probe_whitening(row: Method, like: Tensor) -> None:
    """Compare the maps of several clients at once with those of each alone."""
    half = torch.randn(PROBES, 3, 8, generator=torch.Generator().manual_seed(0)).to(like)
    gram = half @ half.mT
    maps = [_maps(row, gram), *(_maps(row, gram[i : i + 1]) for i in range(PROBES))]
    for i in range(PROBES):
        pairs = zip(maps[0], maps[1 + i], strict=True)
        gap = max(float((many[i] - alone[0]).norm() / alone[0].norm().clamp(min=1e-12)) for many, alone in pairs)
        near = gap <= _tolerance(like, "float32")
        check(near, "whiten", row.whiten, f"maps of each client's own matrix alone (they differ by {gap:.1g})")
        beside = _maps(row, _strange(gram, i, 1e6))
        same = all(
            torch.allclose(many[i], x[i], rtol=0, atol=1e-6 * float(x[i].norm()))
            for many, x in zip(maps[0], beside, strict=True)
        )
        check(same, "whiten", row.whiten, "maps of each client's own matrix alone, however large the others are")


def _maps(row: Method, gram: Float[Tensor, "n r r"]) -> list[Tensor]:
    found = row.whiten(gram)  # type: ignore[misc]
    check(isinstance(found, Whitening), "whiten", row.whiten, "a rule that gives a Whitening")
    for tensor in found:
        check(tensor.shape == gram.shape, "whiten", tuple(tensor.shape), f"{tuple(gram.shape)}, a map for each matrix")
    return list(found)


def probes(task: Task, adapted: Adapted) -> Examples:
    """Four examples made of public ones: inputs that differ, and of the targets the first and the last agree.

    Where the public examples repeat, floating inputs are disturbed and tokens change places; where they are all of one
    class, other classes are put in.
    """
    x, y = task.test
    index = _chosen(y)
    x, y = take(x, index), y[index]
    for i in range(1, PROBES):
        if not any(_same(x, i, j) for j in range(i)):
            continue
        if isinstance(x, Mapping):
            mask = mask_of(x)
            x = {key: v if "mask" in key or "type" in key else _disturbed(v, i, mask) for key, v in x.items()}
        else:
            x = _disturbed(x, i)
    return x, _targets(task, adapted, x, y)


def widest(task: Task, adapted: Adapted) -> Examples:
    """The probes, each text filled up to the task's width."""
    data = probes(task, adapted)
    for i in range(PROBES):
        data = _lengthened(task, data, i)
    return data


def _lengthened(task: Task, data: Examples, i: int) -> Examples:
    """The same texts, row i filled up to the task's width: one of its inner tokens is repeated."""
    ids, there = _text(data[0], i)
    if ids is None:
        return data
    inner = [j for j, token in enumerate(ids) if token not in (ids[0], ids[-1])] or [len(ids) // 2]
    middle = inner[len(inner) // 2]
    width = mask_of(data[0]).shape[1]  # type: ignore[union-attr]
    source = [*there[:middle], *[there[middle]] * (width - len(there) + 1), *there[middle + 1 :]]
    return _relaid(task, data, i, source, list(range(width)))


def _shortened(task: Task, data: Examples, i: int) -> Examples:
    """The same texts, row i cut to its first and last token and those equal to them, which are marks mostly."""
    ids, there = _text(data[0], i)
    if ids is None:
        return data
    source = [place for token, place in zip(ids, there, strict=True) if token in (ids[0], ids[-1])]
    return _relaid(task, data, i, source, there[: len(source)] if there[0] == 0 else there[-len(source) :])


def _text(x: Any, i: int) -> tuple[list[int] | None, list[int]]:
    """Row i's tokens and their places; no tokens where these are not texts known by a mask (n, tokens)."""
    mask = mask_of(x)
    if mask is None or mask.ndim != 2 or not bool(mask[i].any()):
        return None, []
    there = mask[i].nonzero().flatten().tolist()
    ids = x.get("input_ids")
    if ids is None or ids.shape != mask.shape:
        return list(range(len(there))), there
    return ids[i, there].tolist(), there


def _relaid(task: Task, data: Examples, i: int, source: list[int], to: list[int]) -> Examples:
    """The same examples, in row i the tokens and targets of some places moved to others, and padding everywhere else.

    Padding is taken from the public examples; where they have none, it is what the model's configuration names.
    """
    x, y = data
    mask, public = mask_of(x), mask_of(task.test[0])
    assert mask is not None and public is not None
    padded = (public == 0).flatten()
    place = divmod(int(padded.int().argmax()), public.shape[1]) if bool(padded.any()) else None
    config: Any = getattr(task.model, "config", None)

    def relaid(rows: Tensor, like: Tensor, usual: int) -> Tensor:
        if rows.shape[:2] != mask.shape:
            return rows
        row = torch.full_like(rows[i], usual) if place is None else like[place].expand_as(rows[i]).clone()
        row[to] = rows[i, source]
        return torch.cat([rows[:i], row[None], rows[i + 1 :]])

    usual = {"input_ids": getattr(config, "pad_token_id", None) or 0}
    x = {key: relaid(rows, task.test[0][key], usual.get(key, 0)) for key, rows in x.items()}
    return x, y if y.is_floating_point() else relaid(y, task.test[1], IGNORED)


def _chosen(y: Tensor) -> Int[Tensor, " probes"]:
    """Rows of distinct classes, then one of the first's class; of other targets the first rows, again if need be."""
    if y.ndim > 1 or y.is_floating_point():
        return torch.arange(PROBES) % len(y)
    firsts = [int((y == value).nonzero()[0]) for value in y.unique()[: PROBES - 1]]
    others = [i for i in range(min(len(y), 100)) if i not in firsts]
    again = [i for i in others if y[i] == y[firsts[0]]][:1]
    rows = firsts + [i for i in others if i not in again]
    rows = [rows[i % len(rows)] for i in range(PROBES - 1)]
    return torch.tensor([*rows, *(again or firsts[:1])])


def _same(x: Any, i: int, j: int) -> bool:
    parts = x.values() if isinstance(x, Mapping) else [x]
    return all(torch.equal(part[i], part[j]) for part in parts)


def _disturbed(x: Tensor, i: int, mask: Tensor | None = None) -> Tensor:
    """A copy in which row i is another: noise on floating numbers; whole numbers, as far as the mask goes, move on."""
    x = x.clone()
    if x.is_floating_point():
        random = torch.Generator().manual_seed(i)
        noise = torch.randn(x[i].shape, generator=random).to(x)
        x[i] += noise * (x.double().std(correction=0).to(x) * 0.3).clamp(min=1e-2)
    elif x.ndim > 1:
        there = torch.ones_like(x[i]) if mask is None or mask.shape != x.shape else mask[i]
        x[i] = _moved_on(x[i], i, there.bool())
    return x


def _moved_on(row: Tensor, places: int, there: Tensor) -> Tensor:
    """The numbers at some places of a row, each in the place of another; padding stays where it is."""
    found = row[there]
    return row.masked_scatter(there, found.roll(1 + (places - 1) % max(len(found) - 1, 1)))


def _targets(task: Task, adapted: Adapted, x: Any, y: Tensor) -> Tensor:
    """The targets, those that do not differ replaced by others that the loss takes."""
    first, rest = y[0], y[1 : PROBES - 1]
    if any(not torch.equal(first, other) for other in rest):
        return y
    y = y.clone()
    if y.is_floating_point():
        steps = torch.arange(PROBES, dtype=torch.float64).to(y) / PROBES
        steps[-1] = 0
        steps = steps.view(-1, *[1] * (y.ndim - 1))
        # Probabilities stay probabilities.
        return (y - steps).abs() if bool(((y >= 0) & (y <= 1)).all()) else y + steps
    if y.ndim > 1:
        mask = mask_of(x)
        there = (y != IGNORED) if mask is None or mask.shape != y.shape else (y != IGNORED) & mask.bool()
        y[1:-1] = torch.stack([_moved_on(y[i], i, there[i]) for i in range(1, PROBES - 1)])
        return y
    with torch.no_grad():
        outputs = task.forward(task.model, ready(task, x, next(task.model.parameters()).device))
    classes = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.ndim == 2 else 0
    if classes > 1:
        y[1 : PROBES - 1] = (first + torch.arange(1, PROBES - 1)) % classes
    return y
