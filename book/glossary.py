"""Sphinx extension: a lesson links the first use of every term of the glossary.

The glossary is a list, whose items begin with the names of a term, the chief one in bold. Items
get a place to link to; prose of the notebooks gets the links, while headings, code, formulas,
outputs and existing links stay as they are."""

import re
from typing import Any, NamedTuple

from docutils import nodes

PAGE = "docs/glossary"
LESSONS = "notebooks/"
ITEM = re.compile(r"^- (\*\*.+?) \(\[(\d\d)\]\(.+?\)\): (.+)$", re.M)
CODE = (nodes.literal, nodes.literal_block, nodes.math, nodes.math_block)
CLOSED = (*CODE, nodes.title, nodes.reference, nodes.raw)


class Term(NamedTuple):
    """An item of the glossary: its names, the chief one first, lesson and meaning."""

    names: tuple[str, ...]
    lesson: str
    meaning: str

    @property
    def place(self) -> str:
        """The id of the term's item."""
        return "term-" + re.sub(r"\W+", "-", self.names[0].lower()).strip("-")


def terms(page: str) -> list[Term]:
    """The items of the glossary's Markdown."""
    items = [match.groups() for match in ITEM.finditer(page.replace("\n  ", " "))]
    return [
        Term(tuple(names.replace("**", "").split(", ")), lesson, meaning)
        for names, lesson, meaning in items
    ]


def pattern(known: list[Term]) -> re.Pattern:
    """Matches any name, the longest where several begin, with or without an s for the plural.

    A standard deviation is that of statistics, not of averaged factors.
    """
    names = sorted((name for term in known for name in term.names), key=len, reverse=True)
    return re.compile(
        rf"(?<![\w-])(?<!standard\s)({'|'.join(map(re.escape, names))})s?(?![\w-])", re.I
    )


def is_prose(text: nodes.Node) -> bool:
    """Whether a text stands in a sentence that is not a link yet."""
    node = text.parent
    while node is not None:
        if isinstance(node, CLOSED) or "cell_output" in node.get("classes", ()):
            return False
        node = node.parent
    return True


def link_terms(tree: nodes.Node, known: list[Term], address: str) -> None:
    """Turn the first use of every term in a page into a link to its item.

    Args: tree: of the page; known: the terms; address: of the glossary, as seen from the page.
    """
    find, home = pattern(known), {name.lower(): term for term in known for name in term.names}
    left = {term.place for term in known}
    for text in [node for node in tree.findall(nodes.Text) if is_prose(node)]:
        words, parts, end = text.astext(), [], 0
        for match in find.finditer(words):
            term = home[match[1].lower()]
            if term.place in left:
                left.remove(term.place)
                link = nodes.reference("", match[0], refuri=f"{address}#{term.place}")
                link.update_basic_atts({"classes": ["glossary-term"]})
                link["internal"], link["reftitle"] = True, term.meaning
                parts += [nodes.Text(words[end : match.start()]), link]
                end = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(words[end:])])


def mark_items(tree: nodes.Node, known: list[Term]) -> None:
    """Give every item of the glossary the id that links lead to."""
    places = {term.names[0]: term.place for term in known}
    for item in tree.findall(nodes.list_item):
        for name in list(item.findall(nodes.strong))[:1]:
            item["ids"].append(places[name.astext()])


def resolve(app: Any, tree: nodes.Node, page: str) -> None:
    """Called by Sphinx with a page whose own links are settled."""
    source = (app.srcdir / f"{PAGE}.md").read_text(encoding="utf-8")
    if page == PAGE:
        mark_items(tree, terms(source))
    elif page.startswith(LESSONS):
        link_terms(tree, terms(source), app.builder.get_relative_uri(page, PAGE))


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx asks of an extension."""
    app.connect("doctree-resolved", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
