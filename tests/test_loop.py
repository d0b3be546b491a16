"""The loop: an iterator of rounds, who takes part, what a record holds, and what release mode hides."""

import json
import math
import re
from typing import Any

import pandas as pd
import pytest
import torch
from contract import with_clients
from small import LORA, PLAN, book, examples, frame, play, private, regression, same_bits, tensors, tokens

import fedlora_lab as fl
from fedlora_lab import methods, passes
from fedlora_lab.comparison import BASELINES
from fedlora_lab.ledger import Uncertified
from fedlora_lab.loop import Federation
from fedlora_lab.record import COLUMNS, Round, Tick

KEEPS_B = methods.FedLoRA.replace(name="keeps B", share="A")


def opened(plan, seed=0, clients=3):
    return Federation.open(regression(clients=clients), methods.FedLoRA, None, plan, lora=LORA, seed=seed)


def test_events_come_in_order():
    """A record, then for every round its ticks and its record; chunks of clients tick one after the other."""
    events = list(fl.ticks(tokens(), "fedlora", None, PLAN, lora=LORA))
    names = [(e.round, e.step) if isinstance(e, Tick) else e.index for e in events]
    assert names == [0, (1, 1), (1, 2), 1, (2, 1), (2, 2), 2]
    events = list(fl.ticks(tokens(), "fedlora", None, PLAN.replace(rounds=1), lora=LORA, chunk_clients=2))
    assert [e for e in events if isinstance(e, Tick)] == [(1, 1), (1, 2), (1, 1), (1, 2)]
    assert [record.index for record in play(tokens(), "fedlora", None)] == [0, 1, 2]


def test_the_iterator_is_lazy_and_may_be_left():
    """Nothing is trained that nobody asks for; leaving in the middle of a round harms nothing."""
    endless = fl.run(tokens(), "fedlora", None, PLAN.replace(rounds=10**6), lora=LORA)
    assert [next(endless).index for _ in range(3)] == [0, 1, 2]
    endless.close()
    events = fl.ticks(tokens(), "fedlora", None, PLAN, lora=LORA)
    assert isinstance([next(events) for _ in range(2)][1], Tick)
    events.close()
    same_bits(play(tokens(), "fedlora", None), play(tokens(), "fedlora", None))


def test_participation_is_poisson():
    """Each client on its own with the plan's probability; from the seed and the round alone."""
    run, count = opened(PLAN.replace(participation=0.3), clients=10), 400
    drawn = [run._participants(t) for t in range(count)]
    sizes = torch.tensor([len(ids) for ids in drawn], dtype=torch.float64)
    assert abs(float(sizes.mean()) - 3) < 5 * math.sqrt(2.1 / count)
    assert abs(float(sizes.var()) - 2.1) < 5 * 2.1 * math.sqrt(2 / count)
    for k in range(10):
        assert abs(sum(k in ids for ids in drawn) / count - 0.3) < 5 * math.sqrt(0.21 / count)
    again = opened(PLAN.replace(participation=0.3), clients=10)
    assert [again._participants(t) for t in range(5)] == drawn[:5]
    assert opened(PLAN.replace(participation=1.0), clients=10)._participants(0) == tuple(range(10))


def test_uploads_are_lost_at_the_plans_rate():
    run, count = opened(PLAN.replace(dropout=0.2), clients=10), 400
    arrived = [len(run._arrived(t, tuple(range(10)))) for t in range(count)]
    assert abs(sum(arrived) / count - 8) < 5 * math.sqrt(1.6 / count)
    assert run._arrived(0, ()).tolist() == []
    whole = [set(run._arrived(t, tuple(range(10))).tolist()) for t in range(5)]
    part = [{(3, 7)[i] for i in run._arrived(t, (3, 7)).tolist()} for t in range(5)]
    assert part == [found & {3, 7} for found in whole]


@pytest.mark.parametrize("unit", [None, "example"])
def test_a_round_without_clients_changes_nothing(unit):
    records = play(tokens("head"), "fedlora", unit and private(unit), PLAN.replace(rounds=6, participation=1e-9))
    assert [record.participants for record in records] == [0] * 7
    assert all(torch.equal(x, tensors(records[0])[name]) for name, x in tensors(records[-1]).items())
    assert records[-1].epsilon == (math.inf if unit is None else 0)


