"""The live bench: a small workbench on which runs are trained, kept, compared and swept.

Python trains in the background and streams small records; `bench.js` draws them in the browser.
"""

import itertools
import math
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anywidget
import torch
import traitlets
from joblib import Parallel, delayed

from fedlora_course.widgets import background_worker as work
from fedlora_course.widgets.dial import widget_module
from fedlora_course.widgets.run_config import (
    GROUP_HEADINGS,
    Facts,
    RunConfig,
    Suggestion,
    knobs,
    text_of,
)
from fedlora_course.widgets.run_row import Part, RunRow, label_parts
from fedlora_lab import methods
from fedlora_lab._utils.torch_state import torch_threads
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.methods.plan import Lora, Plan, lora_of
from fedlora_lab.plots.style import look, on_screen
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.report import epsilon_text, format_number, observer_phrase
from fedlora_lab.tasks.task import Task, forward, take

if TYPE_CHECKING:
    from fedlora_lab.federated.records import LocalStep, Round
    from fedlora_lab.methods.method import Method

SAY_EVERY = 0.15  # seconds between two messages on the progress of a run
AT_ONCE = 2  # runs of a sweep: threads, of which a third would wait for Python's lock
DRAWN = ("epsilon", "deviation", "clipped", "bytes_up", "bytes_down")
FOLLOWED = ("method", "epsilon", "unit")
"""Knobs on which the suggested learning rate depends."""
_OPEN: "weakref.WeakValueDictionary[str, Workbench]" = weakref.WeakValueDictionary()
Presets = Mapping[str, Mapping[str, Any]]
"""Name -> knob -> value."""


