"""Sound implementations of one private step, from several libraries: what `fl.review` must pass.

All take the museum's examples (x of 8 features, y one of 4 classes), or lists of them as clients,
and return what one step releases. Each call makes its own model and optimiser anew.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import reference_methods as plain
import torch
from opacus.data_loader import DPDataLoader
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from opacus.optimizers import (
    AdaClipDPOptimizer,
    DPOptimizer,
    DPOptimizerFastGradientClipping,
    DPPerLayerOptimizer,
)
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.audit.instruments import (
    LEFT_OUT,
    ORDINARY,
    Recorder,
    encode_marks,
    mark_examples,
)
from fedlora_lab.federated import local_training, uploads
from fedlora_lab.review import museum
from fedlora_lab.review.museum import BATCH, CLASSES, CLIP, FEATURES, NOISE

Released = dict[str, Any]


@dataclass(frozen=True)
class Sound:
    """An implementation, its claims where they differ, and on what it is reviewed."""

    step: Callable[[Sequence[Any], int], Released]
    claims: Any = museum.DP_SGD_CLAIMS
    data: Callable[[], list] = museum.examples
    loader: Callable[[int], list] | None = None


# ---- NumPy


def automatic(batch: Sequence[Any], seed: int) -> Released:
    """AUTO-S: every gradient g becomes g / (|g| + 0.01), shorter than 1 whatever it was."""
    grads = museum.clip(museum.example_gradients(batch), 1e12)
    sizes = museum.example_norms(grads)
    return museum.divide(
        museum.add_noise(
            museum.total(museum.scale_examples(grads, 1 / (sizes + 0.01))), NOISE, seed
        ),
        BATCH,
    )


def two_parts(batch: Sequence[Any], seed: int) -> Released:
    """Each of two tensors clipped to C / √2."""
    grads = museum.example_gradients(batch)
    each = {k: museum.clip({k: g}, CLIP / 2**0.5)[k] for k, g in grads.items()}
    return museum.divide(museum.add_noise(museum.total(each), NOISE, seed), BATCH)


def the_sum(batch: Sequence[Any], seed: int) -> Released:
    """No denominator at all."""
    return museum.add_noise(museum.total(museum.clip(museum.example_gradients(batch))), NOISE, seed)


def persons(people: Sequence[Any], seed: int) -> Released:
    """The mean gradient of each person's examples is clipped."""
    rows = [{k: g.mean(0) for k, g in museum.example_gradients(own).items()} for own in people]
    grads = (
        {k: np.array([r[k] for r in rows]) for k in rows[0]}
        if rows
        else museum.example_gradients([])
    )
    return museum.divide(museum.add_noise(museum.total(museum.clip(grads)), NOISE, seed), BATCH)


def in_single_precision(batch: Sequence[Any], seed: int) -> Released:
    return {k: g.astype(np.float32) for k, g in museum.dp_sgd(batch, seed).items()}


# ---- PyTorch


@cache
def _linear() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(FEATURES, CLASSES)


def tensors(batch: Sequence[Any]) -> tuple[Tensor, Tensor]:
    x = np.array([x for x, _ in batch], dtype=np.float32).reshape(len(batch), FEATURES)
    return torch.from_numpy(x), torch.tensor([int(y) for _, y in batch], dtype=torch.long)


def _noised_mean(sums: "list[Tensor]", names: Sequence[str], seed: int) -> Released:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (x + NOISE * CLIP * torch.randn(x.shape, generator=rng)) / BATCH
        for name, x in zip(names, sums, strict=True)
    }


def one_by_one(batch: Sequence[Any], seed: int) -> Released:
    """A hand-written loop: backward for each example by itself."""
    model = _linear()
    names, params = zip(*model.named_parameters(), strict=True)
    sums = [torch.zeros_like(p) for p in params]
    for x, y in zip(*tensors(batch), strict=True):
        loss = nn.functional.cross_entropy(model(x[None]), y[None])
        grads = torch.autograd.grad(loss, params)
        norm = torch.stack([g.norm() for g in grads]).norm()
        if norm.isfinite():
            for total, g in zip(sums, grads, strict=True):
                total += g * (CLIP / norm).clamp(max=1.0)
    return _noised_mean(sums, names, seed)


def by_vmap(batch: Sequence[Any], seed: int) -> Released:
    """`torch.func`: gradients of all examples at once."""
    model = _linear()
    params = {k: p.detach() for k, p in model.named_parameters()}

    def loss(params: Any, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            torch.func.functional_call(model, params, x[None]), y[None]
        )

    sums = [torch.zeros_like(p) for p in params.values()]
    x, y = tensors(batch)
    if len(x):
        grads = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(params, x, y)
        norm = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
        factor = torch.where(norm.isfinite(), (CLIP / norm).clamp(max=1.0), 0.0)
        fine = [g.nan_to_num(0.0, 0.0, 0.0) for g in grads.values()]
        sums = [torch.einsum("n...,n->...", g, factor) for g in fine]
    return _noised_mean(sums, list(params), seed)


