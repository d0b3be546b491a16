"""Write docs/scale.md: the cost of seven billion parameters and a million clients, by formula.

python scripts/scale.py
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.federated.cost import Cost, bytes_of_round, cost
from fedlora_lab.report.summary_table import markdown_table, require_visible
from fedlora_lab.tasks.metrics import next_token_loss, select_metrics

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
TOKENS, EACH, CLIENTS, ROUND = 256, 64, 1_000_000, 100
LORA = fl.Lora(rank=8, alpha=16)
PLAN = fl.Plan(rounds=500, local_steps=5, batch=16, participation=ROUND / CLIENTS)
CHUNK = 8
METHODS = ("fedlora", "ffa-lora", "rolora", "la-lora", "fedlpp")
GPU, LINK = 4e14, 12.5e6
"""Operations a second of a large GPU in bfloat16; bytes a second at 100 Mbit/s."""
GIB, TIB = 2**30, 2**40


def decoder() -> fl.tasks.Task:
    """A decoder as shapes alone, of the 7 B Llama models' sizes (arXiv:2302.13971, table 2)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000}
    config = LlamaConfig(**sizes, num_hidden_layers=32, num_attention_heads=32)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    ids = torch.zeros((), dtype=torch.int64).expand(EACH, TOKENS)
    data, targets = ({"input_ids": ids}, ids), ("q_proj", "v_proj")
    scores: dict[str, Any] = {"loss": next_token_loss, "metrics": select_metrics(kind="causal")}
    return fl.tasks.Task("shapes", model, targets, (data, data), data, **scores)


def counted(one: Cost) -> str:
    """What a step on shapes says."""
    rows = {
        "frozen parameters P": f"{one.parameters:,}",
        "numbers that a client moves, M": f"{one.moving:,}",
        "operations of a private step for one text, F": f"{one.step_flops:.3g}",
        "of a forward pass alone": f"{one.judge_flops:.3g}",
        "memory of one more text in a step, E": f"{one.example_bytes / GIB:.2f} GiB",
    }
    return markdown_table([("what", "number"), *rows.items()])


def memory(one: Cost) -> str:
    """GiB in some places: bytes of a frozen number, texts and clients at once."""
    places = (
        ("one site, float32", 4, CHUNK, 1),
        ("one site, bfloat16 base", 2, CHUNK, 1),
        ("one site, bfloat16 base, one text at a time", 2, 1, 1),
        (f"simulation of {ROUND} clients in one batch, bfloat16 base", 2, CHUNK, ROUND),
    )
    rows = [(where, w, e, k, f"{one.memory(e, k, w) / GIB:.1f}") for where, w, e, k in places]
    return markdown_table([("where", "w", "e", "k", "GiB"), *rows])


def bytes_sent(found: Mapping[str, Cost]) -> str:
    """Bytes of every method."""
    rows: list[tuple[str, ...]] = [
        ("method", "u, MiB", "d, MiB", "all up, TiB", "all down, TiB", "s for u at 100 Mbit/s")
    ]
    for slug, one in found.items():
        each = (f"{x / 2**20:.1f}" for x in (one.up, one.down))
        whole = (f"{x / TIB:.2f}" for x in one.traffic(PLAN))
        rows.append((fl.methods.get(slug).name, *each, *whole, f"{one.up / LINK:.1f}"))
    return markdown_table(rows)


def page() -> str:
    """The page, every number of it computed here."""
    task = decoder()
    plain = replace(cost(task, fl.methods.FedLoRA, LORA, PLAN), clients=CLIENTS)
    sent = {slug: bytes_of_round(task, fl.methods.get(slug), LORA, PLAN) for slug in METHODS}
    found = {slug: replace(plain, up=up, down=down) for slug, (up, down) in sent.items()}
    state, work = 4 * plain.moving, plain.flops(PLAN, PLAN.batch or 0)
    single, hours = work / (PLAN.rounds * ROUND), work / GPU / 3600
    return f"""# Scale: seven billion parameters, a million clients

What memory, traffic and computation a large federation needs, for whoever plans one. Nothing here
was timed: `python scripts/scale.py` computes the page from one private step on shapes alone
(`fedlora_lab.federated.cost`), and a test holds the page to it.

Assumed: texts of {TOKENS} tokens, rank {LORA.rank} on query and value, {PLAN.rounds} rounds,
{ROUND} of {CLIENTS:,} clients a round by Poisson sampling,
{PLAN.local_steps} local steps of {PLAN.batch} texts.

## Counted

{counted(plain)}

## Memory

w P + e E + 12 k M bytes: w bytes of a frozen number, e texts at once, k clients at once.

{memory(plain)}

The server holds {state / 2**20:.0f} MiB for any number of clients, and for a client that does not
take part one number, the round in which it was last seen. If it adds uploads as they arrive it
needs {2 * state / 2**20:.0f} MiB; if it holds all {ROUND} uploads of a round, as here,
{ROUND * state / GIB:.1f} GiB.

## Bytes

T k u up and T k d down over the run: T rounds, k clients a round, u and d bytes of a client in a
round.

{bytes_sent(found)}

## Time

T k S b F operations: S local steps of b texts. A client's share of one round is S b F =
{single:.3g} operations, {single / GPU:.0f} s at {GPU / 1e12:.0f} TFLOP/s; all clients of the run
need {hours:.0f} hours of such a device, in parallel over the {ROUND} clients of a round
{hours / ROUND:.1f} hours. Full use is assumed, which no run reaches: a third to a half is usual.

Not measured on a GPU: `python -m benchmarks.gpu --minutes 30` times a private step beside the
plain step, Opacus' hooks and ghost clipping on ViT-B, RoBERTa-large and a decoder of a billion
numbers, all of random weights, with 1 to 100 clients, and federations of 1,000 clients on
`digits`. The same command continues where it stopped; its page has the device's name. On a
processor, `benchmarks/results/end_to_end.md` compares a federation with one written by hand.

For accuracy `python scripts/gpu_studies.py --minutes 40 --workers 12` runs the largest cells of
the studies on a GPU in bfloat16 (sentiment with all layers at rank 16, MNIST and digits with
clients protected, MNIST with examples protected), compares them with the processor's over the
same seeds, and stops before the minutes are over; the same command continues. `--estimate` prints
how the time would be used. Its lines are in a folder of the device's name under `results/runs`.
"""


if __name__ == "__main__":
    write_atomically(PAGE, require_visible(page()), shared=True)
