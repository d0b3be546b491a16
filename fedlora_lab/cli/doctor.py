"""The command doctor: what is installed, what runs here, and the command that adds what is missing.

>>> from fedlora_lab.cli import doctor
>>> [row.name for row in doctor.network_rows()]
['huggingface.co', 'pypi.org', 'files.pythonhosted.org']
"""

import copy
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, NamedTuple
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
    """Which embedded tasks are ready without a network, and where downloads are kept."""
    from fedlora_lab import tasks
    from fedlora_lab.tasks import downloads
    from fedlora_lab.tasks.digits import SCANS
    from fedlora_lab.tasks.sentiment import PARTS

    digits = DoctorRow("tasks", "digits", "ready", True, True)
    if IN_CHECKOUT:
        help = f"git -C '{SOURCE}' restore fedlora_lab/tasks/data"
    else:
        help = f"{install_command()} --no-deps --force-reinstall"
    try:
        tasks.digits()
    except ValueError as error:
        digits = digits._replace(found=str(error), ok=False, help=help)
    # The content of what was downloaded is hashed when it is used.
    rows = [DoctorRow("tasks", "regression", "ready"), digits]
    for name, parts, size in (("mnist", (SCANS,), "1.4 MB"), ("sentiment", PARTS, "92 MB")):
        absent = downloads.to_fetch(parts)
        help = f"python -c 'import fedlora_lab as fl; fl.tasks.{name}()'   (fetches {size} once)"
        found = f"to fetch: {', '.join(absent)}" if absent else "ready"
        rows.append(DoctorRow("tasks", name, found, not absent, help=help))
    return [*rows, DoctorRow("tasks", "downloads in", str(downloads.cache_folder()))]


def network_rows() -> list[DoctorRow]:
    """One row for each host that a task may connect to; nothing else here uses a network.

    Guarantees: test_no_surprises.py::test_a_first_use_asks_no_network_and_freezes_nothing,
        ::test_only_listed_hosts_are_asked.
    """
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname
    hosts = {hub or "huggingface.co": "for models and data of fl.tasks.hub"}
    hosts |= dict.fromkeys(
        ("pypi.org", "files.pythonhosted.org"), "for the tasks mnist and sentiment, first use only"
    )
    return [DoctorRow("network", host, what) for host, what in hosts.items()]


# ---- how large a model, and how many clients

TOKENS, BATCH, STEPS, CLIENTS = 64, 16, 5, (4, 10, 100)
"""What a round is taken to be: so many steps of so many texts of each client."""
AT_ONCE, SPARE, GIB = 16, 0.8, 2**30
"""Texts that go through a model together, and the share of the free memory that is counted on."""
PROBE_SECONDS = 2.0
PROBE = {"num_hidden_layers": 2}
"""Fewer layers of the same width, so that a step is short."""
BERT = {"vocab_size": 30522}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "MiniLM, 6 layers": (
        "bert",
        {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, **BERT},
    ),
    "DistilBERT": ("distilbert", {}),
    "RoBERTa base": ("roberta", {"vocab_size": 50265}),
    "GPT-2": ("gpt2", {}),
    "RoBERTa large": (
        "roberta",
        {
            "vocab_size": 50265,
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "Llama, 1 billion": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "intermediate_size": 5632,
        },
    ),
    "Llama, 7 billion": ("llama", {}),
}
"""Name -> architecture of Transformers, and what differs from its defaults."""


def _model(config: Any, device: str) -> Any:
    """A text classifier of this configuration: on "meta" its shapes, else with random weights."""
    import torch
    import transformers

    config.num_labels = 2
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = 0
    with torch.random.fork_rng(devices=[]), torch.device(device):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    return model.eval().requires_grad_(False)


def _texts_task(model: Any, clients: int) -> Any:
    """A task of texts of `TOKENS` words, all alike."""
    import torch

    from fedlora_lab.tasks.architectures import default_head, default_targets
    from fedlora_lab.tasks.task import Task

    x = {"input_ids": torch.ones(BATCH, TOKENS, dtype=torch.int64)}
    pair = x, torch.zeros(BATCH, dtype=torch.int64)
    targets, head = default_targets(model), default_head(model)
    return Task("doctor", model, targets, (pair,) * clients, pair, head=head)


def measured_speed(seconds: float = PROBE_SECONDS) -> float:
    """Floating-point operations a second of the private step, per-example clip and noise included,
    of one client with some layers of the smallest model of `SIZES`, repeated for so many seconds.
    """
    import torch
    import transformers

    from fedlora_lab import Lora, Plan, methods
    from fedlora_lab._utils.random_streams import Streams
    from fedlora_lab.federated.cost import cost
    from fedlora_lab.federated.local_training import ClientBatch, RunContext, local_step
    from fedlora_lab.lora import peft

    kind, fields = next(iter(SIZES.values()))
    config = transformers.AutoConfig.for_model(kind, **(fields | PROBE))
    lora, plan, row = Lora(), Plan(batch=None), methods.FedLoRA
    flops = cost(_texts_task(_model(config, "meta"), 1), row, lora, plan).step_flops
    task = _texts_task(_model(config, "cpu"), 1)
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
    context = RunContext(task, adapted, row, plan, Streams(0), 1.0, (1.0,), task.clients)
    start = {key: tensor[None] for key, tensor in peft.initial_values(adapted, Streams(0)).items()}
    client, steps, begun = ClientBatch((0,), dict(start), start), -1, 0.0
    with torch.random.fork_rng(devices=[]):
        while steps < 1 or time.perf_counter() - begun < seconds:
            local_step(context, client, 0, steps + 1)
            steps += 1
            begun = begun or time.perf_counter()  # the first step warms up
    return steps * BATCH * flops / (time.perf_counter() - begun)


