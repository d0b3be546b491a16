"""The site, built once for all tests however many processes run them."""

import os

from commands import PYTHON, succeeded
from filelock import FileLock
from places import ROOT


def built_site(folders):
    """Folder of the site; the first process that asks builds it, the others wait for it.

    Args: folders: pytest's own factory, whose folder the processes share.
    """
    own = folders.getbasetemp()
    shared = (own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / "book"
    with FileLock(f"{shared}.lock"):
        if not (shared / "index.html").exists():
            done = succeeded(PYTHON, ROOT / "scripts" / "book.py", "--out", shared)
            assert "WARNING" not in done.stdout + done.stderr
    return shared
