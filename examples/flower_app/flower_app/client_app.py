"""A site's side: it reads its own notes, clips and noises, and keeps its own ledger."""

from flwr.app import Context

import fedlora_lab as fl
from flower_app.notes import read
from flower_app.terms import participant, task_of


def load(context: Context) -> tuple[fl.flower.Participant, int, fl.tasks.Task]:
    """The agreed terms, this site's number, and the task of its notes.

    Number and file stand in the node's configuration, which is the site's own.
    """
    node = context.node_config
    return participant(), int(node["site"]), task_of(read(str(node["data"])))


def memory(context: Context) -> str:
    """Where the site keeps its last answer and its ledger: it must outlive the run."""
    return str(context.node_config["memory"])


app = fl.flower.client_app(load, memory=memory)
