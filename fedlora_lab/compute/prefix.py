"""The frozen prefix: what lies below the first adapted layer is a function of the example alone, computed once.

Kept with the task, not with the run: methods and seeds that follow find it there.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fedlora_lab.adapters import Adapted
from fedlora_lab.checks import check
from fedlora_lab.compute import free_memory
from fedlora_lab.compute.blocks import Block, Reached
from fedlora_lab.passes import predict, ready
from fedlora_lab.tasks.task import Examples, Task, mask_of, take

_KEPT: "weakref.WeakKeyDictionary[Task, dict[Any, Store]]" = weakref.WeakKeyDictionary()
PROBES = 3
SHARE = 0.5


@dataclass
class Store:
    """A block's output of each example: of texts as many rows as the text has tokens, one text after the other.

    Args:
        length: (n,), tokens of each text, on the processor; ``None``: the output has one size for all examples.
        filled: (n,), on the processor.
        rows: leaf of the output -> (all tokens, ...) or (n, ...), on the model's device.
        form: of the output, and its leaves with ``None`` for tensors.
    """

    length: Tensor | None
    filled: Tensor
    rows: dict[int, Tensor] = field(default_factory=dict)
    form: Any = None

    def write(self, index: Tensor, output: Any) -> None:
        """Keep a block's output for these examples."""
        leaves, spec = tree_flatten(output)
        tensors = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        self.form = ([None if i in tensors else leaf for i, leaf in enumerate(leaves)], spec)
        for i, leaf in tensors.items():
            where = index
            if self.length is not None:
                places, mask = self._places(index, leaf.shape[1])
                here = mask.flatten().nonzero().squeeze(1)
                leaf = leaf.flatten(0, 1).index_select(0, here.to(leaf.device, non_blocking=True))
                where = places.flatten()[here]
            if i not in self.rows:
                self.rows[i] = self._room(leaf)
            self.rows[i].index_copy_(0, where.to(leaf.device, non_blocking=True), leaf)
        self.filled[index] = True

    def _room(self, leaf: Tensor) -> Tensor:
        count = len(self.filled) if self.length is None else int(self.length.sum())
        shape = torch.Size((count, *leaf.shape[1:]))
        size, free = leaf.element_size() * shape.numel(), free_memory(leaf.device)
        said = f"{size / 2**30:.1f} GiB to keep"
        check(size <= SHARE * free, "frozen_prefix", said, f"at most half of the free {free / 2**30:.1f} GiB")
        return leaf.new_empty(shape)  # memory is taken page by page, as examples come

    def read(self, index: Tensor, width: int) -> Any:
        """The output for these examples; of texts ``width`` tokens, zero where there is padding."""
        leaves, spec = self.form
        found = list(leaves)
        for i, rows in self.rows.items():
            if self.length is None:
                found[i] = rows.index_select(0, index.to(rows.device, non_blocking=True))
                continue
            places, mask = self._places(index, width)
            part = rows.index_select(0, places.flatten().to(rows.device, non_blocking=True))
            seen = mask.flatten().to(rows.device, non_blocking=True).view(-1, *[1] * (rows.dim() - 1))
            found[i] = torch.where(seen, part, torch.zeros_like(part)).view(*mask.shape, *rows.shape[1:])
        return tree_unflatten(found, spec)

    def _places(self, index: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """(n, width): the row of each token, and whether there is one."""
        assert self.length is not None
        steps, length = torch.arange(width), self.length[index, None]
        start = (self.length.cumsum(0) - self.length)[index, None]
        return torch.where(steps < length, start + steps, 0), steps < length


@dataclass(frozen=True)
class Prefix:
    """The blocks below the first adapted layer, and what is kept of their last output.

    Args:
        blocks: in order; the last one's output is kept.
    """

    task: Task
    adapted: Adapted
    blocks: tuple[Block, ...]
    stores: Mapping[str, Store]

    @contextmanager
    def reading(self, part: str, index: Tensor, x: Any) -> Iterator[None]:
        """Within it the model takes these blocks' output from what is kept, for exactly this batch.

        Args:
            part: "clients" or "test".
            index: (n,), the examples' places there, on the processor.
            x: their inputs, for those that were never seen before.
        """
        store = self.stores[part]
        new, first = _first_of_each(index, ~store.filled[index])
        if len(new):
            store.write(new, self._computed(take(x, first)))

        def answer(args: tuple, kwargs: dict[str, Any]) -> Any:
            hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            return store.read(index, hidden.shape[1])

        for block in self.blocks:
            block.answer = answer
        try:
            yield
        finally:
            for block in self.blocks:
                block.answer = None

    def _computed(self, x: Any) -> Any:
        last = self.blocks[-1]
        last.stop = True
        try:
            with torch.no_grad():
                self.task.forward(self.adapted.model, ready(self.task, x, self.adapted.device))
        except Reached as reached:
            return reached.output
        finally:
            last.stop = False
        raise RuntimeError("the forward pass did not come to the last block of the prefix")


def _first_of_each(index: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The wanted numbers among these without repeats, and where each stands first."""
    seen: dict[int, int] = {}
    for place in wanted.nonzero().squeeze(1).tolist():
        seen.setdefault(int(index[place]), place)
    return torch.tensor(list(seen), dtype=torch.int64), torch.tensor(list(seen.values()), dtype=torch.int64)


def prefix(task: Task, adapted: Adapted, lists: list[list[Block]], key: tuple[Any, ...]) -> Prefix:
    """What can be kept of this model.

    Args:
        lists: the model's blocks in their shells.
        key: of what else the kept values depend on, such as the device.

    Raises: ``ValueError`` where no block lies below the first adapted layer, or where keeping changes the outputs.
    Guarantees: tests/test_prefix.py::test_outputs_and_gradients_are_the_same.
    """
    place, blocks = _below(task, adapted, lists)
    check(bool(blocks), "frozen_prefix", True, "a model with whole blocks below the first adapted layer; set targets")
    kept = _KEPT.setdefault(task, {})
    stores = {}
    _check_form(task, adapted, blocks)
    for part, pairs in {"clients": task.clients, "test": (task.test,)}.items():
        stores[part] = kept.setdefault((part, place, len(blocks), *key), _store(pairs))
    found = Prefix(task, adapted, tuple(blocks), stores)
    _check(found)
    return found


def _store(pairs: tuple[Examples, ...]) -> Store:
    """Room for these examples; texts padded to the right have the length of their own tokens."""
    length = None
    if mask_of(pairs[0][0]) is not None:
        mask = torch.cat([x["attention_mask"] for x, _ in pairs]).cpu()
        check(bool((mask[:, 1:] <= mask[:, :-1]).all()), "frozen_prefix", True, "texts that are padded to the right")
        length = mask.sum(1)
    return Store(length, torch.zeros(sum(len(y) for _, y in pairs), dtype=torch.bool))


def _probes(task: Task) -> tuple[Tensor, Any]:
    index = torch.arange(PROBES) % len(task.test[1])
    return index, take(task.test[0], index)


def _below(task: Task, adapted: Adapted, lists: list[list[Block]]) -> tuple[int, list[Block]]:
    """Of the lists of blocks the one of which most parameters are done before anything adapted is called."""
    events: list[Any] = []
    watched = {id(module): module for module, _ in adapted.places.values()}
    hooks = [m.register_forward_pre_hook(lambda *_: events.append(None)) for m in watched.values()]
    for blocks in lists:
        hooks += [b.register_forward_hook(lambda module, *_: events.append(id(module))) for b in blocks]
    try:
        predict(task, adapted, adapted.given, _probes(task)[1])
    finally:
        for hook in hooks:
            hook.remove()
    before = events[: events.index(None)] if None in events else []
    best: tuple[int, int, list[Block]] = (0, 0, [])
    for place, blocks in enumerate(lists):
        done = [b for b in blocks if id(b) in before]
        once = done == blocks[: len(done)] and all(events.count(id(b)) == 1 for b in done)
        size = sum(p.numel() for b in done for p in b.parameters())
        if once and size > best[0]:
            best = (size, place, done)
    return best[1], best[2]


def _check_form(task: Task, adapted: Adapted, blocks: list[Block]) -> None:
    """Refuse a block whose outputs do not have the examples first, or of texts the tokens next."""
    index, x = _probes(task)
    output = Prefix(task, adapted, tuple(blocks), {})._computed(x)
    shapes = [tuple(leaf.shape) for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
    fine = bool(shapes) and all(len(shape) > 1 and shape[0] == len(index) for shape in shapes)
    check(fine, "frozen_prefix", shapes, f"a block whose outputs have the {len(index)} examples first")
    mask = mask_of(x)
    if mask is not None:
        longest = int(mask.sum(1).max())
        fine = all(shape[1] >= longest for shape in shapes)
        check(fine, "frozen_prefix", shapes, f"a block whose outputs have the {longest} tokens second")


def _check(found: Prefix) -> None:
    """Refuse a model whose losses are others when the blocks below are answered for."""
    task, (index, x) = found.task, _probes(found.task)

    def losses() -> Tensor:
        outputs = predict(task, found.adapted, found.adapted.given, x)
        return task.loss(outputs, task.test[1][index].to(outputs.device))

    with found.reading("test", index, x):
        kept = losses()
    whole = losses()
    gap = float((kept - whole).norm() / whole.norm().clamp(min=1e-12))
    expected = "a model that needs nothing else of the blocks below"
    check(gap <= 1e-5, "frozen_prefix", f"losses {gap:.1g} apart", expected)
