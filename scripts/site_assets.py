"""What a page of the site loads: only what it uses, in few files, and nothing before its text.

The theme loads for every page a search index, 1.5 MB of icons and eleven style sheets. Here the
icons become drawings in the page, the style sheets one file without the rules of classes that no
page has, scripts wait for the text, and pictures, dials and the playground for who comes near them.
"""

import base64
import hashlib
import re
from functools import partial
from html import escape, unescape
from pathlib import Path
from typing import Any

import tinycss2
from PIL import Image

USED_BY = {
    "playground.js": r"data-fedlora-playground",
    "dials.js": r"data-fedlora-dial",
    "late.js": r"data-fedlora-(?:playground|dial)",
    "choices.js": r'type="radio"',
    "sortable.js": r'<table class="table"',
    "copybutton.js": r'class="highlight',
    "clipboard.min.js": r'class="highlight',
    "togglebutton.js": r'class="[^"]*(?:toggle-|dropdown admonition)',
    "design-tabs.js": r'class="[^"]*sd-tab',
    "searchtools.js": r'id="search-results"',
    "language_data.js": r'id="search-results"',
    "searchindex.js": r'id="search-results"',
    "fontawesome.js": r"(?!)",
}
"""Script -> what stands in a page that needs it; all others are needed everywhere."""
BRING_STYLE = {"playground.js", "dials.js", "fontawesome.js"}
NEAR = {"playground.js": "playground", "dials.js": "dial"}
"""Script that book/late.js loads -> the place near which it is wanted."""
LATE = '<script type="text/plain" data-near="{}" data-src="{}"></script>'
DIAL = re.compile(r"""data-fedlora-dial=(['"])(.*?)\1""", re.S)
NUMBERS = """{{const dials = [{}];
document.querySelectorAll("[data-fedlora-dial]").forEach((place, i) => {{
  place.dataset.fedloraDial = JSON.stringify(dials[i]);
}});}}
"""
"""A script that gives the dials of a page their numbers."""
SCRIPT = re.compile(r'<script((?: [^>]*)?) src="([^"?]*?([^"/?]+\.js))([^"]*)"([^>]*)></script>')
SHEET = re.compile(r'<link[^>]*href="([^"?]+\.css)[^"]*"[^>]*/?>\s*')
PRELOAD = re.compile(r'<link rel="preload" as="script"[^>]*/?>\s*')
ICON = re.compile(r'<(?:i|span) class="([^"]*\bfa-[^"]*)"([^>]*)></(?:i|span)>')
PICTURE = re.compile(r'<img(?![^>]* loading=)([^>]*) src="([^"]+)"([^>]*?)/?>')
PACKED = re.compile(r' src="data:image/png;base64,([^"]+)"')
STYLE = "_static/site.css"
DIALS = "_static/dials/{}.js"
DRAWN = "svg-inline--fa"
"""Class of an icon."""
HEAD = """<link rel="icon" href="data:," />
<link rel="stylesheet" href="{}" />
"""


def slim(site: Path) -> None:
    """Rewrite all pages of a built site."""
    (site / DIALS).parent.mkdir(exist_ok=True)
    pages = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    icons = drawings(site / "_static" / "scripts" / "fontawesome.js")
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    sheets = style_sheets(site, texts)
    # A script may give a class to an element; the icons' own script gives thousands. Widgets bring
    # the rules of theirs.
    named = {name for text in texts.values() for *_, name, _, _ in SCRIPT.findall(text)}
    paths = [path for path in (site / "_static").rglob("*.js") if path.name in named - BRING_STYLE]
    scripts = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    words = {word for text in texts.values() for word in class_names(text)}
    words |= {*re.findall(r"[\w-]+", scripts), DRAWN}
    rules = "\n".join(used_rules(path, words) for path in sheets)
    rules = without_unused(rules, scripts + "".join(texts.values()))
    (site / STYLE).write_text(rules, encoding="utf-8")
    for path, text in texts.items():
        path.write_text(slimmed(text, path, site, icons), encoding="utf-8")


def slimmed(page: str, path: Path, site: Path, icons: dict[str, str]) -> str:
    """One page."""
    root = "../" * len(path.relative_to(site).parent.parts)
    page = PRELOAD.sub("", page)
    first = SHEET.search(page)
    page = SHEET.sub("", page)
    if first:
        page = page[: first.start()] + HEAD.format(root + STYLE) + page[first.start() :]

    def script(found: re.Match) -> str:
        before, source, name, query, after = found.groups()
        if name in USED_BY and not re.search(USED_BY[name], page):
            return ""
        if name in NEAR:
            numbers = (
                LATE.format("dial", root + DIALS.format(path.stem)) if name == "dials.js" else ""
            )
            return numbers + LATE.format(NEAR[name], source + query)
        if name == "documentation_options.js":  # a few words, which inline scripts below add to
            return f"<script>{(site / '_static' / name).read_text(encoding='utf-8')}</script>"
        waits = "" if "defer" in before + after else " defer"
        return f'<script{before} src="{source}{query}"{after}{waits}></script>'

    def icon(found: re.Match) -> str:
        names = re.findall(r"\bfa-([\w-]+)", found[1])
        # A rule for a letter of the icons' font would move the drawing.
        kept = " ".join(name for name in found[1].split() if name not in ("fa-solid", "fas"))
        drawing = next((icons[name] for name in names if name in icons), "")
        return drawing.replace("<svg ", f'<svg class="{DRAWN} {kept}"{found[2]} ', 1)

    def picture(found: re.Match) -> str:
        before, source, after = found.groups()
        file = path.parent / source
        if file.suffix != ".png" or not file.exists():
            return found[0]
        width, height = Image.open(file).size
        sized = "" if "width" in before + after else f' width="{width}" height="{height}"'
        return f'<img{before} src="{source}"{after}{sized} loading="lazy" decoding="async" />'

    def unpacked(found: re.Match) -> str:
        png = base64.b64decode(found[1])
        name = f"_images/{hashlib.sha256(png).hexdigest()[:16]}.png"
        (site / name).write_bytes(png)
        return f' src="{root}{name}"'

    page = PACKED.sub(unpacked, SCRIPT.sub(script, page))
    if dials := [unescape(text) for _, text in DIAL.findall(page)]:
        (site / DIALS.format(path.stem)).write_text(NUMBERS.format(",\n".join(dials)), "utf-8")
        page = DIAL.sub("data-fedlora-dial", page)
    page = PICTURE.sub(picture, ICON.sub(icon, page))
    # The words of the fold name it; this label hides them from who cannot see.
    return page.replace('<summary aria-label="Toggle hidden content">', "<summary>")


