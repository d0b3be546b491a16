"""What a record of a run keeps of it: the task, the adapter's settings and the server's tensors."""

from typing import Protocol

from fedlora_lab._utils.validation import check
from fedlora_lab.lora.adapters import AdaptedModel, adapt
from fedlora_lab.methods.plan import Lora
from fedlora_lab.methods.state import ServerState, Tensors
from fedlora_lab.tasks.task import Task

Source = tuple[Task, Lora, ServerState]


class Trained(Protocol):
    """A record of a run, such as `federated.records.Round`; copies have lost their source."""

    @property
    def source(self) -> Source | None:
        """The task with everyone's examples, the adapter's settings, the server's tensors."""
        ...


def require_source(record: Trained) -> Source:
    """Task, adapter and server's tensors of a record that a run yielded, or ``ValueError``."""
    source = getattr(record, "source", None)
    value = "a copy, without its task" if hasattr(record, "source") else record
    check(source is not None, "record", value, "a record as run() yields it")
    assert source is not None
    return source


def adapted_for(task: Task, record: Trained) -> tuple[AdaptedModel, Tensors]:
    """A task's model with adapters as a record has them, and the server's tensors to put there.

    Args: task: that of the run, or one of the same model. record: as `run` yields it.
    Raises: ``ValueError`` for anything else.
    """
    trained_on, lora, state = require_source(record)
    check(isinstance(task, Task), "task", task, "a Task")

    def adapted_layers(task: Task) -> tuple[object, ...]:
        shapes = {name: tensor.shape for name, tensor in task.model.named_parameters()}
        return task.targets, task.head, shapes

    # PEFT would adapt other layers of another model, and leave them as they were.
    fits = task is trained_on or adapted_layers(task) == adapted_layers(trained_on)
    expected = f"{trained_on.name!r}, of which the record is, or a task of the same model"
    check(fits, "task", task.name, expected)
    adapted = adapt(task, lora)
    return adapted, adapted.on_device(state.tensors)
