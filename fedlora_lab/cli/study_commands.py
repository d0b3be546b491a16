"""The command study: declared studies."""

import json
from dataclasses import replace
from pathlib import Path

import click

from fedlora_lab import experiments
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.cli import status
from fedlora_lab.report.run_folder import to_json

HELP = {
    "workers": "Processes, each with one thread.  [2]",
    "frames": "Folder of the result tables.  [results]",
    "seeds": "Number of seeds to report.  [as declared]",
}


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
