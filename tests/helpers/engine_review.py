"""The library's own engine as a step: a local step of two clients, or what a server receives.

What is reviewed is the engine's own code at a random state of what it trains, with the user's
method, privacy and model on a few of the user's examples. Two things are chosen for it: the state,
and who is in a batch, since a review has to know that.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dp_review import Claims, Review, step
from dp_review.claims import Loader
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.audit.instruments import Recorder
from fedlora_lab.federated import exchange, local_training
from fedlora_lab.federated.config import Prepared
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.run import RunOptions
from fedlora_lab.methods.filters import identity
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.plan import Lora, Plan
from fedlora_lab.methods.published import get
from fedlora_lab.methods.state import Tensors
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.tasks.task import Clients, Examples, Task, concatenate, take

UNITS = 8
"""Units whose batch is varied."""
SLOTS = 4 * UNITS
"""Units that a client has, or clients that there are: what a review puts into one batch at most."""
EXPECTED = 4
"""Expected size of a batch: small enough for an empty one to count."""
ROWS_OF = {"example": 1, "person": 2, "client": 4}
"""Examples that make one unit."""
SPREAD = 0.3
"""Standard deviation of what is added to trained tensors: some gradients vanish at the start."""
LOADER_BATCHES = 50
LEDGER_ROUNDS = 3
PLAIN: dict[str, Any] = {
    "optimizer": "sgd",
    "server_optimizer": "sgd",
    "lr": 1.0,
    "lr_decay": 1.0,
    "server_lr": 1.0,
    "client_dropout": 0.0,
    "client_weights": "uniform",
}
"""Of the plan: a released sum moves the tensors by itself, and nobody is lost."""


class ChosenBatch(Streams):
    """Random streams whose draw of a batch takes the first units, so that a review knows them.

    Args:
        seed: of everything else, noise included.
        count: units of the first client that are drawn, or clients.
    """

    def __init__(self, seed: int, count: int) -> None:
        super().__init__(seed)
        self.count = count

    def public(self, purpose: str, *indices: int) -> np.random.Generator:
        # What is public is the same in every call, so that calls differ by noise and units alone.
        return Streams(0).numpy(purpose, *indices)

    def uniform(self, shape: tuple[int, ...], purpose: str, *indices: int) -> Tensor:
        if purpose not in ("sampling", "participation"):
            return super().uniform(shape, purpose, *indices)
        first = purpose == "participation" or indices[1] == 0
        drawn = torch.arange(shape[0]) < (self.count if first else EXPECTED)
        return torch.where(drawn, 0.0, 1.0)


def few_units(task: Task, unit: str) -> list[Examples]:
    """Takes units from the clients in turn: pairs (x, y) of as many rows as `ROWS_OF` says."""
    size = ROWS_OF[unit]
    units = []
    for i in range(UNITS):
        x, y = task.clients[i % len(task.clients)]
        # A client that has fewer examples gives them again.
        rows = (torch.arange(size) + size * (i // len(task.clients))) % len(y)
        units.append((take(x, rows), y[rows]))
    return units


def clients_of(units: Sequence[Examples], others: list[Examples], unit: str) -> tuple:
    """Clients with these units in the first places, and others in all further ones.

    Args: units, others: pairs (x, y). unit: what they are.
    """

    def filled(first: Sequence[Examples]) -> list[Examples]:
        return [*first, *(others[i % len(others)] for i in range(len(first), SLOTS))]

    if unit == "client":
        return tuple(filled(units))
    return concatenate(filled(units)), concatenate(filled([]))


def task_of(task: Task, units: list[Examples], unit: str) -> Task:
    """The task with clients of these units.

    Args: task: whose model is trained. units: pairs (x, y). unit: what they are.
    """
    persons = None
    if unit == "person":
        persons = tuple(torch.arange(2 * SLOTS).repeat_interleave(ROWS_OF[unit]).chunk(2))
    return replace(task, clients=Clients(clients_of([], units, unit), persons=persons))


@dataclass
class EngineStep:
    """One release of the engine as a function of the units in its batch, and of a seed.

    Args:
        run: stands at the state from which every call begins.
        units: those that the other places, and the other client, hold.
        t, s: round and local step that are reviewed, from 0.
    """

    run: Recorder
    units: list[Examples]
    t: int = 0
    s: int = 0

    def __call__(self, units: Sequence[Examples], seed: int) -> dict[str, Tensor]:
        check(len(units) <= SLOTS, "examples", len(units), f"at most {SLOTS}")
        config = self.run.config
        assert config.privacy is not None
        data = clients_of(units, self.units, config.privacy.unit)
        # Noise and batches come from the seed alone, so that it cancels between two calls.
        config = config.with_streams(ChosenBatch(seed, len(units)))
        # A step reads sizes from the task and examples from here: no task is made and checked anew.
        prepared = replace(self.run.prepared, config=config, data=data)
        released, start = self._step(prepared) if config.releases_steps else self._round(prepared)
        step = self.s if config.releases_steps else None
        # Clip and noise are compared where the noise is white.
        white = local_training.in_white_noise(config, released, start, self.t, step)
        return {
            f"client {k}: {key.name} {key.layer}": row
            for key, rows in white.items()
            for k, row in enumerate(rows)
        }

    def _step(self, prepared: Prepared) -> tuple[Tensors, Tensors]:
        """How far a step at rate 1 moves both clients, and where they stood."""
        # Every call begins at the same state; what a call trains is thrown away.
        server = replace(self.run.state.server, round=self.t)
        sent = exchange.broadcast(prepared.config.method, server)
        clients = self.run.start_clients((0, 1), sent)
        start = dict(clients.params)
        local_training.local_step(prepared, clients, self.t, self.s)
        moved = {
            key: (start[key] - x).expand(2, *x.shape[1:])
            for key, x in clients.params.items()
            if x is not start[key]
        }
        return moved, start

    def _round(self, prepared: Prepared) -> tuple[Tensors, Tensors]:
        """What the server receives in a round, less what it sent; and what it sent."""
        run = Recorder.from_prepared(prepared, RunOptions())
        run.state.server = replace(self.run.state.server, round=self.t)
        # The round stands in a history in which nothing has changed before.
        run.state.changed = [{} for _ in range(self.t)]
        run.resumed = True
        next(event for event in run.events() if isinstance(event, Round))
        assert run.result is not None
        start = {key: x[None] for key, x in run.result.opened.broadcast.tensors.items()}
        rows = run.result.received.uploads.items()
        return {key: x - start[key] for key, x in rows}, start


def drawn_batches(run: Recorder) -> Loader:
    """Seed -> batches that the engine draws, of both clients' units, or of clients."""

    def draw(seed: int) -> list[list[int]]:
        config = run.config.with_streams(Streams(seed))
        prepared = replace(run.prepared, config=config)
        if not config.releases_steps:
            copied = Recorder.from_prepared(prepared, RunOptions())
            return [list(copied.participants(t)) for t in range(LOADER_BATCHES)]
        batches = []
        for i in range(LOADER_BATCHES):
            both = local_training.poisson_batch(prepared, i // 2, i % 2, (0, 1))
            if config.by_person:  # of the examples that a client draws, whose they are
                both = [prepared.persons[k][x].unique() for k, x in enumerate(both)]
            batches.append([*both[0].tolist(), *(SLOTS + both[1]).tolist()])
        return batches

    return draw


def stated_claims(run: Recorder) -> Claims:
    """Makes the rounds of a run: what its ledger, not its plan, then says of the first client."""
    deque(run.events(), maxlen=0)
    privacy = run.config.privacy
    assert privacy is not None and run.ledger is not None
    entry = run.ledger.releases[-1]
    assert entry.noise_multiplier is not None and entry.sample_rate is not None
    sampled = privacy.releases_steps or privacy.trust == "central"
    return Claims(
        clip_norm=privacy.clip_norm,
        noise_multiplier=float(np.ravel(entry.noise_multiplier)[0]),
        denominator=EXPECTED if sampled else SLOTS,
        sampling="poisson" if sampled else None,
        sample_rate=float(np.ravel(entry.sample_rate)[0]),
        dataset_size=2 * SLOTS if privacy.releases_steps else SLOTS,
        steps=LEDGER_ROUNDS * (run.config.plan.local_steps if privacy.releases_steps else 1),
        epsilon=run.ledger.nominal_epsilon(),
        delta=privacy.delta,
        relation="add/remove" if sampled else "replace",
        finite=False,
    )


def small_plans(privacy: Privacy, plan: Plan) -> tuple[Privacy, Plan]:
    """The user's plans for the task of `task_of`: its clients, and its expected batches."""
    share = EXPECTED / SLOTS if not privacy.releases_steps and privacy.trust == "central" else 1.0
    batch = EXPECTED if privacy.releases_steps else None
    plan = plan.replace(**PLAIN, rounds=LEDGER_ROUNDS, participation=share, batch=batch)
    sigma = privacy.noise_multiplier
    if isinstance(sigma, tuple):
        sigma = tuple(sigma[k % len(sigma)] for k in range(2))
    # The noise was calibrated for another plan, and the sharing of it for other clients.
    free: dict[str, Any] = {
        "sample_rate": None,
        "honest_clients": None,
        "colluding_clients": 0,
        "target_epsilon": None,
    }
    return privacy.replace(noise_multiplier=sigma, **free), plan


def perturbed_state(server_tensors: Tensors, streams: Streams) -> dict:
    """Trained tensors moved at random, and all others as they are."""
    moved = {}
    for number, (key, x) in enumerate(server_tensors.items()):
        change = SPREAD * streams.normal(x.shape, "review", number)
        moved[key] = x + change.to(x) if key.kind.trained else x
    return moved


def engine_subject(
    task: Task,
    method: "Method | str",
    privacy: Privacy,
    plan: Plan,
    *,
    round_index: int = 0,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """What `dp_review.step` is given of the engine, by name. Args: see `engine`."""
    check(isinstance(privacy, Privacy), "privacy", privacy, "a Privacy with its noise set")
    check_whole("round_index", round_index)
    # A filter follows the noise: it makes noise correlated and smaller, and tells nothing.
    row = get(method).replace(filter=identity)
    units = few_units(task, privacy.unit)
    small = task_of(task, units, privacy.unit)
    privacy, plan = small_plans(privacy, plan)
    claims = stated_claims(Recorder.open(small, row, privacy, plan, seed=seed, **options))
    plan = plan.replace(rounds=round_index + 2)
    run = Recorder.open(small, row, privacy, plan, seed=seed, **options)
    server = run.state.server
    run.state.server = server.replace_tensors(perturbed_state(server.tensors, Streams(seed)))
    others = {"the next round": EngineStep(run, units, t=round_index + 1)}
    if privacy.releases_steps and plan.local_steps > 1:
        others["the next step"] = EngineStep(run, units, t=round_index, s=1)
    return {
        "function": EngineStep(run, units, t=round_index),
        "data": units,
        "claims": claims,
        "loader": drawn_batches(run) if claims.sampling else None,
        "others": others,
    }


def engine(
    task: Task,
    method: "Method | str",
    privacy: Privacy,
    plan: Plan,
    *,
    lora: "Lora | None" = None,
    round_index: int = 0,
    seed: int = 0,
    bug: "Callable[..., Any] | None" = None,
    draws: int = 16,
) -> Review:
    """Reviews the library's own engine under a method and a `Privacy`.

    A filter after the noise is left out: it is post-processing, and makes the noise correlated.

    Args:
        task, method, privacy, plan, lora: see `fl.run`.
        round_index: of the round that is reviewed, from 0: a schedule may move other tensors there.
        seed: of the state and of the review.
        bug: clips in the library's place, one of `engine_bugs.BUGS`, to be found.
        draws: see `dp_review.step`.

    Guarantees: test_every_planted_bug_is_found, test_no_row_is_blamed.
    """
    subject = engine_subject(
        task, method, privacy, plan, lora=lora, round_index=round_index, seed=seed, bug=bug
    )
    return step(**subject, batch=UNITS, draws=draws, seed=seed)
