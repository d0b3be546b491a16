"""The share of the clip that the mean update uses, and whether it explains FedLoRA's lead.

    python -m studies.clip_usage    # some minutes

N releases in one direction move a factor by at most N times the step that the clip allows. Put to
one, this path leaves rho_1, an amplification number that needs no rate and no clip norm. An update
that uses a share kappa of the clip needs a path 1 / kappa times as long for the same change, and a
client's own copy is noisier than the average by `own_copies`. *Hypothesis*, read off 64 cells of an
earlier study that was taken out: FedLoRA's lead over FFA-LoRA, each tuned, falls with

    x = rho_1 own_copies / kappa^2,

one curve for both units of privacy. *Predicted* for the cells below, all digits, before any kappa
was measured there:

1. kappa, without noise, is 0.2 to 0.4 with clients protected and 0.02 to 0.08 with examples
   protected.
2. Over all cells a straight line in log x explains more of the lead than one in log rho_1, with an
   R^2 that is larger by at least 0.2.
3. A line fitted in one unit predicts the cells of the other with a smaller mean square error in
   log x than in log rho_1, both ways.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import fedlora_lab as fl
from studies import runner
from studies.declared import STUDIES, Job, Setting

RESULTS = Path(__file__).resolve().parent.parent / "results"
FRAME = RESULTS / "clip-usage.csv"
TUNED = ("digits-example", "digits-client", "digits", "digits-clients", "digits-steps")
SEED = 2001


def clip_usage(arguments: Any) -> float:
    """Trains without noise; returns the mean update of a release over the clip norm, averaged over
    the rounds.

    Args: arguments: of `fl.run`: task, method, privacy, plan and adapter.
    """
    task, method, privacy, plan, lora = arguments
    silent = fl.Privacy(unit=privacy.unit, clip_norm=privacy.clip_norm, noise_multiplier=0.0)
    options: Any = {"lora": lora, "seed": SEED, "evaluate_every": plan.rounds}
    with runner.one_thread():
        rounds = [record.adapter for record in fl.run(task, method, silent, plan, **options)]
    moved = []
    for before, after in pairwise(rounds):
        energy = 0.0
        for layer in after:
            for side, old, new in zip("AB", before[layer], after[layer], strict=True):
                step = plan.rate(side) * plan.local_steps if silent.by_step else 1.0
                energy += float(((new - old) / step).square().sum())
        moved.append(energy**0.5)
    return float(np.mean(moved)) / privacy.clip_norm


def cells() -> Iterator[dict[str, Any]]:
    """Yields the settings in which both methods were tuned: what is public, kappa, and the lead."""
    for name in TUNED:
        frame = runner.read_study(name, RESULTS)
        for case in STUDIES[name].cases:
            if case.method.slug != "fedlora" or case.epsilon is None:
                continue
            here = runner.select_rows(frame, **case.labels)
            both = here.pivot(index="seed", columns="method", values="accuracy")
            own = runner.select_rows(here, method="fedlora").iloc[0]
            clip = own.get("clip_norm", case.privacy["clip_norm"]) / case.privacy["clip_norm"]
            setting = Setting(float(own["lr"]), float(clip), float(own.get("ratio", 1.0)))
            arguments: Any = runner.job_arguments(Job(case, setting, SEED, tune=False))
            _, _, privacy, plan, _ = arguments
            number = fl.amplification(*arguments)
            path = plan.rounds * privacy.clip_norm
            if privacy.by_step:
                path *= plan.local_steps * plan.rate("A")
            yield {
                "study": name,
                **case.labels,
                "unit": privacy.unit,
                "rho_1": number.mean / path**2,
                "own_copies": number.own_copies,
                "kappa": clip_usage(arguments),
                "lead": 100 * float((both["fedlora"] - both["ffa-lora"]).mean()),
            }


def main() -> None:
    table = pd.DataFrame(cells())
    table["x"] = table["rho_1"] * table["own_copies"] / table["kappa"] ** 2
    table.to_csv(FRAME, index=False, float_format="%.4g")
    print(table)


if __name__ == "__main__":
    main()
