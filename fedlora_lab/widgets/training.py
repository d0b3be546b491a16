"""What the widgets that train have in common: buttons, progress, status, a thread that works and one that draws.

Nothing here knows of what is trained or how it is drawn.
"""

import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import ipywidgets as w

from fedlora_lab.widgets import controls
from fedlora_lab.widgets.worker import FAILED, OVER, PAUSED, READY, RUNNING, Latest, Worker

Events = Callable[[], Iterable[Any]]
BUTTONS = {
    "start": ("play", "train with these settings", "primary"),
    "pause": ("pause", "hold after this local step", ""),
    "resume": ("forward", "go on", ""),
    "stop": ("stop", "end after this local step", ""),
    "reset": ("undo", "forget all runs, put the controls back", ""),
}
CHANGED = "controls have changed since: press Start"
_OPEN: "weakref.WeakValueDictionary[str, Training]" = weakref.WeakValueDictionary()


class Training(w.VBox):
    """Trains in the background while the page stays responsive. A widget says in the methods below what and how.

    Args:
        title: of the thread; of all widgets with this title and ``place`` only the newest trains.
        place: where that counts, such as the task's name.

    Guarantees: Stop ends within one local step (test_live_stops_within_a_step, test_duel_stops_within_a_step); an error
        is one line (test_live_shows_an_error, test_duel_shows_an_error); a newer widget ends the older one's thread
        (test_a_new_live_ends_the_old, test_a_new_duel_ends_the_old).
    """

    offered: ClassVar[tuple[str, ...]] = tuple(BUTTONS)

    def __init__(self, title: str, place: str = "") -> None:
        self.title, self.worker = title, None
        self._ticks, self._told, self._since, self._total = 0, 0.0, 0.0, 1
        self._painter = Latest(self.paint, self.show, self._fail, rest=0.05)
        self.status, self.sentence = controls.words(2), controls.words(3)
        self.progress = w.IntProgress(value=0, max=1, description="progress", tooltip="local steps done",
                                      style=controls.STYLE, layout=w.Layout(width=controls.WIDE))  # fmt: skip
        self.buttons = {
            name: controls.button(name.capitalize(), icon, help, getattr(self, name), style)
            for name, (icon, help, style) in BUTTONS.items()
            if name in self.offered
        }
        super().__init__()
        older = _OPEN.get(key := f"{title}/{place}")
        if older is not None:
            older.stop(wait=5.0)
        _OPEN[key] = self

    # What a widget says of itself -----------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> tuple[Events, int]:
        """Start was pressed: the events to come, and how many local steps they are."""

    @abstractmethod
    def keep(self, event: Any) -> bool:
        """Take an event; whether it was more than a local step, so that the figure changes."""

    @abstractmethod
    def told(self) -> str:
        """Where the run is, for the status line."""

    def changed(self) -> bool:
        """Whether the controls say something else than what the run that is shown was made with."""
        return False

    @abstractmethod
    def planned(self) -> str:
        """A control has moved and nothing trains: make ready for what the controls say; the status line.

        A run that is shown stays what it was: figure, words and files are made from what it trained with.
        """

    @abstractmethod
    def forget(self) -> None:
        """Forget all runs and put the controls back."""

    @abstractmethod
    def lock(self, locked: bool) -> None:
        """Hold or free the controls."""

    @abstractmethod
    def wanted(self) -> Any:
        """What is to be drawn now: a value that no later event changes."""

    @abstractmethod
    def paint(self, wanted: Any) -> Any:
        """Draw it; in a thread of its own."""

    @abstractmethod
    def show(self, painted: Any) -> None:
        """Put what was drawn on the page."""

    # What the reader does -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Train with the settings shown."""
        if self.alive:
            return
        events, self._total = self.begin()
        self._ticks, self._since = 0, 0.0
        self.progress.value, self.progress.max = 0, self._total
        see, changed = lambda event: self._see(worker, event), lambda state: self._changed(worker, state)
        self.worker = worker = Worker(events, see, changed, name=self.title)
        worker.start()

    def pause(self) -> None:
        """Hold after the local step under way."""
        if self.worker is not None and self.alive:
            controls.say(self.status, "pausing after this step")
            self.worker.pause()

    def resume(self) -> None:
        """Go on after a pause."""
        if self.worker is not None:
            self.worker.resume()

    def stop(self, wait: float | None = None) -> bool:
        """End after the local step under way; True when nothing runs any more, within ``wait`` seconds."""
        if self.worker is None or not self.alive:
            return True
        controls.say(self.status, "stopping after this step")
        return self.worker.stop(wait)

    def reset(self) -> None:
        """Stop, forget all runs and put the controls back."""
        self.stop(wait=5.0)
        self.worker, self.progress.value = None, 0
        self.forget()
        self.ready()

    def settle(self, wait: float = 10.0) -> bool:
        """Wait until the figures show all that is done; True when they do."""
        return self._painter.settle(wait)

    def close(self) -> None:
        """End the thread and take the widget down."""
        self.stop(wait=5.0)
        self._painter.close()
        super().close()

    @property
    def alive(self) -> bool:
        """Whether a run is under way or paused."""
        return self.worker is not None and self.worker.alive

    def ready(self, *, first: bool = False) -> None:
        """Say and draw what Start would do, when a control has moved; the ``first`` drawing is there at once."""
        if self.alive:
            return
        line = self.planned()
        self._free(READY)
        if not first and self.changed():
            state = "" if self.worker is None else f" · {self.worker.state} · {self.told()}"
            line = f"{CHANGED}{state}"
        controls.say(self.status, line)
        if first:
            self.show(self.paint(self.wanted()))
        else:
            self._painter.ask(self.wanted())

    # What the thread tells ------------------------------------------------------------------------------------------

    def _see(self, worker: Worker, event: Any) -> None:
        if worker is not self.worker:  # forgotten by a reset
            return
        if self.keep(event):
            self._painter.ask(self.wanted())
        else:
            self._ticks += 1
            self._since = self._since or worker.seconds
        if time.monotonic() - self._told > 0.1:
            self._tell(worker)

    def _changed(self, worker: Worker, state: str) -> None:
        if worker is not self.worker:
            return
        self._free(state)
        self._tell(worker)
        if state == FAILED:
            self._fail(worker.error)
        elif state in OVER:
            self._painter.ask(self.wanted())

    def _tell(self, worker: Worker) -> None:
        """The line under the buttons: state, where the run is, time left."""
        self._told, self.progress.value = time.monotonic(), min(self._ticks, self._total)
        parts = [worker.state if self._ticks or worker.state != RUNNING else "preparing", self.told()]
        if worker.state in OVER and self.changed():
            parts.insert(0, CHANGED)
        if worker.state in (RUNNING, PAUSED) and self._ticks > 1:
            each = (worker.seconds - self._since) / (self._ticks - 1)
            parts.append(f"{max(self._total - self._ticks, 0) * each:.0f} s left")
        controls.say(self.status, " · ".join(filter(None, parts)))

    def _free(self, state: str) -> None:
        """Hold the buttons and controls that make no sense in this state."""
        alive = state in (RUNNING, PAUSED)
        free = {"start": not alive, "pause": state == RUNNING, "resume": state == PAUSED, "stop": alive}
        for name in free.keys() & self.buttons.keys():
            self.buttons[name].disabled = not free[name]
        self.lock(alive)

    def _fail(self, line: str) -> None:
        controls.say(self.status, line, error=True)
