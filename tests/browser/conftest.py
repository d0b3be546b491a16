"""One JupyterLab, one Chromium and one open notebook for the browser tests of a process."""

import os
from functools import cache
from pathlib import Path

import lab as labs
import pytest

ROOT = Path(__file__).parents[2]


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: drives a real JupyterLab in headless Chromium")


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("browser")
            item.add_marker(pytest.mark.waits("browser"))


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; a machine without one fails the tests with the command that adds it."""
    from playwright.sync_api import sync_playwright

    try:
        path = labs.chromium()
    except FileNotFoundError as error:
        pytest.fail(str(error), pytrace=False)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=labs.FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """A running JupyterLab."""
    server = labs.Lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def notebook(browser, lab, request):
    """A notebook with the cells that the test module names in CELLS, open, its first cell run."""
    cells = [cell.strip() for cell in request.module.CELLS.values()]
    page = labs.Page(browser, lab, lab.write(f"{request.module.__name__}.ipynb", cells))
    page.run(0)
    yield page
    page.page.close()


@pytest.fixture
def show(notebook, request):
    """Run a cell of CELLS by name and give what it shows; the console must stay quiet."""
    order = list(request.module.CELLS)
    notebook.command("notebook:clear-all-cell-outputs")
    notebook.errors.clear()
    yield lambda name: notebook.run(order.index(name))
    assert notebook.errors == []


@pytest.fixture(scope="module")
def plain(notebook, request):
    """Seconds that an almost empty figure takes in this kernel, measured once: p95 of 20. CELLS needs "plain"."""
    return cache(lambda: float(notebook.run(list(request.module.CELLS).index("plain")).inner_text()))


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory):
    """Where screenshots go: kept under build/ in CI, otherwise in the test's own folder."""
    folder = ROOT / "build" / "screenshots" if os.environ.get("CI") else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
