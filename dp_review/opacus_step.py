"""A training with Opacus as a step.

Nothing is changed for good: parameters, buffers, optimiser and generators are put back after every
call. PyTorch is imported when a step is reviewed that has it already.
"""

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dp_review._validation import check
from dp_review.claims import Claims, Loader
from dp_review.neighbours import Batch, Example, map_leaves
from dp_review.review import Review, step

if TYPE_CHECKING:
    from torch import Tensor, nn

Foreign: TypeAlias = Any
"""An object of Opacus, whose types it does not export."""
Loss: TypeAlias = "Callable[[nn.Module, Foreign], Tensor]"
Metrics: TypeAlias = "Callable[[Tensor, nn.Module, Foreign], Mapping[str, Example]]"
EXAMPLES = 16
"""Examples of a loader's data set that are tried."""


@contextmanager
def seed_generators(owners: Sequence[Foreign], seed: int) -> Iterator[None]:
    """Seeds PyTorch, NumPy, Python and what ``generator`` these objects have in a block, and puts
    all states back."""
    import torch

    # A sampler and its loader often share one generator, which is seeded and put back once.
    generators = {g for x in owners if (g := getattr(x, "generator", None)) is not None}
    before = [generator.get_state() for generator in generators]
    of_python = random.getstate()
    of_numpy = np.random.get_state()  # noqa: NPY002
    # For devices that are missing `torch.manual_seed` would keep the seed until there is one.
    everywhere = torch.accelerator.is_available()
    seed_torch = torch.manual_seed if everywhere else torch.default_generator.manual_seed
    with torch.random.fork_rng():
        seed_torch(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        for generator in generators:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002
            for generator, state in zip(generators, before):
                generator.set_state(state)


def is_parameter(x: "Tensor") -> bool:
    """Whether a tensor of a module is a parameter, and no buffer."""
    from torch import nn

    return isinstance(x, nn.Parameter)


@dataclass
class OpacusStep:
    """One step of a training loop with Opacus, from the state in which it was made.

    What leaves is the gradient that the wrapped optimiser receives. What that optimiser does with
    it, beside what its own state holds, is not looked at.

    Args:
        module: what ``make_private`` returned, or your own model where it wraps none.
        optimizer: the private optimiser.
        loss: (module, batch) -> the loss that is differentiated.
        collate: examples -> batch.
        metrics: (loss, module, batch) -> name -> number that is published with every step.
    """

    module: "nn.Module"
    optimizer: Foreign
    loss: "Loss"
    collate: Callable[[Batch], Foreign]
    metrics: "Metrics | None" = None

    def __post_init__(self) -> None:
        learns = getattr(self.module, "training", False)
        check(learns, "module", self.module, "a model in training: call module.train()")
        self.state = copy.deepcopy(self.optimizer.state_dict())
        # A forward pass may bind another tensor to a name, and a step another value.
        held: list[dict] = [vars(self.optimizer)]
        for layer in self.module.modules():
            held += layer._parameters, layer._buffers
        self.held = [(names, {**names}) for names in held]
        self.tensors = self._tensors()
        self.start = {name: x.detach().clone() for name, x in self.tensors.items()}
        self.trained = {name: x for name, x in self.tensors.items() if x.requires_grad}

    def _tensors(self) -> "dict[str, Tensor]":
        """Parameters and buffers that the module has now, by name."""
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name.removeprefix("_module."): x for name, x in named}

    def reset(self) -> None:
        """Puts parameters, buffers and optimiser back to where they were."""
        import torch

        for names, first in self.held:
            names.update(first)
        with torch.no_grad():
            for name, x in self.tensors.items():
                x.copy_(self.start[name])
        self.optimizer.load_state_dict(copy.deepcopy(self.state))
        self.optimizer.zero_grad()
        # What a call that failed on its way left with Opacus' hooks.
        for p in self.trained.values():
            p.grad = None
            vars(p).update(grad_sample=None, _forward_counter=0)
        for layer in self.module.modules():
            if isinstance(activations := getattr(layer, "activations", None), list):
                activations.clear()

    def __call__(self, examples: Batch, seed: int) -> dict[str, Example]:
        self.reset()
        self.optimizer.step_hook = None  # the accountant counts no step of a review
        # A loader hands out batches on the CPU, and a training loop moves them.
        device = next(self.module.parameters()).device

        def to_device(x: Foreign) -> Foreign:
            return x.to(device) if hasattr(x, "to") else x

        try:
            with seed_generators([self.optimizer], seed):
                return self._released(map_leaves(to_device, self.collate(examples)))
        finally:
            self.reset()

    def _released(self, batch: Foreign) -> dict[str, Example]:
        """All that leaves a step on a batch."""
        loss = self.loss(self.module, batch)
        loss.backward()
        self.optimizer.step()
        sent: dict[str, Example] = {}
        for name, x in self._tensors().items():
            if not is_parameter(x):
                sent[f"buffer {name}"] = x.detach().clone()
            elif not x.requires_grad:
                sent[f"change of {name}"] = (x.detach() - self.start[name]).abs().sum()
            elif x.grad is not None:
                sent[name] = x.grad.detach().clone()
        if self.metrics is not None:
            sent |= self.metrics(loss, self.module, batch)
        return sent


