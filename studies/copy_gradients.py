"""Whose gradient a rounded copy has: the cosine with the gradient at the precise factors.

    python -m studies.copy_gradients    writes results/copy-gradients.csv, in a minute of one core

FedLoRA trains on digits without privacy. After the first, fourth and last round its factors are
rounded as FedLPP rounds them, to two and to four bits, and the gradient of the clients' mean loss
is taken at the factors and at the copy.
"""

import numpy as np
import pandas as pd
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab.course.lesson_08.figures import gradient_at
from fedlora_lab.methods.quantization import normal_float
from studies import RESULTS

FILE = RESULTS / "copy-gradients.csv"
SEEDS = range(20)
ROUNDS = (1, 4, 10)
WIDTHS = (2, 4)


def of_seed(seed: int) -> pd.DataFrame:
    """Measures one run.

    Returns: seed, round, width: bits of the copy; cosine: of the two gradients; gradient: length of
        that at the factors; error: length of what rounding changes in it.
    """
    task = fl.tasks.digits(clients=5, dirichlet=0.5, seed=0)
    plan = fl.Plan(rounds=max(ROUNDS), local_steps=4, batch=16, lr=0.05)
    records = list(fl.run(task, "fedlora", None, plan, seed=seed, evaluate_every=plan.rounds))
    rows = []
    for index in ROUNDS:
        true = gradient_at(records[index], lambda x: x)
        size = float(np.linalg.norm(true))
        for width in WIDTHS:
            rounded = gradient_at(records[index], normal_float(width, 64))
            cosine = float(true @ rounded) / size / float(np.linalg.norm(rounded))
            error = float(np.linalg.norm(rounded - true))
            rows.append((seed, index, width, cosine, size, error))
    columns = ["seed", "round", "width", "cosine", "gradient", "error"]
    return pd.DataFrame(rows, columns=columns)


def main() -> None:
    table = pd.concat(of_seed(seed) for seed in tqdm(SEEDS, disable=None))
    table.to_csv(FILE, index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
