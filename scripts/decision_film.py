"""Write the film of notebook 04: what a privately trained model says of some scans, round by round.

python scripts/decision_film.py          writes fedlora_lab/course/lesson_04/decisions.json
"""

import json
from typing import Any

import fedlora_lab as fl
from fedlora_lab.course.lesson_04.figures import FILM, decisions, film

SCANS = (241, 113, 210)  # noise undoes the decision, carries it, does not matter


def setting() -> tuple[Any, Any, Any]:
    """Task, privacy and plan of the notebook's runs."""
    task = fl.tasks.digits(clients=10, alpha=0.5, seed=0)
    plan = fl.Plan(rounds=20, local_steps=5, batch=16, lr=0.4)
    privacy = fl.Privacy(unit="example", delta=1e-4)
    return task, privacy.calibrate(epsilon=8, task=task, plan=plan), plan


def main() -> None:
    """The command line."""
    task, privacy, plan = setting()
    made = film(decisions(task, privacy, plan, seed=0), task, SCANS)
    FILM.write_text(json.dumps(made, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{FILM}: {FILM.stat().st_size} bytes")


if __name__ == "__main__":
    main()
