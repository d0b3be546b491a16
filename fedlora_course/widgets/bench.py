"""The live bench: two methods side by side, trained at one learning rate or swept over many.

Python trains in the background; `bench.js` draws in the browser.
"""

import math
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

import fedlora_lab as fl
from fedlora_course.drawing import on_screen
from fedlora_course.widgets.dial import widget_module
from fedlora_course.widgets.recipe import (
    Recipe,
    Values,
    first_values,
    forecast,
    knobs,
    recipe_of,
    text_of,
)
from fedlora_lab import methods
from fedlora_lab._utils.validation import check, error_text
from fedlora_lab.methods.plan import lora_of
from fedlora_lab.plots.style import look
from fedlora_lab.report import epsilon_text
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from fedlora_lab.federated.records import Round
    from fedlora_lab.methods.method import Method

SAY_EVERY = 0.2  # seconds between two messages on the progress of a run
RATES = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
_OPEN: "weakref.WeakValueDictionary[str, Workbench]" = weakref.WeakValueDictionary()


@dataclass(eq=False)
class Row:
    """The runs of one recipe, a seed each; the recipe never changes.

    Args:
        id: its number.
        values: the knobs when it was started, its own method and learning rate among them.
        recipe: what is trained.
        sweep: number of the first row of its sweep; ``None``: it was trained alone.
        state: "waiting", "running", "finished" or what ended it.
        records: seed -> (round, score, epsilon spent) after every round.
        parts: shares of the product's energy after the last round, see `parts_of`.
    """

    id: int
    values: Values
    recipe: Recipe
    sweep: int | None
    state: str = "waiting"
    records: dict[int, list[tuple[int, float, float]]] = field(default_factory=dict)
    parts: tuple[float, ...] = ()

    def series(self) -> list[list[float | None]]:
        """Returns (round, mean, low, high) of the scores so far; JSON has no NaN."""
        longest = max(self.records.values(), key=len, default=[])
        drawn = []
        for t, (index, _, _) in enumerate(longest):
            scores = [records[t][1] for records in self.records.values() if t < len(records)]
            mean, half = fl.measures.t_interval(np.array(scores))
            numbers = [mean, mean - half, mean + half]
            drawn.append([index, *(x if math.isfinite(x) else None for x in numbers)])
        return drawn

    @property
    def epsilon(self) -> str:
        """What was spent so far, the most of its seeds."""
        spent = [records[-1][2] for records in self.records.values()]
        return epsilon_text(max(spent), "∞") if spent else "–"


def parts_of(record: "Round") -> tuple[float, ...]:
    """Splits the energy of the trained product by where it comes from.

    Returns: the shares of noise on B, of noise on B times noise on A, both expected before the run,
        and of everything else: what was learned, and the noise on A that meets it. Empty where the
        noise is not known before a run.
    """
    energies = record.layers.pivot(index="layer", columns="measure", values="value")
    on_b = float(energies["accumulated_linear"].sum())
    on_both = float(energies["accumulated_quadratic"].sum())
    whole = max(float(energies["norm"].pow(2).sum()), on_b + on_both)
    if not whole or not math.isfinite(whole):
        return ()
    return on_b / whole, on_both / whole, 1 - (on_b + on_both) / whole


