"""An adversary who looks for the random numbers of a run: in seeds that are short, in streams that are one stream."""

import os
from collections.abc import Callable
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from small import LORA, UNITS, play, private, regression

import fedlora_lab as fl
from fedlora_lab import engine
from fedlora_lab.loop import Federation
from fedlora_lab.mechanism import noise
from fedlora_lab.method import Slot
from fedlora_lab.record import origin
from fedlora_lab.streams import Streams, key

pytestmark = pytest.mark.attack

PLAN = fl.Plan(rounds=3, local_steps=2, batch=3, lr=0.1, participation=0.6, dropout=0.3)
DRAWS: dict[str, Callable[[Streams], np.ndarray]] = {
    "uniform": lambda streams: streams.uniform((64,), "sampling", 1, 2, 3).numpy(),
    "normal": lambda streams: streams.normal((64,), "noise", 1, 2, 3).numpy(),
    "numpy": lambda streams: streams.numpy("server", 1).random(64),
}
TOP, BOTTOM = b"\xff" * 8, bytes(8)
"""Eight bytes of entropy that make the largest and the smallest number."""


class Entropy:
    """Stands where the operating system's entropy is taken: counts what is asked for, and may say what comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, source: Callable[[int], bytes] = os.urandom) -> None:
        self.source, self.given = source, b""
        monkeypatch.setattr(os, "urandom", self)

    def __call__(self, size: int) -> bytes:
        found = self.source(size)
        self.given += found
        return found


def told(content: bytes) -> Callable[[int], bytes]:
    """A source that gives these bytes, one after the other."""
    stream = BytesIO(content)

    def source(size: int) -> bytes:
        found = stream.read(size)
        assert len(found) == size, "more entropy is asked for than there is"
        return found

    return source


def dice(seed: int) -> Callable[[int], bytes]:
    """A source that is random and the same in every run of the tests."""
    return np.random.default_rng(seed).bytes


def opened(seed: int | None, privacy: fl.Privacy | None = None, clients: int = 40) -> Federation:
    return Federation.open(regression(clients=clients), "fedlora", privacy, PLAN, lora=LORA, seed=seed)


def decisions(run: Federation) -> dict[str, list]:
    """What chance decides in a round: who takes part, whose upload is lost, who is drawn."""
    ids = tuple(range(len(run.setting.task.sizes)))
    return {
        "participation": list(run._participants(1)),
        "dropout": run._arrived(1, ids).tolist(),
        "sampling": [x.tolist() for x in engine.poisson_batch(run.setting, 1, 1, ids)],
        "start": [x.tolist() for x in run.state.server.tensors.values()],
    }


# a run for release: no generator that could be searched


@pytest.mark.parametrize("trial", range(20))
def test_without_a_seed_every_set_of_participants_can_come(monkeypatch, trial):
    """Whoever takes part is said by eight bytes of the system's for each client: no seed is there to be searched."""
    run, wanted = opened(None), np.random.default_rng(trial).random((4, 40)) < 0.5
    for some in wanted:
        entropy = Entropy(monkeypatch, told(b"".join(BOTTOM if x else TOP for x in some)))
        assert list(run._participants(0)) == np.flatnonzero(some).tolist()
        assert len(entropy.given) == 8 * 40
        Entropy(monkeypatch, told(b"".join(TOP if x else BOTTOM for x in some)))
        assert run._arrived(0, tuple(range(40))).tolist() == np.flatnonzero(some).tolist()


@pytest.mark.parametrize("trial", range(20))
def test_without_a_seed_every_batch_can_come(monkeypatch, trial):
    """Each example is drawn by eight bytes of its own: 240 examples, and each of the 2**240 batches is as likely."""
    run, some = opened(None), np.random.default_rng(trial).random((40, 6)) < 0.5
    entropy = Entropy(monkeypatch, told(b"".join(BOTTOM if x else TOP for x in some.flat)))
    drawn = engine.poisson_batch(run.setting, 0, 0, tuple(range(40)))
    assert [x.tolist() for x in drawn] == [np.flatnonzero(row).tolist() for row in some]
    assert len(entropy.given) == 8 * some.size


def test_without_a_seed_each_number_of_the_noise_has_64_bits_of_its_own(monkeypatch):
    """Another eight bytes change one number of the noise, and no other."""
    content, slot = np.random.default_rng(0).bytes(8 * 30), Slot("B", "x")

    def drawn(content: bytes) -> torch.Tensor:
        Entropy(monkeypatch, told(content))
        return noise({slot: torch.Size([5, 3])}, [1.0, 2.0], Streams(None), [(0, 0, 0), (0, 1, 0)])[slot].flatten()

    before = drawn(content)
    for place in range(30):
        at = 8 * place
        changed = drawn(content[:at] + bytes([255 - x for x in content[at : at + 8]]) + content[at + 8 :])
        assert (changed != before).nonzero().flatten().tolist() == [place]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("slug", ["fedlora", "fedask", "as-lora"])
def test_nothing_else_decides_a_run_for_release(monkeypatch, unit, slug):
    """With the entropy of a run given once more the run comes once more, bit for bit; with other entropy another one.

    And it takes at least eight bytes for every client whose part or upload chance decides.
    """

    def one(source: Callable[[int], bytes] = os.urandom) -> tuple[list[bytes], bytes]:
        entropy = Entropy(monkeypatch, source)
        records = play(regression(), slug, private(unit), PLAN, seed=None)
        monkeypatch.undo()
        return [x.numpy().tobytes() for r in records for x in origin(r)[2].tensors.values()], entropy.given

    first, given = one()
    again, _ = one(told(given))
    other, more = one()
    assert first == again
    assert first != other
    decided = PLAN.rounds * (3 + 3)  # who takes part and what is lost, of three clients; steps and noise come on top
    assert min(len(given), len(more)) > 8 * decided


