"""Dials: interactive figures of closed forms that the browser draws.

The controls, axes and words are `dial.js`; what is drawn is the ``dial.js`` of a lesson. Both go to
the browser as one ES module, which needs no kernel once it is there, so a dial answers while the
kernel is busy, and on a page without one.
"""

import json
import re
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from fedlora_lab._utils.validation import check

COURSE = Path(__file__).parents[1]
IMPORTS = re.compile(r"^import\b[^;]*;\n", re.M)


@cache
def lesson_code(lesson: str) -> str:
    """Returns a lesson's ``dial.js``, which defines ``dials``, without its imports.

    Args: lesson: such as "lesson_03".
    """
    return IMPORTS.sub("", (COURSE / lesson / "dial.js").read_text(encoding="utf-8"))


@cache
def shared_code() -> str:
    """Returns the module that all dials share."""
    return Path(__file__).with_name("dial.js").read_text(encoding="utf-8")


@cache
def dial_module(lesson: str) -> str:
    """Returns the ES module of one lesson's dials.

    It exports ``mount(element, data, values)`` and, for anywidget, ``render``.
    """
    ways = "export const mount = mounter(dials);\nexport default widgetOf(dials);\n"
    return f"{shared_code()}\n{lesson_code(lesson)}\n{ways}"


def page_script() -> str:
    """Returns one classic script that mounts every dial of a page, also of one opened as a file."""
    lessons = sorted(path.parent.name for path in COURSE.glob("lesson_*/dial.js"))
    plain = re.compile(r"^export ", re.M)
    parts = [plain.sub("", shared_code()), "const lessons = {};"]
    for lesson in lessons:
        code = plain.sub("", lesson_code(lesson))
        parts.append(f"lessons.{lesson} = (() => {{\n{code}\nreturn dials;\n}})();")
    parts.append(
        "const begin = () => document.querySelectorAll('[data-fedlora-dial]').forEach(place => {\n"
        "  const {lesson, data, values} = JSON.parse(place.dataset.fedloraDial);\n"
        "  mounter(lessons[lesson])(place, data, values);\n"
        "});\n"
        "if (document.readyState === 'loading') addEventListener('DOMContentLoaded', begin);\n"
        "else begin();"
    )
    return "(() => {\n" + "\n".join(parts) + "\n})();\n"


def round_to_digits(values: Any, digits: int = 4) -> Any:
    """Rounds numbers, nested as they are, to significant digits for JSON; NaN becomes ``None``."""
    if np.ndim(values):
        return [round_to_digits(value, digits) for value in values]
    return None if np.isnan(values) else float(f"{values:.{digits}g}")


class Dial(anywidget.AnyWidget):
    """A picture of a closed form that the browser draws, with controls.

    ``values`` holds what the controls say: the kernel sees every move, and what is assigned to it
    moves the controls. Where nothing runs the dial shows what it is in words; on the project's site
    the same module turns it.

    Args:
        lesson: number of the lesson whose ``dial.js`` draws it.
        name: of the dial in that module.
        about: what it shows, one sentence for readers who see no widget.
        data: what is sent once, JSON.
        values: of the controls at first.

    Guarantees: a control moves picture, sentence and ``values``
        (tests/browser/test_dials.py::test_every_dial_turns), also while the kernel is busy
        (test_a_dial_turns_while_the_kernel_is_busy) and on a page without one
        (test_dials_turn_on_a_page_without_a_kernel).

    >>> import fedlora_lab as fl
    >>> dial = fl.course.lesson(2).deviation_explorer()
    >>> len(dial.values["points"])
    6
    """

    data = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        lesson: int,
        name: str,
        about: str,
        data: "dict[str, Any] | None" = None,
        **values: Any,
    ) -> None:
        self._lesson, self._about, self._first = f"lesson_{lesson:02}", about, values
        self.add_traits(_esm=traitlets.Unicode(dial_module(self._lesson)).tag(sync=True))
        super().__init__(data={"dial": name, **(data or {})}, values=values)

    def reset(self) -> None:
        """Puts every control back to its first value."""
        self.values = self._first

    def set(self, **values: Any) -> None:
        """Moves controls.

        Args: values: control -> value.
        Raises: ``ValueError`` for a control that the dial does not have.
        """
        for name, value in values.items():
            check(name in self.values, name, value, f"a control: {', '.join(self.values)}")
        self.values = {**self.values, **values}

    def __repr__(self) -> str:
        return f"Dial: {self._about}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle, *more = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        setting = {"lesson": self._lesson, "data": self.data, "values": self.values}
        state = escape(json.dumps(setting, ensure_ascii=False, separators=(",", ":")), quote=True)
        words = f"<p><b>Dial.</b> {escape(self._about)} Run this cell to turn it.</p>"
        html = f'<div data-fedlora-dial="{state}">{words}</div>'
        return {**bundle, "text/plain": repr(self), "text/html": html}, *more
