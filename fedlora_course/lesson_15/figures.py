"""Notebook 15: a small language model, and sentences that stand for a table of the reader's own."""

from pathlib import Path

import pandas as pd

from fedlora_lab.tasks.sentences import FOLDER, TEST


def materials() -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """Returns a model and two tables to start from: those of `fl.tasks.sentences`.

    Returns: the folder of the model; the private rows, and 800 public ones, with the columns text,
        label and site. They are dealt from a fixed seed.
    """
    rows = pd.read_csv(FOLDER / "sentences.csv", dtype=str, keep_default_na=False).rename(
        columns={"domain": "site"}
    )
    rows = rows.sample(frac=1, random_state=0).reset_index(drop=True)
    return FOLDER, rows[TEST:], rows[:TEST]
