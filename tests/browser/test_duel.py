"""The duel in a real JupyterLab: two methods over budgets, trained while one watches."""

import re
import time

import pytest
from dials import PLAIN, Repaints, cut_off, note, picture_bytes, wait_for_bytes

CELLS = {
    "setup": """
import threading
import fedlora_lab as fl
task = fl.tasks.digits(clients=3, seed=1)
rates = {8: {"fedlora": 0.3, "ffa-lora": 0.3}, None: {"ffa-lora": 0.1}}
settings = {"plan": fl.Plan(rounds=2, local_steps=2, batch=8), "privacy": fl.Privacy(delta=1e-4)}
""",
    "plain": PLAIN,
    "duel": "fl.widgets.duel(task, rates, **settings)",
    "dial": "fl.widgets.noise_amplifier()",
    "probe": "print(sum(t.name == 'duel' for t in threading.enumerate()))",
}


def status(output):
    return output.locator("[role=status], [role=alert]").first


def test_the_figure_fills_run_by_run(notebook, show, plain):
    output = show("duel")
    image = output.locator("img")
    before, first = image.get_attribute("src"), picture_bytes(image)
    notebook.watch_layout()
    output.get_by_text("ready · 6 runs of 2 rounds").wait_for()
    output.get_by_role("button", name="Start").focus()
    notebook.page.keyboard.press("Enter")
    output.get_by_text(re.compile("Ahead so far, after 6 runs")).wait_for()
    status(output).filter(has_text="finished · 6 of 6 runs done").wait_for()
    assert image.get_attribute("src") != before
    output.get_by_role("button", name="Reset").click()
    wait_for_bytes(image, first)
    assert notebook.jumps() == []


def test_the_page_answers_while_it_trains_and_stop_ends_the_thread(notebook, show, plain):
    output = show("duel")
    sliders = output.locator(".noUi-handle")
    for slider, key in ((0, "End"), (1, "End")):
        sliders.nth(slider).focus()
        notebook.page.keyboard.press(key)
    output.get_by_text("ready · 15 runs of 30 rounds").wait_for()
    dial = Repaints(notebook, show("dial"))
    output.get_by_role("button", name="Start").click()
    status(output).filter(has_text=re.compile("^running · (FedLoRA|FFA-LoRA) at ε = ")).wait_for()
    assert output.get_by_role("button", name="Start").is_disabled()
    dial.focus("size of B")
    assert len(set(dial.moves("ArrowRight", 20))) == 20
    assert status(output).inner_text().startswith("running")
    begun = time.monotonic()
    output.get_by_role("button", name="Stop").click()
    status(output).filter(has_text="stopped").wait_for()
    print(f"Stop took {1000 * (time.monotonic() - begun):.0f} ms")
    assert show("probe").inner_text().strip() == "0"
    note("dial-while-training", dial.waits, plain())


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off_at_1024(notebook, show, screenshots, theme):
    notebook.dress(theme, width=1024)
    output = show("duel")
    output.get_by_role("button", name="Start").click()
    status(output).filter(has_text="finished").wait_for()
    output.get_by_text(re.compile("Ahead so far, after 6 runs")).wait_for()
    output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"duel-{theme.lower()}-1024.png")
    assert cut_off(output) == []
