"""A private step on a GPU beside the plain step and Opacus, on models of usual size with random
weights; and whole federations of a thousand clients.

    python -m benchmarks.gpu --minutes 30           writes results/gpu-DEVICE.jsonl and .md
    python -m benchmarks.gpu --device cpu --tiny    toy sizes on a processor, to a temporary folder

Nothing is downloaded: a step takes as long whatever the weights are. Frozen linear maps multiply in
bfloat16, factors, clip and noise are float32. Every measurement is kept when it is done and the
same command goes on with those that are missing; none begins that would end after the minutes.
"""

import gc
import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from benchmarks.__main__ import HERE, processor
from benchmarks.crowd import crowd
from benchmarks.page import spread
from fedlora_lab._utils.files import append_line, read_lines, write_atomically
from fedlora_lab._utils.markdown import markdown_table

if TYPE_CHECKING:
    from fedlora_lab.tasks.task import Task

PEERS = ("stacked", "plain", "opacus", "ghost")
CLIENTS, EACH, RANK, CHUNK = (1, 10, 100), 8, 8, 64
"""Clients, examples of each in a step, rank, and how many examples go through a model at once."""
TOKENS, TURNS = 128, 5
CROWD, ROUNDS = 1_000, 20

# Model -> Transformers' class and configuration, and the configuration of its toy.
MODELS: dict[str, tuple[str, str, dict[str, int], dict[str, int]]] = {
    "ViT-B": (
        "ViTForImageClassification",
        "vit",
        {"num_labels": 10},
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 64, "image_size": 16, "patch_size": 8, "num_labels": 3},
    ),
    "RoBERTa-large": (
        "RobertaForSequenceClassification",
        "roberta",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"intermediate_size": 4096, "vocab_size": 50_265, "max_position_embeddings": 514}
        | {"num_labels": 2},
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 40}
        | {"num_labels": 2},
    ),
    "decoder of 1 B": (
        "LlamaForCausalLM",
        "llama",
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 32_000},
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        | {"num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 50},
    ),
}


def random_task(name: str, clients: int, tiny: bool) -> "Task":
    """A task of a random model and random examples of full length.

    Args: name: of `MODELS`. clients: each with `EACH` examples. tiny: the toy of that model.
    """
    import torch
    import transformers

    import fedlora_lab as fl
    from fedlora_lab.tasks.architectures import default_targets
    from fedlora_lab.tasks.metrics import next_token_loss

    body, kind, usual, toy = MODELS[name]
    config: Any = transformers.AutoConfig.for_model(kind, **(toy if tiny else usual))
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, body)(config).eval().requires_grad_(False)

    def examples(count: int) -> tuple[Any, Any]:
        if kind == "vit":
            shape = (count, 3, config.image_size, config.image_size)
            x: Any = {"pixel_values": torch.randn(shape, generator=draw)}
        else:
            shape = (count, 16 if tiny else TOKENS)
            ids = torch.randint(3, config.vocab_size, shape, generator=draw)
            x = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if kind == "llama":
            return x, x["input_ids"].clone()
        return x, torch.randint(config.num_labels, (count,), generator=draw)

    given: dict[str, Any] = {"loss": next_token_loss, "metrics": {}} if kind == "llama" else {}
    return fl.tasks.Task(
        name=name,
        model=model,
        targets=default_targets(model),
        clients=tuple(examples(EACH) for _ in range(clients)),
        test=examples(2),
        **given,
    )


