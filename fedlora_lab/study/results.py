"""A study's results as a tidy frame, and what was run beside it."""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab.checks import check
from fedlora_lab.study.declared import Study
from fedlora_lab.study.work import best_rate, load, progress

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("fedlora-lab", "torch", "peft", "opacus", "dp-accounting", "numpy", "scipy")


def frame(study: Study, path: Path) -> "pd.DataFrame":
    """One row for each reported run: study, method, its labels, learning rate, seed, and the measures as columns.

    ``at_edge`` says that the chosen rate is the first or last that was tried; ``spent`` is the ε of the ledger, where
    ``epsilon`` is the budget that labels the case. Cases that are not finished are left out.
    Guarantees: a label is the declared one, whatever is measured (test_study.py::test_labels_are_the_declared_ones).
    """
    import pandas as pd

    done, rows = load(path), []
    for case in study.cases:
        lr = best_rate(study, case, done)
        entries = [done.get(job.key) for job in study.reported(case, lr)] if lr is not None else [None]
        finished = [entry for entry in entries if entry is not None]
        if len(finished) < len(entries):
            continue
        edge = lr in (study.rates[0], study.rates[-1])
        base = {"study": study.name, "method": case.method.slug, **case.labels, "lr": lr, "at_edge": edge}
        for entry in finished:
            values = {"spent" if name == "epsilon" else name: x for name, x in entry["values"].items()}
            rows.append({**base, "seed": entry["seed"], **values})
    return pd.DataFrame(rows)


def settings(study: Study, command: str, path: Path) -> dict[str, Any]:
    """What reproduces the study: command, versions, seeds, rates; and how many of its runs are done."""
    return {
        "study": study.name,
        "note": study.note,
        "command": command,
        "seeds": list(study.seeds),
        "tuning": {
            "seeds": list(study.tune_seeds),
            "rates": list(study.rates),
            "finalists": study.finalists,
            "judged on": "validation data",
            "private": False,
        },
        "runs": study.runs,
        "done": progress(study, path)[0],
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
    }


def read(name: str, folder: str | Path = "results") -> "pd.DataFrame":
    """The committed frame of a study. Raises ``ValueError`` when it is not there."""
    import pandas as pd

    path = Path(folder) / f"{name}.csv"
    check(path.is_file(), "results", str(path), f"a file; `fedlora-lab study {name}` makes it")
    return pd.read_csv(path)
