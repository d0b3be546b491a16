"""The federation of by_hand.py by this package.

time python examples/by_hand/here.py
"""

import fedlora_lab as fl

task = fl.tasks.digits(clients=10)
plan = fl.Plan(rounds=20, local_steps=5, batch=16, lr=0.32)
privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
lora = fl.Lora(rank=4, alpha=8)
*_, last = fl.run(task, "fedlora", privacy, plan, lora=lora, evaluate_every=20)
fl.save_adapter(last, "runs/here")
spent = fl.privacy.round_up(last.epsilon, ".2f")
print(f"here: accuracy {last.metrics['accuracy']:.3f}, epsilon {spent}")
