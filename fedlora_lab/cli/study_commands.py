"""The commands study and preset: declared studies, and the set-ups of the papers."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab import experiments
from fedlora_lab._utils.files import lock_folder, write_atomically
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.cli import status
from fedlora_lab.cli.options import parse_seed, seed_option
from fedlora_lab.experiments import presets
from fedlora_lab.federated import checkpoint, cost
from fedlora_lab.federated.comparison import BAR, Progress
from fedlora_lab.lora import peft
from fedlora_lab.report.run_folder import read_frame, run_rounds, to_json, with_ledger_epsilon
from fedlora_lab.report.summary_table import collapse_text, format_number, observer_phrase

GIB = 2**30
HELP = {
    "dry": "Check shapes, memory, bytes and time; nothing is downloaded.",
    "model": "A folder or name instead of the paper's weights.",
    "data": "A CSV file or a folder of images instead of the paper's data.",
    "public": "Declare the held-out part of --data public, and score on it.",
    "rounds": "Communication rounds.  [the paper's]",
    "out": "Folder of checkpoints, frame.csv and adapter.  [runs/NAME]",
    "workers": "Processes, each with one thread.  [2]",
    "frames": "Folder of the result tables.  [results]",
    "seeds": "Number of seeds to report.  [as declared]",
}


@click.command("preset")
@click.argument("name", required=False)
@click.option("--dry-run", is_flag=True, help=HELP["dry"])
@click.option("--model", metavar="PATH", help=HELP["model"])
@click.option("--data", metavar="PATH", help=HELP["data"])
@click.option("--public-test", is_flag=True, help=HELP["public"])
@click.option("--rounds", type=int, metavar="N", help=HELP["rounds"])
@click.option("--device", metavar="D", help="Such as cpu or cuda.  [cpu]")
@seed_option
@click.option("--out", metavar="DIR", help=HELP["out"])
def preset_command(name: str | None, seed: str, **options: Any) -> None:
    """Run or continue the paper's set-up NAME; without a name, list all set-ups."""
    if name is None:
        status.end()
        for row in presets.PRESETS.values():
            budget = "no privacy" if row.epsilon is None else f"epsilon {row.epsilon:g}"
            who = f"{row.name:<22} {row.method:<9} {row.clients:>3} clients"
            status.say(f"{who}  {budget:<12} {row.source}")
        return
    row, data, rounds = presets.find_preset(name), options["data"], options["rounds"]
    if options["dry_run"]:
        status.say(_describe_dry_run(row, presets.dry_run(row), cost.speed()))
        return
    chosen, public = parse_seed(seed), options["public_test"]
    check(data or not public, "public-test", True, "--data: the papers' own data are public")
    more = {"test": 0.2, "public_test": public} if data else {}
    task = presets.task(row, options["model"], data, **more)
    plan = row.plan if rounds is None else row.plan.replace(rounds=rounds)
    privacy = presets.privacy(row, task, plan)
    if privacy is not None and not task.public_test:
        why = "since the held-out rows are private; pass --public-test if they are public, or use "
        why += "fl.private_score"
        status.say(f"scores are shown as –, {why}")
    folder = Path(options["out"] or f"runs/{row.name}").expanduser()
    state, path, book = folder / "state", folder / "frame.csv", folder / "state" / "ledger.json"
    how: dict[str, Any] = {"lora": row.lora, "seed": chosen, "device": options["device"]}
    start = partial(fl.ticks, task, row.method, privacy, plan, chunk_examples="auto", **how)
    seen = observer_phrase(None if privacy is None else privacy.trust)
    with lock_folder(folder), tqdm(total=plan.rounds, disable=None, **BAR) as bar:
        status.follow(bar)
        for record in Progress(bar, plan, row.name).follow(run_rounds(start, state, path)):
            scores = [f"{k} {format_number(x, 4, infinite='∞')}" for k, x in record.metrics.items()]
            scores.append(f"epsilon {format_number(record.epsilon)}{seen}")
            bar.write(f"round {record.index:>4}  {'  '.join(scores)}")
        frame = read_frame(path)
        status.end()
        if book.exists():
            ledger = fl.Ledger.load(book)
            frame = with_ledger_epsilon(frame, ledger)
            write_atomically(path, frame.to_csv(index=False))
            status.say(f"spent: {ledger.statement()}")
        if words := collapse_text(frame):
            status.say(f"{row.method}: {words}")
        tensors = checkpoint.read_latest(state)[0].server.tensors
        place = task.model, task.targets, task.head, row.lora
        written = peft.save(*place, tensors, folder / "adapter", task.new_modules)
        status.say(f"adapter: {written}")


