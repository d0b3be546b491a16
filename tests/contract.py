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
from small import LORA, PLAN, begun, examples, gap, movers, play, private, regression, same_bits, tokens
from torch import Tensor

import fedlora_lab as fl
from fedlora_lab.aggregate import Rule
from fedlora_lab.audit.watch import Watched
from fedlora_lab.ledger import Uncertified
from fedlora_lab.mechanism import uncertified
from fedlora_lab.method import Global, Method, Slot
from fedlora_lab.record import origin
from fedlora_lab.rules import binomial, identity
from fedlora_lab.tasks import Task

Pair = tuple[Tensor, Tensor]


def sent_up(row: Method, t: int, steps: int, state: Global) -> set[Slot]:
    """What goes up in round t: what moves, read from the schedule, as far as the row shares it."""
    moved = set().union(*(movers(row, t, s, state) for s in range(steps)))
    return {slot for slot in moved if row.share is None or (row.share and slot.side in (*row.share, "head"))}


def keeps(row: Method) -> bool:
    """Whether some factor moves and stays with its client, in part or as a whole."""
    moved = set("".join(row.train(t, s) for t in range(4) for s in range(4)))
    return bool(row.own_ranks) or (row.share is not None and not moved <= set(row.share))


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
        # 0, or not a number where the rounds that follow do not measure it either
        assert record.deviation == 0 or math.isnan(play(task, row, None, PLAN.replace(rounds=1))[-1].deviation)
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
    comparison is made without a filter there, for every row alike. A server's rule that looks at more than the mean of
    the uploads is compared where it sees each of them.
    """
    row = row if unit == "example" else row.replace(smooth=identity)
    whole = unit == "client" and isinstance(row.aggregate, Rule)
    seen = {"trust": "local"} if whole else {}
    for task in (regression(), tokens("head")):
        plain = play(task, row, None)
        limit = play(task, row, private(unit, sigma=0.0, clip=math.inf, **seen))
        bare = play(task, row.replace(whiten=None), None)
        assert gap(plain[0], limit[0]) == 0
        assert gap(limit[-1], plain[-1]) <= 1e-6
        assert gap(bare[-1], plain[-1]) <= 1e-6
        assert gap(plain[0], plain[-1]) > 1e-3 or row.share == ""


def the_filter_acts_once_where_the_noise_is(row: Method) -> None:
    """In the client unit a filter changes an upload in one way: the noised update is filtered, once.

    Every row is given a filter, with and without noise; local steps go on as if there were none.
    """
    task, plan = tokens("head"), PLAN.replace(rounds=1)
    for sigma in (0.0, 1.1):
        changes = []
        for rule in (identity, binomial(5)):
            run = Watched.opened(
                task, row.replace(smooth=rule), private("client", sigma=sigma, trust="local"), plan, lora=LORA, seed=3
            )
            list(run.events())
            assert run.outcome is not None
            begun, sent = run.outcome.sent.tensors, run.outcome.received.uploads
            changes.append({slot: x - row.clips(begun[slot][None]) for slot, x in sent.items()})
        assert set(changes[0]) == set(changes[1])
        for slot, plain in changes[0].items():
            once = plain if slot.side not in "AB" else binomial(5)(plain, slot.side)
            torch.testing.assert_close(changes[1][slot], once, rtol=1e-6, atol=1e-9)


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
    """A factor that does not move, or is not sent, never changes on the server and takes no room on the way up.

    Unless the server's rule says that it writes it; ranks that stay at home are not sent.
    """
    task, plan = tokens("head"), PLAN.replace(rounds=4)
    records = play(task, row, private(unit), plan)
    own, written = math.ceil((1 - row.own_ranks) * LORA.rank) / LORA.rank, getattr(row.aggregate, "writes", ())
    for t, (before, after) in enumerate(pairwise(records)):
        old, new = (origin(record)[2] for record in (before, after))
        up = sent_up(row, t, plan.local_steps, old)
        for slot, tensor in old.tensors.items():
            same = torch.equal(tensor.nan_to_num(), new.tensors[slot].nan_to_num())
            assert same == (slot not in up) or slot.side in written, f"{slot} in round {t + 1}"
        sizes = {slot: old.tensors[slot].numel() * (1 if slot.side == "head" else own) for slot in up}
        if type(row.aggregate).__dict__.get("up") is None:  # the rule asks for nothing else in their place
            numbers = len(task.clients) * sum(sizes.values())
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
        home = own_part(row, slot, own), own_part(row, slot, later[slot])
        assert torch.equal(*home), f"{slot} was not there in the next round"


def own_part(row: Method, slot: Slot, own: Tensor) -> Tensor:
    """Of a factor that is sent in part, the ranks that are not."""
    sent = math.ceil((1 - row.own_ranks) * LORA.rank)
    return own[:, sent:] if slot.side == "A" and row.own_ranks else own[..., sent:] if row.own_ranks else own


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


def opens_with_what_is_zero(row: Method) -> None:
    """While B is zero A has no gradient: a schedule that opens with A alone spends a step on noise.

    Nor does anything else move at the start but what the product is zero by, and what moves with it.
    """
    state = begun(regression(), row)
    zero = {slot for slot, tensor in state.tensors.items() if slot.side in ("B", "R") and not tensor.any()}
    assert zero
    assert zero <= movers(row, 0, 0, state)


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
    """On clients who agree the loss halves, under a little noise and (which knows no unit, so once) without privacy.

    A row whose A rests, or that starts from directions of the frozen weight, gets the full rank: that a random subspace
    or the weight's leading directions are those of the task is no part of the contract.
    """
    task, rests = regression(heterogeneity=0.0), not any(set("A*") & set(row.moved(t, 2)) for t in range(4))
    lora = LORA if row.start is None and not rests else fl.Lora(rank=5, alpha=7.5)
    plan = fl.Plan(rounds=40, local_steps=2, batch=None, lr=0.5)
    for privacy in (private(unit, sigma=0.02, clip=2.0), *((None,) if unit == "example" else ())):
        records = play(task, row, privacy, plan, lora=lora, evaluate_every=plan.rounds, seed=1)
        assert records[-1].metrics["loss"] < 0.5 * records[0].metrics["loss"]
