"""The ledger: what it counts, when it refuses to count, and that no damaged file passes for one."""

import itertools
import json
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from calls import Options, refused
from commands import succeeded

from fedlora_lab.privacy import accounting
from fedlora_lab.privacy.ledger import BudgetExceeded, Ledger, LedgerEntry, Uncertified, sealed

RATES: Options = {"sample_rate": 0.1, "noise_multiplier": 1.0}


def filled(**options):
    ledger = Ledger(**options)
    ledger.record(0, (0, 2), 5, sample_rate=(0.1, 0.3), noise_multiplier=(1.0, 2.0))
    ledger.record(1, (0, 1), 5, sample_rate=0.1, noise_multiplier=(1.0, 0.8))
    return ledger


def of_clients(trust, rounds=100):
    ledger = Ledger(unit="client", delta=1e-3, trust=trust)
    ledger.record(0, (3,), rounds, sample_rate=0.1, noise_multiplier=5.0)
    return ledger


# ---- what is counted


def test_a_client_has_spent_what_it_took_part_in():
    """Also where sigma and q change on the way; what names no client counts for everybody."""
    ledger = filled()
    ledger.record(2, (1,), 4, sample_rate=0.2, noise_multiplier=2.0)
    ledger.record(3, (), 5, **RATES)
    ledger.record(4, None, 10, **RATES)
    assert ledger.clients == (0, 1, 2)
    assert ledger.history(0) == ((1.0, 0.1, 20),)
    assert ledger.history(1) == ((1.0, 0.1, 10), (0.8, 0.1, 5), (2.0, 0.2, 4))
    assert ledger.history(9) == ledger.history() == ((1.0, 0.1, 10),)
    assert ledger.epsilon(1) == accounting.epsilon(ledger.history(1), 1e-5)


def test_every_record_counts():
    """A second run that writes the same rounds into one ledger has released them anew; a release
    without noise protects nobody whom it names."""
    ledger = filled()
    for _ in range(2):
        ledger.record(1, (0, 1), 5, sample_rate=0.1, noise_multiplier=(1.0, 0.8))
    assert ledger.history(1) == ((0.8, 0.1, 15),)
    ledger.record(2, (1,), 1, sample_rate=0.1, noise_multiplier=None)
    assert ledger.epsilon() == ledger.epsilon(1) == math.inf > ledger.epsilon(0)
    assert Ledger.from_json(ledger.to_json()).epsilon_or_inf() == math.inf


def test_a_release_beyond_the_limit_is_refused_and_not_recorded():
    noise: Options = {"sample_rate": 1.0, "noise_multiplier": 4.0}
    ledger = Ledger(unit="client", trust="local", accountant="rdp")
    limit = accounting.epsilon(((4.0, 1.0, 5),), 1e-5, "rdp")
    ledger.record(1, [1], 2, **noise, limit=limit)
    with pytest.raises(BudgetExceeded, match=r"^limit=.*after round 2; it is not recorded"):
        ledger.record(2, None, 4, **noise, limit=limit)
    assert [entry.round for entry in ledger.releases] == [1]
    with pytest.raises(BudgetExceeded, match="at least inf"):
        Ledger(uncertified="noise before the clip").record(1, None, **noise, limit=1e9)
    with refused("^limit=0: expected"):
        Ledger().record(1, None, **noise, limit=0)


@pytest.mark.slow
def test_a_ledger_needs_no_torch(tmp_path):
    """It records, refuses, adds up, states and is stored where PyTorch is not installed."""
    code = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "peft", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
from fedlora_lab import Ledger as same
from fedlora_lab.privacy import Ledger, Privacy, privacy_page, statement
for accountant in ("pld", "rdp"):
    plan = Privacy(noise_multiplier=2.0, sample_rate=0.1, accountant=accountant)
    ledger = plan.ledger(releases=10)
    ledger.record(11, [0], sample_rate=0.5, noise_multiplier=2.0, limit=8.0)
    ledger.save("ledger.json")
    total = Ledger.compose(ledger, same.load("ledger.json"))
    print(statement(total)[:9])
    privacy_page(ledger), ledger.tradeoff(0.01)
