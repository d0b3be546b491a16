"""The pages that promise to run, run; the docstrings' examples print what they say."""

import doctest
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from contract_clauses import frozen_and_unsent_factors_never_change
from places import ROOT

import dp_review
import fedlora_lab as fl
from dp_review.claims import CHECKS
from fedlora_lab.methods.optimizers import OPTIMIZERS

DOCS = ROOT / "docs"
FRONT = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "book/index.md")
FRONT += ("dp_review/README.md", "studies/README.md", "studies/logbook.md")
MARKDOWN = [*DOCS.rglob("*.md"), *(ROOT / page for page in FRONT)]
MARKDOWN += (ROOT / "examples").rglob("*.md")
MODULES = [
    found.name
    for package in (fl, dp_review)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
MODULES += ["dp_review"]


@pytest.mark.parametrize(
    "name",
    [
        # Of those that train whole runs `make check` tries none.
        pytest.param(name, marks=[pytest.mark.slow] * ("recipes" in name))
        for name in MODULES
    ],
)
def test_examples_run(name):
    """All that the source shows are run: doctest passes by what it cannot find."""
    module = import_module(name)
    source = Path(str(module.__file__)).read_text("utf-8")
    shown = len(re.findall(r"^ *>>> ", source, re.M))
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS) == (0, shown)


@pytest.mark.parametrize("name", fl.__all__)
def test_every_public_name_shows_an_example(name):
    """`test_examples_run` runs it."""
    assert doctest.DocTestFinder(recurse=False).find(getattr(fl, name))[0].examples


def test_guarantees_name_tests_that_exist():
    """In docstrings and on every page."""
    folders = ROOT / "tests", ROOT / "studies" / "tests"
    files = [path for folder in folders for path in folder.rglob("*.py")]
    text = "".join(path.read_text("utf-8") for path in files)
    known = {*re.findall(r"^(?:def )?(test_\w+)(?= =|\()", text, re.M), *(p.stem for p in files)}
    sources = [path for x in ("fedlora_lab", "dp_review") for path in (ROOT / x).rglob("*.py")]
    sources = [path for path in sources if path.parent.name != "template"]
    for path in (*sources, *MARKDOWN):
        assert {*re.findall(r"\btest_\w+\b", path.read_text("utf-8"))} <= known, path


def heading_links(text):
    """The places that GitHub and the site give the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    heads = [re.sub(r"[^\w -]", "", head.lower()) for head in re.findall(r"^#+ (.*)$", prose, re.M)]
    return {head.strip().replace(" ", "-") for head in heads}


PLACES = r"`((?:fedlora_lab|tests|scripts|docs|notebooks|benchmarks|results|studies)/[\w./-]*)`"


ON_GITHUB = [
    "../../actions/workflows/test.yml",
    "../../actions/workflows/test.yml/badge.svg",
    "../../discussions",
]
"""Paths from README that GitHub completes."""


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_paths_and_names_of_a_page_exist(path):
    """The logbook speaks of what is gone as well. Nothing is linked by an owner's place."""
    text = path.read_text("utf-8")
    assert "/OWNER/" not in text
    home = ROOT if path.stem == "index" else path.parent
    links = re.findall(r"\]\((?!https?:|api/)([^)#\s]+)", text)
    links = [link for link in links if link not in ON_GITHUB]
    assert [link for link in links if not (home / link).exists()] == []
    for place, anchor in re.findall(r"\]\(([^):#\s]*)#([^)\s]+)\)", text):
        target = home / place if place else path
        if target.suffix == ".md":
            assert anchor in heading_links(target.read_text("utf-8")), (place, anchor)
    if path.name == "logbook.md":
        return
    assert [place for place in re.findall(PLACES, text) if not (ROOT / place).exists()] == []
    for name in re.findall(r"`(?:fl|fedlora_lab)\.([\w.]*\w)", text):
        pkgutil.resolve_name(f"fedlora_lab.{name}")


def run_page(page, **names):
    """The names that the Python blocks of a page leave, run in order after these."""
    text = (DOCS / page).read_text("utf-8")
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)):
        exec(compile(code, f"{page}, block {number}", "exec"), names)
    return names


@pytest.mark.further
def test_adding_a_method_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tables = {"largest": fl.tasks.TASKS, "sign": OPTIMIZERS, "unsampled": fl.privacy.ACCOUNTANTS}
    for name, table in tables.items():
        monkeypatch.setitem(table, name, None)  # and taken out afterwards
    names = run_page("adding_a_method.md")
    plt.close("all")
    for row in ("Capped", "TwoToOne", "Smoothed", "Heavy"):
        frozen_and_unsent_factors_never_change(names[row], "example")
    table = names["table"]
    assert table["ε"].nunique() == 1
    assert table["deviation"]["Two to one"] == "0" < table["deviation"]["FedLoRA smoothed"]
    usual = names["bound"].replace(accountant="pld", sample_rate=None)
    tight = usual.calibrate(epsilon=8, task=names["own_task"], plan=names["own_plan"])
    assert tight.noise_multiplier < names["bound"].noise_multiplier, "its own accountant is asked"


@pytest.mark.further
def test_a_comparison_for_a_paper_runs(tmp_path, monkeypatch, capsys):
    """From the method to the table. No method does best at the edge of the rates."""
    monkeypatch.chdir(tmp_path)
    names = run_page("a_comparison.md")
    plt.close("all")
    assert [*names["table"].index] == ["FedLoRA", "FFA-LoRA", "Mine"]
    assert {*names["chosen"]["seed"]} == {2, 3}
    (chosen, _) = capsys.readouterr().out.splitlines()
    assert f"```text\n{chosen}\n```" in (DOCS / "a_comparison.md").read_text("utf-8")
    assert (tmp_path / "paper" / "rates.pdf").stat().st_size > 1000
    assert "FFA-LoRA & 0.8 &" in (tmp_path / "paper" / "table.tex").read_text("utf-8")


@pytest.mark.further
@pytest.mark.filterwarnings("ignore")  # Opacus warns of every hook
def test_the_page_on_review_finds_what_it_says():
    """And names every check."""
    names = run_page("review.md")
    assert {"sensitivity", "empty batch"} <= {*names["review"].broken}
    page = (DOCS / "review.md").read_text("utf-8")
    assert re.findall(r"^\| ([a-z -]+) \| .+\? \|$", page, re.M) == [*CHECKS]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Opacus warns of every hook
def test_the_page_on_the_ledger_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "examples" / "ledger" / "README.md"
    run_page(page)
    shown = re.findall(r"^```text\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)
    assert capsys.readouterr().out == "".join(shown)


@pytest.mark.slow
def test_the_recipe_for_several_runs_stops_at_its_limit(tmp_path, monkeypatch, capsys):
    """The second run of epsilon 9 would go beyond 10. Behind it on the page stands a loop of one's
    own, which prints what is shown."""
    monkeypatch.chdir(tmp_path)
    task = fl.tasks.digits(clients=2)
    plan = fl.Plan(rounds=2, local_steps=4, batch=16, lr=0.1)
    privacy = fl.Privacy(delta=1e-4).calibrate(epsilon=9, task=task, plan=plan)

    def run():
        return run_page("protected.md", task=task, plan=plan, privacy=privacy)

    assert 8 < run()["last"].epsilon <= 9
    page = (DOCS / "protected.md").read_text("utf-8")
    assert capsys.readouterr().out == "".join(re.findall(r"^```text\n(.*?)^```", page, re.M | re.S))
    with pytest.raises(SystemExit, match="beyond the limit"):
        run()
