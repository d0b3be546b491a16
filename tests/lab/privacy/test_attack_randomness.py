"""An adversary who looks for the random numbers of a run: in seeds, and in shared streams."""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from toy_tasks import LORA, play, private, regression

import fedlora_lab as fl
from fedlora_lab._utils.random_streams import Streams, key
from fedlora_lab.federated import local_training
from fedlora_lab.federated.make_config import make_config
from fedlora_lab.federated.run import Run
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy import privatizer
from fedlora_lab.privacy.privatizer import gaussian_noise

pytestmark = pytest.mark.attack

PLAN = fl.Plan(rounds=3, local_steps=2, batch=3, lr=0.1, participation=0.6)
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


def bits(some):
    """A source of eight bytes for each entry, by which it is drawn or not."""
    return BytesIO(b"".join(BOTTOM if x else TOP for x in some.flat)).read


def numbers(record):
    return [x.numpy().tobytes() for x in require_source(record)[2].tensors.values()]


def test_without_a_seed_every_set_of_participants_and_every_batch_can_come(monkeypatch):
    """Eight bytes of the system's decide for each client and example, and nothing else."""
    run = Run.open(make_config(regression(clients=40), "fedlora", None, PLAN, LORA, None))
    everyone = tuple(range(40))
    random = np.random.default_rng(0)
    drawn_clients = random.random(40) < 0.5
    batch = random.random((40, 6)) < 0.5
    entropy = Entropy(monkeypatch, bits(drawn_clients))
    assert list(run.participants(0)) == np.flatnonzero(drawn_clients).tolist()
    assert len(entropy.given) == 8 * 40
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


def test_every_name_has_a_key_of_its_own():
    """Of 128 bits, all of which its generator takes; also names that look alike, and seeds that
    agree in their lowest 32, 64 or 128 bits.
    """
    low, high = Streams(0).numpy("noise", 76, 282, 1).bit_generator.state["state"]["key"]
    whole = key(0, "noise", 76, 282, 1)
    assert int(low) + (int(high) << 64) == whole and 120 < whole.bit_length() <= 128
    alike: list[Any] = [("a",), ("a/1",), ("a, 1",), ("",), ('a", 1',), ("a", 1), ("a", 1, 1)]
    alike += [("a", 11), ("a/1", 1), ("a", -1), ("a", 2**64)]
    seeds = [5, *(5 + 2**bits for bits in (31, 32, 64, 128, 200)), 2**32]
    assert len({key(seed, *name) for seed in seeds for name in alike}) == len(seeds) * len(alike)
    with pytest.raises(TypeError):
        key(0, "noise", 1.5)  # type: ignore[arg-type]


def test_the_ends_of_the_entropy_give_numbers_in_range(monkeypatch):
    Entropy(monkeypatch, lambda size: (BOTTOM + TOP)[:size])
    assert Streams(None).uniform((2,), "u").tolist() == [0.0, 1 - 2.0**-53]


def noise_from(monkeypatch, sign, digits):
    """The number of the noise whose entropy is this sign and these binary digits, then zeros."""
    digits = digits.ljust(63 + 64 * 200, "0")
    first = int(digits[:63], 2) << 1 | sign
    others = int(digits[63:], 2).to_bytes(8 * 200, "big")
    Entropy(monkeypatch, BytesIO(np.uint64(first).tobytes() + others).read)
    return Streams(None).normal((1,), "noise").item()


def test_noise_reaches_beyond_what_any_delta_can_see(monkeypatch):
    """A neighbour's release that leaves the support of the noise is known for certain, and no
    accountant counts it: each extreme word is refined, to both sides, as often as it takes.
    """
    for zeros in (0, 1, 3, 10, 62, 63, 64, 127, 2000):
        for sign, direction in ((0, -1), (1, 1)):
            reached = direction * noise_from(monkeypatch, sign, "0" * zeros + "1")
            # Of the numbers of this sign one in 2^(zeros + 1) has a larger absolute value.
            log_chance = -(zeros + 2) * math.log(2)
            assert special.log_ndtr(-reached) == pytest.approx(log_chance, rel=1e-12)


def test_noise_is_as_fine_in_its_tail_as_in_its_middle(monkeypatch):
    """Values that lie far apart would tell a neighbour's release, which falls between them."""
    for zeros in range(120):
        near, far = (
            special.log_ndtr(noise_from(monkeypatch, 0, "0" * zeros + "1" + "0" * 39 + digit))
            for digit in "10"
        )
        assert near - far == pytest.approx(2.0**-40, rel=0.05)


def test_a_thread_s_generator_draws_what_a_new_one_does():
    """Its whole state is set, whatever was drawn before: an odd count leaves half a word."""

    def both(seed):
        streams = Streams(seed)
        outside = streams.numpy("kept by a caller", seed)
        given = [outside.random()]
        for count in (1, 2, 3, 7, 0, 64):
            new = [np.random.Generator(np.random.Philox(key=key(seed, "a", count))) for _ in "un"]
            expected = [new[0].random((count,)), new[1].standard_normal(count, dtype=np.float32)]
            drawn = [streams.uniform((count,), "a", count), streams.normal((count,), "a", count)]
            assert all(x.numpy().tobytes() == y.tobytes() for x, y in zip(drawn, expected))
            given.append(outside.random())
        # What was handed out goes on where it was.
        assert given == list(Streams(seed).numpy("kept by a caller", seed).random(7))
        return True

    assert all(map(both, range(200)))
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(both, range(200)))
