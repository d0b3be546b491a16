"""The papers' own set-ups as rows: look, check them on shapes alone, run them where weights and data are at hand."""

from typing import TYPE_CHECKING

from fedlora_lab.presets.rows import PRESETS, Preset

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.presets.work import dry_run, get, privacy, shapes, task, toy

__all__ = ["PRESETS", "Preset", "dry_run", "get", "privacy", "shapes", "table", "task", "toy"]


def table() -> "pd.DataFrame":
    """Every preset as a frame, name as index."""
    import pandas as pd

    fields = ("source", "method", "model", "clients", "alpha", "examples", "classes", "epsilon", "assumed")
    rows = [{"name": name, **{field: getattr(row, field) for field in fields}} for name, row in PRESETS.items()]
    return pd.DataFrame(rows).set_index("name")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'fedlora_lab.presets' has no attribute {name!r}")
    from fedlora_lab.presets import work

    return getattr(work, name)
