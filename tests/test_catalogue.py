"""The table of methods: what it says of the rows, and that what it shows as measured was measured."""

import math
import runpy
from pathlib import Path
from typing import Any

import pytest

import fedlora_lab as fl
from fedlora_lab import catalogue, methods

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "measure_methods.py"


def test_every_row_was_measured():
    found = catalogue.measurements()["methods"]
    assert set(found) == {*methods.ALL, *methods.VARIANTS}


@pytest.mark.parametrize("slug", ["ffa-lora", "fedex-lora", "fedask", "as-lora"])
def test_the_measurement_is_what_the_script_measures(slug):
    """Bytes to the byte; a deviation up to the rounding of another processor."""
    kept = catalogue.measurements()["methods"][slug]
    found = runpy.run_path(str(SCRIPT))["measured"](methods.ALL[slug])
    assert (found["up"], found["down"]) == (kept["up"], kept["down"])
    assert found["deviation"] == pytest.approx(kept["deviation"], rel=1e-3, abs=1e-6)


def test_exact_rows_are_exact_as_measured():
    table: Any = fl.methods.table()
    formed = table[~table["deviation"].map(lambda gap: gap is None or math.isnan(gap))]
    assert len(formed) >= 19
    assert list(formed.index[formed["deviation"] < 1e-5]) == list(formed.index[formed["exact"]])


def test_where_noise_enters():
    noise: Any = fl.methods.table()["noise"]
    assert noise["ffa-lora"] == "gradient of B, or the round's change"
    assert noise["deer"].endswith("shaped by the peer")
    assert noise["la-lora"].endswith("then filtered")
    assert "core" in noise["fed-sb"]
    assert "weights" in noise["dp-fedlora"]


def test_a_row_of_one_s_own_was_not_measured():
    mine = methods.FedLoRA.replace(name="mine", own_ranks=0.25)
    row = fl.methods.table([mine]).loc["mine"]
    assert math.isnan(row["up"])
    assert row["share"] == "75% of the ranks"
