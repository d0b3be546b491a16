"""A site's side: it reads its own examples, clips and noises, and keeps its own ledger."""

from typing import Any

from flwr.app import Context

import fedlora_lab as fl
from flower_app import data
from flower_app.terms import participant


def load(context: Context) -> tuple[fl.flower.Participant, int, Any]:
    """The agreed terms, this site's number, and its examples.

    Between machines both stand in the node's configuration, which is the site's own. In Flower's
    simulation a node has the number of its partition, and examples that anybody may see.
    """
    node = context.node_config
    if "data" in node:
        return participant(), int(node["site"]), data.read(str(node["data"]))
    site = int(node["partition-id"])
    return participant(), site, data.simulated(site)


def memory(context: Context) -> str | None:
    """Where the site keeps its last answer and its ledger: it must outlive the run.

    A simulated node keeps them in Flower's state of the run.
    """
    return str(context.node_config["memory"]) if "data" in context.node_config else None


app = fl.flower.client_app(load, memory=memory)
