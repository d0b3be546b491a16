"""Judge the published claims by the committed studies: results/claims.csv, docs/claims.md and its
figure.

    python -m studies claims
    python -m studies claims --measure   # first what no study records, into results/updates.csv

A study that is not under results/ leaves its claims unjudged there, and the page says so.
"""

import re
import textwrap
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.markdown import markdown_table, require_visible
from fedlora_lab.lora import peft
from fedlora_lab.measures.statistics import RULE
from fedlora_lab.plots import intervals, style
from fedlora_lab.tasks.task import concatenate
from studies.claims import (
    CLAIMS,
    STALE,
    STAND_INS,
    VERDICTS,
    WAITS,
    claim_frames,
    claims_using,
    judge_claims,
    select_rows,
)
from studies.declared import STUDIES
from studies.runner import load_results, read_study

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
UPDATES = RESULTS / "updates.csv"
PAGE, FIGURE = ROOT / "docs" / "claims.md", ROOT / "docs" / "figures"
MEASURED = [(m, 1.0) for m in ("fedlora", "la-lora", "la-lora-unfiltered")]
MEASURED += [(m, None) for m in ("fedlora", "la-lora", "fedlpp")]
MEASURED += [(m, 3.0) for m in ("fedlora", "rolora", "as-lora")]
TWO_BITS = fl.methods.FedLPP.replace(
    name="FedLPP 2 bits", broadcast=fl.methods.quantization.normal_float(width=2, block=64)
)
MEASURED += [(TWO_BITS.slug, None)]


def gradient_agreement(task: fl.tasks.Task, lora: fl.Lora, given: Any) -> float:
    """The cosine of the gradients at the clients' start and at the server's adapter, which differ
    where the broadcast is quantised: of the mean loss over all clients' examples, without noise."""
    adapted = peft.adapt(task.model, task.targets, task.head, lora)
    x, y = concatenate(task.clients)

    def gradient(state: Any) -> torch.Tensor:
        moving = []
        for key in adapted.places:
            leaf = state.tensors[key].detach().clone().requires_grad_(key.side in "AB")
            moving += [leaf] if key.side in "AB" else []
            adapted.set_tensor(key, leaf)
        with torch.enable_grad():
            loss = task.loss(task.forward(adapted.model, x), y).mean()
            return torch.cat([part.flatten() for part in torch.autograd.grad(loss, moving)])

    pair = gradient(given.state), gradient(given.sent)
    return float(torch.nn.functional.cosine_similarity(*pair, dim=0))


def measure(method: str, epsilon: float | None, seed: int, lr: float) -> dict[str, Any]:
    """One run on digits: its learning curve, how alike its clients' updates are, what the broadcast
    does to gradients, and the curvature at its end."""
    task = fl.tasks.digits(clients=10, alpha=0.5, seed=0)
    plan, lora = fl.Plan(rounds=20, local_steps=5, batch=16, lr=lr), fl.Lora(rank=4, alpha=8.0)
    private: Any = {"epsilon": epsilon, "task": task, "plan": plan}
    clip = fl.Privacy(clip_norm=1.0, delta=1e-4)
    own = TWO_BITS if method == TWO_BITS.slug else fl.methods.get(method)
    plain = isinstance(own.aggregate, fl.methods.aggregation.MeanUpdate)
    row, given = fl.measures.record_aggregation(own) if plain else (own, [])
    privacy = None if epsilon is None else clip.calibrate(**private)
    records = list(fl.run(task, row, privacy, plan, lora=lora, seed=seed))
    scores = [record.metrics["accuracy"] for record in records]
    values = {"before_accuracy": scores[0], "accuracy": scores[-1], "curve": fmean(scores[1:])}
    values["accuracy_received"] = records[-1].metrics.get("accuracy_received", float("nan"))
    if given:
        values["alignment"] = fmean(fl.measures.alignment(x) for x in given)
        values["gradient"] = fmean(gradient_agreement(task, lora, x) for x in given)
    values["sharpness"] = fl.measures.flatness(task, records[-1]).top
    head = {"study": "updates", "method": method, "epsilon": epsilon, "lr": lr, "at_edge": False}
    return {**head, "seed": seed, **values}


