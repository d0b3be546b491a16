"""What each party holds of a model that is broadcast quantised."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedlora_lab import adapters, passes
from fedlora_lab.checks import check, check_whole
from fedlora_lab.measures.clients import Seen
from fedlora_lab.method import Method, Slot
from fedlora_lab.tasks.task import examples_to_judge

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.record import Round


def _relative(held: Mapping[Slot, Tensor], wanted: Mapping[Slot, Tensor]) -> float:
    off = sum(float((held[slot] - x).double().square().sum()) for slot, x in wanted.items())
    return (off / sum(float(x.double().square().sum()) for x in wanted.values())) ** 0.5


def protection(record: "Round", method: Method, seen: Sequence[Seen], last: int = 5) -> "pd.DataFrame":
    """What server and clients hold after the last round, as a tidy frame whose ``method`` says who holds it.

    "server"; "received", the broadcast of the final state; "averaged", the mean of that and the ``last`` - 1 broadcasts
    before it, which any client can form; "trained", of the clients' own adapters after their local training in the last
    round the best. Measures: "accuracy" on the public test examples, and "distance" from the server's factors, all of
    them together, relative.

    Args: record, seen: of one run of ``measures.watch(method)``. last: >= 1.

    Raises: ``ValueError`` for a private run whose test examples are not public.
    Guarantees: test_lesson_08.py::test_protection.
    """
    import pandas as pd

    check(record.source is not None, "record", "a copy without its task", "a record as run() yields it")
    check_whole("last", last, 1, len(seen) + 1)
    task, lora, state = record.source  # type: ignore[misc]
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    server, test = state.tensors, examples_to_judge(task, record.ledger is not None)
    final = {slot: x if slot.side == "head" else method.broadcast(x) for slot, x in server.items()}
    received = [final, *(one.sent.tensors for one in reversed(seen))][:last]
    averaged = {slot: torch.stack([one[slot] for one in received]).mean(0) for slot in server}
    ended = seen[-1]
    own = [{slot: x[k] for slot, x in ended.uploads.items()} for k in range(len(ended.weights))]

    def score(values: Mapping[Slot, Tensor]) -> float:
        return passes.evaluate(task, adapted, values, test)["accuracy"]

    trained = max(({**ended.sent.tensors, **x} for x in own), key=score)
    held = {"server": server, "received": final, "averaged": averaged, "trained": trained}
    key = (record.task, record.seed, record.index, "all")
    rows = [(*key, who, "accuracy", score(x)) for who, x in held.items()]
    rows += [(*key, who, "distance", _relative(x, server)) for who, x in held.items()]
    return pd.DataFrame(rows, columns=["task", "seed", "round", "layer", "method", "measure", "value"])
