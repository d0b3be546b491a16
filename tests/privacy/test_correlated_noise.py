"""Correlated noise in runs: what is added, what one unit moves, what is kept and refused."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz
from toy_tasks import LORA, people, play, regression, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.federated import local_training, run_spec, uploads
from fedlora_lab.federated.checkpoint import LEDGER
from fedlora_lab.federated.records import Round
from fedlora_lab.federated.simulation import Federation
from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.config import Correlated
from fedlora_lab.privacy.ledger import Ledger

pytestmark = pytest.mark.filterwarnings(
    "ignore:local_steps:UserWarning", "ignore:cycle:UserWarning"
)

PLAN = fl.Plan(rounds=3, local_steps=2, batch=2, lr=0.0)  # six steps; of six examples: three groups
KINDS = [Correlated(bands=3), Correlated(strategy="square-root")]
KINDS += [Correlated(strategy="one-step", decay=0.6), Correlated(strategy="blt", buffers=2)]


def private(noise: Any, unit: str = "example", **fields: Any) -> fl.Privacy:
    fields = dict[str, Any](noise_multiplier=1.0, clip_norm=0.7, delta=1e-3) | fields
    return fl.Privacy(unit=unit, noise=noise, **fields)


def column(run: Federation, steps: int) -> np.ndarray:
    """c, from the recursion's numbers by what it says of itself."""
    stream = run.spec.stream
    assert stream is not None
    if stream.decays is None:
        return np.concatenate([[1.0], stream.scales, np.zeros(steps)])[:steps]
    powers = np.array(stream.decays)[None] ** np.arange(steps - 1)[:, None]
    return np.concatenate([[1.0], powers @ np.array(stream.scales)])


def released(monkeypatch: Any, run: Federation) -> list[tuple[dict, dict]]:
    """What each release of a run is made of, step by step: clipped sums, and the noise added."""
    found: list[tuple[dict, dict]] = []
    module: Any = local_training.mechanism if run.context.by_step else uploads
    true = module.release

    def look(sums: Any, drawn: Any, maps: Any) -> Any:
        found.append((dict(sums), dict(drawn)))
        return true(sums, drawn, maps)

    with monkeypatch.context() as patch:
        patch.setattr(module, "release", look)
        list(run.events())
    return found


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["fedlora", "rolora"])
@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("noise", KINDS, ids=lambda x: x.strategy)
def test_added_noise_has_the_covariance_of_the_inverse(monkeypatch, noise, unit, slug):
    """sigma^2 C^2 s^2 C^-1 C^-T over the own steps of each factor, through the ends of rounds; A's
    and B's are independent. A buffer that is lost between rounds, or shared by factors, shows."""
    plan = PLAN if unit == "example" else PLAN.replace(rounds=4)
    draws: dict[str, list[np.ndarray]] = {"A": [], "B": []}
    for seed in range(12):
        run = Federation.open(
            regression(), slug, private(noise, unit), plan, lora=fl.Lora(8, 8.0), seed=seed
        )
        found = released(monkeypatch, run)
        for side, own in draws.items():
            rows = [x for _, drawn in found for key, x in drawn.items() if key.side == side]
            stacked = torch.stack([x.flatten() for x in rows]).numpy()
            own.append(stacked)
    stream = run.spec.stream
    assert stream is not None and len(set(stream.sensitivity)) == 1
    scale = 0.7 * stream.sensitivity[0]
    for side, own in draws.items():
        rows = np.concatenate(own, 1) / scale
        steps, count = rows.shape
        inverse = np.linalg.inv(toeplitz(column(run, steps), np.zeros(steps)))
        expected = inverse @ inverse.T
        measured = rows @ rows.T / count
        size = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / count)
        assert np.all(np.abs(measured - expected) <= 5 * size), side
    both = [np.concatenate(draws[side], 1) for side in "AB"]
    count = min(x.shape[1] for x in both)
    across = both[0][:, :count] @ both[1][:, :count].T / count / scale**2
    assert np.abs(across).max() < 5 * 2.5 / math.sqrt(count)


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["fedlora", "rolora", "la-lora-unfiltered", "ffa-lora"])
@pytest.mark.parametrize("noise", KINDS, ids=lambda x: x.strategy)
def test_one_example_moves_c_times_the_releases_by_at_most_the_sensitivity(
    monkeypatch, noise, slug
):
    """Two runs that differ by one example, which counts as nothing in the second: the change of C
    times the sums is what the noise must hide. It reaches the stated sensitivity for some example,
    so a smaller statement is found, and so is an example in a step that is not its own."""
    task, reach = regression(), []
    x, y = task.clients[1]

    def run_with(which: int, value: float) -> tuple[Federation, list[tuple[dict, dict]]]:
        other = y.clone()
        other[which] = value
        changed = replace(task, clients=(task.clients[0], (x, other), task.clients[2]))
        run = Federation.open(changed, slug, private(noise), PLAN, lora=LORA, seed=3)
        values = {
            key: torch.ones_like(v) if key.side in "AB" else v
            for key, v in run.state.server.tensors.items()
        }
        run.state.server = run.state.server.replace_tensors(values)
        return run, released(monkeypatch, run)

    for which in range(3):
        run, loud = run_with(which, 1e6)  # its gradient is clipped to C
        _, without = run_with(which, math.nan)
        total = 0.0
        for side in "AB":
            keys = {key for sums, _ in loud for key in sums if key.side == side}
            for key in keys:
                change = torch.stack(
                    [
                        (a[key] - b[key])[1].flatten()
                        for (a, _), (b, _) in zip(loud, without, strict=True)
                        if key in a
                    ]
                ).numpy()
                steps = len(change)
                total += float(
                    np.square(toeplitz(column(run, steps), np.zeros(steps)) @ change).sum()
                )
        reach.append(math.sqrt(total) / 0.7)
    assert run.spec.stream is not None
    stated = run.spec.stream.sensitivity[1]
    assert max(reach) == pytest.approx(stated, rel=1e-6)


