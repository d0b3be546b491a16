"""Judge the published claims by the committed studies: results/claims.csv and docs/claims.md.

    python scripts/claims.py

A study that is not under results/ leaves its claims unjudged, and the page says so.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from fedlora_lab import experiments as study
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.experiments.paper_claims import CLAIMS, STALE, VERDICTS, claims_using, judge_claims
from fedlora_lab.report.summary_table import markdown_table, require_visible

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "claims.md"
OPENING = """# What of the literature holds here

Claims of papers, each with its source and how far that could be read (*primary*: the paper's
abstract or its authors' code; *secondary*: notes, reviews, benchmark pages, implementations by
others; *inferred*: our own reading), against what the same claim gives here: small models, real
data, the same code and accounting for all, learning rates tuned alike, the last round and not the
best, differences paired by seed with Student's 95 % interval.

A verdict is computed. *Holds*: the whole interval is on the side of the claim. *Does not hold
here*: the whole interval is on the other side, or below the size that is asked for. *Cannot be
tested at this scale*: the interval reaches both sides (*undecided*), or nothing here speaks to it
(*not measured*). *Not run yet*: the study that would tell is not there, or has not come to it. No
verdict says anything of the papers' own settings.

Where a claim names a size, at least half of it is asked for; the bound, ours, stands in the row.
A claim with several parts fails with one of them. The intervals printed are those of one
difference by itself; of so many, some miss by chance. So those that decide are wider: they hold
for all claims of the page together (Bonferroni).

Tuning looked at validation data of the same private split, with seeds apart from those reported.
That is not private: on data of one's own, every look is a release that has to be counted, and the
budget that is left is smaller.
"""


STREAMS = """The studies under results/ were made with the random streams of version 0.1.0, in
which seeds were cut to 32 bits. Streams are now keyed by 128 bits, so the same seeds draw other
numbers: a repeated run agrees with these in law and not to the bit. {secagg}All studies are run
again."""
NO_SUMS = "No study uses secure aggregation, whose ε has changed as well. "
SUMS = (
    "The ε of rows with secure aggregation ({}) was amplified by participation, which no longer "
    "counts. "
)


def waiting(frames: Any) -> str:
    """What of the committed studies is to be measured again, and which claims read it."""
    lines = ["## Waits for new measurement\n"]
    for one in STALE:
        reads = ", ".join(f"*{claim.text}*" for claim in claims_using(one, CLAIMS, frames))
        told = (
            f"Claims that rest on them: {reads}."
            if reads
            else "No claim of this page rests on them."
        )
        lines.append(f"- `{one.study}`, all rows of `{one.method}`: {one.why}. {told}")
    summed = [
        s.name
        for s in study.STUDIES.values()
        if any(c.privacy.get("trust") == "secagg" for c in s.cases)
    ]
    return (
        "\n".join(lines)
        + "\n\n"
        + STREAMS.format(secagg=SUMS.format(", ".join(summed)) if summed else NO_SUMS)
    )


def page(table: pd.DataFrame, frames: Any) -> str:
    """The claims in parts, one for each verdict, and what waits for new measurement."""
    parts = [OPENING]
    counts = table["verdict"].value_counts()
    parts.append(", ".join(f"{counts.get(word, 0)}: *{word}*" for word in VERDICTS) + ".\n")
    parts.append(waiting(frames) + "\n")
    for word in VERDICTS:
        parts.append(f"## {word[0].upper()}{word[1:]}\n")
        part: Any = table[table["verdict"] == word]
        rows = part.to_dict("records")
        lines = [("claim", "claimed in", "measured here", "why")]
        for row in rows:
            number = row["source"].removeprefix("arXiv:")
            link = f"[{number}](https://arxiv.org/abs/{number})"
            told = f"{row['measured']} (`{row['command']}`)" if row["command"] else row["measured"]
            lines.append(
                (row["claim"], f"{link}, {row['tag']}: {row['setting']}", told, row["reason"])
            )
        parts.append(markdown_table(lines) + "\n" if rows else "None.\n")
    return "\n".join(parts)


def main() -> None:
    frames = study.read_studies(RESULTS)
    table = judge_claims(CLAIMS, frames)
    write_atomically(RESULTS / "claims.csv", table.to_csv(index=False), shared=True)
    write_atomically(PAGE, require_visible(page(table, frames)), shared=True)
    print(table["verdict"].value_counts().to_string())


if __name__ == "__main__":
    main()
