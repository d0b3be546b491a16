"""Writes results/claims.csv, studies/logbook.md and its figure from the committed studies.

    python -m studies.claims_page

Nothing is trained.
"""

import math
import re
import textwrap
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import fill_blocks, markdown_table
from fedlora_lab.plots import intervals, style
from studies import RESULTS, ROOT
from studies.claims import (
    BUILT,
    CLAIMS,
    FOREIGN,
    FULL,
    HOLDS,
    OPEN,
    OPPOSITE,
    SAME,
    UNTESTED,
    VERDICTS,
    claim_frames,
    judge_claims,
    share,
)
from studies.declared import STUDIES
from studies.runner import load_results, select_rows

PAGE = ROOT / "studies" / "logbook.md"
FIGURE = ROOT / "docs" / "figures" / "claims.png"
ALT = (
    "One row a claim about accuracy, ordered and coloured by verdict: its sentence and the "
    "measured share of the attainable gain, with the interval that decides."
)
UNITS = {
    "gain": "",
    "mean": " (of the other's mean)",
    "ratio": " (minus: above the other's)",
    "spread": " (std; minus: above the other's)",
}
"""`Comparison.share` -> what is written behind the share."""
DRAWN = (style.RIGHT, style.WRONG, style.FACTOR["B"], style.GREY, *style.SERIES[1:3])
"""Colours of the first verdicts, those with an interval."""
WIDTH = 140
"""Columns of the page."""
COUNTS = """Papers on federated LoRA make claims, and {all} of them are kept here with their
sources. Which of them do small models on real data show? Our studies decide {decided}: {holds}
hold, {opposite} come out opposite, and for {same} a lead above {limit} % of what training can gain
is ruled out. **No verdict says anything about a paper's own setting.**"""
EXAMPLE = """The claim is *{claim}*, by reviewers' reading of {number}.
The nearest study is `{study}` at ε = 1, which has texts with every example protected. {seeds} seeds
of FFA-LoRA are paired with {seeds} of FedLoRA, each method at its own tuned rate.
FFA-LoRA ends ahead by {mean} of what training can gain on this task. The 95 % interval is
[{low}, {high}].
The interval that decides is wider, [{low_together}, {high_together}], because {compared}
comparisons have to hold together.
No size was claimed, so any lead is asked for. The whole interval is above zero: the claim
**{verdict}**.
To know: {note}."""
EXAMPLE_CLAIM = "ffa-over-fedlora-tight"
REASONS = {
    OPEN: "The interval allows more than one verdict.",
    FULL: "On these tasks a lead of the claimed size could not appear.",
    BUILT: "They follow from how a method is made, such as half of the bytes, and need no run.",
    UNTESTED: "No study here has what they speak of.",
    FOREIGN: "The study nearest to them has another ε than they name. The next section has them.",
}
"""Verdict that decides nothing -> what it says of its claims."""


def cost() -> str:
    """Says how many runs the studies took, each counted once, and how long."""
    done: dict[str, Any] = {}
    for name in STUDIES:
        done |= load_results(RESULTS / "runs" / f"{name}.jsonl")
    hours = sum(entry["values"].get("seconds") or 0.0 for entry in done.values()) / 3600
    return (
        f"The studies took {len(done):,} runs, tuning included, `updates` not, and "
        f"{hours:.0f} hours of one core."
    )


def studies_list(table: pd.DataFrame) -> str:
    """Says what each study is that a claim is judged by."""
    names = {*table["place"].dropna().str.partition(",")[0]}
    used = [study for name, study in sorted(STUDIES.items()) if name in names]
    lines = [f"`{study.name}`: {study.note}; {len(study.seeds)} seeds." for study in used]
    lines.append(
        "`two-bits`: a decoder learns messages, at one to four bits; 20 seeds, 10 at home."
    )
    lines.append("`updates`: `digits-example` again, for what no study records; 10 seeds.")
    return "\n".join(wrapped(line, "- ") for line in lines) + "\n"


def linked(row: Mapping[Hashable, Any]) -> str:
    """Links the source of a claim."""
    number = row["source"].removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number})"


def measured(row: Mapping[Hashable, Any]) -> str:
    """Writes place, share and interval of a claim, and what was asked; a dash for none."""
    if pd.isna(row["place"]):
        return "–"
    study, comma, labels = row["place"].partition(",")
    text = f"`{study}`{comma}{labels}"
    ends = f"[{share(row['low'])}, {share(row['high'])}]"
    text += f": {share(row['mean'])} {ends}{UNITS[row['share']]}"
    if math.isfinite(row["within"]):
        return f"{text}; asked: within ±{share(row['within'])}"
    if row["asked"]:
        return f"{text}; claimed {share(row['claimed'])}"
    return text


