"""A review from the shell and in anybody's pytest: its exit status, and what is written."""

import re
import subprocess
import sys
import tomllib

import pytest
from places import ROOT

from dp_review import pytest_plugin
from dp_review.cli import main

pytest_plugins = ("pytester",)
PLUGIN = pytest_plugin.__name__

STEP = """
import numpy as np, dp_review
print("loaded")
data = list(np.random.default_rng(0).normal(size=(16, 6)))
claims = dp_review.Claims(clip_norm=1.0, noise_multiplier=1.0, denominator=8, steps=1, delta=1e-5)

def sent(examples, seed, scale):
    finite = [x for x in examples if np.isfinite(x).all()]
    rows = sum((x / max(1, np.linalg.norm(x)) for x in finite), np.zeros(6))
    return (rows + np.random.default_rng(seed).normal(size=6)) / scale

def right(examples, seed):
    return {"<b>": sent(examples, seed, 8)}

def wrong(examples, seed):
    return {"<b>": sent(examples, seed, max(1, len(examples)))}

def louder(examples, seed):
    return {"more": sent(examples, seed, 8) + np.random.default_rng(seed + 10**9).normal(size=6)}

def made():
    return dp_review.step(wrong, data, claims)

"""


def call(*arguments):
    """The status with which ``dp-review arguments`` leaves."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(STEP)
    return path


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("function", "options", "status"),
    [
        ("right", [], 0),
        ("wrong", [], 1),
        ("made", [], 1),
        ("louder", [], 0),
        ("louder", ["--strict"], 1),
    ],
)
def test_the_status_says_whether_a_step_is_sound(function, options, status, script, capsys):
    """For CI; what a script prints is no part of the outcome."""
    assert call(f"{script}:{function}", *options) == status
    printed = capsys.readouterr().out
    assert "loaded" not in printed
    assert ("\nBroken: " in printed) == (status == 1 and not options)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mine.py", "expected script.py:function"),
        ("none.py:right", "expected a file none.py with the function"),
        ("mine.py:nothing", "with a function of"),
        ("mine.py:sent", "of examples and a seed"),
        ("mine.py:print", "with a function of"),
        ("broken.py:right", "ZeroDivisionError"),
        ("empty.py:add", "data and claims"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(target, words, script, capsys, monkeypatch):
    """And status 2, whatever somebody's module raises."""
    monkeypatch.chdir(script.parent)
    script.with_name("broken.py").write_text("1 / 0")
    script.with_name("empty.py").write_text("from operator import add")
    assert call(target) == 2
    error = capsys.readouterr().err.removeprefix("loaded\n")
    assert error.startswith("dp-review: ") and words in error and error.count("\n") == 1


REPORTED = {path.stem: path for path in (ROOT / "examples" / "reported").glob("*.py")}
COUNTED = {"jax_privacy_234": (2, 2), "jax_privacy_287": (1, 2)}
"""Statuses where no step is looked at."""


@pytest.mark.slow
@pytest.mark.parametrize("name", REPORTED)
def test_a_public_report_is_reproduced(name, capsys):
    """The step as it was reported, and mended; the page has each, with its address."""
    path = REPORTED[name]
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= 60
    address = re.search(r"https://github\.com/\S+", text)
    page = (ROOT / "examples" / "reported" / "README.md").read_text("utf-8")
    assert address and address[0] in page and f"`{name}.py`" in page
    last = "spent" if "def spent" in text else "mended"
    strict = ["--strict"] if "--strict" in text else []
    seen = [call(f"{path}:{one}", *strict) for one in ("reported", last)]
    printed = capsys.readouterr().out
    assert tuple(seen) == COUNTED.get(name, (1, 0)), printed
    assert all(number in printed for number in re.findall(r"prints (ε = [\d.]+)", text))


@pytest.mark.slow
def test_the_page_shows_what_the_command_prints(tmp_path, capsys):
    """The first example of docs/review.md; digits may differ between processors."""
    page = (ROOT / "docs" / "review.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.S)
    shown = re.findall(r"^\| (broken|sound) \| (.+) \| (.+) \|$", page, re.M)
    assert code and len(shown) == 3
    path = tmp_path / "my_step.py"
    path.write_text(code[1])
    assert call(f"{path}:step") == 1
    printed = re.sub(r"[\d.]+", "0", capsys.readouterr().out)
    for verdict, check, found in shown:
        found = re.escape(re.sub(r"[\d.]+", "0", found))
        assert re.search(rf"^{verdict} +{check} +{found}", printed, re.M), check


@pytest.mark.slow
def test_the_fixture_fails_a_test_whose_step_is_not_private(pytester, monkeypatch):
    """It is one of pytest's plugins wherever the library is installed."""
    path = ROOT / "dp_review" / "pyproject.toml"
    declared = tomllib.loads(path.read_text("utf-8"))["project"]
    assert declared["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
    pytester.makepyfile(
        mine=STEP,
        test_mine="""
        import pytest
        import mine

        @pytest.mark.parametrize("name", ["right", "wrong"])
        def test_step(private_step, name):
            private_step(getattr(mine, name), mine.data, mine.claims, draws=16)

        def test_a_review_that_was_made(private_step):
            private_step(mine.made())
        """,
    )
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    done = pytester.runpytest_inprocess("-p", PLUGIN)
    done.assert_outcomes(passed=1, failed=2)
    done.stdout.fnmatch_lines(["broken *sensitivity*"])


def test_pytest_loads_nothing_heavy_before_the_fixture_is_used():
    """Every run of pytest imports the plugin, in every project of whoever installed the package."""
    program = "import sys, dp_review.pytest_plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert not {"numpy", "scipy", "dp_accounting", "torch"} & {*done.stdout.split()}, done.stderr
