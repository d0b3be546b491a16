"""The loop: its rounds and public steps, what a record holds and a release hides, comparisons."""

import ast
import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toy_tasks import LORA, PLAN, book, frame, play, private, regression, same_bits, tensors, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated import uploads
from fedlora_lab.federated.compare import BASELINES
from fedlora_lab.federated.local_training import local_step
from fedlora_lab.federated.records import Round, Tick, require_source
from fedlora_lab.federated.run import Run
from fedlora_lab.lora import per_example
from fedlora_lab.measures.statistics import COLUMNS

KEEPS_B = methods.FedLoRA.replace(name="keeps B", share="A")
NOISE = {"noise_A", "noise_B", "noise_BA", "snr"}
PACKAGE = Path(fl.__file__).parent


def opened(**changes):
    task, plan = regression(clients=10), PLAN.replace(**changes)
    return Run.open(task, methods.FedLoRA, None, plan, lora=LORA)


def test_events_come_in_order_and_only_when_asked_for():
    """A record, then each round's ticks and record; chunks of clients tick one after the other."""
    parts = tokens(), "fedlora", None
    events = list(fl.ticks(*parts, PLAN, lora=LORA))
    names = [(e.round, e.step) if isinstance(e, Tick) else e.index for e in events]
    assert names == [0, (1, 1), (1, 2), 1, (2, 1), (2, 2), 2]
    events = list(fl.ticks(*parts, PLAN.replace(rounds=1), lora=LORA, chunk_clients=2))
    assert [e for e in events if isinstance(e, Tick)] == [(1, 1), (1, 2), (1, 1), (1, 2)]
    left = fl.ticks(*parts, PLAN.replace(rounds=10**6), lora=LORA)
    assert isinstance([next(left) for _ in range(2)][1], Tick)
    left.close()
    same_bits(play(*parts), play(*parts))


