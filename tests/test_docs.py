"""The pages that promise to run, run."""

import re
from pathlib import Path
from typing import Any

import contract
import pytest

from fedlora_lab.cli import commands

DOCS = Path(__file__).parent.parent / "docs"


ROOT = DOCS.parent
MARKDOWN = [*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CHANGELOG.md", "book/index.md"))]


@pytest.mark.parametrize("path", MARKDOWN, ids=lambda path: path.stem)
def test_no_line_of_a_page_is_syntax_by_accident(path: Path) -> None:
    """MyST drops a line that begins with a percent sign; the site would show the page without it."""
    from fedlora_lab.summary import shown_whole, silent_lines

    assert silent_lines(path.read_text(encoding="utf-8")) == []
    for line in ("% interval.", "+++", "(place)=", ":::{note}", "  % indented"):
        assert silent_lines(f"prose\n{line}\nprose\n\n```\n{line}\n```\n") == [line]
        with pytest.raises(ValueError, match=r"^page="):
            shown_whole(line)


def test_the_claims_page_is_shown_whole() -> None:
    """Parsed as the site parses it: every word of the page is in the text that comes out."""
    from docutils.core import publish_doctree
    from myst_parser.parsers.docutils_ import Parser

    from fedlora_lab.study.published import CLAIMS

    source = (DOCS / "claims.md").read_text(encoding="utf-8")
    options = {"myst_enable_extensions": ["colon_fence", "deflist", "tasklist"], "report_level": 5}
    text = " ".join(publish_doctree(source, parser=Parser(), settings_overrides=options).astext().split())
    for claim in CLAIMS:
        assert claim.text in text
        assert claim.setting in text
    opening = source.split("## ")[0].split("\n", 1)[1]
    for line in filter(None, opening.replace("*", "").replace("`", "").splitlines()):
        assert line in text, line


def blocks(page: str) -> list[str]:
    """The Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def adding() -> dict[str, Any]:
    """What the page on adding a method leaves behind when it is run from top to bottom."""
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks("adding_a_method.md")):
        exec(compile(code, f"adding_a_method.md, block {number}", "exec"), names)
    return names


@pytest.mark.slow
def test_adding_a_method_runs_and_says_the_truth(adding: dict[str, Any]) -> None:
    last = adding["last"]
    assert set(last.index) == {"fedlora", "rolora", "two-to-one", "fedlora-proximal"}
    assert last["epsilon"].nunique() == 1
    assert last.loc["two-to-one", "bytes_up"] == last.loc["rolora", "bytes_up"] < last.loc["fedlora", "bytes_up"]
    assert last.loc["two-to-one", "deviation"] < 1e-5 < last.loc["fedlora-proximal", "deviation"]
    assert adding["Proximal"].penalty is adding["proximal"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TwoToOne", "Proximal"])
def test_rows_of_the_page_pass_the_contract(adding: dict[str, Any], name: str) -> None:
    row = adding[name]
    contract.opens_with_what_is_zero(row)
    contract.no_op_at_start(row)
    for unit in ("example", "client"):
        contract.no_path_from_data_round_the_clip(row, unit)
        contract.frozen_and_unsent_stay_put(row, unit)
        contract.deviates_unless_exact(row, unit)
        contract.epsilon_is_that_of_the_plan(row, unit)


@pytest.mark.slow
def test_deployment_runs_as_far_as_one_machine_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms and a site's examples are written as the page writes them, and read back as an app reads them."""
    from fedlora_lab.flower import deployment

    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks("deployment.md")):
        exec(compile(code, f"deployment.md, block {number}", "exec"), names)
    party = deployment.read_terms("terms.json", names["task"])
    assert party.asked.streams.seed is None and party.asked.method.slug == "la-lora"
    assert len(deployment.read_examples("site-0.safetensors")[1]) == names["task"].sizes[0]
    for command in re.findall(r"^(?:```sh\n)?fedlora-lab (\w+)", (DOCS / "deployment.md").read_text(), re.M):
        assert command in commands.commands
