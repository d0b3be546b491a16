"""The grammar: rows are immutable data, schedules repeat, the table says what the rows say."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest
import torch

import fedlora_lab as fl
from fedlora_lab import methods, rules
from fedlora_lab.method import Cycle, Global, Method, Slot

CORE = [
    "engine",
    "upload",
    "loop",
    "observe",
    "aggregate/mean",
    "aggregate/products",
    "aggregate/choice",
    "wire",
    "rules",
    "mechanism",
    "adapters",
]
CORE += ["aggregate/rule", "ranks", "record", "checkpoint", "traffic", "agreement", "separable"]
SLUGS = ["fedlora", "ffa-lora", "rolora", "deer", "deer-literal", "la-lora", "la-lora-unfiltered", "fedlpp", "local"]
RELATIVES = ["fedex-lora", "flora", "flexlora", "hetlora", "fedsa-lora", "sdflora", "lora-fair", "fedsvd", "fedask"]
RELATIVES += ["fed-sb", "as-lora", "dp-lora", "dp-fedlora"]


def test_cycle_repeats():
    """Rounds repeat with the number of strings, steps with the number of words."""
    cycle = Cycle(("B A", "AB", "A B B"))
    for t in range(9):
        for s in range(12):
            assert cycle(t, s) == (("B", "A"), ("AB",), ("A", "B", "B"))[t % 3][s % (2, 1, 3)[t % 3]]


@pytest.mark.parametrize(
    ("train", "steps", "moved"),
    [
        (("AB",), 1, ["AB", "AB"]),
        (("BA",), 1, ["AB", "AB"]),
        (("B",), 3, ["B", "B"]),
        (("B", "A"), 2, ["B", "A"]),
        (("B A",), 1, ["B", "B"]),
        (("B A",), 2, ["AB", "AB"]),
    ],
)
def test_what_moved_is_read_from_the_steps(train, steps, moved):
    row = methods.FedLoRA.replace(train=Cycle(train))
    assert [row.moved(t, steps) for t in range(2)] == moved
    assert [row.sent(t, steps) for t in range(2)] == moved
    for share in ("A", "B", "AB", ""):
        sent = ["".join(side for side in sides if side in share) for sides in moved]
        assert [row.replace(share=share).sent(t, steps) for t in range(2)] == sent


def words(row: Method) -> list[str]:
    return [row.moves(t, s) for t in (0, 1) for s in (0, 1)]


def test_the_founding_rows():
    """As the papers have them: what moves when, what is exact, what is filtered, whitened, quantised."""
    rows = {slug: methods.ALL[slug] for slug in SLUGS}
    assert {slug for slug, row in rows.items() if row.exact} == {"ffa-lora", "rolora", "deer", "deer-literal"}
    moves = {slug: words(row) for slug, row in rows.items()}
    assert moves["fedlora"] == moves["fedlpp"] == moves["local"] == ["AB"] * 4
    assert moves["ffa-lora"] == ["B"] * 4
    assert moves["rolora"] == moves["deer"] == moves["deer-literal"] == ["B", "B", "A", "A"]
    assert moves["la-lora"] == moves["la-lora-unfiltered"] == ["B", "A", "B", "A"]
    assert [slug for slug, row in rows.items() if row.smooth is not rules.identity] == ["la-lora"]
    assert [slug for slug, row in rows.items() if row.whiten is not None] == ["deer", "deer-literal"]
    assert rows["fedlpp"].broadcast.bits(64) == 64 * 4 + 32


def test_the_family():
    """What the relatives change: who moves, what is sent, what the server does, where the clip falls."""
    rows = methods.ALL
    assert list(rows) == [*SLUGS[:-1], *RELATIVES, SLUGS[-1]]
    assert {slug for slug in RELATIVES if rows[slug].exact} == {
        "fedex-lora", "flora", "fedsvd", "fedask", "fed-sb", "as-lora"
    }  # fmt: skip
    moves = {slug: set(words(rows[slug])) for slug in RELATIVES}
    assert [slug for slug in RELATIVES if moves[slug] == {"B"}] == ["fedsvd", "fedask"]
    assert moves["fed-sb"] == {"R"}
    assert moves["as-lora"] == {"*"}
    assert rows["fedsa-lora"].share == "A"
    assert rows["sdflora"].own_ranks == 0.5
    assert [slug for slug in RELATIVES if rows[slug].parts is not rules.together] == ["dp-lora", "dp-fedlora"]
    assert rows["fedsvd"].aggregate is rows["flexlora"].aggregate
    assert all(row.slug == slug for slug, row in (rows | methods.VARIANTS).items())
    assert all("arXiv:" in row.source for slug, row in rows.items() if slug != "local")
    assert not set(methods.VARIANTS) & set(rows)
    assert methods.get("la-lora-a-first").train(0, 0) == "A"


def test_rows_are_immutable_and_hashable():
    assert len({*methods.ALL.values(), *methods.ALL.values()}) == len(methods.ALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        methods.FFA.exact = False  # type: ignore[misc]
    other = methods.FFA.replace(name="mine")
    assert (other.slug, other.train, methods.FFA.slug) == ("mine", methods.FFA.train, "ffa-lora")


def test_rows_and_rules_stay_short():
    """A row within 20 lines, its rule within 25 lines of code."""
    for node in ast.parse(inspect.getsource(methods)).body:
        if isinstance(node, ast.Assign) and isinstance(vars(methods)[ast.unparse(node.targets[0])], Method):
            assert (node.end_lineno or 0) - node.lineno < 20, ast.unparse(node.targets[0])
    for row in methods.ALL.values():
        for rule in (row.whiten, row.smooth, row.aggregate, row.broadcast):
            if rule is not None:
                code = inspect.getsource(rule if inspect.isfunction(rule) else type(rule).__call__)
                body = code.split('"""')[-1]
                assert len(body.strip().splitlines()) <= 25, rule


