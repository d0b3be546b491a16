"""Which of the declared studies are there, and how much of each."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab.study.declared import Case
from fedlora_lab.study.grids import STUDIES
from fedlora_lab.study.guide import Frames, label_columns
from fedlora_lab.study.results import read

if TYPE_CHECKING:
    import pandas as pd


def frames(folder: str | Path = "results") -> dict[str, "pd.DataFrame"]:
    """The committed frames of the declared studies, by name; those that nobody has run are left out."""
    return {name: read(name, folder) for name in STUDIES if (Path(folder) / f"{name}.csv").is_file()}


def _key(case: Case) -> tuple[str, ...]:
    return (case.method.slug, *(_text(case.labels[name]) for name in sorted(case.labels)))


def _text(value: object) -> str:
    """A label as it is compared: numbers by value, nothing for what is missing."""
    if value is None or value != value:
        return ""
    return f"{value:g}" if isinstance(value, float | int) else str(value)


def coverage(found: Frames) -> "pd.DataFrame":
    """Study by study: cases that are there, cases declared, methods that miss some, and the command that adds them.

    Guarantees: test_guide.py::test_coverage_counts_what_is_missing.
    """
    import pandas as pd

    rows = []
    for name, study in STUDIES.items():
        declared, there = {_key(case): case for case in study.cases}, set()
        if name in found:
            names = sorted(label_columns(found[name]))
            cells = found[name][["method", *names]].drop_duplicates().itertuples(index=False)
            there = {(str(cell[0]), *map(_text, cell[1:])) for cell in cells} & set(declared)
        missing = dict.fromkeys(case.method.slug for key, case in declared.items() if key not in there)
        rows.append((name, len(there), len(declared), ", ".join(missing), f"fedlora-lab study {name}"))
    return pd.DataFrame(rows, columns=["study", "cases", "of", "missing", "command"]).set_index("study")


def told(found: Frames) -> str:
    """The coverage in a few lines: whole studies, studies in part, and those that nobody has run."""
    table: Any = coverage(found)
    lines = [f"{name}: {row.cases} of {row.of} cases" + ("" if row.cases == row.of else f" (go on: {row.command})")
             for name, row in zip(table.index, table.itertuples(), strict=True) if row.cases]  # fmt: skip
    none = [str(name) for name in table.index[table["cases"] == 0]]
    if none:
        lines.append(f"not run yet: {', '.join(none)} (fedlora-lab study NAME)")
    return "\n".join(lines)
