"""The loop: its rounds and public steps, what a record holds and a release hides, comparisons."""

import math
from functools import partial

import pytest
from calls import refused
from toy_tasks import (
    KEEPS_B,
    LORA,
    PLAN,
    is_binomial,
    play,
    private,
    regression,
    same_bits,
    tokens,
)

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.lora import per_example
from fedlora_lab.lora.source import require_source
from fedlora_lab.measures.runs import COLUMNS

compare = partial(fl.compare, lora=LORA, progress=False)


@pytest.mark.filterwarnings("ignore:.* is not finite after the rule of flexlora")
def test_a_rule_that_cannot_be_applied_is_one_line():
    """Values grew until they were not finite, and the server decomposes them."""
    plan = fl.Plan(rounds=4, local_steps=8, lr=1e9)
    with refused(r"^lr=1000000000.0: expected a smaller one; flexlora cannot do the server's part"):
        play(fl.tasks.regression(clients=3), "flexlora", None, plan)


@pytest.mark.parametrize(
    ("row", "unit"),
    [
        ("fedlora", "example"),
        ("ffa-lora", "client"),
        ("prism", "example"),
        ("fedex-lora", "client"),
    ],
)
def test_writing_into_a_record_changes_no_run(row, unit):
    """Fault: a record held the server's own tensors. What was written there, also by NumPy, which
    no version counts, went into a private run past clip and noise, and no ledger knew of it."""
    task = tokens("head")
    run = partial(fl.run, task, row, private(unit), PLAN, lora=LORA, seed=0)
    untouched = list(run())
    for record, kept in zip(run(), untouched, strict=True):
        same_bits([record], [kept])
        shown = [x for pair in record.adapter.values() for x in pair] + [*record.head.values()]
        for x in [*shown, *require_source(record)[2].tensors.values()]:
            x.mul_(2)
            x.numpy()[...] += 1


def test_participation_is_poisson():
    """Each client on its own with the plan's probability, whoever else takes part."""
    plan = PLAN.replace(participation=0.5)
    run = Run.open(make_config(regression(clients=10), methods.FedLoRA, None, plan, LORA, 0))
    drawn = [run.participants(t) for t in range(400)]
    is_binomial(list(map(len, drawn)), 10, 0.5)


def test_the_frame_is_tidy():
    """One row for each round, layer and measure; nothing twice; the measures that are promised."""
    table = fl.to_frame(play(tokens("head"), "fedlpp", private("example")))
    assert list(table.columns) == COLUMNS and table["value"].dtype == float
    assert not table.duplicated(COLUMNS[:-1]).any()
    model = (
        "epsilon participants clipped nonfinite seconds deviation accuracy loss bytes_up"
        " bytes_down numbers_up numbers_down accuracy_received loss_received"
    )
    layer = (
        "norm deviation deviation_relative amplification accumulated_linear"
        " accumulated_quadratic noise_A noise_B noise_BA"
    )
    for name, words in {"all": model, "inner": layer, "outer": layer}.items():
        rows = table[table["layer"] == name]
        assert set(rows["measure"]) == set(words.split()) and set(rows["round"]) == {0, 1, 2}


def test_rounds_between_need_not_be_scored(tmp_path):
    """The first, every second and the last round are scored, also when resumed; no bit changes."""
    run = regression(), "rolora", None
    plan = PLAN.replace(rounds=3)
    last = play(*run, plan)[-1:]
    play(*run, plan.replace(rounds=1), out=tmp_path, evaluate_every=2)
    for options, scored in (({}, [0, 2, 3]), ({"out": tmp_path}, [2, 3])):
        records = play(*run, plan, evaluate_every=2, **options)
        assert [one.index for one in records if not math.isnan(one.metrics["loss"])] == scored
        same_bits(records[-1:], last)


def test_kept_factors_are_scored_client_by_client():
    """The metrics are means over the clients' own models, clients that never came included."""
    task = tokens("head")
    run = Run.open(make_config(task, KEEPS_B, None, PLAN.replace(participation=0.5), LORA, 4))
    *_, record = run.records()
    came = {k for t in range(PLAN.rounds) for k in run.participants(t)}
    assert len(came) < 3 and math.isnan(record.deviation)
    losses = []
    server = run.state.server.tensors
    for k in range(3):
        values = {**server, **{key: rows[k] for key, rows in run.state.personal.items()}}
        losses.append(per_example.evaluate(task, run.prepared.adapted, values, task.test)["loss"])
    assert record.metrics["loss"] == pytest.approx(sum(losses) / 3) and len(set(losses)) > 1


@pytest.mark.parametrize(("row", "unit"), [("fedlpp", "example"), ("local", "client")])
def test_release_mode_shows_nothing_private(row, unit):
    """No noise terms, counts of clips or seconds; of what clients keep un-noised no metrics."""
    _, *records = play(tokens("head"), row, private(unit), seed=None)
    for record in records:
        assert not any(name.startswith("noise_") for _, name, _ in record.rows)
        assert all(map(math.isnan, (record.seconds, record.clipped, record.nonfinite)))
        assert all(map(math.isnan, record.metrics.values())) == (row == "local")


def test_compare_refuses_everything_before_the_first_run():
    """A plan for the last name that does not fit is found before the first name is trained."""
    privacy = private("example").resolve(tokens(), PLAN)
    plans = {"fedlora": PLAN.replace(rounds=10**5), "rolora": PLAN.replace(batch=2)}
    with refused(r"^sample_rate.*batch / n_k of this plan"):
        compare(tokens(), list(plans), privacy, plans, [0])


def test_the_deviation_begins_where_it_is_measured():
    """Before training it is 0, but no number where no later round has one."""
    for trust, deviation in (("local", 0.0), ("secagg", math.nan)):
        first = next(fl.run(tokens(), "fedlora", private("client", trust=trust), PLAN))
        assert first.deviation == pytest.approx(deviation, nan_ok=True)
