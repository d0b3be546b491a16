"""Predictions in a real JupyterLab, made as a reader makes them."""

from jupyter_lab import open_notebook

CELLS = {
    "setup": "import fedlora_course as course",
    "guess": 'course.exercises.predict("09.c")',
    "answer": 'course.exercises.reveal("09.c")',
}


def test_a_guess_is_made_with_the_keyboard_and_comes_back(browser, lab):
    """Question and options stand above the buttons; formulas are set."""
    with open_notebook(browser, lab, "guesses.ipynb", CELLS.values()) as notebook:
        output = notebook.run(list(CELLS).index("guess"))
        output.get_by_text("Nothing chosen yet.").wait_for()
        assert "by about a third" in output.inner_text()
        output.get_by_role("button", name="b", exact=True).focus()
        notebook.page.keyboard.press("Enter")
        output.get_by_text("Your guess is kept: b").wait_for()
        answer = notebook.run(list(CELLS).index("answer"))
        answer.get_by_text("You guessed b) FedEx-LoRA").wait_for()
        output.locator("mjx-container").first.wait_for()
        assert notebook.errors == []
