"""Writes results/claims.csv, docs/claims.md and its figure from the committed studies.

    python -m studies.claims_page

Nothing is trained.
"""

import math
import re
from collections.abc import Hashable, Mapping
from typing import Any

import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table
from fedlora_lab._utils.statistics import RULE
from fedlora_lab.plots import intervals, style
from studies import RESULTS, ROOT
from studies.claims import (
    CLAIMS,
    HOLDS,
    OPPOSITE,
    SAME,
    VERDICTS,
    claim_frames,
    judge_claims,
    share,
)
from studies.declared import STUDIES
from studies.runner import load_results, select_rows

PAGE = ROOT / "docs" / "claims.md"
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
DRAWN = (style.RIGHT, style.WRONG, style.FACTOR["B"], style.GREY, style.SERIES[1])
"""Colours of the first verdicts, those with an interval."""
OPENING = """# Published claims, measured again

What papers on federated LoRA claim, and what small models on real data show: **no verdict says
anything about a paper's own setting.** Each claim is judged in the study nearest to where it was
made, on the last round unless *to know* says otherwise, under the same accounting, at tuned
learning rates, paired by seed.

**Shares.** An effect on accuracy is a share of the *attainable gain*: the accuracy of the best
method on the task, in any federated study, at any budget, less the accuracy before training. A
claimed difference is divided by the best number of its table less chance level, and half of it is
asked for.

**Verdicts** follow from an interval.

- *Holds*: the whole interval is above what is asked, or within the bounds of an equality.
- *Opposite*: it is below zero, or beyond the bounds of an equality.
- *No difference of that size*: it rules out a lead of the size asked for. Where no size was
  claimed, it lies within a tenth of the attainable gain, or of the other's mean.
- *Cannot tell*: it allows more than one of these.
- *No gain to see here*, before the last two: the other method leaves less than is asked for (a
  tenth where nothing is), or neither gained as much (nor a tenth). But whoever is certain to be
  behind by more than a tenth is behind.

**Intervals** in the table are 95 % intervals of one difference: Student's t (ratios: of
logarithms), and for spreads a jackknife over seeds. Those that decide, drawn for accuracy, hold for
all comparisons together (Bonferroni) and are wider.
*Collapsed* is {collapsed}.

**Tuning** looked at validation data of the same private split, with other seeds; on your own data
every look is a release. Cases without noise, and those that `studies/declared.py` names after
collapsed runs or a best rate at an end, are tuned carefully; *to know* counts the runs that still
collapse.
"""
TABLE = """## The claims

Shown are those that a study decides, on the site all. `results/claims.csv` has all: where each was
made and how far that could be read ([primary, secondary or
inferred](methods.md)), both intervals, the smallest *decidable* lead, and the lead in points, of
one tuning seed, at the rate that is best for the favoured method ([why it differs](rates.md)).

<!-- claims -->
{table}
<!-- /claims -->
"""


def cost() -> str:
    """Says how many runs the studies took, each counted once, and how long."""
    done: dict[str, Any] = {}
    for name in STUDIES:
        done |= load_results(RESULTS / "runs" / f"{name}.jsonl")
    hours = sum(entry["values"].get("seconds") or 0.0 for entry in done.values()) / 3600
    return (
        f"The studies took {len(done):,} runs, tuning included, `updates` not, and "
        f"{hours:.0f} hours of one core.\n"
    )


def studies_list(table: pd.DataFrame) -> str:
    """Says what each study is that a claim is judged by."""
    names = {*table["place"].dropna().str.partition(",")[0]}
    used = [study for name, study in sorted(STUDIES.items()) if name in names]
    lines = [f"- `{study.name}`: {study.note}; {len(study.seeds)} seeds." for study in used]
    lines.append("- `updates`: `digits-example` again, for what no study records; 10 seeds.\n")
    return "\n".join(lines)


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


def decided(table: pd.DataFrame) -> str:
    """The claims that a study decides, in the order of the verdicts."""
    lines = [("claim", "paper", "verdict", "measured here", "to know")]
    for verdict in (HOLDS, OPPOSITE, SAME):
        for row in select_rows(table, verdict=verdict).to_dict("records"):
            # The first reason of the others is what the verdict says already.
            note = row["reason"] if verdict == HOLDS else row["reason"].partition("; ")[2]
            lines.append((row["claim"], linked(row), verdict, measured(row), note))
    return without_units(markdown_table(lines))


def whole_table(table: pd.DataFrame) -> str:
    """All claims, as the site shows them in place of those that are decided.

    It puts a field above a table in a ``div`` of this class, see book/filter_table.js.

    Args: table: of results/claims.csv.
    """
    lines = [("claim", "verdict", "claimed in", "measured here", "why")]
    for row in table.fillna({"reason": ""}).to_dict("records"):
        place = f"{linked(row)}, {row['tag']}: {row['setting']}"
        lines.append((row["claim"], row["verdict"], place, measured(row), row["reason"]))
    return f'<div class="filtered">\n\n{without_units(markdown_table(lines))}\n\n</div>'


def page(table: pd.DataFrame) -> str:
    """The rule, the counts and the claims that are decided.

    Args: table: of `judge_claims`.
    """
    counts = table["verdict"].value_counts()
    summary = ", ".join(f"{counts.get(verdict, 0)} *{verdict}*" for verdict in VERDICTS)
    sections = [
        OPENING.format(collapsed=RULE),
        f"The verdicts of {len(table)} claims: {summary}.\n",
        cost(),
        f"![{ALT}](figures/{FIGURE.name})\n",
        f"## Studies\n\n{studies_list(table)}",
        TABLE.format(table=decided(table)),
    ]
    return "\n".join(sections)


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
