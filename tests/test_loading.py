"""Libraries are loaded without walks of the garbage collector, and the collector works on."""

import gc
import subprocess
import sys

import pytest

from fedlora_lab.loading import undisturbed


def test_the_collector_rests_within_and_is_as_before():
    before = gc.get_freeze_count()
    with undisturbed():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), undisturbed():
        raise ImportError
    assert gc.isenabled()
    gc.disable()
    try:
        with undisturbed():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert gc.get_freeze_count() == before, "nothing was loaded, so nothing leaves the collector's sight"


def test_what_a_run_needs_leaves_its_sight():
    script = "import gc, fedlora_lab as fl; fl.run; assert gc.isenabled(); print(gc.get_freeze_count())"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(shown) > 200_000
