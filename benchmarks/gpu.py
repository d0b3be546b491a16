"""Time a private step on a GPU beside the plain step and Opacus, on models of usual size.

    python -m benchmarks.gpu --minutes 30           writes results/gpu-DEVICE.jsonl and .md
    python -m benchmarks.gpu --device cpu --tiny    toy sizes on a processor, to a temporary folder

Nothing is downloaded: weights are random, and a step takes as long whatever they are. Frozen linear
maps multiply in bfloat16; factors, clip and noise are float32. A measurement is kept when it is
done, and the same command goes on with those that are missing; none begins that would probably end
after the minutes.
"""

import gc
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import click
import numpy as np
import torch
import transformers

import fedlora_lab as fl
from benchmarks import peers
from benchmarks.__main__ import HERE, processor, spread
from fedlora_lab._utils.files import append_line, read_lines, write_atomically
from fedlora_lab._utils.markdown import markdown_table
from fedlora_lab.tasks.architectures import default_targets
from fedlora_lab.tasks.metrics import next_token_loss

CLIENTS, EACH, RANK = (1, 10, 100), 8, 8
"""Clients, examples of each in a step, and rank."""
CHUNK = 64
"""Examples that go through a model at once."""
TOKENS, TURNS = 128, 5
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


def random_task(name: str, clients: int, tiny: bool) -> fl.tasks.Task:
    """A task of a random model and random examples of full length.

    Args: name: of `MODELS`. clients: each with `EACH` examples. tiny: the toy of that model.
    """
    body, kind, sizes, toy = MODELS[name]
    config: Any = transformers.AutoConfig.for_model(kind, **(sizes | toy if tiny else sizes))
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

    objective: dict[str, Any] = {"loss": next_token_loss, "metrics": {}} if kind == "llama" else {}
    return fl.tasks.Task(
        name=name,
        model=model,
        targets=default_targets(model),
        clients=tuple(examples(EACH) for _ in range(clients)),
        test=examples(2),
        **objective,
    )


def free_memory() -> None:
    """Frees what is no longer needed; the peak of a GPU begins anew."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> float | None:
    """MiB at most since `free_memory`; ``None`` on a processor, whose memory holds other things."""
    on_gpu = torch.device(device).type == "cuda"
    return torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None


def measure_step(task: fl.tasks.Task, peer: str, device: str, turns: int) -> dict[str, Any]:
    """Seconds of each step, and peak memory.

    Args: task: of `random_task`. peer: of `peers.PEERS`. device: where. turns: steps timed.
    """
    how = peers.How(device=device, products="bfloat16", chunk=CHUNK)
    step = peers.PEERS[peer](task, EACH, RANK, how=how)
    seconds = []
    for _ in range(turns + 1):  # the first warms up
        begun = perf_counter()
        step()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(perf_counter() - begun)
    return {"seconds": seconds[1:], "MiB": peak_memory(device)}


def jobs(tiny: bool) -> Iterator[dict[str, Any]]:
    """What is measured, the most wanted first."""
    for clients in (1, 2) if tiny else CLIENTS:
        for model in MODELS:
            for peer in peers.PEERS:
                yield {"what": model, "clients": clients, "peer": peer}


def measure_all(device: str, minutes: float, tiny: bool, path: Path) -> None:
    """Measures what is missing in a file of JSON lines until the minutes are over.

    Args: device: where. minutes: in all. tiny: toy sizes. path: of the file.
    """
    begun = perf_counter()
    longest = 0.0
    done = {line["key"] for line in read_lines(path)}
    for job in jobs(tiny):
        key = f"{job['what']}, {job['clients']}, {job['peer']}"
        if key in done:
            continue
        since = perf_counter()
        if since - begun + longest > 60 * minutes:
            click.echo("The minutes are over; the same command goes on.")
            return
        free_memory()
        result: dict[str, Any]
        try:
            task = random_task(job["what"], job["clients"], tiny)
            result = measure_step(task, job["peer"], device, 2 if tiny else TURNS)
        except (RuntimeError, ValueError, MemoryError) as error:
            # One that does not fit in memory, or that Opacus refuses, costs only itself.
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            result = {"seconds": [], "MiB": None, "refused": reason}
        longest = max(longest, perf_counter() - since)
        append_line(path, {"key": key, **job, **result})
        click.echo(f"{key}: {result.get('refused') or spread(result['seconds']) + ' s'}")


def page(lines: list[dict[str, Any]], device: str) -> str:
    """The measurements in words and a table.

    Args: lines: of the file. device: its name, and torch's version.
    """
    medians = {
        (line["what"], line["clients"], line["peer"]): float(np.median(line["seconds"]))
        for line in lines
        if line["seconds"]
    }
    rows = [["model", "clients", "step", "ms", "times the private step", "MiB at most"]]
    for line in lines:
        case = (line["what"], line["clients"])
        median = medians.get((*case, line["peer"]), np.nan)
        ratio = median / medians.get((*case, "private"), np.nan)
        memory = line.get("refused") or ("–" if line["MiB"] is None else f"{line['MiB']:.0f}")
        rows.append([*case, line["peer"], f"{1000 * median:.1f}", f"{ratio:.2f}", memory])
    return f"""# On {device}

By `python -m benchmarks.gpu`: random weights, {EACH} examples of each client, rank {RANK} on query
and value, texts of {TOKENS} tokens, frozen maps in bfloat16, at most {CHUNK} examples through the
model at once (Opacus: one client's). Medians of {TURNS} steps.

{markdown_table(rows)}
"""


@click.command(help=__doc__)
@click.option("--device", default="cuda", help="Such as cuda or cuda:1.  [cuda]")
@click.option("--minutes", default=30.0, type=click.FloatRange(0), help="In all.  [30]")
@click.option("--tiny", is_flag=True, help="Toy models, for a look at what would be done.")
def main(device: str, minutes: float, tiny: bool) -> None:
    warnings.simplefilter("ignore")  # Opacus warns of every hook; nothing here is tested
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise click.ClickException("no GPU here; a look at toy sizes: --device cpu --tiny")
    name = torch.cuda.get_device_name(device) if on_gpu else processor()
    # Toy numbers are no results.
    folder = Path(tempfile.mkdtemp()) if tiny else HERE / "results"
    path = folder / f"gpu-{name.lower().replace(' ', '-')}.jsonl"
    measure_all(device, minutes, tiny, path)
    text = page(list(read_lines(path)), f"{name}, torch {torch.__version__}")
    click.echo(text)
    write_atomically(path.with_suffix(".md"), text, shared=True)


if __name__ == "__main__":
    main()
