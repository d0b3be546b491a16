"""Writes results/claims.csv, docs/claims.md and its figure from the committed studies.

    python -m studies claims
    python -m studies claims --measure   # first what no study records, see updates.py

A study that is not under results/ leaves its claims unjudged there, and the page says so.
"""

import math
import re
import textwrap
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table
from fedlora_lab._utils.statistics import RULE
from fedlora_lab.plots import intervals, style
from studies.claims import (
    BUILT,
    CLAIMS,
    STALE,
    UNTESTED,
    VERDICTS,
    WAITS,
    claim_frames,
    judge_claims,
    share,
)
from studies.declared import STUDIES
from studies.runner import load_results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "claims.md"
FIGURE = ROOT / "docs" / "figures" / "claims.png"
ALT = (
    "One row a claim: its sentence, the measured share of the room with its interval, and the "
    "verdict as colour."
)
UNITS = {"room": "", "plain": " (as it is)", "ratio": " (below the other's)"}
UNITS["spread"] = " (std below the other's)"
"""`Comparison.share` -> what is written behind the share."""
OPENING = """# Published claims, measured again

Claims of papers about federated LoRA, one sentence each. Small models and real data stand in for
the papers' own: **no verdict says anything about a paper's own setting.** Each claim is judged in
one place, the study nearest to the setting where it was made.

*Sources.* A tag says how far a claim could be read. *Primary*: the paper's abstract or its authors'
code. *Secondary*: notes, reviews, benchmark pages or implementations by others. *Inferred*: our own
reading.

*Comparison.* All methods run on the same code under the same accounting, with learning rates tuned
alike. A result is that of the last round, not of the best one. Differences are paired by seed.
`python -m studies NAME` runs the study of that name again.

**Shares.** An effect on accuracy is a share of the *room*: the accuracy of the best method on the
task, in any study and at any budget, less the accuracy before training. What a paper claims is
converted likewise: its difference is divided by the best number of its table less chance level.
Where a paper gives a size, half of it is asked for. Curvature and spread are shares of the other
method's value, cosines stand as they are, and both are said to be.

**Verdicts** are computed from an interval.

- *Holds*: the whole interval is above what is asked. An equality holds if the whole interval is
  within its bounds.
- *Opposite*: the whole interval is below zero, or beyond the bounds of an equality.
- *No difference of that size*: the interval rules out a lead of the size asked for. Where no size
  was claimed, it lies within a tenth of the room.
- *Cannot tell*: the interval allows more than one of these.
- *No room here*: the other method leaves less room than is asked for, or neither method gained as
  much. A method that is certain to be behind by more than a tenth of the room is behind all the
  same.

**Intervals.** Those printed are 95 % intervals of one difference by itself: Student's t, and for
spreads a jackknife over seeds. Those that decide are wider: they hold for all comparisons of the
page together (Bonferroni). So a printed interval can exclude zero where the verdict is *cannot
tell*. *Decidable* is the smallest lead that an interval of that width would have shown to hold.

**At one rate** is the lead in points of accuracy at the learning rate that is best for the method
that the claim favours: one tuning seed, validation data. [Accuracy over the learning
rate](rates.md) says why it differs from the lead with each method at its own rate.

*Collapsed* is {collapsed}; where no run of a difference has, nothing is said.

**Tuning** looked at validation data of the same private split, with other seeds than those
reported. That is not private: on your own data every look is a release that counts against the
budget.
"""


def capitalized(text: str) -> str:
    """Returns a text with a capital at its beginning."""
    return text[0].upper() + text[1:]


def cost() -> str:
    """Says how many runs the studies took, each counted once, and how long."""
    done: dict[str, Any] = {}
    for name in STUDIES:
        done |= load_results(RESULTS / "runs" / f"{name}.jsonl")
    hours = sum(entry["values"].get("seconds") or 0.0 for entry in done.values()) / 3600
    runs = f"{len(done):,} runs, tuning included, and {hours:.0f} hours of one core"
    return f"The studies took {runs}.\n"


def studies_list(table: pd.DataFrame) -> str:
    """Says what each study is that a claim is judged by, and which rows wait."""
    names = {*table["place"].dropna().str.split(",").str[0]}
    used = [study for name, study in sorted(STUDIES.items()) if name in names]
    lines = [f"- `{study.name}`: {study.note}; {len(study.seeds)} seeds." for study in used]
    lines.append("- `updates`: what no study records, on digits; 10 seeds, rates of `digits`.")
    for (study, method), reason in STALE.items():
        # A test holds the last sentence.
        waits = f"rows of `{method}` wait for a new measurement: {reason}"
        lines.append(f"- `{study}`, {waits}. No claim of this page reads them.")
    return "\n".join(lines) + "\n"


