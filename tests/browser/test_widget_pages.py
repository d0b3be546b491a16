"""The widgets in a real JupyterLab, driven as a reader drives them: one journey for each kind."""

import pytest
from lab import cut_off, image_bytes, open_notebook, wait_for_image

SETUP = """
import numpy as np
import pandas as pd
import fedlora_lab as fl
from fedlora_lab.plots.style import paper, picture
rng = np.random.default_rng(0)
three = [("fedlora", 0.7), ("ffa-lora", 0.8), ("deer", 0.75)]
cells = [("made", slug, e, 0.1, s, rng.normal(m, 0.02))
         for slug, m in three for e in (1.0, 3.0) for s in range(5)]
scores = pd.DataFrame(cells, columns=["study", "method", "epsilon", "lr", "seed", "accuracy"])
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
    "guess": 'fl.exercises.predict("10.a")',
    "answer": 'fl.exercises.reveal("10.a")',
}


@pytest.fixture(scope="module")
def notebook(browser, lab):
    with open_notebook(browser, lab, "widgets.ipynb", CELLS.values()) as page:
        yield page


@pytest.fixture
def show(notebook):
    """Runs a cell by name and gives its output; the console stays quiet, nothing jumps."""
    notebook.dress("Light", 1280, 1100)
    notebook.command("notebook:clear-all-cell-outputs")
    notebook.errors.clear()

    def run(name):
        output = notebook.run(list(CELLS).index(name))
        output.locator("img").first.wait_for()
        return output

    yield run
    assert notebook.errors == []


def status(output):
    return output.locator("[role=status], [role=alert]").first


def press(output, name):
    output.get_by_role("button", name=name).click()


def change(output, act):
    """Do something that changes the figure."""
    handle = output.locator("img").first.element_handle()
    before = handle.get_attribute("src")
    act()
    output.page.wait_for_function("([e, src]) => e.src !== src", arg=[handle, before])


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


def test_a_guess_is_made_with_the_keyboard_and_comes_back(notebook):
    """Question and options stand above the buttons; formulas are set."""
    notebook.errors.clear()
    output = notebook.run(list(CELLS).index("guess"))
    output.get_by_text("Nothing chosen yet.").wait_for()
    assert "twice as many" in output.inner_text()
    output.get_by_role("button", name="b", exact=True).focus()
    notebook.page.keyboard.press("Enter")
    output.get_by_text("Your guess is kept: b").wait_for()
    answer = notebook.run(list(CELLS).index("answer"))
    answer.get_by_text("You guessed b) twice as many").wait_for()
    answer.locator("mjx-container").first.wait_for()
    assert notebook.errors == []
