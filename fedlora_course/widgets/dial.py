"""Dials: interactive figures of closed forms that turn in the browser, with a kernel or without.

A dial has a scene, a Python function of the controls' values. It is computed once for every stop of
every control; what does not depend on a control is stored once. The browser looks up and draws.
"""

import itertools
import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from fedlora_course.widgets.scene import Scene, draw_scene
from fedlora_lab._utils.validation import check
from fedlora_lab.plots.style import Picture

HERE = Path(__file__).parent
Value = float | int | str | bool
DIGITS = 3


@cache
def widget_module(name: str) -> str:
    """Returns the ES module of a kind of widget: the drawing that all share, and its own part.

    Args: name: "dial" or "bench".
    """
    files = [HERE / "drawing.js", HERE / f"{name}.js"]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def page_script() -> str:
    """Returns one classic script that mounts every dial of a page, also of one opened as a file."""
    return classic_script(widget_module("dial"))


def classic_script(module: str) -> str:
    """Turns an ES module with a function ``mountAll`` into a script that calls it in any page.

    A page that is opened as a file may load no module.
    """
    code = re.sub(r"^export default .*", "", module, flags=re.MULTILINE | re.DOTALL)
    plain = re.sub(r"^export ", "", code, flags=re.MULTILINE)
    begin = (
        "if (document.readyState === 'loading') addEventListener('DOMContentLoaded', mountAll);\n"
        "else setTimeout(mountAll);"  # a deferred script: the text is shown first
    )
    return f"(() => {{\n{plain}\n{begin}\n}})();\n"


def describe_control(
    stops: Sequence[float] | Mapping[Any, str], label: str, caption: str, unit: str = ""
) -> dict[str, Any]:
    """Describes one thing to turn, as the page takes it: a slider over numbers, or a menu of words.

    Args:
        stops: numbers, or value -> what is shown of it.
        label, caption, unit: what it is called, one line on what it does, what follows a number.
    """
    menu = isinstance(stops, Mapping)
    texts = stops.values() if menu else [f"{value:,.4g} {unit}".strip() for value in stops]
    shown = {"label": label, "caption": caption, "values": list(stops), "texts": list(texts)}
    return {**shown, "menu": menu}


# ---- tables


def plain_values(part: object) -> Any:
    """Converts a scene to JSON's types: numbers to `DIGITS` digits, NaN to None."""
    # The commonest kinds first: a dial of three controls has a hundred thousand parts.
    if part is None or isinstance(part, (str, int)):
        return part
    if isinstance(part, float):
        return _short(part)
    if isinstance(part, dict):
        return {key: plain_values(value) for key, value in part.items()}
    if isinstance(part, (list, tuple)):
        return [plain_values(value) for value in part]
    return plain_values(np.asarray(part).tolist())


