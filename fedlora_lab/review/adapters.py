"""Steps out of what other libraries hand out: Opacus' private parts, a Flower client.

An adapter turns somebody's objects into a `Subject`: a function of examples and a seed, examples,
claims, and a function that draws batches. Nothing is changed for good: parameters, buffers,
optimiser and generators are put back after every call.
"""

import copy
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedlora_lab._utils.validation import check
from fedlora_lab.review.claims import Claims, Loader, Step
from fedlora_lab.review.review import Review, step

PREFIX = "_module."


class Subject(NamedTuple):
    """What is reviewed: ``fl.review.step(*subject[:3], loader=subject.loader)``."""

    step: Step
    data: list[Any]
    claims: Claims
    loader: Loader | None


@contextmanager
def seed_generators(generators: Sequence[Any], seed: int) -> Iterator[None]:
    """Seeds PyTorch, NumPy, Python and these generators in a block, and puts their states back."""
    before = [generator.get_state() for generator in generators]
    own, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        for generator in generators:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(numpys)  # noqa: NPY002
            for generator, state in zip(generators, before):
                generator.set_state(state)


class OpacusStep:
    """One step of a training loop with Opacus, from the state in which it was made.

    Args:
        module: what ``make_private`` returned, or your own model where it wraps none.
        optimizer: the private optimiser.
        loss: (module, batch) -> the loss that is differentiated.
        collate: examples -> batch.
        metrics: (loss, module, batch) -> name -> number that is published with every step.
    """

    def __init__(
        self,
        module: Any,
        optimizer: Any,
        loss: Callable[[Any, Any], Any],
        collate: Callable[[list[Any]], Any],
        metrics: "Callable[[Any, Any, Any], Mapping[str, Any]] | None" = None,
    ) -> None:
        self.module, self.optimizer, self.loss, self.collate = module, optimizer, loss, collate
        self.metrics = metrics
        self.inner: Any = getattr(optimizer, "original_optimizer", None)
        self.parameters = {_plain(name): p for name, p in module.named_parameters()}
        self.trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.buffers = {_plain(name): x for name, x in module.named_buffers()}
        everything = [*self.parameters.values(), *self.buffers.values()]
        self.start = [(x, x.detach().clone()) for x in everything]
        self.state = copy.deepcopy(optimizer.state_dict())

    @property
    def frozen(self) -> tuple[str, ...]:
        """Names of the outputs that stand for parameters without a gradient."""
        return tuple(_frozen(name) for name in self.parameters if name not in self.trained)

    def reset(self) -> None:
        """Puts parameters, buffers and optimiser back to where they were."""
        with torch.no_grad():
            for x, value in self.start:
                x.copy_(value)
        self.optimizer.load_state_dict(copy.deepcopy(self.state))
        self.optimizer.zero_grad()
        for p in self.parameters.values():
            p.grad = None
            # What a call that failed on its way left with Opacus' hooks.
            for name in ("grad_sample", "_forward_counter", "_current_grad_sample"):
                if getattr(p, name, None) is not None and p.requires_grad:
                    setattr(p, name, 0 if name == "_forward_counter" else None)
        for layer in self.module.modules():
            if isinstance(kept := getattr(layer, "activations", None), list):
                kept.clear()

    def __call__(self, examples: list[Any], seed: int) -> dict[str, Any]:
        generator = getattr(self.optimizer, "generator", None)
        hook = getattr(self.optimizer, "step_hook", None)
        self.reset()
        if hook is not None:
            self.optimizer.step_hook = None  # the accountant counts no step of a review
        try:
            with seed_generators([] if generator is None else [generator], seed):
                return self._step(examples)
        finally:
            if hook is not None:
                self.optimizer.step_hook = hook
            self.reset()

    def _step(self, examples: list[Any]) -> dict[str, Any]:
        batch = self.collate(examples)
        loss = self.loss(self.module, batch)
        loss.backward()
        self.optimizer.step()
        sent: dict[str, Any] = {}
        for name, p in self.trained.items():
            if p.grad is not None:
                sent[name] = p.grad.detach().clone()
        for name, x in self.buffers.items():
            sent[f"buffer {name}"] = x.detach().clone()
        begin = {id(x): value for x, value in self.start}
        for name, p in self.parameters.items():
            if name not in self.trained:
                change = (p.detach() - begin[id(p)]).abs()
                sent[_frozen(name)] = change.max() if change.numel() else 0.0
        if self.inner is not None:
            sent |= self._besides(sent)
        if self.metrics is not None:
            sent |= self.metrics(loss, self.module, batch)
        return sent

    def _besides(self, sent: Mapping[str, Any]) -> dict[str, Any]:
        """What moved parameters and optimiser besides the gradient that leaves: a plain step by
        the same gradient must do the same."""
        after = {name: p.detach().clone() for name, p in self.trained.items()}
        state = _tensors(self.optimizer.state_dict())
        self.reset()
        for name, p in self.trained.items():
            p.grad = sent[name].clone() if name in sent else None
        self.inner.step()
        gaps = [(after[name] - p.detach()).abs().max() for name, p in self.trained.items()]
        again = _tensors(self.optimizer.state_dict())
        same = [a.shape == b.shape for a, b in zip(state, again)]
        held = [
            (a - b).abs().max() for a, b in zip(state, again) if a.numel() and a.shape == b.shape
        ]
        lost = float(not all(same) or len(state) != len(again))
        return {
            "parameters besides the gradient": float(max(gaps, default=0.0)),
            "optimizer state besides the gradient": max([lost, *map(float, held)]),
        }


