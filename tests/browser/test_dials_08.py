"""The widget of notebook 08 in a real JupyterLab, turned by keyboard and by its menu."""

import pytest
from dials import PLAIN, Repaints, note
from lab import Page

from fedlora_lab.plots.quantising import KINDS

CELLS = ["import fedlora_lab as fl", PLAIN.strip(), "fl.widgets.quantiser_explorer()"]


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook, open, its first cell run; the console must stay quiet to the end."""
    page = Page(browser, lab, lab.write("lesson_08.ipynb", CELLS))
    page.run(0)
    page.errors.clear()
    yield page
    errors = list(page.errors)
    page.page.close()
    assert errors == []


def off(sentence: str) -> float:
    """The error that the sentence states, in percent."""
    return float(sentence.split("arrives is ")[1].split("%")[0])


def test_twenty_moves(notebook):
    dial = Repaints(notebook, notebook.run(2))
    notebook.watch_layout()
    assert dial.sentence.startswith("3 bits, 8 levels, blocks of 64: 3.5 bits a number")
    dial.focus("bits")
    errors = [off(dial.move("ArrowRight")) for _ in range(5)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1
    for _ in range(6):
        dial.move("ArrowLeft")
    dial.focus("block")
    errors = [off(dial.move("ArrowLeft")) for _ in range(3)]
    assert errors == sorted(errors, reverse=True)
    for _ in range(5):
        dial.move("ArrowRight")
    plain_numbers = off(dial.sentence)
    assert off(dial.choose(KINDS[1])) > plain_numbers
    assert notebook.jumps() == []
    plain = float(notebook.run(1).inner_text())
    assert len(dial.waits) == 20
    note("08", dial.waits, plain)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off_at_1024(notebook, screenshots, theme):
    notebook.page.set_viewport_size({"width": 1024, "height": 900})
    notebook.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    dial = Repaints(notebook, notebook.run(2))
    dial.output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"quantiser-{theme.lower()}-1024.png")
    assert dial.cut_off() == []
