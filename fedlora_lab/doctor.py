"""What is installed, what runs here, what is missing and the one command that adds it."""

import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from fedlora_lab import __version__

CORE = "core"
SOURCE = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, whether it will do, and the command that helps."""

    part: str
    name: str
    found: str
    ok: bool = True
    needed: bool = False
    help: str = ""


def _adds(part: str) -> str:
    """The command that installs this package with a part, from the checkout when it runs from one."""
    extra = "" if part == CORE else f"[{part}]"
    name = f'-e "{SOURCE}{extra}"' if (SOURCE / "pyproject.toml").exists() else f'"fedlora-lab{extra}"'
    return f"{sys.executable} -m pip install {name}"


def _requirement(part: str, requirement: Requirement) -> Finding:
    help = _adds(part)
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return Finding(part, requirement.name, "missing", False, part == CORE, help)
    if requirement.specifier.contains(found, prereleases=True):
        return Finding(part, requirement.name, found, needed=part == CORE)
    words = f"{found}, out of range {requirement.specifier}"
    return Finding(part, requirement.name, words, False, part == CORE, help)


def packages() -> list[Finding]:
    """One finding for each requirement that this package's own metadata lists, extras included."""
    found = []
    for text in requires("fedlora-lab") or []:
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        part = marker.split("extra ==")[-1].strip(" '\"") if "extra ==" in marker else CORE
        requirement.marker = None
        found.append(_requirement(part, requirement))
    return found


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text().strip() if limit.exists() else "max"
    if words.isdigit():
        total = min(total, int(words))
    return f"{total / 2**30:.1f} GiB"


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _load() -> Finding:
    """How busy the machine was in the last minute: all threads of a step wait for the one that has lost its core."""
    load, cores = os.getloadavg()[0], _cores()
    free = max(1, int(cores - load))
    hint = f"; beside other programs OMP_NUM_THREADS={free} may be quicker" if load > 0.5 and free < cores else ""
    return Finding("here", "busy", f"{load:.1f} of {cores} cores in the last minute{hint}")


def _accelerator() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("here", "torch", f"does not load: {error}", False, True, _adds(CORE))
    device = "cpu"
    if torch.cuda.is_available():
        device = f"cuda ({torch.cuda.get_device_name()})"
    elif torch.backends.mps.is_available():
        device = "mps"
    one = torch.ones(2, 2, dtype=torch.bfloat16, device=device.split()[0])
    exact = float((one @ one).sum()) == 8.0
    return Finding(
        "here", "computes on", f"{device}, {torch.get_num_threads()} threads, bf16 {'yes' if exact else 'no'}"
    )


def machine() -> list[Finding]:
    """System, Python, cores, memory, accelerator and free disk space."""
    python = sys.version_info
    name = f"{platform.system()} {platform.machine()}"
    return [
        Finding("here", "system", name),
        Finding(
            "here",
            "Python",
            platform.python_version(),
            (3, 11) <= python[:2] < (3, 14),
            True,
            "make setup PYTHON=python3.12",
        ),
        Finding("here", "cores", str(_cores())),
        *([_load()] if hasattr(os, "getloadavg") else []),
        Finding("here", "memory", _memory()),
        Finding("here", "free disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB"),
        _accelerator(),
    ]


def tools() -> list[Finding]:
    """The browser for the browser tests, JupyterLab, and git."""
    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    jupyter = shutil.which("jupyter-lab") or (Path(sys.executable).parent / "jupyter-lab").exists()
    return [
        Finding("tools", "browser", browser or "missing", browser is not None, help="apt-get install chromium"),
        Finding("tools", "jupyter lab", "yes" if jupyter else "missing", bool(jupyter), help="make setup"),
        Finding(
            "tools",
            "git",
            "yes" if shutil.which("git") else "missing",
            bool(shutil.which("git")),
            help="apt-get install git",
        ),
    ]


def _sentiment() -> Finding:
    """Whether the parts that sentiment downloads once are here; their content is hashed when they are used."""
    from huggingface_hub import try_to_load_from_cache

    from fedlora_lab.tasks.download import cache_folder
    from fedlora_lab.tasks.sentiment import TEXTS, TOKENIZER, WEIGHTS

    def here(part: Any) -> bool:
        hub = part.hub is not None and isinstance(try_to_load_from_cache(part.hub, part.name), str)
        return hub or (cache_folder() / part.name).is_file()

    absent = [part.name for part in (WEIGHTS, TOKENIZER, TEXTS) if not here(part)]
    fetch = "python -c 'import fedlora_lab as fl; fl.tasks.sentiment()'   (fetches 92 MB once)"
    return Finding(
        "tasks", "sentiment", f"to fetch: {', '.join(absent)}" if absent else "ready", not absent, help=fetch
    )


def data() -> list[Finding]:
    """Which embedded tasks are ready without a network, and where downloads are kept."""
    from fedlora_lab.tasks.download import cache_folder

    found = [Finding("tasks", "regression", "ready")]
    try:
        from fedlora_lab import tasks

        tasks.digits()
        found.append(Finding("tasks", "digits", "ready", needed=True))
    except ValueError as error:
        found.append(Finding("tasks", "digits", str(error), False, True, "pip install --force-reinstall fedlora-lab"))
    return [*found, _sentiment(), Finding("tasks", "downloads in", str(cache_folder()))]


def hosts() -> dict[str, str]:
    """The hosts that a task may ask, and what for; nothing else here uses a network.

    Guarantees: test_no_surprises.py::test_no_network_without_a_task_that_needs_it, ::test_only_listed_hosts_are_asked.
    """
    from urllib.parse import urlsplit

    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or "huggingface.co"
    needed = "parts of sentiment, once; models and data of hub"
    return {hub: needed, "pypi.org": "parts of sentiment, once", "files.pythonhosted.org": "parts of sentiment, once"}


def network() -> list[Finding]:
    """One line for each host that may be asked."""
    return [Finding("network", host, f"for {what}") for host, what in hosts().items()]


def findings() -> list[Finding]:
    """Everything, in the order it is shown."""
    return [*machine(), *packages(), *tools(), *data(), *network()]


def text(found: list[Finding]) -> str:
    """The findings as a table, one part after another, and at the end what helps."""
    lines = [f"fedlora-lab {__version__}"]
    width = max(len(finding.name) for finding in found)
    for part in dict.fromkeys(finding.part for finding in found):
        lines += ["", part if part in (CORE, "here", "tools", "tasks", "network") else f"[{part}]"]
        lines += [
            f"  {'ok' if f.ok else '!!' if f.needed else '--'}  {f.name:<{width}}  {f.found}"
            for f in found
            if f.part == part
        ]
    commands = dict.fromkeys(f.help for f in found if not f.ok and f.help)
    lines += ["", "Nothing is missing." if not commands else "What is missing can be added with:"]
    return "\n".join([*lines, *(f"  {command}" for command in commands)])


def healthy(found: list[Finding]) -> bool:
    """Whether all that the core needs is there and in range."""
    return all(finding.ok for finding in found if finding.needed)
