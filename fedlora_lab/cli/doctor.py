"""What is installed, what runs here, and the command that adds what is missing.

>>> from fedlora_lab.cli import doctor
>>> [row.name for row in doctor.network_rows()]
['huggingface.co']
"""

import os
import platform
import shutil
import sys
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from fedlora_lab._utils.environment import IN_CHECKOUT, SOURCE, __version__, install_command
from fedlora_lab.cli import status

CORE = "core"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class DoctorRow:
    """One line of the report.

    Args:
        part: the heading that it stands below; an extra of the package by its name.
        name, found: what was looked for, and what is there.
        ok: it will do.
        needed: the core needs it.
        remedy: the command that adds it.
    """

    part: str
    name: str
    found: str
    ok: bool = True
    needed: bool = False
    remedy: str = ""


def check_up() -> bool:
    """Prints all rows; tells whether all that the core needs is there."""
    rows = [*machine_rows(), *package_rows(), *tool_rows(), digits_row(), *network_rows()]
    status.say(format_rows(rows))
    return all(row.ok for row in rows if row.needed)


def requirement_row(part: str, requirement: Requirement) -> DoctorRow:
    """Looks for one required package in a version that fits.

    Args: part: `CORE`, or the extra that requires it. requirement: as in the metadata.
    """
    remedy = install_command("" if part == CORE else part)
    row = DoctorRow(part, requirement.name, "missing", False, part == CORE, remedy)
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return row
    if requirement.specifier.contains(installed, prereleases=True):
        return replace(row, found=installed, ok=True)
    return replace(row, found=f"{installed}, out of range {requirement.specifier}")


def package_rows() -> list[DoctorRow]:
    """One row for each requirement that this package's own metadata lists, extras included."""
    rows = []
    for requirement in map(Requirement, requires("fedlora-lab") or []):
        _, is_extra, part = str(requirement.marker or "").rpartition("extra ==")
        rows.append(requirement_row(part.strip(" '\"") if is_extra else CORE, requirement))
    return rows


def machine_rows() -> list[DoctorRow]:
    """System, Python, cores, free disk space and accelerator."""
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    python = DoctorRow("here", "Python", platform.python_version(), supported, True)
    rows = [
        DoctorRow("here", "system", f"{platform.system()} {platform.machine()}"),
        replace(python, remedy="make setup PYTHON=python3.12"),
        DoctorRow("here", "cores", str(os.cpu_count())),
        DoctorRow("here", "free disk", f"{free:.1f} GiB"),
    ]
    try:
        import torch
    except ImportError as error:
        broken = DoctorRow("here", "torch", f"does not load: {error}", False, True, "make setup")
        return [*rows, broken]
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.get_device_name()})"
    return [*rows, DoctorRow("here", "computes on", f"{device}, {torch.get_num_threads()} threads")]


def tool_rows() -> list[DoctorRow]:
    """JupyterLab, and the browser for the browser tests."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    lab = shutil.which("jupyter-lab", path=folders)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    tools = [("jupyter lab", lab, "make setup"), ("browser", browser, "apt-get install chromium")]
    return [
        DoctorRow("tools", name, path or "missing", bool(path), remedy=remedy)
        for name, path, remedy in tools
    ]


def digits_row() -> DoctorRow:
    """Whether the weights and scans of the task that comes with the package are as they were."""
    from fedlora_lab import tasks

    row = DoctorRow("tasks", "digits", "ready", needed=True)
    try:
        tasks.digits()
    except ValueError as error:
        restore = f"git -C '{SOURCE}' restore fedlora_lab/tasks/data"
        again = f"{install_command()} --no-deps --force-reinstall"
        return replace(row, found=str(error), ok=False, remedy=restore if IN_CHECKOUT else again)
    return row


def network_rows() -> list[DoctorRow]:
    """One row for each host that a task may connect to; nothing else here uses a network.

    Guarantees: test_the_process_is_left_as_it_was_and_asks_no_network.
    """
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    return [DoctorRow("network", hub or "huggingface.co", "for models and data of fl.tasks.hub")]


def format_rows(rows: list[DoctorRow]) -> str:
    """Sets the rows as a table, one part after another, and at the end what helps."""
    lines = [f"fedlora-lab {__version__}"]
    width = max(len(row.name) for row in rows)
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", part if part in (CORE, "here", "tools", "tasks", "network") else f"[{part}]"]
        for row in (row for row in rows if row.part == part):
            mark = "ok" if row.ok else "!!" if row.needed else "--"
            lines.append(f"  {mark}  {row.name:<{width}}  {row.found}")
    remedies = dict.fromkeys(row.remedy for row in rows if not row.ok and row.remedy)
    lines += ["", "What is missing can be added with:" if remedies else "Nothing is missing."]
    return "\n".join([*lines, *(f"  {remedy}" for remedy in remedies)])
