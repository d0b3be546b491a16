"""What is installed, what runs here, and the command that adds what is missing."""

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version

import click
from packaging.requirements import Requirement

from fedlora_lab._utils.environment import __version__, install_command


def check_up() -> bool:
    """Prints one line for each; tells whether all is there that does not belong to an extra."""
    click.echo(f"fedlora-lab {__version__}")
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    _show(True, "Python", f"{platform.python_version()}, {system}")
    missing = set()
    for requirement in map(Requirement, requires("fedlora-lab") or []):
        extra = str(requirement.marker or "").partition("extra ==")[2].strip(" '\"")
        try:
            value = version(requirement.name)
        except PackageNotFoundError:
            value = "missing"
        fits = value != "missing" and requirement.specifier.contains(value, prereleases=True)
        wanted = "" if fits else f", needs {requirement.specifier}"
        name = f"{requirement.name} [{extra}]" if extra else requirement.name
        _show(fits, name, value + wanted)
        if not fits:
            missing.add(extra)
    try:
        import torch

        from fedlora_lab import tasks

        tasks.digits()  # whether its weights and scans are as they were
        device = torch.accelerator.current_accelerator() or "cpu"
        _show(True, "digits", f"ready, on {device} with {torch.get_num_threads()} threads")
    except (ImportError, ValueError) as error:
        _show(False, "digits", str(error))
        missing.add("")
    click.echo("What is missing can be added with:" if missing else "Nothing is missing.")
    for extra in sorted(missing):
        click.echo(f"  {install_command(extra)}")
    return "" not in missing


def _show(ok: bool, name: str, value: str) -> None:
    click.echo(f"  {'ok' if ok else '--'}  {name:<28}  {value}")
