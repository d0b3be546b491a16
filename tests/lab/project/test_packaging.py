"""The folder as a product: one list of dependencies, a light import, a wheel that runs."""

import inspect
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
    assert {*pip} == NEEDED | {
        "--constraint constraints.txt",
        "--editable .",
        "--editable ./fedlora_course",
        "--editable ./dp_review",
    }
    assert any(str(entry).startswith(f"python{PROJECT['requires-python']}") for entry in listed)


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
    for name in fl.__all__:
        assert inspect.ismodule(getattr(fl, name)) or name not in modules, name


# The wheels

# The library alone, without Jupyter: every public name, a run, the command as its entry point
# starts it.
LIBRARY = """
import sys
from importlib.metadata import distribution
OTHERS = ("IPython", "anywidget", "ipykernel", "ipywidgets", "jupyterlab")
for name in (*OTHERS, "fedlora_course", "dp_review"):
    sys.modules[name] = None
import fedlora_lab as fl
for name in fl.__all__:
    getattr(fl, name)
list(fl.run(fl.tasks.digits(clients=2), "rolora", None, fl.Plan(rounds=1, local_steps=1, batch=8)))
sys.argv = ["fedlora-lab", "compare", "--help"]
distribution("fedlora-lab").entry_points["fedlora-lab"].load()()
"""
# The course beside the library, without what draws its controls.
COURSE = """
import sys
for name in ("IPython", "anywidget", "ipykernel", "ipywidgets", "jupyterlab", "traitlets"):
    sys.modules[name] = None
import fedlora_course as course
import fedlora_lab as fl
course.lesson(0).client_data(fl.tasks.digits(clients=2))
course.exercises.show("00.1")
for part in (lambda: course.widgets, lambda: course.lesson(1)):
    try:
        part()
    except ImportError as error:
        print("refused:", error)
"""
# The review alone, on a machine without PyTorch and without the library.
REVIEW = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "opacus", "pandas", "click", "fedlora_lab", "fedlora_course"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import dp_review
for mistake in ("A sum added to itself", "A divisor that counts the data"):
    one = dp_review.mistakes.MISTAKES[mistake]
    print(one.review().sound, one.review(sound=True).sound)
sys.argv = ["dp-review", "my_step.py:step"]
from importlib.metadata import distribution
distribution("dp-review").entry_points["dp-review"].load()()
"""
STEP = """
from dp_review.mistakes import DP_SGD_CLAIMS as claims, dp_sgd as step, examples
data, draws = examples(), 16
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """The three distributions, built from copies, for setuptools writes beside the source."""
    folder = tmp_path_factory.mktemp("wheels")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    sources = []
    for package in ("fedlora_lab", "fedlora_course", "dp_review"):
        source = folder / f"source of {package}"
        alone = (ROOT / package / "pyproject.toml").exists()
        shutil.copytree(ROOT / package, source if alone else source / package, ignore=ignored)
        if not alone:
            for name in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(ROOT / name, source)
        sources.append(source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, *sources, PYTHONWARNINGS="ignore")
    return folder


def install(wheels, package, place):
    """Unpacks a distribution, which holds every file of its package."""
    (wheel,) = wheels.glob(f"{package}-*.whl")
    shutil.unpack_archive(wheel, place, "zip")
    inside = {path.relative_to(place) for path in (place / package).rglob("*")}
    here = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*")}
    made = ("__pycache__", "build")  # and what an editable installation writes
    whole = {path for path in here if not {*made} & {*path.parts} and "egg-info" not in str(path)}
    assert inside == whole


@pytest.mark.slow
def test_the_wheel_of_the_library_is_whole_and_runs_alone(wheels, tmp_path):
    path = tmp_path / "installed"
    install(wheels, "fedlora_lab", path)
    shown = run(sys.executable, "-c", LIBRARY, cwd=tmp_path, PYTHONPATH=path, MPLBACKEND="agg")
    assert "Train several methods on TASK" in shown


@pytest.mark.slow
def test_the_wheel_of_the_course_is_whole_and_stands_on_the_library(wheels, tmp_path):
    path = tmp_path / "installed"
    for package in ("fedlora_lab", "fedlora_course"):
        install(wheels, package, path)
    shown = run(sys.executable, "-c", COURSE, cwd=tmp_path, PYTHONPATH=path, MPLBACKEND="agg")
    assert shown.count("refused: anywidget is not installed: run `") == 2


@pytest.mark.slow
def test_the_wheel_of_the_review_reviews_a_numpy_step_alone(wheels, tmp_path):
    path = tmp_path / "installed"
    install(wheels, "dp_review", path)
    (tmp_path / "my_step.py").write_text(STEP)
    shown = run(sys.executable, "-c", REVIEW, cwd=tmp_path, PYTHONPATH=path)
    assert shown.splitlines()[:2] == ["False True"] * 2
    assert "found nothing broken" in shown and (path / "dp_review" / "README.md").exists()


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
