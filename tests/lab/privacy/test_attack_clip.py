"""What lets one example past the clip, or past the noise, through the types and maps in which they
are computed.
"""

from itertools import chain, repeat
from typing import Any

import pytest
import torch
from calls import refused
from hypothesis import given, settings, strategies as st
from toy_tasks import (
    LORA,
    PLAN,
    book,
    play,
    private,
    random,
    regression,
    tokens,
    two_layers,
)

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams
from fedlora_lab.federated import prepared
from fedlora_lab.federated.local_training import preconditioners
from fedlora_lab.methods.preconditioners import Preconditioner, factor_space, product_space
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.privatizer import (
    ClipAndNoise,
    add_noise,
    clip_sum,
    gaussian_noise,
    precondition_rows,
    uncertified_reason,
)

pytestmark = pytest.mark.attack

ONE = ParamKey("B", "layer")
ENTRIES = {
    "squares that float32 rounds to zero": (torch.full((2, 7), 1e-23), 1e-25),
    "squares that overflow": (torch.full((1, 7), 1e30), 1.0),
    "a scale below float32's smallest": (torch.full((1, 7), 1e20), 5.6e-25),
    "squares that fall behind one": (torch.tensor([[1.0] + [2.4e-4] * 2**18]), 1.0),
}


@pytest.mark.parametrize(("entries", "clip_norm"), ENTRIES.values(), ids=ENTRIES)
def test_no_row_of_any_size_passes_the_clip(entries, clip_norm):
    for row in entries:
        sums, _ = clip_sum({ONE: row[None]}, clip_norm, torch.zeros(1, dtype=torch.int64), 1)
        assert float(sums[ONE].double().norm()) <= clip_norm * (1 + 1e-5)


@pytest.mark.parametrize("chunk", [10**6, 5000])
@pytest.mark.parametrize("filtered", [False, True])
def test_one_row_of_many_moves_their_sum_by_at_most_c(chunk, filtered):
    """A float32 sum of many rows rounded each of them otherwise where one was missing."""
    draws = torch.Generator().manual_seed(0)
    rows = 3 * torch.linspace(0.3, 1.1, 16).repeat(100_000, 1)[:, :, None]
    rows += torch.rand(rows.shape, generator=draws)
    maps = {ONE: factor_space(torch.eye(1)[None])} if filtered else {}
    table = torch.cat([rows[:3], rows])  # beside a client with few rows
    owner = torch.tensor([1] * 3 + [0] * len(rows))
    parts = zip(table.split(chunk), owner.split(chunk), strict=True)
    zeros = {ONE: torch.zeros(2, 16, 1)}
    made = ClipAndNoise(1.0).update(
        (({ONE: x}, who) for x, who in parts), zeros, [0.0] * 2, Streams(0), [], maps
    )
    value = made.value[ONE]
    exact = (rows.double() / rows.double().norm(dim=1, keepdim=True)).sum(0)
    off = (value[0].double() - exact).abs()
    assert value.dtype == torch.float32
    # Rounded once, as a float32 is: a half of its last digit.
    assert (off <= exact * 2**-24 * 1.01).all()


@pytest.mark.parametrize("odd", [torch.nan, 0.0, 1e30])
def test_no_row_moves_the_norms_of_others(odd):
    """One odd row had all others, alike with few large and many tiny numbers, measured finer."""
    rows = torch.full((512, 4, 4096), 2e-3)
    rows[:, 0, :3] = 1.0
    rows[0] = odd
    owner = torch.zeros(512, dtype=torch.int64)
    alone = clip_sum({ONE: rows[1:]}, 1.0, owner[1:], 1)[0][ONE].double()
    moved = float((clip_sum({ONE: rows}, 1.0, owner, 1)[0][ONE].double() - alone).norm())
    assert moved <= (1 + 1e-4 if odd == 1e30 else 1e-4)


def test_rows_whose_owners_are_in_no_order_are_clipped_and_summed_apart():
    """Fault: a row scaled as another one is, or added to another owner's sum."""
    rows = torch.arange(1.0, 7.0)[:, None] * torch.ones(6, 4)  # of norms 2, 4, ..., 12
    owner = torch.tensor([3, 0, 3, 1, 0, 1])
    clipped = rows * (5 / rows.norm(dim=1)).clamp(max=1)[:, None]
    by_hand = torch.stack([clipped[owner == k].sum(0) for k in range(4)])
    torch.testing.assert_close(clip_sum({ONE: rows}, 5.0, owner, 4)[0][ONE], by_hand)


def test_noise_is_as_fine_as_what_it_hides():
    """Float32's noise leaves a float64 sum's last digits bare: membership was read off them."""
    drawn = gaussian_noise({ONE: torch.Size((2000,))}, [1e-3], Streams(None), [(0, 0, 0)])
    released = add_noise({ONE: torch.zeros(1, 2000).double()}, drawn, {})[0][ONE]
    assert float((released != released.float()).float().mean()) > 0.99


