"""Predictions, and what exercises share with them: entries, words, and the reader's progress.

A prediction is a question that a reader answers before a figure and sees again after it.

Entries stand in the lessons' TOML files. Their words may hold code in backticks, mathematics
between dollars, and functions on lines of their own. Progress, which exercises were tried and
solved and what was predicted, is kept in one JSON file of the reader's (FEDLORA_PROGRESS, else
``fedlora_lab/progress.json`` in XDG_DATA_HOME or ~/.local/share) and sent nowhere.

>>> Prediction("99.a", "Does the loss fall?", ("yes", "no"), "a", "The step is small.")
Predict 99.a: Does the loss fall?
  a) yes
  b) no
"""

import json
import os
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from fedlora_lab._utils.files import lock_folder, parse_json, write_atomically
from fedlora_lab._utils.validation import check, check_one_of, error_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PREDICTION = re.compile(r"\d\d\.[a-z]")
"""Keys such as "02.a"; the key of an exercise is "02.1"."""


@cache
def entries() -> dict[str, tuple[str, dict[str, Any]]]:
    """Collects every entry of every lesson: key -> (folder of the lesson, entry)."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted(Path(__file__).parent.glob("lesson_*/exercises.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        found |= {key: (path.parent.name, entry) for key, entry in content.items()}
    return found


def split_code(text: str) -> list[tuple[bool, str]]:
    """Splits a text into prose and code, in their order: (whether it is code, its lines).

    Code is what stands between lines of three backticks, and a ``def`` with its indented lines.
    """
    parts: list[tuple[bool, list[str]]] = [(False, [])]
    lines, fenced, inside = text.splitlines(), False, False
    for i, line in enumerate(lines):
        if line.startswith("```"):
            fenced, inside = not fenced, False
            parts.append((fenced, []))
            continue
        starts = line.startswith("def ") and lines[i + 1 : i + 2] and lines[i + 1].startswith(" ")
        inside = not fenced and bool(starts or (inside and (not line or line.startswith(" "))))
        if parts[-1][0] != (fenced or inside):
            parts.append((fenced or inside, []))
        parts[-1][1].append(line)
    joined = [(code, "\n".join(lines).strip("\n")) for code, lines in parts]
    return [(code, part) for code, part in joined if part.strip()]


def unwrap(text: str) -> str:
    """Joins the lines of prose, which are wrapped in the file, and keeps those of code."""
    parts = []
    for code, part in split_code(text):
        fenced = code and not part.startswith("def ")
        prose = part if code else " ".join(part.split())
        parts.append(f"```\n{part}\n```" if fenced else prose)
    return "\n".join(parts)


def to_html(text: str) -> str:
    """Returns the text as paragraphs and blocks of code.

    Backticks become ``<code>``; mathematics stays between its dollars, for the page's MathJax.
    """

    def prose(part: str) -> str:
        # A dollar inside backticks is code, a backtick inside dollars mathematics.
        pieces = re.split(r"(\$\$.+?\$\$|\$[^$]+\$|`[^`]+`)", part)
        coded = (x.startswith("`") and x.endswith("`") and len(x) > 2 for x in pieces)
        return "".join(
            f"<code>{escape(x[1:-1])}</code>" if code else escape(x)
            for x, code in zip(pieces, coded, strict=True)
        )

    return "\n".join(
        f"<pre><code>{escape(part)}</code></pre>" if code else f"<p>{prose(part)}</p>"
        for code, part in split_code(text)
    )


SOLVED, TRIED = "solved", "tried"
# What this session has seen, by file: all that there is where the file cannot be written.
_session: dict[Path, dict[str, str]] = {}
_warned: set[Path] = set()


def progress_file() -> Path:
    """Returns the path of the file in which the reader's progress is kept."""
    if own := os.environ.get("FEDLORA_PROGRESS"):
        return Path(own).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "fedlora_lab" / "progress.json"


def _load(path: Path) -> dict[str, str]:
    """Reads a file of progress; raises ``ValueError`` for any other, ``OSError`` if unreadable."""
    if not path.exists():
        return {}
    if not path.is_file():
        raise ValueError(f"{path}: expected a file")
    found = parse_json(path.read_bytes(), str(path))
    words = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    if not words:
        raise ValueError(f"{path}: expected a file of progress")
    return found


def read_progress() -> dict[str, str]:
    """Reads the progress: key -> "tried" or "solved" of an exercise, or the predicted letter."""
    path = progress_file()
    try:
        kept = _load(path)
    except (OSError, ValueError):
        kept = {}
    return kept | _session.get(path, {})


