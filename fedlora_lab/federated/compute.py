"""Switches of speed and memory, and the frozen prefix: blocks below the first adapted layer.

What these blocks make of an example never changes: it can be computed once. It is stored with the
task, not with the run, so that methods and seeds that follow find it there.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from fedlora_lab._utils.validation import check, check_one_of, check_whole
from fedlora_lab.lora.peft import AdaptedModel
from fedlora_lab.lora.per_example import model_outputs, prepare_inputs
from fedlora_lab.tasks.task import Task, mask_of, take

PRODUCTS = ("float32", "tf32", "bfloat16")
QUANTIZED = (None, "int8", "nf4")
PROBE_EXAMPLES = 3
FREE_SHARE = 0.5
"""Of the free memory, what a run may take."""


@dataclass(frozen=True)
class Compute:
    """Switches of speed and memory; clip, noise and ledger are the same under all of them.

    Args:
        device: of local steps and evaluation; ``None``: where the task's model is. The server's
            part, and the examples that no step needs, stay on the processor.
        products: of the frozen base: "float32"; "tf32" on a GPU that has it; "bfloat16". The
            factors, their gradients, the clip and the noise are float32 throughout.
        quantize: the frozen linear maps that the device holds, in 8 bits ("int8", a scale for each
            row) or 4 ("nf4", a scale for 64 numbers), by bitsandbytes (``pip install
            fedlora_lab[quant]``); ``None``: as they are. Each product is taken with what the codes
            stand for. The task's own copy stays whole.
        frozen_prefix: compute what lies below the first adapted layer once for each example. Equal
            but for rounding, which then depends on what was drawn before.
        recompute: keep only the inputs of the model's blocks for the backward pass.
        chunk_examples: at most so many examples at once; ``None``: all, of texts on a processor
            sixteen of like length; "auto": what half of the free memory holds, but no more texts on
            a processor than that.

    Raises: ``ValueError`` (name, value, range).
    Guarantees: test_compute.py::test_epsilon_and_noise_are_the_same_under_every_switch,
        ::test_recompute_and_automatic_chunks_change_nothing.
    """

    device: "str | torch.device | None" = None
    products: str = "float32"
    frozen_prefix: bool = False
    recompute: bool = False
    chunk_examples: "int | str | None" = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        check_one_of("products", self.products, PRODUCTS)
        check_one_of("quantize", self.quantize, QUANTIZED)
        if self.quantize is not None:
            whole = self.products != "bfloat16"
            check(whole, "products", self.products, "'float32' or 'tf32' beside quantize")
            there = find_spec("bitsandbytes") is not None
            words = "None without bitsandbytes: pip install 'fedlora_lab[quant]'"
            check(there, "quantize", self.quantize, words)
        for name in ("frozen_prefix", "recompute"):
            check(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")
        size = self.chunk_examples
        if size not in (None, "auto"):
            check(not isinstance(size, str), "chunk_examples", size, "a number or 'auto'")
            check_whole("chunk_examples", size, 1)
        try:
            found = torch.empty(0, device=self.device).device.type != "meta"  # it holds no values
        except (RuntimeError, AssertionError, ValueError, TypeError):
            found = False
        words = "a device that torch finds here, such as 'cpu' or 'cuda'"
        check(found, "device", str(self.device), words)


def free_memory(device: torch.device) -> int:
    """Bytes free on the GPU or in the machine; 4 GiB where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":") for line in file)
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 4 * 2**30


class StopForward(Exception):
    """Ends a forward pass at the block whose output is wanted; its argument is that output."""


class BlockShell(nn.Module):
    """A model's block in a shell that can recompute it, stop after it, or answer in its place."""

    def __init__(self, block: nn.Module, recompute: bool = False) -> None:
        super().__init__()
        self.block, self.recompute, self.stop = block, recompute, False
        self.answer: Callable[[tuple, dict[str, Any]], Any] | None = None

    def __getattr__(self, name: str) -> Any:  # what else is asked of the block, it answers itself
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.answer is not None:
            return self.answer(args, kwargs)
        if self.recompute and torch.is_grad_enabled():
            # No random state to keep: dropout's masks are drawn once, by example, and used again.
            kwargs |= {"use_reentrant": False, "preserve_rng_state": False}
            return checkpoint(self.block, *args, **kwargs)
        output = self.block(*args, **kwargs)
        if self.stop:
            raise StopForward(output)
        return output


