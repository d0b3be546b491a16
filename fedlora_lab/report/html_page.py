"""Writes a run folder as one HTML page: figures, table, ledger, settings and versions."""

import base64
import hashlib
import io
import json
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check
from fedlora_lab.measures.statistics import RULE
from fedlora_lab.methods.optimizers import OPTIMIZERS, SERVER_OPTIMIZERS, optimizer_of
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.report.promise import statement
from fedlora_lab.report.run_folder import Folder, read_frame, read_json, to_ledger
from fedlora_lab.report.summary_table import display_rows, format_number, observer_phrase, summary

HERE = Path(__file__).parent
_WORDS = tomllib.loads((HERE / "report.toml").read_text(encoding="utf-8"))
WIDTH, HEIGHT = 4.9, 4.1  # narrower than in a notebook: still read on a phone, 330 pixels wide
_SHOWN = ("task", "privacy", "lora", "plans", "methods", "versions")


def _svg(figure: Any) -> str:
    """Encodes a figure as a data address.
    An image's own scripts and names cannot reach the page, nor the page's the image.
    """
    import matplotlib

    figure.set_size_inches(WIDTH, HEIGHT)
    for axes in figure.axes:
        axes.set_title("", loc="left")  # the page has the title
    options: Any = {"bbox_inches": "tight", "metadata": {"Date": None, "Creator": None}}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fedlora_lab"}):
        figure.savefig(buffer, format="svg", pad_inches=0.08, **options)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _drawable(name: str) -> str:
    """Makes a name drawable: at most 60 letters, no sign that fonts lack or Matplotlib reads.
    Different names stay different.
    """
    if len(name) > 60:
        digest = hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=4).hexdigest()
        name = f"{name[:40]} … {digest}"
    letters = (letter if letter.isprintable() else "\ufffd" for letter in name)
    return "".join(letters).replace("$", "\\$")


def figures(frame: pd.DataFrame) -> Iterator[dict[str, str]]:
    """Draws the figures that this frame can fill: address, title, and what one sees in it."""
    from fedlora_lab import plots

    whole: Any = frame[frame["layer"] == "all"]
    names = {name: whole[name].astype(str).map(_drawable) for name in ("task", "method")}
    whole = whole.assign(**names, seed=whole["seed"].fillna(-1))
    for one in _WORDS["figures"]:
        try:
            address = _svg(getattr(plots, one["plot"])(whole, **one["options"]))
        except ValueError:
            continue  # nothing finite of this measure: no privacy, a single client, no accuracy
        yield {"title": one["title"], "text": one["text"], "address": address}


