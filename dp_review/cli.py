"""The command dp-review: it looks at a private step in somebody's own script."""

import argparse
import inspect
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import dp_review
from dp_review._validation import check, printable

FORM = "script.py:function"
SCRIPT = "reviewed_script"
"""Name under which a script is loaded: not "__main__", so that it does not begin to train."""
HELP = """Test whether a private training step keeps the epsilon stated for it.

TARGET is script.py:function. A function of two arguments, examples and a seed, is a step; the
script's names data and claims say what is tried and claimed. A function without arguments returns a
review, as dp_review.step and dp_review.opacus do. The exit status is 0 where nothing broken was
found, 1 where something was, and 2 where the step could not be looked at."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Reviews one target and leaves the process with the status of the outcome.

    Guarantees: whatever somebody's script raises is one line on stderr and status 2
        (test_what_cannot_be_looked_at_is_one_line).
    """
    parser = argparse.ArgumentParser(
        "dp-review", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="status 1 also for what is not as claimed, but may be sound",
    )
    options = parser.parse_args(arguments)
    try:
        found = review_target(options.target)
    # Somebody's script may raise anything, and may leave the process.
    except (Exception, SystemExit) as error:
        # An argument that is refused is named in the text already.
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        print(f"dp-review: {options.target}: {kind}{printable(str(error))[:400]}", file=sys.stderr)
        raise SystemExit(2) from None
    print(found)
    raise SystemExit(found.exit_status or int(options.strict and bool(found.not_as_claimed)))


def review_target(target: str) -> dp_review.Review:
    """Reviews a function of a script. Args: target: see `FORM`."""
    place, _, name = target.rpartition(":")
    check(bool(place and name), "target", target, FORM)
    path = [*sys.path]
    try:
        # What the script prints is no part of the outcome.
        with redirect_stdout(sys.stderr):
            names = load(place, target)
            function = names.get(name)
            check(callable(function), "target", target, f"{FORM}, with a function of {place}")
            assert callable(function)
            return review_of(function, names, target)
    finally:
        sys.path[:] = path


def load(place: str, target: str) -> dict[str, Any]:
    """What a script defines, by name; its folder lies on the path while it is reviewed.

    Args: place: of the script. target: for the message.
    """
    path = Path(place)
    check(path.is_file(), "target", target, f"a file {place} with the function")
    sys.path.insert(0, str(path.resolve().parent))
    return runpy.run_path(place, run_name=SCRIPT)


def review_of(
    function: Callable[..., Any], names: Mapping[str, Any], target: str
) -> dp_review.Review:
    """Reviews a function, by the number of arguments that it needs.

    Without any it returns a review; with two, examples and a seed, it is a step.

    Args: function: of the target. names: of its script, data and claims among them. target: for
    messages.
    """
    needed = [
        x
        for x in inspect.signature(function).parameters.values()
        if x.default is x.empty and x.kind not in (x.VAR_POSITIONAL, x.VAR_KEYWORD)
    ]
    expected = "a function of nothing, or of examples and a seed"
    check(len(needed) in (0, 2), "target", target, expected)
    if needed:
        expected = "data and claims beside the function, by these names"
        check({"data", "claims"} <= names.keys(), "target", target, expected)
        return dp_review.step(function, names["data"], names["claims"])
    found = function()
    expected = "a review, as of dp_review.step"
    check(isinstance(found, dp_review.Review), "target", type(found).__name__, expected)
    return found
