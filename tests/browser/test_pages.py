"""A page that is only read: the report of a run."""

from reports import HOSTILE, write_folder

SIX = ("fedlora", "ffa-lora", "rolora", "deer", "la-lora", "fedlpp")


def test_a_report_on_phone_screen_and_paper(browser, tmp_path):
    """Nothing is wider than the page, every picture is there, no text of a task runs as script."""
    path = write_folder(tmp_path, task=HOSTILE, methods=SIX)
    messages = []
    page = browser.new_page()
    page.on("console", lambda message: messages.append(message.text))
    page.on("dialog", lambda dialog: messages.append(dialog.message))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert messages == []
    page.close()
