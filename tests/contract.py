"""The contract that every method passes, one function a clause.

Each takes a row of the table (and the unit of privacy, where it matters) and fails where the row, or the code that
plays it, breaks the clause. Nothing here knows a method's name: what a row may differ in is read from its declared
fields. The clauses on a single release stand in `steps`; they take the local step as well, so that a broken one can be
fed to them.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small import LORA, PLAN, examples, gap, play, private, regression, same_bits, tensors, tokens
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab.ledger import Uncertified
from fedlora_lab.mechanism import uncertified
from fedlora_lab.method import Method
from fedlora_lab.rules import identity
from fedlora_lab.tasks import Task

Pair = tuple[Tensor, Tensor]


def sides(row: Method, t: int, steps: int) -> tuple[str, str]:
    """What moves in round t, read from the schedule, and what of it goes up, read from the declared share."""
    moved = "".join(sorted({side for s in range(steps) for side in row.train(t, s)}))
    return moved, moved if row.share is None else "".join(side for side in moved if side in row.share)


def keeps(row: Method, plan: fl.Plan = PLAN) -> bool:
    """Whether some factor moves and stays with its client."""
    return any(len(set(sides(row, t, plan.local_steps))) > 1 for t in range(plan.rounds))


def with_clients(task: Task, clients: list[Pair]) -> Task:
    """The same task on other data."""
    return replace(task, clients=tuple(clients), client_names=())


def no_op_at_start(row: Method) -> None:
    """Before training the adapted model is the base model, and so is the copy that clients receive."""
    for task in (regression(), tokens("head")):
        (record,) = play(task, row, None, PLAN.replace(rounds=0))
        x, y = task.test
        base = task.forward(task.model, x)
        torch.testing.assert_close(fl.predict(task, record, x), base, rtol=1e-12, atol=1e-12)
        for name, value in record.metrics.items():
            metric = task.metrics[name.removesuffix("_received")]
            assert math.isclose(value, float(metric(base, y).mean()), rel_tol=1e-9), name
        assert record.deviation == 0
        assert record.epsilon == 0
        assert not any(record.uploads)


def same_seed_same_bits(row: Method, unit: str) -> None:
    """A seed decides every bit; another seed gives another run."""
    plan = PLAN.replace(participation=0.8, dropout=0.2, momentum=0.5)
    for task in (regression(), tokens("head")):
        first, again, other = (play(task, row, private(unit), plan, seed=seed) for seed in (3, 3, 4))
        same_bits(first, again)
        assert gap(first[-1], other[-1]) > 1e-3


def resume_is_uninterrupted(row: Method, unit: str, folder: str) -> None:
    """A run that was stopped and taken up again has the bits of one that never was."""
    plan = PLAN.replace(rounds=4, participation=0.8, dropout=0.2, momentum=0.5)
    task = tokens("head")
    whole = play(task, row, private(unit), plan)
    play(task, row, private(unit), plan.replace(rounds=2), checkpoint=folder)
    same_bits(whole[3:], play(task, row, private(unit), plan, resume=folder))


def no_clip_no_noise_is_the_plain_run(row: Method, unit: str) -> None:
    """Without clip and noise the run is the run without privacy, and there no whitening changes anything.

    In the client unit the filter acts on the noised update and not on each step, since it acts where the noise is: the
    comparison is made without a filter there, for every row alike.
    """
    row = row if unit == "example" else row.replace(smooth=identity)
    for task in (regression(), tokens("head")):
        plain = play(task, row, None)
        limit = play(task, row, private(unit, sigma=0.0, clip=math.inf))
        bare = play(task, row.replace(whiten=None), None)
        assert gap(plain[0], limit[0]) == 0
        assert gap(limit[-1], plain[-1]) <= 1e-6
        assert gap(bare[-1], plain[-1]) <= 1e-6
        assert gap(plain[0], plain[-1]) > 1e-3 or row.share == ""


def no_path_from_data_round_the_clip(row: Method, unit: str) -> None:
    """With C = 0 two data sets of equal sizes give the bit-same run, even if one of them holds NaN and infinity.

    Left out: what a clip did (a diagnostic that release mode hides), and, where clients keep factors that the client
    unit does not noise, the metrics of those (hidden likewise).
    """
    for task in (regression(), tokens("head")):
        others = []
        for k, (x, y) in enumerate(task.clients):
            x = x.flip(0) * 3 + k
            x[0], x[1] = math.nan, math.inf
            others.append((x, y.roll(1, 0)))
        hidden = tuple(task.metrics) if unit == "client" and keeps(row) else ()
        plan = PLAN.replace(participation=0.8, dropout=0.2, momentum=0.5)
        runs = [play(t, row, private(unit, clip=0.0), plan) for t in (task, with_clients(task, others))]
        same_bits(runs[0], runs[1], "clipped", "nonfinite", *hidden)


def frozen_and_unsent_stay_put(row: Method, unit: str) -> None:
    """A factor that does not move, or is not sent, never changes on the server and takes no room on the way up."""
    task, plan = tokens("head"), PLAN.replace(rounds=4)
    records = play(task, row, private(unit), plan)
    numel = {name: x.numel() for name, x in tensors(records[0]).items()}
    for t, (before, after) in enumerate(pairwise(records)):
        _, sent = sides(row, t, plan.local_steps)
        up = {name for name in numel if (name[:5] == "head." if name[-1] not in "AB" else name[-1] in sent)}
        up = set() if row.share == "" else up
        old, new = tensors(before), tensors(after)
        for name in numel:
            assert torch.equal(old[name], new[name]) == (name not in up), f"{name} in round {t + 1}"
        numbers = len(task.clients) * sum(numel[name] for name in up)
        assert after.uploads[:2] == (numbers, 4 * numbers), f"round {t + 1}"


def kept_factors_stay_with_their_client(row: Method, unit: str) -> None:
    """What moves and is not sent is the client's own: no other client's data reaches it, and it is there next round."""
    if not keeps(row):
        return
    task, plan = tokens("head"), PLAN.replace(rounds=1)
    foreign = with_clients(
        task, [task.clients[0], *(examples(len(y), 99 + k) for k, (_, y) in enumerate(task.clients[1:]))]
    )
    kept = [_personal(t, row, unit, plan) for t in (task, foreign)]
    later = _personal(task, row, unit, plan.replace(rounds=2, lr_decay=1e-300))  # the second round moves nothing
    for slot, own in kept[0].items():
        assert torch.equal(own[0], kept[1][slot][0]), f"{slot} of client 0 knows other clients' data"
        assert not torch.equal(own[0], own[1]), f"{slot} is shared"
        assert torch.equal(own, later[slot]), f"{slot} was not there in the next round"


def _personal(task: Task, row: Method, unit: str, plan: fl.Plan) -> Mapping:
    run = fl.loop.Federation.open(task, row, private(unit), plan, lora=LORA)
    for _ in run.events():
        pass
    return run.state.personal


def one_or_equal_clients_give_no_deviation(row: Method, unit: str) -> None:
    """Where clients do not differ nothing is lost by averaging; where no product is formed it is not a number."""
    pair = regression().clients[0]
    for clients in ([pair], [pair] * 3):
        task, plan = with_clients(regression(), clients), PLAN.replace(batch=None, rounds=3, local_steps=3)
        for privacy in (None, private(unit, sigma=0.0, trust="local")):
            for record in play(task, row, privacy, plan)[1:]:
                assert record.deviation < 1e-9 or (keeps(row) and math.isnan(record.deviation))


def deviates_unless_exact(row: Method, unit: str) -> None:
    """The deviation is below 1e-6 in every round exactly when the row claims so."""
    plan = PLAN.replace(rounds=4, local_steps=3, participation=0.8, dropout=0.1)
    for privacy in (None, private(unit, trust="local")):
        found = [record.deviation for record in play(tokens(), row, privacy, plan, seed=1)[1:]]
        assert all(value < 1e-6 for value in found) == row.exact, f"exact={row.exact}, deviations {found}"


def client_order_is_irrelevant(row: Method, unit: str) -> None:
    """The same clients in another order give the same server, whatever their weights."""
    task, order = tokens("head"), (2, 0, 1)
    turned = with_clients(task, [task.clients[k] for k in order])
    for weights in ("uniform", "size") if unit == "example" else ("uniform",):
        plan = PLAN.replace(batch=None, weights=weights)
        one, other = (play(t, row, private(unit, sigma=0.0), plan) for t in (task, turned))
        assert gap(one[-1], other[-1]) <= 1e-9
        assert all(
            math.isclose(value, other[-1].metrics[name], rel_tol=1e-9) for name, value in one[-1].metrics.items()
        )


def epsilon_is_that_of_the_plan(row: Method, unit: str) -> None:
    """Epsilon is, bit for bit, that of the releases alone, whatever the method; or none is certified, with a reason.

    One release a step in the example unit, one a round in the client unit: a method of two phases takes two rounds.
    """
    task, plan = tokens("head"), PLAN.replace(rounds=3, participation=0.8)
    privacy = private(unit)
    fixed = privacy.resolve(task, plan)
    run = play(task, row, privacy, plan)
    for t, record in enumerate(run):
        ledger = record.ledger
        assert ledger is not None
        steps = plan.local_steps if unit == "example" else 1
        assert [(r.round, r.count) for r in ledger.releases] == [(i + 1, steps) for i in range(t)]
        book = fixed.ledger()
        for release in ledger.releases:
            book.record(release.round, release.clients, steps, **fixed.entry(release.clients))
        if uncertified(row.whiten) is None:
            assert record.epsilon == book.epsilon()
            assert (record.epsilon == 0) == (t == 0)
        else:
            assert record.epsilon == math.inf
            with pytest.raises(Uncertified, match="not certified"):
                ledger.epsilon()


def opens_with_b(row: Method) -> None:
    """While B is zero A has no gradient: a schedule that opens with A alone spends a round on noise."""
    assert "B" in row.train(0, 0)


def chunks_change_nothing(row: Method, unit: str) -> None:
    """One example and one client at a time, or all at once: the same run up to rounding."""
    task, plan = tokens("head"), PLAN.replace(rounds=3, participation=0.8, momentum=0.5)
    whole = play(task, row, private(unit), plan)
    for chunks in ({"chunk_examples": 1, "chunk_clients": 1}, {"chunk_examples": 4}, {"chunk_clients": 2}):
        parts = play(task, row, private(unit), plan, **chunks)
        assert gap(parts[-1], whole[-1]) <= 1e-6
        assert all(math.isclose(v, whole[-1].metrics[n], rel_tol=1e-6) for n, v in parts[-1].metrics.items())
        assert (parts[-1].clipped, parts[-1].nonfinite) == (whole[-1].clipped, whole[-1].nonfinite)


def learns_an_easy_task(row: Method, unit: str) -> None:
    """On clients who agree the loss halves, without privacy and under a little noise."""
    task = regression(heterogeneity=0.0)
    for privacy in (None, private(unit, sigma=0.02, clip=2.0)):
        records = play(task, row, privacy, fl.Plan(rounds=40, local_steps=2, batch=None, lr=0.5))
        assert records[-1].metrics["loss"] < 0.5 * records[0].metrics["loss"]
