"""The ledger: what it counts, when it refuses to count, and that no damaged file passes for one."""

import copy
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dp_accounting as dp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant

from fedlora_lab import accounting, sealed
from fedlora_lab.ledger import Ledger, Release, Uncertified

RATES: dict[str, Any] = {"sample_rate": 0.1, "noise_multiplier": 1.0}


def filled(**options: Any) -> Ledger:
    ledger = Ledger(**options)
    ledger.record(0, (0, 2), 5, sample_rate=(0.1, 0.3), noise_multiplier=(1.0, 2.0))
    ledger.record(1, (0, 1), 5, sample_rate=0.1, noise_multiplier=(1.0, 0.8))
    return ledger


def test_example_unit_counts_rounds_one_took_part_in() -> None:
    ledger = filled()
    assert ledger.clients == (0, 1, 2)
    assert ledger.history(0) == ((1.0, 0.1, 10),)
    assert ledger.history(1) == ((0.8, 0.1, 5),)
    assert ledger.history(2) == ((2.0, 0.3, 5),)
    assert ledger.history(9) == ()
    assert ledger.epsilon(9) == 0
    for k in range(3):
        assert ledger.epsilon(k) == accounting.epsilon(ledger.history(k), 1e-5)
    assert ledger.epsilon() == ledger.spent() == max(ledger.epsilon(k) for k in range(3))
    assert len({ledger.epsilon(k) for k in range(3)}) == 3


def test_a_history_that_changes_on_the_way_is_composed() -> None:
    ledger = Ledger()
    for t, (sigma, q) in enumerate([(1.0, 0.1), (2.0, 0.1), (1.0, 0.2), (1.0, 0.1)]):
        ledger.record(t, (4,), 10, sample_rate=q, noise_multiplier=sigma)
    assert sorted(ledger.history(4)) == [(1.0, 0.1, 20), (1.0, 0.2, 10), (2.0, 0.1, 10)]
    assert ledger.epsilon() == accounting.epsilon(((1.0, 0.1, 20), (2.0, 0.1, 10), (1.0, 0.2, 10)), 1e-5)


def test_client_unit_counts_for_everybody_and_forgets_who_was_drawn() -> None:
    ledger = Ledger(unit="client", delta=1e-3)
    for t in range(50):
        ledger.record(t, (t % 7,), 1, sample_rate=0.2, noise_multiplier=1.1)
    assert ledger.epsilon() == ledger.epsilon(3) == accounting.epsilon(((1.1, 0.2, 50),), 1e-3)
    assert ledger.clients == ()
    assert all(entry.clients is None for entry in ledger.releases)


def test_every_client_and_one_client_add_up() -> None:
    ledger = Ledger()
    ledger.record(0, None, 10, **RATES)
    ledger.record(1, (3,), 10, **RATES)
    assert ledger.history(3) == ((1.0, 0.1, 20),)
    assert ledger.history(5) == ledger.history() == ((1.0, 0.1, 10),)
    assert ledger.epsilon() == ledger.epsilon(3) > ledger.epsilon(5)


def test_nobody_took_part() -> None:
    ledger = Ledger()
    ledger.record(0, (), 5, **RATES)
    assert ledger.epsilon() == 0
    assert len(ledger.releases) == 1
    assert isinstance(ledger.event(), dp.NoOpDpEvent)


def test_a_replay_counts_once() -> None:
    """A resumed round draws the same noise: written twice, counted once. A different entry for it is an error."""
    ledger = filled()
    before = ledger.to_json()
    ledger.record(1, (0, 1), 5, sample_rate=0.1, noise_multiplier=(1.0, 0.8), repeats=True)
    assert ledger.to_json() == before
    for clients, count, sigma in [((0, 1), 4, (1.0, 0.8)), ((0, 2), 5, (1.0, 0.8)), ((0, 1), 5, (1.0, 0.9))]:
        with pytest.raises(
            ValueError, match=r"^round=1: expected the entry that this round already has in the ledger$"
        ):
            ledger.record(1, clients, count, sample_rate=0.1, noise_multiplier=sigma, repeats=True)
    assert ledger.to_json() == before
    assert ledger.mode == "reproducible: not for release"
    with pytest.raises(ValueError, match=r"^repeats=True: expected False in release mode: the noise is fresh$"):
        filled(reproducible=False).record(1, (0,), 5, **RATES, repeats=True)