def _short(number: float) -> float | None:
    if not math.isfinite(number):
        return None
    rounded = float(f"{number:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e6 else rounded


def tabulate(scene: Callable[..., Scene], controls: Mapping[str, Any]) -> dict[str, Any]:
    """Computes a scene at every stop of its controls, and stores what differs in tables.

    Returns: ``{"panels": [...], "say": [{"words": ...}, ...]}``, in which whatever depends on
        controls is ``{"by": [their names], "table": [a value for each of their stops]}``.
    Raises: ``ValueError`` for scenes that differ in their panels or marks.
    Guarantees: test_dials.py::test_a_dial_shows_what_its_scene_draws.
    """
    stops = [control["values"] for control in controls.values()]
    scenes = []
    for values in itertools.product(*stops):
        panels, say = scene(**dict(zip(controls, values, strict=True)))
        pieces = [say] if isinstance(say, str) else say
        scenes.append(
            plain_values({"panels": panels, "say": [{"words": piece} for piece in pieces]})
        )
    return _merge(scenes, list(controls), tuple(map(len, stops)))


def _merge(parts: list[Any], names: list[str], shape: tuple[int, ...]) -> Any:
    """Merges the same part of all scenes: structure is kept, leaves become tables."""
    first = parts[0]
    if isinstance(first, dict):
        check(all(part.keys() == first.keys() for part in parts), "scene", "keys", "alike")
        return {key: _merge([part[key] for part in parts], names, shape) for key in first}
    if isinstance(first, list) and first and isinstance(first[0], dict):
        check(all(len(part) == len(first) for part in parts), "scene", "lists", "alike long")
        places = range(len(first))
        return [_merge([part[i] for part in parts], names, shape) for i in places]
    texts = np.array([repr(part) for part in parts], dtype=object).reshape(shape)
    places = np.arange(len(parts)).reshape(shape)
    by = []
    for k, name in enumerate(names):
        one_stop = texts.take([0], axis=k)
        if (texts == one_stop).all():
            texts = one_stop
            places = places.take([0], axis=k)
        else:
            by.append(name)
    table = [parts[i] for i in places.ravel()]
    return {"by": by, "table": table} if by else first


# ---- the widget


class Dial(anywidget.AnyWidget):
    """A scene with controls that the browser draws, from tables that Python has computed.

    ``values`` holds what the controls say: the kernel sees every move, and what is assigned to it
    moves the controls. Where nothing runs the dial shows what it is in words; on the project's site
    the same tables turn it.

    Args:
        name: lesson and dial, such as "03/two_worlds": its words stand in the lesson's dials.toml,
            and what it stands at first and settings to click, unless they are given.
        scene: values of the controls -> panels and a sentence (`scene.panel`).
        presets: words -> values of some controls, settings to click.
        start: control -> its value at first.
        play: name of a control that a button moves by itself.
        stops: control -> what it may stand at: numbers of a slider, or value -> words of a menu.

    Guarantees: a control moves picture, sentence and ``values``
        (test_widget_pages.py::test_a_dial_turns_in_jupyter), the first two also on a page
        without a kernel (test_dials_turn_on_a_page_without_a_kernel).

    >>> import fedlora_course as course
    >>> import fedlora_lab as fl
    >>> dial = course.lesson(2).deviation_explorer()
    >>> sorted(dial.values)
    ['spread', 'together', 'weight']
    """

    spec = traitlets.Dict().tag(sync=True)
    values = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        name: str,
        scene: Callable[..., Scene],
        *,
        presets: Mapping[str, Mapping[str, Value]] | None = None,
        start: Mapping[str, Value] | None = None,
        play: str = "",
        **stops: Sequence[float] | Mapping[Any, str],
    ) -> None:
        lesson, _, dial = name.partition("/")
        path = HERE.parent / f"lesson_{lesson}" / "dials.toml"
        words = tomllib.loads(path.read_text(encoding="utf-8"))[dial]
        controls = {
            key: describe_control(some, *words["controls"][key]) for key, some in stops.items()
        }
        self._scene = scene
        self._about = words["about"]
        self.add_traits(_esm=traitlets.Unicode(widget_module("dial")).tag(sync=True))
        spec = {"title": words["title"], "lead": words["lead"], "play": play, "controls": controls}
        spec["presets"] = presets or words["presets"]
        # Tuples are lists in the browser, and so they are here.
        spec = json.loads(json.dumps(spec | tabulate(scene, controls)))
        super().__init__(spec=spec, values=start or words["start"])

    def picture(self, **values: Any) -> Picture:
        """Draws the dial as a static figure, with its sentence below.

        Args: values: of controls; the others stand where they stand in the browser. They need not
            be stops.
        """
        return draw_scene(self._scene(**{**self.values, **values}))

    def __repr__(self) -> str:
        return f"Dial: {self._about}"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle, *metadata = super()._repr_mimebundle_(**kwargs)  # type: ignore[misc]
        state = {"spec": self.spec, "values": self.values}
        # Between single quotes, so that the many double ones of JSON stay as they are.
        text = json.dumps(state, ensure_ascii=False, separators=(",", ":"))
        attribute = escape(text, quote=False).replace("'", "&#39;")
        about = f"<p><b>Dial.</b> {escape(self._about)} Run this cell to turn it.</p>"
        html = f"<div data-fedlora-dial='{attribute}'>{about}</div>"
        return {**bundle, "text/plain": repr(self), "text/html": html}, *metadata
