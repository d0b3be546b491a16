"""The widgets in a real JupyterLab, driven as a reader drives them: one journey for each kind."""

import re
from typing import Any

import pandas as pd
import pytest
from lab import Page, cut_off, image_bytes, wait_for_image

SETUP = """
import threading
from dataclasses import replace
import numpy as np
import pandas as pd
import fedlora_lab as fl
from fedlora_lab.plots.style import paper, picture
rng = np.random.default_rng(0)
three = [("fedlora", 0.7), ("ffa-lora", 0.8), ("deer", 0.75)]
cells = [("made", slug, e, 0.1, s, rng.normal(m, 0.02))
         for slug, m in three for e in (1.0, 3.0) for s in range(5)]
scores = pd.DataFrame(cells, columns=["study", "method", "epsilon", "lr", "seed", "accuracy"])
task = fl.tasks.digits(clients=3, seed=1)
settings = {"privacy": fl.Privacy(delta=1e-4)}
plan = fl.Plan(rounds=2, local_steps=2, batch=8)
def plot(width):
    with paper():
        figure = picture(3, 2)
        ax = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        ax.set(xlim=(0, 10), ylim=(0, 1))
        ax.barh([0.5], [width], height=0.4)
    return figure, f"The bar is {width} long."
"""
CELLS = {
    "setup": SETUP,
    "results": "fl.course.lesson(9).results_explorer(scores)",
    "bar": "fl.widgets.interactive_figure(plot, width=(3, 0, 10))",
    "live": "run = fl.widgets.live(task, plan=plan.replace(rounds=100), **settings); run",
    "short": "fl.widgets.live(task, plan=plan, **settings)",
    "failing": """
def loss(outputs, y):
    raise RuntimeError("planted failure")
fl.widgets.live(replace(task, loss=loss), **settings)
""",
    "comparison": """
rates = {8: {"fedlora": 0.3, "ffa-lora": 0.3}, None: {"ffa-lora": 0.1}}
fl.widgets.method_comparison(task, rates, plan=plan, **settings)
""",
    "composer": "fl.widgets.method_composer(task, plan=plan)",
    "probe": "print([t.name for t in threading.enumerate()], run._ticks == run.progress.value)",
}


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """An open notebook with all cells, the first of which has run."""
    cells = [cell.strip() for cell in CELLS.values()]
    page = Page(browser, lab, lab.write("widgets.ipynb", cells))
    page.run(0)
    yield page
    page.page.close()


@pytest.fixture
def show(notebook):
    """Runs a cell by name and gives its output; the console stays quiet, nothing jumps."""
    notebook.dress("Light", 1280, 1100)
    notebook.command("notebook:clear-all-cell-outputs")
    notebook.errors.clear()

    def run(name):
        output = notebook.run(list(CELLS).index(name))
        if name != "probe":
            output.locator("img").first.wait_for()
        return output

    yield run
    assert notebook.errors == []


def status(output):
    return output.locator("[role=status], [role=alert]").first


def until(output, pattern):
    """Wait for the first line of words to match; gives it."""
    status(output).filter(has_text=re.compile(pattern)).wait_for()
    return status(output).inner_text()


def press(output, name):
    output.get_by_role("button", name=name).click()


def drag(output, index, key="ArrowRight"):
    """Move a slider by the keyboard."""
    output.locator(".noUi-handle").nth(index).focus()
    output.page.keyboard.press(key)


def change(output, act):
    """Do something that changes the figure."""
    handle = output.locator("img").first.element_handle()
    before = handle.get_attribute("src")
    act()
    output.page.wait_for_function("([e, src]) => e.src !== src", arg=[handle, before])


def threads(show):
    """Names of the kernel's threads; the bar of the last live run shows its steps."""
    text = show("probe").inner_text()
    assert text.strip().endswith("True")
    return text


def settle(notebook):
    """Let the page come to rest, then watch for jumps."""
    notebook.page.wait_for_timeout(300)
    notebook.watch_layout()


def fits(notebook, *outputs):
    """Nothing has jumped, and nothing is cut off on a narrow page in either theme."""
    assert notebook.jumps() == []
    for theme in ("Light", "Dark"):
        notebook.dress(theme, width=1024)
        for output in outputs:
            output.scroll_into_view_if_needed()
            assert cut_off(output) == []


def test_the_results_explorer_follows_the_keyboard_and_fits(notebook, show):
    """It moves and comes back with Reset."""
    output = show("results")
    settle(notebook)
    image, sentence = output.locator("img").first, status(output).inner_text()
    first = image_bytes(image)
    change(output, lambda: output.locator("select").last.select_option(index=1))
    assert image_bytes(image) != first
    press(output, "Reset")
    wait_for_image(image, first)
    output.get_by_text(sentence).wait_for()
    fits(notebook, output)