def wrap_blocks(model: nn.Module, recompute: bool) -> list[list[BlockShell]]:
    """Puts each block of the model's outermost lists into a shell, in place; returns the shells."""
    found: list[list[BlockShell]] = []
    inside: set[int] = set()
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList) and id(module) not in inside and len(module):
            inside |= {id(part) for part in module.modules()}
            found.append([BlockShell(block, recompute) for block in module])
            for i, shell in enumerate(found[-1]):
                module[i] = shell
    for module in model.modules():  # a block computed twice would store its keys and values twice
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False
    return found


@dataclass
class OutputStore:
    """One block's stored outputs: one row per example, or per token for texts (packed)."""

    length: Tensor | None  # (n,), tokens of each text, on the processor; None: one size for all
    filled: Tensor  # (n,), which examples are stored, on the processor
    rows: dict[int, Tensor] = field(default_factory=dict)  # by leaf of the output, on the device
    form: Any = None  # of the output: its leaves, with None for tensors, and its tree

    def write(self, index: Tensor, output: Any) -> None:
        """Stores a block's output for these examples."""
        leaves, tree = tree_flatten(output)
        tensors = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        self.form = ([None if i in tensors else leaf for i, leaf in enumerate(leaves)], tree)
        for i, leaf in tensors.items():
            where = index
            if self.length is not None:
                places, mask = self._places(index, leaf.shape[1])
                here = mask.flatten().nonzero().squeeze(1)
                leaf = leaf.flatten(0, 1).index_select(0, here.to(leaf.device, non_blocking=True))
                where = places.flatten()[here]
            if i not in self.rows:
                count = len(self.filled) if self.length is None else int(self.length.sum())
                size, free = leaf[:1].nbytes * count, free_memory(leaf.device)
                most = f"at most half of the free {free / 2**30:.1f} GiB"
                given = f"{size / 2**30:.1f} GiB to keep"
                check(size <= FREE_SHARE * free, "frozen_prefix", given, most)
                # Memory is taken page by page, as examples come.
                self.rows[i] = leaf.new_empty((count, *leaf.shape[1:]))
            self.rows[i].index_copy_(0, where.to(leaf.device, non_blocking=True), leaf)
        self.filled[index] = True

    def read(self, index: Tensor, width: int) -> Any:
        """The output for these examples; of texts ``width`` tokens, zero where there is padding."""
        leaves, tree = list(self.form[0]), self.form[1]
        for i, rows in self.rows.items():
            if self.length is None:
                leaves[i] = rows.index_select(0, index.to(rows.device, non_blocking=True))
                continue
            places, mask = self._places(index, width)
            part = rows.index_select(0, places.flatten().to(rows.device, non_blocking=True))
            seen = mask.flatten().to(rows.device, non_blocking=True)
            part = torch.where(seen.view(-1, *[1] * (rows.dim() - 1)), part, torch.zeros_like(part))
            leaves[i] = part.view(*mask.shape, *rows.shape[1:])
        return tree_unflatten(leaves, tree)

    def _places(self, index: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """(n, width): the row of each token, and whether there is one."""
        assert self.length is not None
        steps, length = torch.arange(width), self.length[index, None]
        start = (self.length.cumsum(0) - self.length)[index, None]
        return torch.where(steps < length, start + steps, 0), steps < length


_KEPT: "weakref.WeakKeyDictionary[Task, dict[Any, OutputStore]]" = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Prefix:
    """The blocks below the first adapted layer in order, and stored outputs of the last one."""

    task: Task
    adapted: AdaptedModel
    blocks: tuple[BlockShell, ...]
    stores: Mapping[str, OutputStore]

    @contextmanager
    def reading(self, part: str, index: Tensor, x: Any) -> Iterator[None]:
        """Within it the model reads these blocks' output from the store, for exactly this batch.

        Args:
            part: "clients" or "test".
            index: the examples' places in it.
            x: their inputs.
        """
        store, first = self.stores[part], {}
        for place in (~store.filled[index]).nonzero().squeeze(1).tolist():
            first.setdefault(int(index[place]), place)
        if first:
            x = take(x, torch.tensor(list(first.values())))
            store.write(torch.tensor(list(first)), self.compute(x))

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

    def compute(self, x: Any) -> Any:
        """The last block's output for these inputs."""
        last = self.blocks[-1]
        last.stop = True
        try:
            with torch.no_grad():
                self.task.forward(
                    self.adapted.model, prepare_inputs(self.task, x, self.adapted.device)
                )
        except StopForward as reached:
            return reached.args[0]
        finally:
            last.stop = False
        raise RuntimeError("the forward pass did not come to the last block of the prefix")


def find_frozen_prefix(
    task: Task, adapted: AdaptedModel, lists: list[list[BlockShell]], key: tuple[Any, ...]
) -> Prefix:
    """Finds what can be stored of this model, and checks that storing it changes nothing.

    Args:
        task, adapted: of the run.
        lists: the blocks in their shells.
        key: on what the outputs depend besides, such as a device.

    Raises: ``ValueError`` where no block lies below the adapters, or outputs would be others.
    Guarantees: tests/federated/test_compute.py::test_outputs_and_gradients_are_the_same.
    """
    index = torch.arange(PROBE_EXAMPLES) % len(task.test[1])
    x = take(task.test[0], index)
    place, blocks = _below(task, adapted, lists, x)
    words = "a model with whole blocks below the first adapted layer; set targets"
    check(bool(blocks), "frozen_prefix", True, words)
    leaves = tree_flatten(Prefix(task, adapted, tuple(blocks), {}).compute(x))[0]
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
    fine = bool(shapes) and all(len(shape) > 1 and shape[0] == PROBE_EXAMPLES for shape in shapes)
    words = f"a block whose outputs have the {PROBE_EXAMPLES} examples first"
    check(fine, "frozen_prefix", shapes, words)
    mask = mask_of(x)
    if mask is not None:
        longest = int(mask.sum(1).max())
        words = f"a block whose outputs have the {longest} tokens second"
        check(all(shape[1] >= longest for shape in shapes), "frozen_prefix", shapes, words)
    stores = {}
    for part, pairs in {"clients": task.clients, "test": (task.test,)}.items():
        length = None
        if mask_of(pairs[0][0]) is not None:
            masks = torch.cat([x["attention_mask"] for x, _ in pairs]).cpu()
            right = bool((masks[:, 1:] <= masks[:, :-1]).all())
            check(right, "frozen_prefix", True, "texts that are padded to the right")
            length = masks.sum(1)
        room = OutputStore(length, torch.zeros(sum(len(y) for _, y in pairs), dtype=torch.bool))
        kept = _KEPT.setdefault(task, {})
        stores[part] = kept.setdefault((part, place, len(blocks), *key), room)
    found = Prefix(task, adapted, tuple(blocks), stores)

    def losses() -> Tensor:
        outputs = model_outputs(task, adapted, adapted.initial, x)
        return task.loss(outputs, task.test[1][index].to(outputs.device))

    with found.reading("test", index, x):
        stored = losses()
    whole = losses()
    gap = float((stored - whole).norm() / whole.norm().clamp(min=1e-12))
    words = "a model that needs nothing else of the blocks below"
    check(gap <= 1e-5, "frozen_prefix", f"losses {gap:.1g} apart", words)
    return found


def _below(
    task: Task, adapted: AdaptedModel, lists: list[list[BlockShell]], x: Any
) -> tuple[int, list[BlockShell]]:
    """The list with most parameters done before anything adapted is called, and those blocks."""
    events: list[Any] = []
    watched = {id(module): module for module, _ in adapted.places.values()}
    hooks = [m.register_forward_pre_hook(lambda *_: events.append(None)) for m in watched.values()]
    for block in (block for blocks in lists for block in blocks):
        hooks += [block.register_forward_hook(lambda module, *_: events.append(id(module)))]
    try:
        model_outputs(task, adapted, adapted.initial, x)
    finally:
        for hook in hooks:
            hook.remove()
    before = events[: events.index(None)] if None in events else []
    best: tuple[int, int, list[BlockShell]] = (0, 0, [])
    for place, blocks in enumerate(lists):
        done = [b for b in blocks if id(b) in before]
        once = done == blocks[: len(done)] and all(events.count(id(b)) == 1 for b in done)
        size = sum(p.numel() for b in done for p in b.parameters())
        if once and size > best[0]:
            best = (size, place, done)
    return best[1], best[2]
