"""The workbench in a real JupyterLab, driven as a reader drives it."""

import re

import pytest
from jupyter_lab import THEMES, accessibility_faults, cut_off, faintest_line, open_notebook

CELLS = {
    "setup": """
import time
import fedlora_course as course
import fedlora_lab as fl
task = fl.tasks.digits(clients=3, seed=1)
settings = {"privacy": fl.Privacy(delta=1e-4)}
plan = fl.Plan(rounds=3, local_steps=2, batch=8)
long = plan.replace(rounds=1000, local_steps=10)  # not over before Pause is pressed
""",
    "short": "run = course.widgets.live(task, plan=plan, **settings); run",
    "live": "run = course.widgets.live(task, plan=long, **settings); run",
    "busy": "time.sleep(3)",
}


PLOT_SHARE = """() => {
    const svg = document.querySelector('.fl-bench [data-panel=main]');
    const plot = svg.querySelector('clipPath rect');
    return svg.clientWidth < 340 && plot.getAttribute('width') > 0.4 * svg.clientWidth;
}"""


@pytest.fixture(scope="module")
def notebook(browser, lab):
    with open_notebook(browser, lab, "runs.ipynb", CELLS.values()) as page:
        page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        yield page


@pytest.fixture
def show(notebook):
    """Runs a cell by name and gives its output; the console stays quiet."""
    notebook.dress("Light", 1280, 1100)
    notebook.command("notebook:clear-all-cell-outputs")
    notebook.errors.clear()

    def run(name):
        output = notebook.run(list(CELLS).index(name))
        output.locator(".fl-bench .facts, .fl-bench dt").first.wait_for()
        return output

    yield run
    assert notebook.errors == []


def ended(output, words="finished"):
    output.locator(".state").filter(has_text=words).wait_for()


def press(output, name):
    output.get_by_role("button", name=name, exact=False).first.click()


def labels(output):
    return output.locator("td [data-label]").all_inner_texts()


def test_a_reader_runs_compares_sweeps_and_copies(notebook, show):
    output = show("short")
    assert output.locator(".state").inner_text() == "ready"
    notebook.page.wait_for_timeout(300)
    notebook.watch_layout()
    press(output, "Start")
    ended(output)
    first = re.compile(r"RoLoRA after round 3 of 3: accuracy 0\.\d+ \(0\.\d+ before\)")
    output.locator(".say").filter(has_text=first).wait_for()
    assert labels(output) == ["RoLoRA"]
    assert float(output.locator(".fl-bench").get_attribute("data-lag")) < 500
    output.locator("select").first.select_option("fedlora")  # nothing that was run is relabelled
    output.locator(".rate").filter(has_text="from public numbers").wait_for()
    assert labels(output) == ["RoLoRA"] and first.match(output.locator(".say").inner_text())
    output.locator("[data-slide=epsilon]").focus()
    notebook.page.keyboard.press("End")
    output.locator(".rate").filter(has_text="no noise depends on it").wait_for()
    assert output.locator("[data-knob=epsilon]").input_value() == "∞"
    press(output, "Start")
    output.locator("td [data-label]").nth(1).wait_for()
    ended(output)
    assert [label.split(" η")[0] for label in labels(output)] == ["RoLoRA ε = 8", "FedLoRA ε = ∞"]
    assert output.locator("[data-panel=main] polyline").count() >= 3
    assert notebook.jumps() == []

    press(output, "Work")
    output.locator("[data-knob=rounds]").fill("two")
    notebook.page.keyboard.press("Enter")
    expected = re.compile("^expected a whole number")
    output.locator(".knob.wrong small").filter(has_text=expected).wait_for()
    output.locator("[data-knob=rounds]").fill("2")
    notebook.page.keyboard.press("Enter")
    output.locator(".knob.wrong").wait_for(state="detached")
    output.locator("[data-sweep=values]").fill("2, 8")
    output.locator("[data-do=run_sweep]").click()
    # By the row that its last run adds: a short sweep may be over before a busy page is looked at.
    output.locator("td [data-label]").nth(3).wait_for()
    ended(output)
    output.locator("polygon").first.wait_for(state="attached")  # drawn with a row's second seed
    assert len(labels(output)) == 4

    row = output.locator("tbody tr")
    row.nth(2).get_by_role("button", name="delete").click()
    output.page.wait_for_function(
        "area => area.querySelectorAll('tbody tr').length === 3", arg=output.element_handle()
    )
    row.nth(1).get_by_role("button", name="cell").click()
    output.locator(".told").filter(has_text="copied").wait_for()
    cell = notebook.page.evaluate("navigator.clipboard.readText()")
    assert output.locator("textarea").input_value() == cell
    assert "'fedlora'" in cell and "privacy = None" in cell
    for theme, rules in THEMES.items():
        notebook.dress(theme, width=1024)
        assert accessibility_faults(notebook.page, ".fl-bench", rules) == []
        assert faintest_line(notebook.page, ".fl-bench") >= 3
        assert cut_off(output) == []
    # On a phone the lines have more room than their names beside them.
    narrow = "bench => { bench.parentElement.style.maxWidth = '340px'; }"
    output.locator(".fl-bench").evaluate(narrow)
    notebook.page.wait_for_function(PLOT_SHARE)
    press(output, "Reset")
    output.locator("td").filter(has_text="No run yet").wait_for()