def test_a_live_run_starts_pauses_stops_and_leaves_no_thread(notebook, show):
    output = show("live")
    bar = output.locator(".progress-bar")
    share = "e => e.offsetWidth / e.parentElement.offsetWidth"

    def beyond(value):
        handle = bar.element_handle()
        notebook.page.wait_for_function(f"([e, x]) => ({share})(e) > x", arg=[handle, value])

    assert bar.evaluate(share) == 0 and until(output, "^ready") == "ready"
    settle(notebook)
    output.get_by_role("button", name="Start").focus()
    notebook.page.keyboard.press("Enter")
    beyond(0.01)
    assert "left" in until(output, "^running")
    press(output, "Pause")
    until(output, "^paused")
    done = bar.evaluate(share)
    assert output.get_by_role("button", name="Start").is_disabled()
    press(output, "Resume")
    beyond(done + 0.01)
    assert notebook.jumps() == []
    again = show("live")  # the cell once more ends the run of the one before
    assert until(again, "ready") == "ready"
    assert "live run" not in threads(show)
    failed = show("failing")
    press(failed, "Start")
    line = failed.get_by_role("alert")
    line.wait_for()
    assert line.inner_text() == "RuntimeError: planted failure"
    assert line.bounding_box()["height"] < 30
    assert "Traceback" not in notebook.page.locator(".jp-Notebook").inner_text()


def test_a_finished_run_can_be_saved(notebook, show):
    """All its controls have labels and are reached by the keyboard."""
    output = show("short")
    for name in ("method", "privacy ε", "learning rate", "rounds", "seed", "this run as a cell"):
        assert output.get_by_text(name, exact=True).count() == 1
    output.locator("select").first.focus()
    focused, reached = "document.activeElement.innerText", []
    for _ in range(12):
        reached.append(str(notebook.page.evaluate(focused)).strip())
        notebook.page.keyboard.press("Tab")
    assert {"Start", "Reset"} <= set(reached)
    drag(output, 1)
    settle(notebook)
    press(output, "Start")
    until(output, "^finished · round 3 of 3")
    output.get_by_text("RoLoRA after round 3 of 3").wait_for()
    with notebook.page.expect_download() as file:
        output.get_by_role("link", name="digits-rolora.csv").click()
    frame: Any = pd.read_csv(file.value.path())
    assert frame["round"].max() == 3 and set(frame["method"]) == {"rolora"}
    assert "rounds=3" in output.locator("textarea").input_value()
    fits(notebook, output)


def test_a_comparison_fills_run_by_run_while_the_page_answers(notebook, show):
    output, bar = show("comparison"), show("bar")
    image = output.locator("img")
    first = image_bytes(image)
    settle(notebook)
    press(output, "Start")
    until(output, "finished · 6 of 6 runs done")
    output.get_by_text(re.compile("Ahead so far, after 6 runs")).wait_for()
    press(output, "Reset")
    wait_for_image(image, first)
    for slider in range(2):
        drag(output, slider, "End")
    until(output, "ready · 15 runs of 30 rounds")
    press(output, "Start")
    until(output, "^running · (FedLoRA|FFA-LoRA) at ε = ")
    for length in range(4, 11):
        change(bar, lambda: drag(bar, 0))
        bar.get_by_text(f"The bar is {length} long.").wait_for()
    assert status(output).inner_text().startswith("running")
    press(output, "Stop")
    until(output, "stopped")
    fits(notebook, output)


def test_the_composer_makes_methods_and_trains_them(notebook, show):
    output = show("composer")
    image = output.locator("img")
    first = image_bytes(image)
    settle(notebook)
    for label, option, words in (
        ("who moves", "B", "This is FFA-LoRA"),
        ("who moves", "*", r"No valid method: train='\*'"),
        ("begin from", "LA-LoRA", "This is LA-LoRA"),
    ):
        text = output.page.get_by_text(label, exact=True)
        row = output.locator(".widget-inline-hbox", has=text)
        row.locator("select").select_option(label=option)
        until(output, words)
        assert output.get_by_role("button", name="Start").is_disabled() == (option == "*")
    press(output, "Reset")
    wait_for_image(image, first)
    press(output, "Start")
    ended = r"^After round 2: FedLoRA 0\.\d+ .*my method 0\.\d+"
    output.get_by_text(re.compile(ended)).wait_for()
    output.get_by_text("finished · round 2 of 2").wait_for()
    fits(notebook, output)
