"""Pages that are only read: a committed notebook in JupyterLab, and the report of a run."""

import shutil
from pathlib import Path

from lab import Page
from reports import HOSTILE, write_folder

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_why_is_it_hard.ipynb"
SIX = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp")


def test_a_notebook_reads_without_running_it(browser, lab):
    shutil.copy(NOTEBOOK, lab.notebooks)
    page = Page(browser, lab, NOTEBOOK.name, height=6000)
    notebook = page.page.locator(".jp-Notebook")
    notebook.get_by_text("At client level with one clip norm (100 clients").last.wait_for()
    assert notebook.locator(".jp-OutputArea img").count() >= 4
    assert "Error displaying widget" not in notebook.inner_text()
    solution = notebook.locator("details").nth(1)
    assert not solution.locator("p").is_visible()
    solution.locator("summary").click()
    assert solution.locator("p").is_visible()
    assert page.errors == []
    page.page.close()


def test_a_report_on_phone_screen_and_paper(browser, tmp_path):
    """Nothing is wider than the page, every picture is there, no text of a task runs as script."""
    path = write_folder(tmp_path, task=HOSTILE, methods=SIX)
    messages = []
    page = browser.new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert messages == []
    page.close()