"""
    done = succeeded(sys.executable, "-c", code, cwd=tmp_path)
    assert done.stdout == "epsilon =\n" * 2


# ---- what is stated, and to whom


def test_an_uncertified_ledger_states_no_epsilon():
    reason = "noise shaped by the peer, clip on the factor"
    ledger = filled(uncertified=reason)
    for state in (
        ledger.epsilon,
        ledger.advantage,
        lambda: ledger.epsilon(0),
        lambda: ledger.tradeoff(0.1),
        Ledger.compose(filled(), ledger).epsilon,
    ):
        with pytest.raises(Uncertified, match=f": not certified: {reason}$"):
            state()
    assert "uncertified" in repr(ledger) and ledger.epsilon_or_inf() == math.inf
    assert ledger.nominal_epsilon() == filled().epsilon()


def test_nothing_that_a_ledger_states_can_be_assigned():
    """No term, entry or method of it, nor the reason against it; a snapshot takes no entries."""
    ledger = filled()
    for name in [name for name in dir(ledger) if not name.startswith("_")]:
        with pytest.raises(AttributeError):
            setattr(ledger, name, lambda *_: 0.0)
    with pytest.raises(AttributeError):
        ledger.releases[0].count = 0  # type: ignore[misc]
    earlier = ledger.snapshot()
    ledger.record(2, (0, 1, 2), 50, **RATES)
    assert earlier.to_json() == filled().to_json()
    with refused(r"^ledger='snapshot': expected the run's own ledger: a s"):
        earlier.record(2, (0,), 1, **RATES)


def test_the_curve_of_a_ledger_is_that_of_its_worst_client():
    """Of any client, not of the one with the largest epsilon."""
    ledger = filled()
    rates = np.array([0.001, 0.01, 0.1])
    each = [accounting.tradeoff_curve(ledger.history(k), rates) for k in range(3)]
    assert (ledger.tradeoff(rates) == np.max(each, axis=0)).all()
    assert ledger.advantage() == max(accounting.advantage(ledger.history(k)) for k in range(3))
    summed = of_clients("secagg").tradeoff(0.01)
    assert summed > 2 * of_clients("central").tradeoff(0.01)


@pytest.mark.attack
def test_every_epsilon_names_its_observer():
    """Who sees the senders, or a sum whose noise tells how many they are, is not amplified against;
    each part of a composition counts under its own observer.
    """
    assert Ledger().observers == of_clients("secagg").observers == ("server", "released")
    assert of_clients("secagg").clients == (), "who was drawn is not kept"
    entries = [LedgerEntry(k, (k,), 50, 0.1, 5.0) for k in range(2)]
    foreseen = Ledger(unit="client", delta=1e-3).after(entries)
    assert foreseen.epsilon() == of_clients("central").epsilon(), "each counts for every client"
    central = of_clients("central")
    assert f"epsilon: {central.epsilon():.4g} against released at delta=0.001" in repr(central)
    both = Ledger.compose(of_clients("secagg", 3), of_clients("central", 5))
    assert both.observers == ("released",) and both.trust == "central and secagg"
    assert both.epsilon() == accounting.epsilon(((5.0, 1.0, 3), (5.0, 0.1, 5)), 1e-3)


# ---- several runs on the same data


def test_compose_adds_up():
    """Runs on the same data: their releases together; equal runs count twice. How much:
    test_compose_refuses_other_terms."""
    first = filled()
    second = filled(reproducible=False)
    both = Ledger.compose(first, second)
    assert both.clients == () and Ledger.compose(both, second).epsilon() > both.epsilon()
    assert both.reproducible and not Ledger.compose(second, second).reproducible
    with refused(r"^ledger='composition': expected the ledger of one run"):
        both.epsilon(1)
    frozen = both.to_json()
    # What it said has been spent, whatever a part records later.
    first.record(7, (0,), 5, **RATES)
    assert both.to_json() == frozen
    entry = LedgerEntry(9, None, 100, 1.0, 0.1)
    assert first.after([entry]).epsilon() > 1000 > first.epsilon()
    for change in (lambda: both.record(9, (0,), **RATES), lambda: both.after([entry])):
        with refused(r"^ledger='composition': expected the"):
            change()


@pytest.mark.parametrize("seed", range(6))
def test_a_sum_is_never_below_what_a_client_has_spent(seed):
    """Whichever client somebody's data were at in each run; in every trust of every unit. Of one
    run it is what the client who spent most has spent.
    """
    random = np.random.default_rng(seed)
    unit = ("example", "person", "client")[seed % 3]
    trusts = ("local", "secagg", "central") if unit == "client" else ("local",) * 3
    books = []
    for trust in trusts:
        ledger = Ledger(unit=unit, trust=trust, accountant="rdp")
        rates = random.choice([0.05, 0.1, 0.3], 4)
        sigmas = random.choice([0.8, 1.0, 1.5], 4)
        for t in range(3):
            ids = np.flatnonzero(random.random(4) < 0.6).tolist()
            each: Options = {"sample_rate": rates[ids], "noise_multiplier": sigmas[ids]}
            ledger.record(t, ids, 5, **(each if trust == "local" else RATES))
        ledger.record(3, None, 1, sample_rate=0.2, noise_multiplier=3.0)
        assert ledger.epsilon() == max(map(ledger.epsilon, range(4)))
        books.append(ledger)
    spent = Ledger.compose(*books).epsilon()
    for places in itertools.product(range(4), repeat=3):
        histories = [book.history(k) for book, k in zip(books, places, strict=True)]
        assert spent >= accounting.epsilon(sum(histories, ()), 1e-5, "rdp") * (1 - 1e-12)


def test_a_sum_over_many_different_clients_is_a_bound_that_is_not_far_above():
    sigmas = np.linspace(0.9, 1.2, 30)
    ledger = Ledger(accountant="rdp")
    rates = np.linspace(0.1, 0.14, 30)
    ledger.record(0, range(30), 20, sample_rate=rates, noise_multiplier=sigmas)
    both = Ledger.compose(ledger, ledger)
    sums = [ledger.history(k) + ledger.history(j) for k in range(30) for j in range(k, 30, 5)]
    worst = max(accounting.epsilon(history, 1e-5, "rdp") for history in sums)
    assert worst <= both.epsilon() <= 1.1 * worst
    assert len(both._histories()) <= 64
    assert Ledger.compose(*[ledger] * 12).epsilon() > both.epsilon()


def test_compose_refuses_other_terms():
    with refused(r"^unit=\['example', 'client'\]: expected one unit: nobody knows how many"):
        Ledger.compose(Ledger(), Ledger(unit="client"))
    with refused(r"^delta=\[1e-05, 1e-06\]: expected the same in all ledgers"):
        Ledger.compose(filled(), filled(delta=1e-6))
    assert Ledger.compose(filled(), filled(accountant="rdp")).accountant == "rdp"


# ---- on disk


def test_ledger_round_trip(tmp_path):
    ledger = filled(reproducible=False, accountant="rdp", delta=0.1 + 0.2)
    path = tmp_path / "ledger.json"
    ledger.save(path)
    again = Ledger.load(path)
    assert (again.terms, again.releases) == (ledger.terms, ledger.releases)
    again.record(2, (0,), 1, **RATES)  # it can be continued
    assert again.history(0) == ((1.0, 0.1, 11),)
    # A text that went through a JSON reader and writer, as inside another file, is still a ledger.
    text = Ledger.compose(ledger, ledger).to_json()
    assert Ledger.from_json(json.dumps(json.loads(text))).to_json() == text


def test_ledger_refuses_any_changed_byte(tmp_path):
    """Bytes of a small file changed, truncations and additions: one clear line."""
    path = tmp_path / "ledger.json"
    filled().save(path)
    content = path.read_bytes()
    damaged = [b"", b"null", b"[" * 100_000, content + b"\n", content + b"x"]
    for at in range(0, len(content), 5):
        changed = bytes([content[at] ^ (1, 32, 255)[at % 3]])
        damaged += [content[:at], content[:at] + changed + content[at + 1 :]]
    for other in damaged:
        path.write_bytes(other)
        with refused(r"^ledger\.json: expected .{,180}$"):
            Ledger.load(path)


WRONG: list[Options] = [
    {"trust": "central"},
    {"relation": "replace-one"},
    {"parts": []},
    {"releases": [3]},
    {"count": 1.5},
    {"clients": "02"},
    {"more": 1},
]


def test_content_of_the_wrong_kind_is_refused():
    """Under a right digest: terms, and fields of an entry."""
    for number, fields in enumerate(WRONG):
        data = json.loads(filled().to_json())
        place = data["content"] if number < 4 else data["content"]["releases"][0]
        place |= fields
        with refused(r"^ledger: expected an unaltered ledger of format version 2"):
            Ledger.from_json(sealed(data["content"]))


@pytest.mark.parametrize(
    "arguments",
    [
        {"round": 2**53 + 1},
        {"clients": (0, 0)},
        {"clients": (0.5,)},
        {"count": 2.0},
        {"sample_rate": 1.1},
        {"sample_rate": [], "clients": None},
        {"clients": {0, 1}, "sample_rate": (0.1, 0.2)},
        {"sample_rate": {0.1, 0.2}},
        {"noise_multiplier": {1.0: 0, 2.0: 0}},
        *({"noise_multiplier": value} for value in ((1, -1), math.inf, (1, 2, 3))),
    ],
    ids=repr,
)
def test_record_refuses_bad_entries(arguments):
    ledger = Ledger()
    name = next(iter(arguments))
    with refused(rf"^{name}(\[1\])?=.*: expected "):
        ledger.record(**Options(round=0, clients=(0, 1), count=1) | RATES | arguments)
    assert ledger.releases == ()


@pytest.mark.parametrize("number", [torch.tensor, np.float32, np.array])
def test_single_numbers_of_any_library_are_numbers(number):
    """Fault: a tensor without dimensions was taken for one number a client."""
    ledger: Any = Ledger()
    rate, sigma, limit = map(number, (0.25, 2.0, 50.0))
    ledger.record(1, None, sample_rate=rate, noise_multiplier=sigma, limit=limit)
    ledger.record(torch.tensor(2), torch.tensor([0]), 1, sample_rate=0.25, noise_multiplier=[sigma])
    assert [entry.rows()[0][1] for entry in ledger.releases] == [(2.0, 0.25)] * 2
