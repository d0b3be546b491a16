"""The live run: a small workbench on which runs are trained, kept, compared and swept.

Python trains in the background and streams small records; `bench.js` draws them in the browser.
"""

import itertools
import math
import re
import threading
import time
import weakref
from base64 import b64encode
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import torch
import traitlets

from fedlora_lab import methods
from fedlora_lab._utils.validation import check, check_whole
from fedlora_lab.course.widgets import background_worker as work
from fedlora_lab.course.widgets.dial import widget_module
from fedlora_lab.course.widgets.run_config import (
    BREAKS,
    GROUP_HEADINGS,
    Knob,
    RunConfig,
    drop_calibration,
    knobs,
    text_of,
)
from fedlora_lab.measures.statistics import find_collapsed, smaller_is_better, t_interval
from fedlora_lab.methods.plan import Plan, lora_of
from fedlora_lab.plots.style import look
from fedlora_lab.privacy.plan import Privacy
from fedlora_lab.report.summary_table import format_number, observer_phrase
from fedlora_lab.tasks.metrics import TextScore
from fedlora_lab.tasks.task import Task, take

if TYPE_CHECKING:
    import pandas as pd

    from fedlora_lab.federated.records import Round
    from fedlora_lab.methods.method import Method

HERE = Path(__file__).parent
IMAGES_SHOWN = 63  # test images on the page
DRAWN = ("epsilon", "deviation", "clipped", "bytes_up", "bytes_down")
FOLLOWED = ("method", "epsilon", "unit", "optimizer")
"""Knobs on which the suggested learning rate depends."""
_OPEN: "weakref.WeakValueDictionary[str, Workbench]" = weakref.WeakValueDictionary()


@dataclass(eq=False)
class RunRow:
    """One row of the table: a run, or the same run with several seeds. Its recipe never changes.

    Args:
        id: its number.
        config: what was run, from Start on.
        recipe: the text of every knob then.
        seeds: of its runs.
        follows: whether its learning rate was the suggested one.
        swept: the knob of the sweep it belongs to, or "".
        setting: the named setting that was clicked, where no knob but the method moved since.
    """

    id: int
    config: RunConfig
    recipe: Mapping[str, str]
    seeds: tuple[int, ...]
    follows: bool = True
    swept: str = ""
    setting: str = ""
    name: str = ""
    shown: bool = True
    pinned: bool = False
    state: str = "waiting"
    error: str = ""
    points: dict[int, list[dict[str, float]]] = field(default_factory=dict)
    frames: list[Any] = field(default_factory=list)

    def ends(self, measure: str) -> list[tuple[float, float]]:
        """Returns a measure before training and last, of each seed that got past its start."""
        runs = [points for points in self.points.values() if len(points) > 1]
        return [
            (points[0].get(measure, math.nan), points[-1].get(measure, math.nan)) for points in runs
        ]

    def verdict(self, measure: str) -> str:
        """Describes the state of the row: its progress, or that it diverged or collapsed."""
        rounds, count = self.config.plan.rounds, len(self.seeds)
        if self.error:
            return self.error
        if self.state in ("waiting", "running"):
            done = max((len(points) - 1 for points in self.points.values()), default=0)
            seed = f", seed {len(self.points)} of {count}" if count > 1 and self.points else ""
            return f"{self.state}: round {done} of {rounds}{seed}" if self.points else self.state
        sign, ends = -1 if smaller_is_better(measure) else 1, self.ends(measure)
        gains = np.array([sign * (after - before) for before, after in ends])
        low = find_collapsed(gains) if len(gains) else np.zeros(0, bool)
        fell = int((gains < 0).sum())
        large = "step" if self.config.epsilon is None else "step or noise"
        least = min((len(points) - 1 for points in self.points.values()), default=0)
        words = [] if self.state == "finished" else [f"{self.state} at round {least} of {rounds}"]
        why = f": {large} too large" if fell else ""
        if len(gains) == 1 and fell:
            words.append(f"diverged{why}")
        elif low.any():
            words.append(f"{int(low.sum())} of {len(gains)} collapsed{why}")
        return "; ".join(words)

    def score(self, measure: str) -> tuple[float, float]:
        """Mean and half-width of the interval of a measure's last values."""
        return t_interval(np.array([after for _, after in self.ends(measure)]))


