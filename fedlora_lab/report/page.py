"""Writes a run folder as one HTML page: table, curves, privacy, and how to run and cite it."""

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from jinja2 import Environment, StrictUndefined

from fedlora_lab import plots
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.statistics import RULE, describe_standstill, describe_unequal_privacy
from fedlora_lab._utils.validation import check, error_text
from fedlora_lab.plots.style import look, name
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.statement import NO_PRIVACY, caveats, statement
from fedlora_lab.report.run_folder import Folder, read_frame
from fedlora_lab.report.summary_table import display_rows, observer_phrase, summary

PAGE = "report.html"
TEMPLATE = Path(__file__).with_name("report.html")
WIDTH = 4.9  # narrower than in a notebook: still read on a phone, 330 pixels wide
HEIGHT = 4.1
SHOWN = ("task", "privacy", "lora", "plans", "methods", "versions")
FIGURES = {
    "Accuracy": (
        "accuracy",
        "On the test examples after every round: the mean over seeds and its 95 % interval.",
    ),
    "Loss": ("loss", "Mean loss of a test example after every round."),
    "Deviation": (
        "deviation",
        "How far the server's product of factors is from the mean of the clients' products.",
    ),
    "Privacy spent": (
        "epsilon",
        "ε at the plan's δ after every round, as the ledger states it.",
    ),
}
"""Title -> measure, and what one sees."""


def report(path: str | Path) -> Path:
    """Writes ``report.html`` into a run folder, from what is in it; returns its path.

    Raises: ``ValueError`` when the folder is not a run's or holds no finished cell.
    Guarantees: nothing is written outside the folder
        (test_report.py::test_nothing_is_written_through_a_link).

    >>> report("nowhere")
    Traceback (most recent call last):
    ValueError: folder='nowhere': expected a run folder, as compare and run write it
    """
    path = Path(path).expanduser()
    check(path.is_dir(), "folder", str(path), "a run folder, as compare and run write it")
    folder = Folder(path)
    settings = folder.settings
    done = (path / "frame.csv").is_file()
    check(done, "folder", str(path), "at least one finished cell (frame.csv)")
    frame = folder.with_spending(read_frame(path / "frame.csv"))
    # What was spent beside the folder stands in its notes, of which its own are a part.
    sentences = dict.fromkeys([*folder.noted(), *folder.statements(frame)])
    try:
        text = render(frame, settings, folder.shown(frame), sentences)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # Of a damaged file anything may be raised; a reader needs one line.
        reason = f"{type(error).__name__}: {error_text(error, 120)}"
        raise ValueError(
            f"{path}: expected settings, frame and ledger of one run ({reason})"
        ) from error
    # A link in a folder from elsewhere could lead to any file of whoever reads the report.
    write_atomically(path / PAGE, text, shared=True, through_links=False)
    return path / PAGE


def render(
    frame: pd.DataFrame,
    settings: Mapping[str, Any],
    ledgers: Mapping[str, Ledger | None],
    sentences: Iterable[str] = (),
) -> str:
    """Renders the page as text.

    Args:
        frame, settings: of the run folder.
        ledgers: of the runs in the frame, by name.
        sentences: what all runs of the folder spend together.

    Guarantees: all data are escaped (test_a_report_shows_any_name_as_text); equal input gives equal
        bytes, and nothing is loaded from elsewhere (test_page_stands_alone).
    """
    table = summary(frame)
    rows = [
        {**row, "name": name(row["method"]), "colour": look(row["method"]).colour}
        for row in display_rows(table)
    ]
    private = [ledger for ledger in ledgers.values() if ledger is not None]
    promise = []
    if private:
        largest = max(private, key=lambda ledger: ledger.epsilon_or_inf())
        promise = [f"The run that spends most: {statement(largest)}", *caveats(largest)]
    elif ledgers:
        promise = [NO_PRIVACY]
    if unequal := describe_unequal_privacy(frame):
        promise.append(f"The table is {unequal}.")
    privacy = settings["privacy"]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text("utf-8")).render(
        rows=rows,
        promise=[*promise, *sentences],
        measure=table.attrs["measure"],
        rule=RULE,
        standstill=describe_standstill(frame),
        against=observer_phrase(None if privacy is None else privacy["trust"]),
        figures=list(draw_figures(frame)),
        task=settings["task"]["name"],
        begun=settings["begun"],
        version=settings["versions"].get("fedlora-lab", "of an unknown version"),
        commands=settings["commands"],
        sources={slug: row["source"] for slug, row in settings["methods"].items()},
        shown={part: list(flatten(settings[part])) for part in SHOWN if settings.get(part)},
    )


# ---- figures


def draw_figures(frame: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Draws the figures that this frame can fill: address, title, and what one sees in it."""
    rows: Any = frame[frame["layer"] == "all"]
    names = {column: rows[column].astype(str).map(drawable) for column in ("task", "method")}
    rows = rows.assign(**names, seed=rows["seed"].fillna(-1))
    for title, (measure, text) in FIGURES.items():
        try:
            figure = plots.curves(rows, measure=measure)
        except ValueError:
            continue  # nothing finite of this measure: no privacy, a single client, no accuracy
        yield {"title": title, "text": text, "address": data_address(figure)}


def data_address(figure: Any) -> str:
    """Encodes a figure as a data address.

    An image's own scripts and names cannot reach the page, nor the page's the image.
    """
    figure.set_size_inches(WIDTH, HEIGHT)
    for axes in figure.axes:
        axes.set_title("", loc="left")  # the page has the title
    buffer = io.BytesIO()
    # Neither a date nor random identifiers: the same run gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "fedlora_lab"}):
        figure.savefig(
            buffer,
            format="svg",
            pad_inches=0.08,
            bbox_inches="tight",
            metadata={"Date": None, "Creator": None},
        )
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def drawable(name: str) -> str:
    """Makes a name drawable: at most 60 letters, no sign that fonts lack or Matplotlib reads.

    Different names stay different.
    """
    if len(name) > 60:
        digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=4).hexdigest()
        name = f"{name[:40]} … {digest}"
    letters = (letter if letter.isprintable() else "\ufffd" for letter in name)
    return "".join(letters).replace("$", "\\$")


# ---- settings


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Flattens nested settings to dotted names and values as text, floats to five digits.

    Args: value: of JSON. name: dotted, of its place.
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}".strip("."))
    else:
        # Calibrated numbers have many digits, of which five are read.
        short = json.loads(json.dumps(value), parse_float=lambda text: float(f"{float(text):.5g}"))
        yield name, value if isinstance(value, str) else json.dumps(short, ensure_ascii=False)