def test_drawn_examples_are_of_the_step_s_group(monkeypatch):
    """Under "poisson" an example counts in every cycle-th step only, at its rate."""
    noise = Correlated(bands=2, sampling="poisson", cycle=3)
    task = regression()
    run = Federation.open(task, "fedlora", private(noise), PLAN.replace(batch=1), lora=LORA)
    rates, counts = run.spec.privacy, np.zeros((6, 6))
    assert rates is not None and rates.sample_rate == 0.5
    for seed in range(150):
        context = replace(run.context, streams=Streams(seed))
        for t in range(3):
            for s in range(2):
                (index,) = local_training.poisson_batch(context, t, s, (0,), (t,))
                counts[2 * t + s, index] += 1
    own = np.array([[i % 3 == step % 3 for i in range(6)] for step in range(6)])
    assert not counts[~own].any()
    assert abs(counts[own] / 150 - 0.5).max() < 5 * 0.5 / math.sqrt(150)
    assert run.context.sample_rate == (1 / 6,) * 3  # and so the divisor is the expected batch


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["fixed", "poisson"])
def test_a_calibrated_stream_spends_its_target(sampling, tmp_path):
    """The ledger holds the whole stream before the first round, also of who is absent then; later
    rounds add nothing, and the file says it again."""
    task, noise = regression(), Correlated(bands=2, sampling=sampling)
    plan = PLAN.replace(participation=0.6, batch=1)
    privacy = private(noise).calibrate(epsilon=4.0, task=task, plan=plan)
    records = play(task, "fedlora", privacy, plan, checkpoint=tmp_path)
    books = [record.ledger for record in records[1:]]
    assert all(book is not None and 3.9 < book.epsilon() <= 4.0 for book in books)
    ledger = books[-1]
    assert ledger is not None and len(ledger.releases) == 3
    first, *later = ledger.releases
    assert first.clients == (0, 1, 2) and [one.count for one in later] == [0, 0]
    assert first.count == (1 if sampling == "fixed" else 3)
    whole = Ledger.load(tmp_path / LEDGER)
    assert whole.statement() == ledger.statement() and "is correlated (banded" in whole.statement()
    spec = run_spec.make_run_spec(task, "fedlora", privacy, plan, LORA, 0)
    assert spec.ledger_after(3).epsilon() == ledger.epsilon()