def measure_updates(seeds: range = range(10)) -> None:
    """Adds the runs that results/updates.csv lacks, one by one, at the rates of study digits."""
    torch.set_num_threads(1)
    digits = read_study("digits", RESULTS).query("alpha == 0.5")
    done = pd.read_csv(UPDATES) if UPDATES.is_file() else pd.DataFrame()
    for seed, (method, epsilon) in product(seeds, MEASURED):
        place = {"method": method, "epsilon": epsilon}
        if len(done) and len(select_rows(done, seed=seed, **place)):
            continue
        known = {**place, "method": "fedlpp" if method == TWO_BITS.slug else method}
        lr = float(select_rows(digits, **known)["lr"].iloc[0])
        new = pd.DataFrame([measure(method, epsilon, seed, lr)])
        done = pd.concat([done, new], ignore_index=True)
        write_atomically(UPDATES, done.to_csv(index=False), shared=True)


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
A run *of another start* was made with an older model of its task and is not compared with the
others.

**Tuning** looked at validation data of the same private split, with other seeds than those
reported. That is not private: on your own data every look is a release that counts against the
budget.
"""
SAID_ABOVE = r" of the room|claimed \S+ %, (?=asked)|; 0 of \d+ runs collapsed"
STREAMS = """The older studies under results/ used other random streams, so a repeated run agrees
with these in distribution, not bit by bit. Older studies of digits also start from an older model
of the task, so differences are taken within a study only. {secagg}"""
NO_SUMS = "No study uses secure aggregation, whose ε has changed as well."
SUMS = (
    "The ε of rows with secure aggregation ({}) was amplified by participation, which no longer "
    "counts."
)
FIGURES = {
    "claims": "accuracy, as a share of the room",
    "claims-further": "other measures, as shares of the other method's or as they are",
}
ALT = (
    "One row a claim: its sentence and the place that decides, the measured share with its "
    "interval, and the verdict as colour."
)


def waiting(table: Any, frames: Any) -> str:
    """Which places wait for their runs, and which rows are to be measured again."""
    lines = ["## Waits for measurement\n"]
    missing = (
        table[table["verdict"] == WAITS]["place"].str.split(",").str[0].value_counts(sort=False)
    )
    for name, count in sorted(missing.items()):
        old = (
            f"; where it has the runs, `{STAND_INS[name][0]}` is read" if name in STAND_INS else ""
        )
        lines.append(f"- `{name}`, for {count} of the judgements{old}.")
    read = table[table["at"] == "stand-in"]["place"].str.split(",").str[0]
    for name, (older, _) in STAND_INS.items():
        if count := int((read == older).sum()):
            lines.append(f"- `{name}`: `{older}` decides {count} of the claims in its stead.")
    for one in STALE:
        reads = ", ".join(f"*{claim.text}*" for claim in claims_using(one, CLAIMS, frames))
        told = f"Claims that read them: {reads}." if reads else "No claim of this page reads them."
        lines.append(f"- `{one.study}`, rows of `{one.method}`: {one.why}. {told}")
    summed = [
        s.name for s in STUDIES.values() if any(c.privacy.get("trust") == "secagg" for c in s.cases)
    ]
    sums = SUMS.format(", ".join(summed)) if summed else NO_SUMS
    return "\n".join(lines) + "\n\n" + STREAMS.format(secagg=sums)


def cost(frames: Any) -> str:
    """How many runs the studies took, each counted once, and how long."""
    done: dict[str, Any] = {}
    for name in frames:
        done |= load_results(RESULTS / "runs" / f"{name}.jsonl")
    hours = sum(entry["values"].get("seconds") or 0.0 for entry in done.values()) / 3600
    took = f"{len(done):,} runs, tuning included, and {hours:.0f} hours of one core"
    return f"The studies took {took}.\n"


def places(table: Any) -> str:
    """What each study is that a claim is judged by."""
    names = table["place"].str.split(",").str[0].str.removesuffix(" screens")
    lines = [
        "## Places\n",
        "β is the concentration of the Dirichlet split: with a small β clients are unlike.\n",
    ]
    for name in sorted({*names} & {*STUDIES}):
        one = STUDIES[name]
        lines.append(f"- `{name}`: {one.note}; {len(one.seeds)} seeds.")
    lines.append("- `updates`: what no study records, on digits; 10 seeds, rates of `digits`.")
    lines.append("- *screens*: the scores of a study's first tuning seed at each learning rate.")
    return "\n".join(lines) + "\n"


def named(place: str) -> str:
    """A place with the name of its study as code."""
    study_name, comma, labels = place.partition(",")
    return f"`{study_name}`{comma}{labels}"


def elsewhere(rows: Any) -> str:
    """The other places of a claim by their verdicts, each with its share and interval."""
    places: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        mean, low, high = (round(row[x], 2) + 0.0 for x in ("mean", "low", "high"))
        number = ""
        if mean == mean:
            ends = "" if low == high else f" [{low:.0%}, {high:.0%}]"
            number = f": {mean:.0%}{ends}".replace("-", "−").replace("%", " %")
        places.setdefault(row["verdict"], []).append(named(row["place"]) + number)
    return "; ".join(f"*{verdict}*: {'; '.join(there)}" for verdict, there in places.items()) or "–"


def page(table: pd.DataFrame, frames: Any) -> str:
    """The claims in parts, one for each verdict, and what waits for measurement."""
    main: Any = table[table["at"] != "away"]
    counts = main["verdict"].value_counts()
    parts: list[str] = [OPENING.format(collapsed=RULE)]
    said = ", ".join(f"{counts.get(word, 0)} *{word}*" for word in VERDICTS)
    parts.append(f"The verdicts of {len(main)} claims: {said}.\n")
    parts.append(cost(frames))
    parts.append("## At a glance\n")
    for name, words in FIGURES.items():
        parts.append(f"![{ALT}](figures/{name}.png)\n\n*{words[0].upper()}{words[1:]}.*\n")
    parts.append(places(table) + "\n")
    parts.append(waiting(table, frames) + "\n")
    for word in VERDICTS:
        parts.append(f"## {word[0].upper()}{word[1:]}\n")
        rows = main[main["verdict"] == word].to_dict("records")
        lines = [("claim", "claimed in", "measured here", "why", "elsewhere")]
        for row in rows:
            number = row["source"].removeprefix("arXiv:")
            link = f"[{number}](https://arxiv.org/abs/{number})"
            home = "" if row["at"] == "home" else f"{row['at']}, "
            at = f"{home}{named(row['place'])} – " if row["place"] else ""
            rest = table[(table["slug"] == row["slug"]) & (table["at"] == "away")]
            claimed = f"{link}, {row['tag']}: {row['setting']}"
            told = re.sub(SAID_ABOVE, "", at + row["measured"])
            lines.append((row["claim"], claimed, told, row["reason"], elsewhere(rest)))
        parts.append(markdown_table(lines) + "\n" if rows else "None.\n")
    # "4 % [1 %, 7 %]" says its unit three times.
    ends = r"(\S+) % \[(\S+) %, (\S+) %\]"
    return re.sub(ends, r"\1 [\2, \3] %", "\n".join(parts))


def figure(table: Any) -> style.Picture:
    """Draws a row for each measured claim at the place that decides, a colour for each verdict."""
    there = table[table["mean"].notna() & (table["at"] != "away")]
    return intervals(
        there.assign(
            row=[textwrap.shorten(words, 96, placeholder=" …") for words in there["claim"]]
        ),
        by="row",
        hue="verdict",
        reference=0.0,
        title=f"{len(there)} claims, by their verdict",
        xlabel="← against the claim      share      with the claim →",
    )


def write(measure_first: bool) -> None:
    """Writes the table, the page and its figures.

    Args: measure_first: also make results/updates.csv.
    """
    if measure_first:
        measure_updates()
    frames = claim_frames(RESULTS)
    table: Any = judge_claims(CLAIMS, frames)
    write_atomically(RESULTS / "claims.csv", table.to_csv(index=False), shared=True)
    write_atomically(PAGE, require_visible(page(table, frames)), shared=True)
    of_room = table["unit"] == "of the room"
    for name, part in zip(FIGURES, (table[of_room], table[~of_room]), strict=True):
        write_atomically(FIGURE / f"{name}.png", style.png(figure(part)), shared=True)
    print(table[table["at"] != "away"]["verdict"].value_counts().to_string())