def _plain(name: str) -> str:
    return name.removeprefix(PREFIX)


def _frozen(name: str) -> str:
    return f"change of {name}"


def _tensors(state: Any) -> list[Tensor]:
    """The tensors of an optimiser's state, in its order."""
    if isinstance(state, Tensor):
        return [state.detach().clone().double()]
    parts = [*state.values()] if isinstance(state, Mapping) else state
    return [x for part in parts for x in _tensors(part)] if isinstance(parts, (list, tuple)) else []


def opacus_subject(
    module: Any,
    optimizer: Any,
    loader: Any,
    criterion: "Callable[..., Any] | None" = None,
    *,
    loss: "Callable[[Any, Any], Any] | None" = None,
    metrics: "Callable[[Any, Any, Any], Mapping[str, Any]] | None" = None,
    claims: "Mapping[str, Any] | None" = None,
    examples: int = 16,
) -> Subject:
    """Makes of Opacus' private parts what can be reviewed; for the arguments see `opacus`.

    Args:
        module, optimizer, loader, criterion: what ``make_private`` returned.
        loss, metrics, claims, examples: see `opacus`.
    """
    for name in ("noise_multiplier", "max_grad_norm"):
        words = "an optimizer that make_private returned"
        check(hasattr(optimizer, name), "optimizer", type(optimizer).__name__, words)
    count = len(loader.dataset)
    chosen = np.unique(np.linspace(0, count - 1, min(examples, count)).astype(int))
    data = [loader.dataset[int(i)] for i in chosen]
    loader.collate_fn(data)  # Opacus learns from a first batch what an empty one looks like
    if loss is None:
        loss = _loss_of(criterion)
    step = OpacusStep(module, optimizer, loss, loader.collate_fn, metrics)
    mean = getattr(optimizer, "loss_reduction", "mean") == "mean"
    sampler = _batch_sampler(loader)
    rates = (getattr(x, "sample_rate", None) for x in (loader, sampler))
    said: dict[str, Any] = {
        "clip_norm": float(optimizer.max_grad_norm),
        "noise_multiplier": float(optimizer.noise_multiplier),
        "denominator": float(optimizer.expected_batch_size) if mean else 1.0,
        "sampling": "poisson",
        "sample_rate": next(filter(None, rates), 1 / len(loader if sampler is None else sampler)),
        "dataset_size": count,
        "frozen": step.frozen,
        "seeded": not getattr(optimizer, "secure_mode", False),
    }
    return Subject(step, data, Claims(**said | dict(claims or {})), _batches(loader))


