"""What each party holds of a model that is broadcast quantised."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedlora_lab import adapters, engine
from fedlora_lab.checks import check, check_whole
from fedlora_lab.measures.clients import Seen
from fedlora_lab.method import Method, Slot

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.record import Round


def _relative(held: Mapping[Slot, Tensor], wanted: Mapping[Slot, Tensor]) -> float:
    off = sum(float((held[slot] - x).double().square().sum()) for slot, x in wanted.items())
    return (off / sum(float(x.double().square().sum()) for x in wanted.values())) ** 0.5


def protection(record: "Round", method: Method, seen: Sequence[Seen], last: int = 5) -> "pd.DataFrame":
    """Accuracy and distance from the server's factors of what server and clients hold after the last round.

    Rows ``who``: "server"; "received", the broadcast of the final state; "averaged", the mean of that and the ``last``
    - 1 broadcasts before it, which any client can form; "trained", the client's own adapter after its local training in
    the last round that is best on the public test examples (``mean`` of all clients beside it).

    Args: record, seen: of one run of ``measures.watch(method)``. last: >= 1.
    Returns: columns who, accuracy, mean, distance (relative, over all factors).

    Guarantees: test_lesson_08.py::test_protection.
    """
    import pandas as pd

    check(record.source is not None, "record", "a copy without its task", "a record as run() yields it")
    check_whole("last", last, 1, len(seen) + 1)
    task, lora, state = record.source  # type: ignore[misc]
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    server = state.tensors
    final = {slot: x if slot.side == "head" else method.broadcast(x) for slot, x in server.items()}
    received = [final, *(one.sent.tensors for one in reversed(seen))][:last]
    averaged = {slot: torch.stack([one[slot] for one in received]).mean(0) for slot in server}
    ended = seen[-1]
    clients = [{**ended.sent.tensors, **{slot: x[k] for slot, x in ended.uploads.items()}} for k in range(len(ended.weights))]  # fmt: skip

    def score(values: Mapping[Slot, Tensor]) -> float:
        return engine.evaluate(task, adapted, values, task.test)["accuracy"]

    own = [score(values) for values in clients]
    best = clients[max(range(len(own)), key=own.__getitem__)]
    rows = [(who, score(x), float("nan"), _relative(x, server))
            for who, x in (("server", server), ("received", final), ("averaged", averaged))]  # fmt: skip
    rows.append(("trained", max(own), sum(own) / len(own), _relative(best, server)))
    return pd.DataFrame(rows, columns=["who", "accuracy", "mean", "distance"])
