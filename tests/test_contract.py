"""Every method of the table passes the contract, found by iteration; and the contract can fail."""

import ast
import inspect
import re
from pathlib import Path

import broken_rows
import contract
import pytest
import steps
import torch
from small import UNITS

from fedlora_lab import engine, methods
from fedlora_lab.method import Cycle, Method
from fedlora_lab.wire import normal_float

ROOT = Path(__file__).resolve().parent.parent


def proximal(rows, start):
    """Half the squared distance from what the client received, example by example."""
    return 0.5 * torch.stack([(rows[slot] - start[slot]).square().flatten(1).sum(1) for slot in rows]).sum(0)


# Rows that nobody published, from fields that the table does not combine: the contract holds for what users write.
WRITTEN = [
    methods.FedLoRA.replace(name="keeps B", share="A"),
    methods.FedLoRA.replace(name="proximal", penalty=proximal),
    methods.FFA.replace(name="FFA quantised", broadcast=normal_float(width=4, block=8)),
]
ROWS = [*methods.ALL.values(), *WRITTEN]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)
every_unit = pytest.mark.parametrize("unit", UNITS)


@every_row
def test_no_op_at_start(row):
    contract.no_op_at_start(row)


@every_row
@every_unit
def test_same_seed_same_bits(row, unit):
    contract.same_seed_same_bits(row, unit)


@every_row
@every_unit
def test_resume_is_uninterrupted(row, unit, tmp_path):
    contract.resume_is_uninterrupted(row, unit, str(tmp_path))


@every_row
@every_unit
def test_no_clip_no_noise_is_the_plain_run(row, unit):
    contract.no_clip_no_noise_is_the_plain_run(row, unit)


@every_row
@every_unit
def test_no_path_from_data_round_the_clip(row, unit):
    contract.no_path_from_data_round_the_clip(row, unit)


@every_row
def test_leaving_out_one_example_moves_the_sum_by_at_most_c(row):
    steps.leaving_out_one_example(row)


@every_row
def test_leaving_out_one_client_moves_the_sum_by_at_most_c(row):
    steps.leaving_out_one_client(row)


@every_row
def test_noise_is_sigma_c_on_what_moves(row):
    steps.noise_is_sigma_c_on_what_moves(row)


@every_row
def test_noise_of_the_update(row):
    steps.noise_of_the_update(row)


@every_row
@every_unit
def test_frozen_and_unsent_stay_put(row, unit):
    contract.frozen_and_unsent_stay_put(row, unit)


@every_row
@every_unit
def test_kept_factors_stay_with_their_client(row, unit):
    contract.kept_factors_stay_with_their_client(row, unit)


@every_row
@every_unit
def test_one_or_equal_clients_give_no_deviation(row, unit):
    contract.one_or_equal_clients_give_no_deviation(row, unit)


@every_row
@every_unit
def test_deviates_unless_exact(row, unit):
    contract.deviates_unless_exact(row, unit)


@every_row
@every_unit
def test_client_order_is_irrelevant(row, unit):
    contract.client_order_is_irrelevant(row, unit)


@every_row
@every_unit
def test_epsilon_is_that_of_the_plan(row, unit):
    contract.epsilon_is_that_of_the_plan(row, unit)


@every_row
def test_the_schedule_opens_with_what_is_zero(row):
    contract.opens_with_what_is_zero(row)


@every_row
def test_smoothing_is_linear_keeps_the_mean_and_never_grows_the_norm(row):
    steps.smoothing_is_linear(row)


@every_row
def test_smoothing_comes_after_the_noise(row):
    steps.smoothing_comes_after_the_noise(row)


@every_row
def test_the_filter_acts_once_where_the_noise_is(row):
    contract.the_filter_acts_once_where_the_noise_is(row)


@every_row
@every_unit
def test_chunks_change_nothing(row, unit):
    contract.chunks_change_nothing(row, unit)


@every_row
@every_unit
def test_learns_an_easy_task(row, unit):
    contract.learns_an_easy_task(row, unit)


def _apply(clause: str, row: Method, step) -> None:
    check = getattr(contract, clause, None) or getattr(steps, clause)
    names = inspect.signature(check).parameters
    check(row, **({"unit": "example"} if "unit" in names else {}), **({"step": step} if "step" in names else {}))


@pytest.mark.parametrize(
    ("name", "row", "step", "clause"), broken_rows.BROKEN, ids=lambda value: getattr(value, "__name__", str(value)[:24])
)
def test_the_contract_can_fail(name, row, step, clause):
    """Each broken row fails the clause that is there for it; where only its step is broken, the row itself passes."""
    with pytest.raises(AssertionError):
        _apply(clause, row(), step)
    if step is not engine.local_step:
        _apply(clause, row(), engine.local_step)


def test_an_opening_with_a_is_found():
    with pytest.raises(AssertionError):
        contract.opens_with_what_is_zero(methods.RoLoRA.replace(train=Cycle(("A", "B"))))


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_filter_that_is_none_is_found(scale):
    with pytest.raises(AssertionError):
        steps.smoothing_is_linear(methods.FedLoRA.replace(smooth=lambda tensor, side: scale * tensor))


def test_every_clause_is_tested():
    """No clause is left without a test that runs it over the table."""
    here = (Path(__file__)).read_text()
    clauses = [
        f"{module.__name__}.{name}("
        for module in (contract, steps)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and next(iter(inspect.signature(function).parameters), "") == "row"
        if name
        not in ("sent_up", "keeps", "own_part", "at_home_cut", "in_units_of_noise", "in_units_of_clip", "noise_draws")
    ]
    assert len(clauses) >= 18
    assert [clause for clause in clauses if clause not in here] == []


def test_every_test_named_in_a_docstring_exists():
    """A docstring that promises something names the test that holds it: file::name, a name alone, or a file."""
    defined: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        defined[path.name] = {node.name for node in tree if isinstance(node, ast.FunctionDef)}
    everything = set().union(*defined.values())
    missing = []
    for path in sorted((ROOT / "fedlora_lab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                continue
            for file, name in re.findall(r"(test_\w+\.py)?(?:::)?(test_\w+)?", ast.get_docstring(node) or ""):
                known = name in everything if not file else file in defined and (not name or name in defined[file])
                if (file or name) and not known:
                    missing.append(f"{path.relative_to(ROOT)}: {file}::{name}")
    assert missing == []