def test_the_frame_is_tidy():
    """One row for each round, layer and measure; nothing twice; the measures that are promised."""
    records = play(tokens("head"), "fedlpp", private("example"))
    table = fl.to_frame(records)
    assert list(table.columns) == COLUMNS
    assert not table.duplicated(["task", "method", "seed", "round", "layer", "measure"]).any()
    whole = set(table.query("layer == 'all'")["measure"])
    assert whole == {
        "accuracy", "loss", "accuracy_received", "loss_received", "epsilon", "deviation", "numbers_up", "bytes_up",
        "numbers_down", "bytes_down", "participants", "clipped", "nonfinite", "seconds",
    }  # fmt: skip
    layers = table.query("layer != 'all'")
    assert set(layers["layer"]) == {"inner", "outer"}
    assert set(layers["measure"]) == {
        "norm",
        "deviation",
        "deviation_relative",
        "noise_A",
        "noise_B",
        "noise_BA",
        "snr",
    }
    assert set(table["round"]) == {0, 1, 2}
    assert table["value"].dtype == float
    assert list(records[-1].layers.columns) == ["layer", "measure", "value"]
    pd.testing.assert_frame_equal(frame(records), frame(play(tokens("head"), "fedlpp", private("example"))))


def test_records_are_frozen_and_do_not_follow_the_run():
    """A record is what was true after its round, also when the run has gone on."""
    kept, copies = [], []
    for record in fl.run(tokens("head"), KEEPS_B, private("example"), PLAN, lora=LORA):
        kept.append(record)
        copies.append(({n: x.clone() for n, x in tensors(record).items()}, record.epsilon, book(record).to_json()))
    for record, (values, epsilon, ledger) in zip(kept, copies, strict=True):
        assert all(torch.equal(x, values[name]) for name, x in tensors(record).items())
        assert (record.epsilon, book(record).to_json()) == (epsilon, ledger)
    with pytest.raises(AttributeError):
        kept[0].index = 3
    with pytest.raises(ValueError, match="snapshot takes no entries"):
        book(kept[0]).record(9, (0,), sample_rate=0.1, noise_multiplier=1.0)


def test_shapes_are_those_of_the_design():
    record = play(tokens("head"), "fedlora", None)[-1]
    assert {layer: (a.shape, b.shape) for layer, (a, b) in record.adapter.items()} == {
        "inner": ((2, 5), (6, 2)),
        "outer": ((2, 6), (4, 2)),
    }
    assert {name: x.shape for name, x in record.head.items()} == {"head.weight": (3, 4), "head.bias": (3,)}
    assert (record.method, record.task, record.seed) == ("fedlora", "tokens", 0)


