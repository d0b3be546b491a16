"""The report of a run, on a phone, on a screen and on paper."""

from reports import HOSTILE, written


def test_phone_and_print(browser, tmp_path):
    """Nothing is wider than the page, every picture is there, and no text of a task has become a script."""
    path = written(tmp_path, task=HOSTILE, methods=("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp"))
    said: list[str] = []
    for width in (360, 768, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.on("console", lambda message: said.append(message.text))
        page.on("dialog", lambda dialog: said.append(dialog.message))
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        if width == 1280:
            assert page.pdf(format="A4").startswith(b"%PDF")
        page.close()
    assert said == []
