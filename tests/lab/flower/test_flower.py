"""Flower's messages give the run of the loop, for every row."""

import math

import pytest
import toy_hubs
from calls import refused
from flower_runs import ROUNDS, apart, by_messages, party, protected, site
from toy_tasks import (
    UNITS,
    book,
    keeps,
    people,
    play,
    private,
    tokens,
    with_clients,
    with_persons,
)
from written_rows import WRITTEN

import fedlora_lab as fl
from fedlora_lab import methods

ONLY_CLIENTS_KNOW = {"clipped", "nonfinite"}


def agree(*terms, **options):
    """Over messages as in the loop: the server's state to 1e-5, ledgers, traffic and metrics.

    What only clients know is no number: what the clips did, the noise alone, and scores of models
    of which clients keep a part.
    """
    task, row, *_ = terms
    records = by_messages(*terms, **options)
    loop = play(*terms, **options)
    assert apart(records, loop) <= 1e-5
    for ours, theirs in zip(records, loop, strict=True):
        assert (ours.ledger is None) == (theirs.ledger is None)
        assert ours.ledger is None or book(ours).to_json() == book(theirs).to_json()
        assert (ours.traffic, ours.participants) == (theirs.traffic, theirs.participants)
        expected = theirs.measures()
        assert ours.measures().keys() == expected.keys()
        hidden = set(ONLY_CLIENTS_KNOW)
        if ours.index and keeps(methods.get(row)):
            hidden |= task.metrics.keys()
        for name, value in ours.measures().items():
            near = pytest.approx(expected[name], rel=1e-5, abs=1e-9, nan_ok=True)
            right = math.isnan(value) if name in hidden else value == near
            assert right or name == "seconds", name
        assert not {"noise_A", "noise_B", "noise_BA"} & {measure for _, measure, _ in ours.rows}
    return records


ROWS = [(row, UNITS[i % len(UNITS)]) for i, row in enumerate((*methods.ALL.values(), *WRITTEN))]


@pytest.mark.every(2)
@pytest.mark.slow
@pytest.mark.parametrize(("row", "unit"), ROWS, ids=lambda x: getattr(x, "slug", x))
def test_messages_give_the_run_of_the_loop(row, unit):
    """Three rounds with participation, lost uploads, momentum and a head, and the same ledger."""
    records = agree(tokens("head"), row, protected(unit), ROUNDS)
    assert apart(records[:1], records[-1:]) > 1e-3 or row.uploaded_factors == ""


@pytest.mark.slow
def test_messages_give_the_run_of_the_loop_under_unequal_terms():
    """Weights by size, and noise of each client's own."""
    privacy = private("example", sigma=(0.5, 1.0, 3.0))
    agree(tokens(), "fedlora", privacy, ROUNDS.replace(client_weights="size"))


@pytest.mark.slow
def test_tasks_of_a_trainer_travel():
    """Of tokenised rows and answers, of different lengths at each site."""
    task = toy_hubs.fresh_answers("llama")
    plan = ROUNDS.replace(rounds=2)
    records = by_messages(task, "rolora", protected("example"), plan, lora=None)
    loop = list(fl.run(task, "rolora", protected("example"), plan, seed=0))
    assert apart(records, loop) < 1e-5 < apart(records[:1], records[-1:])


def test_persons_travel_with_the_examples_of_their_client():
    """Over messages the run of the loop; without them, or with others, one line."""
    task = people()
    privacy = protected("person")
    agree(task, "fedsa-lora", privacy, ROUNDS.replace(rounds=2, batch=2))
    terms, _ = party(task, "fedlora", privacy)
    assert terms.config.task.sizes == task.person_counts != task.sizes, (
        "no number of rows is agreed"
    )
    own = site(task, 1)
    for persons, line in (
        (None, "^persons=None: expected whose each example is"),
        (([1, 0, *[2] * 6],), "^persons: expected 4, as agreed for 1$"),
    ):
        with refused(line):
            terms.with_data(1, with_persons(own, persons))


def test_the_server_needs_no_data():
    """A participant holds the numbers of the clients' examples and nothing else of them; neither
    does the digest of the terms, which is sent. No un-noised upload may reach the server.
    """
    task = tokens("head")
    terms, _ = party(task, "fedlora", protected("example"))
    moved = with_clients(task, [(x + 1, y) for x, y in task.clients])
    assert party(moved, "fedlora", protected("example")).terms.terms == terms.terms
    assert terms.config.task.sizes == task.sizes and terms.prepared.data == {}
    assert all(not x.any() and not y.any() for x, y in terms.config.task.clients)
    for client, own, line in (
        (1, site(task, 0), r"^examples: expected 8, as agreed for 1$"),
        (3, site(task, 0), r"^client=3: expected a number in \[0, 2\]$"),
        (0, task, r"^examples: expected 5, as agreed for 0$"),
    ):
        with refused(line):
            terms.with_data(client, own)
    with refused("^privacy=None: expected a Privacy"):
        party(task, "fedlora", None)
    for trust in ("central", "secagg"):
        with refused(f"^trust='{trust}': expected 'local': on Flower the server receives every"):
            party(task, "fedlora", private("client", trust=trust))
