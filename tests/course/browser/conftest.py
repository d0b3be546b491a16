"""One Chromium for all browser tests of a process."""

from pathlib import Path

import jupyter_lab as labs
import pytest
from sites import built_site


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("slow")
            item.add_marker("waits")


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium; a machine without one fails with the command that adds it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=labs.chromium(), args=labs.FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The built site, the same for all processes."""
    return built_site(tmp_path_factory)
