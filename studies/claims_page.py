"""Writes results/claims.csv, docs/claims.md and its figures from the committed studies.

    python -m studies claims
    python -m studies claims --measure   # first what no study records, see updates.py

A study that is not under results/ leaves its claims unjudged there, and the page says so.
"""

import re
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table
from fedlora_lab.measures.statistics import RULE
from fedlora_lab.plots import intervals, style
from studies.claims import CLAIMS, STALE, VERDICTS, WAITS, claim_frames, judge_claims
from studies.declared import STUDIES
from studies.runner import load_results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "claims.md"
FIGURES = {
    "claims": "accuracy, as a share of the room",
    "claims-further": "other measures, as shares of the other method's or as they are",
}
ALT = (
    "One row a claim: its sentence and the place that decides, the measured share with its "
    "interval, and the verdict as colour."
)
OPENING = """# Published claims, measured again

Claims of papers about federated LoRA, one sentence each, with the place where each was made and
what was measured here. Small models and real data stand in for the papers' own: **no verdict says
anything about a paper's own setting.**

*Sources.* A tag says how far a claim could be read. *Primary*: the paper's abstract or its authors'
code. *Secondary*: notes, reviews, benchmark pages or implementations by others. *Inferred*: our own
reading.

*Comparison.* All methods run on the same code under the same accounting, with learning rates tuned
alike. A result is that of the last round, not of the best one. Differences are paired by seed.
`python -m studies NAME` runs the study of that name again.

**Shares.** An effect on accuracy is a share of the *room*: the accuracy of the best method on the
task, in any study and at any budget, less the accuracy before training. What a paper claims is
converted likewise: its difference is divided by the best number of its table less chance level.
Where a paper gives a size, half of it is asked for. Bytes, curvature and spread are shares of the
other method's value, and are said to be. The deviation of an average and cosines are printed as
they are.

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
- *Not run yet* and *not measured here*: the column *why* says what is missing.

**Places.** The verdict comes from the place nearest to the paper's setting that has been run, which
is a *stand-in* if a nearer one waits.

**Intervals.** Those printed are 95 % intervals of one difference by itself: Student's t, and for
spreads a jackknife over seeds. Those that decide are wider: they hold for all verdicts of the page
together (Bonferroni), and those elsewhere for all verdicts elsewhere. So a printed interval can
exclude zero where the verdict is *cannot tell*.

*Collapsed* is {collapsed}; where no run of a difference has, nothing is said.

**Tuning** looked at validation data of the same private split, with other seeds than those
reported. That is not private: on your own data every look is a release that counts against the
budget.
"""
PLACES = """## Places

β is the concentration of the Dirichlet split: with a small β clients are unlike.

{studies}
- `updates`: what no study records, on digits; 10 seeds, rates of `digits`.
- *screens*: the scores of a study's first tuning seed at each learning rate.
"""
WAITING = """## Waits for measurement

{waits}

The older studies under results/ used other random streams, so a repeated run agrees
with these in distribution, not bit by bit. Older studies of digits also start from an older model
of the task, so differences are taken within a study only.
"""
SAID_ABOVE = r" of the room|claimed \S+ %, (?=asked)|; 0 of \d+ runs collapsed"


def capitalized(words: str) -> str:
    """The words with a capital at their beginning."""
    return words[0].upper() + words[1:]


def study_of(table: pd.DataFrame) -> Any:
    """The study of each row's place."""
    return table["place"].str.split(",").str[0]


def places(table: pd.DataFrame) -> str:
    """What each study is that a claim is judged by."""
    names = {*study_of(table).str.removesuffix(" screens")}
    used = [study for name, study in sorted(STUDIES.items()) if name in names]
    lines = [f"- `{one.name}`: {one.note}; {len(one.seeds)} seeds." for one in used]
    return PLACES.format(studies="\n".join(lines))


def waiting(table: pd.DataFrame) -> str:
    """Which places wait for their runs, and which rows are to be measured again."""
    missing = study_of(table[table["verdict"] == WAITS]).value_counts()
    lines = [f"- `{name}`, for {n} of the judgements." for name, n in sorted(missing.items())]
    for (study, method), reason in STALE.items():
        # A test holds the last sentence.
        row = f"- `{study}`, rows of `{method}`: {reason}. No claim of this page reads them."
        lines.append(row)
    return WAITING.format(waits="\n".join(lines))


