"""The widget of notebook 07 in a real JupyterLab, turned by keyboard."""

import pytest
from dials import PLAIN, Repaints, note
from lab import Page

CELLS = ["import fedlora_lab as fl", PLAIN.strip(), "fl.widgets.filter_explorer()"]


@pytest.fixture(scope="module")
def notebook(browser, lab):
    """The notebook, open, its first cell run; the console must stay quiet to the end."""
    page = Page(browser, lab, lab.write("lesson_07.ipynb", CELLS))
    page.run(0)
    page.errors.clear()
    yield page
    errors = list(page.errors)
    page.page.close()
    assert errors == []


def kept(sentence: str) -> tuple[int, int]:
    """Shares of signal and noise that the sentence states, in percent."""
    signal, noise = (int(part.split("%")[0].split()[-1]) for part in sentence.split("% of the ")[:2])
    return signal, noise


def test_twenty_moves(notebook):
    dial = Repaints(notebook, notebook.run(2))
    notebook.watch_layout()
    assert kept(dial.sentence) == (87, 28)
    dial.focus("smoothness")
    signal = [kept(dial.move("ArrowLeft"))[0] for _ in range(8)]
    assert signal == sorted(signal, reverse=True) and signal[-1] == 60
    signal = [kept(dial.move("ArrowRight"))[0] for _ in range(8)]
    assert signal[-1] == 87
    dial.focus("taps")
    noise = [kept(dial.move("ArrowRight"))[1] for _ in range(3)]
    assert noise == sorted(noise, reverse=True)
    dial.output.locator("input[type=checkbox]").focus()
    assert kept(dial.move("Space"))[0] < 60
    assert notebook.jumps() == []
    plain = float(notebook.run(1).inner_text())
    assert len(dial.waits) == 20
    note("07", dial.waits, plain)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off_at_1024(notebook, screenshots, theme):
    notebook.page.set_viewport_size({"width": 1024, "height": 900})
    notebook.command("apputils:change-theme", {"theme": f"JupyterLab {theme}"})
    notebook.page.wait_for_selector(f"body[data-jp-theme-name='JupyterLab {theme}']", state="attached")
    dial = Repaints(notebook, notebook.run(2))
    dial.output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"filter-{theme.lower()}-1024.png")
    assert dial.cut_off() == []
