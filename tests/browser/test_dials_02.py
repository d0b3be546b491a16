"""The widget of notebook 02 in a real JupyterLab, turned by keyboard."""

import pytest
from dials import PLAIN, Repaints, note, picture_bytes, wait_for_bytes
from lab import Page

CELLS = ["import fedlora_lab as fl", PLAIN.strip(), "fl.widgets.explorer()"]


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook, open, its first cell run; the console must stay quiet to the end."""
    page = Page(browser, lab, lab.write("lesson_02.ipynb", CELLS))
    page.run(0)
    page.errors.clear()
    yield page
    errors = list(page.errors)
    page.page.close()
    assert errors == []


def test_twenty_moves(notebook):
    dial = Repaints(notebook, notebook.run(2))
    notebook.watch_layout()
    start, picture = dial.sentence, picture_bytes(dial.image)
    assert "0.39 too little" in start
    dial.focus("correlation")
    said = [dial.move("ArrowLeft") for _ in range(15)]
    assert "0.34 too much" in said[-1]
    dial.focus("spread of A")
    assert "all clients hold the same A" in dial.move("Home")
    assert "0.49 too much" in dial.move("End")
    dial.focus("spread of B")
    assert [dial.move("ArrowLeft") for _ in range(2)][-1].startswith("The server holds 1.00")
    dial.output.locator("select").focus()
    assert "both factors differ" in dial.move("f")  # the menu goes to what begins with this letter
    assert notebook.jumps() == []
    dial.output.get_by_role("button", name="Reset").click()
    wait_for_bytes(dial.image, picture)
    dial.output.get_by_text(start).wait_for()
    plain = float(notebook.run(1).inner_text())
    assert len(dial.waits) == 20
    note("02", dial.waits, plain)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off_at_1024(notebook, screenshots, theme):
    notebook.page.set_viewport_size({"width": 1024, "height": 900})
    notebook.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    dial = Repaints(notebook, notebook.run(2))
    dial.output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"explorer-{theme.lower()}-1024.png")
    assert dial.cut_off() == []
