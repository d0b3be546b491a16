"""What is said of a row before it is run: which published one it is, and what its fields and functions promise."""

from typing import Any

import pytest

import fedlora_lab as fl
from fedlora_lab import catalogue, methods, rehearsal, rules, traits
from fedlora_lab.aggregate import by_layer, merge, truncated_svd
from fedlora_lab.method import Cycle

ROWS = methods.ALL | methods.VARIANTS
PLAIN = methods.FedLoRA


@pytest.mark.parametrize("slug", list(ROWS))
def test_every_row_is_itself(slug):
    """By its fields: under another name, with other words and another claim."""
    row = ROWS[slug].replace(name="something else", source="", note="", exact=False)
    assert traits.identify(row) == traits.Kin(slug, slug, ())


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
def test_equal_behaviour_is_equal(row, slug):
    assert traits.identify(row.replace(name="mine")).same == slug


def test_what_nobody_published_names_the_nearest_and_the_difference():
    found = traits.identify(methods.LALoRA.replace(name="mine", aggregate=truncated_svd))
    assert (found.same, found.near, found.differs) == (None, "la-lora", ("aggregate",))
    found = traits.identify(methods.FFA.replace(whiten=rules.product_space, smooth=rules.binomial(3)))
    assert found.same is None
    assert set(found.differs) == {"whiten", "smooth"}
    assert traits.identify(PLAIN, among={"x": methods.FFA}) == traits.Kin(None, "x", ("train",))


@pytest.mark.parametrize("slug", list(ROWS))
def test_exactness_is_the_claim(slug):
    gap, measured = rehearsal.exactness(ROWS[slug]), catalogue.measurements()["methods"][slug]["deviation"]
    assert (gap is None) == (measured is None)
    zero = gap is not None and gap < rehearsal.EXACT
    assert zero == ROWS[slug].exact
    assert zero or gap is None or gap > 1e-3


@pytest.mark.parametrize("slug", list(ROWS))
def test_bytes_are_those_that_were_measured(slug):
    """Measured in real runs on digits: equal to the byte."""
    found = catalogue.measurements()["methods"][slug]
    assert rehearsal.wire(ROWS[slug]) == (found["up"], found["down"])


@pytest.mark.parametrize("slug", list(ROWS))
def test_rounds_played_once_serve_other_layers_and_crowds(slug):
    played = rehearsal.turns(ROWS[slug], rank=3, clients=7)
    for clients, layers in ((2, [(8, 40)]), (50, [(64, 64), (30, 20)])):
        setting: Any = {"rank": 3, "clients": clients, "layers": layers}
        assert rehearsal.wire(ROWS[slug], **setting, played=played) == rehearsal.wire(ROWS[slug], **setting)


def test_bytes_of_other_layers():
    """By hand: two layers, rank 3, five clients."""
    layers = [(50, 20), (30, 40)]
    a, b = 3 * (20 + 40), 3 * (50 + 30)
    find = {slug: rehearsal.wire(ROWS[slug], rank=3, clients=5, layers=layers) for slug in ROWS}
    assert find["fedlora"] == (4 * (a + b), 4 * (a + b))
    assert find["ffa-lora"] == (4 * b, 4 * b)
    assert find["rolora"] == (2 * (a + b), 2 * (a + b))
    assert find["fed-sb"] == (4 * 18, 4 * 18)
    residual = sum(min(tall * wide, 5 * 3 * (tall + wide)) for tall, wide in layers)
    assert find["fedex-lora"].down == 4 * (a + b + residual)
    wide = rehearsal.wire(ROWS["fedex-lora"], rank=3, clients=5, layers=[(4096, 4096)])
    assert wide.down == 4 * (3 * 8192 + 15 * 8192)
    for slug, row in ROWS.items():
        if slug != "fedask-wide":  # whose sketch has a width of its own
            large = rehearsal.wire(row, rank=64, layers=[(256, 256)])
            small = rehearsal.wire(row, rank=32, layers=[(256, 256)])
            assert large.up == (4 if slug == "fed-sb" else 2) * small.up
    with pytest.raises(ValueError, match=r"^layers="):
        rehearsal.wire(PLAIN, layers=[])


def test_a_composed_row_is_exact_or_not():
    exact: Any = rehearsal.exactness
    assert exact(methods.LALoRA.replace(aggregate=merge)) < rehearsal.EXACT
    assert exact(methods.FFA.replace(aggregate=merge)) < rehearsal.EXACT
    assert exact(PLAIN.replace(train=Cycle(("AB", "B")))) > 0.01
    assert exact(methods.FedASK.replace(train=Cycle(("AB",))), clients=1) < rehearsal.EXACT
    assert exact(methods.FFA.replace(own_ranks=0.5)) is None


@pytest.mark.parametrize(
    ("slug", "how"),
    [("fedlora", "at once"), ("ffa-lora", "never"), ("rolora", "over rounds"), ("la-lora", "within a round"),
     ("fedsvd", "never"), ("fed-sb", "never"), ("as-lora", "over rounds"), ("fedsa-lora", "at once")],
)  # fmt: skip
def test_how_noise_meets_noise(slug, how):
    assert traits.meeting(ROWS[slug]) == how
    assert how in traits.MEETS


def test_traits_of_the_table():
    for slug, row in ROWS.items():
        found, measured = traits.traits(row), catalogue.measurements()["methods"][slug]
        assert found.exact == (None if measured["deviation"] is None else row.exact)
        assert (found.up, found.down) == (measured["up"], measured["down"])
        assert (found.uncertified is None) == (slug != "deer-literal")
        assert found.idle == (slug == "la-lora-a-first")
        assert found.learns
    assert not traits.traits(PLAIN.replace(train=Cycle(("A",)))).learns
    core = PLAIN.replace(start=rules.spectral)
    assert not traits.traits(core).learns
    assert traits.traits(core.replace(train=Cycle(("A R",)))).idle


def test_rows_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"^train='\*': expected no '\*' unless the server's rule chooses"):
        PLAIN.replace(train=Cycle(("*",)))
    with pytest.raises(ValueError, match=r"^train='B R': expected no 'R' unless start makes a core"):
        PLAIN.replace(train=Cycle(("B", "R")))
    assert PLAIN.replace(train=Cycle(("*",)), aggregate=by_layer())


def test_refused_rows_really_cannot_run():
    """What is refused would have raised in the loop; here the schedule hides from the check."""
    task = fl.tasks.regression(clients=2, examples=4)
    for word in "*R":
        row = PLAIN.replace(name="hidden", train=lambda t, s, word=word: word)
        with pytest.raises(RuntimeError):
            list(fl.run(task, row, None, fl.Plan(rounds=1, local_steps=1, batch=2)))
