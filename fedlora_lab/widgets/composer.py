"""The composer: a method from its fields, which published one it is, and how it learns beside another."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedlora_lab import ingredients, methods, traits
from fedlora_lab.checks import check
from fedlora_lab.plan import Plan
from fedlora_lab.plots.composed import composed, refused
from fedlora_lab.plots.style import png
from fedlora_lab.privacy import Privacy
from fedlora_lab.summary import against, distance, fall, number
from fedlora_lab.tasks import Task
from fedlora_lab.tuning import Suggestion, rates, suggestion
from fedlora_lab.widgets import controls
from fedlora_lab.widgets.settings import EPSILONS, RATES, finite, limited
from fedlora_lab.widgets.training import CHANGED, Events, Training
from fedlora_lab.widgets.worker import one_line

if TYPE_CHECKING:
    from fedlora_lab.method import Method
    from fedlora_lab.record import Round

NAME = "my method"
LABELS = {
    "train": ("who moves", "rounds between bars, one word a local step"),
    "start": ("start", "what the factors are before training"),
    "aggregate": ("server", "what the server makes of the uploads"),
    "whiten": ("whitening", "shape of clip and noise, from the factor that rests"),
    "smooth": ("smoothing", "filter of noised values: it costs no privacy"),
    "share": ("sent", "what goes up of what moved"),
    "own_ranks": ("kept", "ranks that never leave their client"),
    "parts": ("clip", "what is clipped together"),
    "clips": ("clip on", "client unit: the change in a round, or the weights themselves"),
    "broadcast": ("received", "bits of a number that clients receive"),
}


@dataclass(frozen=True)
class Pair:
    """Two runs of one setting that take turns, round by round.

    Args: rates: slug -> learning rate. epsilon: to calibrate for; ``None``: no privacy.
    """

    task: Task
    rows: "tuple[Method, ...]"
    rates: Mapping[str, float]
    plan: Plan
    privacy: Privacy
    epsilon: float | None

    def events(self) -> "Iterator[tuple[str, Any]]":
        """(slug, tick or record)."""
        from fedlora_lab import loop  # slow to import

        noise = None
        if self.epsilon is not None:
            noise = self.privacy.calibrate(epsilon=self.epsilon, task=self.task, plan=self.plan)
        runs = {r.slug: loop.ticks(self.task, r, noise, self.plan.replace(lr=self.rates[r.slug])) for r in self.rows}
        while runs:
            for slug, run in list(runs.items()):
                for event in run:
                    yield slug, event
                    if hasattr(event, "metrics"):
                        break
                else:
                    del runs[slug]


class Composer(Training):
    """A method of one's own; see `method_composer`. ``row`` is what the controls make, ``None`` where it cannot be."""

    offered = ("start", "stop", "reset")

    def __init__(self, task: Task, plan: Plan, privacy: Privacy, start: float) -> None:
        super().__init__("composer", task.name)
        self.task, self.plan, self.privacy, self._start = task, plan, privacy, start
        self.row: Method | None = None
        self.records: dict[str, list[Round]] = {}
        self._touched, self._pair = False, None
        self._filling, self._lines, self._refusal, self._kin = False, [], "", ""
        rows = [(row.name, slug) for slug, row in (methods.ALL | methods.VARIANTS).items()]
        self.begin_from = controls.choice(
            "begin from", rows, "fedlora", "put the fields as a published method has them"
        )
        # A menu shows nothing where its value is None, so its values are the words.
        self._menus = {field: dict(options) for field, options in ingredients.offered().items()}
        words = {field: list(self._menus[field]) for field in LABELS}
        self.fields = {f: controls.choice(label, words[f], words[f][0], help) for f, (label, help) in LABELS.items()}
        self.baseline = controls.choice("beside", rows, "fedlora", "the method it trains beside")
        budgets = [(f"{value:g}", value) for value in EPSILONS] + [("∞ (no privacy)", math.inf)]
        self.epsilon = controls.choice("privacy ε", budgets, 8.0, "the promise, the same for both")
        known = {lr for rows in rates().get(task.name, {}).values() for found in rows.values() for lr in found.values()}
        ladder = sorted({*RATES, Plan().rate("B"), *known})
        self.lr = controls.steps(
            "learning rate", ladder, 0.3, "of the composed method; the other has its suggested one"
        )
        self.rounds = controls.slider("rounds", plan.rounds, 1, 30, 1, "how often the server averages")
        self.picture = controls.picture(940, 375, narrowest=controls.NARROW)
        self.says = controls.words(2)
        self._knobs = [*self.fields.values(), self.baseline, self.epsilon, self.lr, self.rounds]
        bar = controls.row(self.baseline, self.epsilon, self.lr, self.rounds, *self.buttons.values(), self.progress)
        self.children = [controls.row(self.begin_from, *self.fields.values()), self.says, controls.row(self.picture),
                         bar, self.status, self.sentence]  # fmt: skip
        self.begin_from.observe(lambda _: self._fill(), "value")
        self.lr.observe(lambda _: self._touch(), "value")
        for knob in self._knobs:
            knob.observe(lambda _: self._moved(), "value")
        self._first = [knob.value for knob in self._knobs]
        self.ready(first=True)

    def _moved(self) -> None:
        """A control has moved by itself, not as one of many."""
        if not self._filling:
            self.ready()

    def _touch(self) -> None:
        """The reader has set the learning rate: from now on it is kept."""
        self._touched = self._touched or not self._filling

    def _suggested(self, row: "Method") -> Suggestion:
        return suggestion(self.task, row, limited(self.epsilon.value), self.privacy.unit)

    def _rate(self, row: "Method") -> str:
        """Follow the suggestion for the row, unless the rate is the reader's own; words on where it comes from."""
        found = self._suggested(row)
        if self._touched:
            return f"learning rate {self.lr.value:g}, your own (suggested {found.lr:g}: {found.words})"
        before, self._filling = self._filling, True
        self.lr.value = found.lr
        self._filling = before
        return f"learning rate {found.lr:g}: {found.words}"

    def _fill(self) -> None:
        """Put the fields as the chosen row has them."""
        row, self._filling = methods.get(self.begin_from.value), True
        for field, knob in self.fields.items():
            knob.value = ingredients.said(field, getattr(row, field))
        self._filling = self._touched = False
        self.ready()

    def begin(self) -> tuple[Events, int]:
        """Both runs, from the start."""
        self.records = {}
        if self.row is None:
            return self._refuse, 1
        other = methods.get(self.baseline.value)
        plan = self.plan.replace(rounds=self.rounds.value)
        both = {self.row.slug: self.lr.value, other.slug: self._suggested(other).lr}
        self._pair = Pair(self.task, (other, self.row), both, plan, self.privacy, limited(self.epsilon.value))
        return self._pair.events, 2 * plan.rounds * plan.local_steps

    def _refuse(self) -> Iterator[Any]:
        raise ValueError(self._refusal)
        yield

    def keep(self, event: Any) -> bool:
        """Records are kept; the rest are ticks."""
        slug, what = event
        if is_record := hasattr(what, "metrics"):
            self.records = {**self.records, slug: [*self.records.get(slug, []), what]}
        return is_record

    def told(self) -> str:
        """The round that both have done."""
        done = min((len(found) for found in self.records.values()), default=1) - 1
        rounds = self.rounds.value if self._pair is None else self._pair.plan.rounds
        return f"round {max(done, 0)} of {rounds}"

    def planned(self) -> str:
        """Put the row together; the line says whether it can be."""
        since = bool(self.records)
        self.row, self._refusal, self.records, self._pair = None, "", {}, None
        try:
            chosen = {field: self._menus[field][knob.value] for field, knob in self.fields.items()}
            self.row = ingredients.compose(NAME, chosen)
            self._lines = traits.told(traits.traits(self.row))
        except Exception as error:
            self.row, self._refusal = None, one_line(error)
            controls.say(self.says, f"This cannot be: {self._refusal}", error=True)
            return "nothing to train"
        self._kin = traits.named(traits.identify(self.row))
        controls.say(self.says, self._kin)
        return f"{CHANGED if since else 'ready'} · {self._rate(self.row)}"

    def forget(self) -> None:
        """No runs, first settings."""
        self.records, self._filling, self._touched = {}, True, False
        self.begin_from.value = "fedlora"
        for knob, value in zip(self._knobs, self._first, strict=True):
            knob.value = value
        self._filling = False

    def lock(self, locked: bool) -> None:
        """Hold the controls while both train."""
        for knob in [self.begin_from, *self._knobs]:
            knob.disabled = locked
        if not locked and self.row is None:
            self.buttons["start"].disabled = True

    def wanted(self) -> Any:
        """The row, what is said of it, and the runs so far."""
        rounds = self.rounds.value if self._pair is None else self._pair.plan.rounds
        return self.row, tuple(self._lines), self._refusal, self.records, rounds

    def paint(self, wanted: Any) -> tuple[bytes, str]:
        """Score, properties, curves; and the sentence."""
        from fedlora_lab.record import to_frame

        row, lines, refusal, records, rounds = wanted
        if row is None:
            return png(refused(refusal, rounds=rounds, start=self._start)), "Change a field: these do not go together."
        frames = {slug: to_frame(found) for slug, found in records.items()}
        return png(composed(row, lines, frames, rounds=rounds, start=self._start)), self._words(row, records)

    def _words(self, row: "Method", records: "Mapping[str, list[Round]]") -> str:
        if len(records) < 2:
            return f"{traits.brief(traits.traits(row))} Press Start to train it."
        done = min(len(found) for found in records.values()) - 1
        parts = []
        for slug, found in records.items():
            one = found[done]
            name = row.name if slug == row.slug else methods.get(slug).name
            fell = fall("accuracy", self._start, one.metrics["accuracy"])
            told = f", {fell}" if fell else ""
            score = number(one.metrics["accuracy"])
            parts.append(f"{name} {score} (deviation {distance(one.deviation)}{told})")
        last = records[row.slug][done]
        spent = f"{finite(last.epsilon)}{against(last.ledger.trust if last.ledger else None)}"
        return f"After round {done}: {', '.join(parts)}; {self._start:.3f} before training. ε spent: {spent}. One seed."

    def show(self, painted: tuple[bytes, str]) -> None:
        """Figure and sentence."""
        self.picture.value, text = painted
        controls.say(self.sentence, text)


