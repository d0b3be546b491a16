"""Record the playground: docs/figures/playground.gif, the moving picture of README.md, and the
still picture that a notebook shows of it.

    python scripts/moving_picture.py

Two methods are trained at one learning rate and then at four times that rate. Nothing is drawn
here: every picture is a screenshot of the page while it trains. It takes a minute and needs
Chromium.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from fedlora_lab.course import playground

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "browser")]

from lab import FLAGS, chromium  # noqa: E402  the browser of the tests

PICTURE = ROOT / "docs" / "figures" / "playground.gif"
LIMIT = 1_500_000  # bytes
WIDTH, HEIGHT = 1100, 620  # pixels: bar, sliders, sentence, walls of digits, the chart of accuracy
ROUNDS = 3  # between two pictures
STEP, LOOK, END = 120, 1800, 4500
"""Milliseconds that a picture stays: during a run, at its start, at its end."""
ACTS = 2


class Film:
    """Screenshots of the page, and how long each is shown."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.pictures: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def take(self, milliseconds: int, height: int = HEIGHT) -> Image.Image:
        # Painted in several frames: in the second after the last of them all is in the page.
        self.page.wait_for_timeout(250)
        shot = self.page.screenshot(clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        picture = Image.open(io.BytesIO(shot)).convert("RGB")
        self.pictures.append(picture)
        self.milliseconds.append(milliseconds)
        return picture

    def write(self, path: Path) -> None:
        """As a GIF that repeats, with one palette for all pictures, taken from the last."""
        palette = self.pictures[-1].quantize(96)
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


def record(page: Any) -> tuple[Film, Image.Image]:
    """The film of the first acts of the first story, and a still picture of their end."""
    page.evaluate("window.pg = document.querySelector('[data-fedlora-playground]').playground")
    film = Film(page)
    for act in range(ACTS):
        page.evaluate("act => { pg.act(0, act); pg.play(false); }", act)
        film.take(LOOK)
        while page.evaluate("pg.lanes[0].round < pg.problem.rounds"):
            page.evaluate("rounds => { for (let i = 0; i < rounds; i++) pg.step(); }", ROUNDS)
            film.take(STEP)
        film.milliseconds[-1] = END
    # The next heading of the middle column begins right below.
    bottom = page.locator(".lane .maps").first.evaluate("e => e.getBoundingClientRect().bottom - 2")
    page.set_viewport_size({"width": WIDTH, "height": int(bottom)})
    return film, Film(page).take(END, int(bottom))


def main() -> None:
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "playground.html"
        # Without the title of the page, which README and notebooks have said.
        text = playground.page().replace("<header>", "<header hidden>")
        path.write_text(text, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(path.as_uri())
        film, still = record(page)
        browser.close()
    film.write(PICTURE)
    still.quantize(64).save(playground.STILL, optimize=True)
    size = PICTURE.stat().st_size
    kilobytes = playground.STILL.stat().st_size // 1000
    print(
        f"{PICTURE.name}: {len(film.pictures)} pictures, {size / 1e6:.2f} MB; still {kilobytes} kB"
    )
    if size > LIMIT:
        raise SystemExit(f"{PICTURE.name}: expected at most {LIMIT / 1e6} MB")


if __name__ == "__main__":
    main()
