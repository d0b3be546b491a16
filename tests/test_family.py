"""The relatives of the six: what their rows add to the grammar, beside the contract and the transcriptions."""

import copy
import json
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from small import LORA, PLAN, begun, play, private, regression, tokens

import fedlora_lab as fl
from fedlora_lab import aggregate, measures, methods
from fedlora_lab.aggregate.products import singular
from fedlora_lab.loop import Federation
from fedlora_lab.method import Global, Slot
from fedlora_lab.streams import Streams

A, B, W = (Slot(side, "layer") for side in "ABW")
UNEVEN = fl.Lora(rank=2, alpha=3.0, ranks=(1, 2, 1))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def federation(clients=3, rank=2):
    """A state of one layer, uploads of both factors, weights, and the mean of the clients' products."""
    state = Global({A: random(rank, 7), B: random(5, rank, seed=1)}, streams=Streams(0))
    uploads = {A: random(clients, rank, 7, seed=2), B: random(clients, 5, rank, seed=3)}
    weights = torch.rand(clients, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights = weights / weights.sum()
    return state, uploads, weights, torch.einsum("k,kor,kri->oi", weights, uploads[B], uploads[A])


def product(state):
    whole = state.tensors[B] @ state.tensors[A]
    return whole + state.tensors[W] if W in state.tensors else whole


@pytest.mark.parametrize("rule", [aggregate.mean_with_residual, aggregate.merge, aggregate.sketch(6)], ids=repr)
def test_rules_that_miss_nothing(rule):
    """Residual, merging, and a sketch as wide as three clients' ranks together, cut to a rank that holds them all."""
    state, uploads, weights, target = federation()
    if "W" not in rule.writes:
        big = {slot: torch.nn.functional.pad(x, (0, 0, 0, 4) if slot is A else (0, 4)) for slot, x in uploads.items()}
        state, uploads = Global({A: random(6, 7), B: random(5, 6)}, streams=Streams(0)), big
    after = rule(rule.open(state), state, uploads, weights)
    torch.testing.assert_close(product(after), target)


def test_the_best_rank_is_kept():
    """Truncation leaves out exactly the singular values beyond the rank, and the factors are split as published."""
    state, uploads, weights, target = federation()
    after = aggregate.truncated_svd(state, state, uploads, weights)
    values = torch.linalg.svdvals(target)
    assert float((product(after) - target).norm()) == pytest.approx(float(values[2:].norm()))
    torch.testing.assert_close(after.tensors[A] @ after.tensors[A].T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(after.tensors[B].norm(dim=0), values[:2])


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_narrow_sketch_loses_directions(width):
    state, uploads, weights, target = federation()
    after = aggregate.sketch(width)(state, state, uploads, weights)
    assert int(torch.linalg.matrix_rank(product(after))) == min(width, 2)
    assert float((product(after) - target).norm()) > float(torch.linalg.svdvals(target)[2:].norm()) * 0.999


def test_singular_values_of_factors():
    left, right = random(9, 4), random(4, 11, seed=1)
    u, s, v = singular(left, right, 4)
    torch.testing.assert_close(u * s @ v, left @ right)
    torch.testing.assert_close(s, torch.linalg.svdvals(left @ right)[:4])


@pytest.mark.parametrize("rule", [aggregate.truncated_svd, aggregate.sketch(), aggregate.norm_weighted], ids=repr)
def test_a_product_of_zero_breaks_nothing(rule):
    state = Global({A: random(2, 7), B: torch.zeros(5, 2, dtype=torch.float64)}, streams=Streams(0))
    uploads = {B: torch.zeros(3, 5, 2, dtype=torch.float64)}
    after = rule(state, state, uploads, torch.full((3,), 1 / 3))
    torch.testing.assert_close(after.tensors, state.tensors)


@pytest.mark.parametrize("rule", [aggregate.truncated_svd, aggregate.sketch(), aggregate.merge], ids=repr)
def test_absent_clients_leave_their_part_with_the_old_product(rule):
    state, uploads, weights, _ = federation()
    before = product(state)
    after = rule(rule.open(state), state, {B: uploads[B]}, 0.4 * weights)
    mean = torch.einsum("k,kor->or", weights, uploads[B]) @ state.tensors[A]
    torch.testing.assert_close(product(after), 0.6 * before + 0.4 * mean)


def test_merging_draws_new_factors_every_round():
    """Another public A in every round and layer, the same for the same seed."""
    task = regression()
    first, again = (play(task, "flora", None, PLAN.replace(rounds=3)) for _ in range(2))
    drawn = [record.adapter["map"][0] for record in first]
    assert all(not torch.equal(one, other) for i, one in enumerate(drawn) for other in drawn[:i])
    assert all(torch.equal(one, record.adapter["map"][0]) for one, record in zip(drawn, again, strict=True))
    assert all(not record.adapter["map"][1].any() for record in first)


def test_modes_follow_the_scores():
    """Cold and after the warm-up the factor with the larger score moves; one that never moved comes first."""
    rule = aggregate.by_layer(warmup=0, cooling=1e-3, coldest=1e-3)
    state = rule.open(Global({A: random(2, 7), B: random(5, 2)}, streams=Streams(0)))
    score_a, score_b, mode = (Slot(side, "layer") for side in ("score A", "score B", "mode"))
    up = {B: state.tensors[B] + random(3, 5, 2, seed=5)}
    after = rule(state, state, up, torch.full((3,), 1 / 3))
    assert after.tensors[mode] == 1  # A has not moved yet
    for a, b, expected in ((5.0, 0.0, 1), (0.0, 5.0, 0)):
        known = after.with_({score_a: torch.tensor(a), score_b: torch.tensor(b)})
        assert int(rule(known, known, {}, torch.ones(0)).tensors[mode]) == expected
    changes = (up[B] - state.tensors[B]).flatten(1)
    pairs = [float(changes[i] @ changes[j]) for i in range(3) for j in range(3) if i != j]
    assert float(after.tensors[score_b]) == pytest.approx(max(sum(pairs) / 6, 0.0))


def test_clients_of_lower_rank_hold_nothing_beyond_it():
    """No signal, no noise, no bytes: in the example unit, and in the client unit where uploads stand alone."""
    task = tokens("head")
    for row in methods.ALL.values():
        for privacy in (private("example"), private("client", trust="local")):
            run = Federation.open(task, row, privacy, PLAN.replace(rounds=1), lora=UNEVEN)
            watched, seen = measures.watch(row)
            run.setting = replace(run.setting, method=watched)
            list(run.events())
            for _, _, uploads, _ in seen:
                for slot, rows in uploads.items():
                    if slot.side in "AB" and not row.own_ranks:
                        beyond = rows[[0, 2]][:, 1:] if slot.side == "A" else rows[[0, 2]][..., 1:]
                        assert not beyond.any(), f"{row.slug}: {slot}"
    whole, uneven = (play(task, "fedlora", None, lora=lora)[-1].uploads for lora in (LORA, UNEVEN))
    heads = 3 * 15
    assert uneven.numbers_up - heads == (whole.numbers_up - heads) * 4 / 6


@pytest.mark.parametrize("ranks", [(1, 2), (1, 2, 3), (0, 1, 2), "122", (1, 2, 1.5)])
def test_ranks_that_do_not_fit_are_refused(ranks):
    with pytest.raises(ValueError, match="ranks"):
        play(regression(), "fedlora", None, lora=fl.Lora(rank=2, alpha=3.0, ranks=ranks))


@pytest.mark.parametrize("slug", ["fedex-lora", "flora", "fed-sb", "fedsvd", "as-lora", "hetlora"])
def test_peft_reads_what_was_trained(slug, tmp_path):
    """A residual becomes further ranks, a core is multiplied in: plain PEFT gives the run's outputs."""
    task = tokens("head")
    record = play(task, slug, None)[-1]
    fl.save_adapter(record, tmp_path / "adapter")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(task.model), str(tmp_path / "adapter")).eval()
    x, _ = task.test
    torch.testing.assert_close(model(x), fl.predict(task, record, x), rtol=1e-6, atol=1e-8)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"] > LORA.rank) == (slug in ("fedex-lora", "flora"))
    assert config["lora_alpha"] / config["r"] == pytest.approx(LORA.scaling)


@pytest.mark.parametrize("row", [row for row in methods.ALL.values() if row.start is None], ids=lambda row: row.slug)
def test_a_rank_above_both_sides_of_a_layer(row):
    """A rank of 8 on a layer of 5 x 6: shapes are kept, and what is exact stays exact."""
    last = play(regression(), row, None, lora=fl.Lora(rank=8, alpha=8.0))[-1]
    assert [tuple(factor.shape) for pair in last.adapter.values() for factor in pair] == [(8, 6), (5, 8)]
    assert last.deviation < 1e-6 or not row.exact


def test_a_core_starts_where_the_frozen_weight_points():
    """Public, the same for all seeds, and of no effect before training."""
    task: Any = regression()
    state, weight = begun(task, "fed-sb"), task.model.map.weight
    a, b, core = (state.tensors[Slot(side, "map")] for side in "ABR")
    torch.testing.assert_close(b @ torch.diag(torch.linalg.svdvals(weight)[:2]) @ a, b @ b.T @ weight)
    torch.testing.assert_close(a @ a.T, torch.eye(2, dtype=a.dtype))
    assert not core.any()
    with pytest.raises(ValueError, match="rank=6: expected at most 5"):
        play(regression(), "fed-sb", None, lora=fl.Lora(rank=6))


@pytest.mark.parametrize("slug", ["dp-lora", "dp-fedlora"])
def test_parts_are_clipped_apart_and_bounded_together(slug):
    """One huge factor leaves the other's share of the clip alone; all together stay within C."""
    from fedlora_lab.mechanism import clip_sum

    rows = {Slot("A", "one"): 1e6 * random(4, 2, 7), Slot("B", "one"): 1e-6 * random(4, 5, 2)}
    rows[Slot("B", "two")] = 1e6 * random(4, 5, 2, seed=1)
    owner, parts = torch.arange(4), methods.ALL[slug].parts
    apart, counts = clip_sum(rows, 1.0, owner, 4, parts)
    together, _ = clip_sum(rows, 1.0, owner, 4)
    total = torch.stack([x.flatten(1).square().sum(1) for x in apart.values()]).sum(0)
    assert bool((total <= 1 + 1e-9).all())
    assert counts.scaled == 4
    small = Slot("B", "one")
    assert float(together[small].norm()) < 1e-9
    if slug == "dp-fedlora":
        torch.testing.assert_close(apart[small], rows[small])


def test_what_never_leaves_is_not_on_the_server():
    """Half of the ranks are the client's own: the server's stay as they started, the clients' differ."""
    task = regression()
    run = Federation.open(task, methods.SDFLoRA, private("example"), PLAN, lora=LORA)
    list(run.events())
    a, b = Slot("A", "map"), Slot("B", "map")
    start = begun(task, methods.SDFLoRA).tensors
    assert torch.equal(run.state.server.tensors[a][1:], start[a][1:])
    assert not run.state.server.tensors[b][:, 1:].any()
    own = run.state.personal[b][..., 1:]
    assert own.any()
    assert not torch.equal(own[0], own[1])
