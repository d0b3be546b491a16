"""What is installed, what runs here, and the command that adds what is missing.

>>> from fedlora_lab.cli import doctor
>>> doctor.digits_row().value
'ready'
"""

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import click
from packaging.requirements import Requirement

from fedlora_lab._utils.environment import IN_CHECKOUT, SOURCE, __version__, install_command

CORE = "core"


class Row(NamedTuple):
    """One line of the report.

    Args:
        part: the heading that it stands below; an extra of the package by its name.
        name, value: what was looked for, and what is there.
        ok: it will do.
        remedy: the command that adds it.
    """

    part: str
    name: str
    value: str
    ok: bool = True
    remedy: str = ""


def check_up() -> bool:
    """Prints all rows; tells whether all that does not belong to an extra is there."""
    rows = [*machine_rows(), *package_rows(), digits_row()]
    click.echo(format_rows(rows))
    return all(row.ok for row in rows if not row.part.startswith("["))


def package_rows() -> list[Row]:
    """One row for each requirement that this package's own metadata lists, extras included."""
    rows = []
    for requirement in map(Requirement, requires("fedlora-lab") or []):
        _, is_extra, part = str(requirement.marker or "").rpartition("extra ==")
        rows.append(requirement_row(requirement, part.strip(" '\"") if is_extra else ""))
    return rows


def requirement_row(requirement: Requirement, extra: str = "") -> Row:
    """Looks for one required package in a version that fits.

    Args: requirement: as in the metadata. extra: that requires it, if one does.
    """
    part = f"[{extra}]" if extra else CORE
    remedy = install_command(extra)
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return Row(part, requirement.name, "missing", False, remedy)
    if requirement.specifier.contains(installed, prereleases=True):
        return Row(part, requirement.name, installed)
    value = f"{installed}, out of range {requirement.specifier}"
    return Row(part, requirement.name, value, False, remedy)


def machine_rows() -> list[Row]:
    """System, Python, free disk space and what computes."""
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    remedy = "make setup PYTHON=python3.12"
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    rows = [
        Row("here", "system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        Row("here", "Python", platform.python_version(), supported, remedy),
        Row("here", "free disk", f"{free:.1f} GiB"),
    ]
    try:
        import torch
    except ImportError as error:
        return [*rows, Row("here", "torch", f"does not load: {error}", False, "make setup")]
    device = "mps" if torch.backends.mps.is_available() else "cpu"
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.get_device_name()})"
    return [*rows, Row("here", "computes on", f"{device}, {torch.get_num_threads()} threads")]


def digits_row() -> Row:
    """Whether the weights and scans of the task that comes with the package are as they were."""
    from fedlora_lab import tasks

    try:
        tasks.digits()
    except ValueError as error:
        remedy = f"{install_command()} --no-deps --force-reinstall"
        if IN_CHECKOUT:
            remedy = f"git -C '{SOURCE}' restore fedlora_lab/tasks/data"
        return Row("tasks", "digits", str(error), False, remedy)
    return Row("tasks", "digits", "ready")


def format_rows(rows: list[Row]) -> str:
    """Sets the rows as a table, one part after another, and at the end what helps."""
    lines = [f"fedlora-lab {__version__}"]
    width = max(len(row.name) for row in rows)
    for part in dict.fromkeys(row.part for row in rows):
        lines += ["", part]
        for row in rows:
            if row.part == part:
                mark = "ok" if row.ok else "--"
                lines.append(f"  {mark}  {row.name:<{width}}  {row.value}")
    remedies = dict.fromkeys(row.remedy for row in rows if not row.ok)
    lines += ["", "What is missing can be added with:" if remedies else "Nothing is missing."]
    return "\n".join([*lines, *(f"  {remedy}" for remedy in remedies)])