class Meter:
    """Seconds, peak memory and energy of what happens on a device."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = torch.device(device)
        self.on_gpu = self.device.type == "cuda"

    def wait(self) -> None:
        """Lets the device finish what it was given."""
        import torch

        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def begin(self) -> None:
        """Frees what is no longer needed; the peak begins anew."""
        import torch

        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> float:
        """MiB at most since `begin`; NaN on a processor, where other things lie in memory too."""
        import torch

        return torch.cuda.max_memory_allocated(self.device) / 2**20 if self.on_gpu else np.nan

    def watts(self) -> float:
        """What the driver says the device draws now; NaN where it says nothing."""
        if not self.on_gpu:
            return np.nan
        command = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        command += ["-i", str(self.device.index or 0)]
        try:
            said = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
            return float(said.split()[0])
        except (OSError, subprocess.SubprocessError, ValueError, IndexError):
            return np.nan


def measure_step(task: "Task", peer: str, device: str, turns: int) -> dict[str, Any]:
    """Seconds of each turn, peak memory, and joules of a step.

    Args: task: of `random_task`. peer: of `PEERS`. device: where. turns: steps timed.
    """
    from benchmarks import peers

    meter = Meter(device)
    meter.begin()
    how = peers.How(device=device, products="bfloat16", chunk=CHUNK)
    step = peers.PEERS[peer](task, EACH, RANK, how=how)
    step()  # warms up
    meter.wait()
    seconds, watts = [], []
    for _ in range(turns):
        begun = perf_counter()
        step()
        watts.append(meter.watts())  # while the device still works on what was launched
        meter.wait()
        seconds.append(perf_counter() - begun)
    if meter.on_gpu:  # asking the driver takes time: time the steps again without
        seconds = []
        for _ in range(turns):
            begun = perf_counter()
            step()
            meter.wait()
            seconds.append(perf_counter() - begun)
    joules = float(np.median(watts) * np.median(seconds))
    return {"seconds": seconds, "MiB": meter.peak(), "joules": joules}


def measure_federation(unit: str, device: str, clients: int, rounds: int) -> dict[str, Any]:
    """Seconds of each round of a whole run on `digits`, everyone taking part, and peak memory.

    Args: unit: "example" or "client". device: where. clients, rounds: how many.
    """
    import fedlora_lab as fl

    meter, task = Meter(device), crowd(clients)
    meter.begin()
    plan = fl.Plan(rounds=rounds, local_steps=1, batch=16, lr=0.3)
    privacy = fl.Privacy(unit=unit, clip_norm=0.5, noise_multiplier=1.0, delta=1e-5)
    options: dict[str, Any] = {"device": device, "chunk_examples": CHUNK}
    records = list(fl.run(task, "fedlora", privacy, plan, evaluate_every=rounds, **options))
    seconds = [record.seconds for record in records[1:]]
    return {"seconds": seconds, "MiB": meter.peak(), "joules": np.nan}


def jobs(tiny: bool) -> Iterator[dict[str, Any]]:
    """What is measured, the most wanted first."""
    for clients in (1, 2) if tiny else CLIENTS:
        for model in MODELS:
            yield from ({"what": model, "clients": clients, "peer": peer} for peer in PEERS)
        if clients == 1:
            for unit in ("example", "client"):
                yield {"what": "digits", "clients": 20 if tiny else CROWD, "peer": unit}


def measure_all(device: str, minutes: float, tiny: bool, path: Path) -> None:
    """Measures what is missing in a file of JSON lines until the minutes are over.

    Args: device: where. minutes: in all. tiny: toy sizes. path: of the file.
    """
    begun, longest, task = perf_counter(), 0.0, None
    done = {line["key"]: line for line in read_lines(path)}
    for job in jobs(tiny):
        key = f"{job['what']}, {job['clients']}, {job['peer']}"
        if key in done:
            continue
        if perf_counter() - begun + longest > 60 * minutes:
            click.echo("The minutes are over; the same command goes on.")
            return
        since, sizes = perf_counter(), (job["what"], job["clients"], tiny)
        if job["what"] in MODELS and (task is None or task[0] != sizes):
            task = None  # frees the old one first
            task = sizes, random_task(*sizes)
        found: dict[str, Any]
        try:
            if task is not None and task[0] == sizes:
                found = measure_step(task[1], job["peer"], device, 2 if tiny else TURNS)
            else:
                rounds = 2 if tiny else ROUNDS
                found = measure_federation(job["peer"], device, job["clients"], rounds)
        except (RuntimeError, NotImplementedError, ValueError, MemoryError) as error:
            # One that does not fit in memory, or that Opacus refuses, costs only itself.
            why = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            found = {"seconds": [], "MiB": None, "joules": None, "refused": why}
        longest = max(longest, perf_counter() - since)
        values = {k: None if isinstance(x, float) and np.isnan(x) else x for k, x in found.items()}
        append_line(path, {"key": key, **job, **values})
        click.echo(f"{key}: {found.get('refused') or spread(found['seconds']) + ' s'}")


def page(lines: list[dict[str, Any]], device: str) -> str:
    """The measurements in words and two tables.

    Args: lines: of the file. device: its name, and torch's version.
    """
    by = {(line["what"], line["clients"], line["peer"]): line for line in lines}
    head = ["model", "clients", "private, ms", "private / plain", "Opacus, hooks / private"]
    rows = [[*head, "ghost / private", "MiB: private, plain, hooks, ghost", "J: the same"]]
    for what, clients in dict.fromkeys((a, b) for a, b, _ in by if a != "digits"):
        found = [by.get((what, clients, peer), {}) for peer in PEERS]
        middle = [float(np.median(x["seconds"])) if x.get("seconds") else np.nan for x in found]
        own, plain, hooks, ghost = middle
        ratios = (1000 * own, own / plain, hooks / own, ghost / own)
        cells = [f"{x:.2f}" if np.isfinite(x) else "–" for x in ratios]
        for name in ("MiB", "joules"):
            cells.append(", ".join("–" if x.get(name) is None else f"{x[name]:.0f}" for x in found))
        rows.append([what, f"{clients}", *cells])
    whole = [["federation", "clients", "protected", "rounds", "s a round", "MiB"]]
    for (what, clients, unit), line in by.items():
        if what == "digits" and line["seconds"]:
            memory = "–" if line["MiB"] is None else f"{line['MiB']:.0f}"
            took = spread(line["seconds"])
            whole.append([what, f"{clients:,}", unit, f"{len(line['seconds'])}", took, memory])
    why = [f"- {line['key']}: {line['refused']}" for line in lines if line.get("refused")]
    refused = "\n\nNot measured:\n\n" + "\n".join(why) if why else ""
    return f"""# On {device}