def method_composer(task: Task | None = None, *, plan: Plan | None = None, privacy: Privacy | None = None) -> Composer:
    """Put a method together from its fields: its score, which published one it is, what it promises; and train it.

    Args:
        task: with the metric "accuracy"; ``None``: digits, five clients.
        plan, privacy: the rest of the setting; ``privacy`` is calibrated for the chosen ε.

    A second one of the same task ends the first one's thread.

    Raises: ``ValueError`` for a task without accuracy, or whose test examples are not public.
    Guarantees: nothing is trained before Start; Stop ends within one local step (test_composer.py::test_it_stops);
        fields that make no method are told in one line (test_composer.py::test_what_cannot_be_is_one_line).
    """
    from fedlora_lab import tasks
    from fedlora_lab.widgets.bout import Bout

    task = tasks.digits(clients=5, alpha=0.5, seed=0) if task is None else task
    check(isinstance(task, Task) and "accuracy" in task.metrics, "task", task, "a task with accuracy")
    check(task.public_test, "public_test", False, "True: what is shown are scores on test examples")
    plan = plan or Plan(rounds=10, lr=0.3)
    open_ = (privacy or Privacy(delta=1e-4)).replace(noise_multiplier=None, sample_rate=None, target=None)
    return Composer(task, plan, open_, Bout(task, {}, plan, open_, 1).start())
