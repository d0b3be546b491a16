"""Sphinx extension: repairs of the HTML that Sphinx and the theme write.

The arrows of the contents get names; the lines of a long signature are no list of definitions,
which has terms; the scripts of Thebe, which no button here loads, are left out; and a page says to
a search engine what it says first to a reader."""

import re
from html import escape, unescape
from typing import Any

ARROW = '<summary><span class="toctree-toggle"'
NAMED = '<summary aria-label="Pages of this part"><span class="toctree-toggle"'
PARAMETERS = re.compile(r'<dl>\s*(<dd><em class="sig-param">.*?)</dl>', re.S)


def parameter_lines(found: re.Match) -> str:
    """The parameters of a signature, each on a line of its own."""
    return found[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")


def is_thebe(script: Any) -> bool:
    """Whether a script is there to start Thebe."""
    return "thebe" in f"{script.filename} {script.attributes.get('body')}".lower()


def first_sentences(body: str) -> str:
    """The first paragraph of a page, without its tags, cut at a word."""
    for paragraph in re.findall(r"<p[^>]*>(.*?)</p>", body, re.S):
        text = " ".join(unescape(re.sub(r"<[^>]+>", "", paragraph)).split())
        if len(text) > 40:
            return text if len(text) <= 160 else text[:160].rsplit(" ", 1)[0] + " …"
    return "A course on federated LoRA under differential privacy, and its library"


def repair(app: Any, page: str, template: str, context: Any, tree: Any) -> None:
    """Called by Sphinx before a page is written."""
    draw = context.get("generate_toctree_html")
    if draw is not None:
        context["generate_toctree_html"] = lambda *a, **k: str(draw(*a, **k)).replace(ARROW, NAMED)
    if "body" in context:
        context["body"] = PARAMETERS.sub(parameter_lines, context["body"])
        words = escape(first_sentences(context["body"]))
        context["metatags"] += f'<meta name="description" content="{words}" />'
        context["metatags"] += '<link rel="icon" href="data:," />'  # there is none to ask for
    context["script_files"] = [one for one in context["script_files"] if not is_thebe(one)]


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx asks of an extension."""
    app.connect("html-page-context", repair, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
