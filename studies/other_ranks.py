"""Fed-SB and RAVAN at larger ranks, on digits under the protocol of the open table.

    python -m studies.other_ranks        writes results/table/other-ranks.csv, a row a run

In the open table every row has rank 4, at which FedLoRA trains 512 numbers a layer, Fed-SB 16 and
RAVAN 10. Here the two have as many numbers as the rank can give them: nearly as many as FedLoRA.
The rates, the seeds and the choice of the rate by validation are those of the table.
"""

import sys
from dataclasses import replace

import pandas as pd
from tqdm import tqdm

from fedlora_lab import methods
from fedlora_lab._utils.files import write_atomically
from fedlora_lab.federated.compare import BAR, run_cells
from fedlora_lab.methods.plan import Lora
from studies import RESULTS, protocol

FRAME = RESULTS / "table" / "other-ranks.csv"
STORE = RESULTS / "runs" / "table" / "other-ranks"
SETTING = "digits, example, epsilon 8"
SCALING = protocol.LORA.alpha / protocol.LORA.rank
"""α/r, as in the table."""
RANKS = {"fed-sb": 22, "ravan": 32}


def run(jobs: int = 1) -> pd.DataFrame:
    """Trains both at every rate and seed: columns method, rank, lr, seed, validation, accuracy."""
    cells = []
    for slug, rank in RANKS.items():
        lora = Lora(rank=rank, alpha=SCALING * rank)
        row = methods.get(slug)
        for cell in protocol.cells_of(row, SETTING, protocol.SETTINGS[SETTING]):
            cells.append(replace(cell, lora=lora, setting={"rank": rank}))
    rounds = cells[0].plan.rounds
    with tqdm(disable=None, **BAR) as bar:
        bar.total = rounds * len(cells)
        frame = run_cells(cells, {"evaluate_every": rounds}, STORE, jobs, bar)
    last = frame[(frame["layer"] == "all") & (frame["round"] == rounds)]
    keys = ["method", "rank", "lr", "seed"]
    scores = last.pivot(index=keys, columns="measure", values="value")
    return scores[["validation", "accuracy", "epsilon"]].reset_index()


def at_chosen_rate(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs at the rate that validation chose, of each method.

    Args: frame: see `run`.
    """
    scores = frame.groupby(["method", "lr"])["validation"].mean()
    chosen = scores.groupby("method").idxmax()
    return frame[[(row.method, row.lr) in set(chosen) for row in frame.itertuples()]]


def main() -> None:
    text = run().to_csv(index=False, float_format="%.4g")
    write_atomically(FRAME, text, shared=True)


if __name__ == "__main__":
    sys.exit(main())
