"""A task without a signal: what is left of a private run is its noise."""

from dataclasses import replace

from fedlora_lab.tasks.task import Task


def silent(task: Task) -> Task:
    """The same task with a loss that is zero everywhere: every gradient is zero, so only the noise moves the factors.

    Metrics stay as they were. From B = 0, the norm of the product is then the norm of the noise that has gathered in W.

    Guarantees: test_a_silent_task_moves_only_by_noise.
    """
    return replace(task, loss=lambda outputs, y: 0.0 * task.loss(outputs, y))
