"""examples/one_file.py: what it says of its clip, noise and epsilon holds, and it learns."""

import runpy

import pytest
import torch
from places import ROOT

import fedlora_lab as fl

PATH = ROOT / "examples" / "one_file.py"
FILE = runpy.run_path(str(PATH))
FACTORS = {name: x + 0.1 for name, x in FILE["new_adapter"]().items()}


def release(x, y, sigma):
    """One noised gradient, whose batch and noise are those of any other call."""
    FILE["random"].manual_seed(7)
    noised = FILE["private_gradient"](FACTORS, x, y, sigma)
    return torch.cat([g.flatten() for g in noised.values()])


@pytest.mark.slow
def test_one_file_learns_within_its_epsilon():
    assert len(PATH.read_text().splitlines()) <= 200
    scores, ledger = FILE["train"]()
    assert scores[0] < 0.4 < 0.85 < scores[-1]
    assert 0.99 * FILE["EPSILON"] < ledger.epsilon() <= FILE["EPSILON"]
    (sigma,) = {entry.noise_multiplier for entry in ledger.releases}
    steps = FILE["ROUNDS"] * FILE["STEPS"]
    rate = FILE["BATCH"] / FILE["EXAMPLES"]
    privacy = fl.Privacy(noise_multiplier=sigma, sample_rate=rate, delta=FILE["DELTA"])
    assert ledger.epsilon() == pytest.approx(privacy.ledger(releases=steps).epsilon(), rel=1e-6)


def test_one_example_moves_a_step_of_one_file_by_its_clip_norm_at_most_and_noise_has_its_size():
    x, y = FILE["draw"](FILE["EXAMPLES"], turned=True)
    plain = release(x, y, 0.0)
    loud = x.clone()
    moved = []
    for i in range(0, len(x), 10):
        loud[i] = 1e4 * x[i]
        moved.append(float((release(loud, y, 0.0) - plain).norm()))
        loud[i] = x[i]
    # Another example in its place moves the sum by twice the clip norm.
    assert 0 < max(moved) <= 2 * FILE["CLIP_NORM"] / FILE["BATCH"] * (1 + 1e-5)
    noise = (release(x, y, 3.0) - plain) * FILE["BATCH"] / FILE["CLIP_NORM"]
    assert float(noise.std()) == pytest.approx(3.0, rel=0.15)
