"""The built site, opened as files with the network off."""

import pytest
from jupyter_lab import COLOURS, accessibility_faults

LESSON = "notebooks/04_why_is_noise_amplified.html"


@pytest.fixture
def page(browser):
    context = browser.new_context(color_scheme="light", offline=True)
    yield context.new_page()
    context.close()


def mount_all(page):
    """Comes near every dial and playground, which are loaded then; a phone has them in folds."""
    page.locator("details.live").evaluate_all("all => all.forEach(one => { one.open = true; })")
    for place in page.locator("[data-fedlora-dial], [data-fedlora-playground]").all():
        place.scroll_into_view_if_needed()
        place.locator(".fl-dial, .say").first.wait_for()


def test_a_lesson_loads_late_keeps_a_choice_and_folds_on_a_phone(page, site):
    """Faults: numbers and engine, 400 kB, before the first line can be read; a script that is not
    in the site; a lesson of a hundred screens. What moves is open on a wide page, a line on a
    phone."""
    loaded = []
    page.on("request", lambda request: loaded.append(request.url.split("/")[-1].split("?")[0]))
    page.goto((site / LESSON).as_uri())
    page.wait_for_load_state()
    late = {"dials.js", LESSON.split("/")[-1].replace("html", "js")}
    assert not late & {*loaded}
    page.locator("input[name='04.a'][value=c]").check()
    page.get_by_text("Show the answer").first.click()
    page.get_by_text("You chose c).").wait_for()
    fold = page.locator("details.live").first
    assert fold.locator("summary").is_hidden() and fold.locator("div").first.is_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    assert fold.bounding_box()["height"] < 120
    fold.locator("summary").click()
    fold.locator(".fl-dial").wait_for()
    mount_all(page)
    assert late <= {*loaded}


@pytest.mark.parametrize("name", ["index.html", LESSON, "api/audit.html"])
def test_pages_can_be_read_and_used_by_everybody(page, site, name):
    """The front page, a lesson whose dials turn, with hints and outcomes unfolded, and a page of
    signatures: WCAG 2.1 AA in either theme.
    """
    page.goto((site / name).as_uri())
    if name == LESSON:
        mount_all(page)
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    assert accessibility_faults(page) == []
    page.emulate_media(color_scheme="dark")
    page.locator("html[data-theme=dark]").wait_for()
    assert accessibility_faults(page, rules=COLOURS) == []


def test_every_page_fits_a_phone(page, site):
    """Faults: pages of up to 156,000 pixels, a hundred screens and more; a formula or a signature
    that pushes a page sideways; a font that is not in the site. Tables and formulas scroll in a
    box, methods are cards, what moves in a lesson opens by a line."""
    page.set_viewport_size({"width": 390, "height": 844})
    heights = {}
    beyond = 0
    for path in site.rglob("*.html"):
        if "_static" not in path.parts and path.stem not in ("genindex", "py-modindex", "search"):
            page.goto(path.as_uri())
            size = "[document.scrollingElement.scrollWidth, document.scrollingElement.scrollHeight]"
            width, heights[path.name] = page.evaluate(size)
            assert width <= 390, path.name
            mount_all(page)
            assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, path.name
            formulas = page.locator("math[display=block]")
            wide = "all => all.filter(m => m.scrollWidth > m.clientWidth).length"
            beyond += formulas.evaluate_all(wide)
            if path.name == LESSON.split("/")[-1]:
                fonts = "all => [...all].map(font => `${font.family} ${font.status}`)"
                assert "STIX Two Math loaded" in page.evaluate(
                    f"document.fonts.ready.then({fonts})"
                )
    assert beyond > 10
    assert {name: height for name, height in heights.items() if height > 15_000} == {}


def test_a_search_finds_and_needs_no_network(page, site):
    page.goto((site / "search.html").as_uri() + "?q=deviation")
    page.locator(".search-summary", has_text="found").wait_for()
    page.locator("ul.search li a[href*='api/']").first.wait_for()
