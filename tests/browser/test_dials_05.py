"""The widget of notebook 05 in a real JupyterLab: two methods over budgets, trained while one watches."""

import re
import time

import pytest
from dials import PLAIN, note, picture_bytes, wait_for_bytes
from lab import Page

CELLS = {
    "setup": """
import threading
import fedlora_lab as fl
task = fl.tasks.digits(clients=3, seed=1)
rates = {8: {"fedlora": 0.3, "ffa-lora": 0.3}, None: {"ffa-lora": 0.1}}
settings = {"plan": fl.Plan(rounds=2, local_steps=2, batch=8), "privacy": fl.Privacy(delta=1e-4)}
""",
    "plain": PLAIN,
    "duel": "fl.widgets.duel(task, rates, **settings)",
    "probe": "print(sum(t.name == 'duel' for t in threading.enumerate()))",
}
ORDER = list(CELLS)


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook, open, its first cell run."""
    page = Page(browser, lab, lab.write("lesson_05.ipynb", [CELLS[name].strip() for name in ORDER]))
    page.run(0)
    yield page
    page.page.close()


@pytest.fixture
def show(notebook):
    """Run a cell by name and give what it shows; the console must stay quiet."""
    notebook.errors.clear()
    yield lambda name: notebook.run(ORDER.index(name))
    assert notebook.errors == []


def status(output):
    return output.locator("[role=status], [role=alert]").first


def test_the_figure_fills_run_by_run(notebook, show):
    output = show("duel")
    image = output.locator("img")
    before, first = image.get_attribute("src"), picture_bytes(image)
    notebook.watch_layout()
    output.get_by_text("ready · 6 runs of 2 rounds").wait_for()
    output.get_by_role("button", name="Start").focus()
    notebook.page.keyboard.press("Enter")
    output.get_by_text(re.compile("Ahead so far, after 6 runs")).wait_for()
    status(output).filter(has_text="finished").wait_for()
    assert image.get_attribute("src") != before
    output.get_by_role("button", name="Reset").click()
    wait_for_bytes(image, first)
    assert notebook.jumps() == []


def test_the_page_answers_while_it_trains_and_stop_ends_the_thread(notebook, show):
    output = show("duel")
    sliders = output.locator(".noUi-handle")
    waits = []
    sliders.nth(0).focus()
    for move in range(20):
        rounds = 3 + move
        begun = time.monotonic()
        notebook.page.keyboard.press("ArrowRight")
        output.get_by_text(f"ready · 6 runs of {rounds} rounds").wait_for()
        waits.append(time.monotonic() - begun)
    output.get_by_role("button", name="Start").click()
    status(output).filter(has_text=re.compile("^running · (FedLoRA|FFA-LoRA) at ε = ")).wait_for()
    assert output.get_by_role("button", name="Start").is_disabled()
    begun = time.monotonic()
    output.get_by_role("button", name="Stop").click()
    status(output).filter(has_text="stopped").wait_for()
    assert time.monotonic() - begun < 5
    assert show("probe").inner_text().strip() == "0"
    plain = float(show("plain").inner_text())
    note("05", waits, plain)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off_at_1024(notebook, show, screenshots, theme):
    notebook.page.set_viewport_size({"width": 1024, "height": 900})
    notebook.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    output = show("duel")
    output.get_by_role("button", name="Start").click()
    status(output).filter(has_text="finished").wait_for()
    output.get_by_text(re.compile("Ahead so far, after 6 runs")).wait_for()
    output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"duel-{theme.lower()}-1024.png")
    cut = output.evaluate(
        """area => {
            const right = area.getBoundingClientRect().right + 1;
            return [...area.querySelectorAll('button, img, .widget-slider, .widget-html-content, .progress')]
                .filter(e => e.getBoundingClientRect().right > right || e.scrollHeight > e.clientHeight + 4)
                .map(e => e.outerHTML.slice(0, 90));
        }"""
    )
    assert cut == []
