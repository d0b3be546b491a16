"""Record docs/figures/bench.gif, the moving picture of README.md: the bench in a real JupyterLab.

    python scripts/moving_picture.py

Two methods are trained at one learning rate and then at four times that rate. Nothing is drawn
here: every picture is a screenshot of the page while it trains. It takes about two minutes and
needs Chromium.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests" / "browser"))
sys.path.append(str(ROOT / "tests"))

from lab import FLAGS, Lab, chromium, open_notebook  # noqa: E402  the lab of the browser tests

PICTURE = ROOT / "docs" / "figures" / "bench.gif"
LIMIT = 1_500_000  # bytes
CELLS = (
    "import fedlora_lab as fl\ntask = fl.tasks.digits(clients=10, alpha=0.5, seed=0)",
    'fl.course.widgets.live(task, method="fedlora", epsilon=8)',
)
RUNS = (("fedlora", "0.4"), ("ffa-lora", "0.4"), ("fedlora", "1.6"), ("ffa-lora", "1.6"))
ROUND, LOOK, END = 80, 1800, 4000
"""Milliseconds that a picture stays: during a run, after a knob was turned, at the end."""


class Film:
    """Screenshots of the bench and how long each is shown; equal ones are joined."""

    def __init__(self, page: Any, box: dict[str, float]) -> None:
        self.page, self.box = page, box
        self.pictures: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def take(self, milliseconds: int) -> None:
        shot = self.page.screenshot(clip=self.box)
        picture = Image.open(io.BytesIO(shot)).convert("RGB")
        if self.pictures and picture.tobytes() == self.pictures[-1].tobytes():
            self.milliseconds[-1] = max(self.milliseconds[-1], milliseconds)
            return
        self.pictures.append(picture)
        self.milliseconds.append(milliseconds)

    def write(self, path: Path) -> None:
        """As a GIF that repeats, with one palette for all pictures, taken from the last."""
        palette = self.pictures[-1].quantize(64)
        drawn = [p.quantize(palette=palette, dither=Image.Dither.NONE) for p in self.pictures]
        # The end is shown first: it is what a reader sees where nothing moves.
        first, *others = [drawn[-1], *drawn]
        first.save(
            path,
            save_all=True,
            append_images=others,
            duration=[self.milliseconds[-1], *self.milliseconds],
            loop=0,
            optimize=True,
        )


def train(film: Film, output: Any, method: str, rate: str) -> None:
    """Choose a method and a rate as a reader does, press Start, and look on until it has ended."""
    output.locator("select").first.select_option(method)
    knob = output.locator("[data-knob=lr]")
    knob.fill(rate)
    knob.press("Enter")
    output.locator(".rate").filter(has_text=f"learning rate {rate}").wait_for()
    film.take(LOOK)
    rows = output.locator("td [data-label]").count()
    output.get_by_role("button", name="Start", exact=False).first.click()
    output.locator("td [data-label]").nth(rows).wait_for()
    output.locator(".state").filter(has_text="running").wait_for()
    while output.locator(".state").inner_text() != "finished":
        film.take(ROUND)
        film.page.wait_for_timeout(50)
    film.take(LOOK)


def main() -> None:
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        lab = Lab(Path(folder))
        try:
            with open_notebook(browser, lab, "bench.ipynb", CELLS) as notebook:
                notebook.dress("Light", 1290, 1500)
                output = notebook.run(1)
                output.get_by_role("button", name="Step", exact=False).first.click()
                bench = output.locator(".fl-bench")
                bench.scroll_into_view_if_needed()
                box = bench.bounding_box()
                film = Film(notebook.page, {**box, "height": min(box["height"], 1090)})
                for method, rate in RUNS:
                    train(film, output, method, rate)
                film.take(END)
        finally:
            lab.close()
            browser.close()
    film.write(PICTURE)
    size = PICTURE.stat().st_size
    print(f"{PICTURE.name}: {len(film.pictures)} pictures, {size / 1e6:.2f} MB")
    if size > LIMIT:
        raise SystemExit(f"{PICTURE.name}: expected at most {LIMIT / 1e6} MB")


if __name__ == "__main__":
    main()
