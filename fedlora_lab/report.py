"""One self-contained page from a run folder: figures, table with intervals, ledger, settings, versions."""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedlora_lab.checks import check
from fedlora_lab.files import write_atomically
from fedlora_lab.folder import Folder, read_frame, read_json
from fedlora_lab.summary import against, number, summary, words

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.ledger import Ledger

SEEN = {
    "local": "whoever sees every single upload, the server included.",
    "secagg": "the server, which sees the sums of the uploads and who sends; secure aggregation, which is not "
    "simulated, hides each of them.",
    "central": "whoever sees the released models only; the server sees the uploads and is trusted.",
}
TEMPLATE = Path(__file__).parent / "data" / "report.html"
# Narrower than in a notebook, so that letters are still read on a phone, where a figure is some 330 pixels wide.
WIDTH, HEIGHT = 4.9, 4.1
SHOWN = ("task", "privacy", "lora", "plans", "methods", "versions")


def _svg(figure: Any) -> str:
    """A figure as a data address. An image's own scripts and names cannot reach the page, nor the page's the image."""
    import matplotlib

    figure.set_size_inches(WIDTH, HEIGHT)
    for axes in figure.axes:
        axes.set_title("", loc="left")  # the page has the title
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "fedlora_lab"}):
        figure.savefig(
            buffer, format="svg", bbox_inches="tight", pad_inches=0.08, metadata={"Date": None, "Creator": None}
        )
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plain(frame: Any) -> "pd.DataFrame":
    """The frame with names that Matplotlib draws as they stand, not as mathematics, and a number for no seed."""
    names = {name: frame[name].astype(str).map(_drawable) for name in ("task", "method")}
    return frame.assign(**names, seed=frame["seed"].fillna(-1))


def _drawable(name: str) -> str:
    """A name of at most 60 letters that every font has a sign for; different names stay different."""
    if len(name) > 60:
        name = f"{name[:40]} … {hashlib.blake2b(name.encode('utf-8', 'replace'), digest_size=4).hexdigest()}"
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name).replace("$", "\\$")


def figures(frame: "pd.DataFrame") -> Iterator[dict[str, str]]:
    """The figures that this frame can fill: address, title, and what one sees in it."""
    from fedlora_lab import plots

    whole = _plain(frame[frame["layer"] == "all"])
    wanted: list[tuple[str, str, Callable]] = [
        ("Accuracy", "On public test examples after every round: the mean over seeds and its 95 % interval.",
         lambda: plots.curves(whole, "accuracy")),
        ("Loss", "Mean loss of a public test example after every round, likewise.",
         lambda: plots.curves(whole, "loss")),
        ("Deviation", "How far the server's product of factors is from the mean of the clients' products.",
         lambda: plots.deviation(whole)),
        ("Privacy spent", "ε at the plan's δ after every round, as the ledger states it.",
         lambda: plots.epsilon(whole)),
        ("Sent to the server", "Accuracy against the bytes that all clients have sent so far.",
         lambda: plots.traffic(whole, way="up")),
        ("Received from the server", "Accuracy against the bytes that all clients have received so far.",
         lambda: plots.traffic(whole, way="down")),
    ]  # fmt: skip
    for title, text, draw in wanted:
        try:
            yield {"title": title, "text": text, "address": _svg(draw())}
        except ValueError:
            continue  # the frame holds nothing finite of this measure: no privacy, a single client, no accuracy


def flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of nested settings, as text."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(inner, f"{name}.{key}".strip("."))
    else:
        yield name, value if isinstance(value, str) else json.dumps(_rounded(value), ensure_ascii=False)


