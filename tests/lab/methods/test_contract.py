"""The contract: every method of the table passes it, found by iteration.

Each clause takes a row (and the unit of privacy, where it matters) and fails where the row, or the
code that plays it, breaks it. Nothing here knows a method's name: what a row may differ in is read
from its declared fields. A clause names the fields that it depends on, and gets rows in which every
value of each of them occurs; ``--every-row`` gives it all rows.

The clauses on a single release stand in `contract_clauses`, and one that rows of a page pass too.
"""

import itertools
import math
from typing import Any

import contract_clauses
import pytest
import torch
from toy_tasks import (
    LORA,
    PLAN,
    UNITS,
    Witness,
    begun,
    book,
    gap,
    keeps,
    movers,
    other_data,
    play,
    private,
    regression,
    same_bits,
    tokens,
)
from written_rows import WRITTEN

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated.config import Config
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.methods.aggregation import mean
from fedlora_lab.methods.filters import binomial, identity
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.published import rule_name
from fedlora_lab.privacy import privatizer
from fedlora_lab.privacy.ledger import Uncertified
from fedlora_lab.privacy.privatizer import uncertified_reason
from fedlora_lab.tasks.task import forward

CLIENTS = (fl.SGD(momentum=0.5), fl.AdamW())


ROWS = [*methods.ALL.values(), *WRITTEN]
# Both factors of a product move in a round: maps made of a client's own would be un-noised.
WITHIN = methods.DEeR.replace(name="within", schedule=Cycle(("B A",)))
FIELDS = set(Method.__dataclass_fields__) - {"name", "source", "note", "exact"}


def values_of(row, fields):
    return {(field, rule_name(getattr(row, field))) for field in fields}


def covering(fields):
    """The fewest rows, about, in which every value of each field occurs."""
    missing = set().union(*(values_of(row, fields) for row in ROWS))
    chosen = []
    while missing:
        chosen.append(max(ROWS, key=lambda row: len(missing & values_of(row, fields))))
        missing -= values_of(chosen[-1], fields)
    return chosen


def reads(*fields, units=False, also=(), before_a_commit=None):
    """Marks a clause with the fields of a row that it depends on; ``units``: in both units of
    privacy, else the rows take turns; ``also``: further rows; ``before_a_commit``: rows that
    `make check` tries of a clause that takes long, ``None``: all."""

    def marked(clause):
        clause.fields = set(fields) or FIELDS
        clause.units = units
        clause.also = also
        clause.before_a_commit = before_a_commit
        return clause

    return marked


def pytest_generate_tests(metafunc):
    """Give a clause the rows that it depends on."""
    clause = metafunc.function
    if not hasattr(clause, "fields"):
        return
    every = metafunc.config.getoption("every_row")
    rows = [*(ROWS if every else covering(clause.fields)), *clause.also]
    if "unit" not in metafunc.fixturenames:
        most = len(rows) if clause.before_a_commit is None else clause.before_a_commit
        later = [pytest.param(row, marks=pytest.mark.slow) for row in rows[most:]]
        metafunc.parametrize("row", [*rows[:most], *later], ids=lambda row: row.slug)
        return
    cases = []
    for i, row in enumerate(rows):
        for unit in UNITS:
            # `make check` tries every row in one unit, the rows taking turns.
            in_turn = unit == UNITS[i % 2]
            marks = () if in_turn else pytest.mark.slow
            if in_turn or clause.units or every:
                cases.append(pytest.param(row, unit, id=f"{row.slug}-{unit}", marks=marks))
    metafunc.parametrize(("row", "unit"), cases)