def drawings(script: Path) -> dict[str, str]:
    """Name of a solid icon -> its drawing, from the script that would put it into a page."""
    found: dict[str, str] = {}
    pattern = r'"?([\w-]+)"?:\[(\d+),(\d+),\[[^\]]*\],"\w+","([^"]+)"\]'
    for name, width, height, path in re.findall(pattern, script.read_text(encoding="utf-8")):
        # Brands and outlines come before the solid icons in the file: the last of a name stays.
        found[name] = (
            f'<svg viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">'
            f'<path fill="currentColor" d="{escape(path)}"/></svg>'
        )
    return found


# ---- style


def style_sheets(site: Path, pages: dict[Path, str]) -> list[Path]:
    """The style sheets of all pages, in the order in which most pages load them."""
    listed: list[Path] = []
    for path, text in pages.items():
        for name in SHEET.findall(text):
            sheet = (path.parent / name).resolve()
            if sheet not in listed:
                listed.append(sheet)
    # Ours has the last word, wherever it was first seen.
    return sorted(listed, key=lambda sheet: sheet.name == "style.css")


def class_names(page: str) -> set[str]:
    return {word for names in re.findall(r'class="([^"]*)"', page) for word in names.split()}


def used_rules(sheet: Path, words: set[str]) -> str:
    """A style sheet without rules for classes that are nowhere, its addresses as of _static."""
    text = sheet.read_text(encoding="utf-8")
    for imported in re.findall(r'@import "(.+?)";', text):
        inner = (sheet.parent / imported).read_text(encoding="utf-8")
        text = text.replace(f'@import "{imported}";', inner)
    kept = kept_rules(tinycss2.parse_stylesheet(text, True, True), words)
    address = r"url\(\s*([\"']?)(?!data:)([^\"')]+)\1\s*\)"
    return re.sub(address, lambda found: moved(found[2], sheet), kept)


def moved(address: str, sheet: Path) -> str:
    """An address in a style sheet as it is from the folder of all."""
    static = next(parent for parent in sheet.parents if parent.name == "_static")
    target = (sheet.parent / address.split("?")[0]).resolve()
    return f'url("{target.relative_to(static.resolve())}")' if target.exists() else "none"


def kept_rules(rules: list[Any], words: set[str]) -> str:
    out = []
    for rule in rules:
        if rule.type == "qualified-rule":
            prelude = tinycss2.serialize(rule.prelude)
            used = [one for one in split_selectors(prelude) if is_used(one, words)]
            if used:
                out.append(f"{','.join(used)}{{{tinycss2.serialize(rule.content).strip()}}}")
        elif rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports", "layer"):
            inner = tinycss2.parse_rule_list(rule.content or [], True, True)
            body = kept_rules(inner, words)
            if body:
                head = tinycss2.serialize(rule.prelude)
                out.append(f"@{rule.at_keyword}{head}{{{body}}}")
        elif "Font Awesome" not in rule.serialize():  # a font of 150 kB for icons that are drawn
            out.append(rule.serialize())
    return "\n".join(out)


def without_unused(rules: str, texts: str) -> str:
    """Style rules without the properties of one's own that nothing reads.

    Args: rules: of all sheets. texts: pages and scripts, which may read some.
    """
    before = ""
    elsewhere = set(re.findall(r"--[\w-]+", texts))
    while rules != before:  # one may be read by another only
        before = rules
        read = elsewhere | set(re.findall(r"var\(\s*(--[\w-]+)", rules))
        keep = partial(lambda read, found: found[0] if found[1] in read else "", read)
        rules = re.sub(r"(?<=[{;])\s*(--[\w-]+)\s*:[^;{}\"']*(?:;|(?=\}))", keep, rules)
    return rules


def split_selectors(prelude: str) -> list[str]:
    """The selectors of a rule; a comma within brackets splits nothing."""
    return [one.strip() for one in re.split(r",(?![^(\[]*[)\]])", prelude)]


def is_used(selector: str, words: set[str]) -> bool:
    """Whether every class that a selector asks for is somewhere; what stands in :not() is not."""
    plain = re.sub(r":(?:not|is|where|has)\([^()]*(?:\([^()]*\)[^()]*)*\)", "", selector)
    names = re.findall(r"\.((?:[\w-]|\\.)+)", re.sub(r"\[[^\]]*\]", "", plain))
    return all(name.replace("\\", "") in words for name in names)