def differing_knobs(rows: Sequence[RunRow]) -> list[str]:
    """Lists the knobs in which recipes differ, without those that follow from another knob.

    Those are a rate that was the suggested one, and the trust that a unit begins with. Seeds count
    where nothing else differs.
    """
    if not rows:
        return []
    plain = {unit: Privacy(unit=unit).trust for unit in ("example", "client")}
    usual = all(row.recipe["trust"] == plain[row.recipe["unit"]] for row in rows)
    derived = {"trust": usual, "lr": all(row.follows for row in rows)}
    keys = [key for key in rows[0].recipe if len({row.recipe.get(key) for row in rows}) > 1]
    keys = [key for key in keys if not derived.get(key)]
    return [key for key in keys if key != "seed"] or keys


def label_parts(rows: Sequence[RunRow], table: Mapping[str, Knob]) -> list[list[tuple[str, str]]]:
    """Labels each row by its method and by what tells it from the others.
    Of a named setting the label is the name, which is shorter.

    Returns: for each row (knob, words) pairs, such as ("epsilon", "ε = 1").
    Guarantees: test_live_run.py::test_curves_are_labelled_by_what_differs.
    """
    turned, alone = [row for row in rows if not row.setting], len({r.setting for r in rows}) < 2
    keys = [key for key in differing_knobs(turned) if key != "method"]
    found = []
    for row in rows:
        parts = [("method", row.config.method.name)]
        parts += [("setting", f"· {row.setting}")] if row.setting and not alone else []
        for key in [] if row.setting else keys:
            page, text = table[key].page, row.recipe[key]
            symbol = page.get("symbol")
            parts.append((key, f"{symbol} = {text}" if symbol else text))
        found.append(parts)
    alike = Counter(map(str, found))
    seen: Counter[str] = Counter()
    for parts in found:  # the same recipe twice: numbered
        if alike[key := str(parts)] > 1:
            seen[key] += 1
            parts.append(("", f"({seen[key]})"))
    return found