MOVES = ("schedule", "initial_factors", "clip_groups", "precondition", "differences")
SENDS = ("schedule", "uploaded_factors", "clip_groups", "precondition", "differences")
test_leaving_out_one_example_moves_the_sum_by_at_most_c = reads(*MOVES)(
    contract_clauses.leaving_out_one_example
)
test_noise_is_sigma_c_on_what_moves = reads(*MOVES, before_a_commit=3)(
    contract_clauses.noise_is_sigma_c_on_what_moves
)
test_noise_of_the_update = reads(*SENDS, before_a_commit=4)(contract_clauses.noise_of_the_update)
test_smoothing_is_linear_keeps_the_mean_and_never_grows_the_norm = reads("filter")(
    contract_clauses.smoothing_is_linear
)
test_smoothing_comes_after_the_noise = reads("filter", "precondition")(
    contract_clauses.smoothing_comes_after_the_noise
)


def _lossy(method):
    """Some clients are absent; optimisers go round among the rows."""
    turn = sum(method.slug.encode())
    own: dict[str, Any] = {"optimizer": CLIENTS[turn % 2]}
    # One needs to know the noise before the run, the other steps along its directions alone.
    if method.balance is not None or method.differences is not None:
        own = {"optimizer": fl.SGD(0.5)}
    return PLAN.replace(participation=0.8, lr=0.1, **own)


@reads("initial_factors", "balance", "aggregate", "broadcast")
def test_adapter_changes_nothing_before_training(row):
    """Before training the adapted model is the base model, and so is the clients' copy of it."""
    task = tokens("head")
    (record,) = play(task, row, None, PLAN.replace(rounds=0))
    x, y = task.test
    base = forward(task.model, x)
    torch.testing.assert_close(fl.predict(task, record, x), base, rtol=1e-12, atol=1e-12)
    for name, value in record.metrics.items():
        metric = task.metrics[name.removesuffix("_received")]
        assert math.isclose(value, float(metric(base, y).mean()), rel_tol=1e-9), name
    # 0, or not a number where the rounds that follow do not measure it either
    later = math.nan if record.deviation == 0 else play(task, row, None)[-1].deviation
    assert math.isnan(later) and record.epsilon == 0 and not any(record.traffic)


@pytest.mark.slow
@pytest.mark.every(2)
@reads("schedule", "initial_factors", "uploaded_factors", "aggregate", "broadcast")
def test_a_seed_decides_every_bit_of_a_run_and_of_a_resumed_one(row, unit, tmp_path):
    """A run that was stopped and taken up again has the bits of one that never was; another seed
    gives another run.
    """
    task = tokens("head")
    plan = _lossy(row).replace(rounds=3)
    whole = play(task, row, private(unit), plan, seed=3)
    stopped = fl.run(task, row, private(unit), plan, lora=LORA, seed=3, out=str(tmp_path))
    early = list(itertools.islice(stopped, 3))  # the start and two rounds
    stopped.close()
    same_bits(whole[:3], early)
    same_bits(whole[2:], play(task, row, private(unit), plan, seed=3, out=str(tmp_path)))
    other = play(task, row, private(unit), plan.replace(rounds=2), seed=4)
    assert gap(whole[2], other[-1]) > 1e-3


@pytest.mark.every(2)
@reads("schedule", "clip_groups", "precondition", "filter", units=True)
def test_no_clip_no_noise_is_the_plain_run(row, unit):
    """Without clip and noise the run is the run without privacy.

    Without a filter in the client unit, where it acts on the update and not on each step; a rule
    that looks at more than the mean of the uploads sees each of them.
    """
    row = row if unit == "example" else row.replace(filter=identity)
    seen = {"trust": "local"} if unit == "client" and row.aggregate != mean else {}
    # Of an update only the move along the tangent is released: of one local step it is all.
    tangent = unit == "client" and getattr(row.precondition, "complement", False)
    plan = PLAN.replace(local_steps=1) if tangent else PLAN
    for task in (regression(), tokens("head")):
        plain = play(task, row, None, plan)
        limit = play(task, row, private(unit, sigma=0.0, clip=math.inf, **seen), plan)
        assert gap(plain[0], limit[0]) == 0
        assert gap(limit[-1], plain[-1]) <= 1e-6
        assert gap(plain[0], plain[-1]) > 1e-3 or row.uploaded_factors == ""