class Workbench(anywidget.AnyWidget):
    """Runs of a task: set, started, paused, stopped, kept, compared and swept.

    ``config`` is what Start would train; ``rows`` are the runs there are. `set` turns knobs, as the
    page does.

    Guarantees: a row keeps the recipe it was started with, wherever the knobs stand
        (test_a_run_keeps_its_own_recipe). Stop, and a newer workbench of the task, end it within
        one local step (test_a_sweep_pauses_and_a_new_workbench_ends_it); an error is one line
        (test_live_shows_an_error). Of test examples that are not public a private run shows no
        score (test_live_shows_nothing_of_private_test_examples).
    """

    setup = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    errors = traitlets.Dict().tag(sync=True)
    facts = traitlets.List().tag(sync=True)
    stale = traitlets.Bool(False).tag(sync=True)  # the facts are still those of other settings
    advice = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    table = traitlets.List().tag(sync=True)
    sweep = traitlets.Dict().tag(sync=True)
    say = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        first: RunConfig,
        follows: bool,
        presets: Presets | None = None,
        sweep: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self._first = first
        self._first_follows = follows
        self.config = first
        self.follows = follows
        self._own_rate = False  # the reader's
        # A row of the reader's own stands first.
        self.methods = {first.method.slug: first.method, **methods.ALL}
        self.knobs = knobs(first, self.methods)
        self._presets = {name: dict(values) for name, values in (presets or {}).items()}
        self._setting = ""
        self.rows: list[RunRow] = []
        self._ids = itertools.count()
        self._said = 0.0
        self._lock = threading.RLock()
        self.worker: work.Worker | None = None
        self._ticks = 0
        self._total = 1
        self._first_tick = 0.0
        self._foreseen = work.LatestOnly(_foresee, self._show_forecast, self._show_problem, 0.05)
        self.add_traits(_esm=traitlets.Unicode(widget_module("bench")).tag(sync=True))
        for values in self._presets.values():  # refused here, not where its button is pressed
            config = first
            for key in sorted(values, key=list(self.knobs).index):
                config = self.knobs[key].write(config, text_of(values[key]))
        self._first_sweep = self._sweep_texts(sweep)
        self.measure = self._score_before()
        self.setup = {
            "groups": GROUP_HEADINGS,
            "knobs": [{"key": key, **knob.page} for key, knob in self.knobs.items()],
            "measure": self.measure,
            "measures": [*first.task.metrics, *DRAWN],
            "start": self._start if first.task.public_test else None,
        }
        self.sweep = self._first_sweep
        self._publish()
        # Opened with what its page is made of: a notebook may show it before it hears of changes.
        super().__init__()
        self._publish_values()
        self.on_msg(lambda _, message, buffers: self.act(**message))
        older = _OPEN.get(first.task.name)
        if older is not None:
            older.stop(wait=5.0)
        _OPEN[first.task.name] = self

    def __repr__(self) -> str:
        return f"Workbench for runs of {self._first.task.name}: {self.say}"

    # What the reader sets

    def set(self, **texts: Any) -> None:
        """Turns knobs; a value that makes no sense stays on the page with a line that says why.

        Args: texts: knob -> its text, or a value.
        """
        errors = dict(self.errors)
        config = self.config
        if set(texts) - {"method"}:
            self._setting = ""  # it is another one now
        shown = {key: text_of(value) for key, value in texts.items()}
        for key in sorted(shown, key=list(self.knobs).index):  # a unit before its trust
            try:
                config = self.knobs[key].write(config, shown[key].strip())
                errors.pop(key, None)
            except ValueError as error:
                errors[key] = work.one_line(error)
        if "lr" in shown and "lr" not in errors:
            self._own_rate = True
        elif not self._own_rate and not set(FOLLOWED).isdisjoint(shown):
            self.follows = True
        self.follows = self.follows and not self._own_rate
        self.config = config
        self.errors = errors
        self._publish_values({key: shown[key] for key in shown if key in errors})

    def _publish_values(self, wrong: Mapping[str, str] | None = None) -> None:
        typed = {key: self.values[key] for key in self.errors if key in self.values}
        texts = {key: knob.read(self.config) for key, knob in self.knobs.items()}
        self.values = {**texts, **typed, **(wrong or {})}
        presets = []
        for name, values in self._presets.items():
            words = [f"{key.replace('_', ' ')} {text_of(value)}" for key, value in values.items()]
            presets.append((name, ", ".join(words), name == self._setting))
        self.setup = {**self.setup, "presets": presets}
        self.stale = True
        self._foreseen.request((self.config, self.follows))
        if not self.rows:
            self.say = self._sentence()

    def _show_forecast(self, forecast: tuple[RunConfig, Facts, Suggestion]) -> None:
        """Shows what is known of a run before Start; a rate that follows is the suggested one."""
        config, facts, suggested = forecast
        if self.follows and self.config.with_rate(suggested.lr) == config:
            self.config = config
            self.values = {**self.values, "lr": self.knobs["lr"].read(self.config)}
        self.advice = {
            "words": f"suggested: {suggested.lr:g}, {suggested.origin}",
            "offer": not math.isclose(suggested.lr, self.config.plan.rate("B")),
        }
        self.facts = facts
        self.stale = False

    def _show_problem(self, line: str) -> None:
        self.facts = [("this cannot run", line)]
        self.stale = False

    def preset(self, name: str) -> None:
        """Turns the knobs to a named setting, with the suggested learning rate.

        The method stays unless the setting names one; every other knob goes back to its first
        value, so that the same name is always the same setting.

        Args: name: of one that was given.
        """
        check(name in self._presets, "preset", name, f"one of {', '.join(self._presets)}")
        self.config = replace(self._first, method=self.config.method, seed=self.config.seed)
        self.follows = True
        self._own_rate = False
        self.errors = {}
        self.set(**{"method": self.config.method.slug, **self._presets[name]})
        self._setting = name
        self._publish_values()

    def suggest(self) -> None:
        """Takes the suggested learning rate, and follows the suggestions again."""
        self.follows = True
        self._own_rate = False
        self._publish_values()

    # What the reader does

    def act(self, do: str, **given: Any) -> None:
        """Does what a message from the page asks for; a mistake is one line in the status.

        Args: do: name of the deed; given: its arguments.
        """
        names = ("start", "pause", "resume", "stop", "reset", "preset", "suggest", "run_sweep")
        deeds: dict[str, Any] = {name: getattr(self, name) for name in names}
        deeds["set"] = lambda values: self.set(**values)
        deeds["row"] = self.change_row
        deeds["hello"] = lambda: [self._send_row(row) for row in list(self.rows)]
        try:
            deeds[do](**given)
        except (KeyError, TypeError, ValueError) as error:
            self.status = {**self.status, "error": work.one_line(error)}

    def start(self) -> None:
        """Trains with the settings shown, as a new row of the table."""
        self.settle()  # a rate that follows must have arrived
        self._train([self._new_row(self.config, (self.config.seed,))])

    def _sweep_texts(self, sweep: Mapping[str, Sequence[Any]] | None) -> dict[str, Any]:
        key, values = next(iter((sweep or {"epsilon": (1, 3, 8)}).items()))
        check(key in self.knobs, "sweep", key, f"one of {', '.join(self.knobs)}")
        return {"key": key, "values": ", ".join(map(text_of, values)), "seeds": 3}

    def run_sweep(self, key: str, values: str, seeds: int = 3) -> None:
        """Compares several values of one knob, each with several seeds, two runs at once.

        A learning rate that follows is the one suggested for each value.

        Args: key: the knob; values: two to eight texts apart by commas; seeds: from the present
            seed on.
        Raises: ``ValueError`` for a value that the knob does not take, or with which no run could
            begin.
        """
        check(key in self.knobs, "sweep", key, f"one of {', '.join(self.knobs)}")
        knob = self.knobs[key]
        texts = [text.strip() for text in values.split(",") if text.strip()]
        # By what is read of it, as 8 and 8.0 are one value.
        configs = {knob.read(x): x for x in (knob.write(self.config, text) for text in texts)}
        check(2 <= len(configs) <= 8, "values", values, "two to eight values, apart by commas")
        check_whole("seeds", seeds, 1, 20)
        chosen = tuple(range(self.config.seed, self.config.seed + seeds))
        rows = []
        for config in configs.values():
            if self.follows and key in FOLLOWED:
                config = config.with_rate(config.suggestion().lr)
            config.checked()  # a mistake in the last value is told now
            rows.append(self._new_row(config, chosen))
        for row in rows:
            row.sweep = rows[0].id
        self.sweep = {"key": key, "values": ", ".join(configs), "seeds": seeds}
        self._train(rows)

    def _new_row(self, config: RunConfig, seeds: tuple[int, ...]) -> RunRow:
        recipe = {key: knob.read(config) for key, knob in self.knobs.items()}
        recipe["seed"] = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        return RunRow(next(self._ids), config, recipe, seeds, self.follows)

    def _train(self, rows: list[RunRow]) -> None:
        check(not self.alive, "start", "now", "after the run that is under way has ended")
        check(not self.errors, "start", "now", "; ".join(self.errors.values()))
        with self._lock:
            self.rows += rows
        plans = [(row.config.plan, len(row.seeds)) for row in rows]
        self._total = sum(plan.rounds * plan.local_steps * count for plan, count in plans)
        self._ticks = 0
        self._first_tick = 0.0

        # A reset forgets the worker: what it still says is of no row.
        def changed(state: str) -> None:
            if worker is self.worker:
                self._enter(state)

        self.worker = worker = work.Worker(
            lambda: self._train_rows(rows, worker), changed, "live run"
        )
        worker.start()

    def _train_rows(self, rows: Sequence[RunRow], worker: work.Worker) -> None:
        """Trains the runs of rows, two at once; an error ends its run alone."""
        runs = [(row, seed) for row in rows for seed in row.seeds]
        # In threads every round can be drawn, and a pause is within one step.
        threads = Parallel(min(len(runs), AT_ONCE), backend="threading", batch_size=1)
        threads(delayed(self._train_run)(row, seed, worker) for row, seed in runs)
        failed = [row for row in rows if row.error]
        for row in failed:
            row.state = "failed"
        for row in failed:
            if row in self.rows:
                raise ValueError(row.error)

    def _train_run(self, row: RunRow, seed: int, worker: work.Worker) -> None:
        """Trains one run of a row, and hands on what it yields."""
        from fedlora_lab.federated.run import Run  # slow to import

        try:
            config = replace(row.config, seed=seed).checked()
            # An error here would else leave the run suspended.
            with torch_threads(1), closing(Run.open(config).events()) as events:
                for event in events:
                    self._handle(row, seed, event)
                    worker.gate()
                    if row not in self.rows:
                        raise LookupError("deleted")
        except Exception as error:
            row.error = work.one_line(error)
        if row.complete:
            row.state = "finished"

    def pause(self) -> None:
        """Pauses after the local step under way."""
        if self.worker is not None:
            self.worker.pause()

    def resume(self) -> None:
        """Goes on after a pause."""
        if self.worker is not None:
            self.worker.resume()

    def stop(self, wait: float | None = None) -> bool:
        """Ends after the local step under way; waits ``wait`` seconds; returns whether it ended."""
        return self.worker is None or self.worker.stop(wait)

    def reset(self) -> None:
        """Stops, forgets every row, and puts the knobs back."""
        self.stop(wait=5.0)
        self._forget(list(self.rows))
        self.worker = None
        self.config = self._first
        self.follows = self._first_follows
        self._own_rate = False
        self.errors = {}
        self._setting = ""
        self.sweep = self._first_sweep
        self._publish_values()
        self._publish()

    def _forget(self, rows: Sequence[RunRow]) -> None:
        with self._lock:
            self.rows = [row for row in self.rows if row not in rows]
        self._publish()

    def change_row(self, id: int, shown: bool = True, deleted: bool = False) -> None:
        """Shows, hides or deletes a row of the table.

        Args: id: the row's; shown: whether its curve is drawn; deleted: whether it goes.
        """
        row = next(row for row in self.rows if row.id == id)
        row.shown = shown
        self._forget([row] if deleted else [])

    def close(self) -> None:
        """Ends the threads and takes the widget down."""
        self.stop(wait=5.0)
        self._foreseen.close()
        super().close()

    def settle(self, wait: float = 10.0) -> bool:
        """Waits until the numbers before Start are known; returns whether they are."""
        return self._foreseen.settle(wait)

    @property
    def alive(self) -> bool:
        """Whether a run is under way or paused."""
        return self.worker is not None and self.worker.alive

    def _labels(self) -> list[str]:
        return [" ".join(text for _, text in parts) for parts in label_parts(self.rows, self.knobs)]

    # What the thread reports

    def _handle(self, row: RunRow, seed: int, event: "Round | LocalStep") -> None:
        from fedlora_lab.federated.records import Round  # slow to import

        with self._lock:
            # The other thread of a sweep ends its step after Stop or Reset.
            if row not in self.rows or row.state in work.OVER:
                return
            row.state = "running"
            if isinstance(event, Round):
                self._take(row, seed, event)
            else:
                self._ticks += 1
                assert self.worker is not None
                self._first_tick = self._first_tick or self.worker.seconds
            if time.monotonic() - self._said > SAY_EVERY:
                self._publish()

    def _take(self, row: RunRow, seed: int, record: "Round") -> None:
        """Keeps what is drawn of a record, and sends it."""
        measured = record.measures()
        point = {"round": float(record.index)}
        for name in (*row.config.task.metrics, *DRAWN):
            point[name] = float(measured[name])
        row.points.setdefault(seed, []).append(point)
        if not record.index and self._first.task.public_test:  # of all test examples now
            self._start = point[self.measure]
            self.setup = {**self.setup, "start": self._start}
        self._send_row(row)

    def _send_row(self, row: RunRow) -> None:
        self.send({"row": row.id, "series": row.series(self.setup["measures"])})

    def _enter(self, state: str) -> None:
        if state in work.OVER:
            with self._lock:
                for row in self.rows:
                    if row.state in ("waiting", "running"):
                        row.state = "stopped"
            self._forget([row for row in self.rows if row.state == "stopped" and not row.points])
        self._publish(state)

    def _publish(self, state: str | None = None) -> None:
        """Writes the status, the table and the sentence."""
        with self._lock:
            self._said = time.monotonic()
            worker = self.worker
            if state is None:
                state = work.READY if worker is None else worker.state
            labels = label_parts(self.rows, self.knobs)
            self.table = [self._line(*pair) for pair in zip(self.rows, labels, strict=True)]
            text = "preparing" if state == work.RUNNING and not self._ticks else state
            if state in (work.RUNNING, work.PAUSED) and self._ticks > 1 and worker is not None:
                each = (worker.seconds - self._first_tick) / (self._ticks - 1)
                text += f" · {max(self._total - self._ticks, 0) * each:.0f} s left"
            self.status = {
                "state": state,
                "text": text,
                "done": self._ticks if worker is not None else 0,
                "total": self._total,
                "error": worker.error if worker is not None and state == work.FAILED else "",
            }
            self.say = self._sentence()

    def _line(self, row: RunRow, parts: Sequence[Part]) -> dict[str, Any]:
        """Describes a row of the table as the page shows it."""
        score, half = row.score(self.measure)
        text = format_number(score, infinite="∞")
        if math.isfinite(half):
            text += f" ± {format_number(half)}"
        spent = [points[-1]["epsilon"] for points in row.points.values()]
        return {
            "id": row.id,
            "parts": parts,
            "label": " ".join(text for _, text in parts),
            "recipe": dict(row.recipe),
            "sweep": row.sweep,
            "colours": on_screen(look(row.config.method.slug).colour),
            "shown": row.shown,
            "note": row.verdict(self.measure),
            "score": text,
            "spent": epsilon_text(max(spent), "∞") if spent else "–",
            "cell": row.config.cell(),
        }

    # Words

    def _score_before(self) -> str:
        """Scores the model before training on some test examples; returns the measure's name."""
        task = self._first.task
        x, y = task.test
        measure = "accuracy" if "accuracy" in task.metrics else next(iter(task.metrics))
        some = slice(0, 512)  # the page comes within a second
        with torch.no_grad():
            outputs = forward(task.model, take(x, some))
        self._start = float(task.metrics[measure](outputs, y[some]).mean())
        return measure

    def _sentence(self) -> str:
        config = self.config
        begun = [i for i, row in enumerate(self.rows) if row.points]
        if not begun:
            public = config.task.public_test or config.epsilon is None
            before = format_number(self._start if public else math.nan)
            start = f"{config.method.name} trains on the data of {len(config.task.clients)} clients"
            return f"Press Start: {start}. Before training: {self.measure} {before}."
        row = self.rows[begun[-1]]
        points = next(reversed(row.points.values()))
        last = points[-1]
        text = f"{self._labels()[begun[-1]]} after round {last['round']:.0f} of "
        text += f"{row.config.plan.rounds}: {self.measure} "
        text += f"{format_number(last[self.measure], infinite='∞')} "
        text += f"({format_number(points[0][self.measure])} before)"
        note = row.verdict(self.measure) if row.state in ("finished", "stopped") else ""
        trust = row.config.privacy.trust if row.config.epsilon is not None else None
        spent = epsilon_text(last["epsilon"], "∞")
        return f"{text}{note and f'; {note}'}. ε spent: {spent}{observer_phrase(trust)}."


