"""The live run and a dial in a real JupyterLab, driven as a reader drives them."""

import re
from typing import Any

import pandas as pd
import pytest
from dials import Repaints, cut_off

CELLS = {
    "setup": """
import threading
from dataclasses import replace
import fedlora_lab as fl
from fedlora_lab.plots.style import paper, picture
task = fl.tasks.digits(clients=5, seed=1)
settings = {"privacy": fl.Privacy(delta=1e-4)}
def plot(width):
    with paper():
        figure = picture(3, 2)
        ax = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        ax.set(xlim=(0, 10), ylim=(0, 1))
        ax.barh([0.5], [width], height=0.4)
    return figure, f"The bar is {width} long."
""",
    "live": "run = fl.widgets.live(task, plan=fl.Plan(rounds=100), **settings); run",
    "short": "run = fl.widgets.live(task, plan=fl.Plan(rounds=3, local_steps=2), **settings); run",
    "failing": """
calls = []
def loss(outputs, y):
    calls.append(1)
    if len(calls) > 3:
        raise RuntimeError("planted failure")
    return task.loss(outputs, y)
fl.widgets.live(replace(task, loss=loss), **settings)
""",
    "probe": """print(sum(t.name == "live run" for t in threading.enumerate()), run._ticks, run.progress.value)""",
    "dial": "fl.widgets.dial(plot, width=(3, 0, 10))",
}
ORDER = list(CELLS)


class Widget:
    """A live run on the page."""

    def __init__(self, page, output):
        self.page, self.output = page, output
        self.button("Start").wait_for()

    def button(self, name):
        return self.output.get_by_role("button", name=name)

    def status(self):
        return self.output.locator("[role=status], [role=alert]").first.inner_text()

    def until(self, pattern):
        """Wait for the status line to match; gives it."""
        place = self.output.locator("[role=status], [role=alert]").first
        place.filter(has_text=re.compile(pattern)).wait_for()
        return place.inner_text()

    def progress(self):
        """Share of the bar that is filled."""
        return self.output.locator(".progress-bar").evaluate("e => e.offsetWidth / e.parentElement.offsetWidth")

    def until_progress(self, beyond):
        bar = self.output.locator(".progress-bar").element_handle()
        test = "([e, beyond]) => e.offsetWidth / e.parentElement.offsetWidth > beyond"
        self.page.wait_for_function(test, arg=[bar, beyond])


def probe(show):
    """Threads of live runs, local steps done, value of the progress bar, as the kernel counts them."""
    return [int(word) for word in show("probe").inner_text().split() if word.isdigit()]


def test_start_pause_resume_stop(notebook, show):
    widget = Widget(notebook.page, show("live"))
    assert widget.progress() == 0
    notebook.watch_layout()
    widget.button("Start").focus()
    notebook.page.keyboard.press("Enter")
    widget.until_progress(0.01)
    assert widget.until("^running").count("left")
    widget.button("Pause").click()
    widget.until("^paused")
    done = widget.progress()
    notebook.page.wait_for_timeout(600)
    assert widget.progress() == done
    assert widget.button("Start").is_disabled()
    widget.button("Resume").click()
    widget.until_progress(done + 0.01)
    widget.button("Stop").click()
    widget.until("^stopped")
    done = widget.progress()
    assert notebook.jumps() == []
    threads, ticks, shown = probe(show)
    assert threads == 0
    assert ticks == shown
    assert widget.progress() == done


def test_the_figures_change_as_it_trains(notebook, show):
    widget = Widget(notebook.page, show("short"))
    images = widget.output.locator("img")
    before = [images.nth(i).get_attribute("src") for i in range(2)]
    sentence = widget.output.get_by_text("Press Start")
    assert "accuracy" in sentence.inner_text()
    widget.button("Start").click()
    widget.until("^finished · round 3 of 3")
    widget.output.get_by_text("after round 3 of 3").wait_for()
    assert all(images.nth(i).get_attribute("src") != before[i] for i in range(2))
    with notebook.page.expect_download() as file:
        widget.output.get_by_role("link", name="Save the frame").click()
    frame: Any = pd.read_csv(file.value.path())
    assert frame["round"].max() == 3
    assert set(frame["method"]) == {"rolora"}
    assert "fl.run(task, method, privacy, plan" in widget.output.locator("textarea").input_value()


def test_a_control_that_moves_relabels_nothing(notebook, show):
    widget = Widget(notebook.page, show("short"))
    widget.button("Start").click()
    widget.until("^finished")
    widget.output.get_by_text("RoLoRA after round 3 of 3").wait_for()
    cell = widget.output.locator("textarea").input_value()
    widget.output.locator("select").first.select_option(label="FedLoRA")
    assert "round 3 of 3" in widget.until("^controls have changed since: press Start")
    widget.output.get_by_text("tuned for FedLoRA at ε = 8").wait_for()
    assert widget.output.get_by_text("RoLoRA after round 3 of 3").count() == 1
    assert widget.output.locator("textarea").input_value() == cell
    assert widget.output.get_by_role("link", name="digits-rolora.csv").count() == 1
    assert cut_off(widget.output) == []


def test_a_planted_error_is_one_readable_line(notebook, show):
    widget = Widget(notebook.page, show("failing"))
    widget.button("Start").click()
    line = widget.output.get_by_role("alert")
    line.wait_for()
    assert line.inner_text() == "RuntimeError: planted failure"
    assert line.bounding_box()["height"] < 30
    assert "Traceback" not in notebook.page.locator(".jp-Notebook").inner_text()
    assert widget.button("Start").is_enabled()


def test_running_the_cell_again_leaves_no_thread(notebook, show):
    widget = Widget(notebook.page, show("live"))
    widget.button("Start").click()
    widget.until("^running")
    again = Widget(notebook.page, show("live"))
    assert probe(show)[0] == 0
    assert again.status() == "ready"


def test_every_control_is_named_and_reached_by_keyboard(notebook, show):
    widget = Widget(notebook.page, show("short"))
    for name in ("method", "privacy ε", "learning rate", "rounds", "seed", "this run as a cell"):
        assert widget.output.get_by_text(name, exact=True).count() == 1
    widget.output.locator("select").first.focus()
    reached = []
    for _ in range(12):
        reached.append(notebook.page.evaluate("document.activeElement.innerText || document.activeElement.tagName"))
        notebook.page.keyboard.press("Tab")
    text = " ".join(reached)
    assert "Start" in text
    assert "Reset" in text
    rounds = widget.output.locator(".noUi-handle").nth(1)
    rounds.focus()
    notebook.page.keyboard.press("ArrowRight")
    widget.output.locator("textarea").wait_for()
    field = widget.output.locator("textarea").element_handle()
    notebook.page.wait_for_function("e => e.value.includes('rounds=4')", arg=field)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("width", [1280, 1024])
def test_nothing_is_cut_off(notebook, show, screenshots, theme, width):
    notebook.dress(theme, width, height=1100)
    widget = Widget(notebook.page, show("short"))
    widget.button("Start").click()
    widget.until("^finished")
    widget.output.get_by_text("after round 3 of 3").wait_for()
    widget.output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"live-{theme.lower()}-{width}.png")
    assert cut_off(widget.output) == []


def test_a_dial_follows_the_keyboard(notebook, show):
    dial = Repaints(notebook, show("dial"))
    notebook.watch_layout()
    dial.focus("width")
    assert dial.moves("ArrowRight", 7) == [f"The bar is {length} long." for length in range(4, 11)]
    assert dial.moves("ArrowLeft", 10) == [f"The bar is {length} long." for length in range(9, -1, -1)]
    assert notebook.jumps() == []
