"""How sharp the loss is where training ended, in the coordinates of the adapter."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedlora_lab import adapters
from fedlora_lab.checks import check, check_number, check_whole
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import Examples, Task, examples_to_judge

if TYPE_CHECKING:
    from fedlora_lab.record import Round


class Flatness(NamedTuple):
    """The largest Hessian eigenvalue found; some eigenvalue lies within ``residual`` of it. ``steps``: of Lanczos."""

    top: float
    residual: float
    steps: int


def flatness(
    task: Task,
    record: "Round",
    data: Examples | None = None,
    *,
    sides: str = "AB",
    steps: int = 30,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Flatness:
    """Largest eigenvalue of the Hessian of the mean loss in the entries of the adapter's factors; small is flat.

    Lanczos with full reorthogonalisation on products of the Hessian with vectors; the Hessian is never formed. The
    coordinates are the factors as they stand: (B R, R^-1 A) is the same model with another number, so compare runs
    that started alike.

    Args:
        data: examples to average over; ``None``: the task's public test examples. Private ones are not released.
        sides: "A", "B" or "AB", the factors that are coordinates.
        steps: at most so many Lanczos steps, each about two gradients, >= 1.
        tolerance: stop when ``residual`` is below this share of the eigenvalue, >= 0.

    Raises: ``ValueError`` for a record without its task's adapter, or a range left; without ``data`` for a private run
        whose test examples are not public.
    Guarantees: equals the top of a Hessian formed in full (tests/test_measures_more.py::test_flatness).
    """
    check(record.source is not None, "record", "a copy without its task", "a record as run() yields it")
    check(sides in ("A", "B", "AB"), "sides", sides, '"A", "B" or "AB"')
    check_whole("steps", steps, 1)
    check_number("tolerance", tolerance, 0)
    _, lora, state = record.source  # type: ignore[misc]
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    slots = [slot for slot in adapted.places if slot.side in sides]
    leaves = {slot: state.tensors[slot].detach().clone().requires_grad_(slot in slots) for slot in adapted.places}
    x, y = examples_to_judge(task, record.ledger is not None) if data is None else data
    # Fused attention kernels have no second derivative.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for slot, leaf in leaves.items():
            adapted.put(slot, leaf)
        loss = task.loss(task.forward(adapted.model, x), y).mean()
        moving = [leaves[slot] for slot in slots]
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, moving, create_graph=True)])

        def product(vector: Tensor) -> Tensor:
            dot = gradient @ vector.to(gradient)
            back = torch.autograd.grad(dot, moving, retain_graph=True)
            return torch.cat([g.flatten() for g in back]).double()

        return _lanczos(product, gradient.numel(), min(steps, gradient.numel()), tolerance, seed)


def _lanczos(product: Callable[[Tensor], Tensor], size: int, steps: int, tolerance: float, seed: int) -> Flatness:
    """Top Ritz value of a symmetric map; the start is random, so no direction is missed for sure or by design."""
    vector = torch.from_numpy(Streams(seed).numpy("curvature").standard_normal(size))
    basis, diagonal, beside = [vector / vector.norm()], [], []
    for step in range(1, steps + 1):
        image = product(basis[-1])
        diagonal.append(float(basis[-1] @ image))
        for _ in range(2):
            known = torch.stack(basis)
            image = image - known.T @ (known @ image)
        norm = float(image.norm())
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            matrix += torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
        values, vectors = torch.linalg.eigh(matrix, UPLO="U")
        top, residual = float(values[-1]), norm * abs(float(vectors[-1, -1]))
        if step == steps or residual <= tolerance * abs(top):
            break
        basis.append(image / norm)
        beside.append(norm)
    return Flatness(top, residual, len(diagonal))
