"""Steps out of what other libraries hand out: Opacus' private parts, a Flower client.

Nothing is changed for good: parameters, buffers, optimiser and generators are put back after every
call.
"""

import copy
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fedlora_lab._utils.validation import check
from fedlora_lab.review.claims import ClaimedFields, Claims, Loader
from fedlora_lab.review.neighbours import Batch, Example
from fedlora_lab.review.review import Review, step

Foreign: TypeAlias = Any
"""An object of Opacus or Flower, whose types these do not export."""
Loss = Callable[[nn.Module, Foreign], Tensor]
Metrics = Callable[[Tensor, nn.Module, Foreign], Mapping[str, Example]]


@contextmanager
def seed_generators(generators: Sequence[torch.Generator], seed: int) -> Iterator[None]:
    """Seeds PyTorch, NumPy, Python and these generators in a block, and puts their states back."""
    before = [generator.get_state() for generator in generators]
    of_python = random.getstate()
    of_numpy = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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


# ---- Opacus


@dataclass
class OpacusStep:
    """One step of a training loop with Opacus, from the state in which it was made.

    Args:
        module: what ``make_private`` returned, or your own model where it wraps none.
        optimizer: the private optimiser.
        loss: (module, batch) -> the loss that is differentiated.
        collate: examples -> batch.
        metrics: (loss, module, batch) -> name -> number that is published with every step.
    """

    module: nn.Module
    optimizer: Foreign
    loss: Loss
    collate: Callable[[Batch], Foreign]
    metrics: Metrics | None = None
    start: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.state = copy.deepcopy(self.optimizer.state_dict())
        self.start = {name: x.detach().clone() for name, x in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by name."""
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        return {name.removeprefix("_module."): x for name, x in named}

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the parameters without a gradient."""
        tensors = self.tensors().items()
        return tuple(k for k, x in tensors if isinstance(x, nn.Parameter) and not x.requires_grad)

    def reset(self) -> None:
        """Puts parameters, buffers and optimiser back to where they were."""
        with torch.no_grad():
            for name, x in self.tensors().items():
                x.copy_(self.start[name])
        self.optimizer.load_state_dict(copy.deepcopy(self.state))
        self.optimizer.zero_grad()
        # What a call that failed on its way left with Opacus' hooks.
        for p in self.module.parameters():
            p.grad = None
            for name, empty in (("grad_sample", None), ("_forward_counter", 0)):
                if getattr(p, name, None) is not None and p.requires_grad:
                    setattr(p, name, empty)
        for layer in self.module.modules():
            if isinstance(activations := getattr(layer, "activations", None), list):
                activations.clear()

    def __call__(self, examples: Batch, seed: int) -> dict[str, Example]:
        generator = getattr(self.optimizer, "generator", None)
        hook = getattr(self.optimizer, "step_hook", None)
        self.reset()
        if hook is not None:
            self.optimizer.step_hook = None  # the accountant counts no step of a review
        try:
            with seed_generators([] if generator is None else [generator], seed):
                return self._released(self.collate(examples))
        finally:
            if hook is not None:
                self.optimizer.step_hook = hook
            self.reset()

    def _released(self, batch: Foreign) -> dict[str, Example]:
        """All that leaves a step on a batch."""
        loss = self.loss(self.module, batch)
        loss.backward()
        self.optimizer.step()
        sent: dict[str, Example] = {}
        for name, x in self.tensors().items():
            if not isinstance(x, nn.Parameter):
                sent[f"buffer {name}"] = x.detach().clone()
            elif not x.requires_grad:
                change = (x.detach() - self.start[name]).abs()
                sent[f"change of {name}"] = change.max() if change.numel() else 0.0
            elif x.grad is not None:
                sent[name] = x.grad.detach().clone()
        if getattr(self.optimizer, "original_optimizer", None) is not None:
            sent |= self._besides(sent)
        if self.metrics is not None:
            sent |= self.metrics(loss, self.module, batch)
        return sent

    def _besides(self, sent: Mapping[str, Example]) -> dict[str, float]:
        """What moved parameters and optimiser besides the gradient that leaves: a plain step by
        the same gradient must do the same."""

        def moved() -> tuple[list[Tensor], list[Tensor]]:
            trained = [x for x in self.tensors().values() if x.requires_grad]
            copies = [x.detach().double().clone() for x in trained]
            return copies, _state_tensors(self.optimizer)

        private = moved()
        self.reset()
        for name, p in self.tensors().items():
            if isinstance(p, nn.Parameter) and p.requires_grad:
                p.grad = sent[name].clone() if name in sent else None
        self.optimizer.original_optimizer.step()
        gaps = [_largest_gap(a, b) for a, b in zip(private, moved())]
        names = "parameters besides the gradient", "optimizer state besides the gradient"
        return dict(zip(names, gaps))


def _state_tensors(optimizer: Foreign) -> list[Tensor]:
    """Copies of the tensors of an optimiser's state, in its order."""
    states = optimizer.state_dict()["state"].values()
    tensors = [x for state in states for x in state.values() if isinstance(x, Tensor)]
    return [x.detach().double().clone() for x in tensors]


def _largest_gap(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors; 1 where they differ in number."""
    if len(ones) != len(others):
        return 1.0
    return max((float((a - b).abs().max()) for a, b in zip(ones, others) if a.numel()), default=0.0)


def _loss_of(criterion: "Callable[..., Tensor] | None") -> Loss:
    def loss(module: nn.Module, batch: Foreign) -> Tensor:
        if isinstance(batch, Mapping):
            outputs = module(**batch)
            return outputs.loss if criterion is None else criterion(outputs, batch)
        *inputs, target = batch
        check(criterion is not None, "criterion", criterion, "the loss function of your training")
        assert criterion is not None
        return criterion(module(*inputs), target)

    return loss


def _drawn_batches(loader: Foreign) -> "Loader | None":
    """Seed -> the batches of indices that a PyTorch loader draws for an epoch."""
    sampler = getattr(loader, "batch_sampler", None)
    if sampler is None:
        return None
    if type(sampler).__name__ == "BatchSplittingSampler":  # BatchMemoryManager cuts batches
        sampler = sampler.sampler
    batches: Iterable[Sequence[int]] = sampler
    owners = (sampler, getattr(sampler, "sampler", None), loader)
    # A sampler and its loader often share one generator, which is seeded and put back once.
    generators = {id(g): g for x in owners if (g := getattr(x, "generator", None)) is not None}

    def draw(seed: int) -> list[list[int]]:
        with seed_generators([*generators.values()], seed):
            return [[int(i) for i in batch] for batch in batches]

    return draw


def _sample_rate(loader: Foreign) -> float:
    """The rate at which a loader draws: Opacus' own, or one over its batches."""
    sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(sampler, "sampler", None)
    rates = (getattr(owner, "sample_rate", None) for owner in (loader, sampler, inner))
    return next(filter(None, rates), 1 / len(loader))


def _claims_of_opacus(private: OpacusStep, loader: Foreign) -> ClaimedFields:
    """What Opacus' accountant takes for granted, read from the optimizer and the loader."""
    optimizer = private.optimizer
    mean = getattr(optimizer, "loss_reduction", "mean") == "mean"
    return {
        "clip_norm": float(optimizer.max_grad_norm),
        "noise_multiplier": float(optimizer.noise_multiplier),
        "denominator": float(optimizer.expected_batch_size) if mean else 1.0,
        # Claimed even where the loader shuffles: the stated epsilon rests on it.
        "sampling": "poisson",
        "sample_rate": _sample_rate(loader),
        "dataset_size": len(loader.dataset),
        "frozen": tuple(f"change of {name}" for name in private.frozen),
        "seeded": not getattr(optimizer, "secure_mode", False),
    }


def opacus(
    module: nn.Module,
    optimizer: Foreign,
    loader: Foreign,
    criterion: "Callable[..., Tensor] | None" = None,
    *,
    loss: "Loss | None" = None,
    metrics: "Metrics | None" = None,
    claims: "ClaimedFields | None" = None,
    examples: int = 16,
    steps: int | None = None,
    epsilon: float | None = None,
    delta: float | None = None,
    draws: int = 64,
    seed: int = 0,
) -> Review:
    """Reviews a training with Opacus, from what ``PrivacyEngine.make_private`` returned.

    Flat and per-layer clipping, ghost clipping, and PEFT models under Opacus alike. Clip norm,
    noise multiplier, denominator and sample rate are read from the optimiser and the loader;
    Poisson sampling is what Opacus' accountant assumes. Training can go on afterwards as if nothing
    had been.

    Args:
        module, optimizer, loader: as returned.
        criterion: (outputs, targets) -> loss; for ghost clipping the one that was returned. Not
            needed where batches are mappings and the model returns its loss.
        loss: (module, batch) -> loss, where ``criterion(module(*inputs), target)`` is not it.
        metrics: (loss, module, batch) -> what is logged or sent with every step, by name.
        claims: fields of `Claims` that you state otherwise.
        examples: how many of the data set are tried.
        steps, epsilon, delta: of the whole training, as you state them.
        draws, seed: see `fedlora_lab.review.step`.

    Guarantees: test_opacus_passes, test_a_review_leaves_no_trace.
    """
    for name in ("noise_multiplier", "max_grad_norm"):
        expected = "an optimizer that make_private returned"
        check(hasattr(optimizer, name), "optimizer", type(optimizer).__name__, expected)
    count = len(loader.dataset)
    chosen = np.unique(np.linspace(0, count - 1, min(examples, count)).astype(int))
    data = [loader.dataset[int(i)] for i in chosen]
    loader.collate_fn(data)  # Opacus learns from a first batch what an empty one looks like
    private = OpacusStep(module, optimizer, loss or _loss_of(criterion), loader.collate_fn, metrics)
    stated: ClaimedFields = {"steps": steps, "epsilon": epsilon, "delta": delta}
    stated |= claims or {}
    return step(
        private,
        data,
        Claims(**_claims_of_opacus(private, loader) | stated),
        loader=_drawn_batches(loader),
        draws=draws,
        seed=seed,
    )


# ---- Flower


def _ask_client(client: Foreign, arrays: list[np.ndarray], config: dict[str, Any]) -> Foreign:
    """What ``fit`` of a NumPyClient or Client returns: arrays, and numbers by name."""
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays

    client = client.to_client() if hasattr(client, "to_client") else client
    reply = client.fit(FitIns(ndarrays_to_parameters(arrays), config))
    metrics = {k: x for k, x in reply.metrics.items() if not isinstance(x, (str, bytes))}
    numbers = {f"metric {name}": value for name, value in metrics.items()}
    return parameters_to_ndarrays(reply.parameters), numbers | {"num_examples": reply.num_examples}


def _ask_app(app: Foreign, arrays: list[np.ndarray], config: dict[str, Any]) -> Foreign:
    """What a ClientApp replies to a train message: arrays, and numbers by name."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.app.metadata import Metadata

    content = RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord(config)})
    about = Metadata(1, "1", 0, 1, "", "", time.time(), 3600.0, "train")
    make: Foreign = Message  # the form that a received message has
    reply = app(make(content, metadata=about), Context(1, 1, {}, RecordDict(), {}))
    sent: list[np.ndarray] = []
    numbers: dict[str, Example] = {}
    for name, record in reply.content.items():
        if isinstance(record, ArrayRecord):
            sent += record.to_numpy_ndarrays()
        elif isinstance(record, MetricRecord):
            numbers |= {f"{name} {key}": value for key, value in record.items()}
    return sent, numbers


def flower(
    client: "Callable[[Batch], Foreign]",
    data: Batch,
    claims: Claims,
    *,
    parameters: Sequence[np.ndarray],
    config: "Mapping[str, Any] | None" = None,
    loader: "Loader | None" = None,
    draws: int = 64,
    seed: int = 0,
) -> Review:
    """Reviews what a Flower client sends to its server in one round.

    Let the client take one local step in it: after several, what it sends is no sum any more. The
    number of examples leaves with every reply; ``Claims(public=("num_examples",))`` if you say so.

    Args:
        client: examples -> a ``NumPyClient``, ``Client`` or ``ClientApp`` that trains on them.
        data: at least 8 examples, as ``client`` takes them.
        claims: what you say of it; ``denominator``: expected batch size / learning rate.
        parameters: arrays that the server sends.
        config: what the server sends beside them, for one local step.
        loader, draws, seed: see `fedlora_lab.review.step`.

    Guarantees: test_a_flower_client_is_reviewed_as_its_server_sees_it.
    """
    import_module("fedlora_lab.flower")  # imports Flower, or says how to install it
    start = {f"parameter {i}": np.asarray(x) for i, x in enumerate(parameters)}

    def asked(examples: Batch, seed: int) -> dict[str, Example]:
        with seed_generators([], seed):
            made = client(examples)
            ask = _ask_client if hasattr(made, "fit") else _ask_app
            arrays, numbers = ask(made, [x.copy() for x in start.values()], dict(config or {}))
        sent = {f"parameter {i}": x for i, x in enumerate(arrays)}
        # What a server sees beyond what it sent: a change where shapes are alike.
        for name in sent.keys() & start.keys():
            if sent[name].shape == start[name].shape:
                sent[name] = sent[name] - start[name]
        return sent | numbers

    return step(asked, data, claims, loader=loader, draws=draws, seed=seed)
