"""Compares TITLE with published methods, each at its own rate: python compare_MODULE.py"""

import fedlora_lab as fl
from MODULE import ROW


def main():
    task = fl.tasks.digits(clients=10, dirichlet=0.5, seed=0)
    plan = fl.Plan(rounds=5, local_steps=4, batch=16)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    rows = ["fedlora", "ffa-lora", ROW]
    # Finished runs are kept: a call that was stopped goes on. For a paper take 20 rounds, five
    # rates and ten seeds.
    frame = fl.compare(
        task, rows, privacy, plan, range(4), lr=[0.4, 1.6], evaluate_every=5, out="runs"
    )
    # Half of the seeds choose each method's rate, the others report.
    chosen = fl.best(frame, by="lr")
    print(chosen.attrs["chosen"])
    last = chosen[(chosen["round"] == plan.rounds) & (chosen["measure"] == "accuracy")]
    print(last.groupby("method")["value"].agg(["mean", "std", "count"]).round(3))


if __name__ == "__main__":
    main()