@reads("schedule", "uploaded_factors", "precondition")
def test_the_filter_acts_once_where_the_noise_is(row):
    """In the client unit a filter changes an upload in one way: the noised update is filtered,
    once. Every row is given a filter; local steps go on as if there were none.
    """
    task = tokens("head")
    plan = PLAN.replace(rounds=1)
    changes = []
    for rule in (identity, binomial(5)):
        # A balanced start would be another one under a filter, which leaves less noise.
        filtered = row.replace(filter=rule, balance=None)
        privacy = private("client", trust="local")
        run = Witness.open(make_config(task, filtered, privacy, plan, LORA, 3))
        list(run.records())
        start = run.result.opened.broadcast.tensors
        sent = run.result.received.uploads
        changes.append({k: x - start[k][None] for k, x in sent.items()})
    once = {k: binomial(5)(x, k.name) if k.name in "AB" else x for k, x in changes[0].items()}
    torch.testing.assert_close(changes[1], once, rtol=1e-6, atol=1e-9)


@reads(units=True, also=(WITHIN,))
def test_no_path_from_data_round_the_clip(row, unit):
    """With a C that the noise rounds away two data sets of equal sizes give the bit-same run, even
    if one of them holds NaN and infinity. Left out is what release mode hides: what a clip did, and
    in the client unit the metrics of factors that clients keep.
    """
    plan = PLAN.replace(participation=0.8, optimizer=fl.SGD(0.5))
    privacy = private(unit, clip=1e-30, sigma=1e28)
    for task in (regression(), tokens("head")):
        hidden = tuple(task.metrics) if unit == "client" and keeps(row) else ()
        one, other = (play(t, row, privacy, plan) for t in (task, other_data(task)))
        same_bits(one, other, "clipped", "nonfinite", *hidden)


@reads("schedule", "uploaded_factors", "aggregate", "balance")
def test_frozen_and_unsent_factors_never_change_on_the_server(row, unit):
    contract_clauses.frozen_and_unsent_factors_never_change(row, unit)


@reads("uploaded_factors", units=True)
def test_kept_factors_stay_with_their_client(row, unit):
    """What moves and is not sent is there when its client comes again. That no other client's data
    reach it: test_methods_that_keep_factors_equal_their_loops.
    """
    if not keeps(row):
        return
    task = tokens("head")
    # Not everybody is there in the first round, and in later ones nothing moves.
    plan = PLAN.replace(rounds=1, participation=0.6)
    still = plan.replace(rounds=6, lr=0.0)
    once, later = (
        Run.open(make_config(task, row, private(unit), x, LORA, 0)) for x in (plan, still)
    )
    list(once.records())
    ids = list(once.participants(0))
    assert 0 < len(ids) < len(task.clients)
    kept = {key: x[ids] for key, x in once.state.personal.items()}
    later.state = once.state
    list(later.records())
    for key, x in kept.items():
        assert torch.equal(later.state.personal[key][ids], x), f"{key} was not there later"


@pytest.mark.slow
@pytest.mark.every(2)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
def test_deviates_unless_exact(row):
    """The deviation is below 1e-6 in every round exactly when the row claims so."""
    plan = PLAN.replace(rounds=4, local_steps=3, participation=0.8)
    for privacy in (None, private("client", trust="local")):
        gaps = [record.deviation for record in play(tokens(), row, privacy, plan, seed=1)[1:]]
        assert all(value < 1e-6 for value in gaps) == row.exact, f"deviations {gaps}"