@pytest.mark.parametrize("module", CORE)
def test_no_room_knows_a_method_by_name(module):
    """No branch on a name: the core holds no slug and asks for none ("local" is a word of trust as well)."""
    text = (Path(fl.__file__).parent / f"{module}.py").read_text()
    for row in methods.ALL.values():
        if row.slug != "local":
            assert f'"{row.slug}"' not in text
            assert f'"{row.name}"' not in text
    assert ".slug ==" not in text
    assert ".name ==" not in text


def test_the_table_is_the_rows():
    table = fl.methods.table()
    assert list(table.index) == list(methods.ALL)
    assert table.loc["la-lora", "train"] == "B A"
    assert table.loc["rolora", "train"] == "B | A"
    assert table.loc["local", "share"] == "nothing"
    assert table.loc["deer", "whiten"] == "product_space"
    assert table.loc["fedlpp", "broadcast"] == "NormalFloat(width=4, block=64)"
    mine = methods.FedLoRA.replace(name="mine", train=lambda t, s: "B")
    assert fl.methods.table([mine]).loc["mine", "train"] == "<lambda>"


def test_show_gives_the_row_and_its_rules():
    text = str(fl.show("la-lora"))
    assert "name='LA-LoRA'" in text
    assert "class Binomial" in text
    assert "class MeanUpdate" not in text
    assert "def product_space" in str(fl.show(methods.DEeR))
    assert repr(fl.show("fedlora")) == str(fl.show("fedlora"))


@pytest.mark.parametrize("name", ["", " ", "---", 3, None])
def test_a_name_needs_a_letter(name):
    with pytest.raises(ValueError, match=r"^name=.*: expected a name with a letter or digit"):
        Method(name, "nowhere")


def test_a_state_is_a_mapping_of_slots():
    a, b, head = Slot("A", "x"), Slot("B", "x"), Slot("head", "y.weight")
    state = Global({a: torch.zeros(1, 2), b: torch.zeros(3, 1), head: torch.zeros(4)})
    assert state.layers == ("x",)
    assert list(state.side("head")) == ["y.weight"]
    assert str(a) == "x.A"
    changed = state.with_({b: torch.ones(3, 1)})
    assert changed.tensors[a] is state.tensors[a]
    assert not state.tensors[b].any()
    assert changed.tensors[b].all()
