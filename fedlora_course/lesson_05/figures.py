"""Tools of notebook 05: the project in one file."""

import importlib.util
from types import ModuleType


def one_file() -> ModuleType:
    """Loads ``examples/one_file.py`` anew, from the folder in which the notebooks stand.

    Returns: its module, whose names can be changed before it trains.
    """
    spec = importlib.util.spec_from_file_location("one_file", "../examples/one_file.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
