"""A committed notebook, opened in JupyterLab by someone who runs nothing."""

import shutil
from pathlib import Path

from lab import Page

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_why_is_it_hard.ipynb"


def test_a_notebook_reads_without_running_it(browser, lab, screenshots):
    shutil.copy(NOTEBOOK, lab.notebooks)
    page = Page(browser, lab, NOTEBOOK.name, height=6000)
    notebook = page.page.locator(".jp-Notebook")
    notebook.get_by_text("Averaged factors miss the mean product (FedLoRA by").last.wait_for()
    assert notebook.locator(".jp-OutputArea img").count() >= 4
    assert "Error displaying widget" not in notebook.inner_text()
    solution = notebook.locator("details").nth(1)
    assert not solution.locator("p").is_visible()
    solution.locator("summary").click()
    assert solution.locator("p").is_visible()
    page.page.screenshot(path=screenshots / "notebook-00.png")
    assert page.errors == []
    page.page.close()