def save_result(key: str, value: str) -> None:
    """Saves one result; a solved exercise stays solved.

    A file that cannot be written, or holds something else, is left alone: the result then counts
    in this session, and one line says so, once.

    Guarantees: test_progress_without_a_writable_file_is_one_line.
    """
    path = progress_file()
    value = SOLVED if read_progress().get(key) == SOLVED else value
    _session.setdefault(path, {})[key] = value
    try:
        with lock_folder(path.parent, f".{path.name}.lock", patience=2.0):
            kept = _load(path)
            if kept.get(key) != value:
                content = dict(sorted((kept | {key: value}).items()))
                write_atomically(path, json.dumps(content, indent=1) + "\n")
    except (OSError, ValueError) as error:
        if path not in _warned:
            _warned.add(path)
            reason = error_text(error)
            print(f"Your progress counts in this session only: it cannot be kept ({reason}).")


def progress() -> "pd.DataFrame":
    """Returns the reader's progress as a table, one row a lesson and one for all of them.

    It is read from a file on this computer (`progress_file`) and sent nowhere.

    >>> progress().columns.tolist()
    ['solved', 'tried', 'exercises', 'predicted right', 'predicted', 'predictions']
    """
    import pandas as pd

    found, rows = read_progress(), []
    for key, (_, entry) in entries().items():
        got, predicted = found.get(key), bool(PREDICTION.fullmatch(key))
        done = [got is not None and got == (entry["answer"] if predicted else SOLVED)]
        counts = [*done, got is not None, True]
        none = [False] * 3
        rows.append([key[:2], *(none + counts if predicted else counts + none)])
    names = ["solved", "tried", "exercises", "predicted right", "predicted", "predictions"]
    table = pd.DataFrame(rows, columns=["lesson", *names]).groupby("lesson").sum()
    table.loc["all"] = table.sum()
    return table.astype(int)


# Predictions

STRIP = 0.3  # inches that the note of a guess adds below a figure


