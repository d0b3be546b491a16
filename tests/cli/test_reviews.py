"""A review from the shell and in anybody's pytest: its exit status, and what is written."""

import json
import re
import tomllib

import pytest
from commands import call
from places import ROOT

from fedlora_lab.cli import pytest_plugin

pytest_plugins = ("pytester",)
PLUGIN = pytest_plugin.__name__

STEP = """
import numpy as np, fedlora_lab as fl
print("loaded")
data = list(np.random.default_rng(0).normal(size=(16, 6)))
claims = fl.review.Claims(clip_norm=1.0, noise_multiplier=1.0, denominator=8, steps=1, delta=1e-5)
draws = 16
parameters = [np.zeros(6)]

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
    return fl.review.step(wrong, data, claims)

def client(examples):
    from flwr.app import ArrayRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def _(message, context):
        seed = np.random.randint(2**31)
        return Message(RecordDict({"a": ArrayRecord([sent(examples, seed, 8)])}), reply_to=message)

    return app

steps, epsilon, delta = 10, 8.0, 1e-3

def script():
    import torch, opacus

    torch.manual_seed(0)
    model = torch.nn.Linear(6, 2)
    rows = torch.utils.data.TensorDataset(torch.randn(64, 6), torch.arange(64) % 2)
    loader = torch.utils.data.DataLoader(rows, batch_size=8)
    parts = opacus.PrivacyEngine().make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), data_loader=loader,
        noise_multiplier=1.0, max_grad_norm=1.0,
    )
    return *parts, torch.nn.CrossEntropyLoss()

from flwr.clientapp import ClientApp
app = ClientApp()
"""


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
        ("client", [], 0),
        ("script", [], 0),
        ("louder", [], 0),
        ("louder", ["--strict"], 1),
    ],
)
def test_the_status_says_whether_a_step_is_sound(function, options, status, script, capsys):
    """For CI; what a script prints is no part of the outcome, nor an output's name a tag."""
    page = script.with_name("page.html")
    target = f"{script}:{function}"
    assert call("review", target, "--json", "--html", page, *options) == status
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["exit_status"] == status
    assert bool(outcome["broken"]) == (status == 1 and not options)
    text = page.read_text("utf-8")
    assert target in text and "<b>" not in text
    assert not re.search(r"<(script|link|img)|https?:", text)


# Of a package that Flower depends on, about another.
@pytest.mark.filterwarnings("ignore:'click:DeprecationWarning")
@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("mine.py", "module:function"),
        ("none.py:right", "expected a file none.py with the function"),
        ("mine.py:nothing", "with a function of"),
        ("mine.py:sent", "of examples and a seed"),
        ("mine.py:app", "makes a ClientApp"),
        ("mine.py:print", "with a function of"),
        ("broken.py:right", "ZeroDivisionError"),
        ("no_such_module:right", "ModuleNotFoundError"),
        ("json:dumps", "data and claims"),
        ("textwrap:dedent", "data and claims"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(target, words, script, capsys, monkeypatch):
    """And status 2, whatever somebody's module raises."""
    monkeypatch.chdir(script.parent)
    script.with_name("broken.py").write_text("1 / 0")
    assert call("review", target) == 2
    error = capsys.readouterr().err.removeprefix("loaded\n")
    assert error.startswith("fedlora-lab: ") and words in error and error.count("\n") == 1


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
    page = (ROOT / "docs" / "reported.md").read_text("utf-8")
    assert address and address[0] in page and f"reported/{name}.py" in page
    last = "spent" if "def spent" in text else "mended"
    strict = ["--strict"] if "--strict" in text else []
    seen = [call("review", f"{path}:{one}", *strict) for one in ("reported", last)]
    printed = capsys.readouterr().out
    assert tuple(seen) == COUNTED.get(name, (1, 0)), printed
    assert all(number in printed for number in re.findall(r"prints (ε = [\d.]+)", text))


@pytest.mark.slow
def test_the_page_shows_what_the_command_prints(tmp_path, capsys):
    """The first example of docs/is_my_epsilon_true.md; digits may differ between processors."""
    page = (ROOT / "docs" / "is_my_epsilon_true.md").read_text("utf-8")
    code, shown = (re.search(rf"```{kind}\n(.*?)```", page, re.S) for kind in ("python", "text"))
    assert code and shown
    path = tmp_path / "my_step.py"
    path.write_text(code[1])
    assert call("review", f"{path}:step") == 1
    printed = re.sub(r"\d", "0", capsys.readouterr().out)
    for line in shown[1].splitlines():
        assert re.sub(r"\d", "0", line.split(" (")[0]) in printed, line


@pytest.mark.slow
def test_the_fixture_fails_a_test_whose_step_is_not_private(pytester):
    """It is one of pytest's plugins wherever the library is installed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
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
    done = pytester.runpytest_inprocess("-p", PLUGIN)
    done.assert_outcomes(passed=1, failed=2)
    done.stdout.fnmatch_lines(["broken *sensitivity*"])
