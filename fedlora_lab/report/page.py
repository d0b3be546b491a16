"""Writes a run folder as one HTML page: table, curves, privacy, and how to run and cite it."""

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from jinja2 import Environment, StrictUndefined

from fedlora_lab import methods, plots
from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.files import JsonObject, write_atomically
from fedlora_lab._utils.statistics import COLUMNS, RULE, last_scores, setting_text, varied_columns
from fedlora_lab._utils.validation import check, error_text, few
from fedlora_lab.federated.compare import judge
from fedlora_lab.plots.style import look, name
from fedlora_lab.plots.tidy import check_columns, slugs_in_order
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.statement import NO_PRIVACY, caveats, statement
from fedlora_lab.report.run_folder import (
    Folder,
    Ledgers,
    read_frame,
    run_folders,
    total_statements,
)
from fedlora_lab.report.summary_table import (
    display_rows,
    observer_phrase,
    summary,
)

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


def report(run: "str | Path | pd.DataFrame", path: str | Path = PAGE) -> Path:
    """Writes a run folder, or a frame of a comparison, as one HTML page; returns its path.

    Args:
        run: a run folder, or one with a run folder for each setting of a sweep: the page is
            ``report.html`` in it. Or a tidy frame.
        path: of the page of a frame.

    Raises: ``ValueError`` when the folder is not a run's or holds no finished cell.
    Guarantees: nothing is written outside the folder
        (test_report.py::test_nothing_is_written_through_a_link).

    >>> report("nowhere")
    Traceback (most recent call last):
    ValueError: folder='nowhere': expected a run folder, as compare and run write it
    """
    if isinstance(run, pd.DataFrame):
        path = Path(path).expanduser()
        write_atomically(path, _page_of_frame(run), shared=True)
        return path
    home = Path(run).expanduser()
    contents = read_runs(home)
    try:
        text = render(*contents)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # Of a damaged file anything may be raised; a reader needs one line.
        reason = f"{type(error).__name__}: {error_text(error, 120)}"
        raise ValueError(
            f"{home}: expected settings, frame and ledger of one run ({reason})"
        ) from error
    # A link in a folder from elsewhere could lead to any file of whoever reads the report.
    write_atomically(home / PAGE, text, shared=True, through_links=False)
    return home / PAGE


class Contents(NamedTuple):
    """What a run folder holds, or the run folders of a sweep."""

    frame: pd.DataFrame
    settings: JsonObject
    shown: Ledgers
    sentences: Iterable[str]


def read_runs(home: Path) -> Contents:
    """Reads a run folder, or those of the settings of a sweep in one.

    Raises: ``ValueError`` where it is none, or holds no finished cell.
    """
    expected = "a run folder, as compare and run write it"
    check(home.is_dir(), "folder", str(home), expected)
    homes = run_folders(home)
    parts = [_read_folder(Folder(path)) for path in homes]
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    # Of a sweep each has a setting of its own in its rows.
    several = len(parts) > 1 and frame.duplicated([x for x in frame if x != "value"]).any()
    expected += f"; it holds several: {few(path.name for path in homes)}"
    check(not several, "folder", str(home), expected)
    if len(parts) == 1:
        return parts[0]
    shown: Ledgers = {}
    ledgers: Ledgers = {}
    stopped: list[str] = []
    settings = dict(parts[0].settings)
    plans = {}
    for path, part in zip(homes, parts):
        folder = Folder(path)
        place = path.name
        shown |= {f"{place}/{cell}": book for cell, book in part.shown.items()}
        ledgers |= {f"{place}/{cell}": book for cell, book in folder.ledgers().items()}
        stopped += [f"{place}, {sentence}" for sentence in folder.stopped_cells()]
        plans[place] = {kind: part.settings[kind] for kind in ("plans", "privacy", "lora")}
        for kind in ("privacy", "lora"):
            # What the settings do not share is not said of all of them.
            if part.settings[kind] != settings[kind]:
                settings[kind] = None
    return Contents(
        frame,
        {**settings, "plans": plans},
        shown,
        [*stopped, *total_statements(ledgers, shown)],
    )


def _read_folder(folder: Folder) -> Contents:
    settings = folder.settings
    path = folder.path / "frame.csv"
    check(path.is_file(), "folder", str(folder.path), "at least one finished cell (frame.csv)")
    frame = folder.with_spending(read_frame(path))
    # What was spent beside the folder stands in its notes, of which its own are a part.
    sentences = dict.fromkeys([*folder.noted(), *folder.statements(frame)])
    return Contents(frame, settings, folder.shown(frame), sentences)


def _page_of_frame(frame: pd.DataFrame) -> str:
    """Renders a frame that has no folder: what it does not hold is left out."""
    check_columns(frame, *COLUMNS)
    rows = {slug: methods.ALL.get(slug) for slug in slugs_in_order(frame)}
    settings = {
        "task": {"name": str(frame["task"].iloc[0])},
        "privacy": None,
        "begun": "",
        "commands": [],
        "versions": {"fedlora-lab": __version__},
        "methods": {slug: {"source": row.source if row else ""} for slug, row in rows.items()},
    }
    told = "Each ε is what the ledger of a run stated. A frame holds no ledger: the sum over runs, "
    told += "the unit that is protected, and against whom, stand in the report of a run folder."
    chosen = frame.attrs.get("chosen", "")
    return render(frame, settings, {}, [*filter(None, [chosen]), told])


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
    judgement = judge(frame)
    if unequal := judgement["privacy"]:
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
        standstill=judgement["standstill"],
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
    varied = varied_columns(frame)
    if varied:
        # Of test examples that are not public, say, there is no score.
        if last_scores(frame)["value"].map(math.isfinite).any():
            yield _figure_of_sweep(frame, varied)
        return
    rows: Any = frame[frame["layer"] == "all"]
    names = {column: rows[column].astype(str).map(drawable) for column in ("task", "method")}
    rows = rows.assign(**names, seed=rows["seed"].fillna(-1))
    for title, (measure, text) in FIGURES.items():
        try:
            figure = plots.curves(rows, measure=measure)
        except ValueError:
            continue  # nothing finite of this measure: no privacy, a single client, no accuracy
        yield {"title": title, "text": text, "address": data_address(figure)}


def _figure_of_sweep(frame: pd.DataFrame, varied: list[str]) -> dict[str, str]:
    """Draws the score after the last round over what was varied, learning rates first."""
    x = "lr" if "lr" in varied else varied[0]
    others = [name for name in varied if name != x]
    words = [f"{name} = " + frame[name].map(setting_text) for name in others]
    labels = {"method": frame["method"].map(drawable)}
    panel = None
    if words:
        panel = "setting"
        labels["setting"] = reduce(lambda left, right: left + ", " + right, words)
    shown: Any = frame.drop(columns=others).assign(**labels)
    figure = plots.lines(shown, x, panel=panel)
    text = f"After the last round, over {x}: the mean over seeds and its 95 % interval."
    return {"title": "What was varied", "text": text, "address": data_address(figure)}


def data_address(figure: Any) -> str:
    """Encodes a figure as a data address.

    An image's own scripts and names cannot reach the page, nor the page's the image.
    """
    if len(figure.axes) == 1:
        figure.set_size_inches(WIDTH, HEIGHT)
        figure.axes[0].set_title("", loc="left")  # the page has the title
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
