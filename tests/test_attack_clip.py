"""What lets one example past the clip, or past the noise, through the types and maps in which they are computed."""

from typing import Any

import pytest
import torch
from small import LORA, PLAN, play, private, tokens
from torch import nn

import fedlora_lab as fl
from fedlora_lab.mechanism import clip_sum, noise, release
from fedlora_lab.method import Slot
from fedlora_lab.rules import Whitening, factor_space, product_space
from fedlora_lab.streams import Streams

pytestmark = pytest.mark.attack

ONE = Slot("B", "layer")


@pytest.mark.parametrize(
    ("entries", "clip_norm"),
    [
        (torch.full((2, 7), 1e-23), 1e-25),  # squares that float32 rounds to zero
        (torch.cat([torch.full((1, 7), 1e30), torch.full((1, 7), 1e-3)]), 1.0),  # squares that overflow
        (torch.ones(2, 20_000_000), 1.0),  # more squares than float32 adds up
        (torch.cat([torch.ones(1, 1), torch.full((1, 2**18), 2.4e-4)], 1), 1.0),  # squares that fall behind one
    ],
    ids=["small", "large", "long", "uneven"],
)
def test_no_row_of_any_size_passes_the_clip(entries: torch.Tensor, clip_norm: float) -> None:
    for row in entries:
        sums, _ = clip_sum({ONE: row[None]}, clip_norm, torch.zeros(1, dtype=torch.int64), 1)
        assert float(sums[ONE].double().norm()) <= clip_norm * (1 + 1e-5)


@pytest.mark.parametrize("odd", [torch.nan, 0.0, 1e30])
@pytest.mark.parametrize("shape", [(16, 768), (4, 4096)])
def test_no_row_moves_the_norms_of_others(shape: tuple[int, int], odd: float) -> None:
    """Many rows alike, a few large and many tiny numbers in each: one odd row had all of them measured more finely."""
    rows = torch.full((1024, *shape), 2e-3)
    rows[:, 0, :3] = 1.0
    rows[0] = odd
    owner = torch.zeros(1024, dtype=torch.int64)
    alone, _ = clip_sum({ONE: rows[1:]}, 1.0, owner[1:], 1)
    moved = float((clip_sum({ONE: rows}, 1.0, owner, 1)[0][ONE].double() - alone[ONE].double()).norm())
    assert moved <= (1 + 1e-4 if odd == 1e30 else 1e-4)


def test_noise_is_as_fine_as_what_it_hides() -> None:
    """Noise on the grid of float32 leaves the last digits of a float64 sum bare: membership was read off them."""
    shape = {ONE: torch.Size((4, 500))}
    for std in (1.0, 1e-3):
        drawn = noise(shape, [std, 0.0], Streams(None), [(0, 0, 0), (0, 1, 0)])
        released = release({ONE: torch.zeros(2, 4, 500, dtype=torch.float64)}, drawn, {})[0][ONE]
        assert float((released[0] != released[0].float()).float().mean()) > 0.99
        assert not released[1].any()


@pytest.mark.parametrize("scale", [1e22, 1e30])
@pytest.mark.parametrize("trust", ["central", "local"])
def test_one_client_s_data_cannot_stop_a_run(trust: str, scale: float) -> None:
    """Un-noised factors of a client that has lost its way: their Gram matrix has no roots, and an error would tell."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    x, y = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)), torch.arange(5) % 3
    task = fl.tasks.classification(model, [(x * scale, y), (x, y)], test=(x, y), targets=["0"])
    row = fl.methods.DEeR.replace(name="within", train=fl.Cycle(("B A",)))
    plan = PLAN.replace(rounds=2, local_steps=3, batch=None, lr=0.3)
    assert play(task, row, private("client", trust=trust), plan, lora=fl.Lora(rank=4, alpha=4))[-1].index == 2


def rotated(gram: torch.Tensor) -> Whitening:
    """Ranks turned into each other by a fixed public rotation, and back: certified, since noise and signal go alike."""
    turn = torch.linalg.qr(torch.randn(len(gram.mT[0]), len(gram.mT[0]), generator=torch.Generator().manual_seed(1)))[0]
    turn = turn.to(gram).expand_as(gram).contiguous()
    back = turn.mT.contiguous()
    return Whitening(turn, back, back)


def test_a_rotation_of_the_ranks_takes_no_noise_from_the_signal() -> None:
    """Clients of a lower rank: the noise of a rank that a map fills with signal is not cut away before the map.

    Without data (C = 0 in the clip's sums) and with noise, what is released has noise in every direction of the ranks
    that the client holds.
    """
    lora = fl.Lora(rank=4, ranks=(2, 2, 2))
    row = fl.methods.FFA.replace(name="rotated", whiten=rotated)
    task, plan = tokens(), PLAN.replace(rounds=1, local_steps=1, batch=None)
    kept: list[Any] = []
    for sigma in (50.0, 50_000.0):
        record = play(task, row, private("example", sigma=sigma, clip=1.0), plan, lora=lora, seed=0)[-1]
        assert record.ledger is not None and record.ledger.uncertified is None
        kept.append(record.adapter)
    for layer, (_, quiet) in kept[0].items():
        loud = kept[1][layer][1]
        # back in the coordinates of the clip: 1000 times the noise must move every rank 1000 times as far
        turn = rotated(torch.eye(4).double()[None]).before[0]
        sizes = [(b.double() @ turn).norm(dim=0) for b in (quiet, loud)]
        assert bool((sizes[1] > 100 * sizes[0]).all()), layer


class WarmUp:
    """Sound when the run is opened, the unsound factor-space form some calls later."""

    def __init__(self, calls: int) -> None:
        self.left = calls

    def __call__(self, gram: torch.Tensor) -> Whitening:
        self.left -= 1
        return (product_space if self.left > 0 else factor_space)(gram)


@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_rule_that_turns_unsound_is_refused_where_it_does(unit: str) -> None:
    row = fl.methods.DEeR.replace(name="warm", whiten=WarmUp(30))
    with pytest.raises(ValueError, match=r"^whiten=.*: expected a rule that treats every peer"):
        play(tokens(), row, private(unit), PLAN.replace(rounds=40))
    assert play(tokens(), "deer-literal", private(unit))[-1].epsilon == float("inf")


def test_tensors_of_half_precision_are_not_trained() -> None:
    """Sums of clipped gradients would be rounded after every addend: one example moved them by 1.4 C."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    x, y = torch.randn(6, 6), torch.arange(6) % 3
    task = fl.tasks.classification(model, [(x, y)], test=(x, y), targets=["0"], head="1").to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"^dtype of .*: expected float32 or float64: in half precision"):
        play(task, "fedlora", None, lora=LORA)
