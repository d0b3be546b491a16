"""Write the film of notebook 04: what a privately trained model says of some scans, round by round.

python scripts/decision_film.py          writes fedlora_lab/course/lesson_04/decisions.json
"""

import json
from typing import Any

import torch
from torch.func import functional_call

import fedlora_lab as fl
from fedlora_lab.course.lesson_04.dials import FILM
from fedlora_lab.course.lesson_04.figures import split_run
from fedlora_lab.course.widgets.dial import plain_values

SCANS = (241, 113, 210)  # noise undoes the decision, carries it, does not matter


def setting() -> tuple[Any, Any, Any]:
    """Task, privacy and plan of the notebook's runs."""
    task = fl.tasks.digits(clients=10, alpha=0.5, seed=0)
    plan = fl.Plan(rounds=20, local_steps=5, batch=16, lr=0.4)
    privacy = fl.Privacy(unit="example", delta=1e-4)
    return task, privacy.calibrate(epsilon=8, task=task, plan=plan), plan


def decisions(task: fl.tasks.Task, privacy: fl.Privacy, plan: fl.Plan, seed: int) -> Any:
    """Trains FedLoRA and asks the model about every test example after every round, twice.

    Args: task, privacy, plan: of the run, in the example unit under plain SGD; seed: of it.
    Returns: probabilities (rounds + 1, 2, examples, classes): of the model as it is, and of the
        model without the noise that has gathered in its factors, W₀ + γ B̂ Â.
    Guarantees: the model as it is decides as the run's own
        (test_the_decisions_are_those_of_the_run).
    """
    base, found = dict(task.model.named_parameters()), []
    for _, scaling, layers in split_run(task, privacy, plan, seed):
        both = []
        for noisy in (True, False):
            weights = {}
            for layer, (a, b, xi_a, xi_b) in layers.items():
                change = (b + noisy * xi_b) @ (a + noisy * xi_a)
                weight = base[f"{layer}.weight"]
                weights[f"{layer}.weight"] = weight + (scaling * change).to(weight.dtype)
            with torch.no_grad():
                outputs = functional_call(task.model, weights, task.test[0])
            both.append(outputs.softmax(1))
        found.append(torch.stack(both))
    return torch.stack(found).numpy()


def film(probabilities: Any, task: Any, scans: Any) -> dict[str, Any]:
    """Brings what `decisions` gives to the form that the dial draws.

    Args:
        probabilities: (rounds + 1, 2, examples, classes), with the gathered noise and without.
        task: whose test scans they are.
        scans: numbers of the ones to be shown.
    Returns: for each scan its pixels, its digit, and its probabilities; and over all test scans,
        round by round, the share whose decision the noise changes.
    """
    x, y = task.test
    said = probabilities.argmax(-1)
    return {
        "examples": len(y),
        "changed": plain_values((said[:, 0] != said[:, 1]).mean(1)),
        "right": plain_values((said == y.numpy()).mean(2).T),
        "scans": [
            {
                "number": int(scan),
                "truth": int(y[scan]),
                "pixels": [float(f"{shade:.2g}") for shade in x[scan].flatten().tolist()],
                "noisy": plain_values(probabilities[:, 0, scan]),
                "clean": plain_values(probabilities[:, 1, scan]),
            }
            for scan in scans
        ],
    }


def main() -> None:
    """The command line."""
    task, privacy, plan = setting()
    made = film(decisions(task, privacy, plan, seed=0), task, SCANS)
    FILM.write_text(json.dumps(made, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{FILM}: {FILM.stat().st_size} bytes")


if __name__ == "__main__":
    main()
