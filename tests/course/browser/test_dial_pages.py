"""Dials on a page without a kernel: they turn; names, contrast, the film. In JupyterLab:
test_widget_pages.py."""

import re
from functools import cache

import pytest
from dial_cases import DIALS, look, make_dial, turn
from jupyter_lab import THEMES, accessibility_faults

from fedlora_course.widgets.dial import page_script


@cache  # its tables take seconds
def drawn(name):
    """What a notebook keeps of a dial."""
    return make_dial(name)._repr_mimebundle_()[0]["text/html"]


def static(browser, tmp_path, names=tuple(DIALS), width=1000):
    """Opens a file that holds these dials as a page of the site does."""
    cells = "".join(map(drawn, names))
    text = f"<!doctype html><html data-theme=light><meta charset=utf-8>{cells}"
    path = tmp_path / "dials.html"
    path.write_text(f"{text}<script>{page_script()}</script>", encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda r: r.url.startswith("http") and page.errors.append(r.url))
    page.goto(path.as_uri())
    return page


def test_dials_turn_on_a_page_without_a_kernel(browser, tmp_path):
    page = static(browser, tmp_path)
    outputs = page.locator(".fl-dial").all()
    assert len(outputs) == len(DIALS)
    for name, output in zip(DIALS, outputs, strict=True):
        first = look(output)
        turn(output)
        seen = {look(output)}
        for preset in output.locator("[data-preset]").all():
            preset.click()
            assert preset.get_attribute("aria-pressed") == "true", name
            assert "NaN" not in "".join(look(output)) and "undefined" not in "".join(look(output))
            seen.add(look(output))
        assert len(seen) > 2, name
        output.get_by_role("button", name="Reset").click()
        assert look(output) == first, name
    assert page.errors == []
    page.close()


@pytest.mark.further
def test_a_film_plays_and_pauses(browser, tmp_path):
    """From the first round on when it stands at the last."""
    page = static(browser, tmp_path, ["film"])
    assert look(page)[1].startswith("Round 20 of 20")
    page.get_by_role("button", name="Play").click()
    page.locator(".say").filter(has_text=re.compile("Round [23] of 20")).wait_for()
    page.get_by_role("button", name="Pause").click()
    stands = look(page)
    page.wait_for_timeout(900)
    assert look(page) == stands
    page.get_by_role("button", name="Play").click()
    page.locator(".say[aria-live=polite]").filter(has_text="Round 20 of 20").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    assert page.errors == []
    page.close()


def test_dials_can_be_used_by_everybody_on_a_narrow_page(browser, tmp_path):
    """Names, contrast, and nothing wider than the page, in either theme."""
    page = static(browser, tmp_path, width=360)
    narrow = """[...document.querySelectorAll('.fl-dial .knob > :is(input, select)')]
        .filter(e => e.offsetWidth < 180).map(e => e.outerHTML)"""
    for theme, rules in THEMES.items():
        page.evaluate(
            "theme => { document.documentElement.dataset.theme = theme.toLowerCase(); }", theme
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.evaluate(narrow) == []
        assert accessibility_faults(page, ".fl-dial", rules) == []
    page.close()
