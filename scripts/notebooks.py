"""Run the notebooks and keep their outputs clean.

    python scripts/notebooks.py run notebooks/*.ipynb     execute each from top to bottom and write
    it back, cleaned python scripts/notebooks.py clean notebooks/*.ipynb   only clean: what a
    reader's own run leaves behind

Outputs stay, since readers meet the course where nothing is executed. Whatever differs from run to
run without meaning goes: execution counts, metadata, views of widgets (they show nothing without a
    kernel), random cell ids.
"""

import argparse
import copy
import os
from pathlib import Path
from typing import Any

import nbformat

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
VIEW = "application/vnd.jupyter.widget-view+json"


def cleaned(notebook: Any) -> Any:
    """A copy without counts, metadata, widget views and random ids. Guarantees: cleaning twice
    changes nothing.
    """
    notebook = copy.deepcopy(notebook)
    notebook.metadata = nbformat.NotebookNode(kernelspec=KERNEL, language_info={"name": "python"})
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index:02d}", nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = [output for output in cell.outputs if VIEW not in output.get("data", {})]
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = nbformat.NotebookNode()
                if "execution_count" in output:
                    output.execution_count = None
    return notebook


def executed(notebook: Any, folder: Path, timeout: int = 1800) -> Any:
    """A copy run from top to bottom in a new kernel. Raises what the first failing cell raised."""
    from nbclient import NotebookClient

    notebook = copy.deepcopy(notebook)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    environment.pop("MPLBACKEND", None)
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,  # one print may arrive in pieces
    )
    client.execute(env=environment)
    return notebook


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("run", "clean"))
    parser.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()
    for path in arguments.paths:
        notebook = nbformat.read(path, as_version=4)
        if arguments.what == "run":
            notebook = executed(notebook, path.parent)
        nbformat.write(cleaned(notebook), path)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
