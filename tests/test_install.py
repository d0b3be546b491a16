"""Installed elsewhere: a wheel in an empty environment, and the beginning of the course run against it.

The environment sees the packages of the one that runs the tests, but neither the checkout nor its editable install:
what is imported as fedlora_lab can only come from the wheel.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that must succeed, outside the checkout."""
    clean = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "MPLBACKEND")
    }
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=clean | environment, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment `env` that has the wheel, and nothing else of this project."""
    folder = tmp_path_factory.mktemp("elsewhere")
    copy = folder / "source"
    shutil.copytree(ROOT / "fedlora_lab", copy / "fedlora_lab", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, copy]
    run(*pip, *build, cwd=folder, PYTHONWARNINGS="ignore")
    shutil.rmtree(copy)
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", python, "install", "--no-index", "--no-deps", wheel, cwd=folder)
    # A .pth file puts the other packages on the path and does not follow the .pth of the editable install among them.
    place = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    (Path(place) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def test_the_package_comes_from_the_wheel(elsewhere: Path) -> None:
    script = (
        "import json, sys, fedlora_lab as fl; task = fl.tasks.digits(clients=10, alpha=0.5, seed=0);"
        "print(json.dumps([fl.__file__, fl.tasks.digits.__code__.co_filename, sum(task.sizes), task.fingerprint]))"
    )
    home, code, examples, fingerprint = json.loads(run(elsewhere / "env/bin/python", "-c", script, cwd=elsewhere))
    assert Path(home).is_relative_to(elsewhere)
    assert Path(code).is_relative_to(elsewhere)
    import fedlora_lab as fl

    assert examples == 1257
    assert fingerprint == fl.tasks.digits(clients=10, alpha=0.5, seed=0).fingerprint


def test_the_command_is_there(elsewhere: Path) -> None:
    import fedlora_lab as fl

    shown = run(elsewhere / "env/bin/fedlora-lab", "methods", cwd=elsewhere)
    assert all(slug in shown for slug in fl.methods.ALL)


def test_notebook_00_begins(elsewhere: Path) -> None:
    """Everything before the first widget, in a kernel of that environment, in a folder without the repository."""
    notebook = nbformat.read(ROOT / "notebooks" / "00_why_is_it_hard.ipynb", as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first = next(i for i, cell in enumerate(code) if "fl.widgets" in cell.source)
    where = nbformat.v4.new_code_cell("print(fl.__file__)")
    notebook.cells = [*code[:first], where]
    assert first >= 4
    for cell in notebook.cells:
        cell.outputs = []
    nbformat.write(notebook, elsewhere / "begin.ipynb")
    script = (
        "import nbformat; from nbclient import NotebookClient;"
        "notebook = nbformat.read('begin.ipynb', as_version=4);"
        "NotebookClient(notebook, timeout=600, kernel_name='python3').execute();"
        "nbformat.write(notebook, 'done.ipynb')"
    )
    run(elsewhere / "env/bin/python", "-c", script, cwd=elsewhere, JUPYTER_PATH=str(elsewhere / "env/share/jupyter"))
    cells = nbformat.read(elsewhere / "done.ipynb", as_version=4).cells
    home = next(output.text for output in cells[-1].outputs if output.output_type == "stream").strip()
    assert Path(home).is_relative_to(elsewhere)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_the_page_says_what_holds() -> None:
    """The commands of docs/open_elsewhere.md name things that exist."""
    page = (ROOT / "docs" / "open_elsewhere.md").read_text(encoding="utf-8")
    assert "notebooks/00_why_is_it_hard.ipynb" in page
    assert (ROOT / "notebooks" / "00_why_is_it_hard.ipynb").exists()
    assert (ROOT / "environment.yml").read_text(encoding="utf-8").count("name: fedlora-lab\n") == 1
    assert "conda activate fedlora-lab" in page
    assert '"fedlora-lab @ git+https://' in page