def without_units(text: str) -> str:
    """Says the unit of an interval once: "4 % [1 %, 7 %]" says it three times."""
    return re.sub(r"(\S+) % \[(\S+) %, (\S+) %\]", r"\1 [\2, \3] %", text)


def claims_table(table: pd.DataFrame, *verdicts: str) -> str:
    """The claims with these verdicts, in the order of the verdicts."""
    lines = [("claim", "paper", "verdict", "measured here", "to know")]
    for verdict in verdicts:
        for row in select_rows(table, verdict=verdict).to_dict("records"):
            # The first reason of the others is what the verdict says already.
            note = row["reason"] if verdict == HOLDS else row["reason"].partition("; ")[2]
            lines.append((row["claim"], linked(row), verdict, measured(row), note))
    return without_units(markdown_table(lines))


def wrapped(text: str, start: str = "") -> str:
    """One paragraph, or one item of a list that begins with `start`."""
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_on_hyphens=False,
    )


def example(table: pd.DataFrame) -> str:
    """One claim with every number that its verdict comes from."""
    (row,) = select_rows(table, slug=EXAMPLE_CLAIM).to_dict("records")
    names = ("mean", "low", "high", "low_together", "high_together")
    text = EXAMPLE.format(
        **{name: row[name] for name in ("claim", "verdict")},
        **{name: share(row[name]) for name in names},
        seeds=f"{row['seeds']:.0f}",
        number=linked(row),
        study=row["place"].partition(",")[0],
        compared=table["mean"].count(),
        note=row["reason"],
    )
    steps = re.split(r"(?<=[.])\n(?=[A-Z])", text)
    return "\n".join(wrapped(step, f"{number}. ") for number, step in enumerate(steps, 1))


def page(table: pd.DataFrame) -> str:
    """The page, whose counts, tables and lists are those of the verdicts.

    Args: table: of `judge_claims`.
    """
    counts = table["verdict"].value_counts()
    holds, opposite, same = (counts.get(verdict, 0) for verdict in (HOLDS, OPPOSITE, SAME))
    opening = COUNTS.format(
        all=len(table),
        decided=holds + opposite + same,
        holds=holds,
        opposite=opposite,
        same=same,
        limit=math.ceil(100 * table.loc[table["verdict"] == SAME, "high_together"].max()),
    )
    rest = (
        wrapped(f"*{verdict}*, {counts.get(verdict, 0)} claims. {text}", "- ")
        for verdict, text in REASONS.items()
    )
    blocks = {
        "counts": wrapped(opening),
        "example": example(table),
        "claims": claims_table(table, HOLDS, OPPOSITE, SAME),
        "undecided": "\n".join(rest),
        "foreign": claims_table(table, FOREIGN),
        "studies": f"{studies_list(table)}\n{cost()}",
    }
    return fill_blocks(PAGE.read_text(encoding="utf-8"), blocks)


def figure(table: pd.DataFrame) -> style.Figure:
    """Draws a row for each claim on accuracy, with the interval that decides, by verdict."""
    # The intervals that decide stand for those of one difference.
    table = table.assign(low=table["low_together"], high=table["high_together"])
    drawn = table.query("share == 'gain' and mean == mean")
    hold, opposite = (int((drawn["verdict"] == verdict).sum()) for verdict in (HOLDS, OPPOSITE))
    return intervals(
        pd.concat(select_rows(drawn, verdict=verdict) for verdict in VERDICTS),
        by="claim",
        hue="verdict",
        colours=dict(zip(VERDICTS, DRAWN, strict=False)),
        reference=0.0,
        title=f"{hold} of {len(drawn)} claims about accuracy hold, {opposite} are opposite",
        xlabel="← other ahead      share of the attainable gain      first ahead →",
        comparisons=table["mean"].count(),
    )


def write() -> None:
    """Writes the table, the page and its figure."""
    table = judge_claims(CLAIMS, claim_frames(RESULTS), RESULTS)
    write_atomically(RESULTS / "claims.csv", table.to_csv(index=False), shared=True)
    write_atomically(PAGE, page(table), shared=True)
    write_atomically(FIGURE, style.png(figure(table)), shared=True)


if __name__ == "__main__":
    write()
