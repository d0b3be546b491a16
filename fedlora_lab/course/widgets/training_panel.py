"""The frame of every widget that trains: buttons, progress, status, worker, drawing thread."""

import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import ipywidgets as w

from fedlora_lab.course.widgets import background_worker as work
from fedlora_lab.course.widgets import controls

Events = Callable[[], Generator[Any, None, None]]
BUTTONS = {
    "start": ("play", "train with these settings", "primary"),
    "pause": ("pause", "pause after this local step", ""),
    "resume": ("forward", "continue", ""),
    "stop": ("stop", "stop after this local step", ""),
    "reset": ("undo", "discard all runs and reset the controls", ""),
}
STALE = "controls have changed since: press Start"
_OPEN: "weakref.WeakValueDictionary[str, TrainingPanel]" = weakref.WeakValueDictionary()


class TrainingPanel(controls.DrawnBox):
    """Trains in the background while the page stays responsive.

    What is trained and how it is drawn is left to the widgets, which fill in the abstract methods.

    Args:
        title: of the thread; of all panels with this title and ``place`` only the newest trains.
        place: such as the task's name.

    Guarantees: Stop ends within one local step (test_live_stops_within_a_step,
        test_a_comparison_stops_within_a_step); an error is one line (test_live_shows_an_error,
        test_a_comparison_shows_an_error); a newer panel ends the older one's thread
        (test_a_new_live_ends_the_old, test_a_new_comparison_ends_the_old).
    """

    button_names: ClassVar[tuple[str, ...]] = tuple(BUTTONS)

    def __init__(self, title: str, place: str = "") -> None:
        super().__init__(rest=0.05)
        self.worker: work.Worker | None = None
        self.title, self.knobs, self._refresh_paused = title, {}, False
        self._ticks, self._total, self._first_tick, self._reported = 0, 1, 0.0, 0.0
        self.status, self.sentence = controls.text_box(2), controls.text_box(3)
        look = controls.control_options("progress", "local steps done")
        self.progress = w.IntProgress(value=0, max=1, **look)
        self.buttons = {
            name: controls.button(name.capitalize(), icon, help, getattr(self, name), style)
            for name, (icon, help, style) in BUTTONS.items()
            if name in self.button_names
        }
        older = _OPEN.get(key := f"{title}/{place}")
        if older is not None:
            older.stop(wait=5.0)
        _OPEN[key] = self

    def follow(self, *knobs: Any) -> None:
        """Refreshes after each of these controls has moved, and draws what they say now.

        They are disabled while it trains; Reset puts them back in this order.
        """
        self.knobs = {knob: knob.value for knob in knobs}
        for knob in knobs:
            knob.observe(lambda _: self._refresh_paused or self.refresh(), "value")
        self.refresh(first=True)

    @contextmanager
    def pause_refresh(self) -> Iterator[None]:
        """Pauses refreshing while many controls move together."""
        before, self._refresh_paused = self._refresh_paused, True
        try:
            yield
        finally:
            self._refresh_paused = before

    # What a widget fills in

    @abstractmethod
    def prepare_run(self) -> tuple[Events, int]:
        """Returns the events to come after Start, and how many local steps they are."""

    @abstractmethod
    def handle_event(self, event: Any) -> bool:
        """Takes an event of the run; returns whether there is something new to draw."""

    @abstractmethod
    def progress_text(self) -> str:
        """Says where the run is."""

    @abstractmethod
    def preview(self) -> str:
        """Takes up what the controls say; returns the status line."""

    @abstractmethod
    def drawing_input(self) -> Any:
        """Returns what is to be drawn now: a value that no later event changes."""

    def is_stale(self) -> bool:
        """Returns whether the controls differ from what the run that is shown was made with."""
        return False

    def clear_runs(self) -> None:
        """Forgets all runs and puts the controls back."""
        for knob, value in self.knobs.items():
            knob.value = value

    def lock_controls(self, locked: bool) -> None:
        """Disables or enables the controls."""
        for knob in self.knobs:
            knob.disabled = locked

    # What the reader does

    def start(self) -> None:
        """Trains with the settings shown."""
        if self.alive:
            return
        events, self._total = self.prepare_run()
        self._ticks, self._first_tick = 0, 0.0
        self.progress.value, self.progress.max = 0, self._total
        # A reset forgets the worker: what it still sends is not of the run that is shown.
        handle: Any = lambda event: worker is self.worker and self._handle(worker, event)  # noqa: E731
        changed: Any = lambda state: worker is self.worker and self._enter(worker, state)  # noqa: E731
        self.worker = worker = work.Worker(events, handle, changed, name=self.title)
        worker.start()

    def pause(self) -> None:
        """Pauses after the local step under way."""
        if self.worker is not None and self.alive:
            controls.set_text(self.status, "pausing after this step")
            self.worker.pause()

    def resume(self) -> None:
        """Goes on after a pause."""
        if self.worker is not None:
            self.worker.resume()

    def stop(self, wait: float | None = None) -> bool:
        """Ends after the local step under way; waits ``wait`` seconds; returns whether it ended."""
        if self.worker is None or not self.alive:
            return True
        controls.set_text(self.status, "stopping after this step")
        return self.worker.stop(wait)

    def reset(self) -> None:
        """Stops, forgets all runs and puts the controls back."""
        self.stop(wait=5.0)
        self.worker, self.progress.value = None, 0
        with self.pause_refresh():
            self.clear_runs()
        self.refresh()

    def close(self) -> None:
        """Ends the thread and takes the widget down."""
        self.stop(wait=5.0)
        super().close()

    @property
    def alive(self) -> bool:
        """Whether a run is under way or paused."""
        return self.worker is not None and self.worker.alive

    def refresh(self, *, first: bool = False) -> None:
        """Shows what Start would do, after a control has moved; ``first`` draws at once."""
        if self.alive:
            return
        line = self.preview()
        self._enable(work.READY)
        if not first and self.is_stale():
            line = STALE
            if self.worker is not None:
                line += f" · {self.worker.state} · {self.progress_text()}"
        controls.set_text(self.status, line)
        if first:
            self.show_drawing(self.draw(self.drawing_input()))
        else:
            self._drawing.request(self.drawing_input())

    # What the thread reports

    def _handle(self, worker: work.Worker, event: Any) -> None:
        if self.handle_event(event):
            self._drawing.request(self.drawing_input())
        else:
            self._ticks += 1
            self._first_tick = self._first_tick or worker.seconds
        if time.monotonic() - self._reported > 0.1:
            self._report(worker)

    def _enter(self, worker: work.Worker, state: str) -> None:
        self._enable(state)
        self._report(worker)
        if state == work.FAILED:
            self.show_error(worker.error)
        elif state in work.OVER:
            self._drawing.request(self.drawing_input())

    def _report(self, worker: work.Worker) -> None:
        """Writes the line under the buttons: state, where the run is, time left."""
        self._reported, self.progress.value = time.monotonic(), min(self._ticks, self._total)
        preparing = worker.state == work.RUNNING and not self._ticks
        parts = ["preparing" if preparing else worker.state, self.progress_text()]
        if worker.state in work.OVER and self.is_stale():
            parts.insert(0, STALE)
        if worker.state in (work.RUNNING, work.PAUSED) and self._ticks > 1:
            each = (worker.seconds - self._first_tick) / (self._ticks - 1)
            parts.append(f"{max(self._total - self._ticks, 0) * each:.0f} s left")
        controls.set_text(self.status, " · ".join(filter(None, parts)))

    def _enable(self, state: str) -> None:
        """Disables the buttons and controls that make no sense in this state."""
        alive = state in (work.RUNNING, work.PAUSED)
        enabled = {"start": not alive, "stop": alive, "reset": True}
        enabled |= {"pause": state == work.RUNNING, "resume": state == work.PAUSED}
        for name, button in self.buttons.items():
            button.disabled = not enabled[name]
        self.lock_controls(alive)

    def show_error(self, line: str) -> None:
        controls.set_text(self.status, line, error=True)
