"""Data sets of any kind as named splits of columns: pandas, Hugging Face `datasets`, CSV files, folders of images."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedlora_lab.checks import check

KINDS = "a pandas DataFrame, a `datasets` Dataset or DatasetDict, a CSV file, or a folder with a folder for each class"
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Args:
        names: of the columns.
        source: ``source[name]`` is a column.
        classes: column -> names of its classes, where the data set knows them.
    """

    names: tuple[str, ...]
    source: Any
    classes: Mapping[str, tuple[str, ...]]

    def column(self, argument: str, name: Any) -> list[Any]:
        """One column's entries. Raises ``ValueError`` with the names there are."""
        check(isinstance(name, str) and name in self.names, argument, name, "a column: " + ", ".join(self.names))
        return list(self.source[name])


def splits_of(dataset: Any) -> dict[str, Table]:
    """The splits of a data set by name; one called ``train`` where it has none.

    Raises: ``ValueError`` for anything else, or for an empty one.
    Guarantees: tests/test_hub.py::test_kinds_of_data_sets.
    """
    if isinstance(dataset, (str, os.PathLike)):
        path = Path(dataset)
        if path.is_dir():
            return _image_folders(path)
        check(path.is_file() and path.suffix.lower() == ".csv", "dataset", str(path), KINDS)
        import pandas as pd

        return {"train": _table(pd.read_csv(path))}
    if isinstance(dataset, Mapping) and dataset and not isinstance(next(iter(dataset.values())), (list, np.ndarray)):
        return {str(name): _table(split) for name, split in dataset.items()}
    return {"train": _table(dataset)}


def _table(data: Any) -> Table:
    names = getattr(data, "column_names", None)
    names = getattr(data, "columns", ()) if names is None else names
    check(len(names) > 0 and hasattr(data, "__getitem__"), "dataset", type(data).__name__, KINDS)
    check(len(data) > 0, "dataset", "0 rows", "at least one row")
    features = getattr(data, "features", None) or {}
    classes = {str(n): tuple(features[n].names) for n in features if getattr(features[n], "names", None)}
    return Table(tuple(str(name) for name in names), data, classes)


def _image_folders(path: Path) -> dict[str, Table]:
    """A folder with a folder for each class, or with a folder ``train`` (and others) of that kind."""
    inside = sorted(part for part in path.iterdir() if part.is_dir() and not part.name.startswith("."))
    if any(part.name == "train" for part in inside):
        return {part.name: _classes(part) for part in inside}
    return {"train": _classes(path)}


def _classes(path: Path) -> Table:
    files, labels = [], []
    for folder in sorted(part for part in path.iterdir() if part.is_dir() and not part.name.startswith(".")):
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGES)
        files += [str(file) for file in found]
        labels += [folder.name] * len(found)
    check(bool(files), "dataset", str(path), "a folder for each class, with images in it")
    return Table(("image", "label"), {"image": files, "label": labels}, {"label": tuple(sorted(set(labels)))})


def class_numbers(
    values: Sequence[Any], names: tuple[str, ...] | None, column: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as whole numbers (n,) int64, and the classes' names where they have some.

    Whole numbers stay as they are; words get the place of their name in ``names``, or in their own sorted order.

    Raises: ``ValueError`` for numbers that are not whole or negative, for a missing label, and for an unknown word.
    """
    gaps = [i for i, v in enumerate(values) if v is None or (isinstance(v, float) and math.isnan(v))]
    check(not gaps, f"label {column!r}", f"nothing in row {gaps[0] if gaps else 0}", "a label in every row")
    if any(isinstance(v, (str, bytes)) for v in values):
        words = [str(v) for v in values]
        order = names or tuple(sorted(set(words)))
        strange = sorted(set(words) - set(order))
        check(not strange, f"label {column!r}", strange[:3], "one of " + ", ".join(order))
        place = {word: i for i, word in enumerate(order)}
        return np.array([place[word] for word in words], dtype=np.int64), order
    numbers = np.asarray(values, dtype=np.float64) if np.ndim(values) == 1 else np.empty(0)
    check(numbers.ndim == 1 and len(numbers) == len(values), f"label {column!r}", "lists", "one label in a row")
    odd = numbers[(numbers != np.rint(numbers)) | (numbers < 0)]
    check(not len(odd), f"label {column!r}", float(odd[0]) if len(odd) else 0, "words, or whole numbers >= 0")
    count = int(numbers.max()) + 1
    check(names is None or count <= len(names), f"label {column!r}", count - 1, f"one of {len(names or ())} classes")
    return numbers.astype(np.int64), names
