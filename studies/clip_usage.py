"""The share of the clip that the mean update uses, and whether it explains FedLoRA's lead.

    python -m studies.clip_usage    # ten minutes; writes results/clip-usage.csv

N releases in one direction move a factor by at most N times the step that the clip allows. Put to
one, this path leaves rho_1, an amplification number that needs no rate and no clip norm. An update
that uses a share kappa of the clip needs a path 1 / kappa times as long for the same change, and a
client's own copy is noisier than the average by `own_copies`. *Hypothesis*, read off 64 cells of an
earlier study that was taken out: FedLoRA's lead over FFA-LoRA, each tuned, falls with

    x = rho_1 own_copies / kappa^2,

one curve for both units of privacy. *Predicted* for the cells of `PREDICTED`, all digits, before
any kappa was measured there:

1. kappa, without noise, is 0.2 to 0.4 with clients protected and 0.02 to 0.08 with examples
   protected.
2. Over all cells a straight line in log x explains more of the lead than one in log rho_1, with an
   R^2 that is larger by at least 0.2.
3. A line fitted in one unit predicts the cells of the other with a smaller mean square error in
   log x than in log rho_1, both ways.

*Found*: 1 in 16 of 18 cells, 2 not, 3 one way only. *Seen afterwards*: one cell decides, in which
FedLoRA has a clip norm that nobody tuned. A line in log x through the cells of `CLIP_TUNED` also
comes near the four of the study `rates`, which had no part in the prediction.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import fedlora_lab as fl
from studies import runner
from studies.declared import STUDIES, Job, Setting

RESULTS = Path(__file__).resolve().parent.parent / "results"
FRAME = RESULTS / "clip-usage.csv"
CLIP_TUNED = ("digits-example", "digits-client")
PREDICTED = (*CLIP_TUNED, "digits", "digits-clients", "digits-steps")
SEED = 2001


def clip_usage(arguments: Any) -> float:
    """Trains without noise; returns the mean update of a release over the clip norm, averaged over
    the rounds.

    Args: arguments: of `fl.run`: task, method, privacy, plan and adapter.
    """
    task, method, privacy, plan, lora = arguments
    silent = replace(privacy, noise_multiplier=0.0, target=None)
    releases = plan.local_steps if privacy.by_step else 1
    # What a round changes, in units of one release: of a step without its rate, or of an update.
    steps = {side: releases * plan.rate(side) if privacy.by_step else 1.0 for side in "AB"}
    states = []
    for record in fl.run(task, method, silent, plan, lora=lora, seed=SEED, evaluate_every=99):
        factors = [pair[k] / steps["AB"[k]] for pair in record.adapter.values() for k in (0, 1)]
        states.append(torch.cat([factor.flatten() for factor in factors]))
    return float(torch.stack(states).diff(dim=0).norm(dim=1).mean()) / privacy.clip_norm


def cells() -> Iterator[dict[str, Any]]:
    """Yields for each setting what is public, kappa at FedLoRA's own rate and clip, and the lead
    with each method at its own."""
    for name in (*PREDICTED, "rates"):
        frame = runner.read_study(name, RESULTS)
        for case in STUDIES[name].cases:
            if case.method.slug != "fedlora" or case.epsilon is None:
                continue
            here = runner.select_rows(frame, **case.labels)
            means = here.groupby(["method", "lr"])["accuracy"].mean()
            lr = means["fedlora"].idxmax()
            best = runner.select_rows(here, method="fedlora", lr=lr).iloc[0]
            # The oldest studies tuned the rate alone.
            clip = best.get("clip_norm", case.privacy["clip_norm"]) / case.privacy["clip_norm"]
            setting = Setting(lr, clip, best.get("ratio", 1.0))
            arguments: Any = runner.job_arguments(Job(case, setting, SEED, tune=False))
            _, _, privacy, plan, _ = arguments
            number = fl.amplification(*arguments)
            path = plan.rounds * privacy.clip_norm
            if privacy.by_step:
                path *= plan.local_steps * plan.rate("A")
            rho_1 = number.mean / path**2
            kappa = clip_usage(arguments)
            yield {
                "study": name,
                **case.labels,
                "unit": privacy.unit,
                "rho_1": rho_1,
                "own_copies": number.own_copies,
                "kappa": kappa,
                "x": rho_1 * number.own_copies / kappa**2,
                "lead": 100 * (means["fedlora"].max() - means["ffa-lora"].max()),
            }


def missed(fitted: pd.DataFrame, other: pd.DataFrame, number: str) -> float:
    """By how many points a line over the logarithm of a number misses the leads of other cells."""
    line = np.polyfit(np.log(fitted[number]), fitted["lead"], 1)
    gaps = np.polyval(line, np.log(other[number])) - other["lead"]
    return float(np.sqrt(np.mean(gaps**2)))


def main() -> None:
    table = pd.DataFrame(cells())
    table.to_csv(FRAME, index=False, float_format="%.4g")
    tested, tuned = (table[table["study"].isin(names)] for names in (PREDICTED, CLIP_TUNED))
    units = [part for _, part in tested.groupby("unit")]
    for number in ("rho_1", "x"):
        for cell in (tested, tuned):
            print(
                number, len(cell), "R2", np.corrcoef(np.log(cell[number]), cell["lead"])[0, 1] ** 2
            )
        rest = table[table["study"] == "rates"]
        print(missed(*units, number), missed(*units[::-1], number), missed(tuned, rest, number))


if __name__ == "__main__":
    main()