def test_every_record_counts() -> None:
    """A second run that writes the same rounds into one ledger has released them anew, seed or not."""
    ledger = filled()
    for _ in range(2):
        ledger.record(1, (0, 1), 5, sample_rate=0.1, noise_multiplier=(1.0, 0.8))
    assert ledger.history(1) == ((0.8, 0.1, 15),)
    assert ledger.epsilon(1) == accounting.epsilon(((0.8, 0.1, 15),), 1e-5) > filled().epsilon(1)
    assert Ledger.from_json(ledger.to_json()).history(1) == ledger.history(1)


def test_ledger_release_mode_counts_again() -> None:
    """Fresh noise is a fresh release: the same round twice costs twice."""
    ledger = filled(reproducible=False)
    ledger.record(1, (0, 1), 5, sample_rate=0.1, noise_multiplier=(1.0, 0.8))
    assert ledger.mode == "release"
    assert ledger.history(1) == ((0.8, 0.1, 10),)
    assert ledger.epsilon(1) > filled().epsilon(1)


def test_ledger_uncertified() -> None:
    ledger = filled()
    ledger.uncertified = "noise shaped by the peer, clip on the factor"
    for call in (ledger.epsilon, lambda: ledger.epsilon(0), ledger.snapshot().epsilon, ledger.event):
        with pytest.raises(Uncertified, match=r"not certified: noise shaped by the peer, clip on the factor$"):
            call()
    assert ledger.spent() == math.inf
    assert ledger.to_frame()["epsilon"].tolist() == [math.inf] * 3
    again = Ledger.from_json(ledger.to_json())
    assert again.uncertified == ledger.uncertified
    assert again.spent() == math.inf
    with pytest.raises(ValueError, match=r"^uncertified=''"):
        ledger.uncertified = ""


def test_no_noise_is_no_privacy() -> None:
    ledger = filled()
    ledger.record(2, (1,), 1, sample_rate=0.1, noise_multiplier=None)
    assert ledger.epsilon() == ledger.epsilon(1) == math.inf
    assert ledger.epsilon(0) < math.inf
    assert Ledger.from_json(ledger.to_json()).spent() == math.inf


def test_snapshot_stays_as_it_was() -> None:
    ledger = filled()
    earlier, spent, text = ledger.snapshot(), ledger.epsilon(), ledger.to_json()
    ledger.record(2, (0, 1, 2), 50, **RATES)
    ledger.uncertified = "later"
    assert earlier.epsilon() == spent
    assert earlier.to_json() == text
    with pytest.raises(ValueError, match=r"^ledger='snapshot': expected"):
        earlier.record(2, (0,), 1, **RATES)
    with pytest.raises(ValueError, match=r"^ledger='snapshot': expected"):
        earlier.uncertified = "x"


def test_a_copy_is_a_ledger_of_its_own() -> None:
    ledger = filled()
    other = copy.copy(ledger)
    assert other.to_json() == ledger.to_json()
    before = ledger.to_json()
    other.record(5, (0,), 1, sample_rate=0.01, noise_multiplier=5.0)
    assert ledger.to_json() == before
    ledger.record(2, (0,), 3, sample_rate=1.0, noise_multiplier=1.0)
    for one, rounds in ((ledger, [0, 1, 2]), (other, [0, 1, 5])):
        assert [entry.round for entry in one.releases] == rounds
        assert Ledger.from_json(one.to_json()).epsilon() == one.epsilon()


def test_ledger_round_trip(tmp_path: Path) -> None:
    for options in ({}, {"reproducible": False, "accountant": "rdp"}, {"unit": "client", "delta": 0.1 + 0.2}):
        ledger = filled(**options) if options.get("unit") != "client" else Ledger(**options)
        if ledger.unit == "client":
            ledger.record(0, (1,), 1, **RATES)
        ledger.save(tmp_path / "ledger.json")
        again = Ledger.load(tmp_path / "ledger.json")
        for name in ("unit", "delta", "accountant", "mode", "uncertified", "releases", "clients"):
            assert getattr(again, name) == getattr(ledger, name)
        assert again.epsilon() == ledger.epsilon()
        assert again.to_json() == ledger.to_json()
        again.record(2, (0,), 1, **RATES)  # it can be continued, and knows its rounds
        assert len(again.releases) == len(ledger.releases) + 1
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]
    # a text that went through a JSON reader and writer, as inside another file, is still a ledger
    assert Ledger.from_json(json.dumps(json.loads(ledger.to_json()))).epsilon() == ledger.epsilon()


