"""The benchmarks at toy size: every peer runs, and the page is that of the numbers."""

import re

import pandas as pd
import pytest
from places import ROOT

import fedlora_lab as fl
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


def test_every_row_ended_on_the_gpu_as_on_the_cpu():
    """All rows of the committed frame are in the table, and the comparison has its columns."""
    table = pd.read_csv(ROOT / "benchmarks" / "results" / "gpu-nvidia-h200-rows.csv")
    # A row that is added later, by whoever has no such GPU, was not compared.
    assert {*table["method"]} <= {*fl.methods.ALL} and len(table) >= 20
    assert (table["accuracy"] == table["accuracy_cpu"]).all()
    apart = table.set_index("method")["factors_apart"]
    assert apart["fed-zo"] < 3e-5 and apart.drop("fed-zo").max() < 1e-6
    here, accuracy = gpu.ends_of("rolora", "cpu")
    assert here.isfinite().all() and here.norm() > 1 and 0.5 < accuracy < 0.9


def test_the_committed_page_is_that_of_the_committed_turns():
    folder = ROOT / "benchmarks" / "results"
    kept = (folder / "README.md").read_text(encoding="utf-8")
    assert page(pd.read_csv(folder / "turns.csv"), kept.split("\n\n")[2]) == kept
