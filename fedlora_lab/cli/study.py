"""The command that runs a declared study."""

import json
from pathlib import Path

import click

from fedlora_lab.checks import check, check_whole


@click.command(short_help="Run a declared study, resumable at any point.")
@click.argument("name", required=False)
@click.option("--workers", default=2, show_default=True, metavar="N", help="Processes, each with one thread.")
@click.option("--out", default="results", show_default=True, metavar="DIR", help="Folder of the frames.")
@click.option("--seeds", default=None, type=int, metavar="N", help="Report fewer or more seeds than declared.")
def study(name: str | None, workers: int, out: str, seeds: int | None) -> None:
    """Tune and train every case of the study NAME and write DIR/NAME.csv; without a name, list what there is.

    Each finished run is a line of DIR/runs/NAME.jsonl; the same command goes on from there.
    """
    from dataclasses import replace

    from fedlora_lab import study as room
    from fedlora_lab.files import write_atomically
    from fedlora_lab.folder import to_json

    folder = Path(out).expanduser()
    if name is None:
        for one in room.STUDIES.values():
            done, total = room.progress(one, folder / "runs" / f"{one.name}.jsonl")
            click.echo(f"{one.name:<18} {done:>5} of {total:<5} runs  {one.note}")
        return
    check(name in room.STUDIES, "study", name, "one of " + ", ".join(room.STUDIES))
    chosen = room.STUDIES[name]
    if seeds is not None:
        check_whole("seeds", seeds, 1)
        chosen = replace(chosen, seeds=tuple(range(seeds)))
    lines = folder / "runs" / f"{name}.jsonl"
    try:
        room.play(chosen, lines, workers=workers)
    finally:
        table = room.frame(chosen, lines)
        if len(table):
            write_atomically(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g"), shared=True)
            command = f"fedlora-lab study {name}" + (f" --seeds {seeds}" if seeds is not None else "")
            write_atomically(folder / f"{name}.json", to_json(room.settings(chosen, command, lines)), shared=True)
    cases = table.groupby(list(table.columns[1 : list(table.columns).index("lr")]), dropna=False).ngroups
    click.echo(json.dumps({"study": name, "cases": int(cases), "file": str(folder / f"{name}.csv")}))