def flatten_settings(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Flattens nested settings: dotted names and values as text, floats to five digits."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten_settings(inner, f"{name}.{key}".strip("."))
    else:
        short = json.dumps(_rounded(value), ensure_ascii=False)
        yield name, value if isinstance(value, str) else short


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


# ---- what the runs promise, and what they spent


def ledger_rows(ledgers: Mapping[str, Any]) -> list[dict[str, str]]:
    """Tabulates each cell's ledger: what it released, what that spent, may it be released."""
    rows = []
    for cell, text in ledgers.items():
        row = {"cell": cell}
        row |= dict.fromkeys(("unit", "relation", "observer", "releases", "found"), "–")
        row |= {"epsilon": format_number(math.inf), "mode": "no privacy"}
        if (ledger := to_ledger(text, cell)) is not None:
            reason = f" ({ledger.uncertified})" if ledger.uncertified else ""
            row |= {"unit": ledger.unit, "relation": ledger.relation}
            row["observer"] = ledger.observers[0]
            clients = ledger.clients or (None,)
            row["releases"] = str(max(sum(n for *_, n in ledger.history(k)) for k in clients))
            row["epsilon"] = format_number(ledger.epsilon_or_inf(), 3) + reason
            if ledger.uncertified is None:
                rates = ledger.tradeoff(np.array([0.01, 0.001]))
                row["found"] = " · ".join(f"{share:.2g}" for share in (ledger.advantage(), *rates))
            row["mode"] = f"{ledger.accountant}, δ = {ledger.delta:g}, {ledger.mode}"
        rows.append(row)
    return rows


def _certified(ledgers: Mapping[str, Any]) -> list[Ledger]:
    """Reads the ledgers that state an epsilon."""
    books = [to_ledger(text, cell) for cell, text in ledgers.items()]
    return [book for book in books if book is not None and book.uncertified is None]


def attack_bounds(ledgers: Mapping[str, Any]) -> list[str]:
    """States what attackers reach at most over the runs of a folder, each alone.
    None where no run states an epsilon.

    Args: ledgers: cell -> text, as in the run folder.
    Guarantees: test_report.py::test_a_report_states_what_attackers_reach.
    """
    if not (some := _certified(ledgers)):
        return []
    rates = np.array([0.01, 0.001])
    one, tenth = np.max([book.tradeoff(rates) for book in some], axis=0)
    most = max(book.advantage() for book in some)
    return [
        f"Attackers of one run: advantage at most {most:.2g}; share of members found at most "
        f"{one:.2g} where 1 % of the others are accused, {tenth:.2g} where 0.1 % are."
    ]


def composed_spending(ledgers: Iterable[Ledger | None], unseen: Iterable[Ledger] = ()) -> list[str]:
    """States what runs on the same data spend together.
    None for a single one with a ledger (``None``: without).

    Runs with recorded seeds are not for release: of those the sentences state what they would spend
    if they were. ``unseen`` are those of the ledgers that no table shows; a single release among
    them is told too.

    Guarantees: test_report.py::test_runs_on_the_same_data_are_added_up.
    """
    whole, gone = list(ledgers), "including interrupted and deleted ones"
    books = [one for one in whole if one is not None]
    released, sums = [one for one in books if not one.reproducible], []
    if len(released) > 1:
        sums.append((released, f"All {len(released)} runs without a seed together, {gone}"))
    elif any(one is other for one in released for other in unseen):
        sums.append((released, "A run without a seed that was interrupted or deleted"))
    if len(released) < len(books) and len(books) > 1:
        sums.append((books, f"All {len(books)} runs together, if they were all released"))
    sentences = []
    for parts, name in sums:
        try:
            said = statement(Ledger.compose(*parts))
        except ValueError as error:
            said = f"no epsilon can be stated ({error})."
        sentences.append(f"{name}: {said}")
    if count := len(whole) - len(books):
        sentences.append(
            f"Runs without privacy ({count} here, {gone}) promise nothing: "
            f"no ε covers what they reveal about the data."
        )
    return sentences


def folder_spending(path: str | Path, ledgers: Mapping[str, Any]) -> list[str]:
    """States `composed_spending` of all runs of a folder, and which of them were stopped.
    That includes runs that its cells do not show.

    Guarantees: test_attack_spending.py::test_a_run_without_privacy_is_never_forgotten.
    """
    folder = Folder(path)
    shown = {cell: to_ledger(text, cell) for cell, text in ledgers.items()}
    known = shown | folder.ledgers()
    unseen = [book for name, book in known.items() if book is not None and name not in ledgers]
    return [*folder.stopped_cells(), *composed_spending(known.values(), unseen)]


def settings_summary(settings: Mapping[str, Any], methods: list[str]) -> dict[str, str]:
    """Summarizes the setting in a few words: what all runs share."""

    def joined(values: Iterable[Any], missing: str) -> str:
        return ", ".join(missing if x is None else str(x) for x in dict.fromkeys(values))

    task, privacy = settings["task"], settings["privacy"]
    plans = [settings["plans"][slug] for slug in methods]
    units = "persons" if privacy is not None and privacy["unit"] == "person" else "examples"
    found = {"clients": str(len(task["sizes"])), f"private {units}": str(sum(task["sizes"]))}
    for key in ("rounds", "local_steps", "batch", "participation"):
        found[key.replace("_", " ")] = joined((plan[key] for plan in plans), "all")
    for key, table in {"optimizer": OPTIMIZERS, "server_optimizer": SERVER_OPTIMIZERS}.items():
        rules = sorted(str(optimizer_of(plan.get(key, "sgd"), key, table)) for plan in plans)
        found[key.replace("_", " ")] = joined(rules, "")
    usual = {"participation": "1.0", "optimizer": "sgd", "server optimizer": "sgd"}.items()
    found = {key: words for key, words in found.items() if (key, words) not in usual}
    found["rank"] = str(settings["lora"]["rank"])
    found["seeds"] = joined(settings["seeds"], "none")
    if privacy is None:
        return {**found, "privacy": "none"}
    target = "as spent" if privacy["target"] is None else f"{privacy['target']:g}"
    return {**found, "ε planned": target, "δ": f"{privacy['delta']:g}", "unit": privacy["unit"]}


def privacy_statement(settings: Mapping[str, Any], ledgers: Mapping[str, Any]) -> list[str]:
    """States what the numbers promise and what they do not."""
    privacy, said = settings["privacy"], _WORDS["promise"]
    if privacy is None:
        return [said["none"]]
    unit, observer = _WORDS["units"][privacy["unit"]], _WORDS["observers"][privacy["trust"]]
    seeds = any(ledger and ledger["content"]["reproducible"] for ledger in ledgers.values())
    counted = "persons of each" if privacy["unit"] == "person" else "examples"
    words = {"unit": unit, "counted": counted, "delta": privacy["delta"]}
    opening = said["neighbours"].format(**words)
    observed = said["observer"].format(observer=observer)
    return [opening, observed, *([said["seeds"]] if seeds else []), said["tuning"]]


# ---- the page


def render(
    frame: pd.DataFrame,
    settings: Mapping[str, Any],
    ledgers: Mapping[str, Any],
    whole: Sequence[str] = (),
) -> str:
    """Renders the page as text.

    Args:
        frame, settings, ledgers: as in the run folder.
        whole: what all runs spend together, in sentences.

    Guarantees: all data are escaped (test_a_report_shows_any_name_as_text); equal input
        gives equal bytes (test_same_run_same_page); nothing is loaded from elsewhere
        (test_page_stands_alone).
    """
    from jinja2 import Environment, StrictUndefined

    from fedlora_lab.plots.style import look, name

    table = summary(frame)
    rows = [
        {**row, "name": name(row["method"]), "colour": look(row["method"]).colour}
        for row in display_rows(table)
    ]
    privacy, options = settings["privacy"], {"trim_blocks": True, "lstrip_blocks": True}
    page: Any = Environment(autoescape=True, undefined=StrictUndefined, **options)  # type: ignore[arg-type]
    parts = [part for part in _SHOWN if settings.get(part)]
    return page.from_string((HERE / "report.html").read_text(encoding="utf-8")).render(
        rows=rows,
        facts=settings_summary(settings, [row["method"] for row in rows]),
        promise=[*privacy_statement(settings, ledgers), *whole],
        measure=table.attrs["measure"],
        rule=RULE,
        against=observer_phrase(None if privacy is None else privacy["trust"]),
        figures=list(figures(frame)),
        ledger=ledger_rows(ledgers),
        settings=settings,
        shown={part: list(flatten_settings(settings[part])) for part in parts},
    )


def report(path: str | Path) -> Path:
    """Writes ``report.html`` into a run folder, from what is in it; returns its path.

    Raises: ``ValueError`` when the folder is not a run's or holds no finished cell.

    >>> report("nowhere")
    Traceback (most recent call last):
    ValueError: folder='nowhere': expected a run folder, as compare and run write it
    """
    path = Path(path)
    check(path.is_dir(), "folder", str(path), "a run folder, as compare and run write it")
    settings = Folder(path).settings
    done = (path / "frame.csv").is_file()
    check(done, "folder", str(path), "at least one finished cell (frame.csv)")
    frame, ledgers = read_frame(path / "frame.csv"), read_json(path / "ledger.json")
    try:
        frame, ledgers = Folder(path).add_spending(frame, ledgers)
        page = render(frame, settings, ledgers, folder_spending(path, ledgers))
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise ValueError(
            f"{path}: expected settings, frame and ledger of one run ({why})"
        ) from error
    write_atomically(path / "report.html", page, shared=True)
    return path / "report.html"
