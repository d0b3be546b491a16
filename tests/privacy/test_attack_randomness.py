"""An adversary who looks for the random numbers of a run: in seeds, and in shared streams."""

import os
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from toy_tasks import LORA, play, private, regression

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams, key
from fedlora_lab.federated import local_training
from fedlora_lab.federated.run import Run
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import privatizer
from fedlora_lab.privacy.privatizer import gaussian_noise

pytestmark = pytest.mark.attack

PLAN = fl.Plan(rounds=3, local_steps=2, batch=3, lr=0.1, participation=0.6, client_dropout=0.3)
TOP = b"\xff" * 8
BOTTOM = bytes(8)
"""Eight bytes of entropy that make the largest and the smallest number."""


class Entropy:
    """Stands where the system's entropy is taken: keeps what is asked for, may say what comes."""

    def __init__(self, patch, source):
        self.source, self.given = source, b""
        patch.setattr(os, "urandom", self)

    def __call__(self, size):
        content = self.source(size)
        assert len(content) == size, "more entropy is asked for than there is"
        self.given += content
        return content


def bits(some, yes=BOTTOM, no=TOP):
    """A source of eight bytes for each entry, by which it is drawn or not."""
    return BytesIO(b"".join(yes if x else no for x in some.flat)).read


def numbers(record):
    return [x.numpy().tobytes() for x in require_source(record)[2].tensors.values()]


def test_without_a_seed_every_set_of_participants_and_every_batch_can_come(monkeypatch):
    """Eight bytes of the system's decide for each client, upload and example, and nothing else."""
    run = Run.open(regression(clients=40), "fedlora", None, PLAN, lora=LORA, seed=None)
    everyone = tuple(range(40))
    random = np.random.default_rng(0)
    drawn_clients = random.random(40) < 0.5
    batch = random.random((40, 6)) < 0.5
    entropy = Entropy(monkeypatch, bits(drawn_clients))
    assert list(run.participants(0)) == np.flatnonzero(drawn_clients).tolist()
    assert len(entropy.given) == 8 * 40
    Entropy(monkeypatch, bits(drawn_clients, yes=TOP, no=BOTTOM))
    assert run.arrivals(0, everyone).tolist() == np.flatnonzero(drawn_clients).tolist()
    entropy = Entropy(monkeypatch, bits(batch))
    drawn = local_training.poisson_batch(run.prepared, 0, 0, everyone)
    assert [x.tolist() for x in drawn] == [np.flatnonzero(row).tolist() for row in batch]
    assert len(entropy.given) == 8 * batch.size


def test_without_a_seed_each_number_of_the_noise_has_64_bits_of_its_own(monkeypatch):
    """Another eight bytes change one number of the noise, and no other. With a seed, threads draw
    what is drawn without them.
    """
    content = np.random.default_rng(0).bytes(8 * 30)

    def drawn(content, seed=None):
        Entropy(monkeypatch, BytesIO(content).read)
        shapes = {ParamKey("B", "x"): torch.Size([5, 3])}
        where = [(0, 0, 0), (0, 1, 0)]
        (noise,) = gaussian_noise(shapes, [1.0, 2.0], Streams(seed), where).values()
        return noise.flatten()

    before = drawn(content)
    for place in range(30):
        at = slice(8 * place, 8 * place + 8)
        flipped = bytes(255 - x for x in content[at])
        changed = drawn(content[: at.start] + flipped + content[at.stop :])
        assert (changed != before).nonzero().flatten().tolist() == [place]
    alone = drawn(b"", 0)
    monkeypatch.setattr(privatizer, "MANY_DRAWS", 0)
    assert drawn(b"", 0).equal(alone)


@pytest.mark.parametrize(("slug", "unit"), [("fedlora", "example"), ("as-lora", "client")])
def test_nothing_else_decides_a_run_for_release(monkeypatch, slug, unit):
    """The same entropy gives the same run bit for bit; other entropy another one.

    With a seed it takes none.
    """

    def run(source=os.urandom, seed=None):
        entropy = Entropy(monkeypatch, source)
        records = play(regression(), slug, private(unit), PLAN, seed=seed)
        monkeypatch.undo()
        return [numbers(record) for record in records], entropy.given

    first, entropy_taken = run()
    assert run(BytesIO(entropy_taken).read)[0] == first != run()[0]
    assert run(seed=1)[1] == b""


def test_every_bit_of_the_seed_decides_everything():
    """Seeds that agree in their lowest 32, 64 or 128 bits give other numbers; equal ones of other
    types the same.
    """
    seeds = [5, *(5 + 2**bits for bits in (31, 32, 64, 128, 200)), 2**32]
    of_numpy: Any = np.int64(5)
    drawn = [Streams(seed).normal((64,), "noise", 1, 2, 3) for seed in (*seeds, of_numpy)]
    assert len({x.numpy().tobytes() for x in drawn}) == len(seeds) and drawn[-1].equal(drawn[0])


def test_every_name_has_a_key_of_its_own():
    """Of 128 bits, all of which its generator takes; also names that look alike."""
    low, high = Streams(0).numpy("noise", 76, 282, 1).bit_generator.state["state"]["key"]
    whole = key(0, "noise", 76, 282, 1)
    assert int(low) + (int(high) << 64) == whole and 120 < whole.bit_length() <= 128
    alike: list[Any] = [("a",), ("a/1",), ("a, 1",), ("",), ('a", 1',), ("a", 1), ("a", 1, 1)]
    alike += [("a", 11), ("a/1", 1), ("a", -1), ("a", 2**64)]
    assert len({key(seed, *name) for seed in (0, 1, 2**64) for name in alike}) == 3 * len(alike)
    with pytest.raises(TypeError):
        key(0, "noise", 1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, None], ids=["seeded", "release"])
def test_uniform_and_normal_are_what_they_are_called(monkeypatch, seed):
    """Kolmogorov-Smirnov, and no correlation of neighbours or streams."""
    Entropy(monkeypatch, np.random.default_rng(0).bytes)
    streams = Streams(seed)
    uniform = streams.uniform((300, 400), "u")
    normal = streams.normal((300, 400), "n").double()
    for x, law in ((uniform.numpy(), stats.uniform), (normal.numpy(), stats.norm)):
        assert stats.kstest(x.ravel(), law.cdf).pvalue > 1e-3
        x = x - law.mean()
        for other in (np.roll(x, 1), np.roll(x, 1, axis=0)):
            assert abs(np.corrcoef(x.ravel(), other.ravel())[0, 1]) < 4 / x.size**0.5


def test_the_ends_of_the_entropy_give_numbers_in_range(monkeypatch):
    Entropy(monkeypatch, lambda size: (BOTTOM + TOP)[:size])
    assert Streams(None).uniform((2,), "u").tolist() == [0.0, 1 - 2.0**-53]
    low, high = Streams(None).normal((2,), "n").tolist()
    assert -8.3 < low < -8.1 and high == -low