def test_metrics_are_means_over_the_test_examples():
    task = tokens("head")
    record = play(task, "fedlora", None)[-1]
    outputs, y = fl.predict(task, record, task.test[0]), task.test[1]
    assert record.metrics["accuracy"] == pytest.approx(float((outputs.argmax(1) == y).double().mean()))
    assert record.metrics["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, y)))


def test_rounds_between_need_not_be_judged():
    """Judging less often changes nothing that is trained; the first and the last round are always judged."""
    plan = PLAN.replace(rounds=5)
    every, some = (list(fl.run(tokens(), "fedlora", None, plan, lora=LORA, evaluate_every=n)) for n in (1, 2))
    assert [math.isnan(record.metrics["loss"]) for record in some] == [False, True, False, True, False, False]
    for a, b in zip(every, some):
        assert math.isnan(b.metrics["loss"]) or a.metrics == b.metrics
        assert all(torch.equal(p, q) for x in a.adapter for p, q in zip(a.adapter[x], b.adapter[x]))


def test_more_test_examples_than_fit_at_once():
    """Evaluation in parts of 512 is the mean over all."""
    task = tokens()
    x, y = examples(1300, 3)
    big = fl.tasks.classification(task.model, list(task.clients), test=(x, y), targets=["inner", "outer"])
    record = play(big, "fedlora", None)[-1]
    outputs = fl.predict(big, record, x)
    assert record.metrics["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, y)))


def test_kept_factors_are_judged_client_by_client():
    """Where clients keep factors the metrics are means over their own models, clients that never came included."""
    task, plan = tokens("head"), PLAN.replace(participation=0.5)
    run = Federation.open(task, KEEPS_B, None, plan, lora=LORA, seed=4)
    record = [event for event in run.events() if isinstance(event, Round)][-1]
    assert -1 in run.state.seen
    losses = []
    for k in range(3):
        values = {**run.state.server.tensors, **{slot: own[k] for slot, own in run.state.personal.items()}}
        losses.append(passes.evaluate(task, run.setting.adapted, values, task.test)["loss"])
    assert record.metrics["loss"] == pytest.approx(sum(losses) / 3)
    assert len(set(losses)) > 1
    assert math.isnan(record.deviation)


@pytest.mark.parametrize("unit", ["example", "client"])
def test_clips_and_bad_values_are_counted(unit):
    """The share of what the clip of the unit scaled down: examples, or clients' updates."""
    task = tokens("head")
    for clip, share in ((1e9, 0.0), (1e-9, 1.0)):
        records = play(task, "fedlora", private(unit, sigma=0.0, clip=clip), PLAN.replace(batch=None))
        assert records[0].clipped == 0
        assert records[-1].clipped == share
        assert records[-1].nonfinite == 0
    x, y = task.clients[0]
    spoilt = with_clients(task, [(torch.full_like(x, math.nan), y), *task.clients[1:]])
    assert play(spoilt, "fedlora", private(unit), PLAN.replace(batch=None))[-1].nonfinite == 5 * 2


# ---- release mode


def release(row="fedlora", unit="client", task=None, **options):
    return play(task or tokens("head"), row, private(unit), seed=None, **options)


@pytest.mark.parametrize("unit", ["example", "client"])
def test_without_a_seed_no_two_runs_agree(unit):
    first, second = release(unit=unit), release(unit=unit)
    assert book(first[-1]).mode == "release"
    assert book(play(tokens("head"), "fedlora", private(unit))[-1]).mode == "reproducible: not for release"
    assert first[-1].epsilon == second[-1].epsilon
    for name, x in tensors(first[-1]).items():
        assert ((x - tensors(second[-1])[name]).abs() > 0).all(), name


@pytest.mark.parametrize("row", ["fedlora", "local", "fedlpp", KEEPS_B], ids=lambda row: getattr(row, "slug", row))
@pytest.mark.parametrize("unit", ["example", "client"])
def test_release_mode_shows_nothing_private(row, unit):
    """No noise terms, no clip counts, and in the client unit no metrics of factors that stay un-noised with clients."""
    records = release(row, unit)
    measures = {measure for record in records for _, measure, _ in record.rows}
    assert not measures & {"noise_A", "noise_B", "noise_BA", "snr"}
    for record in records[1:]:
        assert math.isnan(record.clipped)
        assert math.isnan(record.nonfinite)
        assert record.seed is None
        kept = not isinstance(row, str) or row == "local"
        assert all(math.isnan(value) for value in record.metrics.values()) == (kept and unit == "client")


def test_nothing_of_seed_or_noise_is_kept(tmp_path):
    """Checkpoint and ledger of a release hold no seed, and no tensor but the server's own."""
    records = release(checkpoint=tmp_path)
    for path in tmp_path.glob("*.json"):
        text = path.read_text()
        assert not re.search(r'"(noise|generator|state|entropy)', text.replace('"noise_multiplier"', ""))
        if path.name != "ledger.json":
            assert json.loads(text)["body"]["settings"]["seed"] is None
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "round-000002.safetensors")
    held = {
        f"server/{n[-1]}/{n[:-2]}" if n[-2:] in (".A", ".B") else f"server/head/{n[5:]}" for n in tensors(records[-1])
    }
    assert set(stored) == held
    assert json.loads(book(records[-1]).to_json())["content"]["reproducible"] is False
    for value in vars(records[-1]).values():
        assert not isinstance(value, torch.Generator)


def test_a_release_can_be_resumed_and_counts_on(tmp_path):
    release(checkpoint=tmp_path)
    more = play(tokens("head"), "fedlora", private("client"), PLAN.replace(rounds=3), seed=None, resume=tmp_path)
    assert [r.round for r in book(more[-1]).releases] == [1, 2, 3]
    with pytest.raises(ValueError, match="expected the same seed"):
        play(tokens("head"), "fedlora", private("client"), PLAN.replace(rounds=3), seed=0, resume=tmp_path)


def test_what_nobody_certifies_has_no_epsilon():
    record = play(tokens(), "deer-literal", private("client"))[-1]
    assert record.epsilon == math.inf
    with pytest.raises(Uncertified, match="does not pass"):
        book(record).epsilon()


# ---- compare


def test_compare_is_the_runs_one_after_the_other():
    """The same bits as single runs; names, rows and baselines beside each other; a plan for each name if wanted."""
    task, privacy = tokens(), private("example").calibrate(epsilon=50, task=tokens(), plan=PLAN)
    mine = methods.FedLoRA.replace(name="mine")
    plans = {"fedlora": PLAN, "mine": PLAN.replace(lr=0.1), **dict.fromkeys(BASELINES, PLAN)}
    table: Any = fl.compare(
        task, ["fedlora", mine, *BASELINES], privacy, plans, seeds=(0, 1), lora=LORA, progress=False
    )
    assert list(dict.fromkeys(table["method"])) == ["fedlora", "mine", *BASELINES]
    assert set(table["seed"]) == {0, 1}
    single: Any = fl.to_frame(fl.run(task, mine, privacy, plans["mine"], lora=LORA, seed=1))
    part = table.query("method == 'mine' and seed == 1").reset_index(drop=True)
    drop = part["measure"] == "seconds"
    pd.testing.assert_frame_equal(part[~drop], single[~drop], check_exact=True)
    last = table.query("layer == 'all' and round == 2").set_index(["method", "seed", "measure"])["value"]
    assert last["non-private", 0, "epsilon"] == math.inf
    assert last["central", 0, "epsilon"] == pytest.approx(50, rel=2e-2)
    assert last["central", 0, "participants"] == 1
    assert last["local", 0, "numbers_up"] == 0


def test_every_run_of_a_comparison_gets_the_options():
    """Judged at the end alone, in small chunks: the last round's values are the same; other options are refused."""
    task, rows = tokens(), ["fedlora", "rolora"]
    whole, few = (
        fl.compare(task, rows, None, PLAN, [0], lora=LORA, progress=False, **options).drop(columns="layer")
        for options in ({}, {"evaluate_every": PLAN.rounds, "chunk_clients": 1, "chunk_examples": 2})
    )
    judged: Any = few[few["measure"] == "accuracy"]
    assert judged["value"].notna().groupby(few["round"]).mean().to_dict() == {0: 1, 1: 0, 2: 1}
    for measure in ("accuracy", "bytes_up"):
        ends = [
            table[(table["measure"] == measure) & (table["round"] == 2)]["value"].tolist() for table in (whole, few)
        ]
        assert ends[0] == pytest.approx(ends[1], abs=1e-6)
    with pytest.raises(ValueError, match=r"^options=\['checkpoint'\]: expected some of evaluate_every, chunk_clients"):
        fl.compare(task, rows, None, PLAN, [0], checkpoint="here")
    with pytest.raises(ValueError, match=r"^products='half'"):
        fl.compare(task, rows, None, PLAN, [0], progress=False, products="half")


def test_compare_refuses_everything_before_the_first_run():
    """A plan for the last name that does not fit is found before the first name is trained."""
    task, privacy = tokens(), private("example").resolve(tokens(), PLAN)
    plans = {"fedlora": PLAN.replace(rounds=10**9), "rolora": PLAN.replace(batch=2)}
    with pytest.raises(ValueError, match=r"^sample_rate.*batch / n_k of this plan"):
        fl.compare(task, ["fedlora", "rolora"], privacy, plans, seeds=[0], progress=False)


@pytest.mark.parametrize(
    ("method", "unit", "trust", "seen"),
    [
        ("fedlora", "example", "local", True),
        ("fedlora", "client", "local", True),
        ("fedlora", "client", "central", False),
        ("fedlora", "client", "secagg", False),
        ("fedsa-lora", "example", "local", False),
        ("local", "client", "local", False),
    ],
)
def test_the_deviation_begins_where_it_is_measured(method, unit, trust, seen):
    """Before training it is 0, but no number where no later round has one; with no round at all as well."""
    for rounds in (0, 2):
        records = play(tokens("head"), method, private(unit, trust=trust), PLAN.replace(rounds=rounds))
        assert [math.isnan(record.deviation) for record in records] == [not seen] * (rounds + 1)
        assert not seen or records[0].deviation == 0
