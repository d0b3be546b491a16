"""Widgets in a real JupyterLab, driven as a reader drives them: one notebook holds all of them."""

import re

import pytest
from dial_cases import SETUP, turn
from jupyter_lab import (
    THEMES,
    Page,
    accessibility_faults,
    cut_off,
    faintest_line,
    served_notebook,
)

CELLS = {
    "setup": SETUP,
    "guess": 'course.exercises.predict("09.c")',
    "answer": 'course.exercises.reveal("09.c")',
    "dial": "dial = course.lesson(2).deviation_explorer(); dial",
    "values": "print(dial.values['together'])",
    "picture": "dial.picture()",
    "playground": "course.widgets.playground()",
    "task": """
task = fl.tasks.digits(clients=3, seed=1)
plan = fl.Plan(rounds=3, local_steps=2, batch=8, lr=0.2)
privacy = fl.Privacy(delta=1e-4)
""",
    "bench": "course.widgets.live(task, plan=plan, privacy=privacy, rates=(0.1, 0.2, 1.6))",
}


@pytest.fixture(scope="module")
def notebook(browser, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    with served_notebook(folder, [cell.strip() for cell in CELLS.values()]) as address:
        notebook = Page(browser, address, CELLS)
        notebook.run("setup")
        yield notebook
        notebook.page.close()
        assert notebook.errors == []


def test_a_guess_is_made_with_the_keyboard_and_comes_back(notebook):
    """Question and options stand above the buttons; formulas are set."""
    output = notebook.run("guess")
    output.get_by_text("Nothing chosen yet.").wait_for()
    assert "by about a third" in output.inner_text()
    output.get_by_role("button", name="b", exact=True).focus()
    notebook.page.keyboard.press("Enter")
    output.get_by_text("Your guess is kept: b").wait_for()
    answer = notebook.run("answer")
    answer.get_by_text("You guessed b) FedEx-LoRA").wait_for()
    output.locator("mjx-container").first.wait_for()


@pytest.mark.further
def test_a_dial_turns_in_jupyter(notebook):
    """Nothing jumps, the kernel hears of it, and a figure follows the theme. How dials turn, and
    that none sticks out: test_dial_pages.py."""
    output = notebook.run("dial")
    output.locator(".fl-dial svg").first.wait_for()
    notebook.page.wait_for_timeout(300)
    notebook.watch_layout()
    turn(output)
    assert notebook.jumps() == []
    assert notebook.run("values").inner_text().strip() == "1"
    figure = notebook.run("picture").locator("img.fl-figure")
    for theme in THEMES:
        notebook.dress(theme, 1024)
        turned = figure.evaluate("e => getComputedStyle(e).filter")
        assert turned.startswith("invert(0.93)" if theme == "Dark" else "none")


def test_the_playground_trains_in_jupyter_and_follows_its_theme(notebook):
    output = notebook.run("playground")
    output.locator("[data-words=rate]", has_text="1.6").wait_for()
    output.locator("[data-do=play]").click()
    output.locator("[data-round]").filter(has_text=re.compile(r"^[3-9] /")).wait_for()
    output.locator("[data-do=play]").click()
    for theme in THEMES:
        notebook.dress(theme, 1280)
        output.locator(f".fl-playground[data-ground={theme.lower()}]").wait_for()


PLACES = """all => all.map(e => (e.getAttribute("points") ?? e.getAttribute("d"))
    .match(/[\\d.]+,/g).map(parseFloat))"""


def press(output, deed, rows):
    output.locator(f"[data-do={deed}]").first.click()
    output.locator("td [data-label]").nth(rows - 1).wait_for()
    output.locator(".act .state").filter(has_text="finished").wait_for()


def test_a_reader_trains_two_methods_and_sweeps(notebook):
    """Knob and curve stand on one screen; a sweep stands over its numbers, and no single run on its
    line. One seed has no band.
    """
    notebook.run("task")
    notebook.dress("Light", 1440, 900)
    output = notebook.run("bench")
    output.locator(".known b").first.wait_for()
    notebook.page.wait_for_timeout(300)
    notebook.watch_layout()
    press(output, "train", 2)
    labels = output.locator("td [data-label]")
    assert labels.all_inner_texts() == ["FedLoRA", "FFA-LoRA"]
    assert output.locator(".fl-bench svg polyline").count() == 3, "two curves, and the start"
    assert output.locator("td .parts").count() == 2
    shares = output.locator("td .parts").first.get_attribute("aria-label")
    assert re.match(r"noise on B \d+ %, noise × noise \d+ %, what was learned", shares)

    press(output, "sweep", 8)
    lines = [
        x for x in output.locator(".fl-bench svg polyline").evaluate_all(PLACES) if len(x) == 3
    ]
    assert len(lines) == 2
    for line in lines:
        octave = line[1] - line[0]
        assert line[2] - line[1] == pytest.approx(3 * octave, abs=0.5)
    assert output.locator(".fl-bench svg polygon").count() == 0
    dots = output.locator(".fl-bench svg path[d*=h0]").evaluate_all(PLACES)
    assert {len(places) for places in dots} == {1, 3}, "of the runs alone, and of the sweep"
    box = output.locator(".fl-bench").bounding_box()
    panel = notebook.page.locator(".jp-WindowedPanel-outer").first.bounding_box()
    assert box["height"] < panel["height"] <= 779
    assert notebook.jumps() == []
    output.locator("summary").first.click()
    knob = output.locator("[data-knob=seeds]").bounding_box()
    figure = output.locator(".fl-bench svg").bounding_box()
    assert knob["y"] + knob["height"] - figure["y"] < panel["height"]

    output.locator("[data-knob=protection]").select_option("clip")
    output.locator(".known").filter(has_text="no noise").wait_for()
    assert output.locator("[data-knob=epsilon]").is_disabled()
    output.locator("[data-knob=lr]").focus()
    notebook.page.keyboard.press("End")
    press(output, "train", 10)
    assert labels.nth(8).inner_text() == "FedLoRA clip, no noise η = 6.4"
    output.locator("tr").nth(1).get_by_role("button", name="forget").click()
    labels.nth(9).wait_for(state="detached")
    for theme, rules in THEMES.items():
        notebook.dress(theme, width=1024)
        assert accessibility_faults(notebook.page, ".fl-bench", rules) == []
        assert faintest_line(notebook.page, ".fl-bench") >= 3
        assert cut_off(output) == []
