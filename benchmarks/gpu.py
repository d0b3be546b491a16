"""Time a private step on a GPU beside the plain step and Opacus, on models of usual size.

    python -m benchmarks.gpu [--device cuda:1]    writes results/gpu-DEVICE.md
    python -m benchmarks.gpu --rows               writes results/gpu-DEVICE-rows.csv: does each row
                                                  of the table end on the GPU as on the CPU?
    python -m benchmarks.gpu --toy                tries every step on toys on the CPU, and writes
                                                  nothing

Nothing is downloaded: weights are random, and a step takes as long whatever they are. Frozen linear
maps multiply in bfloat16; factors, clip and noise are float32.
"""

import gc
import subprocess
import warnings
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import pandas as pd
import torch
import transformers

import fedlora_lab as fl
from benchmarks import peers
from benchmarks.__main__ import RESULTS
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import error_text
from fedlora_lab.tasks.metrics import token_loss
from scripts.page_blocks import markdown_table

CLIENTS, EACH, RANK = (1, 10, 100), 8, 8
"""Clients, examples of each in a step, and rank."""
CHUNK = 64
"""Examples that go through a model at once."""
TOKENS, TURNS = 128, 5
STEPS = {**peers.PEERS, "release": partial(peers.stacked, seed=None)}
"""What is timed; a release has no seed, and its noise comes from the operating system."""
TOY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

# Model -> Transformers' class and configuration, and what the toy has in place of its sizes.
MODELS: dict[str, tuple[str, str, dict[str, int], dict[str, int]]] = {
    "ViT-B": (
        "ViTForImageClassification",
        "vit",
        {"num_labels": 10},
        TOY | {"image_size": 16, "patch_size": 8},
    ),
    "RoBERTa-large": (
        "RobertaForSequenceClassification",
        "roberta",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
        | {"intermediate_size": 4096, "vocab_size": 50_265, "max_position_embeddings": 514}
        | {"num_labels": 2},
        TOY | {"vocab_size": 50, "max_position_embeddings": 40},
    ),
    "decoder of 1 B": (
        "LlamaForCausalLM",
        "llama",
        {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 32_000},
        TOY | {"num_key_value_heads": 1, "vocab_size": 50},
    ),
}