def _foresee(request: tuple[RunConfig, bool]) -> tuple[RunConfig, Facts, Suggestion]:
    """Computes what is known of a run before Start, at the suggested rate if the run follows it."""
    config, follows = request
    suggested = config.suggestion()
    if follows:
        config = config.with_rate(suggested.lr)
    return config, config.facts(), suggested


def live(
    task: Task,
    *,
    method: "Method | str" = "rolora",
    epsilon: float | None = 8.0,
    plan: Plan | None = None,
    privacy: Privacy | None = None,
    lora: "Lora | Mapping[str, Any] | None" = None,
    seed: int = 0,
    presets: Presets | None = None,
    sweep: Mapping[str, Sequence[Any]] | None = None,
) -> Workbench:
    """Makes a workbench for runs of a task: set them, watch them train, keep and compare them.

    A second workbench of the same task ends the first one's thread.

    Args:
        task: what is trained.
        method, epsilon, seed: chosen at first; an ``epsilon`` of ``None`` is no privacy.
        plan: the work; ``None``: the library's defaults with the learning rate suggested for
            method, ε and unit, which follows these until the reader sets it.
        privacy: calibrated for the chosen ε and the plan that runs.
        lora: rank and alpha.
        presets: name -> knob -> value, settings to click.
        sweep: knob -> values, what the sweep offers at first.

    Raises: ``ValueError`` for settings that no run could have.
    Guarantees: nothing is trained before Start; for the rest see `Workbench`.

    >>> import fedlora_course as course
    >>> import fedlora_lab as fl
    >>> run = course.widgets.live(fl.tasks.regression(clients=2), method="ffa-lora", epsilon=4)
    >>> run.values["method"], run.values["epsilon"]
    ('ffa-lora', '4')
    >>> run.close()
    """
    # Without what a calibration for another ε set.
    plain = (privacy or Privacy()).replace(
        noise_multiplier=None, sample_rate=None, target_epsilon=None
    )
    first = RunConfig(
        task, methods.get(method), plan or Plan(), plain, epsilon, lora_of(lora), seed
    )
    return Workbench(first, plan is None, presets, sweep)
