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


def test_what_stands_below_is_loaded_when_a_reader_comes_near(page, site):
    """Fault: numbers and engine, 400 kB, before the first line can be read."""
    loaded = []
    page.on("request", lambda request: loaded.append(request.url.split("/")[-1].split("?")[0]))
    page.goto((site / LESSON).as_uri())
    page.wait_for_load_state()
    late = {"dials.js", "playground.js", LESSON.split("/")[-1].replace("html", "js")}
    assert not late & {*loaded}
    mount_all(page)
    assert late <= {*loaded}


@pytest.mark.parametrize(
    "name", ["index.html", pytest.param(LESSON, marks=pytest.mark.further), "api/audit.html"]
)
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


def test_what_was_chosen_stands_in_the_answer(page, site):
    """Fault: a script that is not in the site."""
    page.goto((site / LESSON).as_uri())
    page.locator("input[name='04.a'][value=c]").check()
    page.get_by_text("Show the answer").first.click()
    page.get_by_text("You chose c).").wait_for()


def test_a_long_table_is_sorted_by_the_column_that_is_pressed(page, site):
    """Numbers as numbers, largest first, then smallest; words by the alphabet."""
    page.goto((site / "docs" / "evidence" / "methods.html").as_uri())
    table = page.locator("table.table").first
    rows = "all => all.map(row => row.cells[{}].textContent)"

    def column(place):
        return table.locator("tbody tr").evaluate_all(rows.format(place))

    words = ("none", "no common product")
    first, deviations = column(0), column(2)
    table.get_by_role("button", name="deviation").click()
    sizes = [float(text) for text in column(2) if text not in words]
    assert sizes == sorted(sizes, reverse=True) and column(0) != first
    assert column(2)[: len(sizes)] == [f"{size:.2g}" for size in sizes]
    assert table.locator("th[aria-sort=descending]").inner_text().startswith("deviation")
    table.get_by_role("button", name="deviation").press("Enter")
    assert [float(text) for text in column(2) if text not in words] == sorted(sizes)
    assert sorted(column(2)) == sorted(deviations)
    table.get_by_role("button", name="method").click()
    assert column(0) == sorted(first, key=str.casefold)


@pytest.mark.further
def test_every_page_is_short_enough_for_a_phone(page, site):
    """Fault: pages of up to 156,000 pixels, a hundred screens and more. Tables scroll in a box,
    methods are cards, what moves in a lesson opens by a line."""
    page.set_viewport_size({"width": 390, "height": 844})
    heights = {}
    for path in site.rglob("*.html"):
        if "_static" not in path.parts and path.stem not in ("genindex", "py-modindex", "search"):
            page.goto(path.as_uri())
            size = "[document.scrollingElement.scrollWidth, document.scrollingElement.scrollHeight]"
            width, heights[path.name] = page.evaluate(size)
            assert width <= 390, path.name
    assert {name: height for name, height in heights.items() if height > 15_000} == {}


def test_what_moves_in_a_lesson_is_open_on_a_wide_page_and_a_line_on_a_phone(page, site):
    page.goto((site / LESSON).as_uri())
    fold = page.locator("details.live").first
    assert fold.locator("summary").is_hidden() and fold.locator("div").first.is_visible()
    page.set_viewport_size({"width": 390, "height": 844})
    assert fold.bounding_box()["height"] < 120
    fold.locator("summary").click()
    fold.locator(".fl-dial").wait_for()


@pytest.mark.further
def test_long_formulas_scroll_in_their_own_box_and_have_their_font(page, site):
    """Fault: a formula or a signature that pushes a narrow page sideways, or a font that is not in
    the site.
    """
    page.set_viewport_size({"width": 390, "height": 800})
    beyond = 0
    # Pages of signatures are laid out by one rule: one of them is looked at.
    pages = [path for path in site.glob("docs/*.html") if "<math" in path.read_text("utf-8")]
    for path in [
        site / "api" / "federated-run.html",
        *sorted(site.glob("notebooks/*.html")),
        *pages,
    ]:
        page.goto(path.as_uri())
        mount_all(page)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, path.name
        formulas = page.locator("math[display=block]")
        beyond += sum(formulas.evaluate_all("all => all.map(m => m.scrollWidth > m.clientWidth)"))
    assert beyond > 10
    loaded = (
        "document.fonts.ready.then(all => [...all].map(font => `${font.family} ${font.status}`))"
    )
    assert "STIX Two Math loaded" in page.evaluate(loaded)


def test_a_search_names_lessons_first_and_needs_no_network(page, site):
    page.goto((site / "search.html").as_uri() + "?q=deviation")
    page.locator(".search-summary", has_text="found").wait_for()
    page.locator("ul.search li a[href*='api/']").first.wait_for()
    links = page.locator("ul.search > li > a").all()
    rooms = [link.get_attribute("href").split("/")[0] for link in links]
    assert rooms[:5] == ["notebooks"] * 5 and "notebooks" not in rooms[rooms.index("docs") :]
    assert rooms[-1] == "api"
