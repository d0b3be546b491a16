"""Measure the bytes of one client in a round and the server's deviation, for every row.

    python scripts/measure_methods.py

Writes fedlora_lab/methods/measured.json, which `fl.methods.table()` shows. No noise is added: the
deviation is that of the server's rule alone. The first round is left out of the bytes, since a
client then knows the start already. The learning rate is one at which every row learns: where a run
diverges, rounding decides the deviation.
"""

import math
from statistics import fmean

import fedlora_lab as fl
from fedlora_lab._utils.files import to_json, write_atomically
from fedlora_lab._utils.validation import check
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.published import MEASURED_FILE

PLAN = {"rounds": 5, "local_steps": 5, "batch": 16, "lr": 0.025}
LORA = {"rank": 4, "alpha": 8.0}


def measured(row: Method) -> dict[str, float | None]:
    """Bytes up and down of one client in one round, and the largest relative deviation, or None."""
    task = fl.tasks.digits(seed=0)
    records = list(fl.run(task, row, None, fl.Plan(**PLAN), lora=fl.Lora(**LORA), seed=0))
    gain = records[-1].metrics["accuracy"] - records[0].metrics["accuracy"]
    check(gain >= 0, "lr", PLAN["lr"], f"a rate at which {row.slug} does not end below its start")
    # The record before training, and the first round.
    later = records[2:]
    worst = max(record.deviation for record in later)
    return {
        "up": fmean(record.traffic.bytes_up / record.participants for record in later),
        "down": fmean(record.traffic.bytes_down / record.participants for record in later),
        "deviation": None if math.isnan(worst) else worst,
    }


def main() -> None:
    table = {slug: measured(row) for slug, row in fl.methods.ALL.items()}
    setting = {"task": "digits", "clients": 10, "plan": PLAN, "lora": LORA, "seed": 0}
    content = {"setting": setting | {"privacy": None}, "methods": table}
    write_atomically(MEASURED_FILE, to_json(content), shared=True)


if __name__ == "__main__":
    main()
