"""PyTorch's state, which belongs to the process or the thread, set for a block and put back."""

import atexit
import functools
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, ParamSpec, TypeVar

import torch

from fedlora_lab._utils.validation import check

DEVICE_TYPES = "cpu", "cuda", "mps", "xpu"
"""Where autocast may be on."""
P = ParamSpec("P")
T = TypeVar("T")
Restore = Callable[[], object]
"""Puts back what was set before."""


class SharedSetting:
    """A setting of the process that blocks of several threads need, each with a value of its own.

    Blocks that need the same value overlap. One that needs another value waits until they have
    ended. The first block in notes what the user had set, and the last one out puts it back.

    Args:
        apply: sets a value, and returns what puts back the one before.

    Guarantees: test_user_process.py::test_threads_that_need_one_value_overlap_and_others_wait.
    """

    def __init__(self, apply: Callable[[Any], Restore]) -> None:
        self._apply = apply
        self._free = threading.Condition()
        self._value: Any = None
        self._blocks = 0
        self._restore: Restore = bool
        self._thread = threading.local()

    @contextmanager
    def at(self, value: Any) -> Iterator[None]:
        """Runs a block with the setting at a value, which is not ``None``."""
        outer = getattr(self._thread, "value", None)
        if outer == value:  # as around it: nothing to set
            yield
            return
        # A thread that waited for others while it holds a value could wait for itself.
        self._leave()
        try:
            self._enter(value)
            yield
        finally:
            self._leave()
            if outer is not None:
                self._enter(outer)

    def _enter(self, value: Any) -> None:
        with self._free:
            self._free.wait_for(lambda: not self._blocks or self._value == value)
            if not self._blocks:
                self._restore = self._apply(value)
                self._value = value
            self._blocks += 1
            self._thread.value = value

    def _leave(self) -> None:
        # Nothing is held where an interrupt has come between leaving and entering.
        if getattr(self._thread, "value", None) is None:
            return
        with self._free:
            self._thread.value = None
            self._blocks -= 1
            if not self._blocks:
                self._restore()
                self._free.notify_all()


def _set_threads(count: int) -> Restore:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    return functools.partial(torch.set_num_threads, before)


torch_threads = SharedSetting(_set_threads).at
"""Runs a block with so many threads for each operation of PyTorch."""


@contextmanager
def full_precision() -> Iterator[None]:
    """Takes products of float32 in full precision.

    What the process allows otherwise, of convolutions and on a CPU too, does not count, and is
    restored afterwards.

    Guarantees: test_compute.py::test_what_the_process_allows_does_not_count.
    """
    # TF32 keeps ten bits: what the process allows must not decide how exact a clip is.
    with _PRECISION.at(True):
        yield


def _set_full_precision(_: bool) -> Restore:
    """Allows no less than float32 in its products; returns what puts the process's own back."""
    before = _precisions()
    allowed = allowed_to_cudnn = None
    # Set backend by backend, no single word says what they allow.
    with suppress(RuntimeError):
        allowed = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        allowed_to_cudnn = torch.backends.cudnn.allow_tf32
    for backend, value in before:
        if value != "none":
            backend.fp32_precision = "ieee"
    # By the one setting of GPU and CPU: "medium" would let a CPU multiply in bfloat16.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False

    def restore() -> None:
        if allowed is not None:
            torch.set_float32_matmul_precision(allowed)
        if allowed_to_cudnn is not None:
            torch.backends.cudnn.allow_tf32 = allowed_to_cudnn
        for backend, value in before:
            if backend.fp32_precision != value:
                backend.fp32_precision = value

    return restore


# The setting is the process's: the last of several threads puts it back.
_PRECISION = SharedSetting(_set_full_precision)


def _precisions() -> list[tuple[Any, str]]:
    """What newer versions of PyTorch allow each backend, the one for all others first."""
    backends: Any = torch.backends
    if not hasattr(backends, "fp32_precision"):
        return []
    parts: list[Any] = [backends, backends.cuda.matmul]
    for backend in (backends.cudnn, backends.mkldnn):
        parts += [backend, *(getattr(backend, name, backend) for name in ("matmul", "conv", "rnn"))]
    return [(part, part.fp32_precision) for part in parts if hasattr(part, "fp32_precision")]


@contextmanager
def default_modes() -> Iterator[None]:
    """Runs a block as if nobody had changed PyTorch's defaults; what was set counts again behind.

    New tensors are on the CPU. Autocast, inference mode, anomaly mode and ``no_grad`` are off: a
    clip under autocast would be taken in bfloat16, and one example could move a sum by more than
    the clip norm. All of these but anomaly mode belong to the thread. The default type belongs to
    the process, so no thread can set it for itself: another one than float32 is refused.

    Raises:
        ValueError: the process's default type is not float32.

    Guarantees: test_torch_state.py::test_what_a_notebook_sets_changes_no_bit_of_a_run,
        ::test_another_default_type_is_refused_and_left_as_it_is.
    """
    check(
        torch.get_default_dtype() == torch.float32,
        "torch.get_default_dtype()",
        torch.get_default_dtype(),
        "torch.float32, in which fedlora_lab trains: call torch.set_default_dtype(torch.float32)",
    )
    with _thread_modes():
        yield


@contextmanager
def _thread_modes() -> Iterator[None]:
    """The part of `default_modes` that can be set for a thread."""
    with ExitStack() as stack:
        # Each is left alone where it is as it should be: a mode costs time in every operation.
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        for kind in DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # Under it the probes, which pass values that are not numbers, would raise.
        if torch.is_anomaly_enabled():
            stack.enter_context(torch.autograd.set_detect_anomaly(False))
        yield


def with_default_modes(function: Callable[P, T]) -> Callable[P, T]:
    """Decorates a public function: its body runs in `default_modes`."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with default_modes():
            return function(*args, **kwargs)

    return wrapped


def steps_with_default_modes(
    function: Callable[P, Generator[T, Any, Any]],
) -> Callable[P, Generator[T, Any, Any]]:
    """Decorates a generator function: each of its steps runs in `default_modes`.

    Between two of them, and after the last, what its user has set counts.
    """

    def step_by_step(steps: Generator[T, Any, Any]) -> Generator[T, Any, Any]:
        try:
            while True:
                with default_modes():
                    try:
                        value = next(steps)
                    except StopIteration as end:
                        return end.value
                yield value
        finally:
            # Whoever stops early leaves locks and files to the generator's own end.
            with _thread_modes():
                steps.close()

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Generator[T, Any, Any]:
        steps = step_by_step(function(*args, **kwargs))
        _OPEN.add(steps)
        return steps

    return wrapped


_OPEN: "weakref.WeakSet[Generator[Any, Any, Any]]" = weakref.WeakSet()
"""Generators that somebody still holds."""


@atexit.register
def _close_open_steps() -> None:
    """Closes them while modules are whole: later their ends would find no function to call."""
    for steps in list(_OPEN):
        with suppress(ValueError):  # a thread that nobody waits for is inside
            steps.close()