def claimed_in(row: Mapping[Hashable, Any]) -> str:
    """Links the source of a claim, and says how far it was read and where it was made."""
    number = row["source"].removeprefix("arXiv:")
    return f"[{number}](https://arxiv.org/abs/{number}), {row['tag']}: {row['setting']}"


def measured(row: Mapping[Hashable, Any]) -> str:
    """Writes place, share and interval of a claim, and what was claimed or asked."""
    study, comma, labels = row["place"].partition(",")
    text = f"`{study}`{comma}{labels}"
    if row["verdict"] == WAITS:
        return text
    ends = f"[{share(row['low'])}, {share(row['high'])}]"
    text += f": {share(row['mean'])} {ends}{UNITS[row['share']]}, {row['seeds']:.0f} seeds"
    if math.isfinite(row["within"]):
        return f"{text}; asked: within ±{share(row['within'])}"
    if row["asked"]:
        return f"{text}; claimed {share(row['claimed'])}, asked: more than {share(row['asked'])}"
    return text


def compared(table: pd.DataFrame, verdict: str) -> str:
    """The compared claims of one verdict."""
    lines = [("claim", "claimed in", "measured here", "decidable", "at one rate", "why")]
    for row in table[table["verdict"] == verdict].to_dict("records"):
        rate = row["at_claimants_rate"]
        points = f"{rate:+.1f}".replace("-", "−") if math.isfinite(rate) else "–"
        decidable = share(row["decidable"]) if math.isfinite(row["decidable"]) else "–"
        place = (row["claim"], claimed_in(row), measured(row), decidable, points, row["reason"])
        lines.append(place)
    body = markdown_table(lines) if len(lines) > 1 else "None."
    return f"## {capitalized(verdict)}\n\n{body}\n"


def unmeasured(table: pd.DataFrame, verdict: str) -> str:
    """The claims with nothing to compare, and why."""
    lines = [("claim", "claimed in", "why")]
    for row in table[table["verdict"] == verdict].to_dict("records"):
        lines.append((row["claim"], claimed_in(row), row["reason"]))
    return f"## {capitalized(verdict)}\n\n{markdown_table(lines)}\n"


def page(table: pd.DataFrame) -> str:
    """The claims in parts, one for each verdict.

    Args: table: of `judge_claims`.
    """
    apart = (BUILT, UNTESTED)
    decided = [verdict for verdict in VERDICTS if verdict not in apart]
    counts = table["verdict"].value_counts()
    summary = ", ".join(f"{counts.get(verdict, 0)} *{verdict}*" for verdict in decided)
    number = int(table["place"].notna().sum())
    sections = [
        OPENING.format(collapsed=RULE),
        f"The verdicts of {number} comparisons: {summary}.\n",
        f"Further claims: {counts[BUILT]} *{BUILT}*, {counts[UNTESTED]} *{UNTESTED}*.\n",
        cost(),
        f"## At a glance\n\n![{ALT}](figures/{FIGURE.name})\n",
        f"## Studies\n\n{studies_list(table)}",
        *(compared(table, verdict) for verdict in decided),
        *(unmeasured(table, verdict) for verdict in apart),
    ]
    # "4 % [1 %, 7 %]" says its unit three times.
    interval = r"(\S+) % \[(\S+) %, (\S+) %\]"
    return re.sub(interval, r"\1 [\2, \3] %", "\n".join(sections))


def figure(table: pd.DataFrame) -> style.Picture:
    """Draws a row for each claim on accuracy, a colour for each verdict."""
    drawn = table[table["share"].eq("room") & table["mean"].notna()]
    sentences = [textwrap.shorten(claim, 96, placeholder=" …") for claim in drawn["claim"]]
    return intervals(
        drawn.assign(row=sentences),
        by="row",
        hue="verdict",
        reference=0.0,
        title=f"{len(drawn)} claims on accuracy, by their verdict",
        xlabel="← against the claim      share of the room      with the claim →",
    )


def write() -> None:
    """Writes the table, the page and its figure."""
    table = judge_claims(CLAIMS, claim_frames(RESULTS), RESULTS)
    write_atomically(RESULTS / "claims.csv", table.to_csv(index=False), shared=True)
    write_atomically(PAGE, page(table), shared=True)
    write_atomically(FIGURE, style.png(figure(table)), shared=True)
    print(table["verdict"].value_counts().to_string())
