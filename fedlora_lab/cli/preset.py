"""The command for the papers' own set-ups."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fedlora_lab.checks import check
from fedlora_lab.cli import options as read
from fedlora_lab.cli.cells import kept
from fedlora_lab.files import held, write_atomically
from fedlora_lab.presets import PRESETS
from fedlora_lab.summary import against, number, summary
from fedlora_lab.summary import words as told

if TYPE_CHECKING:
    from fedlora_lab.cost import Cost
    from fedlora_lab.plan import Plan
    from fedlora_lab.presets import Preset
    from fedlora_lab.privacy import Privacy
    from fedlora_lab.tasks import Task

GIB = 2**30


@click.command(short_help="A paper's own set-up: list, check on shapes alone, run.")
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help="Check shapes, memory, bytes and time; nothing is downloaded.")
@click.option("--model", metavar="PATH", help="A folder or name in the place of the paper's weights.")
@click.option("--data", metavar="PATH", help="A CSV file or a folder of images in the place of the paper's data.")
@click.option("--public-test", is_flag=True, help="Nobody's privacy hangs on what --data holds out: judge it.")
@click.option("--rounds", type=int, metavar="N", help="Communication rounds.  [the paper's]")
@click.option("--device", metavar="D", help="Such as cpu or cuda.  [cpu]")
@click.option("--seed", default="0", metavar="N", help="A whole number, or none: fresh entropy, fit for release.  [0]")
@click.option("--out", metavar="DIR", help="Checkpoints, frame.csv and adapter.  [runs/NAME]")
def preset(
    name: str | None,
    dry_run: bool,
    model: str | None,
    data: str | None,
    public_test: bool,
    rounds: int | None,
    device: str | None,
    seed: str,
    out: str | None,
) -> None:
    """Run the set-up NAME of a paper; without a name, list them."""
    if name is None:
        for row in PRESETS.values():
            budget = "no privacy" if row.epsilon is None else f"epsilon {row.epsilon:g}"
            click.echo(f"{row.name:<22} {row.method:<9} {row.clients:>3} clients  {budget:<12} {row.source}")
        return
    from fedlora_lab import presets

    row = presets.get(name)
    if dry_run:
        from fedlora_lab.cost import speed

        click.echo(words(row, presets.dry_run(row), speed()))
        return
    chosen = read.seed(seed)
    check(data is not None or not public_test, "public-test", True, "--data: the papers' own data are public")
    _train(row, model, data, public_test, rounds, device, chosen, Path(out or f"runs/{row.name}").expanduser())


def words(row: "Preset", found: "Cost", speed: float) -> str:
    """The dry run in words: what was counted, and every formula with its numbers."""
    plan, batch = row.plan, row.plan.batch or row.examples // row.clients
    at_once = round(plan.participation * row.clients)
    memory = found.memory(min(batch * at_once, 128), at_once)
    up, down = found.traffic(plan)
    lines = [
        f"{row.name}: {row.source}, {row.method}; assumed: {row.assumed}",
        f"shapes fit: {row.model} has {found.parameters:,} frozen numbers, a client moves {found.moving:,}",
        f"memory: 4 x {found.parameters:,} + {min(batch * at_once, 128)} examples x {found.example_bytes:,} + "
        f"12 x {at_once} clients x {found.moving:,} bytes = {memory / GIB:.1f} GiB (128 examples at once at most)",
        f"bytes: {plan.rounds} rounds x {plan.participation:g} x {row.clients} clients x ({found.up:,} up, "
        f"{found.down:,} down) = {up / GIB:.2f} GiB up, {down / GIB:.2f} GiB down",
        f"work: {plan.rounds} rounds x {plan.participation:g} x {row.clients} clients x {plan.local_steps} steps x "
        f"{batch} examples x {found.step_flops:.3g} = {found.flops(plan, batch):.3g} floating-point operations",
        f"time: {found.seconds(speed, plan, batch) / 3600:.1f} h at the {speed / 1e9:.0f} GFLOP/s of this processor, "
        f"{found.seconds(4e14, plan, batch) / 3600:.2g} h at 400 TFLOP/s; both at full use, which no run reaches",
    ]
    return "\n".join(lines)


def _train(
    row: "Preset",
    model: str | None,
    data: str | None,
    public_test: bool,
    rounds: int | None,
    device: str | None,
    seed: int | None,
    out: Path,
) -> None:
    from fedlora_lab import presets

    task = presets.task(row, model, data, **({} if data is None else {"test": 0.2, "public_test": public_test}))
    plan = row.plan if rounds is None else row.plan.replace(rounds=rounds)
    privacy = presets.privacy(row, task, plan)
    if privacy is not None and not task.public_test:
        click.echo("scores are –: what was held out is private (--public-test says that it is not)")
    with held(out):
        _play(row, task, privacy, plan, device, seed, out)


def _play(
    row: "Preset",
    task: "Task",
    privacy: "Privacy | None",
    plan: "Plan",
    device: str | None,
    seed: int | None,
    out: Path,
) -> None:
    """Train in the folder, or go on with what is there: the same command takes a run up that was stopped or killed."""
    import pandas as pd

    import fedlora_lab as fl
    from fedlora_lab import adapters, checkpoint
    from fedlora_lab.folder import stated

    state, book, trust = out / "state", out / "state" / "ledger.json", None if privacy is None else privacy.trust
    ours = (out / "frame.csv").exists()  # rounds without rows are not of this command, and are refused
    earlier = kept(state, out / "frame.csv") if ours else None
    parts = [] if earlier is None else [earlier]
    options = {"lora": row.lora, "seed": seed, "device": device, "chunk_examples": "auto", "checkpoint": state}
    options["resume"] = state if ours and (parts or book.exists()) else None
    for record in fl.run(task, row.method, privacy, plan, **options):
        parts = [*(parts if record.index else []), fl.to_frame([record])]  # begun anew: earlier rows are of another run
        scores = "  ".join(f"{key} {number(value, 4, infinite='∞')}" for key, value in record.metrics.items())
        click.echo(f"round {record.index:>4}  {scores}  epsilon {number(record.epsilon)}{against(trust)}")
        write_atomically(out / "frame.csv", pd.concat(parts, ignore_index=True).to_csv(index=False))
    frame = pd.concat(parts, ignore_index=True)
    if book.exists():
        ledger = fl.Ledger.load(book)
        frame = stated(frame, ledger)
        write_atomically(out / "frame.csv", frame.to_csv(index=False))
        click.echo(f"spent: {ledger.statement()}")
    if fell := told(summary(frame))[0]["fell"]:
        click.echo(f"{row.method}: {fell}")
    tensors = checkpoint.latest(state)[0].server.tensors
    path = adapters.save(task.model, task.targets, task.head, row.lora, tensors, out / "adapter")
    click.echo(f"adapter: {path}")
