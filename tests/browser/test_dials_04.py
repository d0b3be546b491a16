"""The widget of notebook 04 in a real JupyterLab, turned by keyboard."""

import pytest
from dials import PLAIN, Repaints, note
from lab import Page

CELLS = ["import fedlora_lab as fl", PLAIN.strip(), "fl.widgets.noise_amplifier()"]


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook, open, its first cell run; the console must stay quiet to the end."""
    page = Page(browser, lab, lab.write("lesson_04.ipynb", CELLS))
    page.run(0)
    page.errors.clear()
    yield page
    errors = list(page.errors)
    page.page.close()
    assert errors == []


def test_twenty_moves(notebook):
    dial = Repaints(notebook, notebook.run(2))
    dial.focus("size of B")
    notebook.page.wait_for_timeout(300)  # the page has come to rest
    notebook.watch_layout()
    assert "takes over at std 0.0722" in dial.sentence
    said = [dial.move("ArrowRight") for _ in range(10)]
    assert len(set(said)) == 10
    dial.focus("noise std")
    shares = [int(dial.move("ArrowRight").split("carries ")[1].split("%")[0]) for _ in range(6)]
    assert shares == sorted(shares) and shares[-1] > 90 > shares[0]
    dial.focus("layer width")
    assert "256 × 256" in dial.move("ArrowRight")
    dial.focus("rank r")
    assert "rank 8" in dial.move("ArrowRight")
    dial.focus("α")
    assert "α = 16" in dial.move("ArrowRight")
    dial.move("ArrowLeft")
    assert notebook.jumps() == []
    plain = float(notebook.run(1).inner_text())
    assert len(dial.waits) == 20
    note("04", dial.waits, plain)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off_at_1024(notebook, screenshots, theme):
    notebook.page.set_viewport_size({"width": 1024, "height": 900})
    notebook.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    dial = Repaints(notebook, notebook.run(2))
    dial.output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"amplifier-{theme.lower()}-1024.png")
    assert dial.cut_off() == []
