"""The benchmarks at toy size: every peer runs, and the page is that of the numbers."""

import re

import pandas as pd
import pytest
from places import ROOT

from benchmarks import gpu
from benchmarks.__main__ import page


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Opacus warns of every hook
def test_every_peer_is_measured_on_a_device():
    """In bfloat16, of one client and of two."""
    rows = list(gpu.measure("cpu", tiny=True, models=["decoder of 1 B"]))
    assert [row["step"] for row in rows] == [*gpu.STEPS, *gpu.STEPS]
    assert {kind for _, kind, *_ in gpu.MODELS.values()} == {*gpu.TARGETS}
    cell = r"\d+ / \d+ / \d+ / \d+ / \d+ / \d+ \|"
    assert re.search(rf"\| decoder of 1 B \| {cell} {cell}\n", gpu.page(rows, "a processor", "0"))


def test_the_end_of_a_row_is_what_two_devices_compare():
    factors, accuracy = gpu.ends_of("rolora", "cpu")
    assert factors.isfinite().all() and factors.norm() > 1 and 0.5 < accuracy < 0.9


def test_the_committed_page_is_that_of_the_committed_turns():
    folder = ROOT / "benchmarks" / "results"
    kept = (folder / "README.md").read_text(encoding="utf-8")
    assert page(pd.read_csv(folder / "turns.csv"), kept.split("\n\n")[2]) == kept
