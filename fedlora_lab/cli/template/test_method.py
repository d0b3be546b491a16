"""pytest test_MODULE.py"""

import fedlora_lab as fl
from MODULE import ROW


def test_no_layer_grows_beyond_the_cap_and_the_promise_holds():
    task = fl.tasks.digits(clients=3)
    plan = fl.Plan(rounds=2, local_steps=2, batch=8, lr=2.0)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=8, task=task, plan=plan)
    *_, last = fl.run(task, ROW, privacy, plan, seed=0)
    norms = [float(B.norm()) for _, B in last.adapter.values()]
    assert max(norms) <= ROW.aggregate.most + 1e-6
    assert 0 < last.epsilon <= 8