def _rounded(value: Any) -> Any:
    """Floats to five digits, inside lists too; settings.json has them in full."""
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def ledger_rows(ledgers: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row for each cell: what it released in all, what that spent against whom, and whether it may be released."""
    rows = []
    for cell, text in ledgers.items():
        if text is None:
            none = dict.fromkeys(("unit", "relation", "observer", "releases"), "–")
            rows.append({"cell": cell, **none, "epsilon": number(float("inf")), "mode": "no privacy"})
            continue
        from fedlora_lab.ledger import Ledger

        ledger = Ledger.from_json(json.dumps(text, sort_keys=True))
        most = int(ledger.to_frame()["releases"].max())
        reason = f" ({ledger.uncertified})" if ledger.uncertified else ""
        rows.append(
            {
                "cell": cell,
                "unit": ledger.unit,
                "relation": ledger.relation,
                "observer": ledger.observers[0],
                "releases": str(most),
                "epsilon": number(ledger.spent(), 3) + reason,
                "mode": f"{ledger.accountant}, δ = {ledger.delta:g}, {ledger.mode}",
            }
        )
    return rows


def together(ledgers: "Iterable[Ledger | None]", unseen: "Iterable[Ledger]" = ()) -> list[str]:
    """What runs on the same data spend together, in sentences; none for a single one with a ledger (``None``: without).

    Runs with recorded seeds are not for release: of those it is said what they would spend if they were.

    Args: unseen: those of the ledgers that no table shows; of a release among them it is also said alone.

    Guarantees: test_report.py::test_runs_on_the_same_data_are_added_up.
    """
    from fedlora_lab.ledger import Ledger

    whole = list(ledgers)
    books = [one for one in whole if one is not None]
    released = [one for one in books if not one.reproducible]
    wanted = []
    if len(released) > 1:
        wanted.append(
            (released, f"All {len(released)} runs without a seed together, cut short or cleared away ones included")
        )
    elif any(one is gone for one in released for gone in unseen):
        wanted.append((released, "A run without a seed that was cut short or cleared away"))
    if len(released) < len(books) and len(books) > 1:
        wanted.append((books, f"All {len(books)} runs together, if they were all released"))
    sentences = []
    for parts, name in wanted:
        try:
            said = Ledger.compose(*parts).statement()
        except ValueError as error:
            said = f"no epsilon can be stated ({error})."
        sentences.append(f"{name}: {said}")
    if len(books) < len(whole):
        count = f"{len(whole) - len(books)} here, cut short or cleared away ones included"
        sentences.append(f"Runs without privacy, {count}, promise nothing: no ε covers what they tell of these data.")
    return sentences


def joint(path: str | Path, ledgers: Mapping[str, Any]) -> list[str]:
    """`together` for all runs that a folder knows of, those included that its cells do not show; and who was stopped.

    Guarantees: test_attack_spending.py::test_a_run_without_privacy_is_never_forgotten.
    """
    from fedlora_lab.ledger import Ledger

    books = {
        cell: None if text is None else Ledger.from_json(json.dumps(text, sort_keys=True), cell)
        for cell, text in ledgers.items()
    }
    folder = Folder(path)
    known = {**books, **folder.ledgers()}
    unseen = [book for name, book in known.items() if book is not None and name not in ledgers]
    return [*folder.stopped(), *together(known.values(), unseen)]


def facts(settings: Mapping[str, Any], methods: list[str]) -> dict[str, str]:
    """The setting in a few words: what all runs share."""
    task, privacy, plans = settings["task"], settings["privacy"], [settings["plans"][slug] for slug in methods]
    found = {"clients": str(len(task["sizes"])), "private examples": str(sum(task["sizes"]))}
    for key in ("rounds", "local_steps", "batch", "participation"):
        values = list(dict.fromkeys(plan[key] for plan in plans))
        if values == [1.0] and key == "participation":
            continue
        found[key.replace("_", " ")] = ", ".join("all" if value is None else str(value) for value in values)
    found["rank"] = str(settings["lora"]["rank"])
    found["seeds"] = ", ".join("none" if seed is None else str(seed) for seed in settings["seeds"])
    if privacy is None:
        return {**found, "privacy": "none"}
    target = privacy["target"]
    return {
        **found,
        "ε planned": "as spent" if target is None else f"{target:g}",
        "δ": f"{privacy['delta']:g}",
        "unit": privacy["unit"],
    }


def promise(settings: Mapping[str, Any], ledgers: Mapping[str, Any]) -> list[str]:
    """What the numbers promise and what they do not, in sentences."""
    privacy = settings["privacy"]
    if privacy is None:
        return ["These runs were trained without privacy: nothing is promised."]
    unit = {"example": "one example of one client", "client": "all examples of one client"}[privacy["unit"]]
    sentences = [
        f"Two data sets that differ in {unit}, its contribution replaced by nothing (zero-out: how many clients and "
        f"examples there are is public), lead to nearly the same distribution of what is seen, in the sense of "
        f"(ε, δ)-differential privacy with the ε spent, in the table, and δ = {privacy['delta']:g}.",
        f"Seen by {SEEN[privacy['trust']]} That is the observer of every ε here.",
    ]
    if any(ledger and ledger["content"]["reproducible"] for ledger in ledgers.values()):
        sentences.append(
            "The noise was drawn from recorded seeds so that the runs can be repeated. Whoever knows a seed can "
            "subtract its noise: these models are for study and not for release."
        )
    sentences.append(
        "Learning rates, clip norm and rank were not chosen under this ledger. Where they were chosen by looking at "
        "private data, those looks are releases too and are not counted here."
    )
    return sentences


def render(
    frame: "pd.DataFrame", settings: Mapping[str, Any], ledgers: Mapping[str, Any], whole: Sequence[str] = ()
) -> str:
    """The page as text.

    Args: whole: what all runs spend together, in sentences.

    Guarantees: whatever stands in the data is escaped (test_hostile_names_are_escaped); equal input gives equal bytes
        (test_same_run_same_page); nothing is loaded from elsewhere (test_page_stands_alone).
    """
    from jinja2 import Environment, StrictUndefined

    from fedlora_lab.plots.style import look, name

    table = summary(frame)
    rows = [{**row, "name": name(row["method"]), "colour": look(row["method"]).colour} for row in words(table)]
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        rows=rows,
        facts=facts(settings, [row["method"] for row in rows]),
        promise=[*promise(settings, ledgers), *whole],
        measure=table.attrs["measure"],
        against=against(None if settings["privacy"] is None else settings["privacy"]["trust"]),
        figures=list(figures(frame)),
        ledger=ledger_rows(ledgers),
        settings=settings,
        shown={part: list(flat(settings[part])) for part in SHOWN if settings.get(part)},
    )


def report(path: str | Path) -> Path:
    """Write ``report.html`` into a run folder, from what is in it; returns its path.

    Raises: ``ValueError`` when the folder is not a run's or holds no finished cell.
    """
    path = Path(path)
    check(path.is_dir(), "folder", str(path), "a run folder, as compare and run write it")
    settings = Folder(path).settings
    check((path / "frame.csv").is_file(), "folder", str(path), "at least one finished cell (frame.csv)")
    frame, ledgers = read_frame(path / "frame.csv"), read_json(path / "ledger.json")
    try:
        frame, ledgers = Folder(path).counted(frame, ledgers)
        page = render(frame, settings, ledgers, joint(path, ledgers))
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise ValueError(f"{path}: expected settings, frame and ledger of one run ({words})") from error
    write_atomically(path / "report.html", page, shared=True)
    return path / "report.html"