class Workbench(anywidget.AnyWidget):
    """Trains two methods beside each other; ``values`` are the knobs, as in the browser.

    Guarantees: a row keeps the recipe it was started with (test_a_row_keeps_its_own_recipe); stop,
        and a newer workbench of the task, end a run within one round
        (test_a_sweep_ends_with_stop_and_with_a_new_workbench); an error ends its own row
        (test_an_error_is_one_line_of_its_row). Of test examples that are not public a private run
        shows no score (test_the_bench_shows_nothing_of_private_test_examples).
    """

    setup = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)
    facts = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict({"text": "ready", "share": 0.0, "alive": False}).tag(sync=True)
    table = traitlets.List().tag(sync=True)

    def __init__(
        self, first: Recipe, beside: str, epsilon: float | None, seed: int, rates: Sequence[float]
    ) -> None:
        self._first = first
        self._seed = seed
        self._rates = [text_of(float(rate)) for rate in rates]
        # A row of the reader's own stands first.
        self.methods = {first.method.slug: first.method, **methods.ALL}
        self.rows: list[Row] = []
        self._count = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = 0.0
        self._measure = "accuracy"
        if self._measure not in first.task.metrics:
            self._measure = next(iter(first.task.metrics))
        values = first_values(first, beside, epsilon)
        recipe_of(first, values, first.method, float(values["lr"]))
        self.add_traits(_esm=traitlets.Unicode(widget_module("bench")).tag(sync=True))
        slugs = {row.slug: on_screen(look(row.slug).colour) for row in self.methods.values()}
        # Opened with what its page is made of: a notebook may show it before it hears of changes.
        super().__init__(
            setup={
                "knobs": knobs(values, self.methods),
                "measure": self._measure,
                "rates": self._rates,
                "colours": slugs,
                "names": {slug: row.name for slug, row in self.methods.items()},
            },
            values=values,
        )
        self.observe(lambda change: self._foresee(), "values")
        self._foresee()
        self.on_msg(lambda _, message, buffers: self.act(**message))
        older = _OPEN.get(first.task.name)
        if older is not None:
            older.stop(wait=5.0)
        _OPEN[first.task.name] = self

    def __repr__(self) -> str:
        return f"Bench for runs of {self._first.task.name}: run this cell to turn it."

    # What is known before a run

    def _foresee(self) -> None:
        values = dict(self.values)
        self.facts = {**self.facts, "stale": True}
        self._foreseer = threading.Thread(target=self._show_forecasts, args=(values,), daemon=True)
        self._foreseer.start()

    def _show_forecasts(self, values: Values) -> None:
        if values != self.values:  # turned on meanwhile
            return
        facts: dict[str, Any] = {"methods": [], "problem": ""}
        try:
            for recipe in self._recipes(values, [values["lr"]]):
                known = forecast(recipe)
                facts["methods"].append({"slug": recipe.method.slug, "known": known})
        except ValueError as error:
            facts["problem"] = error_text(error)
        if values == self.values:
            self.facts = facts

    def _recipes(self, values: Values, rates: Sequence[str]) -> list[Recipe]:
        """The recipes of both methods at some rates, one after the other at each rate."""
        chosen = dict.fromkeys(slug for slug in (values["method"], values["beside"]) if slug)
        return [
            recipe_of(self._first, values, self.methods[slug], float(rate))
            for rate in rates
            for slug in chosen
        ]

    # What the reader does

    def act(self, do: str, **given: Any) -> None:
        """Does what a message from the page asks for; a mistake is one line in the status.

        Args: do: "train", "sweep", "stop" or "forget"; given: its arguments.
        """
        try:
            {"train": self.train, "sweep": self.sweep, "stop": self.stop, "forget": self.forget}[
                do
            ](**given)
        except ValueError as error:
            self.status = {**self.status, "text": error_text(error)}

    def train(self) -> None:
        """Trains the methods with the settings shown, a row for each."""
        self._start(self._recipes(self.values, [self.values["lr"]]), None)

    def sweep(self) -> None:
        """Trains the methods at every rate of the sweep."""
        self._start(self._recipes(self.values, self._rates), self._count)

    def _start(self, recipes: Sequence[Recipe], sweep: int | None) -> None:
        check(not self.alive, "train", "a run is under way", "Stop first")
        rows = []
        for recipe in recipes:
            lr = text_of(float(recipe.plan.rate("B")))
            own = {**self.values, "method": recipe.method.slug, "lr": lr}
            rows.append(Row(self._count, own, recipe, sweep))
            self._count += 1
        self.rows = [*self.rows, *rows]
        self._stop = threading.Event()
        seeds = range(self._seed, self._seed + int(self.values["seeds"]))
        arguments = (rows, seeds, self._stop)
        self._thread = threading.Thread(target=self._train, args=arguments, daemon=True)
        self._thread.start()

    def _train(self, rows: Sequence[Row], seeds: Sequence[int], stop: threading.Event) -> None:
        """Trains one run after the other; an error ends its row alone."""
        planned = sum(row.recipe.plan.rounds + 1 for row in rows) * len(seeds)
        begun = time.monotonic()
        done = 0
        for row in rows:
            row.state = "running"
            task, method, privacy, plan, lora = row.recipe
            try:
                for seed in seeds:
                    for record in fl.run(task, method, privacy, plan, lora=lora, seed=seed):
                        if stop.is_set() or row not in self.rows:
                            break
                        point = record.index, record.metrics[self._measure], record.epsilon
                        row.records.setdefault(seed, []).append(point)
                        if record.index:
                            row.parts = parts_of(record)
                        done += 1
                        left = (time.monotonic() - begun) / done * (planned - done)
                        self._publish(f"training · {left:.0f} s left", done / planned, alive=True)
                row.state = "stopped" if stop.is_set() else "finished"
            except Exception as error:
                row.state = f"{type(error).__name__}: {error_text(error)}"
        self.rows = [row for row in self.rows if row.records or row.state != "stopped"]
        self._said = 0.0
        self._publish("stopped" if stop.is_set() else "finished", 1.0, alive=False)

    def _publish(self, text: str, share: float, alive: bool) -> None:
        if time.monotonic() - self._said < SAY_EVERY:
            return
        self._said = time.monotonic()
        self.table = [self._shown(row) for row in self.rows if row.state != "waiting"]
        self.status = {"text": text, "share": share, "alive": alive}

    def _shown(self, row: Row) -> dict[str, Any]:
        return {
            "id": row.id,
            "values": row.values,
            "sweep": row.sweep,
            "state": row.state,
            "series": row.series(),
            "epsilon": row.epsilon,
            "parts": row.parts,
        }

    def stop(self, wait: float = 0.0) -> None:
        """Ends after the round under way, and waits for it for ``wait`` seconds."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(wait)

    def forget(self, id: int | None = None) -> None:
        """Takes a row out of the table, or all of them; one that is trained ends."""
        self.rows = [row for row in self.rows if id is not None and row.id != id]
        self.table = [shown for shown in self.table if id is not None and shown["id"] != id]

    @property
    def alive(self) -> bool:
        """Whether a run is under way."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Ends the run and takes the widget down."""
        self.stop(wait=5.0)
        super().close()


