"""Run or continue a declared study.

python -m studies                      what is declared, and how much of it is done
python -m studies NAME [--jobs 2]   results/NAME.csv; goes on after a kill at any point
"""

import json
from pathlib import Path

import click

from fedlora_lab._utils.files import to_json, write_atomically
from fedlora_lab._utils.validation import check
from studies import RESULTS, runner
from studies.declared import STUDIES, Study


def show_all() -> None:
    """Prints a line for every declared study."""
    for study in STUDIES.values():
        done, total = runner.count_runs(study, RESULTS / "runs" / f"{study.name}.jsonl")
        click.echo(f"{study.name:<18} {done:>5} of {total:<5} runs  {study.note}")


def continue_study(study: Study, folder: Path, jobs: int) -> None:
    """Runs what is missing, and writes the frame of the finished cases and what ran them."""
    lines = folder / "runs" / f"{study.name}.jsonl"
    path = folder / f"{study.name}.csv"
    try:
        runner.run_study(study, lines, jobs=jobs)
    finally:
        table = runner.study_frame(study, lines)
        if len(table):
            write_atomically(path, table.to_csv(index=False, float_format="%.6g"), shared=True)
            about = runner.describe_study(study, lines)
            write_atomically(path.with_suffix(".json"), to_json(about), shared=True)
    click.echo(json.dumps({"study": study.name, "rows": len(table), "file": str(path)}))


@click.command(help=__doc__)
@click.argument("name", required=False)
@click.option("--jobs", default=2, help="Runs at once, each with one thread.  [2]")
def main(name: str | None, jobs: int) -> None:
    if name is None:
        show_all()
    else:
        check(name in STUDIES, "study", name, "one of " + ", ".join(STUDIES))
        continue_study(STUDIES[name], RESULTS, jobs)


if __name__ == "__main__":
    main()
