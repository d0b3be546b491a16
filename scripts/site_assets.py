"""What a page of the site loads of this project's own scripts: only what it uses, and nothing heavy
before its text.

The numbers of a dial and the engine of the playground wait in files of their own until their reader
comes near (book/late.js); so pictures have their sizes, or all would be near before they are there.
Scripts, icons and style sheets of the theme stay as it has them.
"""

import base64
import hashlib
import re
from html import unescape
from pathlib import Path

from PIL import Image

USED_BY = {
    "playground.js": r"data-fedlora-playground",
    "dials.js": r"data-fedlora-dial",
    "late.js": r"data-fedlora-(?:playground|dial)",
    "choices.js": r'type="radio"',
    "sortable.js": r'<table class="table"',
}
"""Own script -> what stands in a page that needs it."""
NEAR = {"playground.js": "playground", "dials.js": "dial"}
"""Script that book/late.js loads -> the place near which it is wanted."""
LATE = '<script type="text/plain" data-near="{}" data-src="{}"></script>'
SCRIPT = re.compile(r'<script(?: [^>]*)? src="([^"?]*?([^"/?]+\.js)[^"]*)"[^>]*></script>')
PICTURE = re.compile(r'<img(?![^>]* width=)([^>]*) src="([^"]+\.png)"')
PACKED = re.compile(r' src="data:image/png;base64,([^"]+)"')
DIAL = re.compile(r"""data-fedlora-dial=(['"])(.*?)\1""", re.S)
DIALS = "_static/dials/{}.js"
NUMBERS = """{{const dials = [{}];
document.querySelectorAll("[data-fedlora-dial]").forEach((place, i) => {{
  place.dataset.fedloraDial = JSON.stringify(dials[i]);
}});}}
"""
"""A script that gives the dials of a page their numbers."""
LIVE = re.compile(
    r"(<div data-fedlora-(?:dial|playground)[^>]*>)<p><b>(\w+)[.:]</b> (.*?) Run this cell to "
    r"\w+ it\.</p></div>"
)
FOLD = '<details class="live"><summary>{}: {}</summary>{}</div></details>'
"""What moves in a lesson, folded: book/style.css opens it where the screen is wide."""


def slim(site: Path) -> None:
    """Rewrites all pages of a built site."""
    (site / DIALS).parent.mkdir(exist_ok=True)
    for path in site.rglob("*.html"):
        if "_static" not in path.parts:
            path.write_text(slimmed(path.read_text("utf-8"), path, site), "utf-8")


def slimmed(page: str, path: Path, site: Path) -> str:
    """One page; pictures and numbers that stood in it become files."""
    root = "../" * len(path.relative_to(site).parent.parts)
    numbers = DIALS.format(path.stem)

    def script(found: re.Match) -> str:
        source, name = found.groups()
        if name not in USED_BY:
            return found[0]
        if not re.search(USED_BY[name], page):
            return ""
        if name not in NEAR:  # waits for the text, on which it works
            return found[0].replace("<script", "<script defer", 1)
        first = LATE.format("dial", root + numbers) if name == "dials.js" else ""
        return first + LATE.format(NEAR[name], source)

    def unpacked(found: re.Match) -> str:
        png = base64.b64decode(found[1])
        name = f"_images/{hashlib.sha256(png).hexdigest()[:16]}.png"
        (site / name).write_bytes(png)
        return f' src="{root}{name}"'

    def sized(found: re.Match) -> str:
        before, source = found.groups()
        width, height = Image.open(path.parent / source).size
        return f'<img{before} src="{source}" width="{width}" height="{height}" loading="lazy"'

    if dials := [unescape(text) for _, text in DIAL.findall(page)]:
        (site / numbers).write_text(NUMBERS.format(",\n".join(dials)), "utf-8")
    page = DIAL.sub("data-fedlora-dial", SCRIPT.sub(script, page))
    page = PICTURE.sub(sized, PACKED.sub(unpacked, page))
    page = LIVE.sub(lambda found: FOLD.format(found[2], found[3], found[1]), page)
    # The words of the fold name it; this label hides them from who cannot see.
    return page.replace('<summary aria-label="Toggle hidden content">', "<summary>")