By `python -m benchmarks.gpu`: random weights, {EACH} examples of each client, rank {RANK} on query
and value, texts of {TOKENS} tokens, frozen maps in bfloat16, at most {CHUNK} examples through the
model at once (Opacus: one client's). Medians of {TURNS} steps; energy is the driver's watts times
these seconds. A federation is FedLoRA on `digits`, 16 scans a client, everyone taking part.

{markdown_table(rows)}

{markdown_table(whole)}{refused}
"""


@click.command()
@click.option("--device", default="cuda", help="Such as cuda or cuda:1.  [cuda]")
@click.option("--minutes", default=30.0, type=click.FloatRange(0), help="In all.  [30]")
@click.option("--tiny", is_flag=True, help="Toy models, for a look at what would be done.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.")
def main(device: str, minutes: float, tiny: bool, out: Path | None) -> None:
    """Measure what is missing and write the page of this device."""
    warnings.simplefilter("ignore")  # Opacus warns of every hook; nothing here is tested
    import torch

    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("no GPU here; a look at toy sizes: --device cpu --tiny")
    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else processor()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{name}{' tiny' if tiny else ''}".lower()).strip("-")
    # Toy numbers are no results.
    out = out or (Path(tempfile.gettempdir()) / "fedlora-gpu" if tiny else HERE / "results")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"gpu-{slug}.jsonl"
    measure_all(device, minutes, tiny, path)
    text = page(list(read_lines(path)), f"{name}, torch {torch.__version__}")
    click.echo(text)
    write_atomically(path.with_suffix(".md"), text, shared=True)


if __name__ == "__main__":
    main()
