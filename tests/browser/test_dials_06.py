"""The widgets of notebook 06 in a real JupyterLab, turned by keyboard."""

import pytest
from dials import PLAIN, Repaints, note, picture_bytes, wait_for_bytes
from lab import Page

CELLS = {
    "setup": "import fedlora_lab as fl",
    "plain": PLAIN.strip(),
    "regulator": "fl.widgets.regulator()",
    "schedule": "fl.widgets.schedule()",
}
ORDER = list(CELLS)


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook, open, its first cell run."""
    page = Page(browser, lab, lab.write("lesson_06.ipynb", [CELLS[name] for name in ORDER]))
    page.run(0)
    yield page
    page.page.close()


@pytest.fixture
def show(notebook):
    """Run a cell by name and give what it shows; the console must stay quiet."""
    notebook.errors.clear()
    yield lambda name: notebook.run(ORDER.index(name))
    assert notebook.errors == []


def quick_enough(name, dial, show):
    plain = float(show("plain").inner_text())
    assert len(dial.waits) >= 20
    note(name, dial.waits, plain)


def test_twenty_moves_of_the_regulator(notebook, show):
    dial = Repaints(notebook, show("regulator"))
    start, first = dial.sentence, picture_bytes(dial.image)
    notebook.watch_layout()
    dial.focus("peer, 1st")
    assert "more than the 1.00 promised" in start
    said = [dial.move("ArrowLeft") for _ in range(12)]
    assert len(set(said)) == 12
    assert "less than the 1.00 promised" in said[-2]
    dial.focus("noise σ")
    for _ in range(7):
        dial.move("ArrowRight")
    assert "exactly as promised" in dial.choose("product")
    dial.output.get_by_role("button", name="Reset").click()
    wait_for_bytes(dial.image, first)
    dial.output.get_by_text(start).wait_for()
    assert notebook.jumps() == []
    quick_enough("regulator", dial, show)


def test_a_schedule_is_picked_or_typed(notebook, show):
    dial = Repaints(notebook, show("schedule"))
    notebook.watch_layout()
    assert "the mean of the products is exact" in dial.sentence
    for _ in range(5):
        for label in ("FFA-LoRA: B", "FedLoRA: AB", "both, then B: AB | B", "RoLoRA, DEeR: B | A"):
            dial.choose(label)
    picture, first = dial.image.get_attribute("src"), picture_bytes(dial.image)
    typed = dial.output.locator("input[type=text]")
    typed.fill("B | B A")
    dial.output.get_by_text("missed in rounds 2, 4, 6").wait_for()
    assert dial.image.get_attribute("src") != picture
    typed.fill("B | Q")
    line = dial.output.get_by_role("alert")
    line.wait_for()
    assert line.inner_text() == 'word=\'Q\': expected "A", "B" or "AB"'
    typed.fill("")
    wait_for_bytes(dial.image, first)
    assert notebook.jumps() == []
    quick_enough("schedule", dial, show)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("name", ["regulator", "schedule"])
def test_nothing_is_cut_off_at_1024(notebook, show, screenshots, theme, name):
    notebook.page.set_viewport_size({"width": 1024, "height": 900})
    notebook.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    dial = Repaints(notebook, show(name))
    dial.output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"{name}-{theme.lower()}-1024.png")
    assert dial.cut_off() == []
