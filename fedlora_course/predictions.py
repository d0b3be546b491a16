"""Predictions: questions that a reader answers before a figure and sees again after it.

>>> Prediction("99.a", "Does the loss fall?", ("yes", "no"), "a", "The step is small.")
Predict 99.a: Does the loss fall?
  a) yes
  b) no
"""

from dataclasses import dataclass
from functools import cache
from html import escape
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

from fedlora_course.texts import PREDICTION_KEY, entries, inline_html, to_html, unwrap
from fedlora_lab._utils.environment import require
from fedlora_lab._utils.validation import check, check_one_of

if TYPE_CHECKING:
    from fedlora_lab.plots.style import Picture


_guesses: dict[str, str] = {}
"""Key -> the letter that the reader of this session chose."""


@dataclass(frozen=True)
class Prediction:
    """One question with its options; shows itself with buttons that keep the reader's guess.

    Args:
        key: notebook and letter, such as "02.a".
        question: what is asked.
        options: two to six answers.
        answer: the letter of what is measured.
        after: what most people get wrong, and why it is so.
    """

    key: str
    question: str
    options: tuple[str, ...]
    answer: str
    after: str

    def __post_init__(self) -> None:
        check(2 <= len(self.options) <= 6, "options", len(self.options), "two to six of them")
        check_one_of("answer", self.answer, self.letters)

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the options."""
        return tuple(ascii_lowercase[: len(self.options)])

    @property
    def guess(self) -> str | None:
        """The letter that the reader chose, ``None`` for none yet."""
        return _guesses.get(self.key)

    def option(self, letter: str) -> str:
        """Returns the words of an option, without a full stop."""
        return self.options[self.letters.index(letter)].rstrip(".")

    def choose(self, letter: str) -> None:
        """Keeps a guess until the session ends, as its button does."""
        check_one_of("letter", letter, self.letters)
        _guesses[self.key] = letter

    def outcome(self) -> "Outcome":
        """Says what was guessed and what was measured."""
        guess = self.guess
        measured = f"{self.answer}) {self.option(self.answer)}"
        if guess is None:
            start = f"You have not chosen an option in {self.key}. Measured: {measured}."
        elif guess == self.answer:
            start = f"You guessed {measured}. So it is."
        else:
            start = f"You guessed {guess}) {self.option(guess)}. Measured: {measured}."
        return Outcome(f"{start} {self.after}", folded=guess is None)

    def __repr__(self) -> str:
        lines = [f"  {letter}) {self.option(letter)}" for letter in self.letters]
        return "\n".join([f"Predict {self.key}: {self.question}", *lines])

    def _repr_html_(self) -> str:
        items = [
            f"<li><b>{letter})</b> {inline_html(self.option(letter))}</li>"
            for letter in self.letters
        ]
        return (
            f"<p><b>Predict {escape(self.key)}</b> · before you run the next cell</p>\n"
            f'{to_html(self.question)}\n<ul style="list-style: none">\n'
            + "\n".join(items)
            + "\n</ul>"
        )

    def control(self) -> Any:
        """Makes the buttons, one for each option, and the sentence that a guess is kept."""
        ipywidgets = require("ipywidgets", "lab")
        buttons = ipywidgets.ToggleButtons(
            options=self.letters,
            value=self.guess,
            description="Your guess",
            tooltips=[self.option(letter) for letter in self.letters],
            style={"button_width": "64px"},
        )
        sentence = ipywidgets.HTML()

        def show_state(letter: str | None) -> None:
            state = "Nothing chosen yet."
            if letter is not None:
                state = (
                    f"Your guess is kept: {letter}. You may change it until you run the next cell."
                )
            # The role lets screen readers say it when it changes.
            sentence.value = f'<div role="status">{state}</div>'

        def keep(change: Any) -> None:
            if change["new"] is not None:
                self.choose(change["new"])
            show_state(change["new"])

        show_state(self.guess)
        buttons.observe(keep, "value")
        return ipywidgets.VBox([buttons, sentence])

    def _ipython_display_(self) -> None:
        # Two outputs: pages without a kernel keep the first and drop the buttons.
        from IPython.display import display

        display({"text/html": self._repr_html_(), "text/plain": repr(self)}, raw=True)
        display(self.control())


@dataclass(frozen=True)
class Outcome:
    """Words on a guess and the measured answer; folded away where nothing was guessed."""

    text: str
    folded: bool = False

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        if not self.folded:
            return to_html(self.text)
        start, mark, measured = self.text.partition(" Measured: ")
        hidden = to_html((mark + measured).strip())
        return f"<details><summary>{escape(start)}</summary>{hidden}</details>"


@cache
def all_predictions() -> dict[str, Prediction]:
    """Collects all predictions by key, in the order of the lessons."""
    return {
        key: Prediction(
            key=key,
            question=unwrap(entry["question"]),
            options=tuple(map(unwrap, entry["options"])),
            answer=entry["answer"],
            after=unwrap(entry["after"]),
        )
        for key, (_, entry) in entries().items()
        if PREDICTION_KEY.fullmatch(key)
    }


def predict(key: str) -> Prediction:
    """Asks for a prediction: the question, its options, and a button for each of them.

    Args:
        key: such as "02.a".

    Guarantees: a guess is kept and shown again (test_a_guess_is_kept_and_revealed).
    """
    check(key in all_predictions(), "key", key, "one of " + ", ".join(all_predictions()))
    return all_predictions()[key]


def reveal(key: str, figure: "Picture | None" = None) -> "Outcome | Picture":
    """Says what was guessed, what was measured, and why it is so.

    Args:
        key: such as "02.a".
        figure: is returned, and shows the sentence below itself.

    Guarantees: test_a_guess_is_kept_and_revealed.
    """
    outcome = predict(key).outcome()
    if figure is None:
        return outcome
    figure.below = outcome
    return figure