@pytest.mark.parametrize(("trust", "scale"), [("central", 1e22), ("local", 1e30)])
def test_one_client_s_data_cannot_stop_a_run(trust, scale):
    """Factors that have lost their way have a Gram matrix without roots: an error would tell."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    y = torch.arange(5) % 3
    data = [(x * scale, y), (x, y)]
    task = fl.tasks.classification(two_layers(), data, test=(x, y), targets=["0"])
    row = fl.methods.DEeR.replace(name="within", schedule=fl.Cycle(("B A",)))
    plan = PLAN.replace(rounds=2, local_steps=3, batch=None, lr=0.3)
    lora = fl.Lora(rank=4, alpha=4)
    assert play(task, row, private("client", trust=trust), plan, lora=lora)[-1].index == 2


@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_rule_that_turns_unsound_is_refused_where_it_does(unit):
    """Sound when the run is opened, the unsound factor-space form 30 calls later.

    Where no epsilon is stated it is the user's own affair.
    """
    calls = chain([product_space] * 30, repeat(factor_space))
    row = fl.methods.DEeR.replace(name="warm", precondition=lambda gram: next(calls)(gram))
    with refused(r"^precondition=.*: expected a rule that treats every peer"):
        play(tokens(), row, private(unit), PLAN.replace(rounds=40))
    calls = chain([product_space] * 30, repeat(factor_space))
    assert len(play(tokens(), row, None, PLAN.replace(rounds=10))) == 11
    assert play(tokens(), "deer-literal", private(unit))[-1].epsilon == float("inf")


def test_what_is_trained_of_a_base_in_half_precision_is_in_full():
    """Sums would be rounded after every addend: one example moved them by 1.4 C."""
    x = random(6, 6).bfloat16()
    y = torch.arange(6) % 3
    model = two_layers().bfloat16()
    task = fl.tasks.classification(model, [(x, y)], test=(x, y), targets=["0"], head="1")
    last = play(task, "fedlora", private("example"), lora=LORA)[-1]
    trained = [*last.adapter["0"], *last.head.values()]
    assert {tensor.dtype for tensor in trained} == {torch.float32}


NUMBERS = st.one_of(
    st.sampled_from([0.0, 1.0, 0.95, -1.0, 1e-30, 3e38, float("inf"), float("nan")]),
    st.floats(-1e3, 1e3, width=32),
)


def matrices(rows, columns):
    """Matrices (1, rows, columns) of any numbers, in float32."""
    many = st.lists(NUMBERS, min_size=rows * columns, max_size=rows * columns)
    return many.map(lambda x: torch.tensor(x, dtype=torch.float32).view(1, rows, columns))


@settings(max_examples=50)
@given(matrices(2, 2), matrices(2, 2), matrices(2, 2), matrices(2, 3), st.booleans())
def test_one_example_moves_a_release_as_a_shift_of_the_noise_by_at_most_c_does(
    before,
    after,
    other,
    gradient,
    alike,
):
    """Whatever a rule returns: singular, huge or infinite maps. A shift of the noise is what the
    Gaussian mechanism hides; rules that map noise and signal apart certify no epsilon.
    """

    def rule(gram):
        return Preconditioner(before, after, None if alike else other)

    key = ParamKey("A", "layer")
    row = fl.methods.FedLoRA.replace(name="any", precondition=rule)
    assert (uncertified_reason(rule) is None) == alike
    ones = {key: torch.ones(1, 2, 3), ParamKey("B", "layer"): torch.ones(1, 3, 2)}
    maps = preconditioners(row, (key,), ones, alike)
    owner = torch.zeros(1, dtype=torch.int64)
    signal, _ = clip_sum(precondition_rows({key: gradient}, maps, owner), 1.0, owner, 1)
    assert float(signal[key].double().norm()) <= 1 + 1e-6
    noise = torch.linspace(-2, 2, 6).view(1, 2, 3)
    moved = add_noise(signal, {key: noise}, maps)[0][key]
    shifted = add_noise({key: 0 * noise}, {key: signal[key] + noise}, maps)[0][key]
    assert not alike or torch.equal(moved.nan_to_num(7.0), shifted.nan_to_num(7.0))


OTHER_SHAPES = {
    "as many maps as owners": lambda eye: Preconditioner(eye.expand(3, -1, -1), eye),
    "one map for all": lambda eye: Preconditioner(eye[0], eye[0]),
    "numbers": lambda eye: Preconditioner(eye, 2.0),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("made", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_maps_that_do_not_belong_to_their_owner_are_refused(made, unit):
    """Taken by its place among all rows, a row's map would follow from who else was drawn; and
    whether a run stops must not hang on how many were.
    """

    def rule(gram) -> Any:
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype).expand_as(gram)
        asked = gram.shape[-1] != LORA.rank or torch.equal(gram, eye)  # before the run begins
        return Preconditioner(eye, eye) if asked else made(eye)

    row = fl.methods.FFA.replace(name="misplaced", precondition=rule)
    with refused(r"^precondition"):
        play(regression(), row, private(unit), PLAN.replace(batch=None))


@pytest.mark.parametrize(("owners", "std"), [(1, []), (3, [1.0])])
def test_a_release_without_a_noise_level_for_every_owner_is_refused(owners, std):
    """With none there would be no draw, and the bare sum would go out."""
    zeros = {ONE: torch.zeros(owners, 2, 7)}
    rows = [({ONE: torch.ones(owners, 2, 7)}, torch.arange(owners))]
    where = [(0, k, 0) for k in range(len(std))]
    with refused(r"^std=.*: expected "):
        ClipAndNoise(1.0).update(rows, zeros, std, Streams(0), where, {})


def test_a_mechanism_of_another_class_is_certified_by_nobody(monkeypatch):
    """It may release anything, and says nothing of what it spends."""

    class Louder(ClipAndNoise):
        pass

    monkeypatch.setattr(prepared, "ClipAndNoise", Louder)
    last = play(regression(), "ffa-lora", private("example"), PLAN)[-1]
    assert last.epsilon == float("inf") and "Louder does not say" in str(book(last).uncertified)
