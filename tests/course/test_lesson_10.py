"""Notebook 10: servers given the same uploads, what exactness costs, the noise that it keeps."""

from typing import Any

import numpy as np
import pytest
from frames import words

import fedlora_lab as fl
from fedlora_lab.course.lesson_10 import figures
from fedlora_lab.course.lesson_10.figures import cost_and_deviation
from fedlora_lab.plots import style

LAYER = "blocks.1.value"


@pytest.fixture(scope="module")
def seen():
    task, found = fl.tasks.digits(clients=4, seed=3), {}
    plan = fl.Plan(rounds=2, local_steps=2, batch=8, lr=0.1)
    for slug in ("fedlora", "ffa-lora", "flexlora", "hetlora"):
        watched, rounds = fl.measures.record_aggregation(fl.methods.get(slug))
        records = list(fl.run(task, watched, None, plan))
        found[slug] = rounds[-1], records[-1]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("slug", ["fedlora", "flexlora", "hetlora"])
def test_server_deviation_is_that_of_the_run(seen, slug):
    given, record = seen[slug]
    measured = {(measure, layer): value for layer, measure, value in record.rows}
    served = fl.measures.server_deviation(given, fl.methods.get(slug), LAYER).relative
    expected = measured["deviation_relative", LAYER]
    assert served == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert served > 1e-3
    for exact in (fl.methods.FedExLoRA, fl.methods.FLoRA.aggregate):
        assert fl.measures.server_deviation(given, exact, LAYER).relative < 1e-6


@pytest.mark.slow
def test_the_spectrum_is_that_of_the_matrix(seen):
    """And what a truncation to the rank loses is its tail."""
    for slug in ("fedlora", "ffa-lora"):
        a, b = (x.double().numpy() for x in seen[slug][0].factors(LAYER))
        mean = np.mean([b[k] @ a[k % len(a)] for k in range(4)], axis=0)
        found = fl.measures.mean_spectrum(seen[slug][0], LAYER)
        np.testing.assert_allclose(found, np.linalg.svd(mean, compute_uv=False), atol=1e-12)
        assert (found > 1e-9 * found[0]).sum() == (16 if slug == "fedlora" else 4)
    values = fl.measures.mean_spectrum(seen["fedlora"][0], LAYER)
    lost = fl.measures.server_deviation(seen["fedlora"][0], fl.methods.FlexLoRA, LAYER)
    assert lost.norm == pytest.approx(np.linalg.norm(values[4:]), rel=1e-4)
    assert lost.mean == pytest.approx(np.linalg.norm(values), rel=1e-6)


@pytest.mark.slow
def test_sketch_errors_fall_to_the_best_of_the_rank(seen):
    both, common = (
        fl.measures.sketch_errors(seen[slug][0], LAYER, (2, 4, 16), 4).groupby("width")["value"]
        for slug in ("fedlora", "ffa-lora")
    )
    best = fl.measures.server_deviation(seen["fedlora"][0], fl.methods.FlexLoRA, LAYER).relative
    assert both.nunique()[2] == 4, "each seed draws its own sketch"
    assert both.mean()[2] > both.mean()[4] > both.mean()[16] == pytest.approx(best, rel=1e-3)
    assert both.min().min() >= best * (1 - 1e-3)
    assert common.max()[[4, 16]].max() < 1e-6 < 0.05 < common.min()[2]


def test_cost_and_deviation_kinds():
    table: Any = fl.methods.table()
    found = cost_and_deviation(table, "down").set_index("method")
    assert found.loc["fedex-lora", "bytes"] == table.loc["fedex-lora", "down"]
    assert found.loc["fedsa-lora", "kind"] == found.loc["local", "kind"] == "own"
    assert set(found.index[found["kind"] == "exact"]) == set(table.index[table["exact"]])
    both = cost_and_deviation(table).set_index("method")["bytes"]
    assert (both == table["up"] + table["down"]).all()
    rows = [fl.methods.FFA.replace(name="mine"), fl.methods.FFA]
    mine = cost_and_deviation(fl.methods.table(rows))
    assert list(mine["method"]) == ["ffa-lora"], "what was not measured has no place"


@pytest.mark.parametrize("way", ["both", "down"])
def test_the_map_draws_every_row(way):
    figure, found = figures.exactness_map(way=way), cost_and_deviation(fl.methods.table(), way)
    for kind, ax in zip(("exact", "off", "own"), figure.axes, strict=True):
        rows = found[found["kind"] == kind]
        lines: Any = [line for line in ax.lines if line.get_marker() not in ("None", None, "")]
        x, y = np.sort([line.get_xydata()[0] for line in lines], axis=0).T
        np.testing.assert_allclose(x, sorted(rows["bytes"].clip(lower=ax.get_xlim()[0])))
        shown = " ".join(words(figure).split())  # a long label is broken into lines
        assert all(style.name(slug) in shown for slug in rows["method"])
        if kind == "off":
            np.testing.assert_allclose(y, sorted(rows["deviation"]))


def test_the_figure_of_mean_products():
    (ax,) = figures.mean_spectra({"one": [2.0, 1.0, 0.2, 0.0]}, rank=2).axes
    np.testing.assert_allclose(np.asarray(ax.lines[0].get_ydata(), float), [1, 0.5, 0.1])
