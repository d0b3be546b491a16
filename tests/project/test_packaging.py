"""The folder as a product: one list of dependencies, a light import, a wheel that runs."""

import ast
import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections import Counter
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import fedlora_lab as fl

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, START = ROOT / "fedlora_lab", ROOT / "notebooks" / "00_why_is_it_hard.ipynb"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
NEEDED = {*PROJECT["dependencies"], *OPTIONAL["text"], *OPTIONAL["flower"], *OPTIONAL["dev"]}
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(line.split("==") for line in CONSTRAINTS.splitlines() if line and line[0] != "#")


def run(*command: "str | Path", cwd: Path = ROOT, **environment: str) -> str:
    """Output of a command that must succeed."""
    own = ("PYTHONPATH", "PYTHONHOME", "MPLBACKEND", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    env = {name: value for name, value in os.environ.items() if name not in own} | environment
    call = [str(word) for word in command]
    done = subprocess.run(call, cwd=cwd, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


# Dependencies


def test_environment_equals_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    assert {*pip} == NEEDED | {"--constraint constraints.txt", "--editable ."}
    assert f"python{PROJECT['requires-python']}" in listed


def test_every_pin_is_a_plain_version_inside_its_range():
    plain = r"(#.*\n)+([a-z0-9-]+==[0-9][0-9a-z.]*\n)+"
    assert re.fullmatch(plain, CONSTRAINTS), "only name==version, no address, no local build"
    for requirement in map(Requirement, NEEDED):
        pinned = Version(PINS[canonicalize_name(requirement.name)])
        assert pinned in requirement.specifier, requirement


def test_pins_are_closed_under_what_the_packages_need(monkeypatch):
    monkeypatch.chdir(ROOT)
    module = runpy.run_path("scripts/pins.py")
    assert set(module["closure"](module["wanted"](("dev", "text", "flower")))) <= set(PINS)


def test_setup_installs_each_pin_by_the_digests_of_its_files_and_torch_by_its_version():
    lock = re.findall(
        r"^([a-z0-9-]+)==(\S+).*\\\n((?: +--hash=sha256:[0-9a-f]{64}.*\n)+)", LOCK, re.M
    )
    files = {name: version for name, version, _ in lock}
    assert len(lock) == len(re.findall(r"^\w", LOCK, re.M)) and "://" not in LOCK
    assert {name for name in PINS if name not in files} == {"torch"}
    assert all(PINS.get(name, version) == version for name, version in files.items())
    installs = run("make", "-B", "-n", "setup")
    assert "--no-deps --require-hashes -r requirements.lock" in installs
    assert "-c constraints.txt torch" in installs


def test_every_pin_installs_on_the_first_release_of_each_python():
    """A system's own Python 3.11 is often an early one; a pin that asks for a later one cannot be
    installed there.
    """
    wanted = [(str(canonicalize_name(d.name)), d.metadata) for d in distributions()]
    ranges = {name: metadata["Requires-Python"] for name, metadata in wanted}
    asked = {name: SpecifierSet(ranges[name] or "") for name in PINS if name in ranges}
    assert len(asked) > 100
    for python in ("3.11.0", "3.12.0", "3.13.0"):
        assert python in SpecifierSet(PROJECT["requires-python"])
        assert [name for name, versions in asked.items() if python not in versions] == []


def test_version_is_told_once():
    assert fl.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


# The import


def test_every_public_name_is_found_in_its_home():
    """And none is hidden by a module: importing fedlora_lab.compare, were there such a file, would
    put the module where the function fl.compare belongs.
    """
    assert set(fl.__all__) <= set(dir(fl)) and len(dir(fl)) <= 45
    modules = {path.stem for path in PACKAGE.iterdir()}
    for name, (_, attribute) in fl.HOMES.items():
        assert getattr(fl, name) is not None
        assert attribute is None or name not in modules, name
    with pytest.raises(AttributeError, match="has no attribute 'plan_b'; it has: "):
        _ = fl.plan_b


def test_editors_see_each_public_name_where_its_home_says():
    """An editor reads the imports under TYPE_CHECKING, a run reads HOMES: one list twice."""
    body = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    (for_editors,) = (node for node in body if isinstance(node, ast.If))
    seen = {}
    for node in for_editors.body:
        assert isinstance(node, ast.ImportFrom) and node.module
        for imported in node.names:
            seen[imported.asname] = f"{node.module}.{imported.name}"
    homes = {name: ".".join(filter(None, home)) for name, home in fl.HOMES.items()}
    assert seen == {name: f"fedlora_lab.{home}" for name, home in homes.items()}


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as a wheel; built from a copy, for setuptools writes beside the source."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, copy, cwd=folder, PYTHONWARNINGS="ignore")
    shutil.rmtree(copy)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_carries_code_and_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith(f"{PACKAGE.name}/")}
    files = [p for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert inside == {str(path.relative_to(ROOT)) for path in files}


EXECUTE = """
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read('begin.ipynb', as_version=4)
NotebookClient(notebook, timeout=600, kernel_name='python3').execute()
nbformat.write(notebook, 'done.ipynb')
"""
WHERE = "print(fl.__file__, fl.tasks.digits.__code__.co_filename, fl.tasks.digits().fingerprint)"


@pytest.mark.slow
def test_the_wheel_runs_the_beginning_of_the_course_elsewhere(wheel, tmp_path):
    """In an environment that sees the packages of this one, but neither the checkout nor its
    editable install: the command, and notebook 00 up to where it first reads the results.
    """
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    python, command = (tmp_path / "env" / "bin" / name for name in ("python", "fedlora-lab"))
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    run(*pip, "--no-deps", wheel, cwd=tmp_path)
    # A .pth file puts the other packages on the path and does not follow the .pth of the editable
    # install among them.
    place = next((tmp_path / "env" / "lib").glob("python3*/site-packages"))
    (place / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    shown = run(command, "methods", cwd=tmp_path)
    assert all(slug in shown for slug in fl.methods.ALL)
    read: Any = nbformat.read
    notebook = read(START, as_version=4)
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [*code_cells[:6], nbformat.v4.new_code_cell(WHERE)]
    for cell in notebook.cells:
        cell.outputs = []
    nbformat.write(notebook, tmp_path / "begin.ipynb")
    share = str(tmp_path / "env/share/jupyter")
    run(python, "-c", EXECUTE, cwd=tmp_path, JUPYTER_PATH=share)
    cells = read(tmp_path / "done.ipynb", as_version=4).cells
    home, source, fingerprint = cells[-1].outputs[-1].text.split()
    assert Path(home).is_relative_to(tmp_path) and Path(source).is_relative_to(tmp_path)
    assert fingerprint == fl.tasks.digits().fingerprint
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


# What pages and commands promise


def test_the_page_on_opening_it_elsewhere_names_what_exists():
    page = (ROOT / "docs" / "open_elsewhere.md").read_text(encoding="utf-8")
    assert f"notebooks/{START.name}" in page and START.exists()
    assert "name: fedlora-lab\n" in (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "conda activate fedlora-lab" in page and '"fedlora-lab @ git+https://' in page


def test_make_help_names_every_command():
    phony = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
    assert phony == set(re.findall(r"^  make ([a-z]+)", run("make", "help"), re.M))


def test_tests_run_under_the_arithmetic_that_is_asked_for():
    """`make test` runs python under it, so every process that tests start has it too."""
    settings = {"default": "ATEN_CPU_CAPABILITY=default", "compatible": "MKL_CBWR=COMPATIBLE"}
    for target, (name, setting) in itertools.product(("test", "trained"), settings.items()):
        assert f" {setting} " in run("make", "-n", target, f"ARITHMETIC={name}")
    kind = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    assert run(sys.executable, "-c", kind, ATEN_CPU_CAPABILITY="default") == "DEFAULT\n"
    with pytest.raises(AssertionError, match="ARITHMETIC=x87: expected default, avx2"):
        run("make", "test", "ARITHMETIC=x87")


@pytest.mark.slow
def test_no_file_tells_about_the_machine_it_was_written_on():
    pattern = re.compile("(/wo" + "rk/|/ro" + "ot/|file:" + "///|/op" + "t/)")
    suffixes = ("py", "toml", "yml", "yaml", "md", "txt", "json", "html", "cff", "ipynb", "csv")
    skip = {".git", ".venv", ".hypothesis", "runs", "build", "dist", "shared"}
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
        for path in ROOT.rglob("*")
        if not skip & set(path.relative_to(ROOT).parts)
        and "cache" not in str(path)
        and path.is_file()
        and (not path.suffix or path.suffix[1:] in suffixes)
        for line in path.read_text(errors="ignore").splitlines()
        if pattern.search(line)
    ]
    assert found == []


SHARED_FILES = ("accounting.py", "options.py", "plan.py")


def test_every_module_has_a_name_of_its_own_and_the_core_knows_no_course():
    """Except lessons, which are laid out alike, and a room's accounting, options and plan."""
    home = PACKAGE
    files = [path for path in home.rglob("*.py") if path.name != "__init__.py"]
    files = [path for path in files if not path.parent.name.startswith("lesson_")]
    names = [path.name for path in files if path.name not in SHARED_FILES]
    assert len(names) == len(set(names)) and not list(home.glob("[!_]*.py"))
    rooms = ("methods", "privacy", "lora", "tasks", "federated")
    core = "\n".join(
        path.read_text("utf-8") for room in rooms for path in (home / room).rglob("*.py")
    )
    assert not re.search(r"fedlora_lab(\.| import )(course|plots|experiments|flower)", core)


TWICE = {
    "Metric": "a score of a task; the inner product in which the privatizer clips",
    "amplification": "fl.amplification of a run, fl.theory.amplification in closed form",
    "predict": "fl.predict gives a model's outputs, fl.course.exercises.predict asks a reader",
    "show": "fl.show opens a source, fl.course.exercises.show an exercise",
}
"""Public names that two modules define, each the word for both things in the course."""


def test_no_public_function_class_or_type_is_defined_twice():
    """Except in lessons, commands and mistakes, whose names stay there. Finds a name that a second
    module takes for another thing, which no import, type or test of either module shows."""
    found: Counter[str] = Counter()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name.startswith(("lesson_", "_")) or path.parent.name in ("cli", "mistakes"):
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            if isinstance(node, ast.Assign):  # a type's alias is written like a class
                targets = (x.id for x in node.targets if isinstance(x, ast.Name))
                names = [x for x in targets if x[0].isupper() and not x.isupper()]
            found.update(name for name in names if not name.startswith("_"))
    assert {name for name, count in found.items() if count > 1} == set(TWICE)