def live(
    task: Task,
    *,
    method: "Method | str" = "fedlora",
    beside: str = "ffa-lora",
    epsilon: float | None = 8.0,
    plan: fl.Plan | None = None,
    privacy: fl.Privacy | None = None,
    lora: "fl.Lora | Mapping[str, Any] | None" = None,
    seed: int = 0,
    rates: Sequence[float] = RATES,
) -> Workbench:
    """Makes a bench on which two methods train side by side, at one rate or swept over many.

    A second bench of the same task ends the runs of the first.

    Args:
        task: what is trained.
        method, beside: the two methods at first; an empty ``beside``: one alone.
        epsilon: at first; ``None``: without clip and noise.
        plan: the work.
        privacy: calibrated for ε and the plan that runs.
        lora: rank and alpha.
        seed: of the first run of each row.
        rates: learning rates of the sweep.

    Raises: ``ValueError`` for settings that no run could have.
    Guarantees: nothing is trained before a button is pressed; for the rest see `Workbench`.

    >>> import fedlora_course as course
    >>> import fedlora_lab as fl
    >>> bench = course.widgets.live(fl.tasks.regression(clients=2), epsilon=4)
    >>> bench.values["method"], bench.values["beside"], bench.values["epsilon"]
    ('fedlora', 'ffa-lora', '4')
    >>> bench.close()
    """
    # Without what a calibration for another ε set.
    plain = (privacy or fl.Privacy()).replace(
        noise_multiplier=None, sample_rate=None, target_epsilon=None
    )
    first = Recipe(task, methods.get(method), plain, plan or fl.Plan(), lora_of(lora))
    return Workbench(first, beside, epsilon, seed, rates)