@reads("schedule", "clip_groups", "precondition", "differences", units=True)
def test_epsilon_is_that_of_the_plan(row, unit):
    """Epsilon is, bit for bit, that of the releases alone, whatever the method; or none is
    certified, with a reason. One release is a step in the example unit, a round in the client unit.
    """
    task = tokens("head")
    plan = PLAN.replace(rounds=3)
    privacy = private(unit)
    fixed = privacy.resolve(task, plan)
    steps = plan.local_steps if unit == "example" else 1
    for t, record in enumerate(play(task, row, privacy, plan)):
        ledger = book(record)
        assert [(r.round, r.count) for r in ledger.releases] == [(i + 1, steps) for i in range(t)]
        if uncertified_reason(row.precondition, row.clip_groups) is None:
            assert record.epsilon == fixed.ledger(steps * t).epsilon()
            assert (record.epsilon == 0) == (t == 0)
        else:
            assert record.epsilon == math.inf
            with pytest.raises(Uncertified, match="not certified"):
                ledger.epsilon()


@reads("schedule", "initial_factors")
def test_the_schedule_opens_with_what_is_zero(row):
    """While B is zero A has no gradient: a schedule that opens with A alone spends a step on noise.
    What the product is zero by moves first; or a residual takes out a product that is not.
    """
    state = begun(regression(), row)
    zero = {key for key, x in state.tensors.items() if key.name in ("B", "R") and not x.any()}
    taken_out = any(bool(w.any()) for w in state.named("W").values())
    assert (zero or taken_out) and zero <= movers(row, 0, 0, state)


@reads("initial_factors", "clip_groups", "precondition", "differences")
def test_chunks_change_nothing(row, unit, monkeypatch):
    """In chunks that do not divide examples and clients, or all at once: the same run up to
    rounding.
    """
    task = tokens("head")
    plan = PLAN.replace(participation=0.8, optimizer=fl.SGD(0.5))
    whole = play(task, row, private(unit), plan)[-1]
    monkeypatch.setattr("fedlora_lab.federated.run.CLIENTS_AT_ONCE", 2)
    last = play(task, row, private(unit), plan, chunk_examples=3)[-1]
    assert gap(last, whole) <= 1e-6
    assert last.metrics == pytest.approx(whole.metrics, rel=1e-6)
    assert (last.clipped, last.nonfinite) == (whole.clipped, whole.nonfinite)


# ---- the contract itself


def unclipped(group, limit, *rest, clip=privatizer._clip_group):
    return clip(group, math.inf, *rest)


def halved(shapes, std, *rest, draw=privatizer.gaussian_noise, **options):
    return draw(shapes, [x / 2 for x in std], *rest, **options)


def by_private_rows(config):
    finite = torch.stack([x.isfinite().sum().double() for x, _ in config.task.clients])
    return finite / finite.sum()


def with_frozen(state, broadcast, uploads, weights):
    after = mean(state, broadcast, uploads, weights)
    return after.replace_tensors({key: 2 * x for key, x in after.tensors.items()})


BROKEN: dict[str, tuple[Any, Any, Any]] = {
    # What breaks it: a place in the package or a row; the clause; how its line begins.
    "no clip": (
        (privatizer, "_clip_group", unclipped),
        contract_clauses.leaving_out_one_example,
        "round 0, step 0: ",
    ),
    "half of the noise": (
        (privatizer, "gaussian_noise", halved),
        lambda row: contract_clauses.noise_is_sigma_c_on_what_moves(row, draws=3),
        ".* instead of 1.190",
    ),
    "weights by private rows": (
        (Config, "weights", property(by_private_rows)),
        lambda row: test_no_path_from_data_round_the_clip(row, "example"),
        r"\(1, ",
    ),
    "a frozen factor that is sent": (
        methods.FFA.replace(aggregate=with_frozen),
        lambda row: contract_clauses.frozen_and_unsent_factors_never_change(row, "client"),
        ".*A.* in round 1",
    ),
    "a claim that is false": (
        methods.FedLoRA.replace(exact=True),
        test_deviates_unless_exact,
        "deviations ",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_clause_fails_what_breaks_it(name, monkeypatch):
    """Fault: a clause that passes whatever it is given."""
    broken, clause, line = BROKEN[name]
    row = broken if isinstance(broken, Method) else methods.FedLoRA
    if row is not broken:
        monkeypatch.setattr(*broken)
    with pytest.raises(AssertionError, match=f"^{line}"):
        clause(row)
