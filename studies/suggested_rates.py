"""Put the learning rates that studies tuned into studies/tuned_rates.json.

    python -m studies.suggested_rates

Rates of digits come from the studies digits-example and digits-client, those of clients alone and
of pooled data from baselines, and those of texts from sentiment-example. Nothing is trained.
"""

import math
from typing import Any

import pandas as pd

from fedlora_lab._utils.files import to_json, write_atomically
from studies import RESULTS, ROOT, runner
from studies.declared import CLIP, CROWD, RANK4, WORK

FILE = ROOT / "studies" / "tuned_rates.json"
NO_BUDGET = "none"
"""The name of training without privacy among the budgets."""
Rates = dict[str, dict[str, float]]  # slug -> budget -> rate


def by_budget(table: pd.DataFrame) -> Rates:
    """Lists the rates of a table of methods and budgets."""
    rates: Rates = {}
    for slug, epsilon, lr in table[["method", "epsilon", "lr"]].drop_duplicates().to_numpy():
        budget = NO_BUDGET if math.isnan(epsilon) else f"{epsilon:g}"
        rates.setdefault(slug, {})[budget] = lr
    return rates


def at_own_clip(name: str, clip_norm: float) -> Rates:
    """Lists a rate for each method and budget, for A and B alike, at the clip norm of the study.

    That is the chosen one where the search kept the clip and one rate for both, else the best that
    its first tuning seed tried so.

    Args: name, clip_norm: of the study.
    """
    tried = runner.select_rows(runner.first_tries(name, RESULTS), clip=1, ratio=1)
    tried = tried.sort_values("accuracy", ascending=False, kind="stable")
    rates = by_budget(tried.drop_duplicates(["method", "epsilon"]))
    chosen = runner.read_study(name).fillna({"clip_norm": clip_norm})
    own = chosen.query("clip_norm == @clip_norm and ratio == 1")
    for slug, by_epsilon in by_budget(own).items():
        rates[slug] |= by_epsilon
    return rates


def collected() -> dict[str, Any]:
    """Task -> unit -> slug -> budget -> rate; and "setting" of a search."""
    alone, texts = map(by_budget, map(runner.read_study, ("baselines", "sentiment-example")))
    return {
        "digits": {
            "example": {**at_own_clip("digits-example", CLIP["clip_norm"]), **alone},
            "client": at_own_clip("digits-client", CROWD["privacy"]["clip_norm"]),
            "setting": {"plan": WORK, "privacy": CLIP, "lora": RANK4},
        },
        "sentiment": {"example": texts},
    }


def main() -> None:
    write_atomically(FILE, to_json(collected()), shared=True)


if __name__ == "__main__":
    main()