def test_a_sweep_stands_over_its_numbers_and_no_single_run_on_its_line(notebook, show):
    """Fault: rates stood side by side whatever their distance, and a run at another rate that was
    started alone became a point of the sweep's line. One seed has no band and an open dot.
    """
    output = show("short")
    press(output, "Work")
    output.locator("[data-knob=rounds]").fill("1")
    notebook.page.keyboard.press("Enter")
    output.locator("[data-knob=lr]").fill("0.4")
    notebook.page.keyboard.press("Enter")
    press(output, "Start")
    output.locator("td [data-label]").first.wait_for()
    ended(output)
    output.locator("[data-sweep=key]").select_option("lr")
    output.locator("[data-sweep=values]").fill("0.1, 0.2, 1.6")
    output.locator("[data-sweep=seeds]").fill("1")
    output.locator("[data-do=run_sweep]").click()
    output.locator("td [data-label]").nth(3).wait_for()
    ended(output)
    panel = output.locator("[data-panel=main]")
    panel.locator("text").filter(has_text=re.compile("^1.6$")).wait_for()
    places = """all => all.map(e => (e.getAttribute("points") ?? e.getAttribute("d"))
        .match(/[\\d.]+,/g).map(parseFloat))"""
    (line,) = [x for x in panel.locator("polyline").evaluate_all(places) if len(x) == 3]
    octave = line[1] - line[0]
    assert line[2] - line[1] == pytest.approx(3 * octave, abs=0.5)
    dots = panel.locator("path[d*=h0]").evaluate_all(places)
    single = sorted({x[0] for x in dots if len(x) == 1})  # a line marks its last point once more
    assert single == [pytest.approx(line[1] + octave, abs=0.5), line[2]]
    assert panel.locator("polygon").count() == 0
    open_dots = panel.locator("path[d*=h0][style*='--fl-card']")
    assert open_dots.count() == 6, "a ring and a hole: of the sweep, of its end, of the run alone"


def test_it_pauses_and_answers_while_the_kernel_is_busy(notebook, show):
    output = show("live")
    press(output, "Start")
    ended(output, re.compile(r"running · \d+ s left"))
    press(output, "Pause")
    ended(output, "paused")
    assert output.get_by_role("button", name="Start").is_disabled()
    press(output, "Resume")
    ended(output, "running")
    notebook.page.evaluate(  # the kernel is busy: knobs turn and panels are drawn all the same
        """index => { const book = window.jupyterapp.shell.currentWidget.content;
            book.activeCellIndex = index;
            window.jupyterapp.commands.execute('notebook:run-cell'); }""",
        list(CELLS).index("busy"),
    )
    output.locator("[data-slide=epsilon]").focus()
    notebook.page.keyboard.press("End")
    assert output.locator("[data-knob=epsilon]").input_value() == "∞"
    output.locator(".rate").filter(has_text="no noise depends on it").wait_for()
    press(output, "Reset")
    output.locator("td").filter(has_text="No run yet").wait_for()
