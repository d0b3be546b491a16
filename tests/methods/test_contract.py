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

from fedlora_lab import methods
from fedlora_lab.federated import local_training
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.quantization import normal_float

pytestmark = pytest.mark.slow  # some 800 short runs
ROOT = Path(__file__).resolve().parents[2]


def proximal(rows, start):
    """Half the squared distance from what the client received, example by example."""
    squares = [(rows[key] - start[key]).square().flatten(1).sum(1) for key in rows]
    return 0.5 * torch.stack(squares).sum(0)


# Rows that nobody published, from fields that the table does not combine: the contract holds for
# what users write.
WRITTEN = [
    methods.FedLoRA.replace(name="keeps B", share="A"),
    methods.FedLoRA.replace(name="proximal", penalty=proximal),
    methods.FFA.replace(name="FFA quantised", broadcast=normal_float(width=4, block=8)),
]
ROWS = [*methods.ALL.values(), *WRITTEN]
every_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.slug)


def in_both_units(clause):
    return every_row(pytest.mark.parametrize("unit", UNITS)(clause))


test_no_op_at_start = every_row(contract.no_op_at_start)
test_same_seed_same_bits = in_both_units(contract.same_seed_same_bits)
test_resume_is_uninterrupted = in_both_units(contract.resume_is_uninterrupted)
test_no_clip_no_noise_is_the_plain_run = in_both_units(contract.no_clip_no_noise_is_the_plain_run)
test_no_path_from_data_round_the_clip = in_both_units(contract.no_path_from_data_round_the_clip)
test_leaving_out_one_example_moves_the_sum_by_at_most_c = every_row(steps.leaving_out_one_example)
test_leaving_out_one_client_moves_the_sum_by_at_most_c = every_row(steps.leaving_out_one_client)
test_noise_is_sigma_c_on_what_moves = every_row(steps.noise_is_sigma_c_on_what_moves)
test_noise_of_the_update = every_row(steps.noise_of_the_update)
test_frozen_and_unsent_stay_put = in_both_units(contract.frozen_and_unsent_stay_put)
test_kept_factors_stay_with_their_client = in_both_units(
    contract.kept_factors_stay_with_their_client
)
test_one_or_equal_clients_give_no_deviation = in_both_units(
    contract.one_or_equal_clients_give_no_deviation
)
test_deviates_unless_exact = in_both_units(contract.deviates_unless_exact)
test_client_order_is_irrelevant = in_both_units(contract.client_order_is_irrelevant)
test_epsilon_is_that_of_the_plan = in_both_units(contract.epsilon_is_that_of_the_plan)
test_the_schedule_opens_with_what_is_zero = every_row(contract.opens_with_what_is_zero)
test_smoothing_is_linear_keeps_the_mean_and_never_grows_the_norm = every_row(
    steps.smoothing_is_linear
)
test_smoothing_comes_after_the_noise = every_row(steps.smoothing_comes_after_the_noise)
test_the_filter_acts_once_where_the_noise_is = every_row(
    contract.the_filter_acts_once_where_the_noise_is
)
test_chunks_change_nothing = in_both_units(contract.chunks_change_nothing)
test_learns_an_easy_task = in_both_units(contract.learns_an_easy_task)


def _apply(clause: str, row: Method, step) -> None:
    check = getattr(contract, clause, None) or getattr(steps, clause)
    names = inspect.signature(check).parameters
    given = {"unit": "example", "step": step}
    check(row, **{name: value for name, value in given.items() if name in names})


@pytest.mark.parametrize(
    ("name", "row", "step", "clause"), broken_rows.BROKEN, ids=[x[0] for x in broken_rows.BROKEN]
)
def test_the_contract_can_fail(name, row, step, clause):
    """Each broken row fails the clause that is there for it; where only its step is broken, the row
    itself passes.
    """
    with pytest.raises(AssertionError):
        _apply(clause, row(), step)
    if step is not local_training.local_step:
        _apply(clause, row(), local_training.local_step)


def test_an_opening_with_a_and_a_filter_that_scales_are_found():
    with pytest.raises(AssertionError):
        contract.opens_with_what_is_zero(methods.RoLoRA.replace(train=Cycle(("A", "B"))))
    for scale in (0.5, 2.0):
        row = methods.FedLoRA.replace(filter=lambda tensor, side, scale=scale: scale * tensor)
        with pytest.raises(AssertionError):
            steps.smoothing_is_linear(row)


def test_every_clause_is_tested():
    """No clause is left without a test that runs it over the table."""
    here, helpers = Path(__file__).read_text(), {"keeps", "at_home_cut", "in_units_of_noise"}
    helpers |= {"in_units_of_clip", "noise_draws"}
    clauses = [
        f"({module.__name__}.{name})"
        for module in (contract, steps)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
        if next(iter(inspect.signature(function).parameters), "") == "row" and name not in helpers
    ]
    text = re.sub(r"\(\s+|,?\s+\)", lambda found: found[0].strip(" ,\n"), here)
    assert len(clauses) >= 18
    assert [clause for clause in clauses if clause not in text] == []


def test_every_test_named_in_a_docstring_exists():
    """A docstring that promises something names the test that holds it: file::name, a name alone,
    or a file.
    """
    defined = {
        path.name: set(re.findall(r"^(?:def )?(test_\w+)(?:\(| =)", path.read_text(), re.M))
        for path in (ROOT / "tests").rglob("test_*.py")
    }
    everything, missing = set().union(*defined.values()), []
    for path in sorted((ROOT / "fedlora_lab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                for file, name in re.findall(r"(test_\w+\.py)?(?:::)?(test_\w+)?", text):
                    known = defined.get(file, set()) if file else everything
                    if (name and name not in known) or (file and file not in defined):
                        missing.append(f"{path.relative_to(ROOT)}: {file}::{name}")
    assert missing == []
