"""Notebook 12: the simulated audit states what it spends, and errs as seldom as it says."""

import numpy as np
import pytest

from fedlora_course.lesson_12.clips import clips_at_the_median, clips_each_tensor, review_clip
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
@pytest.mark.parametrize("clip", [None, clips_each_tensor, clips_at_the_median])
def test_the_review_finds_both_clips_that_the_audit_misses(clip):
    """Fault: the library's own clip blamed, or a step that never calls the one that it is given."""
    assert ("sensitivity" in review_clip(clip, 4.0).broken) == (clip is not None)