@pytest.mark.slow
def test_no_other_room_uses_a_private_name_of_a_run():
    def parsed(path: Path) -> list[ast.AST]:
        return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))

    nodes = [node for path in (PACKAGE / "federated").glob("*.py") for node in parsed(path)]
    names = {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    names, wrong = {name for name in names if re.match(r"_[^_]", name)}, []
    for path in (path for path in PACKAGE.rglob("*.py") if "federated" not in path.parts):
        for node in parsed(path):
            if isinstance(node, ast.Attribute) and node.attr in names:
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                wrong += [] if own else [f"{path.name}:{node.lineno} {node.attr}"]
            if isinstance(node, ast.ImportFrom) and "federated" in (node.module or ""):
                wrong += [f"{path.name} {name.name}" for name in node.names if name.name[0] == "_"]
    assert wrong == []


def test_a_run_by_its_public_steps_is_the_run():
    parts = tokens("head"), "rolora", private("example"), PLAN.replace(dropout=0.3)
    run = Run.open(*parts, lora=LORA)
    records = [run.record_start(run.initial_result())]
    while not run.ended:
        opened = run.begin_round()
        clients = run.start_clients(opened.ids, opened.sent)
        for step in range(PLAN.local_steps):
            local_step(run.prepared, clients, opened.t, step)
        keys, sent = opened.keys, opened.sent
        everyone = uploads.stack_clients(run.prepared, [clients], keys.moved, sent)
        arrived = run.arrivals(opened.t, opened.ids)
        received = uploads.release_round(run.prepared, everyone, arrived, keys.sent, sent)
        records.append(run.record(run.finish_round(opened, received, everyone, arrived)))
    same_bits(records, list(fl.run(*parts, lora=LORA)))


def test_a_factor_whose_turn_never_comes_is_told():
    """LA-LoRA with one local step trains B alone; with two nobody is warned."""
    with pytest.warns(UserWarning, match=r"^local_steps=1: la-lora never moves A, whose turn"):
        play(regression(), "la-lora", None, PLAN.replace(local_steps=1))
    play(regression(), "la-lora", None, PLAN.replace(rounds=1, local_steps=2))


@pytest.mark.parametrize(("rate", "lost"), [(0.3, 0.0), (1.0, 0.2)])
def test_participation_and_losses_are_poisson(rate, lost):
    """Each client on its own with the plan's probability; from the seed and the round alone."""

    def drawn(count):
        run, everyone = opened(participation=rate, dropout=lost), tuple(range(10))
        draw = partial(run.arrivals, ids=everyone) if lost else run.participants
        return [torch.as_tensor(draw(t), dtype=torch.int64) for t in range(count)]

    found, share, count = drawn(400), rate * (1 - lost), 400
    sizes = torch.tensor([len(ids) for ids in found], dtype=torch.float64)
    variance = 10 * share * (1 - share)
    assert abs(float(sizes.mean()) - 10 * share) < 5 * math.sqrt(variance / count)
    assert abs(float(sizes.var()) - variance) < 5 * variance * math.sqrt(2 / count)
    each = torch.cat(found).bincount(minlength=10) / count
    assert float((each - share).abs().max()) < 5 * math.sqrt(share * (1 - share) / count)
    assert all(map(torch.equal, drawn(5), found))
    run = opened(dropout=lost)
    part = {(3, 7)[i] for i in run.arrivals(0, (3, 7)).tolist()}
    assert part == set(run.arrivals(0, tuple(range(10))).tolist()) & {3, 7}
    assert run.arrivals(0, ()).tolist() == [] and run.participants(0) == tuple(range(10))


@pytest.mark.parametrize("unit", [None, "example"])
def test_a_round_without_clients_changes_nothing(unit):
    plan = PLAN.replace(rounds=6, participation=1e-9)
    first, *_, last = records = play(tokens("head"), "fedlora", unit and private(unit), plan)
    assert [record.participants for record in records] == [0] * 7
    assert all(torch.equal(x, tensors(first)[name]) for name, x in tensors(last).items())
    assert last.epsilon == (math.inf if unit is None else 0)


def test_the_frame_is_tidy():
    """One row for each round, layer and measure; nothing twice; the measures that are promised."""
    records = play(tokens("head"), "fedlpp", private("example"))
    table = fl.to_frame(records)
    assert list(table.columns) == COLUMNS and table["value"].dtype == float
    assert not table.duplicated(["task", "method", "seed", "round", "layer", "measure"]).any()
    whole, layers = table.query("layer == 'all'"), table.query("layer != 'all'")
    assert set(whole["measure"]) == {
        "accuracy", "loss", "accuracy_received", "loss_received", "epsilon", "deviation",
        "numbers_up", "bytes_up", "numbers_down", "bytes_down", "participants", "clipped",
        "nonfinite", "seconds",
    }  # fmt: skip
    assert set(layers["layer"]) == {"inner", "outer"} and set(table["round"]) == {0, 1, 2}
    promised = {"norm", "deviation", "deviation_relative", "amplification", *NOISE}
    promised |= {"accumulated_linear", "accumulated_quadratic"}
    assert set(layers["measure"]) == promised
    assert list(records[-1].layers.columns) == ["layer", "measure", "value"]


def test_records_are_frozen_and_do_not_follow_the_run():
    """A record is what was true after its round, also when the run has gone on."""

    def content(record):
        values = [x.tolist() for x in tensors(record).values()]
        return values, record.epsilon, book(record).to_json()

    run = fl.run(tokens("head"), KEEPS_B, private("example"), PLAN, lora=LORA)
    pairs = [(record, content(record)) for record in run]
    assert all(content(record) == told for record, told in pairs)
    with pytest.raises(AttributeError):
        pairs[0][0].index = 3  # type: ignore[misc]


def test_rounds_between_need_not_be_scored(tmp_path):
    """The first, every second and the last round are scored, also when resumed; no bit changes."""
    run = regression(), "rolora", None
    plan = PLAN.replace(rounds=5)
    every, some = (play(*run, plan, evaluate_every=n) for n in (1, 2))
    play(*run, plan.replace(rounds=1), checkpoint=tmp_path, evaluate_every=2)
    rest = play(*run, plan, resume=tmp_path, evaluate_every=2)
    for found, scored in ((some, [0, 2, 4, 5]), (rest, [2, 4, 5])):
        assert [one.index for one in found if not math.isnan(one.metrics["loss"])] == scored
        for one in found:
            assert one.index not in scored or one.metrics == every[one.index].metrics
            assert all(map(torch.equal, one.adapter["map"], every[one.index].adapter["map"]))


def test_kept_factors_are_scored_client_by_client():
    """The metrics are means over the clients' own models, clients that never came included."""
    task, plan = tokens("head"), PLAN.replace(participation=0.5)
    run = Run.open(task, KEEPS_B, None, plan, lora=LORA, seed=4)
    record = [event for event in run.events() if isinstance(event, Round)][-1]
    assert -1 in run.state.seen and math.isnan(record.deviation)
    losses = []
    for k in range(3):
        own = {key: own[k] for key, own in run.state.personal.items()}
        parts = task, run.prepared.adapted, {**run.state.server.tensors, **own}, task.test
        losses.append(per_example.evaluate(*parts)["loss"])
    assert record.metrics["loss"] == pytest.approx(sum(losses) / 3) and len(set(losses)) > 1


@pytest.mark.parametrize("unit", ["example", "client"])
def test_clips_are_counted(unit):
    """The share of what the clip of the unit scaled down: examples, or clients' updates."""
    task, plan = tokens("head"), PLAN.replace(batch=None)
    for clip, share in ((1e9, 0.0), (1e-9, 1.0)):
        records = play(task, "fedlora", private(unit, sigma=0.0, clip=clip), plan)
        assert (records[0].clipped, records[-1].clipped) == (0, share)
        assert records[-1].nonfinite == 0


def release(row="fedlora", unit="client", **options):
    return play(tokens("head"), row, private(unit), seed=None, **options)


@pytest.mark.parametrize(
    "row", ["fedlora", "local", "fedlpp", KEEPS_B], ids=lambda row: getattr(row, "slug", row)
)
@pytest.mark.parametrize("unit", ["example", "client"])
def test_release_mode_shows_nothing_private(row, unit):
    """No noise terms, counts of clips or seconds; of what clients keep un-noised no metrics."""
    records = release(row, unit)
    assert not NOISE & {measure for record in records for _, measure, _ in record.rows}
    hidden = row in ("local", KEEPS_B) and unit == "client"
    for record in records[1:]:
        assert record.seed is None
        assert math.isnan(record.clipped) and math.isnan(record.nonfinite)
        assert math.isnan(record.seconds)
        assert all(math.isnan(value) for value in record.metrics.values()) == hidden


def test_nothing_of_seed_or_noise_is_kept(tmp_path):
    """Checkpoint and ledger of a release hold no seed, and no tensor but the server's own."""
    last = release(checkpoint=tmp_path)[-1]
    for path in tmp_path.glob("*.json"):
        text = path.read_text()
        assert not re.search(r'"(noise(?!_multiplier)|generator|state|entropy)', text)
        if path.name != "ledger.json":
            assert json.loads(text)["body"]["settings"]["seed"] is None
    held = {f"server/{key.side}/{key.layer}" for key in require_source(last)[2].tensors}
    assert set(load_file(tmp_path / "round-000002.safetensors")) == held
    assert json.loads(book(last).to_json())["content"]["reproducible"] is False
    assert not any(isinstance(value, torch.Generator) for value in vars(last).values())


def compare(*parts, **options) -> Any:
    return fl.compare(*parts, lora=LORA, progress=False, **options)


@pytest.mark.slow
def test_compare_is_the_runs_one_after_the_other():
    """The bits of single runs; rows, names and baselines together; a plan for each name."""
    task, privacy = tokens(), private("example").calibrate(epsilon=50, task=tokens(), plan=PLAN)
    mine = methods.FedLoRA.replace(name="mine")
    plans = {"fedlora": PLAN, "mine": PLAN.replace(lr=0.1), **dict.fromkeys(BASELINES, PLAN)}
    table = compare(task, ["fedlora", mine, *BASELINES], privacy, plans, (0, 1))
    assert list(dict.fromkeys(table["method"])) == ["fedlora", "mine", *BASELINES]
    assert set(table["seed"]) == {0, 1}
    single = frame(list(fl.run(task, mine, privacy, plans["mine"], lora=LORA, seed=1)))
    part = table.query("method == 'mine' and seed == 1 and measure != 'seconds'")
    pd.testing.assert_frame_equal(part.reset_index(drop=True), single, check_exact=True)
    last = table.query("layer == 'all' and round == 2 and seed == 0")
    last = last.set_index(["method", "measure"])["value"]
    assert last["non-private", "epsilon"] == math.inf
    assert last["central", "epsilon"] == pytest.approx(50, rel=2e-2)
    assert last["central", "participants"] == 1
    assert last["local", "numbers_up"] == 0


def test_every_run_of_a_comparison_gets_the_options():
    options = {"evaluate_every": PLAN.rounds, "chunk_clients": 1, "chunk_examples": 2}
    few = compare(tokens(), ["fedlora", "rolora"], None, PLAN, [0], **options)
    scored = few[few["measure"] == "accuracy"]
    assert scored["value"].notna().groupby(few["round"]).mean().to_dict() == {0: 1, 1: 0, 2: 1}


def test_compare_refuses_everything_before_the_first_run():
    """A plan for the last name that does not fit is found before the first name is trained."""
    task, privacy = tokens(), private("example").resolve(tokens(), PLAN)
    plans = {"fedlora": PLAN.replace(rounds=10**6), "rolora": PLAN.replace(batch=2)}
    with pytest.raises(ValueError, match=r"^sample_rate.*batch / n_k of this plan"):
        compare(task, ["fedlora", "rolora"], privacy, plans, [0])
    parts = task, ["fedlora", "rolora"], None, PLAN, [0]
    with pytest.raises(ValueError, match=r"^options=\['checkpoint'\]: expected some of"):
        compare(*parts, checkpoint="here")
    with pytest.raises(ValueError, match=r"^products='half': expected one of 'float32', 'tf32'"):
        compare(*parts, products="half")


@pytest.mark.parametrize("rounds", [0, 2])
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
def test_the_deviation_begins_where_it_is_measured(method, unit, trust, seen, rounds):
    """Before training it is 0, but no number where no later round has one."""
    privacy, plan = private(unit, trust=trust), PLAN.replace(rounds=rounds)
    records = play(tokens("head"), method, privacy, plan)
    assert [math.isnan(record.deviation) for record in records] == [not seen] * (rounds + 1)
    assert not seen or records[0].deviation == 0