def _loss_of(criterion: "Callable[..., Any] | None") -> Callable[[Any, Any], Any]:
    def loss(module: Any, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            outputs = module(**batch)
            return outputs.loss if criterion is None else criterion(outputs, batch)
        *inputs, target = batch
        check(criterion is not None, "criterion", criterion, "the loss function of your training")
        assert criterion is not None
        return criterion(module(*inputs), target)

    return loss


def _batch_sampler(loader: Any) -> Any:
    """What draws a loader's batches; BatchMemoryManager of Opacus cuts them in pieces."""
    sampler: Any = getattr(loader, "batch_sampler", None)
    return sampler.sampler if type(sampler).__name__ == "BatchSplittingSampler" else sampler


def _batches(loader: Any) -> "Loader | None":
    """Seed -> the batches of indices that a PyTorch loader draws for an epoch."""
    sampler = _batch_sampler(loader)
    if sampler is None:
        return None
    parts = (sampler, getattr(sampler, "sampler", None), loader)
    found = {id(g): g for x in parts if (g := getattr(x, "generator", None)) is not None}

    def draw(seed: int) -> list[list[int]]:
        with seed_generators([*found.values()], seed):
            return [[int(i) for i in batch] for batch in sampler]

    return draw


def opacus(
    module: Any,
    optimizer: Any,
    loader: Any,
    criterion: "Callable[..., Any] | None" = None,
    *,
    loss: "Callable[[Any, Any], Any] | None" = None,
    metrics: "Callable[[Any, Any, Any], Mapping[str, Any]] | None" = None,
    claims: "Mapping[str, Any] | None" = None,
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
    said = {"steps": steps, "epsilon": epsilon, "delta": delta} | dict(claims or {})
    options: Any = {"loss": loss, "metrics": metrics, "claims": said, "examples": examples}
    subject = opacus_subject(module, optimizer, loader, criterion, **options)
    title = f"Is this private? {type(optimizer).__name__}"
    options = {"loader": subject.loader, "draws": draws, "seed": seed, "title": title}
    return step(*subject[:3], **options)


def flower_step(
    client: Callable[[list[Any]], Any],
    parameters: Sequence[Any],
    config: "Mapping[str, Any] | None" = None,
) -> Step:
    """Makes a step of a Flower client: what it answers to one request to train.

    Args: client, parameters, config: see `flower`.
    """
    import_module("fedlora_lab.flower")  # imports Flower, or says how to install it
    start = [np.asarray(x) for x in parameters]

    def step(examples: list[Any], seed: int) -> dict[str, Any]:
        with seed_generators([], seed):
            given = client(examples)
            given = given.to_client() if hasattr(given, "to_client") else given
            answer = _ask_client if hasattr(given, "fit") else _ask_app
            arrays, others = answer(given, [x.copy() for x in start], dict(config or {}))
        names = [f"parameter {i}" for i in range(len(arrays))]
        # What a server sees beyond what it sent: a change where shapes are alike.
        sent = dict(zip(names, start))
        changes = {
            name: x - sent[name] if name in sent and sent[name].shape == x.shape else x
            for name, x in zip(names, arrays)
        }
        return changes | others

    return step


def _ask_client(client: Any, arrays: list[np.ndarray], config: dict[str, Any]) -> Any:
    """What ``fit`` of a NumPyClient or Client returns: arrays, and numbers by name."""
    from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays

    reply = client.fit(FitIns(ndarrays_to_parameters(arrays), config))
    others = {f"metric {name}": value for name, value in reply.metrics.items()}
    others = {name: x for name, x in others.items() if not isinstance(x, (str, bytes))}
    return parameters_to_ndarrays(reply.parameters), others | {"num_examples": reply.num_examples}


def _ask_app(app: Any, arrays: list[np.ndarray], config: dict[str, Any]) -> Any:
    """What a ClientApp replies to a train message: arrays, and numbers by name."""
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
    from flwr.app.metadata import Metadata

    content = RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord(config)})
    about = Metadata(1, "1", 0, 1, "", "", time.time(), 3600.0, "train")
    make: Any = Message  # the form that a received message has
    message = make(content, metadata=about)
    reply = app(message, Context(1, 1, {}, RecordDict(), {}))
    found: list[np.ndarray] = []
    others: dict[str, Any] = {}
    for name, record in reply.content.items():
        if isinstance(record, ArrayRecord):
            found += record.to_numpy_ndarrays()
        elif isinstance(record, MetricRecord):
            others |= {f"{name} {key}": value for key, value in record.items()}
    return found, others


def flower(
    client: "Callable[[list[Any]], Any]",
    data: Sequence[Any],
    claims: Claims,
    *,
    parameters: Sequence[Any],
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
    asked = flower_step(client, parameters, config)
    options: Any = {"loader": loader, "draws": draws, "seed": seed}
    return step(asked, data, claims, title="Is this private? A Flower client", **options)