def _describe_dry_run(row: presets.Preset, found: cost.Cost, speed: float) -> str:
    """The dry run in words: what was counted, and every formula with its numbers."""
    plan, batch = row.plan, row.plan.batch or row.examples // row.clients
    at_once = round(plan.participation * row.clients)
    examples = min(batch * at_once, 128)
    memory, (up, down) = found.memory(examples, at_once), found.traffic(plan)
    clients = f"{plan.rounds} rounds x {plan.participation:g} x {row.clients} clients"
    hours = found.seconds(speed, plan, batch) / 3600, found.seconds(4e14, plan, batch) / 3600
    return "\n".join(
        [
            f"{row.name}: {row.source}, {row.method}; assumed: {row.assumed}",
            f"shapes fit: {row.model} has {found.parameters:,} frozen numbers, "
            f"a client moves {found.moving:,}",
            f"memory: 4 x {found.parameters:,} + {examples} examples x {found.example_bytes:,} + "
            f"12 x {at_once} clients x {found.moving:,} bytes = {memory / GIB:.1f} GiB "
            f"(128 examples at once at most)",
            f"bytes: {clients} x ({found.up:,} up, {found.down:,} down) = {up / GIB:.2f} GiB up, "
            f"{down / GIB:.2f} GiB down",
            f"work: {clients} x {plan.local_steps} steps x {batch} examples x "
            f"{found.step_flops:.3g} = {found.flops(plan, batch):.3g} floating-point operations",
            f"time: {hours[0]:.1f} h at the {speed / 1e9:.0f} GFLOP/s of this processor, "
            f"{hours[1]:.2g} h at 400 TFLOP/s; both at peak speed; real runs take longer",
        ]
    )


@click.command("study")
@click.argument("name", required=False)
@click.option("--workers", default=2, metavar="N", help=HELP["workers"])
@click.option("--out", default="results", metavar="DIR", help=HELP["frames"])
@click.option("--seeds", type=int, metavar="N", help=HELP["seeds"])
def study_command(name: str | None, workers: int, out: str, seeds: int | None) -> None:
    """Tune and train every case of the study NAME and write DIR/NAME.csv; without a name, list all
    studies.

    Each finished run is a line of DIR/runs/NAME.jsonl; the same command continues from there.
    """
    folder, studies = Path(out).expanduser(), experiments.STUDIES
    if name is None:
        for one in studies.values():
            done, total = experiments.count_runs(one, folder / "runs" / f"{one.name}.jsonl")
            status.say(f"{one.name:<18} {done:>5} of {total:<5} runs  {one.note}")
        return
    check(name in studies, "study", name, "one of " + ", ".join(studies))
    chosen, command = studies[name], f"fedlora-lab study {name}"
    if seeds is not None:
        check_whole("seeds", seeds, 1)
        chosen, command = replace(chosen, seeds=tuple(range(seeds))), f"{command} --seeds {seeds}"
    lines, path = folder / "runs" / f"{name}.jsonl", folder / f"{name}.csv"
    try:
        experiments.run_study(chosen, lines, workers=workers)
    finally:
        table = experiments.study_frame(chosen, lines)
        if len(table):
            write_atomically(path, table.to_csv(index=False, float_format="%.6g"), shared=True)
            settings = to_json(experiments.study_settings(chosen, command, lines))
            write_atomically(folder / f"{name}.json", settings, shared=True)
    columns = list(table.columns)
    cases = table.groupby(columns[1 : columns.index("lr")], dropna=False).ngroups
    status.say(json.dumps({"study": name, "cases": int(cases), "file": str(path)}))
