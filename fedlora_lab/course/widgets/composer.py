"""The method composer: build a method from its fields, see what it promises, train it."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as w

from fedlora_lab import methods, tasks
from fedlora_lab._utils.validation import check
from fedlora_lab.course.widgets.background_worker import LatestOnly, one_line
from fedlora_lab.course.widgets.live_run import Workbench
from fedlora_lab.course.widgets.run_config import RunConfig, drop_calibration
from fedlora_lab.experiments import method_guide
from fedlora_lab.federated import dry_run
from fedlora_lab.methods.plan import Plan
from fedlora_lab.plots import style
from fedlora_lab.plots.method_diagrams import draw_diagram
from fedlora_lab.privacy.config import Privacy
from fedlora_lab.tasks.task import Task

if TYPE_CHECKING:
    from fedlora_lab.methods.method import Method

# ---- menus, and places for text and pictures that keep their size

STYLE = {"description_width": "92px"}
WIDE = "272px"
NARROW = 480  # pixels down to which a picture shrinks with the page


def menu(label: str, options: Sequence[Any], value: Any, help: str = "") -> Any:
    """Makes a menu.

    Args: label, help: its label and tooltip; options: values or (text, value); value: at first.
    """
    look: Any = {"tooltip": help or label, "style": STYLE, "layout": w.Layout(width=WIDE)}
    return w.Dropdown(options=list(options), value=value, description=label, **look)


def image_box(width: int, height: int) -> Any:
    """Makes a place for a picture that keeps its size, in pixels, whatever is drawn into it."""
    low = f"{min(width, NARROW)}px"
    size = {"min_width": low, "max_width": f"{width}px", "min_height": f"{height}px"}
    return w.HTML(layout=w.Layout(flex=f"1 1 {low}", **size))


def set_image(place: Any, png: bytes, words: str, beside: str) -> None:
    """Puts a picture into an `image_box`, and HTML beside it, below it on a narrow page.

    Args: place, png: what goes where; words: for those who do not see it; beside: the HTML.
    """
    source = f"data:image/png;base64,{b64encode(png).decode()}"
    image = f'<img alt="{escape(words)}" src="{source}" style="width:480px;max-width:100%">'
    look = "display:flex;flex-wrap:wrap;gap:6px 18px;align-items:center"
    place.value = f'<div style="{look}">{image}{beside}</div>'


def text_box(lines: int = 1) -> Any:
    """Makes a place for text of fixed height."""
    height = f"{22 * lines + 4}px"
    return w.HTML(layout=w.Layout(height=height, width="100%", overflow="hidden", margin="0"))


def flex_row(*parts: Any) -> Any:
    """Puts parts side by side, on further lines where the page is narrow."""
    return w.HBox(parts, layout=w.Layout(flex_flow="row wrap", align_items="flex-start"))


def set_text(place: Any, text: str, error: bool = False) -> None:
    """Puts escaped text into a `text_box`; it is read aloud.

    Args: place, text: what goes where; error: in an error's looks.
    """
    look, role = "color:var(--jp-content-font-color1,inherit)", "status"
    if error:
        look, role = "color:var(--jp-error-color1,#b3261e);font-weight:600", "alert"
    place.value = f'<div role="{role}" style="{look};line-height:22px">{escape(text)}</div>'


# ---- the composer

NAME = "my method"
LABELS = {
    "train": ("who moves", "one part for each round, between bars; one word for each local step"),
    "start": ("start", "what the factors are before training"),
    "balance": (
        "size of A",
        "A starts larger, the scale is less: what noise may add to A's energy",
    ),
    "aggregate": ("server", "what the server makes of the uploads"),
    "precondition": ("whitening", "shape of clip and noise, from the other factor"),
    "filter": ("smoothing", "filter of noised values: it costs no privacy"),
    "share": ("what is sent", "what goes up of what moved"),
    "own_ranks": ("private ranks", "ranks that never leave their client"),
    "clip_groups": ("clip", "what is clipped together"),
    "clip_reference": ("clip on", "client unit: the change in a round, or the weights themselves"),
    "broadcast": ("broadcast", "bits of a number that clients receive"),
}
"""Field of a method -> label and tooltip of its menu."""

INTRODUCTION = (
    "Build a method from its parts. What does it promise, and does it learn better than others?"
)
SHARP = 2  # pixels of the file to one of the page, for screens of twice the usual sharpness


def composer_figure(row: "Method | None") -> style.Picture:
    """Draws a method's diagram, or says that the fields make none.

    Args:
        row: the method; ``None`` where the fields make none.
    """
    with style.paper():
        figure = style.picture(4.8, 2.3)
        figure.set_dpi(SHARP * style.DPI)
        if row is None:
            bold: Any = {"fontsize": 11.5, "weight": "bold", "color": style.WRONG}
            figure.text(0.04, 0.5, "No valid method", **bold)
        else:
            draw_diagram(figure.add_axes((0.01, 0.03, 0.98, 0.94)), row, 2, 4)
    return figure


def properties(lines: Sequence[tuple[str, str]]) -> str:
    """Writes a method's properties as a list in HTML.

    Args:
        lines: (sign, words), one a property, see `dry_run.describe`; for no method one reason.
    """
    items = (
        f'<div style="display:flex;gap:8px"><b style="flex:0 0 1.2em;text-align:center">'
        f"{escape(sign)}</b><span>{escape(words)}</span></div>"
        for sign, words in lines
    )
    look = "color:var(--jp-content-font-color1,inherit);font-size:14px;line-height:20px"
    size = "flex:1 1 300px;min-height:160px;display:grid;gap:8px;align-content:center"
    return f'<div style="{look};{size}">{"".join(items)}</div>'


class MethodComposer(w.VBox):
    """The composer of a task: ``row`` is what the fields make, ``None`` if they make no method.

    ``bench`` trains it, beside any published method.
    """

    def __init__(self, first: RunConfig) -> None:
        super().__init__()
        self._drawing = LatestOnly(self._draw, self._show, self._fail, rest=0.05)
        self.row: Method | None = None
        self._lines: list[tuple[str, str]] = []
        published = [(row.name, slug) for slug, row in (methods.ALL | methods.VARIANTS).items()]
        fill = "put the fields as a published method has them"
        self.begin_from = menu("begin from", published, "fedlora", fill)
        # A menu shows nothing where its value is None, so its values are the words.
        choices = method_guide.field_choices()
        self._menus = {field: dict(options) for field, options in choices.items()}
        self.fields = {
            field: menu(label, words := list(self._menus[field]), words[0], help)
            for field, (label, help) in LABELS.items()
        }
        mine = methods.FedLoRA.replace(name=NAME)
        beside = {"method": [mine.slug, "fedlora", "ffa-lora"]}
        self.bench = Workbench(first, sweep=beside, title="composer")
        self.picture = image_box(940, 230)
        self.says, self.sentence = text_box(2), text_box(1)
        self._fill()
        self.begin_from.observe(lambda _: self._fill(), "value")
        for knob in self.fields.values():
            knob.observe(lambda _: self._compose(), "value")
        fields = flex_row(self.begin_from, *self.fields.values())
        picture = flex_row(self.picture)
        lead = w.HTML(f"<b>{escape(INTRODUCTION)}</b>")
        self.children = [lead, fields, self.says, picture, self.sentence, self.bench]

    def __repr__(self) -> str:
        return f"Method composer for {self.bench.config.task.name}"

    def _fill(self) -> None:
        """Sets the fields to those of the chosen method."""
        row = methods.get(self.begin_from.value)
        self._filling = True
        for field, knob in self.fields.items():
            knob.value = method_guide.describe_value(field, getattr(row, field))
        self._filling = False
        self._compose()

    def _compose(self) -> None:
        """Makes the method that the fields say, and offers it to the workbench."""
        if self._filling:
            return
        try:
            chosen = {field: self._menus[field][knob.value] for field, knob in self.fields.items()}
            self.row = row = method_guide.compose(NAME, chosen)
            self._lines = dry_run.describe(dry_run.traits(row))
        except Exception as error:
            self.row, self._lines = None, [("!", one_line(error))]
            set_text(self.says, f"No valid method: {one_line(error)}", error=True)
            self.bench.refuse("method", one_line(error))
        else:
            set_text(self.says, dry_run.describe_closest(dry_run.identify(row)))
            self.bench.methods[row.slug] = row
            self.bench.set(method=row.slug)
        self._drawing.request((self.row, self._lines))

    def _draw(self, wanted: Any) -> tuple[bytes, str, str]:
        row, lines = wanted
        text = "These fields do not fit together."
        if row is not None:
            text = "Press Start to train it, or Sweep to train it beside published methods."
        return style.png(composer_figure(row)), properties(lines), text

    def _show(self, drawn: tuple[bytes, str, str]) -> None:
        picture, beside, text = drawn
        set_image(self.picture, picture, "diagram of the method", beside)
        set_text(self.sentence, text)

    def _fail(self, line: str) -> None:
        set_text(self.sentence, line, error=True)

    def settle(self, wait: float = 10.0) -> bool:
        """Waits until the page shows all that was to be drawn; returns whether it does."""
        return self._drawing.settle(wait)

    def close(self) -> None:
        """Ends the threads and takes the widget down."""
        self.bench.close()
        self._drawing.close()
        super().close()


def method_composer(
    task: Task | None = None, *, plan: Plan | None = None, privacy: Privacy | None = None
) -> MethodComposer:
    """Builds a method from its fields: says which published one it is and what it promises.

    A workbench below trains it, beside any published method. A second composer of the same task
    ends the first one's thread.

    Args:
        task: with the metric "accuracy"; ``None``: digits, five clients.
        plan: of the runs at first.
        privacy: calibrated for the chosen ε.

    Raises: ``ValueError`` for a task without accuracy, or whose test examples are not public.
    Guarantees: fields that make no method get one line
        (test_composer.py::test_fields_that_make_no_method_are_one_line); the rest: `Workbench`.
    """
    task = tasks.digits(clients=5, alpha=0.5, seed=0) if task is None else task
    scored = isinstance(task, Task) and "accuracy" in task.metrics
    check(scored, "task", task, "a task with accuracy")
    check(task.public_test, "public_test", False, "True: what is shown are scores on test examples")
    plan, privacy = plan or Plan(rounds=10, lr=0.3), privacy or Privacy(delta=1e-4)
    mine = methods.FedLoRA.replace(name=NAME)
    return MethodComposer(RunConfig(task, mine, plan, drop_calibration(privacy), 8.0))
