"""Secure aggregation with Flower's primitives: what opens, what does not, and how it is broken."""

import contextlib
import subprocess
from typing import Any

import numpy as np
import pytest
from commands import PYTHON

from fedlora_lab.course.secagg_demo import Client, Grid, aggregate, load_flower, mask

RNG = np.random.default_rng(0)
UPDATES = 0.2 * RNG.standard_normal((6, 300))
GRID = Grid(clipping_range=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [(), (0,), (5,), (2, 3)])
def test_the_sum_is_opened_whoever_is_lost(dropped):
    found = aggregate(UPDATES, GRID, threshold=4, dropped=dropped)
    there = [k for k in range(6) if k not in dropped]
    assert found.arrived == tuple(there)
    off = np.abs(found.total - UPDATES[there].sum(0))
    assert 0 < off.max() <= GRID.max_error(len(there)) + 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("dropped", [(), (0, 3)])
def test_neighbours_are_enough(dropped):
    """With two neighbours on a ring the sum opens too, and the cost of a client stays the same."""
    found = aggregate(UPDATES, GRID, threshold=2, dropped=dropped, neighbours=2)
    there = [k for k in range(6) if k not in dropped]
    assert np.abs(found.total - UPDATES[there].sum(0)).max() <= GRID.max_error(len(there)) + 1e-9
    each = [
        aggregate(np.zeros((n, 1)), GRID, threshold=2, neighbours=2).bytes_up / n for n in (4, 8)
    ]
    assert each[0] == pytest.approx(each[1], rel=0.02)


def test_the_error_keeps_to_its_bound():
    """Rounding is to a neighbour, right on average, and entries beyond the reach are cut off."""
    values = np.concatenate([np.linspace(-1, 1, 2001), [1.7, -3.0]])
    coarse = Grid(clipping_range=1.0, levels=10, modulus=16)
    drawn = np.stack([coarse.dequantize(coarse.quantize(values), 1) for _ in range(2000)])
    inside = drawn[:, :-2]
    assert np.abs(inside - values[:-2]).max() <= coarse.max_error(1) + 1e-12
    assert np.abs(inside.mean(0) - values[:-2]).max() < 5 * coarse.step / 2 / 2000**0.5
    assert (drawn[:, -2:] == [1.0, -1.0]).all()
    assert coarse.max_error(7) == pytest.approx(7 * 2 / 10)


def test_a_sum_never_wraps():
    """At the upper end the sum just fits; one level more is refused, and would have wrapped."""
    fits = Grid(clipping_range=1.0, levels=31, modulus=128)
    top = np.ones((4, 5))
    assert np.allclose(aggregate(top, fits, threshold=2).total, 4.0)
    tight = Grid(clipping_range=1.0, levels=32, modulus=128)
    with pytest.raises(ValueError, match=r"^modulus=128: expected above 4 clients x 32 levels"):
        aggregate(top, tight, threshold=2)
    wrapped = np.sum([tight.quantize(row) for row in top], axis=0) % tight.modulus
    assert np.allclose(tight.dequantize(wrapped, 4), -4.0)


def test_one_upload_says_nothing_of_its_values():
    """Masked numbers are spread evenly and follow neither the update, any other upload, nor a
    smaller sum; the masks are fresh in every run.
    """
    loud = np.where(np.arange(4000) < 2000, -0.9, 0.9) * np.ones((5, 1))
    uploads = aggregate(loud, GRID, threshold=3).uploads

    def unrelated(one, other):
        return abs(np.corrcoef(one, other)[0, 1]) < 5 / 4000**0.5

    for row in uploads:
        assert unrelated(row, loud[0])
        counts = np.histogram(row / GRID.modulus, bins=8, range=(0, 1))[0]
        assert np.abs(counts - 500).max() < 6 * 500**0.5
    assert unrelated(uploads[0], uploads[1])
    assert unrelated(uploads[:4].sum(0) % GRID.modulus, loud[0])
    assert (aggregate(loud, GRID, threshold=3).uploads != uploads).mean() > 0.99


def test_too_few_shares_open_nothing():
    secret = b"a seed of thirty-two bytes here!"
    shares = load_flower().create_shares(secret, 3, 5)
    assert load_flower().combine_shares(shares[1:4]) == secret
    with contextlib.suppress(ValueError):
        assert load_flower().combine_shares(shares[:2]) != secret


def test_a_seed_of_a_pair_is_short():
    """Flower folds a key into 32 bits, and a key agreed by two is text: four are always zero."""
    seen = 0
    for _ in range(40):
        (ours, _), (_, theirs) = (
            load_flower().generate_key_pairs(),
            load_flower().generate_key_pairs(),
        )
        key, folded = load_flower().generate_shared_key(ours, theirs), 0
        for i in range(0, len(key), 4):
            folded ^= int.from_bytes(key[i : i + 4], "little")
        seen |= folded
        drawn = np.random.RandomState(folded).randint(0, 2**24 - 1, (9,), dtype=np.int64)
        assert np.array_equal(mask(key, 2**24, 9), drawn), "who knows 28 bits knows the mask"
    assert seen & 0x80808080 == 0
    assert seen.bit_count() == 28


def test_a_letter_for_another_is_refused():
    clients = [Client(k, GRID, UPDATES[k]) for k in range(3)]
    letters = clients[0].encrypt_shares(clients, 2)
    clients[1].decrypt_shares(clients[0], letters[1])
    with pytest.raises(Exception):  # noqa: B017
        clients[2].decrypt_shares(clients[0], letters[1])


def test_cost_is_counted():
    found = aggregate(UPDATES, GRID, threshold=4)
    assert found.bytes_plain == 4 * UPDATES.size
    assert found.bytes_up > 3 * UPDATES.size
    wide = aggregate(np.zeros((6, 3000)), GRID, threshold=4)
    assert wide.bytes_up - found.bytes_up == pytest.approx(3 * (18_000 - UPDATES.size), abs=400)
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("grid", "given", "message"),
    [
        ({"clipping_range": 0}, {}, r"^clipping_range=0: expected a number in \(0"),
        ({"levels": 0}, {}, r"^levels=0: expected .*1"),
        ({"modulus": 1000}, {}, "^modulus=1000: expected a power of two"),
        ({}, {"threshold": 1}, "^threshold=1: expected .*2.*6"),
        ({}, {"threshold": 7}, "^threshold=7: expected .*2.*6"),
        ({}, {"dropped": (9,)}, r"^dropped=\[9\]: expected clients in"),
        ({}, {"dropped": (0, 1)}, r"^dropped=\[0, 1\]: expected so few that 5 uploads"),
        ({}, {"neighbours": 3, "threshold": 2}, "^neighbours=3: expected an even number, or all"),
        ({}, {"updates": UPDATES * np.nan}, r"^updates=\(6, 300\): expected finite"),
    ],
)
def test_bad_input_is_refused(grid, given, message):
    with pytest.raises(ValueError, match=message):
        aggregate(
            grid=Grid(**dict[str, Any](clipping_range=1.0) | grid),
            **dict[str, Any](updates=UPDATES, threshold=5) | given,
        )


@pytest.mark.slow
def test_importing_it_needs_no_flower():
    code = "import sys; sys.modules['flwr'] = None; from fedlora_lab.course import secagg_demo as s"
    subprocess.run([PYTHON, "-c", f"{code}; s.Grid(clipping_range=1.0)"], check=True)
