"""The same methods on Flower: clients in processes or on machines of their own, messages between them and a server.

A client trains on its own examples, clips and noises, and sends what the method shares; what it keeps stays in its own
state. The server draws who takes part, writes the ledger, combines the uploads by the method's rule and judges the
result. Both run the functions of the loop, so a seed gives the same run on either.

Telemetry of Flower and usage reports of Ray are off unless their own variables say otherwise.
"""

import warnings

from fedlora_lab.flower.quiet import reporting_nothing

try:
    with reporting_nothing(), warnings.catch_warnings():
        # What the packages that Flower stands on say to each other is no news to the user.
        warnings.simplefilter("ignore")
        import flwr.clientapp
        import flwr.serverapp  # noqa: F401
except ImportError as error:
    raise ImportError("flwr is not installed: pip install 'fedlora-lab[flower]'") from error

from fedlora_lab.flower.client import client_app
from fedlora_lab.flower.inprocess import InProcess
from fedlora_lab.flower.party import Party, public, stand_ins
from fedlora_lab.flower.server import rounds, server_app
from fedlora_lab.flower.simulation import simulate

__all__ = ["InProcess", "Party", "client_app", "public", "rounds", "server_app", "simulate", "stand_ins"]
