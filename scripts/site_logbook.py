"""The logbook as the site shows it: in pages that a phone can show, with the links that lead there.

In the repository it is one file, so that nothing of it is lost; its links name headings.
"""

import re

LONGEST = 2_800
"""Words of a page."""
HOME = "studies/logbook"


def place_of(heading: str) -> str:
    """The place that GitHub and the site give a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def parts_of(chapter: str) -> list[str]:
    """A chapter, cut before a heading or a paragraph wherever it grows too long."""
    parts = [""]
    for paragraph in re.split(r"(?<=\n\n)", chapter):
        if len((parts[-1] + paragraph).split()) > LONGEST:
            parts.append("")
        parts[-1] += paragraph
    return parts


def logbook_pages(text: str) -> dict[str, str]:
    """Name of a page -> its text; the first has the contents, each other a chapter or a part."""
    first, *chapters = re.split(r"^(?=## )", text, flags=re.M)
    pages = {HOME: first}
    for number, chapter in enumerate(chapters, 1):
        title = chapter.splitlines()[0].removeprefix("## ")
        # A page has one title: every heading rises by a level.
        parts = parts_of(re.sub(r"^#(#+ )", r"\1", chapter, flags=re.M))
        section = ""
        for place, part in enumerate(parts):
            head = f"# {title}, continued ({place + 1} of {len(parts)})\n\n" if place else ""
            if place and section and not part.startswith("## "):
                head += f"## {section}, continued\n\n"
            section = [section, *re.findall(r"^## (.+)$", part, re.M)][-1]
            pages[f"{HOME}/{number:02}{'abcdefgh'[place]}"] = head + part
    return pages


def heading_pages(pages: dict[str, str]) -> dict[str, str]:
    """Place of a heading -> the page that has it."""
    found: dict[str, str] = {}
    for name, text in pages.items():
        for heading in re.findall(r"^#+ (.+)$", text, re.M):
            found.setdefault(place_of(heading), name)
    return found


def linked_to(text: str, homes: dict[str, str]) -> str:
    """A text of any page whose links into the logbook lead to the page with their heading."""
    pattern = rf"{HOME}\.md#([^)\s]+)\)"
    return re.sub(pattern, lambda found: f"{homes[found[1]]}.md#{found[1]})", text)


def within(name: str, text: str, homes: dict[str, str]) -> str:
    """A page of the logbook, whose own links begin where it lies."""
    here = "" if name == HOME else "../"
    text = re.sub(r"\]\(\.\./", f"](../{here}", text)
    pattern = r"\]\(#([^)\s]+)\)"

    def link(found: re.Match) -> str:
        page = homes[found[1]].removeprefix("studies/")
        return f"]({here}{page}.md#{found[1]})"

    return re.sub(pattern, link, text)
