"""The model's blocks through torch's compiler: fused, for any number of examples, the values those of before."""

from collections.abc import Callable

import torch
from torch import Tensor

from fedlora_lab.checks import check
from fedlora_lab.compute.blocks import Block
from fedlora_lab.engine import Setting, moving_slots
from fedlora_lab.passes import per_example_gradients
from fedlora_lab.tasks.task import take

PROBES = 3
VARIANTS = 64
"""Of one block's code: which factors move, whether clients share the others, training or evaluation, one example."""


def fuse(setting: Setting, lists: list[list[Block]], backend: "bool | str | Callable" = True) -> None:
    """Compile every block of the model, or the model where it has none, in place; blocks of one kind share their code.

    Args:
        backend: by its name, or the backend itself; ``True``: torch's own, which needs a C++ compiler on a processor
            and Triton on a GPU.

    Raises: ``ValueError`` where torch finds no compiler or cannot compile the model, and where the gradients of some
        examples are others afterwards.
    Guarantees: tests/test_compiled.py.
    """
    before = _gradients(setting)
    try:
        for part in [shell.block for shells in lists for shell in shells] or [setting.adapted.model]:
            part.compile(dynamic=True, recompile_limit=VARIANTS, backend="inductor" if backend is True else backend)
        after = _gradients(setting)
    except Exception as error:  # whatever its many parts raise
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"compile={backend!r}: expected a model and a machine for torch.compile ({said})") from error
    gap = float((after - before).norm() / before.norm().clamp(min=1e-12))
    check(gap <= 1e-4, "compile", f"gradients {gap:.1g} apart", "a model that torch.compile leaves as it is")


def _gradients(setting: Setting) -> Tensor:
    """The gradients of a few examples with respect to all factors, A and B moved from their start, in one row."""
    x, y = setting.task.test  # public: whether the run goes on must not hang on a client's values
    index = torch.arange(PROBES) % len(y)
    bank = {slot: tensor[None] + 0.01 for slot, tensor in setting.adapted.given.items()}
    moving = moving_slots(bank, setting.method.moves(0, 0))
    probes, owner = (take(x, index), y[index]), torch.zeros_like(index)
    rows = per_example_gradients(setting.task, setting.adapted, bank, moving, probes, owner)
    return torch.cat([row.flatten().double() for row in rows.values()])
