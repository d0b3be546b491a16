"""What is said of a method before it runs: which published one it is, what its fields promise."""

from typing import Any

import pytest

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.federated import dry_run
from fedlora_lab.methods import filters
from fedlora_lab.methods.aggregation import merge, truncated_svd
from fedlora_lab.methods.method import Cycle
from fedlora_lab.methods.published import measurements

ROWS = methods.ALL | methods.VARIANTS
PLAIN = methods.FedLoRA


def test_every_row_is_identified_by_its_fields():
    """By its fields: under another name, with other words and another claim."""
    for slug, row in ROWS.items():
        row = row.replace(name="something else", source="", note="", exact=False)
        assert dry_run.identify(row) == dry_run.ClosestMethod(slug, slug, ())


@pytest.mark.parametrize(
    ("row", "slug"),
    [
        (PLAIN.replace(train=Cycle(("B", "A", "B", "A"))), "rolora"),
        (PLAIN.replace(train=Cycle(("B B B",))), "ffa-lora"),
        (PLAIN.replace(train=Cycle(("BA AB",))), "fedlora"),
        (PLAIN.replace(train=Cycle(("B",)), share="B"), "ffa-lora"),
        (PLAIN.replace(train=Cycle(("B",)), share="AB"), "ffa-lora"),
        (PLAIN.replace(share="AB"), "fedlora"),
        (PLAIN.replace(share="R"), "local"),
        (PLAIN.replace(train=lambda t, s: "AB"), None),
    ],
)
def test_rows_of_equal_behaviour_are_identified_as_one(row, slug):
    assert dry_run.identify(row.replace(name="mine")).identical == slug


def test_what_nobody_published_names_the_nearest_and_the_difference():
    found = dry_run.identify(methods.LALoRA.replace(name="mine", aggregate=truncated_svd))
    assert found == dry_run.ClosestMethod(None, "la-lora", ("aggregate",))
    row = methods.FFA.replace(precondition=filters.product_space, filter=filters.binomial(3))
    found = dry_run.identify(row)
    assert found.identical is None and set(found.different_fields) == {"precondition", "filter"}


@pytest.mark.parametrize("slug", ROWS)
def test_exactness_is_the_claim(slug):
    gap = dry_run.aggregation_error(ROWS[slug])
    measured = measurements()["methods"][slug]["deviation"]
    assert (gap is None) == (measured is None)
    assert gap is None or (gap < dry_run.EXACT if ROWS[slug].exact else gap > 1e-3)


@pytest.mark.parametrize("slug", ROWS)
def test_bytes_are_those_that_were_measured(slug):
    """In real runs on digits, to the byte; rounds played once serve other layers and crowds."""
    row, found = ROWS[slug], measurements()["methods"][slug]
    assert dry_run.client_bytes(row) == (found["up"], found["down"])
    played = dry_run.play_rounds(row, rank=3, clients=7)
    size: Any = {"rank": 3, "clients": 50, "layers": [(64, 64), (30, 20)]}
    assert dry_run.client_bytes(row, **size, played=played) == dry_run.client_bytes(row, **size)


def test_bytes_of_other_layers_are_those_by_hand():
    """By hand: two layers, rank 3, five clients."""
    layers = [(50, 20), (30, 40)]
    a, b = 3 * (20 + 40), 3 * (50 + 30)
    size: Any = {"rank": 3, "clients": 5, "layers": layers}
    find = {slug: dry_run.client_bytes(ROWS[slug], **size) for slug in ROWS}
    for slug, size in (
        ("fedlora", a + b),
        ("ffa-lora", b),
        ("rolora", (a + b) / 2),
        ("fed-sb", 18),
    ):
        assert find[slug] == (4 * size, 4 * size)
    residual = sum(min(tall * wide, 5 * 3 * (tall + wide)) for tall, wide in layers)
    assert find["fedex-lora"].down == 4 * (a + b + residual)
    with pytest.raises(ValueError, match=r"^layers=\[\]: expected at least one \(d_out, d_in\)"):
        dry_run.client_bytes(PLAIN, layers=[])


def test_a_composed_row_is_exact_or_not():
    error: Any = dry_run.aggregation_error
    assert error(methods.LALoRA.replace(aggregate=merge)) < dry_run.EXACT
    assert error(methods.FFA.replace(aggregate=merge)) < dry_run.EXACT
    assert error(PLAIN.replace(train=Cycle(("AB", "B")))) > 0.01
    assert error(methods.FedASK.replace(train=Cycle(("AB",))), clients=1) < dry_run.EXACT
    assert error(methods.FFA.replace(own_ranks=0.5)) is None


NOISE_PRODUCT = {
    "fedlora": "at once", "ffa-lora": "never", "rolora": "over rounds", "fedsvd": "never",
    "la-lora": "within a round", "fed-sb": "never", "as-lora": "over rounds",
    "fedsa-lora": "at once",
}  # fmt: skip


def test_traits_of_the_table_are_those_measured():
    for slug, row in ROWS.items():
        found, measured = dry_run.traits(row), measurements()["methods"][slug]
        assert found.exact == (None if measured["deviation"] is None else row.exact)
        assert found.noise_product in dry_run.NOISE_PRODUCTS
        assert found.noise_product == NOISE_PRODUCT.get(slug, found.noise_product)
        assert (found.uncertified is None) == (slug != "deer-literal")
        assert found.first_step_idle == (slug == "la-lora-a-first") and found.can_learn
    assert not dry_run.traits(PLAIN.replace(train=Cycle(("A",)))).can_learn
    core = PLAIN.replace(start=filters.spectral)
    assert not dry_run.traits(core).can_learn
    assert dry_run.traits(core.replace(train=Cycle(("A R",)))).first_step_idle


@pytest.mark.parametrize("word", ["*", "R"])
def test_rows_that_cannot_run_are_refused(word):
    """And would have raised in the loop, where the schedule hides from the check."""
    with pytest.raises(ValueError, match=rf"^train='B [{word}]': expected no '[{word}]' unless"):
        PLAIN.replace(train=Cycle((f"B {word}",)))
    row = PLAIN.replace(name="hidden", train=lambda t, s: word)
    task, plan = fl.tasks.regression(clients=2, examples=4), fl.Plan(rounds=1, batch=2)
    with pytest.raises(ValueError, match="the loss depends on none of them"):
        list(fl.run(task, row, None, plan))
