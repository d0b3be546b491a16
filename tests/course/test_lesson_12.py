"""Notebook 12: the simulated audit states what it spends, and errs as seldom as it says."""

import numpy as np
import pytest

from fedlora_course.lesson_12.clips import clips_at_the_median, clips_each_tensor, review_clip
from fedlora_course.lesson_12.figures import luck_table, reach_table, share_refuting
from fedlora_lab.audit import bounds


@pytest.mark.slow
def test_the_game_errs_as_seldom_as_it_says():
    played = [bounds.simulate_one_run(60, 0.3, confidence=0.8, seed=seed) for seed in range(400)]
    assert played[0].true == pytest.approx(0.3, rel=1e-6), "the noise spends what is stated"
    assert np.mean([one.lower > one.true for one in played]) <= 0.2 + 4 * (0.16 / 400) ** 0.5
    assert abs(np.mean([one.included.mean() for one in played]) - 0.5) < 0.02
    loud = [bounds.simulate_one_run(500, 1.0, leak=6, seed=seed).caught for seed in range(40)]
    assert np.mean(loud) > 0.8


@pytest.mark.slow
def test_more_canaries_do_not_find_everything():
    """Fault: enough canaries were said to refute a factor of the root of two."""
    table = reach_table(3.0)
    least = table.groupby("leak")["value"].min()
    assert (least[:2] > 0.05).all() and (least[2:] < 0.02).all()
    most = table[table["canaries"] == 1_000_000]
    assert (most["value"] / most["limit"]).between(0.5, 1.1).all()
    assert most["limit"].round(4).tolist() == [0.227, 0.1218, 0.0119, 0.0017]


@pytest.mark.further
@pytest.mark.slow
def test_hardly_a_single_audit_finds_what_the_expected_one_misses():
    """Fault: no audit at all was said to find a factor of 1.5, where the luckiest seventh does."""
    best = luck_table(3.0).groupby("leak")["value"].max()
    assert 0.03 < best.iloc[0] < 0.05 and 0.11 < best.iloc[1] < 0.15
    rng, sigma = np.random.default_rng(0), bounds.gaussian_noise_multiplier(3.0)
    for leak, canaries, guesses in ((2, 1000, 70), (2, 5000, 200), (1.5, 20_000, 256)):
        found = []
        for _ in range(400):
            coins = rng.random(canaries) < 0.5
            scores = leak * coins + sigma * rng.standard_normal(canaries)
            right = bounds.count_correct(scores, coins, (guesses // 2, guesses // 2))
            p = bounds.one_run_p_value(canaries, guesses, right, 3.0, bounds.DELTA)
            found.append(p < 0.05)
        assert abs(np.mean(found) - share_refuting(leak, canaries, guesses, 3.0)) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("clip", [None, clips_each_tensor, clips_at_the_median])
def test_the_review_finds_both_clips_that_the_audit_misses(clip):
    """Fault: the library's own clip blamed, or a step that never calls the one that it is given."""
    assert ("sensitivity" in review_clip(clip, 4.0).broken) == (clip is not None)
