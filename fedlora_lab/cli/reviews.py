"""What the command review does: it looks at a private step in somebody's own module or script."""

import importlib
import importlib.util
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from fedlora_lab import review
from fedlora_lab._utils.environment import __version__
from fedlora_lab._utils.files import JsonObject, write_atomically
from fedlora_lab._utils.html_table import html_table
from fedlora_lab._utils.validation import check, error_text

FORMS = "module:function or script.py:function"
SCRIPT = "reviewed_script"
"""Name under which a script is loaded: not "__main__", so that it does not begin to train."""
NAMES = {
    review.step: ("data", "claims", "loader", "others", "batch", "draws", "seed"),
    review.flower: ("data", "claims", "parameters", "config", "loader", "draws", "seed"),
    review.opacus: ("steps", "epsilon", "delta", "draws", "seed"),
}
"""Arguments of a review that are read from the module of what is reviewed, if it has them."""


def review_target(target: str, page: Path | None, *, as_json: bool, strict: bool) -> int:
    """Reviews a target, prints what was found, and returns the exit status.

    Args:
        target: "module:function" or "script.py:function".
        page: where an HTML page is written, or ``None``.
        as_json: whether JSON is printed in place of the table.
        strict: whether what is not as claimed, but may be sound, counts as a finding.
    """
    path = [*sys.path]
    try:
        # What the script prints is no part of the outcome.
        with redirect_stdout(sys.stderr):
            found = review_of(*load_target(target), target)
    finally:
        sys.path[:] = path
        sys.modules.pop(SCRIPT, None)
    status = found.exit_status or int(strict and bool(found.not_as_claimed))
    if page is not None:
        write_atomically(page, html_page(target, found), shared=True)
    outcome = to_json(found) | {"target": target, "exit_status": status}
    text = json.dumps(outcome, indent=2, ensure_ascii=False)
    click.echo(text if as_json else str(found))
    return status


@contextmanager
def telling_errors(target: str) -> Iterator[None]:
    """Turns whatever somebody's module raises into one line that names it."""
    try:
        yield
    except (Exception, SystemExit) as error:
        text = f"{type(error).__name__}: {error_text(error, 200)}"
        raise click.ClickException(f"{target} could not be looked at: {text}") from error


def load_target(target: str) -> tuple[ModuleType, Callable[..., Any]]:
    """Imports the module of a target, and finds its function. Args: target: see `review_target`."""
    place, _, name = target.rpartition(":")
    check(bool(place and name), "target", target, FORMS)
    path = Path(place)
    is_script = path.suffix == ".py"
    check(not is_script or path.is_file(), "target", target, f"a file {place} with the function")
    with telling_errors(target):
        if is_script:
            sys.path.insert(0, str(path.resolve().parent))
            spec = importlib.util.spec_from_file_location(SCRIPT, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[SCRIPT] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, os.getcwd())
            module = importlib.import_module(place)
    function = getattr(module, name, None)
    check(callable(function), "target", target, f"{FORMS}, with a function of {place}")
    assert callable(function)
    return module, function


def review_of(module: ModuleType, function: Callable[..., Any], target: str) -> review.Review:
    """Reviews a function of a module, by the number of arguments that it needs.

    Without any it returns a review, or the private parts of an Opacus script; with one, examples,
    it makes a Flower client of them; with two, examples and a seed, it is a step.

    Args: module: holds data and claims, by name. function: of it. target: names both.
    """
    made = type(function).__name__ != "ClientApp"
    check(made, "target", target, "a function that makes a ClientApp of a list of examples")
    needed = [
        x
        for x in inspect.signature(function).parameters.values()
        if x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
    ]
    expected = "a function of nothing, of examples, or of examples and a seed"
    check(len(needed) <= 2, "target", target, expected)
    if needed:
        look = review.flower if len(needed) == 1 else review.step
        for name in ("data", "claims"):
            named = hasattr(module, name)
            check(named, name, None, f"data and claims in {module.__file__}, by these names")
        return look(function, **named_options(module, look))
    with telling_errors(target):
        found = function()
    if isinstance(found, tuple):
        return review.opacus(*found, **named_options(module, review.opacus))
    reviewed = isinstance(found, review.Review)
    expected = "a review, or (module, optimizer, loader, criterion) of an Opacus script"
    check(reviewed, target, type(found).__name__, expected)
    return found


def named_options(module: ModuleType, look: Callable[..., review.Review]) -> dict[str, Any]:
    """What a module has by the names of a review's arguments. Args: look: the review."""
    return {name: getattr(module, name) for name in NAMES[look] if hasattr(module, name)}


def to_json(found: review.Review) -> JsonObject:
    """A review as JSON values; a number that is not finite is null."""

    def finite(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    findings = [
        {name: finite(value) for name, value in one._asdict().items()}
        | {"docs": review.CHECKS[one.check].docs, "remedy": review.CHECKS[one.check].remedy}
        for one in found.findings
    ]
    return {
        "format": 1,
        "summary": found.summary,
        "broken": sorted(found.broken),
        "not_as_claimed": sorted(found.not_as_claimed),
        "epsilon": finite(found.epsilon),
        "claims": asdict(found.claims),
        "findings": findings,
        "not_looked_at": list(found.not_looked_at),
    }


def html_page(target: str, found: review.Review) -> str:
    """A review as one page that loads nothing from elsewhere.

    Args: target: what was reviewed. found: in it.
    """
    title = f"Review of {escape(target)}"
    claims = html_table(
        (name, value) for name, value in asdict(found.claims).items() if value is not None
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
td, th {{ padding: .2rem .8rem .2rem 0 }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{escape(found.summary)}</p>
{found._repr_html_()}
<h2>What is claimed</h2>
{claims}
<p>Made by fedlora-lab {__version__}. A pass is no proof.</p>
</body>
</html>
"""
