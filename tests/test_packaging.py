"""The folder as a product: one list of dependencies, pins inside it, a light import, data files in the wheel."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = ("text", "flower", "dev")


def requirements(extras: tuple[str, ...] = EXTRAS) -> set[str]:
    return {
        text
        for part in [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
        for text in part
    }


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("==") for line in lines)


def test_environment_equals_pyproject():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in listed if isinstance(entry, dict))
    assert {text for text in pip if not text.startswith("-")} == requirements()
    assert {text for text in pip if text.startswith("-")} == {"--constraint constraints.txt", "--editable ."}
    assert f"python{PROJECT['requires-python']}" in listed


def test_every_pin_is_a_plain_version_inside_its_range():
    text = (ROOT / "constraints.txt").read_text()
    assert re.fullmatch(r"(#.*\n)+([a-z0-9-]+==[0-9][0-9a-z.]*\n)+", text), (
        "only name==version, no address, no local build"
    )
    assert pins()["torch"] == "2.13.0"
    for requirement in map(Requirement, requirements()):
        assert Version(pins()[canonicalize_name(requirement.name)]) in requirement.specifier, requirement


def test_pins_are_closed_under_what_the_packages_need():
    script = (
        "import runpy; module = runpy.run_path('scripts/pins.py');"
        "print(*sorted(module['closure'](module['wanted'](('dev', 'text', 'flower')))))"
    )
    names = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(names) <= set(pins())


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_every_pin_installs_on_the_first_release_of_each_python(python):
    """A system's own Python 3.11 is often an early one; a pin that asks for a later one cannot be installed there."""
    assert python in SpecifierSet(PROJECT["requires-python"])
    installed: dict[str, str] = {canonicalize_name(d.name): d.metadata["Requires-Python"] for d in distributions()}
    asked = {name: installed[name] for name in pins() if name in installed}
    assert len(asked) > 100
    assert [name for name, versions in asked.items() if versions and python not in SpecifierSet(versions)] == []


def test_version_is_told_once():
    import fedlora_lab

    assert fedlora_lab.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_import_is_light():
    script = (
        "import sys, time; start = time.perf_counter(); import fedlora_lab; took = time.perf_counter() - start;"
        "heavy = {'torch', 'pandas', 'matplotlib', 'peft', 'transformers'} & set(sys.modules);"
        "assert not heavy, heavy; print(took)"
    )
    took = [
        float(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(took) <= 0.3


def test_names_are_lazy_listed_and_explained():
    import fedlora_lab as fl

    for name in (
        "tasks",
        "Plan",
        "Lora",
        "Privacy",
        "run",
        "compare",
        "plots",
        "methods",
        "show",
        "Cycle",
        "Method",
        "theory",
        "widgets",
        "save_adapter",
        "to_frame",
        "partition",
        "privacy",
        "ticks",
        "exercises",
    ):
        assert name in dir(fl)
    assert fl.Plan.__module__ == "fedlora_lab.plan"
    with pytest.raises(AttributeError, match="has no attribute 'plan_b'; it has: "):
        _ = fl.plan_b


def test_editors_see_the_names_that_run():
    import ast

    import fedlora_lab

    tree = ast.parse((ROOT / "fedlora_lab" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert told == set(fedlora_lab._HOMES) == set(fedlora_lab.__all__)


def test_no_lazy_name_is_hidden_by_a_module_of_the_same_name():
    # Importing fedlora_lab.compare, were there such a file, would put the module where fl.compare (a function) belongs.
    import fedlora_lab

    folder = ROOT / "fedlora_lab"
    modules = {path.stem for path in folder.glob("*.py")} | {path.name for path in folder.iterdir() if path.is_dir()}
    functions = {name for name, (_, attribute) in fedlora_lab._HOMES.items() if attribute is not None}
    assert functions & modules == set()


def test_every_lazy_name_resolves_to_its_home():
    import fedlora_lab

    missing = []
    for name, (home, _) in fedlora_lab._HOMES.items():
        there = (ROOT / "fedlora_lab" / f"{home}.py").exists() or (ROOT / "fedlora_lab" / home / "__init__.py").exists()
        if not there or getattr(fedlora_lab, name, None) is None:
            missing.append(name)
    assert missing == []


def test_wheel_carries_code_and_data(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    # setuptools writes its build folder beside the source; a copy keeps the checkout clean.
    copy = tmp_path / "copy"
    for path in [*(ROOT / "fedlora_lab").rglob("*"), ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"]:
        if path.is_file() and "__pycache__" not in path.parts:
            target = copy / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    command[-1] = str(copy)
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONWARNINGS": "ignore"})
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        inside = {name for name in wheel.namelist() if name.startswith("fedlora_lab/")}
    source = {str(path.relative_to(copy)) for path in (copy / "fedlora_lab").rglob("*") if path.is_file()}
    assert inside == source


def test_make_help_names_every_command():
    makefile = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split())
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert phony == set(re.findall(r"^  make ([a-z]+)", shown, re.M))
    assert {"setup", "lab", "test", "compare", "bench", "lint", "clean"} <= phony


def test_no_file_tells_about_the_machine_it_was_written_on():
    pattern = re.compile("(/wo" + "rk/|/ro" + "ot/|file:" + "///|/op" + "t/)")
    suffixes = {".py", ".toml", ".yml", ".yaml", ".md", ".txt", ".json", ".html", ".cff", ".ipynb", ".csv", ""}
    skip = {".git", ".venv", ".hypothesis", "runs", "build", "dist", "shared"}
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()[:80]}"
        for path in ROOT.rglob("*")
        if not skip & set(path.relative_to(ROOT).parts)
        and "cache" not in str(path)
        and path.is_file()
        and path.suffix in suffixes
        for line in path.read_text(errors="ignore").splitlines()
        if pattern.search(line)
    ]
    assert found == []
