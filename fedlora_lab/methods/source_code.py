"""The library's own source as text, without docstrings: `fl.show`."""

import ast
import inspect
import textwrap
from typing import Any

from fedlora_lab._utils.validation import check
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.published import DEFAULT, get


class Source(str):
    """Text that a notebook shows as it is."""

    def __repr__(self) -> str:
        return str(self)


def show(thing: object) -> str:
    """Returns the library's own source of a function, class or method, without docstrings.

    Of a row of the table of methods it returns the fields, and the source of the rules that differ
    from the default's.

    >>> from fedlora_lab.methods.published import rule_name
    >>> print(show(rule_name))
    def rule_name(rule: object) -> str:
        return getattr(rule, "__name__", None) or repr(rule)
    >>> print(show("rolora"))
    Method(
        name='RoLoRA',
        source='arXiv:2409.02346',
        schedule=Cycle(rounds=('B', 'A')),
        exact=True,
        note='the factors take turns from round to round: exact, only one is sent',
    )
    <BLANKLINE>
    ...

    Args:
        thing: slug or row of a method, or any object with a source; of an instance its class.

    Raises:
        ValueError: for a thing that has no Python source.

    Guarantees: functions, classes and rows are shown without docstrings
        (test_show_opens_functions_classes_and_methods).
    """
    if isinstance(thing, str | Method):
        return Source(_row_text(get(thing)))
    return Source(_without_docstrings(_source_of(thing)))


def _row_text(row: Method) -> str:
    """The fields of a row that differ from the default's, and the source of their rules."""
    lines = []
    rules: dict[object, None] = {}  # in order, each once
    for name in Method.__dataclass_fields__:
        value = getattr(row, name)
        if value == getattr(DEFAULT, name):
            continue
        is_function = inspect.isfunction(value)
        lines.append(f"    {name}={value.__name__ if is_function else repr(value)},")
        if callable(value):
            rules[value if is_function else type(value)] = None
    call = "\n".join(["Method(", *lines, ")"])
    return "\n\n".join([call, *(inspect.getsource(rule).rstrip() for rule in rules)])  # type: ignore[arg-type]


def _source_of(thing: object) -> str:
    """The source of a thing as it stands, from its first column."""
    has_source = inspect.isroutine(thing) or inspect.isclass(thing)
    shown: Any = thing if has_source else type(thing)
    try:
        text = inspect.getsource(shown)  # type: ignore[arg-type]
    except (OSError, TypeError):
        text = ""
    check(bool(text), "thing", thing, "a method's slug or row, or a thing with Python source")
    return textwrap.dedent(text).rstrip()


def _without_docstrings(text: str) -> str:
    """The same source without docstrings; a body that was nothing else becomes three dots."""
    replaced: dict[int, str | None] = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            end = docstring.end_lineno or docstring.lineno
            replaced |= dict.fromkeys(range(docstring.lineno, end + 1))
            if len(node.body) == 1:
                replaced[docstring.lineno] = " " * docstring.col_offset + "..."
    lines: list[str] = []
    for number, original in enumerate(text.splitlines(), 1):
        line = replaced.get(number, original)
        if line is None:
            continue
        # The empty line that followed a docstring leaves no gap under its head.
        if line.strip() or (lines and not lines[-1].endswith(":")):
            lines.append(line)
    return "\n".join(lines)
