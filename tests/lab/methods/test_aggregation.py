"""Server rules: rules of the product, ranks, what PEFT reads."""

import copy
from dataclasses import replace
from typing import Any

import peft
import pytest
import reference_methods as plain
import torch
from calls import refused
from toy_tasks import play, random, regression, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.methods import aggregation
from fedlora_lab.methods.state import ParamKey, ServerState

A, B = (ParamKey(name, "layer") for name in "AB")
STATE = ServerState({A: random(2, 7), B: random(5, 2, seed=1)}, streams=Streams(0))


def test_a_rule_takes_no_fixed_numbers_in_the_place_of_the_run_s():
    with refused(r"^streams=None: expected the random streams of the run"):
        replace(STATE, streams=None).random("layer")


# ---- rules of the product


@pytest.mark.parametrize(
    "rule",
    [
        aggregation.truncated_svd,
        aggregation.subspace_iteration,
        aggregation.sketch,
        aggregation.shared_outputs,
        aggregation.norm_weighted,
    ],
    ids=repr,
)
def test_a_product_of_zero_breaks_nothing(rule):
    state = STATE.replace_tensors({B: torch.zeros(5, 2, dtype=torch.float64)})
    uploads = {B: torch.zeros(3, 5, 2, dtype=torch.float64)}
    after = rule(state, state, uploads, torch.full((3,), 1 / 3))
    torch.testing.assert_close(after.tensors, state.tensors)


@pytest.mark.parametrize(
    "rule",
    [
        aggregation.truncated_svd,
        aggregation.subspace_iteration,
        aggregation.split_product,
        aggregation.retraction,
        aggregation.shared_outputs,
        aggregation.sketch,
    ],
    ids=repr,
)
def test_singular_vectors_have_one_sign_everywhere(rule):
    """Noise falls on single entries of a factor: a run would hang on the signs of a library."""
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    residual = ParamKey("W", "layer")
    for seed in range(0, 40, 2):
        uploads = {A: random(3, 2, 7, seed=seed), B: random(3, 5, 2, seed=seed + 1)}
        start = STATE.replace_tensors({residual: torch.zeros(5, 7, dtype=torch.float64)})
        after = rule(start, start, uploads, weights)
        assert (after.tensors[A].sum(1) > 0).all(), seed


def test_subspace_iteration_takes_two_steps():
    """On uploads as unlike as random ones, where a third step still turns the directions."""
    uploads = {A: random(3, 2, 7), B: random(3, 5, 2, seed=1)}
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    after = aggregation.subspace_iteration(STATE, STATE, uploads, weights).tensors
    ends = [{key: x[k].numpy() for key, x in uploads.items()} for k in range(3)]
    expected = plain.fedpower(ends[0], ends, weights.tolist())
    torch.testing.assert_close((after[B] @ after[A]).numpy(), expected[B] @ expected[A])


# ---- ranks


# One row for each rule of the server, of those without a start of their own.
BY_RULE = {repr(row.aggregate): row for row in methods.ALL.values() if row.initial_factors is None}


@pytest.mark.slow
@pytest.mark.parametrize("row", BY_RULE.values(), ids=lambda row: row.slug)
def test_a_rank_above_both_sides_of_a_layer(row):
    """A rank of 8 on a layer of 5 x 6: shapes are kept, and what is exact stays exact."""
    last = play(regression(), row, None, lora=fl.Lora(rank=8, alpha=8.0))[-1]
    shapes = [tuple(factor.shape) for pair in last.adapter.values() for factor in pair]
    assert shapes == [(8, 6), (5, 8)]
    assert last.deviation < 1e-6 or not row.exact


@pytest.mark.parametrize("slug", ["fedex-lora", "flora", "fed-sb", "fedsvd"])
def test_peft_reads_what_was_trained(slug, tmp_path):
    """A residual becomes further ranks, a core is multiplied in: plain PEFT gives the run's
    outputs.
    """
    task: Any = tokens("head")
    record = play(task, slug, None)[-1]
    path = str(tmp_path / "adapter")
    fl.save_adapter(record, path)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(task.model), path).eval()
    x, _ = task.test
    torch.testing.assert_close(model(x), fl.predict(task, record, x), rtol=1e-6, atol=1e-8)


def test_a_rule_that_makes_tensors_of_another_type_is_named():
    """Fault: they met the model's own rounds later, in an error that named no rule."""

    def halved(state, broadcast, uploads, weights):
        after = aggregation.mean(state, broadcast, uploads, weights)
        return after.replace_tensors({key: x.half() for key, x in after.tensors.items()})

    row = methods.FedLoRA.replace(name="Halved", source="", aggregate=halved)
    with refused("^inner.A after the rule of halved='torch.float16 .*: expected torch.float"):
        play(tokens(), row, None)


def test_a_rule_that_makes_numbers_not_finite_is_named():
    """Fault: a rule that divided by zero went on, and nothing said so."""

    def divided(state, broadcast, uploads, weights):
        after = aggregation.mean(state, broadcast, uploads, weights)
        return after.replace_tensors({key: x / 0 for key, x in after.tensors.items()})

    row = methods.FedLoRA.replace(name="Divided", source="", aggregate=divided)
    with pytest.warns(
        UserWarning, match="^inner.A is not finite after the rule of divided"
    ) as caught:
        play(tokens(), row, None)
    assert len(caught) == 1, "of uploads that are not finite no rule makes finite factors"
