"""The widget of notebook 01 in a real JupyterLab, turned by keyboard."""

import pytest
from dials import PLAIN, Repaints, note, picture_bytes, wait_for_bytes
from lab import Page

SETUP = """
import numpy as np
import fedlora_lab as fl
rng = np.random.default_rng(0)
left, right = (np.linalg.qr(rng.standard_normal((64, 64)))[0] for _ in range(2))
change = left * 0.55 * 0.9 ** np.arange(64) @ right.T
"""
CELLS = [SETUP.strip(), PLAIN.strip(), "fl.widgets.reach(change)"]


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook, open, its first cell run; the console must stay quiet to the end."""
    page = Page(browser, lab, lab.write("lesson_01.ipynb", CELLS))
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
    dial.focus("rank r")
    said = [dial.move("ArrowRight") for _ in range(4)]
    reached = [int(words.split("within ")[1].split("%")[0]) for words in said]
    assert reached == sorted(reached, reverse=True) and reached[-1] == 0
    said += [dial.move("ArrowLeft") for _ in range(6)]
    assert "Rank 1 " in said[-1] and "diverges" in said[-1]
    said += [dial.move("ArrowRight") for _ in range(2)]
    dial.focus("alpha α")
    said += [dial.move("ArrowRight") for _ in range(2)]
    assert "α = 32" in said[-1] and "diverges" in said[-1]
    said += [dial.move("ArrowLeft") for _ in range(5)]
    assert "α = 1 (s = 0.25)" in said[-1]
    said.append(dial.move("ArrowRight"))
    assert notebook.jumps() == []
    dial.output.get_by_role("button", name="Reset").click()
    wait_for_bytes(dial.image, picture)
    dial.output.get_by_text(start).wait_for()
    plain = float(notebook.run(1).inner_text())
    assert len(dial.waits) == 20
    note("01", dial.waits, plain)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off_at_1024(notebook, screenshots, theme):
    notebook.page.set_viewport_size({"width": 1024, "height": 900})
    notebook.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    dial = Repaints(notebook, notebook.run(2))
    dial.output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"reach-{theme.lower()}-1024.png")
    assert dial.cut_off() == []
