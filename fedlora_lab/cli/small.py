"""The commands that train nothing."""

from pathlib import Path

import click


@click.command()
def methods() -> None:
    """List the methods: what moves, what is sent, what is claimed, where it was published."""
    from fedlora_lab import methods as rows

    table = rows.table()
    for line in aligned([list(map(str, table.columns)), *([str(cell) for cell in row] for row in table.itertuples(index=False))]):
        click.echo(line)


def aligned(rows: list[list[str]], right: tuple[int, ...] = ()) -> list[str]:
    """Rows of text as lines with columns of equal width; the columns in ``right`` are set flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:>{w}}" if i in right else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write FOLDER/report.html again from what is in the run folder."""
    from fedlora_lab.report import report as write

    click.echo(f"report: {write(folder)}")


@click.command()
def doctor() -> None:
    """Show what is installed, what runs here, and the command that adds what is missing."""
    from fedlora_lab import doctor as examine

    found = examine.findings()
    click.echo(examine.text(found))
    if not examine.healthy(found):
        raise SystemExit(1)
