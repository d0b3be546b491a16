"""The benchmarks at toy size: every peer runs, and the page is that of the numbers."""

import re

import pandas as pd
import pytest
from places import ROOT

from benchmarks import gpu, peers
from benchmarks.__main__ import page


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Opacus warns of every hook
def test_every_peer_is_measured_on_a_device():
    """In bfloat16, of one client and of two."""
    rows = list(gpu.measure("cpu", tiny=True, models=["decoder of 1 B"]))
    assert [row["step"] for row in rows] == [*peers.PEERS, *peers.PEERS]
    cell = r"\d+ / \d+ / \d+ / \d+ / \d+ \|"
    assert re.search(rf"\| decoder of 1 B \| {cell} {cell}\n", gpu.page(rows, "a processor"))


def test_the_committed_page_is_that_of_the_committed_turns():
    folder = ROOT / "benchmarks" / "results"
    kept = (folder / "README.md").read_text(encoding="utf-8")
    assert page(pd.read_csv(folder / "turns.csv"), kept.split("\n\n")[2]) == kept
