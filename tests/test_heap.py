"""Pages that a process takes anew, with and without being told to keep what it frees."""

import platform
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from pages import taken

from fedlora_lab import heap
from fedlora_lab.cli import main
from fedlora_lab.study import work

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's")
STEPS = """
import sys
from fedlora_lab import heap
took, brought = {asked} and heap.keep_freed(), "torch" in sys.modules
sys.path.insert(0, {here!r})
from pages import taken
print(took, taken(), brought)
"""


def fresh_process(asked: bool) -> tuple[bool, int]:
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(asked=asked, here=str(Path(__file__).parent))],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "OMP_NUM_THREADS": "1"},  # nothing that tells the allocator the same
    )
    took, found, torch = done.stdout.split()
    assert torch == "False", "asking costs no library"
    return took == "True", int(found)


def test_what_is_freed_is_kept():
    """Three times forty megabytes are some 30,000 pages; kept, none of them is taken again."""
    assert fresh_process(False)[1] > 20_000
    took, found = fresh_process(True)
    assert took and found < 200


def test_workers_of_a_study_keep_it(monkeypatch):
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=work._begin) as pool:
        assert pool.submit(taken).result() < 200


def test_commands_keep_it(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(heap, "keep_freed", lambda: asked.append(True))
    with pytest.raises(SystemExit, match="0"):
        main(["methods"])
    assert asked == [True] and "fedlora" in capsys.readouterr().out