def test_with_a_seed_no_entropy_is_taken(monkeypatch):
    entropy = Entropy(monkeypatch)
    play(regression(), "fedask", private("client"), PLAN, seed=1)
    assert entropy.given == b""


# seeds and names


@pytest.mark.parametrize("name", DRAWS)
def test_every_bit_of_the_seed_counts(name):
    """Seeds that agree in their lowest 32, 63, 64 or 128 bits give other numbers."""
    seeds = [5, *(5 + 2**bits for bits in (31, 32, 63, 64, 127, 128, 200)), 2**32, 2**64 - 1]
    found = {DRAWS[name](Streams(seed)).tobytes() for seed in seeds}
    assert len(found) == len(seeds)
    alike: list[Any] = [5, np.int64(5)]
    assert len({DRAWS[name](Streams(seed)).tobytes() for seed in alike}) == 1


def test_every_decision_of_a_run_hangs_on_the_whole_seed():
    one, other, again = (decisions(opened(seed)) for seed in (5, 5 + 2**32, 5))
    assert one == again
    assert [name for name in one if one[name] == other[name]] == []


def test_a_run_takes_a_seed_of_any_length():
    """As 2**32 + 3 and as 2**70 + 3, and neither is the run of seed 3."""
    found = [play(regression(), "fedlora", None, PLAN, seed=3 + more)[-1] for more in (0, 2**32, 2**70)]
    assert len({next(iter(origin(x)[2].tensors.values())).numpy().tobytes() for x in found}) == 3


def test_every_name_has_a_key_of_its_own():
    """The pair that was one stream under 32 bits; all (round, client, step) of a large run; names that look alike."""
    pair = (76, 282, 1), (45, 406, 0)
    words = [Streams(0).numpy("noise", *at).bit_generator.state["state"]["key"].tolist() for at in pair]
    assert words[0] != words[1]
    assert [low + (high << 64) for low, high in words] == [key(0, "noise", *at) for at in pair]
    large = {key(0, "sampling", *at) for at in product(range(100), range(500), range(6))}
    assert len(large) == 300_000
    assert len({k & 0xFFFFFFFF for k in large}) < 300_000, "32 bits would not have been enough"
    assert min(large).bit_length() < 120 < max(large).bit_length() <= 128
    alike = [
        ("a",), ("a", 1), ("a/1",), ("a", 1, 1), ("a", 11), ("a/1", 1), ("a", -1), ("a", 0), ("a, 1",), ('a", 1',),
        ("a\\",), ("a\\", 1), ("", 1), ("1",), ("1", 1), ("",), ("noise", 2**64), ("noise", 0),
    ]  # fmt: skip
    names = [(seed, *name) for seed in (0, 1, 10, 2**32, 2**64) for name in alike]
    assert len({key(*name) for name in names}) == len(names)  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [1.5, "1", None])
def test_an_index_is_a_whole_number(index):
    with pytest.raises(TypeError):
        key(0, "noise", index)


# the numbers themselves


@pytest.mark.parametrize("seed", [0, None], ids=["seeded", "release"])
def test_uniform_and_normal_are_what_they_are_called(monkeypatch, seed):
    """Kolmogorov-Smirnov on 200,000 numbers, no correlation of neighbours or streams; ends inside the range."""
    Entropy(monkeypatch, dice(0))
    streams = Streams(seed)
    uniform, normal = streams.uniform((400, 500), "u"), streams.normal((400, 500), "n")
    assert (uniform.dtype, normal.dtype) == (torch.float64, torch.float64 if seed is None else torch.float32)
    assert 0 <= uniform.min() < 1e-4
    assert 1 - 1e-4 < uniform.max() < 1
    for x, law in ((uniform.numpy(), stats.uniform), (normal.double().numpy(), stats.norm)):
        assert stats.kstest(x.ravel(), law.cdf).pvalue > 1e-3
        x = x - law.mean()
        for other in (np.roll(x, 1), np.roll(x, 1, axis=0)):
            assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 4 / x.size**0.5
    many = np.stack([streams.normal((20,), "n", i).double().numpy() for i in range(2000)])
    assert stats.kstest(many.ravel(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(many.T) - np.eye(20)).max() < 5 / 2000**0.5


def test_the_ends_of_the_entropy_give_numbers_in_range(monkeypatch):
    Entropy(monkeypatch, lambda size: (BOTTOM + TOP)[:size])
    assert Streams(None).uniform((2,), "u").tolist() == [0.0, 1 - 2.0**-53]
    low, high = Streams(None).normal((2,), "n").tolist()
    assert -8.3 < low < -8.1
    assert high == -low


def test_a_stream_begins_alike_however_much_is_drawn():
    """So that a chunk, a rank or an engine that draws less of it draws the same."""
    streams = Streams(3)
    for draw in (streams.uniform, streams.normal):
        assert torch.equal(draw((6,), "x", 1), draw((1000,), "x", 1)[:6])
        assert torch.equal(draw((2, 3), "x", 1), draw((6,), "x", 1).view(2, 3))