@cache
def random_model(name: str, tiny: bool) -> Any:
    """A frozen model of `MODELS`, or its toy. A billion weights take longer to draw than to use."""
    body, kind, sizes, toy = MODELS[name]
    config = transformers.AutoConfig.for_model(kind, **(sizes | toy if tiny else sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, body)(config).eval().requires_grad_(False)


TARGETS = {
    "roberta": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "vit": ("q_proj", "v_proj"),
}
"""Architecture -> its linear maps to queries and values."""


def random_task(name: str, clients: int, tiny: bool) -> fl.tasks.Task:
    """A task of a random model and random examples of full length.

    Args: name: of `MODELS`. clients: each with `EACH` examples. tiny: the toy of that model.
    """
    model = random_model(name, tiny)
    config, kind = model.config, model.config.model_type
    draw = torch.Generator().manual_seed(0)

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

    objective: dict[str, Any] = {"loss": token_loss, "metrics": {}} if kind == "llama" else {}
    return fl.tasks.Task(
        name=name,
        model=model,
        layers=fl.tasks.Layers(TARGETS[kind]),
        clients=[examples(EACH) for _ in range(clients)],
        held_out=fl.tasks.HeldOut(examples(2)),
        **objective,
    )


def free_memory() -> None:
    """Frees what is no longer needed; the peak of a GPU begins anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def time_steps(task: fl.tasks.Task, peer: str, device: str, turns: int) -> list[float]:
    """Seconds of each step after a first one, which warms up.

    Args: task: of `random_task`. peer: of `STEPS`. device: where. turns: steps timed.
    """
    how = peers.How(device=device, bfloat16=True, chunk=CHUNK)
    step = STEPS[peer](task, EACH, RANK, how=how)
    seconds = []
    for _ in range(turns + 1):
        begun = perf_counter()
        step()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - begun)
    return seconds[1:]


def measure(
    device: str, tiny: bool = False, models: Iterable[str] = tuple(MODELS)
) -> Iterator[dict[str, Any]]:
    """Measures every peer on every model: a row of the table each.

    Args: device: where. tiny: toy sizes. models: names of `MODELS`.
    """
    turns = 2 if tiny else TURNS
    for clients, model, peer in product((1, 2) if tiny else CLIENTS, models, STEPS):
        free_memory()
        try:
            seconds = time_steps(random_task(model, clients, tiny), peer, device, turns)
        except (RuntimeError, ValueError, MemoryError) as error:
            # One that does not fit in memory, or that Opacus refuses, costs only itself.
            click.echo(f"{model}, {clients}, {peer}: {error_text(error, 160)}")
            continue
        # A processor's memory holds other things.
        memory = "–"
        if torch.device(device).type == "cuda":
            memory = f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f}"
        yield {
            "model": model,
            "clients": clients,
            "step": peer,
            "ms": f"{1000 * median(seconds):.0f}",
            "MiB at most": memory,
        }


def steps_table(rows: list[dict[str, Any]], value: str) -> str:
    """A line for each model, a column for each number of clients; a cell has every peer's value.

    Args: rows: of `measure`. value: a column of theirs.
    """
    table = pd.DataFrame(rows).pivot_table(value, "model", "clients", " / ".join, sort=False)
    head = ["model", *(f"clients: {count}" for count in table)]
    return markdown_table([head, *table.fillna("–").reset_index().to_numpy().tolist()])


def page(rows: list[dict[str, Any]], device: str, commit: str) -> str:
    """The measurements in words and tables.

    Args: rows: of `measure`. device: its name, and torch's version. commit: of the code.
    """
    return f"""# On {device}

By `python -m benchmarks.gpu`: random weights, {EACH} examples of each client, rank {RANK} on query
and value, texts of {TOKENS} tokens, frozen maps in bfloat16, at most {CHUNK} examples through the
model at once (Opacus: one client's). In a cell: {" / ".join(STEPS)}.

Measured at the commit {commit}, with a seed; "release" is the private step without one, whose noise
comes from the operating system.

Milliseconds, medians of {TURNS} steps:

{steps_table(rows, "ms")}

MiB at most:

{steps_table(rows, "MiB at most")}
"""


def ends_of(slug: str, device: str) -> tuple[torch.Tensor, float]:
    """All numbers of the factors, and the test accuracy, after four private rounds on digits.

    Examples are protected, but clients where a row releases differences of losses.
    """
    unit = "client" if fl.methods.get(slug).differences else "example"
    privacy = fl.Privacy(unit=unit, delta=1e-4, noise_multiplier=0.8)
    plan = fl.Plan(rounds=4, local_steps=3, batch=16, lr=0.2)
    *_, end = fl.run(fl.tasks.digits(), slug, privacy, plan, seed=0, device=device)
    factors = [x.cpu().flatten() for pair in end.adapter.values() for x in pair]
    return torch.cat(factors), end.metrics["accuracy"]


def compare_rows(device: str) -> pd.DataFrame:
    """Trains every row on the CPU and on a device, with the same noise.

    Returns: a row each: method, how far the factors lie apart relative to their norm, and both
        test accuracies.
    """
    rows = []
    for slug in fl.methods.ALL:
        (here, before), (there, after) = ends_of(slug, "cpu"), ends_of(slug, device)
        rows.append((slug, float((there - here).norm() / here.norm()), before, after))
    return pd.DataFrame(rows, columns=["method", "factors_apart", "accuracy_cpu", "accuracy"])


@click.command(help=__doc__)
@click.option("--device", default="cuda", help="Such as cuda or cuda:1.  [cuda]")
@click.option("--rows", is_flag=True, help="Compare rows with the CPU in place of timing steps.")
@click.option("--toy", is_flag=True, help="Try every step on toys on the CPU; writes nothing.")
def main(device: str, rows: bool, toy: bool) -> None:
    warnings.simplefilter("ignore")  # Opacus warns of every hook; nothing here is tested
    if toy:
        for row in measure("cpu", tiny=True):
            click.echo(", ".join(map(str, row.values())))
        return
    name = torch.cuda.get_device_name(device)
    stem = f"gpu-{name.lower().replace(' ', '-')}"
    if rows:
        table = compare_rows(device)
        table.to_csv(RESULTS / f"{stem}-rows.csv", index=False, float_format="%.3g")
        click.echo(table.to_string(index=False))
        return
    time_all(device, name, RESULTS / f"{stem}.md")


def time_all(device: str, name: str, path: Path) -> None:
    """Measures every step, and writes the page after each."""
    git = ["git", "-C", str(RESULTS), "rev-parse", "--short=8", "HEAD"]
    commit = subprocess.run(git, capture_output=True, check=True, text=True).stdout.strip()
    rows = []
    for row in measure(device):
        rows.append(row)
        # After each: what was measured stands there if the machine is taken away.
        words = page(rows, f"{name}, torch {torch.__version__}", commit)
        write_atomically(path, words, shared=True)
        click.echo(", ".join(map(str, row.values())))


if __name__ == "__main__":
    main()
