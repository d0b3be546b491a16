"""The tables of the playground are what the library says, and the page is made of them."""

import json

import playground as script
import pytest

import fedlora_lab as fl
from fedlora_lab._utils.rounding import round_up
from fedlora_lab.course import playground

TABLES = json.loads((playground.HERE / "tables.json").read_text(encoding="utf-8"))


def test_digits_methods_colours_and_limits_are_those_of_the_library():
    """All but the weights and what the accountant says; the stories from the committed runs."""
    made = json.loads(json.dumps({**script.settings(), "stories": script.stories()}))
    for split in made["splits"]:
        split["noise"] = TABLES["splits"][made["splits"].index(split)]["noise"]
    assert {**TABLES, **made} == TABLES


def test_the_page_that_is_opened_by_a_double_click_is_the_package_s():
    expected = playground.page()
    assert script.PAGE.read_text(encoding="utf-8") == expected, "python scripts/playground.py page"


@pytest.mark.slow
@pytest.mark.parametrize(("split", "noise"), [(0, 4), (3, 1)])
def test_sigma_is_calibrated_and_the_spent_epsilon_is_what_the_ledger_states(split, noise):
    row = TABLES["splits"][split]["noise"][noise]
    task = fl.tasks.digits(dirichlet=list(script.LIKENESS.values())[split])
    privacy = fl.Privacy(delta=TABLES["delta"])
    privacy = privacy.calibrate(epsilon=row["epsilon"], task=task, plan=script.PLAN)
    assert row["sigma"] == pytest.approx(privacy.noise_multiplier, rel=1e-9)
    *_, record = fl.run(task, "ffa-lora", privacy, script.PLAN.replace(rounds=2), seed=0)
    assert row["spent"][2] == float(round_up(record.epsilon, ".3g"))
    assert row["spent"][-1] <= row["epsilon"]