def _batch_sampler(loader: Foreign) -> Foreign:
    """What draws a loader's batches, whole where Opacus' memory manager cuts them."""
    sampler: Foreign = getattr(loader, "batch_sampler", None)
    return sampler.sampler if type(sampler).__name__ == "BatchSplittingSampler" else sampler


def _drawn_batches(loader: Foreign) -> "Loader | None":
    """Seed -> the batches of indices that a PyTorch loader draws for an epoch."""
    sampler = _batch_sampler(loader)
    if sampler is None:
        return None
    owners = (sampler, getattr(sampler, "sampler", None), loader)

    def draw(seed: int) -> list[list[int]]:
        with seed_generators(owners, seed):
            return [[int(i) for i in batch] for batch in sampler]

    return draw


def opacus(
    module: "nn.Module",
    optimizer: Foreign,
    loader: Foreign,
    criterion: "Callable[..., Tensor] | None" = None,
    *,
    loss: "Loss | None" = None,
    metrics: "Metrics | None" = None,
    steps: int | None = None,
    epsilon: float | None = None,
    delta: float | None = None,
    draws: int = 64,
    seed: int = 0,
) -> Review:
    """Reviews a training with Opacus, from what ``PrivacyEngine.make_private`` returned.

    Flat, per-layer and ghost clipping, and PEFT models. Training can go on as if nothing had been.

    Args:
        module, optimizer, loader: as returned; clip, noise, denominator and rate are read there.
        criterion: (outputs, targets) -> loss; for ghost clipping the one that was returned.
        loss: (module, batch) -> loss, where ``criterion(module(*inputs), target)`` is not it. The
            tensors of the batch are on the module's device.
        metrics: (loss, module, batch) -> what is logged or sent with every step, by name.
        steps, epsilon, delta: of the whole training, as you state them.
        draws, seed: see `dp_review.step`.

    Guarantees: test_opacus_passes, test_a_review_leaves_no_trace.
    """
    private = hasattr(optimizer, "noise_multiplier") and hasattr(optimizer, "max_grad_norm")
    private &= not hasattr(optimizer, "target_unclipped_quantile")  # whose clip norm moves
    check(private, "optimizer", type(optimizer), "one of make_private, without adaptive clipping")
    sized = hasattr(getattr(loader, "dataset", None), "__len__")
    check(sized, "loader", loader, "one of a sized data set")
    check(criterion is not None or loss is not None, "criterion", None, "the loss of your training")

    def criterion_loss(module: "nn.Module", batch: Foreign) -> "Tensor":
        *inputs, target = batch
        assert criterion is not None
        return criterion(module(*inputs), target)

    count = len(loader.dataset)
    chosen = np.unique(np.linspace(0, count - 1, min(EXAMPLES, count)).astype(int))
    with seed_generators([], 0):  # a data set may draw, too
        data = [loader.dataset[int(i)] for i in chosen]
        loader.collate_fn(data)  # Opacus learns from a first batch what an empty one looks like
    subject = OpacusStep(module, optimizer, loss or criterion_loss, loader.collate_fn, metrics)
    summed = getattr(optimizer, "loss_reduction", "mean") == "sum"
    claims = Claims(
        clip_norm=float(optimizer.max_grad_norm),
        noise_multiplier=float(optimizer.noise_multiplier),
        denominator=1.0 if summed else float(optimizer.expected_batch_size),
        sampling="poisson",  # also where the loader shuffles: the stated epsilon rests on it
        sample_rate=getattr(_batch_sampler(loader), "sample_rate", None) or 1 / len(loader),
        dataset_size=count,
        steps=steps,
        epsilon=epsilon,
        delta=delta,
        seeded=not getattr(optimizer, "secure_mode", False),
    )
    return step(subject, data, claims, loader=_drawn_batches(loader), draws=draws, seed=seed)