class Capacity(NamedTuple):
    """What this machine makes of a model."""

    name: str
    parameters: int
    memory: float  # bytes of a run with the fewest clients
    free: float  # bytes that may be used
    most: int  # clients whose adapters fit in memory at once
    seconds: float  # of a client's steps in a round

    def cells(self) -> list[str]:
        """The line of the table."""
        size = f"{self.parameters / 1e6:,.0f} M"
        need = f"{self.memory / GIB:.1f} GiB"
        if self.memory > self.free:
            return [self.name, size, need, "none", *["–" for _ in CLIENTS]]
        times = [_duration(self.seconds * clients) for clients in CLIENTS]
        return [self.name, size, need, f"{self.most:,}", *times]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 9.5 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def capacity(name: str, config: Any, speed: float, free: float, *, alike: bool = False) -> Capacity:
    """Counts what a model needs, by shapes alone.

    Args:
        name, config: of the model, by Transformers' configuration.
        speed: as of `measured_speed`.
        free: bytes that may be used.
        alike: all layers have the same shapes: two and three of them are counted for all.

    Guarantees: test_doctor.py::test_the_table_follows_from_the_formulas_of_cost.
    """
    from fedlora_lab import Lora, Plan, methods
    from fedlora_lab.federated.cost import FLOAT, Cost, cost, cost_of_layers

    plan = Plan(rounds=1, local_steps=STEPS, batch=BATCH)

    def counted(one: Any) -> Cost:
        return cost(_texts_task(_model(one, "meta"), 1), methods.FedLoRA, Lora(), plan)

    def with_layers(count: int) -> Cost:
        some = copy.deepcopy(config)
        some.num_hidden_layers = count
        return counted(some)

    found = cost_of_layers(with_layers, config.num_hidden_layers) if alike else counted(config)
    alone = found.memory(AT_ONCE, 1)
    each = 3 * FLOAT * found.moving
    most = 1 + max(0, int((free - alone) // each))
    return Capacity(name, found.parameters, alone, free, most, found.seconds(speed, plan, BATCH))


def read_config(model: str) -> Any:
    """The configuration of a model of one's own, by name or folder.

    Raises: ``ValueError`` in one line where there is none.
    """
    import transformers

    from fedlora_lab.tasks.architectures import cached_only

    try:
        here: dict[str, Any] = {"local_files_only": cached_only(model)}
        return transformers.AutoConfig.from_pretrained(model, **here)
    except Exception as error:  # which errors there are depends on the version
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        words = f"--model={model!r}: expected a Hugging Face name or a folder with config.json"
        raise ValueError(f"{words} ({reason})") from error


def capacity_lines(model: str | None, say: Callable[[str], Any]) -> None:
    """Says how large a model and how many clients this machine takes, line by line.

    Args: model: one of one's own, by name or folder, or ``None``. say: takes each line.
    """
    import torch
    import transformers

    from fedlora_lab.federated.compute import free_memory
    from fedlora_lab.tasks.architectures import quiet

    own = None if model is None else read_config(model)
    with quiet():
        speed, free = measured_speed(), SPARE * free_memory(torch.device("cpu"))
        threads = torch.get_num_threads()
        say(f"memory {free / GIB:.1f} GiB ({SPARE:.0%} of what is free), {speed / 1e9:.0f} GFLOP/s")
        first = next(iter(SIZES)).split(",")[0]
        say(f"in private steps of two layers of {first}, measured now with {threads} threads")
        heads = [f"{count} clients" for count in CLIENTS]
        say(_line(["model", "parameters", "memory", "at once", *heads]))
        for name, (kind, fields) in SIZES.items() if own is None else ():
            config = transformers.AutoConfig.for_model(kind, **fields)
            say(_line(capacity(name, config, speed, free, alike=True).cells()))
        if own is not None:
            say(_line(capacity(Path(str(model)).name, own, speed, free).cells()))
    say("memory: a run with one client; at once: clients whose adapters fit in it together (more")
    say(
        f"take turns, chunk_clients=); times: a round of {STEPS} steps of {BATCH} texts of {TOKENS}"
    )
    say("tokens each, on the processor, rank 4; larger models often run at a higher rate.")


def _line(cells: list[str]) -> str:
    return f"{cells[0]:<18}" + "".join(f"{cell:>12}" for cell in cells[1:])


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
@click.option("--model", metavar="DIR", help="A model of your own, by Hugging Face name or folder.")
def doctor_command(model: str | None) -> None:
    """Show what is installed, what runs here, and the command that adds what is missing; then how
    large a model and how many clients this machine takes, within 20 seconds."""
    rows = [*machine_rows(), *package_rows(), *tool_rows(), *task_rows(), *network_rows()]
    status.say(format_rows(rows))
    if any(row.needed and not row.ok for row in rows):
        raise SystemExit(1)
    click.echo("\nhow large a model, how many clients")
    status.begin("measuring")

    capacity_lines(model, lambda line: status.say(f"  {line}"))
