"""Measure the bytes of one client in a round and the server's deviation, for every row.

    python scripts/measure_methods.py [--rows fedex-lora flora]

Writes fedlora_lab/methods/measured.json, which `fl.methods.table()` shows. No noise is added:
the deviation is that of the server's rule alone. The first round is left out of the
bytes, since a client then knows the start already. The learning rate is one at which every row
learns: where a run diverges, rounding decides the deviation.
"""

import argparse
import json
import math
from statistics import fmean
from typing import Any

import numpy as np
from tqdm import tqdm

import fedlora_lab as fl
from fedlora_lab._utils.files import write_atomically
from fedlora_lab._utils.validation import check
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.published import MEASURED_FILE
from fedlora_lab.report.run_folder import to_json

PLAN = {"rounds": 5, "local_steps": 5, "batch": 16, "lr": 0.025}
LORA = {"rank": 4, "alpha": 8.0}


def measured(row: Method, lr: float = PLAN["lr"]) -> dict[str, float | None]:
    """Bytes up and down of one client in one round, and the largest relative deviation, or None."""
    task, plan = fl.tasks.digits(seed=0), fl.Plan(**PLAN).replace(lr=lr)
    records = list(fl.run(task, row, None, plan, lora=fl.Lora(**LORA), seed=0))
    gain = records[-1].metrics["accuracy"] - records[0].metrics["accuracy"]
    learned = not fl.measures.find_collapsed(np.array([gain]))[0]
    check(learned, "lr", lr, f"a rate at which {row.slug} ends above its start")
    records = records[2:]
    worst = max(record.deviation for record in records)
    return {
        "up": fmean(record.uploads.bytes_up / record.participants for record in records),
        "down": fmean(record.uploads.bytes_down / record.participants for record in records),
        "deviation": None if math.isnan(worst) else worst,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=[], help="slugs; the others are kept")
    asked = parser.parse_args().rows
    known = fl.methods.ALL
    rows: Any = tqdm([row for slug, row in known.items() if not asked or slug in asked])
    setting = {"task": "digits", "clients": 10, "plan": PLAN, "lora": LORA, "seed": 0}
    found = json.loads(MEASURED_FILE.read_text(encoding="utf-8"))["methods"] if asked else {}
    for row in rows:
        found[row.slug] = measured(row)
    found = {slug: found[slug] for slug in known if slug in found}
    content = {"setting": setting | {"privacy": None}, "methods": found}
    write_atomically(MEASURED_FILE, to_json(content), shared=True)


if __name__ == "__main__":
    main()