def test_groups_of_an_amplified_stream_are_bounded_by_any_mechanisms():
    """Units of different groups overlap in time, where the mixture of one group is no bound."""
    history = ((2.0, 1.0, 1),)
    assert accounting.any_group_epsilon(history, 1, 1e-5) == accounting.epsilon(history, 1e-5)
    exact = accounting.group_epsilon(history, 3, 1e-5)
    assert exact < accounting.any_group_epsilon(history, 3, 1e-5) < 3 * exact
    ledger = Ledger(delta=1e-5)
    stream = {"sampling": "poisson", "sensitivity": 1.0, "strategy": "banded", "steps": 4}
    ledger.record(1, None, 4, sample_rate=0.2, noise_multiplier=3.0, stream=stream)
    assert ledger.group_epsilon(2) == accounting.any_group_epsilon(ledger.history(), 2, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("noise", KINDS, ids=lambda x: x.strategy)
@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_run_goes_on_with_its_noise(noise, unit, tmp_path):
    """To the bit; buffers or counters that are not stored, or stored for others, show."""
    plan = PLAN.replace(lr=0.2, participation=0.7 if unit == "example" else 1.0)
    trust: Any = {"trust": "secagg"} if unit == "client" else {}
    privacy = private(noise, unit, **trust)
    whole = play(tokens("head"), "fedlora", privacy, plan)
    events = fl.run(tokens("head"), "fedlora", privacy, plan, lora=LORA, checkpoint=tmp_path)
    for record in events:
        if record.index == 1:
            break
    events.close()
    rest = play(tokens("head"), "fedlora", privacy, plan, resume=tmp_path)
    same_bits(rest, whole[-2:])
    assert rest[-1].ledger is not None and len(rest[-1].ledger.releases) == 3


def test_chunks_of_clients_change_no_noise():
    """Buffers stay with their clients, whoever else is in memory."""
    privacy, plan = private(KINDS[3]), PLAN.replace(lr=0.2, participation=0.7)
    whole, parts = (
        play(tokens(), "fedlora", privacy, plan, chunk_clients=size)[-1] for size in (None, 1)
    )
    for layer, pair in whole.adapter.items():
        for one, other in zip(pair, parts.adapter[layer], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_release_whose_noise_is_lost_does_not_go_on(tmp_path):
    """After a whole round it does; after a kill within one what was added is known to nobody."""
    task, privacy, plan = regression(), private(KINDS[0]), PLAN.replace(lr=0.2)

    def begin(folder: Any) -> Any:
        return fl.ticks(task, "fedlora", privacy, plan, lora=LORA, seed=None, checkpoint=folder)

    def stop(folder: Any, rounds: int, ticks: int) -> None:
        events, done = begin(folder), 0
        for event in events:
            done += isinstance(event, Round) and event.index > 0
            ticks -= done == rounds and not isinstance(event, Round)
            if done == rounds and ticks == 0:
                break
        events.close()

    stop(tmp_path / "between", 1, 0)
    *_, last = play(task, "fedlora", privacy, plan, seed=None, resume=tmp_path / "between")
    assert last.index == 3 and last.ledger is not None
    assert last.ledger.totals == {k: {(1.0, 1.0): 1} for k in range(3)}
    stop(tmp_path / "within", 1, 1)
    with pytest.raises(ValueError, match="the noise of a round that began is lost"):
        play(task, "fedlora", privacy, plan, seed=None, resume=tmp_path / "within")
    # Killed in the first round nothing depends on what is lost: a new stream, counted again.
    stop(tmp_path / "first", 0, 1)
    *_, last = play(task, "fedlora", privacy, plan, seed=None, resume=tmp_path / "first")
    assert last.ledger is not None and last.ledger.totals[0] == {(1.0, 1.0): 2}
    # One object that is asked twice for the same round is no way round it.
    run = Federation.open(task, "fedlora", privacy, plan, lora=LORA, seed=None)
    list(zip(range(5), run.events()))
    assert run.state.round == 1
    with pytest.raises(ValueError, match="the noise of a round that began is lost"):
        list(run.events())


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("fedsvd", {}, {}, "noise='banded': expected None for fedsvd, whose server writes"),
    ("fedex-lora", {}, {}, "whose server writes W anew"),
    ("as-lora", {}, {}, "noise='banded': expected None for as-lora"),
    ("deer", {}, {}, "which shapes a factor's noise by the other factor"),
    ("dp-fedlora", {"unit": "client"}, {}, "noise='banded': expected None"),
    (
        "rolora",
        {},
        {"participation": 0.5},
        "participation=0.5: expected 1 where factors take turns",
    ),
    ("fedlora", {"unit": "client"}, {"participation": 0.5}, "who is absent cannot take back"),
    ("fedlora", {"unit": "client"}, {"dropout": 0.5}, "dropout=0.5: expected 0 with correlated"),
    ("fedlora", {"unit": "person"}, {}, "expected None for unit='person'"),
    ("fedlora", {"clip_norm": fl.AdaptiveClip()}, {}, "a number with correlated noise"),
    ("fedlora", {}, {"optimizer": "dp-adam"}, "which counts on independent noise"),
    ("fedlora", {}, {"rounds": 2000}, "rounds=2000: expected at most 1024"),
    ("fedlora", {"noise": {"sampling": "poisson", "bands": 4}}, {}, "at most 3, the examples"),
    ("rolora", {"noise": {"sampling": "poisson", "bands": 2}}, {}, "cycle=2: expected at least"),
    (
        "fedlora",
        {"noise": {"strategy": "blt", "sampling": "poisson"}},
        {},
        "of no other is it prov",
    ),
    ("fedlora", {"noise": {"cycle": 4}}, {}, "cycle=4: expected None unless sampling='poisson'"),
    (
        "fedlora",
        {"noise": {"strategy": "square-root", "retention": 0.9}},
        {},
        "retention=0.9: expected 1: the square root and a given decay are not optimised",
    ),
    ("fedlora", {"noise": {"retention": 0.0}}, {}, "retention=0.0: expected"),
    ("fedlora", {"noise": {"band": 4}}, {}, "noise={'band': 4}: expected keys among"),
]


@pytest.mark.parametrize(("slug", "fields", "work", "words"), REFUSED)
def test_a_pattern_that_is_not_guaranteed_is_refused(slug, fields, work, words):
    """In one line, by what a row or plan does: each of these would state an epsilon, or promise a
    cancellation, that nothing holds."""
    task = people() if fields.get("unit") == "person" else tokens()
    noise = fields.get("noise", KINDS[0])
    own = {name: value for name, value in fields.items() if name != "noise"}

    def begin() -> None:
        privacy = private(noise, **own)
        Federation.open(task, slug, privacy, PLAN.replace(**work), lora=LORA)

    with pytest.raises(ValueError, match="expected") as error:
        begin()
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_does_not_know_correlated_noise_refuses_it():
    from fedlora_lab.audit import audit, self_check
    from fedlora_lab.flower.client import Participant

    task, privacy = regression(), private(KINDS[0])
    for call in (
        lambda: Participant.of(task, "fedlora", privacy, PLAN),
        lambda: self_check(task, "fedlora", privacy, PLAN),
        lambda: audit(task, "fedlora", privacy, PLAN),
        lambda: fl.tune(task, "fedlora", privacy, PLAN, {"lr": [0.1]}, trials=2, epsilon=4),
    ):
        with pytest.raises(ValueError, match=r"noise=.*: expected None"):
            call()
    ahead = fl.amplification(task, "fedlora", privacy, PLAN)
    assert math.isnan(ahead.mean) and "takes part of the earlier noise back" in str(ahead.unknown)


def test_rows_of_the_table_run_or_say_why():
    """No row is let through by accident: each trains, or names the property that forbids it."""
    ran = set()

    def refusal(row: Any) -> str | None:
        try:
            Federation.open(tokens(), row, private(KINDS[0]), PLAN, lora=LORA)
        except ValueError as error:
            return str(error)
        return None

    for row in methods.ALL.values():
        if (words := refusal(row)) is not None:
            balanced = row.balance is not None and "is not known before a run" in words
            assert balanced or "noise='banded'" in words, row.slug
            continue
        assert row.precondition is None and not getattr(row.aggregate, "writes", ())
        ran.add(row.slug)
    assert {"fedlora", "ffa-lora", "rolora", "la-lora"} <= ran
