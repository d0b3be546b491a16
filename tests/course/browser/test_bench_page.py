"""The bench in a real JupyterLab, driven as a reader drives it."""

import re

import pytest
from jupyter_lab import THEMES, accessibility_faults, cut_off, faintest_line, open_notebook

CELLS = [
    """
import fedlora_course as course
import fedlora_lab as fl
task = fl.tasks.digits(clients=3, seed=1)
plan = fl.Plan(rounds=3, local_steps=2, batch=8, lr=0.2)
privacy = fl.Privacy(delta=1e-4)
""",
    "course.widgets.live(task, plan=plan, privacy=privacy, rates=(0.1, 0.2, 1.6))",
]
PLACES = """all => all.map(e => (e.getAttribute("points") ?? e.getAttribute("d"))
    .match(/[\\d.]+,/g).map(parseFloat))"""


@pytest.fixture
def bench(browser, lab):
    with open_notebook(browser, lab, "bench.ipynb", CELLS) as notebook:
        notebook.dress("Light", 1440, 900)
        output = notebook.run(1)
        output.locator(".known b").first.wait_for()
        yield notebook, output
        assert notebook.errors == []


def press(output, deed, rows):
    output.locator(f"[data-do={deed}]").first.click()
    output.locator("td [data-label]").nth(rows - 1).wait_for()
    output.locator(".act .state").filter(has_text="finished").wait_for()


def test_a_reader_trains_two_methods_sweeps_and_copies(bench):
    """Knob and curve stand on one screen; a sweep stands over its numbers, and no single run on its
    line. One seed has no band.
    """
    notebook, output = bench
    notebook.page.wait_for_timeout(300)
    notebook.watch_layout()
    press(output, "train", 2)
    labels = output.locator("td [data-label]")
    assert labels.all_inner_texts() == ["FedLoRA", "FFA-LoRA"]
    assert output.locator(".fl-bench svg polyline").count() == 3, "two curves, and the start"
    assert output.locator("td .parts").count() == 2
    shares = output.locator("td .parts").first.get_attribute("aria-label")
    assert re.match(r"noise on B \d+ %, noise × noise \d+ %, what was learned", shares)

    press(output, "sweep", 8)
    lines = [
        x for x in output.locator(".fl-bench svg polyline").evaluate_all(PLACES) if len(x) == 3
    ]
    assert len(lines) == 2
    for line in lines:
        octave = line[1] - line[0]
        assert line[2] - line[1] == pytest.approx(3 * octave, abs=0.5)
    assert output.locator(".fl-bench svg polygon").count() == 0
    dots = output.locator(".fl-bench svg path[d*=h0]").evaluate_all(PLACES)
    assert {len(places) for places in dots} == {1, 3}, "of the runs alone, and of the sweep"
    box = output.locator(".fl-bench").bounding_box()
    panel = notebook.page.locator(".jp-WindowedPanel-outer").first.bounding_box()
    assert box["height"] < panel["height"] <= 779
    assert notebook.jumps() == []
    output.locator("summary").first.click()
    knob = output.locator("[data-knob=seeds]").bounding_box()
    figure = output.locator(".fl-bench svg").bounding_box()
    assert knob["y"] + knob["height"] - figure["y"] < panel["height"]

    output.locator("[data-knob=protection]").select_option("clip")
    output.locator(".known").filter(has_text="no noise").wait_for()
    assert output.locator("[data-knob=epsilon]").is_disabled()
    output.locator("[data-knob=lr]").focus()
    notebook.page.keyboard.press("End")
    press(output, "train", 10)
    assert labels.nth(8).inner_text() == "FedLoRA clip, no noise η = 6.4"
    output.locator("tr").nth(9).get_by_role("button", name="code").click()
    code = output.locator("textarea").input_value()
    assert "lr=6.4" in code and "noise_multiplier=0.0" in code
    output.locator("tr").nth(1).get_by_role("button", name="forget").click()
    labels.nth(9).wait_for(state="detached")
    for theme, rules in THEMES.items():
        notebook.dress(theme, width=1024)
        assert accessibility_faults(notebook.page, ".fl-bench", rules) == []
        assert faintest_line(notebook.page, ".fl-bench") >= 3
        assert cut_off(output) == []
