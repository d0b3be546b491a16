"""The sentences of a ledger."""

import math
import re

import numpy as np
import pytest
from places import ROOT

import fedlora_lab as fl
from fedlora_lab._utils.rounding import round_down, round_up
from fedlora_lab._utils.trust import TRUST
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.statement import SAME_CLIENTS, caveats
from fedlora_lab.report import epsilon_text


def ledger(observer_trust=None, **terms):
    if observer_trust is not None:
        terms |= {"unit": "client", "trust": observer_trust}
    book = Ledger(delta=1e-3, **terms)
    book.record(0, None, 20, sample_rate=0.2, noise_multiplier=2.0)
    return book


SEEDED, FRESH = ledger(), ledger(reproducible=False)


def test_a_statement_has_all_its_parts():
    """Epsilon, delta, unit, relation, observer, what attackers reach, and the seed."""
    said = fl.privacy.statement(SEEDED)
    for part in (
        round_up(SEEDED.epsilon(), ".4g"),
        "0.001",
        "one example",
        "zero-out",
        "every upload",
    ):
        assert part in said
    assert f"share {round_up(SEEDED.tradeoff(0.01), '.2g')} of the members" in said
    assert "promised to whoever knows it." in said and "seed" not in fl.privacy.statement(FRESH)


@pytest.mark.parametrize("sigma", [1.7, 3.1, 700.0])
def test_what_is_written_is_never_less_than_the_ledger_says(sigma):
    """Nor does one line of a ledger, or a report, round an epsilon down."""
    book = Ledger()
    book.record(1, [0], 7, sample_rate=0.3, noise_multiplier=sigma)
    said = fl.privacy.statement(book)
    pattern = r"epsilon = (\S+) .*share (\S+) of.*: (\S+)\); .* most (\S+)\. "
    written = map(float, re.findall(pattern, said)[0])
    exact = [book.epsilon(), book.tradeoff(0.01), book.tradeoff(0.001), book.advantage()]
    assert all(low <= text <= 1.1 * low for low, text in zip(exact, written, strict=True))
    assert book.epsilon() <= float(re.findall(r"epsilon: ([\d.e-]+) ag", repr(book))[0])
    assert book.epsilon() <= float(epsilon_text(book.epsilon()))


def test_bounds_are_rounded_to_their_own_side():
    values = np.random.default_rng(0).lognormal(0, 4, 300).tolist()
    for value in [*values, 0.0105, 0.1, 8.0, 9.9996, 1e-9, 0.0]:
        for spec in (".2g", ".4g", ".2f", ".0e"):
            low, high = float(round_down(value, spec)), float(round_up(value, spec))
            assert low <= value <= high
            # One of them is the nearest, and the other is its neighbour.
            assert float(format(value, spec)) in (low, high)
    assert round_up(8.0, ".4g") == round_down(8.0, ".4g") == "8"
    assert (round_up(math.inf, ".3g"), round_down(math.nan, ".3g")) == ("inf", "nan")


def test_a_statement_names_its_observer():
    summed, trusted = ledger("secagg"), ledger("central")
    assert "the server, which sees the sum of the uploads" in fl.privacy.statement(summed)
    assert "whoever sees the released models only" in fl.privacy.statement(trusted)
    both = fl.privacy.statement(Ledger.compose(summed, trusted))
    assert "each part's own observer (released or server)" in both
    twice = "sees two runs of one seed, which share their noise"
    assert twice in both
    assert twice not in fl.privacy.statement(
        Ledger.compose(summed, ledger("secagg", reproducible=False))
    )


def test_a_sum_over_clients_says_what_it_assumes():
    """Bonn was split in two: of its data the sum is too small."""
    said = fl.privacy.statement(Ledger.compose(ledger("local"), ledger("local")))
    assert said.endswith(SAME_CLIENTS)
    assert SAME_CLIENTS not in fl.privacy.statement(Ledger.compose(FRESH, FRESH))


BOUND = re.compile(r"(?:ε|epsilon|δ|delta)\w* ?(?:=|of|is|to|>=)? ?\{[^{}]*:,?\.\d+[efg]\}")
"""An epsilon or delta that is printed and rounded to the nearest number."""


def test_no_printed_bound_is_rounded_to_the_nearest_number():
    """In the package, in the pages' recipes, in the examples and in the notebooks."""
    folders = (
        ("fedlora_lab", "*.py"),
        ("docs", "*.md"),
        ("examples", "*.py"),
        ("notebooks", "*.ipynb"),
    )
    paths = [path for name, kind in folders for path in (ROOT / name).rglob(kind)]
    bad = [
        f"{path}: {match[0]}" for path in paths for match in BOUND.finditer(path.read_text("utf-8"))
    ]
    assert len(paths) > 100 and not bad, bad


def test_the_caveats_of_a_composition_are_those_of_its_parts():
    said = caveats(Ledger.compose(ledger("secagg"), ledger("central"), ledger("local")))
    left_open = [model.caveat for model in TRUST.values() if model.caveat]
    assert len(left_open) == 2 and set(left_open) < set(said) and "" not in said


def test_an_uncertified_ledger_states_its_reason_and_no_number():
    book = Ledger(uncertified="noise shaped by the peer")
    assert "not certified: noise shaped by the peer" in fl.privacy.statement(book)
    assert "attacker" not in fl.privacy.statement(book)


def test_beside_an_adapter_lies_what_its_run_promises(tmp_path):
    """And the numbers follow from the ledger there."""
    task = fl.tasks.regression(clients=2, examples=8, test=4)
    privacy = fl.Privacy(noise_multiplier=1.0, delta=1e-3)
    *_, last = fl.run(task, "rolora", privacy, fl.Plan(rounds=1, local_steps=2, batch=4), seed=0)
    folder = fl.save_adapter(last, tmp_path / "adapter")
    page = (folder / "PRIVACY.md").read_text("utf-8")
    assert page.startswith(fl.privacy.privacy_page(fl.Ledger.load(folder / "ledger.json")))
    assert f"{last.epsilon:.4g}" in page and "against the server" in page
    fl.save_adapter(next(fl.run(task, "rolora", None, fl.Plan())), folder)
    assert "nothing is promised" in (folder / "PRIVACY.md").read_text("utf-8")