class Workbench(anywidget.AnyWidget):
    """Runs of a task: set, started, paused, stopped, kept, compared, swept and exported.

    ``config`` is what Start would train; ``rows`` are the runs there are, ``frame`` is the tidy
    frame of all of them. `set` turns knobs, as the page does.

    Guarantees: a row keeps the recipe it was started with, wherever the knobs stand
        (test_a_run_keeps_its_own_recipe). Stop ends within one local step
        (test_live_stops_within_a_step, test_a_sweep_stops_within_a_step); an error is one line
        (test_live_shows_an_error); a newer workbench of the task ends the older one's thread
        (test_a_new_live_ends_the_old). Of test examples that are not public a private run shows no
        score and no image (test_live_shows_nothing_of_private_test_examples).
    """

    setup = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    errors = traitlets.Dict().tag(sync=True)
    facts = traitlets.List().tag(sync=True)
    stale = traitlets.Bool(False).tag(sync=True)  # the facts are still those of other settings
    advice = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    table = traitlets.List().tag(sync=True)
    texts = traitlets.Dict().tag(sync=True)
    sweep = traitlets.Dict().tag(sync=True)
    say = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        first: RunConfig,
        presets: "Mapping[str, Mapping[str, Any]] | None" = None,
        sweep: "Mapping[str, Sequence[Any]] | None" = None,
        title: str = "live run",
    ) -> None:
        self.title, self._first, self.config, self.follows = title, first, first, True
        # A row of the reader's own stands first.
        self.methods = {first.method.slug: first.method, **methods.ALL}
        self.knobs = knobs(first, self.methods)
        self._given = {name: dict(values) for name, values in (presets or {}).items()}
        self._setting = ""
        self.rows: list[RunRow] = []
        self._count, self._said = itertools.count(), 0.0
        self._lock = threading.RLock()
        self.worker: work.Worker | None = None
        self._ticks, self._total, self._first_tick = 0, 1, 0.0
        self._foreseen = work.LatestOnly(
            RunConfig.facts,
            self._foresee,
            lambda line: self._foresee([("this cannot run", line)]),
            rest=0.05,
        )
        self.add_traits(_esm=traitlets.Unicode(widget_module("bench")).tag(sync=True))
        super().__init__()
        from scipy.stats import t as student  # slow to import

        self._first_sweep = self._sweep_texts(sweep)
        self.measure = self._before()
        self.setup = {
            "title": title,
            "open": "" if sweep is None else "sweep",
            "groups": GROUP_HEADINGS,
            "knobs": [{"key": key, **knob.page} for key, knob in self.knobs.items()],
            "measure": self.measure,
            "measures": [*first.task.metrics, *DRAWN],
            "start": self._start if first.task.public_test else None,
            "images": self._images(),
            "t": [0.0, 0.0, *student.ppf(0.975, range(1, 30)).tolist()],  # by the number of seeds
        }
        self.sweep, self.say = self._first_sweep, self._sentence()
        self._publish_values()
        self._publish(work.READY)
        self.on_msg(lambda _, message, buffers: self.act(**message))
        older = _OPEN.get(key := f"{title}/{first.task.name}")
        if older is not None:
            older.stop(wait=5.0)
        _OPEN[key] = self

    def __repr__(self) -> str:
        return f"Workbench for runs of {self._first.task.name}: {self.say}"

    # What the reader sets

    def set(self, **texts: Any) -> None:
        """Turns knobs; a value that makes no sense stays on the page with a line that says why.

        Args: texts: knob -> its text, or a value.
        """
        errors, config = dict(self.errors), self.config
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
            self.follows = False
        elif self.follows and not set(FOLLOWED).isdisjoint(shown):
            config = self._at_suggested(config)
        self.config, self.errors = config, errors
        self._publish_values({key: shown[key] for key in shown if key in errors})

    def refuse(self, key: str, line: str) -> None:
        """Says why a knob's value makes no sense; nothing starts until it is set anew.

        Args: key: the knob; line: one line.
        """
        self.errors = {**self.errors, key: line}
        self._publish_values()

    def _at_suggested(self, config: RunConfig) -> RunConfig:
        return config.with_rate(config.suggestion().lr)

    def _publish_values(self, wrong: Mapping[str, str] | None = None) -> None:
        kept = {key: self.values[key] for key in self.errors if key in self.values}
        own = {key: knob.read(self.config) for key, knob in self.knobs.items()}
        self.values = {**own, **kept, **(wrong or {})}
        suggested = self.config.suggestion()
        self.advice = {
            "words": f"suggested: {suggested.lr:g}, {suggested.words}",
            "offer": not math.isclose(suggested.lr, self.config.plan.rate("B")),
        }
        self._publish_presets()
        self.stale = True
        self._foreseen.request(self.config)
        if not self.rows:
            self.say = self._sentence()

    def _foresee(self, facts: list[tuple[str, str]]) -> None:
        self.facts, self.stale = facts, False

    def _publish_presets(self) -> None:
        """Names of the settings to click, what each is, and which of them stands now."""
        found = [(name, _settings_words(values)) for name, values in self._given.items()]
        if "clients" in self.knobs:
            breaks = "for methods that move both factors: " + _settings_words(BREAKS)
            found.append(("where it breaks", breaks))
        presets = [(name, words, name == self._setting) for name, words in found]
        self.setup = {**self.setup, "presets": presets}

    def preset(self, name: str) -> None:
        """Turns the knobs to a named setting, with the suggested learning rate.

        The method stays unless the setting names one; every other knob goes back to its first
        value, so that the same name is always the same setting.

        Args: name: of one that was given, or "where it breaks".
        """
        own = self._given.get(name, BREAKS)
        self.config = replace(self._first, method=self.config.method, seed=self.config.seed)
        self.follows, self.errors = True, {}
        known = {key: value for key, value in own.items() if key in self.knobs}
        self.set(**{"method": self.config.method.slug, **known})
        self._setting = name
        self._publish_presets()

    def suggest(self) -> None:
        """Takes the suggested learning rate, and follows the suggestions again."""
        self.set(lr=f"{self.config.suggestion().lr:.12g}")
        self.follows = True

    # What the reader does

    def act(self, do: str, **given: Any) -> None:
        """Does what a message from the page asks for; a mistake is one line in the status.

        Args: do: name of the deed; given: its arguments.
        """
        names = "start", "pause", "resume", "stop", "clear", "reset", "preset", "suggest"
        deeds = {name: getattr(self, name) for name in (*names, "run_sweep")}
        deeds |= {"set": lambda values: self.set(**values), "row": self.change_row}
        deeds |= {"hello": lambda: [self._send_row(row) for row in list(self.rows)]}
        try:
            deeds[do](**given)
        except (KeyError, TypeError, ValueError) as error:
            self.status = {**self.status, "error": work.one_line(error)}

    def start(self) -> None:
        """Trains with the settings shown, as a new row of the table."""
        self._train([self._new_row(self.config, (self.config.seed,), setting=self._setting)])

    def _sweep_texts(self, sweep: "Mapping[str, Sequence[Any]] | None") -> dict[str, Any]:
        key, values = next(iter((sweep or {"epsilon": (1, 3, 8)}).items()))
        check(key in self.knobs, "sweep", key, f"one of {', '.join(self.knobs)}")
        return {"key": key, "values": ", ".join(map(text_of, values)), "seeds": 3}

    def run_sweep(self, key: str, values: str, seeds: int = 3) -> None:
        """Trains at several values of one knob, each with several seeds; all values come first.

        A learning rate that follows is the one suggested for each value.

        Args: key: the knob; values: two to eight texts apart by commas; seeds: from the present
            seed on.
        Raises: ``ValueError`` for a value that the knob does not take.
        """
        check(key in self.knobs, "sweep", key, f"one of {', '.join(self.knobs)}")
        texts = list(dict.fromkeys(x.strip() for x in values.split(",") if x.strip()))
        check(2 <= len(texts) <= 8, "values", values, "two to eight values, apart by commas")
        check_whole("seeds", seeds, 1, 20)
        known = tuple(range(self.config.seed, self.config.seed + seeds))
        configs = []
        for text in texts:
            config = self.knobs[key].write(self.config, text)
            if self.follows and key in FOLLOWED and text != self.knobs[key].read(self.config):
                config = self._at_suggested(config)
            configs.append(config)
        self.sweep = {"key": key, "values": ", ".join(texts), "seeds": seeds}
        self._train([self._new_row(config, known, swept=key) for config in configs])

    def _new_row(
        self, config: RunConfig, seeds: tuple[int, ...], swept: str = "", setting: str = ""
    ) -> RunRow:
        recipe = {key: knob.read(config) for key, knob in self.knobs.items()}
        recipe["seed"] = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        return RunRow(next(self._count), config, recipe, seeds, self.follows, swept, setting)

    def _train(self, rows: list[RunRow]) -> None:
        check(not self.alive, "start", "now", "after the run that is under way has ended")
        check(not self.errors, "start", "now", "; ".join(f"{v}" for v in self.errors.values()))
        new = {
            f"{row.id}": {"cell": row.config.cell(), "method": row.config.method_row()}
            for row in rows
        }
        with self._lock:
            self.rows += rows
            self.texts = {**self.texts, **new}
        plans = [(row.config.plan, len(row.seeds)) for row in rows]
        self._total = sum(plan.rounds * plan.local_steps * count for plan, count in plans)
        self._ticks, self._first_tick = 0, 0.0
        # A reset forgets the worker: what it still sends is of no row.
        handle: Any = lambda event: worker is self.worker and self._handle(*event)  # noqa: E731
        changed: Any = lambda state: worker is self.worker and self._enter(state)  # noqa: E731
        self.worker = worker = work.Worker(lambda: self._events(rows), handle, changed, self.title)
        worker.start()

    def _events(self, rows: Sequence[RunRow]) -> Generator[tuple[RunRow, int, Any], None, None]:
        """All values of a sweep with the first seed, then with the next; an error ends its run."""
        failed: Exception | None = None
        for turn in range(max(len(row.seeds) for row in rows)):
            for row in (row for row in rows if turn < len(row.seeds) and row in self.rows):
                seed, last = row.seeds[turn], turn == len(row.seeds) - 1
                try:
                    for event in replace(row.config, seed=seed).events():
                        yield row, seed, event
                        if row not in self.rows:
                            break  # deleted meanwhile
                except Exception as error:
                    failed, row.error = error, work.one_line(error)
                row.state = "failed" if row.error else "finished" if last else "running"
        if failed is not None:
            raise failed

    def pause(self) -> None:
        """Pauses after the local step under way."""
        if self.worker is not None and self.alive:
            self.worker.pause()

    def resume(self) -> None:
        """Goes on after a pause."""
        if self.worker is not None:
            self.worker.resume()

    def stop(self, wait: float | None = None) -> bool:
        """Ends after the local step under way; waits ``wait`` seconds; returns whether it ended."""
        return self.worker is None or not self.alive or self.worker.stop(wait)

    def clear(self) -> None:
        """Stops, and forgets every row that is not pinned."""
        self.stop(wait=5.0)
        self._forget([row for row in self.rows if not row.pinned])

    def reset(self) -> None:
        """Stops, forgets every row that is not pinned, and puts the knobs back."""
        self.clear()
        self.worker, self.config, self.follows, self.errors = None, self._first, True, {}
        self._setting = ""
        self.sweep = self._first_sweep
        if self._x is not None:
            self.send({"now": self._first_now})
        self._publish_values()
        self._publish(work.READY)

    def _forget(self, rows: Sequence[RunRow]) -> None:
        with self._lock:
            gone = {str(row.id) for row in rows}
            self.rows = [row for row in self.rows if row not in rows]
            self.texts = {key: text for key, text in self.texts.items() if key not in gone}
        self._publish()

    def change_row(self, id: int, **changes: Any) -> None:
        """Renames, shows, hides, pins or deletes a row of the table.

        Args: id: the row's; changes: name (""; its label again), shown, pinned, or deleted=True.
        """
        row = next(row for row in self.rows if row.id == id)
        if changes.pop("deleted", False):
            self._forget([row])
            return
        kinds = {"name": str, "shown": bool, "pinned": bool}
        for name, value in changes.items():
            check(name in kinds, "change", name, ", ".join(kinds))
            setattr(row, name, kinds[name](value))
        self._publish()

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

    @property
    def frame(self) -> "pd.DataFrame":
        """The tidy frame of all rows, with a first column ``run``: the row's label."""
        import pandas as pd

        labels = self.labels()
        parts = [part.assign(run=labels[row.id]) for row in self.rows for part in row.frames]
        if not parts:
            return pd.DataFrame()
        frame = pd.concat(parts, ignore_index=True)
        return frame[["run", *frame.columns.drop("run")]]

    def labels(self) -> dict[int, str]:
        """What each row is called, by its number."""
        parts = label_parts(self.rows, self.knobs)
        both = zip(self.rows, parts, strict=True)
        return {row.id: row.name or " ".join(words for _, words in some) for row, some in both}

    # What the thread reports

    def _handle(self, row: RunRow, seed: int, event: Any) -> None:
        row.state = "running"
        if hasattr(event, "metrics"):
            self._take(row, seed, event)
        else:
            self._ticks += 1
            assert self.worker is not None
            self._first_tick = self._first_tick or self.worker.seconds
        if time.monotonic() - self._said > 0.15:
            self._publish()

    def _take(self, row: RunRow, seed: int, record: "Round") -> None:
        """Keeps what is drawn of a record, and sends it."""
        from fedlora_lab.federated.records import to_frame

        measured = record.measures()
        point = {"round": float(record.index)}
        point |= {name: float(measured[name]) for name in (*row.config.task.metrics, *DRAWN)}
        row.points.setdefault(seed, []).append(point)
        if not record.index and self._first.task.public_test:  # of all test examples now
            self._start = point[self.measure]
            self.setup = {**self.setup, "start": self._start}
        row.frames.append(to_frame([record]))
        self.send({"points": [[row.id, seed, _json(point)]], **self._predicted(row, record)})

    def _predicted(self, row: RunRow, record: "Round") -> dict[str, Any]:
        """The classes now predicted for the test images, of a single run."""
        from fedlora_lab.federated.records import predict

        if self.setup["images"] is None or len(row.seeds) > 1 or row.swept:
            return {}
        assert self._x is not None
        now = predict(row.config.task, record, self._x).argmax(1).tolist()
        row.points[next(iter(row.points))][-1]["right"] = sum(map(int.__eq__, now, self._truth))
        self._now = now
        return {"now": now}

    def _send_row(self, row: RunRow) -> None:
        points = [[row.id, seed, _json(p)] for seed, some in row.points.items() for p in some]
        self.send({"points": points})

    def _enter(self, state: str) -> None:
        if state in work.OVER:
            for row in self.rows:
                if row.state in ("waiting", "running"):
                    row.state = "stopped"
            self._forget([row for row in self.rows if row.state == "stopped" and not row.points])
        self._publish(state)

    def _publish(self, state: str | None = None) -> None:
        """Writes the status, the table and the sentence."""
        with self._lock:
            self._said, worker = time.monotonic(), self.worker
            state = (work.READY if worker is None else worker.state) if state is None else state
            parts, rows = label_parts(self.rows, self.knobs), list(self.rows)
            self.table = [self._line(row, words) for row, words in zip(rows, parts, strict=True)]
            left = ""
            if state in (work.RUNNING, work.PAUSED) and self._ticks > 1 and worker is not None:
                each = (worker.seconds - self._first_tick) / (self._ticks - 1)
                left = f"{max(self._total - self._ticks, 0) * each:.0f} s left"
            preparing = state == work.RUNNING and not self._ticks
            error = worker.error if worker is not None and state == work.FAILED else ""
            self.status = {
                "state": "preparing" if preparing else state,
                "text": " · ".join(filter(None, ["preparing" if preparing else state, left])),
                "done": self._ticks if worker is not None else 0,
                "total": self._total,
                "error": error,
            }
            self.say = self._sentence()

    def _line(self, row: RunRow, parts: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """A row of the table as the page shows it."""
        measure, style = self.measure, look(row.config.method.slug)
        score, half = row.score(measure)
        text = format_number(score, infinite="∞")
        text += f" ± {format_number(half)}" if math.isfinite(half) else ""
        spent = [points[-1]["epsilon"] for points in row.points.values()]
        return {
            "id": row.id,
            "parts": parts,
            "label": row.name or " ".join(words for _, words in parts),
            "recipe": dict(row.recipe),
            "colour": style.colour,
            "shown": row.shown,
            "pinned": row.pinned,
            "named": bool(row.name),
            "state": row.state,
            "note": row.verdict(measure),
            "score": text,
            "spent": format_number(max(spent), 2, infinite="∞") if spent else "–",
            "swept": row.swept,
            "follows": row.follows,
        }

    # Words and pictures

    def _before(self) -> str:
        """Scores the model before training on some test examples; returns the measure's name."""
        task, (x, y) = self._first.task, self._first.task.test
        direct = [k for k, metric in task.metrics.items() if not isinstance(metric, TextScore)]
        measure = "accuracy" if "accuracy" in direct else direct[0]
        stacked = isinstance(x, torch.Tensor) and x.ndim == 3
        pictured = task.public_test and task.labels is not None and stacked
        some = slice(0, 512 if pictured else 64)  # the page comes within a second
        with torch.no_grad():
            outputs = task.forward(task.model, take(x, some))
        self._start = float(task.metrics[measure](outputs, y[some]).mean())
        self._x = x[:IMAGES_SHOWN] if pictured else None
        self._truth = y[:IMAGES_SHOWN].tolist() if pictured else []
        self._now = outputs[:IMAGES_SHOWN].argmax(1).tolist() if pictured else []
        return measure

    def _images(self) -> dict[str, Any] | None:
        """The first test images, where these may be looked at."""
        if self._x is None:
            return None
        pixels = (self._x.clamp(0, 1) * 255).to(torch.uint8).numpy()
        size = {"height": pixels.shape[1], "width": pixels.shape[2]}
        shown = {"pixels": b64encode(pixels.tobytes()).decode(), "truth": self._truth}
        self._first_now = self._now
        return {**size, **shown, "before": self._now}

    def _sentence(self) -> str:
        measure, config = self.measure, self.config
        begun = [row for row in self.rows if row.points]
        public = config.task.public_test or config.epsilon is None
        before = format_number(self._start if public else math.nan)
        if not begun:
            start = f"{config.method.name} trains on the data of {len(config.task.clients)} clients"
            return f"Press Start: {start}. Before training: {measure} {before}."
        row = begun[-1]
        if row.swept:
            return self._sweep_sentence(row)
        label, points = self.labels()[row.id], row.points[row.seeds[0]]
        last, rounds = points[-1], row.config.plan.rounds
        text = f"{label} after round {last['round']:.0f} of {rounds}: {measure}"
        text += f" {format_number(last[measure], infinite='∞')}"
        text += f" ({format_number(points[0][measure])} before)"
        if "right" in last:
            kinds = Counter(map(_change, self._truth, self._first_now, self._now))
            text += f"; of the {len(self._truth)} images {kinds['turned right']} turned right"
            text += f" and {kinds['turned wrong']} turned wrong"
        if note := row.verdict(measure) if row.state in ("finished", "stopped") else "":
            text += f"; {note}"
        trust = row.config.privacy.trust if row.config.epsilon is not None else None
        spent = format_number(last["epsilon"], 2, infinite="∞")
        return f"{text}. ε spent: {spent}{observer_phrase(trust)}."

    def _sweep_sentence(self, newest: RunRow) -> str:
        knob, measure = self.knobs[newest.swept], self.measure
        same = lambda row: _without(row, newest.swept) == _without(newest, newest.swept)  # noqa: E731
        rows = [row for row in self.rows if row.points and row.swept == newest.swept and same(row)]
        scores = []
        for row in rows:
            score, half = row.score(measure)
            wide = f" ± {half:.3f}" if math.isfinite(half) else ""
            if math.isfinite(score):
                scores.append(f"{row.recipe[knob.key]}: {score:.3f}{wide}")
        who = "" if newest.swept == "method" else f"{newest.config.method.name}, "
        start = format_number(self._start)
        text = f"{who}{measure} at the end ({start} before) against {knob.page['label']}: "
        text += "; ".join(scores) + "." if scores else "to come."
        low = [row.recipe[knob.key] for row in rows if "collapsed" in row.verdict(measure)]
        return text + (f" Collapsed runs at {', '.join(low)}." if low else "")


def _change(truth: int, before: int, now: int) -> str:
    """Classifies one example: "right", "wrong", "turned right" or "turned wrong"."""
    if now == truth:
        return "right" if before == truth else "turned right"
    return "turned wrong" if before == truth else "wrong"


def _without(row: RunRow, key: str) -> dict[str, str]:
    """Returns the recipe without a knob, seeds, and a rate that followed."""
    out = {key, "seed"} | ({"lr"} if row.follows else set())
    return {name: text for name, text in row.recipe.items() if name not in out}


def _json(point: Mapping[str, float]) -> dict[str, Any]:
    """Converts a point to JSON: infinity as a word, what was not measured as null."""
    return {
        name: None if math.isnan(v) else v if math.isfinite(v) else "inf" if v > 0 else "-inf"
        for name, v in point.items()
    }


def _settings_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{re.sub('_', ' ', key)} {text_of(value)}" for key, value in values.items())


def live(
    task: Task,
    *,
    method: "Method | str" = "rolora",
    epsilon: float | None = 8.0,
    plan: Plan | None = None,
    privacy: Privacy | None = None,
    lora: Any = None,
    seed: int = 0,
    presets: "Mapping[str, Mapping[str, Any]] | None" = None,
    sweep: "Mapping[str, Sequence[Any]] | None" = None,
) -> Workbench:
    """Makes a workbench for runs of a task: set them, watch them train, keep and compare them.

    A second workbench of the same task ends the first one's thread.

    Args:
        task: what is trained.
        method, epsilon, seed: chosen at first; an ``epsilon`` of ``None`` is no privacy.
        plan: the work; ``None``: the library's defaults with the learning rate suggested for
            method, ε and unit. Either way the rate follows these until the reader sets it.
        privacy: calibrated for the chosen ε and the plan that runs.
        lora: rank and alpha.
        presets: name -> knob -> value, settings to click beside those that are built in.
        sweep: knob -> values, what the sweep offers at first.

    Raises: ``ValueError`` for settings that no run could have.
    Guarantees: nothing is trained before Start; for the rest see `Workbench`.

    >>> import fedlora_lab as fl
    >>> run = fl.course.widgets.live(fl.tasks.regression(clients=2), method="ffa-lora", epsilon=4)
    >>> run.values["method"], run.values["epsilon"]
    ('ffa-lora', '4')
    >>> run.close()
    """
    row, base = methods.get(method), plan or Plan()
    first = RunConfig(task, row, base, drop_calibration(privacy), epsilon, lora_of(lora), seed)
    if plan is None:
        first = first.with_rate(first.suggestion().lr)
    return Workbench(first, presets, sweep)
