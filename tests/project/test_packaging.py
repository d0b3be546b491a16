"""The folder as a product: one list of dependencies, a light import, a wheel that runs."""

import ast
import os
import re
import shutil
import sys
import tomllib

import pytest
import yaml
from commands import succeeded
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from places import ROOT

import fedlora_lab as fl

PACKAGE = ROOT / "fedlora_lab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
EXTRAS = ("lab", "text", "flower", "dev")
NEEDED = {*PROJECT["dependencies"]}.union(*(OPTIONAL[extra] for extra in EXTRAS))
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(line.split("==") for line in CONSTRAINTS.splitlines() if line and line[0] != "#")


OURS = ("PYTHON", "MPLBACKEND", "MAKE")
"""Beginnings of what this process tells its children and a command of its own should not hear."""


def run(*command, cwd=ROOT, **environment):
    """Output of a command that must succeed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return succeeded(*command, cwd=cwd, env=env | environment).stdout


# Dependencies


def test_environment_equals_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    assert {*pip} == NEEDED | {"--constraint constraints.txt", "--editable ."}
    assert f"python{PROJECT['requires-python']}" in listed


def test_pins_are_plain_versions_inside_their_ranges_and_closed():
    """No address and no local build; and what they install lacks nothing."""
    assert re.fullmatch(r"(#.*\n)+([a-z0-9-]+==[0-9][0-9a-z.]*\n)+", CONSTRAINTS)
    for requirement in map(Requirement, NEEDED):
        pinned = Version(PINS[canonicalize_name(requirement.name)])
        assert pinned in requirement.specifier, requirement
    assert run(sys.executable, "-m", "pip", "check").startswith("No broken requirements")


def test_setup_installs_each_pin_by_the_digests_of_its_files_and_torch_by_its_version():
    digests = r"^([a-z0-9-]+)==(\S+).*\\\n(?: +--hash=sha256:[0-9a-f]{64}.*\n)+"
    files = dict(re.findall(digests, LOCK, re.M))
    assert len(files) == len(re.findall(r"^\w", LOCK, re.M)) and "://" not in LOCK
    assert {name for name in PINS if name not in files} == {"torch"}
    assert all(PINS.get(name, version) == version for name, version in files.items())
    installs = run("make", "-B", "-n", "setup")
    assert "--no-deps --require-hashes -r requirements.lock" in installs
    assert "-c constraints.txt torch" in installs


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
    with pytest.raises(AttributeError, match="has no attribute 'zebra'; it has: "):
        _ = fl.zebra


# The wheel

# Without what the extra "lab" brings: every public name, the beginning of the course, what its
# controls say, and the command as its entry point starts it.
BEGIN = """
import sys
from importlib.metadata import distribution
for name in ("IPython", "anywidget", "ipykernel", "ipywidgets", "jupyterlab", "traitlets"):
    sys.modules[name] = None
import fedlora_lab as fl
for name in fl.__all__:
    getattr(fl, name)
for part in (lambda: fl.course.widgets, lambda: fl.course.lesson(1)):
    try:
        part()
    except ImportError as error:
        print("refused:", error)
task = fl.tasks.digits(clients=2)
fl.course.lesson(0).client_data(task)
fl.course.exercises.show("00.1")
list(fl.run(task, "rolora", None, fl.Plan(rounds=1, local_steps=1, batch=8)))
sys.argv = ["fedlora-lab", "methods"]
distribution("fedlora-lab").entry_points["fedlora-lab"].load()()
"""


@pytest.mark.further
@pytest.mark.slow
def test_the_wheel_is_whole_and_runs_elsewhere_without_jupyter(tmp_path):
    """Unpacked in an empty folder, before the checkout on the path. It is built from a copy, for
    setuptools writes beside the source.
    """
    copy = tmp_path / "source"
    place = tmp_path / "installed"
    shutil.copytree(PACKAGE, copy / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "."]
    run(sys.executable, "-m", "pip", "wheel", *options, copy, cwd=tmp_path, PYTHONWARNINGS="ignore")
    shutil.unpack_archive(next(tmp_path.glob("*.whl")), place, "zip")
    inside = {path.relative_to(place) for path in (place / PACKAGE.name).rglob("*")}
    here = {path.relative_to(ROOT) for path in PACKAGE.rglob("*")}
    assert inside == {path for path in here if "__pycache__" not in path.parts}
    shown = run(sys.executable, "-c", BEGIN, cwd=tmp_path, PYTHONPATH=place, MPLBACKEND="agg")
    assert all(slug in shown for slug in fl.methods.ALL)
    assert shown.count("refused: anywidget is not installed: run `") == 2
    assert "-m pip install 'fedlora-lab[lab]'`" in shown


# What a file may say


@pytest.mark.slow
def test_no_file_tells_about_the_machine_it_was_written_on():
    pattern = re.compile("(/wo" + "rk/|/ro" + "ot/|file:" + "///|/op" + "t/)")
    suffixes = ("py", "toml", "yml", "yaml", "md", "txt", "json", "html", "cff", "ipynb", "csv")
    skip = {".git", ".venv", ".hypothesis", "runs", "build", "dist", "shared"}
    for path in ROOT.rglob("*"):
        if skip & {*path.relative_to(ROOT).parts} or "cache" in str(path) or not path.is_file():
            continue
        if not path.suffix or path.suffix[1:] in suffixes:
            assert pattern.findall(path.read_text(errors="ignore")) == [], path


# The rooms, from the ground up, as docs/architecture.md draws them.
ROOMS = ("_utils", "theory", "methods", "tasks", "privacy", "lora", "measures", "federated")
ROOMS += ("plots", "report", "audit", "attacks", "recipes", "flower", "review", "course", "cli")


def test_a_room_imports_only_rooms_that_stand_lower():
    """Where a module is loaded; what a function imports when it is called is its own affair."""
    for path in PACKAGE.rglob("*/*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and "fedlora_lab." in node.module:
                below = node.module.split(".")[1]
                assert ROOMS.index(below) <= ROOMS.index(room), f"{path}: {node.module}"
