"""The playground: a page in which federated LoRA trains under differential privacy.

It needs no kernel, no server and no network. ``playground.js`` has an engine of its own, which
tests/course/browser/test_playground_pages.py holds to `fl.run`; ``tables.json`` is made by
scripts/playground.py from what the library says.
"""

from functools import cache
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from fedlora_course.widgets.dial import HERE as WIDGETS, classic_script

HERE = Path(__file__).parent
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>The private federated playground</title>
<style>
body {{ margin: 0; background: #FFFFFF; color: #22252B; font: 15px/1.5 system-ui, sans-serif; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #111111; color: #F0F1F4; }} }}
header {{ max-width: 1290px; margin: 0 auto; padding: 16px 16px 0; }}
h1 {{ margin: 0; font-size: 25px; line-height: 1.2; letter-spacing: -0.02em; }}
header p {{ margin: 4px 0 2px; }}
.fl-dial.fl-playground {{ border: 0; }}
</style>
</head>
<body>
<header>
<h1>The private federated playground</h1>
<p>Several clients teach one network their handwriting. Each trains a small adapter, B times A,
hides every digit in noise, and sends it. Two methods, side by side.</p>
</header>
<main data-fedlora-playground data-lessons="{lessons}"></main>
<script>
{script}
</script>
</body>
</html>
"""


STILL = HERE / "still.png"
"""The curves of accuracy at the end of the page's first runs, from a screenshot."""
FINDING = (
    "Right answers over the rounds and over the learning rate: at four times the rate FedLoRA "
    "has lost what it learned, and FFA-LoRA has not"
)
ABOUT = "ten clients with real handwritten digits train in the browser."


@cache
def module() -> str:
    """Returns the ES module of the widget: drawing, tables, look, engine and view."""
    names = WIDGETS / "drawing.js", HERE / "tables.json", HERE / "playground.css"
    drawing, tables, look = (path.read_text(encoding="utf-8").strip() for path in names)
    code = (HERE / "playground.js").read_text(encoding="utf-8")
    return f"{drawing}\nconst TABLES = {tables};\nconst LOOK = `{look}`;\n{code}"


def page(lessons: str = "../notebooks/*.ipynb") -> str:
    """Returns the whole page: one file, to be opened by a double click.

    Args: lessons: where they lie as seen from the page, * for the name of one.

    >>> "http" in page()
    False
    """
    return PAGE.format(lessons=lessons, script=classic_script(module()))


class Playground(anywidget.AnyWidget):
    """The playground in a notebook: the same file as the page, which asks nothing of the kernel."""

    def __init__(self) -> None:
        self.add_traits(_esm=traitlets.Unicode(module()).tag(sync=True))
        super().__init__()

    def picture(self) -> "Still":
        """Returns a picture of the page at the end of its runs."""
        return Still()

    def __repr__(self) -> str:
        return f"Playground: {ABOUT}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle, *metadata = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        about = f"<p><b>Playground:</b> {ABOUT} Run this cell to use it.</p>"
        html = f"<div data-fedlora-playground>{about}</div>"
        return {**bundle, "text/plain": repr(self), "text/html": html}, *metadata


class Still:
    """A picture of the page, which a notebook shows where no widget is."""

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return {"image/png": STILL.read_bytes(), "text/plain": f"Picture: {FINDING}"}
