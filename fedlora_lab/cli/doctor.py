"""The command doctor: what is installed, what runs here, and the command that adds what is missing.

>>> from fedlora_lab.cli import doctor
>>> [row.name for row in doctor.network_rows()]
['huggingface.co', 'pypi.org', 'files.pythonhosted.org']
"""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import click
from packaging.requirements import Requirement

from fedlora_lab import __version__
from fedlora_lab._utils.environment import IN_CHECKOUT, SOURCE, install_command
from fedlora_lab.cli import status

CORE = "core"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class DoctorRow(NamedTuple):
    """One line of the report."""

    part: str
    name: str
    found: str  # what is there
    ok: bool = True  # it will do
    needed: bool = False  # the core needs it
    help: str = ""  # the command that adds it


def requirement_row(part: str, requirement: Requirement) -> DoctorRow:
    """Whether one required package is installed in a version that fits, else how to install it."""
    help = install_command("" if part == CORE else part)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return DoctorRow(part, requirement.name, "missing", False, part == CORE, help)
    ok = requirement.specifier.contains(found, prereleases=True)
    found += "" if ok else f", out of range {requirement.specifier}"
    return DoctorRow(part, requirement.name, found, ok, part == CORE, help)


def package_rows() -> list[DoctorRow]:
    """One row for each requirement that this package's own metadata lists, extras included."""
    rows = []
    for requirement in map(Requirement, requires("fedlora-lab") or []):
        _, is_extra, part = str(requirement.marker or "").rpartition("extra ==")
        rows.append(requirement_row(part.strip(" '\"") if is_extra else CORE, requirement))
    return rows


def machine_rows() -> list[DoctorRow]:
    """System, Python, cores, free disk space and accelerator."""
    right, help = (3, 11) <= sys.version_info[:2] < (3, 14), "make setup PYTHON=python3.12"
    affinity, free = getattr(os, "sched_getaffinity", None), shutil.disk_usage(Path.cwd()).free
    rows = [
        DoctorRow("here", "system", f"{platform.system()} {platform.machine()}"),
        DoctorRow("here", "Python", platform.python_version(), right, True, help),
        DoctorRow("here", "cores", str(len(affinity(0)) if affinity else os.cpu_count())),
        DoctorRow("here", "free disk", f"{free / 2**30:.1f} GiB"),
    ]
    try:
        import torch
    except ImportError as error:
        return [
            *rows,
            DoctorRow("here", "torch", f"does not load: {error}", False, True, "make setup"),
        ]
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else device
    return [*rows, DoctorRow("here", "computes on", f"{device}, {torch.get_num_threads()} threads")]


def tool_rows() -> list[DoctorRow]:
    """JupyterLab, and the browser for the browser tests."""
    lab = shutil.which("jupyter-lab", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    tools = [("jupyter lab", lab, "make setup"), ("browser", browser, "apt-get install chromium")]
    return [
        DoctorRow("tools", name, found or "missing", bool(found), help=h)
        for name, found, h in tools
    ]


def task_rows() -> list[DoctorRow]:
    """Whether the embedded tasks are ready."""
    from fedlora_lab import tasks

    digits = DoctorRow("tasks", "digits", "ready", True, True)
    if IN_CHECKOUT:
        help = f"git -C '{SOURCE}' restore fedlora_lab/tasks/data"
    else:
        help = f"{install_command()} --no-deps --force-reinstall"
    try:
        tasks.digits()
    except ValueError as error:
        digits = digits._replace(found=str(error), ok=False, help=help)
    return [DoctorRow("tasks", "regression", "ready"), digits]


def network_rows() -> list[DoctorRow]:
    """One row for each host that a task may connect to; nothing else here uses a network.

    Guarantees: test_no_surprises.py::test_a_first_use_asks_no_network_and_freezes_nothing,
        ::test_only_listed_hosts_are_asked.
    """
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    hosts = {hub or "huggingface.co": "for models and data of fl.tasks.hub"}
    return [DoctorRow("network", host, what) for host, what in hosts.items()]


def format_rows(rows: list[DoctorRow]) -> str:
    """The rows as a table, one part after another, and at the end what helps."""
    lines = [f"fedlora-lab {__version__}"]
    width = max(len(row.name) for row in rows)
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", part if part in (CORE, "here", "tools", "tasks", "network") else f"[{part}]"]
        for row in (row for row in rows if row.part == part):
            mark = "ok" if row.ok else "!!" if row.needed else "--"
            lines.append(f"  {mark}  {row.name:<{width}}  {row.found}")
    commands = dict.fromkeys(row.help for row in rows if not row.ok and row.help)
    lines += ["", "Nothing is missing." if not commands else "What is missing can be added with:"]
    return "\n".join([*lines, *(f"  {command}" for command in commands)])


@click.command("doctor")
def doctor_command() -> None:
    """Show what is installed, what runs here, and the command that adds what is missing."""
    rows = [*machine_rows(), *package_rows(), *tool_rows(), *task_rows(), *network_rows()]
    status.say(format_rows(rows))
    if any(row.needed and not row.ok for row in rows):
        raise SystemExit(1)