def cost(frames: Any) -> str:
    """How many runs the studies took, each counted once, and how long."""
    done: dict[str, Any] = {}
    for name in frames:
        done |= load_results(RESULTS / "runs" / f"{name}.jsonl")
    hours = sum(entry["values"].get("seconds") or 0.0 for entry in done.values()) / 3600
    took = f"{len(done):,} runs, tuning included, and {hours:.0f} hours of one core"
    return f"The studies took {took}.\n"


def place_name(place: str) -> str:
    """A place with the name of its study as code."""
    study, comma, labels = place.partition(",")
    return f"`{study}`{comma}{labels}"


def elsewhere(rows: pd.DataFrame) -> str:
    """The other places of a claim by their verdicts, each with its share and interval."""
    by_verdict: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        mean, low, high = (round(row[x], 2) + 0.0 for x in ("mean", "low", "high"))
        ends = "" if low == high else f" [{low:.0%}, {high:.0%}]"
        number = f": {mean:.0%}{ends}".replace("-", "−").replace("%", " %")
        number = number if mean == mean else ""
        by_verdict.setdefault(row["verdict"], []).append(place_name(row["place"]) + number)
    texts = [f"*{verdict}*: {'; '.join(names)}" for verdict, names in by_verdict.items()]
    return "; ".join(texts) or "–"


def verdict_section(table: pd.DataFrame, verdict: str) -> str:
    """The claims of one verdict, with what was measured at all their places."""
    lines = [("claim", "claimed in", "measured here", "why", "elsewhere")]
    for row in table[(table["at"] != "away") & (table["verdict"] == verdict)].to_dict("records"):
        number = row["source"].removeprefix("arXiv:")
        link = f"[{number}](https://arxiv.org/abs/{number})"
        claimed = f"{link}, {row['tag']}: {row['setting']}"
        measured = row["measured"]
        if row["place"]:
            at = "" if row["at"] == "home" else f"{row['at']}, "
            measured = f"{at}{place_name(row['place'])} – {measured}"
        measured = re.sub(SAID_ABOVE, "", measured)
        away = table[(table["slug"] == row["slug"]) & (table["at"] == "away")]
        lines.append((row["claim"], claimed, measured, row["reason"], elsewhere(away)))
    body = markdown_table(lines) if len(lines) > 1 else "None."
    return f"## {capitalized(verdict)}\n\n{body}\n"


def page(table: pd.DataFrame, frames: Any) -> str:
    """The claims in parts, one for each verdict, and what waits for measurement.

    Args: table: of `judge_claims`. frames: that it read.
    """
    main = table[table["at"] != "away"]
    counts = main["verdict"].value_counts()
    summary = ", ".join(f"{counts.get(word, 0)} *{word}*" for word in VERDICTS)
    pictures = [
        f"![{ALT}](figures/{name}.png)\n\n*{capitalized(caption)}.*\n"
        for name, caption in FIGURES.items()
    ]
    sections = [
        OPENING.format(collapsed=RULE),
        f"The verdicts of {len(main)} claims: {summary}.\n",
        cost(frames),
        "## At a glance\n",
        *pictures,
        places(table),
        waiting(table),
        *(verdict_section(table, word) for word in VERDICTS),
    ]
    # "4 % [1 %, 7 %]" says its unit three times.
    interval = r"(\S+) % \[(\S+) %, (\S+) %\]"
    return re.sub(interval, r"\1 [\2, \3] %", "\n".join(sections))


def figure(table: pd.DataFrame) -> style.Picture:
    """Draws a row for each measured claim at the place that decides, a colour for each verdict."""
    measured = table[table["mean"].notna() & (table["at"] != "away")]
    sentences = [textwrap.shorten(claim, 96, placeholder=" …") for claim in measured["claim"]]
    return intervals(
        measured.assign(row=sentences),
        by="row",
        hue="verdict",
        reference=0.0,
        title=f"{len(measured)} claims, by their verdict",
        xlabel="← against the claim      share      with the claim →",
    )


def write() -> None:
    """Writes the table, the page and its figures."""
    frames = claim_frames(RESULTS)
    table = judge_claims(CLAIMS, frames)
    write_atomically(RESULTS / "claims.csv", table.to_csv(index=False), shared=True)
    write_atomically(PAGE, page(table, frames), shared=True)
    of_room = table["unit"] == "of the room"
    for name, part in zip(FIGURES, (table[of_room], table[~of_room]), strict=True):
        picture = style.png(figure(part))
        write_atomically(PAGE.parent / "figures" / f"{name}.png", picture, shared=True)
    print(table[table["at"] != "away"]["verdict"].value_counts().to_string())