# ---- Opacus


def _change(before: nn.Module, after: nn.Module) -> Released:
    moved = zip(before.named_parameters(), after.parameters(), strict=True)
    return {k: (p - q).detach() for (k, p), q in moved if p.requires_grad}


def opacus_step(
    batch: Sequence[Any],
    seed: int,
    kind: Any = DPOptimizer,
    mode: str = "hooks",
    model: Callable[[], nn.Module] = _linear,
    chunks: int = 1,
    clip: Any = CLIP,
    momentum: float = 0.0,
    **options: Any,
) -> Released:
    """Opacus with its hooks or functorch, and any of its optimisers; SGD of rate 1."""
    start = model()
    engine = GradSampleModule(copy.deepcopy(start), force_functorch=mode == "functorch")
    trained = [p for p in engine.parameters() if p.requires_grad]
    optimizer = kind(
        torch.optim.SGD(trained, lr=1.0, momentum=momentum),
        noise_multiplier=NOISE,
        max_grad_norm=clip,
        expected_batch_size=BATCH,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    x, y = tensors(batch)
    parts = list(zip(x.tensor_split(chunks), y.tensor_split(chunks), strict=True))
    for i, (some, labels) in enumerate(parts):
        optimizer.signal_skip_step(do_skip=i + 1 < chunks)  # what BatchMemoryManager does
        nn.functional.cross_entropy(engine(some), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return _change(start, engine)


def opacus_ghost(batch: Sequence[Any], seed: int) -> Released:
    """Ghost clipping: norms first, and a second backward pass of the weighted loss."""
    start = _linear()
    engine = GradSampleModuleFastGradientClipping(
        copy.deepcopy(start), max_grad_norm=CLIP, use_ghost_clipping=True
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(engine.parameters(), lr=1.0),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        expected_batch_size=BATCH,
        generator=torch.Generator().manual_seed(seed),
    )
    criterion = DPLossFastGradientClipping(engine, optimizer, nn.CrossEntropyLoss())
    x, y = tensors(batch)
    criterion(engine(x), y).backward()
    optimizer.step()
    return _change(start, engine)


@cache
def _adapted() -> nn.Module:
    """Two linear layers, the first adapted by PEFT, at random factors."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        body = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES))
        model: Any = get_peft_model(body, LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
        for name, p in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(p, std=0.5)
    logging.getLogger("peft").setLevel(logging.ERROR)
    return model.base_model.model


def opacus_batches(seed: int) -> list:
    """Opacus's own Poisson loader over 96 examples."""
    plain_loader = DataLoader(TensorDataset(torch.arange(96)), batch_size=16)
    loader = DPDataLoader.from_data_loader(
        plain_loader, generator=torch.Generator().manual_seed(seed)
    )
    return [batch.tolist() for (batch,) in loader]


# ---- this library's own engine, row by row

SLOTS, OF_A_PERSON = 32, 2


@cache
def _open(row: str, unit: str) -> Recorder:
    """A run of one row: two clients that train together, each with 32 places for examples, standing
    at random factors."""
    x, y = tensors(museum.examples(SLOTS, seed=9))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    task = fl.tasks.classification(model, [(x, y)] * 2, test=(x[:4], y[:4]), targets=["0"])
    if unit == "person":
        task = replace(task, persons=tuple((torch.arange(2 * SLOTS) // OF_A_PERSON).split(SLOTS)))
    marked = mark_examples(task, [torch.zeros(SLOTS, dtype=torch.long)] * 2)
    privacy = fl.Privacy(unit=unit, noise_multiplier=NOISE, clip_norm=CLIP, delta=1e-3)
    plan = fl.Plan(rounds=2, local_steps=2, batch=None, lr=1.0)
    options: Any = {"lora": fl.Lora(rank=2), "seed": 3}
    run = Recorder.open(marked, fl.methods.get(row), privacy, plan, **options)
    server, rng = run.state.server, torch.Generator().manual_seed(4)
    moved = {k: v + 0.3 * torch.randn(v.shape, generator=rng) for k, v in server.tensors.items()}
    run.state.server = server.replace_tensors({k: moved[k] for k in moved if k.side in "AB"})
    return run


def engine(
    units: Sequence[Any], seed: int, row: str = "fedlora", unit: str = "example", t: int = 0
) -> Released:
    """A local step of two clients at once: how far the first one's tensors move at a rate of 1, the
    mean over its 32 places, of which those behind the examples are left out."""
    run, size = _open(row, unit), 1 if unit == "example" else OF_A_PERSON
    batch = units if size == 1 else [one for own in units for one in own]
    few = museum.examples(SLOTS, seed=9)
    x, y = tensors([*batch, *few[len(batch) :]])
    marks = torch.tensor([ORDINARY] * len(batch) + [LEFT_OUT] * (SLOTS - len(batch)))
    changed = (x, encode_marks(y, marks)), run.spec.task.clients[1]
    task = replace(run.spec.task, clients=changed)
    context = replace(run.context, task=task, data=task.clients, streams=Streams(seed))
    clients = run.start_clients((0, 1), uploads.broadcast(context, run.state.server))
    start = dict(clients.params)
    local_training.local_step(context, clients, t, 0)
    moved = {k: v for k, v in clients.params.items() if v is not start[k]}
    return {f"{k.side} {k.layer}": (start[k] - v)[0] for k, v in moved.items()}


# ---- transcriptions of rows, written from their descriptions alone


def transcription(batch: Sequence[Any], seed: int, sides: str) -> Released:
    """`reference_methods.local`, its mean of clipped gradients times the examples, noised."""
    rng = np.random.default_rng(7)
    base, a, b = (rng.standard_normal(shape) for shape in ((5, FEATURES), (2, FEATURES), (5, 2)))
    start: plain.State = {("A", "map"): a, ("B", "map"): b}
    work = plain.Work(1, 1, 1.0, 0.0, CLIP, [1.0], "example")
    loop = plain.Loop(plain.together(sides), plain.plain_mean)
    pairs = [(np.asarray(x, float), np.eye(5)[int(y)]) for x, y in batch]
    end = plain.local(plain.least_squares(base), start, pairs, 0, work, loop)
    moved = {side: (start[side, "map"] - end[side, "map"]) * len(batch) for side in sides}
    return museum.divide(museum.add_noise(moved, NOISE * CLIP, seed), BATCH)


# ---- all of them

_OF_ENGINE = replace(museum.DP_SGD_CLAIMS, denominator=SLOTS)
_OF_PERSONS = replace(museum.DP_SGD_CLAIMS, unit="client", denominator=SLOTS // OF_A_PERSON)
_OF_CLIENTS = replace(museum.DP_SGD_CLAIMS, unit="client")
ADAPTIVE: Any = {
    "target_unclipped_quantile": 0.5,
    "clipbound_learning_rate": 0.2,
    "max_clipbound": 10.0,
    "min_clipbound": 0.01,
    "unclipped_num_std": 2.0,
}


def _people() -> list:
    return museum.clients(8, OF_A_PERSON)


SOUND: dict[str, Sound] = {
    "NumPy": Sound(museum.dp_sgd),
    "NumPy, a sum": Sound(the_sum, replace(museum.DP_SGD_CLAIMS, denominator=1)),
    "NumPy, single precision": Sound(in_single_precision),
    "NumPy, automatic clipping": Sound(automatic),
    "NumPy, two parts of a clip": Sound(two_parts),
    "NumPy, clients": Sound(
        museum.client_step, replace(_OF_CLIENTS, denominator=8), museum.clients
    ),
    "NumPy, persons": Sound(persons, _OF_CLIENTS, _people),
    "PyTorch, one by one": Sound(one_by_one),
    "PyTorch, vmap": Sound(by_vmap),
    "Opacus, flat": Sound(opacus_step),
    "Opacus, functorch": Sound(partial(opacus_step, mode="functorch")),
    "Opacus, each layer": Sound(partial(opacus_step, kind=DPPerLayerOptimizer, clip=[0.8, 0.6])),
    "Opacus, virtual steps": Sound(partial(opacus_step, chunks=3)),
    "Opacus, momentum": Sound(partial(opacus_step, momentum=0.9)),
    "Opacus, ghost clipping": Sound(opacus_ghost),
    "Opacus, adaptive clipping": Sound(
        partial(opacus_step, kind=AdaClipDPOptimizer, **ADAPTIVE),
        replace(museum.DP_SGD_CLAIMS, noise_multiplier=(NOISE**-2 - (2 * 2.0) ** -2) ** -0.5),
    ),
    "Opacus, an adapter of PEFT": Sound(partial(opacus_step, model=_adapted)),
    "Opacus, its loader": Sound(
        museum.dp_sgd,
        replace(museum.DP_SGD_CLAIMS, sampling="poisson", sample_rate=1 / 6, dataset_size=96),
        loader=opacus_batches,
    ),
    "FedLoRA": Sound(engine, _OF_ENGINE),
    "FFA-LoRA": Sound(partial(engine, row="ffa-lora"), _OF_ENGINE),
    "RoLoRA, the turn of A": Sound(partial(engine, row="rolora", t=1), _OF_ENGINE),
    "FedSB": Sound(partial(engine, row="fed-sb"), _OF_ENGINE),
    "LA-LoRA before its filter": Sound(partial(engine, row="la-lora-unfiltered"), _OF_ENGINE),
    "FedLoRA, persons": Sound(partial(engine, unit="person"), _OF_PERSONS, _people),
    "transcription of FFA-LoRA": Sound(partial(transcription, sides="B")),
    "transcription of FedLoRA": Sound(partial(transcription, sides="AB")),
}
