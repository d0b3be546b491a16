"""Record the playground: docs/figures/playground.gif, the moving picture of README.md, and the
still pictures that notebooks show of it.

    python scripts/moving_picture.py

Two methods are trained at one learning rate and then at four times that rate; the second still is
of one run at a small rate. Nothing is drawn here: every picture is a screenshot of the page while
it trains. It takes a minute and needs Chromium.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from fedlora_course import playground
from fedlora_course.widgets.scene import COLOURS

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests" / "helpers")]

from jupyter_lab import FLAGS, chromium  # noqa: E402  the browser of the tests

PICTURE = ROOT / "docs" / "figures" / "playground.gif"
LIMIT = 1_500_000  # bytes
WIDTH, HEIGHT = 1100, 646  # pixels: bar, sliders, sentence, walls of digits, shares of the parts
ROUNDS = 3  # between two pictures
STEP, LOOK, END = 120, 1800, 4500
"""Milliseconds that a picture stays: during a run, at its start, at its end."""
ACTS = 2
KEPT = ("green", "blue", "orange", "purple", "red")
"""Colours of the parts of the product, and of wrong answers: few colours would merge them."""


def few_colours(picture: Image.Image, count: int) -> Image.Image:
    """The picture in so many colours, among them those of `KEPT`, their halves on white, and the
    commonest ones.
    """
    kept = [tuple(bytes.fromhex(COLOURS[name][1:])) for name in KEPT]
    kept += [tuple((255 + value) // 2 for value in colour) for colour in kept]
    common = sorted(picture.getcolors(WIDTH * picture.height) or [], reverse=True)
    kept = list(dict.fromkeys([*kept, *(colour for _, colour in common[: count // 4])]))
    found = picture.quantize(count - len(kept)).getpalette() or []
    numbers = [int(value) for value in np.ravel(kept)]
    return in_colours(picture, [*numbers, *found[: 3 * (count - len(kept))]])


def in_colours(picture: Image.Image, palette: list[int]) -> Image.Image:
    """Each pixel in the nearest colour; Pillow's own search takes one beside it even for white."""
    pixels = np.asarray(picture).reshape(-1, 3)
    colours, places = np.unique(pixels, axis=0, return_inverse=True)
    gaps = colours[:, None].astype(int) - np.reshape(palette, (-1, 3))
    nearest = np.square(gaps).sum(-1).argmin(-1).astype(np.uint8)
    drawn = Image.frombytes("P", picture.size, nearest[places].tobytes())
    drawn.putpalette(palette)
    return drawn


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
        chosen = few_colours(self.pictures[-1], 96)
        palette = chosen.getpalette() or []
        drawn = [in_colours(picture, palette) for picture in self.pictures]
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


def open_page(browser: Any, start: str) -> Any:
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "playground.html"
        # Without the title of the page, which README and notebooks have said.
        text = playground.page(start).replace("<header>", "<header hidden>")
        path.write_text(text, encoding="utf-8")
        page.goto(path.as_uri())
    page.evaluate("window.pg = document.querySelector('[data-fedlora-playground]').playground")
    return page


def record(page: Any) -> Film:
    """The film of the first acts of the first story."""
    film = Film(page)
    for act in range(ACTS):
        page.evaluate("act => { pg.act(0, act); pg.play(false); }", act)
        film.take(LOOK)
        while page.evaluate("pg.lanes[0].round < pg.problem.rounds"):
            page.evaluate("rounds => { for (let i = 0; i < rounds; i++) pg.step(); }", ROUNDS)
            film.take(STEP)
        film.milliseconds[-1] = END
    return film


def write_still(page: Any, path: Path) -> None:
    """The page as it stands, without the words at its foot."""
    bottom = int(page.locator(".stage").evaluate("e => e.getBoundingClientRect().bottom"))
    page.set_viewport_size({"width": WIDTH, "height": bottom})
    few_colours(Film(page).take(END, bottom), 64).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def main() -> None:
    large, small = playground.STARTS
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        page = open_page(browser, large)
        film = record(page)
        write_still(page, playground.STARTS[large].still)
        page = open_page(browser, small)
        page.evaluate("while (pg.lanes[0].round < pg.problem.rounds) pg.step()")
        write_still(page, playground.STARTS[small].still)
        browser.close()
    film.write(PICTURE)
    size = PICTURE.stat().st_size
    print(f"{PICTURE.name}: {len(film.pictures)} pictures, {size / 1e6:.2f} MB")
    if size > LIMIT:
        raise SystemExit(f"{PICTURE.name}: expected at most {LIMIT / 1e6} MB")


if __name__ == "__main__":
    main()