@dataclass(frozen=True)
class Prediction:
    """One question with its options; shows itself with buttons that keep the reader's guess.

    Args:
        key: notebook and letter, such as "02.a".
        question, options: what is asked, and two to six answers.
        answer: the letter of what is measured.
        after: what most people get wrong, and why it is so.
    """

    key: str
    question: str
    options: tuple[str, ...]
    answer: str
    after: str

    def __post_init__(self) -> None:
        check(bool(PREDICTION.fullmatch(self.key)), "key", self.key, 'a key such as "02.a"')
        check(2 <= len(self.options) <= 6, "options", len(self.options), "two to six of them")
        check_one_of("answer", self.answer, self.letters)

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options."""
        return tuple(ascii_lowercase[: len(self.options)])

    @property
    def guess(self) -> str | None:
        """The letter that the reader chose, ``None`` for none yet."""
        kept = read_progress().get(self.key)
        return kept if kept in self.letters else None

    def option(self, letter: str) -> str:
        """Returns the words of an option, without a full stop."""
        return self.options[self.letters.index(letter)].rstrip(".")

    def choose(self, letter: str) -> None:
        """Saves a guess, as its button does."""
        check_one_of("letter", letter, self.letters)
        save_result(self.key, letter)

    def reveal(self, figure: Any = None) -> Any:
        """Says what was guessed and measured; see `fedlora_lab.course.exercises.reveal`."""
        guess, measured = self.guess, f"{self.answer}) {self.option(self.answer)}"
        if guess is None:
            start = f"You have not chosen an option in {self.key}. Measured: {measured}."
        elif guess == self.answer:
            start = f"You guessed {measured}. So it is."
        else:
            start = f"You guessed {guess}) {self.option(guess)}. Measured: {measured}."
        outcome = Outcome(f"{start} {self.after}", folded=guess is None)
        if figure is None:
            return outcome
        if guess is not None:
            verdict = "as measured" if guess == self.answer else f"measured: {self.answer}"
            _write_below(figure, f"your guess: {guess}, {verdict}", guess == self.answer)
        figure.below = outcome
        return figure

    def __repr__(self) -> str:
        lines = (f"  {letter}) {self.option(letter)}" for letter in self.letters)
        return "\n".join([f"Predict {self.key}: {self.question}", *lines])

    def _repr_html_(self) -> str:
        options = ((letter, _inline(self.option(letter))) for letter in self.letters)
        items = "\n".join(f"<li><b>{letter})</b> {words}</li>" for letter, words in options)
        return (
            f"<p><b>Predict {escape(self.key)}</b> · before you run the next cell</p>\n"
            f'{to_html(self.question)}\n<ul style="list-style: none">\n{items}\n</ul>'
        )

    def control(self) -> Any:
        """Makes the buttons, one for each option, and the sentence that a guess is kept."""
        import ipywidgets as w

        buttons: Any = w.ToggleButtons(
            options=self.letters,
            value=self.guess,
            description="Your guess",
            tooltips=[self.option(letter) for letter in self.letters],
            style={"button_width": "64px"},
        )
        sentence = text_box()

        def show_state(letter: str | None) -> None:
            kept = f"Your guess is kept: {letter}. You may change it until you run the next cell."
            set_text(sentence, "Nothing chosen yet." if letter is None else kept)

        def keep(change: Any) -> None:
            if change["new"] is not None:
                self.choose(change["new"])
            show_state(change["new"])

        show_state(self.guess)
        buttons.observe(keep, "value")
        return w.VBox([buttons, sentence])

    def _ipython_display_(self) -> None:
        # Two outputs: pages without a kernel keep the first and drop the buttons.
        from IPython.display import display

        display({"text/html": self._repr_html_(), "text/plain": repr(self)}, raw=True)
        display(self.control())


def text_box(lines: int = 1) -> Any:
    """Makes a place for text of fixed height."""
    import ipywidgets as w

    height = f"{22 * lines + 4}px"
    return w.HTML(layout=w.Layout(height=height, width="100%", overflow="hidden", margin="0"))


def set_text(place: Any, text: str, error: bool = False) -> None:
    """Puts escaped text into a `text_box`; it is read aloud.

    Args: place, text: what goes where; error: in an error's looks.
    """
    look, role = "color:var(--jp-content-font-color1,inherit)", "status"
    if error:
        look, role = "color:var(--jp-error-color1,#b3261e);font-weight:600", "alert"
    place.value = f'<div role="{role}" style="{look};line-height:22px">{escape(text)}</div>'


@dataclass(frozen=True)
class Outcome:
    """Words on a guess and the measured answer; folded away where nothing was guessed."""

    words: str
    folded: bool = False

    def __repr__(self) -> str:
        return self.words

    def _repr_html_(self) -> str:
        if not self.folded:
            return to_html(self.words)
        start, mark, rest = self.words.partition(" Measured: ")
        rest = to_html((mark + rest).strip())
        return f"<details><summary>{escape(start)}</summary>{rest}</details>"


def _inline(text: str) -> str:
    return to_html(text).removeprefix("<p>").removesuffix("</p>")


@cache
def all_predictions() -> dict[str, Prediction]:
    """Collects all predictions by key, in the order of the lessons."""
    found = {}
    for key, (_, entry) in entries().items():
        if PREDICTION.fullmatch(key):
            words = {name: unwrap(entry[name]) for name in ("question", "after")}
            options = tuple(map(unwrap, entry["options"]))
            found[key] = Prediction(key, options=options, answer=entry["answer"], **words)
    return found


def predict(key: str) -> Prediction:
    """Asks for a prediction: the question, its options, and a button for each of them.

    Args:
        key: such as "02.a".

    Guarantees: a guess is kept and shown again (test_a_guess_is_kept_and_revealed); the question
        stays on pages without a kernel (test_a_prediction_is_read_without_a_kernel).
    """
    check(key in all_predictions(), "key", key, "one of " + ", ".join(all_predictions()))
    return all_predictions()[key]


def reveal(key: str, figure: "Figure | None" = None) -> Any:
    """Says what was guessed, what was measured, and why it is so.

    Args:
        key: such as "02.a".
        figure: is returned, with a note of the guess in a strip below it if there was a guess; a
            `Picture` shows the sentence below itself.

    Guarantees: test_a_guess_is_kept_and_revealed, test_a_figure_carries_the_guess.
    """
    return predict(key).reveal(figure)


def _write_below(figure: "Figure", words: str, right: bool) -> None:
    """Adds a strip with these words below all that is drawn, which keeps its size."""
    from fedlora_lab.plots.style import RIGHT, WRONG, darken

    width, height = figure.get_size_inches()
    share = height / (height + STRIP)
    places = [(ax, ax.get_position(original=True)) for ax in figure.axes]
    figure.set_size_inches(width, height + STRIP)
    for ax, place in places:
        up = 1 - share + share * place.y0
        ax.set_position((place.x0, up, place.width, share * place.height))
    for text in figure.texts:
        text.set_y(1 - share + share * text.get_position()[1])
    colour = darken(RIGHT if right else WRONG)
    inks: Any = {"color": colour, "fontsize": 8.5, "weight": "bold", "va": "center"}
    figure.text(0.012, (1 - share) / 2, words, **inks)
