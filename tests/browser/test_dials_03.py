"""The widgets of notebook 03 in a real JupyterLab, turned by keyboard."""

import pytest
from dials import PLAIN, Repaints, note
from lab import Page

CELLS = {
    "setup": "import numpy as np\nimport fedlora_lab as fl",
    "plain": PLAIN.strip(),
    "planner": "fl.widgets.privacy_planner()",
    "clip": """
rng = np.random.default_rng(0)
rows = rng.standard_normal((600, 50)) * np.exp(1.5 * rng.standard_normal((600, 1))) / 7 + 0.02
fl.widgets.clip_explorer(rows)
""",
}
ORDER = list(CELLS)


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook, open, its first cell run."""
    page = Page(browser, lab, lab.write("lesson_03.ipynb", [CELLS[name].strip() for name in ORDER]))
    page.run(0)
    yield page
    page.page.close()


@pytest.fixture
def show(notebook):
    """Run a cell by name and give what it shows; the console must stay quiet."""
    notebook.errors.clear()
    yield lambda name: notebook.run(ORDER.index(name))
    assert notebook.errors == []


@pytest.mark.parametrize(("name", "label", "key", "word"), [
    ("planner", "noise σ", "ArrowRight", "σ = 4"),
    ("clip", "threshold C", "ArrowRight", "C = 100"),
])  # fmt: skip
def test_twenty_moves(notebook, show, name, label, key, word):
    dial = Repaints(notebook, show(name))
    dial.focus(label)
    notebook.page.wait_for_timeout(300)  # the page has come to rest
    notebook.watch_layout()
    start = dial.sentence
    moves = 20 if name == "planner" else 11
    said = [dial.move(key) for _ in range(moves)]
    assert word in said[-1]
    assert len({start, *said}) == moves + 1
    while len(dial.waits) < 20:
        dial.move("ArrowLeft")
    assert notebook.jumps() == []
    plain = float(show("plain").inner_text())
    note(name, dial.waits, plain)


def test_the_unit_and_the_reset(notebook, show):
    dial = Repaints(notebook, show("planner"))
    start, picture = dial.sentence, dial.image.screenshot()
    assert "one example is promised" in start
    assert "one client" in dial.choose("client")
    dial.focus("releases")
    dial.move("ArrowRight")
    assert dial.image.screenshot() != picture
    dial.output.get_by_role("button", name="Reset").click()
    dial.output.get_by_text(start).wait_for()
    assert dial.image.screenshot() == picture


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("name", ["planner", "clip"])
def test_nothing_is_cut_off_at_1024(notebook, show, screenshots, theme, name):
    notebook.page.set_viewport_size({"width": 1024, "height": 900})
    notebook.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    dial = Repaints(notebook, show(name))
    dial.output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"{name}-{theme.lower()}-1024.png")
    assert dial.cut_off() == []
