"""What is installed, what runs here, and the command that adds what is missing.

>>> from fedlora_lab.cli import doctor
>>> doctor.digits_row().value
'ready'
"""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

import click
from packaging.requirements import Requirement

from fedlora_lab._utils.environment import IN_CHECKOUT, SOURCE, __version__, install_command


class Row(NamedTuple):
    """One line of the report.

    Args:
        name, value: what was looked for, and what is there.
        ok: it will do.
        remedy: the command that adds it.
        extra: of the package, to which it belongs; "": it is needed.
    """

    name: str
    value: str
    ok: bool = True
    remedy: str = ""
    extra: str = ""


def check_up() -> bool:
    """Prints all rows; tells whether all that does not belong to an extra is there."""
    rows = [*machine_rows(), *package_rows(), digits_row()]
    click.echo(f"fedlora-lab {__version__}")
    for row in rows:
        name = f"{row.name} [{row.extra}]" if row.extra else row.name
        click.echo(f"  {'ok' if row.ok else '--'}  {name:<28}  {row.value}")
    remedies = dict.fromkeys(row.remedy for row in rows if not row.ok)
    click.echo("What is missing can be added with:" if remedies else "Nothing is missing.")
    for remedy in remedies:
        click.echo(f"  {remedy}")
    return all(row.ok or row.extra for row in rows)


def package_rows() -> list[Row]:
    """One row for each requirement that this package's own metadata lists, extras included."""
    rows = []
    for requirement in map(Requirement, requires("fedlora-lab") or []):
        _, is_extra, name = str(requirement.marker or "").rpartition("extra ==")
        rows.append(requirement_row(requirement, name.strip(" '\"") if is_extra else ""))
    return rows


def requirement_row(requirement: Requirement, extra: str = "") -> Row:
    """Looks for one required package in a version that fits.

    Args: requirement: as in the metadata. extra: that requires it, if one does.
    """
    try:
        value = version(requirement.name)
    except PackageNotFoundError:
        value = ""
    fits = bool(value) and requirement.specifier.contains(value, prereleases=True)
    if not fits:
        value = f"{value}, out of range {requirement.specifier}" if value else "missing"
    return Row(requirement.name, value, fits, install_command(extra), extra)


def machine_rows() -> list[Row]:
    """System, Python and what computes."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    system = f"{platform.system()} {platform.machine()}"
    rows = [
        Row("system", f"{system}, {os.cpu_count()} cores, {free:.1f} GiB of disk free"),
        Row("Python", platform.python_version()),
    ]
    try:
        import torch
    except ImportError as error:
        return [*rows, Row("computes on", f"torch does not load: {error}", False, "make setup")]
    device = torch.accelerator.current_accelerator() or "cpu"
    return [*rows, Row("computes on", f"{device}, {torch.get_num_threads()} threads")]


def digits_row() -> Row:
    """Whether the weights and scans of the task that comes with the package are as they were."""
    from fedlora_lab import tasks

    try:
        tasks.digits()
    except ValueError as error:
        remedy = f"{install_command()} --no-deps --force-reinstall"
        if IN_CHECKOUT:
            remedy = f"git -C '{SOURCE}' restore fedlora_lab/tasks/data"
        return Row("digits", str(error), False, remedy)
    return Row("digits", "ready")