def test_ledger_refuses_any_changed_byte(tmp_path: Path) -> None:
    """Every byte of a small file, flipped in several ways, and every truncation: one clear line each time."""
    ledger = Ledger()
    ledger.record(0, (0, 2), 5, sample_rate=(0.1, 0.3), noise_multiplier=1.0)
    path = tmp_path / "ledger.json"
    ledger.save(path)
    whole = path.read_bytes()
    damaged = [whole[:n] for n in range(len(whole))]
    for at in range(len(whole)):
        damaged += [whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :] for mask in (1, 2, 16, 32, 128, 255)]
        damaged.append(whole[:at] + whole[at + 1 :])
    damaged += [whole + b"\n", whole + b"x", b"\xef\xbb\xbf" + whole]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^ledger\.json: expected ") as error:
            Ledger.load(path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 200
    path.write_bytes(whole)
    assert Ledger.load(path).to_json() == ledger.to_json()


def reseal(change: Any) -> str:
    """A text with a right digest over changed content."""
    data = json.loads(filled().to_json())
    change(data["content"])
    return sealed.write(data["format"], data["version"], data["content"])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("unit"),
        lambda c: c.pop("releases"),
        lambda c: c.pop("uncertified"),
        lambda c: c.update(unit="user"),
        lambda c: c.pop("trust"),
        lambda c: c.update(trust="central"),
        lambda c: c.update(relation="replace-one"),
        lambda c: c.update(parts=[]),
        lambda c: c.update(parts=[c.copy()]),
        lambda c: c.update(delta=2),
        lambda c: c.update(delta="1e-5"),
        lambda c: c.update(extra=1),
        lambda c: c.update(reproducible="yes"),
        lambda c: c.update(uncertified=3),
        lambda c: c.update(releases=None),
        lambda c: c.update(releases=7),
        lambda c: c.update(releases=[3]),
        lambda c: c["releases"][0].pop("count"),
        lambda c: c["releases"][0].update(count=-1),
        lambda c: c["releases"][0].update(count=1.5),
        lambda c: c["releases"][0].update(clients="02"),
        lambda c: c["releases"][0].update(clients=[0, 0]),
        lambda c: c["releases"][0].update(clients=[0, 1, 2]),
        lambda c: c["releases"][0].update(sample_rate=1.5),
        lambda c: c["releases"][0].update(noise_multiplier=-1),
        lambda c: c["releases"][0].update(noise_multiplier=None),
        lambda c: c["releases"][0].update(sample_rate=None),
        lambda c: c["releases"][0].update(more=1),
    ],
)
def test_content_of_the_wrong_kind_is_refused(change: Any) -> None:
    with pytest.raises(ValueError, match=r"^ledger: expected the entries of a ledger, found others$"):
        Ledger.from_json(reseal(change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "^ledger: expected a whole file of format fedlora_lab.ledger"),
        ("null", "^ledger: expected a whole file"),
        ("[]", "^ledger: expected a whole file"),
        ("[" * 100_000, "^ledger: expected a whole file"),
        ('{"format": "other"}', "^ledger: expected a whole file"),
        ('{"format": "fedlora_lab.ledger"}', "^ledger: expected version 2 of fedlora_lab.ledger, found None$"),
        (sealed.write("fedlora_lab.ledger", 1, {}), "^ledger: expected version 2 of fedlora_lab.ledger, found 1$"),
        ('{"format": "fedlora_lab.ledger", "version": 2}', "^ledger: expected an unaltered file"),
        ('{"format": "fedlora_lab.ledger", "version": 2, "content": {"delta": NaN}}', "^ledger: expected a whole file"),
        (None, "^ledger: expected a whole file"),
        (7, "^ledger: expected a whole file"),
    ],
)
def test_text_that_is_no_ledger_is_refused(text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Ledger.from_json(text)
    assert "\n" not in str(error.value)


def test_sealed_text_refuses_altered_content() -> None:
    text = sealed.write("kind", 3, {"a": [1.5, None], "b": "x"})
    assert sealed.read("kind", 3, text, "file") == {"a": [1.5, None], "b": "x"}
    for altered in (text.replace("1.5", "1.6"), text.replace('"x"', '"y"'), text + " ", text.replace(", ", ",", 1)):
        with pytest.raises(ValueError, match=r"^file: expected an unaltered file of format kind"):
            sealed.read("kind", 3, altered, "file")


def test_killed_while_writing_leaves_a_whole_ledger(tmp_path: Path) -> None:
    """kill -9 in a process that does nothing but save: the file is one of those it saved."""
    path = tmp_path / "ledger.json"
    code = (
        "import sys\nfrom fedlora_lab.ledger import Ledger\nledger = Ledger()\n"
        "for t in range(10**6):\n"
        "    ledger.record(t, range(50), 5, sample_rate=0.1, noise_multiplier=1.0)\n    ledger.save(sys.argv[1])\n"
    )
    for pause in (0.0, 0.05, 0.15):
        path.unlink(missing_ok=True)
        child = subprocess.Popen([sys.executable, "-c", code, str(path)])
        try:
            deadline = time.monotonic() + 300
            while not path.exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(pause)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        entries = Ledger.load(path).releases
        assert [entry.round for entry in entries] == list(range(len(entries)))
        assert len(entries) >= 1


def test_ledger_event_gives_the_same_epsilon() -> None:
    """dp-accounting, given the exported event, states the epsilon of the ledger, up to the PRV's error."""
    ledger = filled()
    ledger.record(2, (0, 2), 5, sample_rate=(1.0, 0.05), noise_multiplier=(4.0, 1.0))
    for client in (None, 0, 1, 2):
        accountant = PLDAccountant()
        accountant.compose(ledger.event(client))
        gap = ledger.epsilon(client) - accountant.get_epsilon(1e-5)
        assert -1e-3 < gap <= accounting.EPSILON_ERROR
    ledger.record(3, (1,), 1, sample_rate=0.1, noise_multiplier=0.0)
    accountant = PLDAccountant()
    accountant.compose(ledger.event())
    assert accountant.get_epsilon(1e-5) == math.inf


CLIENTS: dict[str, Any] = {"unit": "client", "delta": 1e-3}


def of_clients(trust: str, rounds: int = 100, q: float = 0.1, sigma: float = 5.0, **options: Any) -> Ledger:
    ledger = Ledger(**{**CLIENTS, "trust": trust, **options})
    for t in range(rounds):
        ledger.record(t, None, 1, sample_rate=q, noise_multiplier=sigma)
    return ledger


def test_every_epsilon_names_its_observer() -> None:
    assert Ledger().observers == of_clients("secagg").observers == of_clients("local").observers
    assert of_clients("local").observers == ("server", "released")
    assert of_clients("central").observers == ("released",)
    with pytest.raises(ValueError, match=r"^observer='server': expected 'released' for trust='central': a trusted ser"):
        of_clients("central").epsilon(observer="server")
    with pytest.raises(ValueError, match=r"^observer='x': expected 'server' or 'released'$"):
        Ledger().epsilon(observer="x")
    assert "against the server, which sees the sum of the uploads and who sends" in of_clients("secagg").statement()
    shown = repr(of_clients("secagg"))
    server, released = (f"{of_clients('secagg').epsilon(observer=name):.4g}" for name in ("server", "released"))
    assert shown == (
        "Ledger(unit='client', trust='secagg', relation='zero-out', reproducible, 100 entries, "
        f"epsilon: server {server}, released {released} at delta=0.001)"
    )
    sentence = filled().statement()
    for part in (f"{filled().epsilon():.4g}", "1e-05", "one example", "zero-out", "every upload"):
        assert part in sentence
    unsure = filled()
    unsure.uncertified = "why"
    assert "not certified: why" in unsure.statement()
    fresh, seeded = filled(reproducible=False), filled()
    assert "seed" not in fresh.statement() and "nothing is promised to whoever knows it." in seeded.statement()
    assert "sees two runs of one seed, which share their noise" in Ledger.compose(seeded, seeded).statement()
    assert "two runs" not in Ledger.compose(seeded, fresh).statement()
    assert "uncertified" in repr(unsure)


def test_compose_adds_up() -> None:
    """Runs on the same data: their releases together, client by client; equal runs count as often as they are there."""
    one, two = filled(), filled(reproducible=False)
    two.record(2, (1, 5), 3, sample_rate=0.5, noise_multiplier=2.0)
    both = Ledger.compose(one, two)
    for client in (0, 1, 2, 5, 9):
        together = accounting.epsilon(one.history(client) + two.history(client), 1e-5)
        assert both.epsilon(client) == together >= max(one.epsilon(client), two.epsilon(client))
    assert both.epsilon() == max(both.epsilon(k) for k in both.clients)
    assert both.clients == (0, 1, 2, 5)
    assert both.reproducible
    assert not Ledger.compose(two, two).reproducible
    same = Ledger.compose(one, one)
    assert same.history(0) == ((1.0, 0.1, 20),)
    assert len(same.releases) == 2 * len(one.releases)
    again = Ledger.from_json(both.to_json())
    assert (again.to_json(), again.epsilon(), again.parts[1].terms) == (both.to_json(), both.epsilon(), two.terms)
    assert Ledger.compose(both, one).epsilon() == Ledger.compose(one, two, one).epsilon()
    assert len(Ledger.compose(both, one).parts) == 3
    assert "2 ledgers" in repr(both)
    frozen = both.to_json()
    one.record(7, (0,), 5, **RATES)
    assert both.to_json() == frozen
    for change in (lambda: both.record(9, (0,), **RATES), lambda: setattr(both, "uncertified", "x")):
        with pytest.raises(ValueError, match=r"^ledger='composition': expected the run's own ledger"):
            change()


def test_three_runs_of_eight_are_more_than_eight() -> None:
    sigma = accounting.noise_multiplier(8, 1e-5, 0.1, 100)
    runs = []
    for _ in range(3):
        run = Ledger()
        run.record(0, None, 100, sample_rate=0.1, noise_multiplier=sigma)
        runs.append(run)
    assert runs[0].epsilon() <= 8
    spent = Ledger.compose(*runs).epsilon()
    assert spent == accounting.epsilon(((sigma, 0.1, 300),), 1e-5)
    assert 13 < spent < 24


def test_compose_counts_each_part_under_its_own_observer() -> None:
    parts = of_clients("secagg", 3), of_clients("central", 5)
    both = Ledger.compose(*parts)
    assert both.observers == ("released",)
    assert both.trust == "central and secagg"
    assert both.epsilon() == accounting.epsilon(((5.0, 1.0, 3), (5.0, 0.1, 5)), 1e-3)
    assert both.epsilon(observer="released") == both.epsilon()
    with pytest.raises(ValueError, match=r"^observer='server': expected 'released' for trust='central'"):
        both.epsilon(observer="server")
    assert Ledger.from_json(both.to_json()).to_json() == both.to_json()
    assert "each part's own observer (released or server)" in both.statement()


def test_what_a_composition_would_spend_is_asked_of_its_parts() -> None:
    """It said what has been spent, whatever was foreseen."""
    entry = Release.of(9, None, 100, 1.0, 0.1)
    with pytest.raises(ValueError, match=r"^ledger='composition': expected the ledger of one run"):
        Ledger.compose(filled(), filled()).foreseen([entry])
    assert filled().foreseen([entry]) > 1000


def test_compose_refuses_other_terms() -> None:
    for other in (Ledger(delta=1e-6), Ledger(unit="client")):
        with pytest.raises(ValueError, match=r"^(unit|delta)=.*: expected the same in all ledgers") as error:
            Ledger.compose(Ledger(), other)
        assert "\n" not in str(error.value)
    for wrong in ((), (1,), (Ledger(), "x")):
        with pytest.raises(ValueError, match=r"^ledgers="):
            Ledger.compose(*wrong)  # type: ignore[arg-type]
    unsure = filled()
    unsure.uncertified = "why"
    with pytest.raises(Uncertified, match="why"):
        Ledger.compose(filled(), unsure).epsilon()
    assert Ledger.compose(filled(), filled(accountant="rdp")).accountant == "rdp"


def test_the_worst_client_is_found_among_many() -> None:
    """Some clients are left out of the search because another has less noise, a larger rate and no fewer releases."""
    random = np.random.default_rng(3)
    ledger = Ledger()
    sigmas, rates = random.choice([0.8, 1.0, 1.5], 60), random.uniform(0.01, 0.3, 60)
    for t in range(4):
        there = [k for k in range(60) if random.random() < 0.5]
        ledger.record(t, there, 5, sample_rate=rates[there], noise_multiplier=sigmas[there])
    assert ledger.epsilon() == max(ledger.epsilon(k) for k in ledger.clients)
    assert len(ledger._largest(None)) < 20


def test_to_frame() -> None:
    frame = filled().to_frame()
    assert frame["client"].tolist() == [0, 1, 2]
    assert frame["releases"].tolist() == [10, 5, 5]
    assert frame["epsilon"].tolist() == [filled().epsilon(k) for k in range(3)]
    common = Ledger(unit="client")
    common.record(0, None, 3, **RATES)
    assert common.to_frame().to_dict("records") == [{"client": "every", "releases": 3, "epsilon": common.epsilon()}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "user"}, "^unit='user': expected"),
        ({"delta": 0}, "^delta=0: expected"),
        ({"accountant": "x"}, "^accountant='x': expected"),
        ({"reproducible": 1}, "^reproducible=1: expected True or False$"),
        ({"delta": 1e-300}, "^delta=1e-300: expected at least 1e-12: noise from 52 random bits ends at 8.2 sigma$"),
        ({"trust": "server"}, "^trust='server': expected one of 'local'$"),
        ({"unit": "client", "trust": "x"}, "^trust='x': expected one of 'local', 'secagg', 'central'$"),
        (
            {"relation": "add-or-remove"},
            "^relation='add-or-remove': expected 'zero-out', one unit's contribution.*sizes",
        ),
        ({"relation": "replace-one"}, "^relation='replace-one': expected 'zero-out'.*two of these changes"),
    ],
)
def test_ledger_refuses_bad_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ledger(**options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"round": -1}, "^round=-1: expected a whole number >= 0$"),
        ({"round": True}, "^round=True: expected"),
        ({"clients": (0, 0)}, r"^clients=\(0, 0\): expected every client once$"),
        ({"clients": (-1,)}, "^clients=-1: expected a whole number >= 0$"),
        ({"clients": (0.5,)}, "^clients=0.5: expected"),
        ({"clients": "ab"}, "^clients='a': expected"),
        ({"clients": 3}, "^clients=3: expected a tuple"),
        ({"count": -1}, "^count=-1: expected"),
        ({"count": 2.0}, "^count=2.0: expected"),
        ({"sample_rate": 1.1}, "^sample_rate=1.1: expected"),
        ({"sample_rate": None}, "^sample_rate=None: expected"),
        ({"sample_rate": (0.1,)}, r"^sample_rate=\(0.1,\): expected one number, or as many as clients$"),
        ({"sample_rate": "0.1"}, "^sample_rate='0.1': expected"),
        ({"noise_multiplier": -1}, "^noise_multiplier=-1.0: expected"),
        ({"noise_multiplier": math.inf}, "^noise_multiplier=inf: expected finite"),
        ({"noise_multiplier": math.nan}, "^noise_multiplier=nan: expected"),
        ({"noise_multiplier": (1.0, 2.0, 3.0)}, "expected one number, or as many as clients$"),
    ],
)
def test_record_refuses_bad_entries(arguments: dict[str, Any], message: str) -> None:
    ledger = Ledger()
    with pytest.raises(ValueError, match=message) as error:
        ledger.record(**{"round": 0, "clients": (0, 1), "count": 1, **RATES, **arguments})
    assert "\n" not in str(error.value)
    assert ledger.releases == ()


def test_release_takes_numpy_numbers() -> None:
    numbers: Any = np
    entry = Release.of(numbers.int64(3), np.array([1, 2]), numbers.int32(4), np.array([0.1, 0.2]), np.float64(1.5))
    assert entry == Release(3, (1, 2), 4, (0.1, 0.2), 1.5)
