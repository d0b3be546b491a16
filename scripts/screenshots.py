"""Take the pictures of the workbench on the site's front page, from the widget itself.

    python scripts/screenshots.py            writes book/story/*.png

A JupyterLab and a Chromium are started as in the browser tests; four screens are taken while a run
is set up, trained, compared and swept. Pictures have few colours and are small.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
STORY = ROOT / "book" / "story"
COLOURS = 48
CELL = """
import fedlora_lab as fl
task = fl.tasks.digits(clients=10, alpha=0.5, seed=0)
privacy = fl.Privacy(delta=1e-4)
fl.course.widgets.live(task, plan=fl.Plan(rounds=20, local_steps=5, batch=16), privacy=privacy)
"""


def shot(bench: Any, name: str, bottom: Any) -> None:
    """Write a picture of the workbench from its top to the bottom of one of its parts.

    Args: bench: the widget; name: of the picture; bottom: the last part to be seen.
    """
    top, last = bench.bounding_box(), bottom.bounding_box()
    height = last["y"] + last["height"] - top["y"] + 8
    image = Image.open(io.BytesIO(bench.screenshot(animations="disabled")))
    image = image.convert("RGB").crop((0, 0, image.width, min(image.height, round(height))))
    flat = image.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    flat.save(STORY / f"{name}.png", optimize=True)
    print(f"{name}: {image.width} x {image.height}, {(STORY / f'{name}.png').stat().st_size} bytes")


def finished(bench: Any) -> None:
    """Wait until the run has ended, with its sentence and its pictures drawn."""
    bench.locator(".state").filter(has_text="running").wait_for()
    bench.locator(".state").filter(has_text="finished").wait_for(timeout=300_000)
    bench.page.wait_for_timeout(1000)


def choose(bench: Any, slug: str, sent: str) -> None:
    """Choose a method and wait for the last of the numbers that follow from it.

    Args: bench: the widget; slug: of the method; sent: what a round then sends each way.
    """
    bench.locator("select").first.select_option(slug)
    bench.locator("dd").filter(has_text=f"{sent} each way").wait_for()
    bench.page.wait_for_timeout(1000)


def tell(page: Any) -> None:
    """The story, on a page whose only cell is the workbench."""
    bench = page.run(0).locator(".fl-bench")
    bench.locator("dd").filter(has_text="each way").wait_for()
    panels = bench.locator("[data-panel=main]")
    choose(bench, "fedlora", "163.8 kB")
    shot(bench, "1-choose", panels)
    bench.get_by_role("button", name="Start").click()
    finished(bench)
    shot(bench, "2-run", panels)
    choose(bench, "ffa-lora", "81.9 kB")
    bench.get_by_role("button", name="Start").click()
    finished(bench)
    shot(bench, "3-compare", bench.locator("tbody"))


def main() -> None:
    """The command line."""
    sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]
    import lab as labs

    STORY.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = labs.Lab(Path(folder) / "lab")
        path = labs.chromium()
        browser = playwright.chromium.launch(executable_path=path, args=labs.FLAGS)
        try:
            page = labs.Page(browser, server, server.write("story.ipynb", [CELL]), height=2400)
            tell(page)
        finally:
            browser.close()
            server.close()


if __name__ == "__main__":
    main()
