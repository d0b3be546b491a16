"""Runs the same methods on Flower, with clients in processes or on machines of their own.

A client trains on its own examples, clips and noises, and sends what the method shares; what it
keeps stays in its own state. The server draws the participants, writes the ledger, combines the
uploads by the method's rule and evaluates the result. Both call the functions of `fl.run`, so a
seed gives the same run on either. `examples/flower_app` runs as processes of one machine, and on
many.

Flower's telemetry is off unless its own variable is set.

>>> import fedlora_lab as fl
>>> agreed = fl.flower.placeholder_task(fl.tasks.regression(clients=2), sizes=(30, 50))
>>> plan = fl.Plan(rounds=1, batch=4, lr=0.1)
>>> privacy = fl.Privacy(delta=1e-3).calibrate(epsilon=8, task=agreed, plan=plan)
>>> terms = fl.flower.Participant.of(agreed, "rolora", privacy, plan)
>>> def load(context):
...     return terms, 0, fl.tasks.regression(clients=1)
>>> app = fl.flower.client_app(load, memory=lambda context: "/srv/memory")
"""

import warnings

from fedlora_lab._utils.environment import install_command, telemetry_off

try:
    with telemetry_off(), warnings.catch_warnings():
        # Of a package that Flower depends on, about another; Flower's own warnings are shown.
        warnings.filterwarnings("ignore", "'click", DeprecationWarning, "typer")
        import flwr.clientapp
        import flwr.serverapp  # noqa: F401
except ImportError as error:
    advice = f"flwr is not installed: run `{install_command('flower')}`"
    raise ImportError(advice) from error

from fedlora_lab.flower.client import client_app
from fedlora_lab.flower.memory import client_ledger
from fedlora_lab.flower.participant import Participant, placeholder_task
from fedlora_lab.flower.server import run

__all__ = ["Participant", "client_app", "client_ledger", "placeholder_task", "run"]
