"""The method composer in a real JupyterLab: fields by menu, what they make, and both runs side by side."""

import re

import pytest
from dials import cut_off, picture_bytes, wait_for_bytes

CELLS = {
    "setup": """
import threading
import fedlora_lab as fl
task = fl.tasks.digits(clients=3, seed=1)
plan = fl.Plan(rounds=2, local_steps=2, batch=8)
""",
    "composer": "fl.widgets.method_composer(task, plan=plan)",
    "probe": "print(sum(t.name == 'composer' for t in threading.enumerate()))",
}


def says(output):
    return output.locator("[role=status], [role=alert]").first


def choose(output, label, option):
    row = output.locator(".widget-inline-hbox", has=output.page.get_by_text(label, exact=True))
    row.locator("select").select_option(label=option)


def test_fields_make_methods(notebook, show):
    output = show("composer")
    image = output.locator("img")
    first = picture_bytes(image)
    notebook.watch_layout()
    says(output).filter(has_text="This is FedLoRA").wait_for()
    choose(output, "who moves", "B")
    says(output).filter(has_text="This is FFA-LoRA").wait_for()
    choose(output, "smoothing", "Binomial(taps=5)")
    says(output).filter(has_text="Nobody has published this").wait_for()
    choose(output, "who moves", "*")
    output.get_by_role("alert").filter(has_text="This cannot be: train='*'").wait_for()
    assert output.get_by_role("button", name="Start").is_disabled()
    choose(output, "begin from", "LA-LoRA")
    says(output).filter(has_text="This is LA-LoRA").wait_for()
    output.get_by_role("button", name="Reset").click()
    wait_for_bytes(image, first)
    assert notebook.jumps() == []


def test_it_trains_and_stops(notebook, show):
    output = show("composer")
    output.get_by_role("button", name="Start").focus()
    notebook.page.keyboard.press("Enter")
    output.get_by_text(re.compile(r"^After round 2: FedLoRA 0\.\d+ .*my method 0\.\d+")).wait_for()
    output.get_by_text("finished · round 2 of 2").wait_for()
    output.locator(".noUi-handle").last.focus()
    notebook.page.keyboard.press("End")
    output.get_by_role("button", name="Start").click()
    output.get_by_text(re.compile("^running")).wait_for()
    output.get_by_role("button", name="Stop").click()
    output.get_by_text(re.compile("^stopped")).wait_for()
    assert show("probe").inner_text().strip() == "0"


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_nothing_is_cut_off_at_1024(notebook, show, screenshots, theme):
    notebook.dress(theme, width=1024)
    output = show("composer")
    output.locator("img").wait_for()
    output.scroll_into_view_if_needed()
    notebook.page.screenshot(path=screenshots / f"composer-{theme.lower()}-1024.png")
    assert cut_off(output) == []
