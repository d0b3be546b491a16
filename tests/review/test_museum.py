"""The museum: every mistake is found by its check, and sound code is blamed by none."""

import pytest
from sound_steps import SOUND, Sound

from fedlora_lab.review.claims import CHECKS
from fedlora_lab.review.museum import MISTAKES, Mistake
from fedlora_lab.review.review import Review, step


def reviewed(one: Mistake | Sound) -> Review:
    return step(one.step, one.data(), one.claims, loader=one.loader, draws=16)


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.name)
def test_every_mistake_is_found_by_its_check(mistake):
    """Fault: a check that no longer sees what it was written for."""
    assert mistake.broken <= reviewed(mistake).broken


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Full backward hook")  # of Opacus' hooks, by PyTorch
@pytest.mark.parametrize("name", SOUND)
def test_sound_code_of_any_library_is_not_blamed(name):
    """Fault: a check that blames what another library does rightly, or cannot call it."""
    found = reviewed(SOUND[name])
    assert found.sound, found
    assert found["reach"].number == pytest.approx(1, abs=2e-3)


def test_every_exhibit_says_where_it_is_from():
    """Fault: a mistake that nobody reported, or two of one name."""
    assert len({one.name for one in MISTAKES}) == len(MISTAKES) >= 14
    for one in MISTAKES:
        assert one.source.startswith("https://") and one.seen in ("thread", "code", "text")
        assert one.broken <= {*CHECKS} and one.words.endswith(".")
