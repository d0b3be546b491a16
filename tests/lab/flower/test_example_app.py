"""The example app as processes of this machine: a server and two sites, one of which is killed and
started again within the run.
"""

import importlib.util
import shutil
import threading
import time

import psutil
import pytest
from peft import AutoPeftModelForSequenceClassification
from places import ROOT

import fedlora_lab as fl

EXAMPLE = ROOT / "examples" / "flower_app"
LATE = 900
"""Seconds after which a machine, however busy, is taken to have failed."""


def local(folder):
    """The script of a copy of the example, of fewer rounds."""
    shutil.copytree(EXAMPLE, folder)
    terms = folder / "flower_app" / "terms.py"
    terms.write_text(terms.read_text("utf-8").replace("rounds=5", "rounds=3"), "utf-8")
    spec = importlib.util.spec_from_file_location("local", folder / "local.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.further
@pytest.mark.waits
def test_a_site_is_killed_and_started_again_within_a_run(tmp_path, monkeypatch):
    """The run comes to its end, the adapter loads in PEFT, both ledgers are true, nothing listens
    on anything but loopback, and nothing still runs afterwards.
    """
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = local(tmp_path / "app")
    finished = []
    with script.Federation(tmp_path) as federation:
        federation.start_server()
        sites = [federation.start_site(k) for k in range(2)]
        player = threading.Thread(target=lambda: finished.append(federation.play()))
        player.start()
        end = time.monotonic() + LATE
        # Once it has answered the first round.
        while not spent(tmp_path, 0) and time.monotonic() < end:
            time.sleep(0.2)
        family = [one for process in federation.started for one in (process, *children(process))]
        addresses = {x.laddr.ip for one in family for x in connections(one)}
        script.kill(sites[0])
        federation.start_site(0)
        player.join(LATE)
        family += [one for process in federation.started for one in children(process)]
    assert finished == [True] and addresses == {"127.0.0.1"}
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not [one for one in alive if one.status() != psutil.STATUS_ZOMBIE]
    adapter = tmp_path / "out" / "adapter"
    AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3)
    server = fl.Ledger.load(tmp_path / "out" / "ledger.json")
    assert [x.round for x in server.releases] == [1, 2, 3] and not server.reproducible
    assert server.epsilon() == pytest.approx(8, abs=0.05)
    assert spent(tmp_path, 1) == [1, 2, 3]
    # The killed one may have missed a round, and has counted no more than it gave.
    assert spent(tmp_path, 0) in ([1, 3], [1, 2, 3])
    own = fl.flower.client_ledger(tmp_path / "memory-0")
    assert own is not None and own.epsilon() <= server.epsilon(0) + 1e-9


def spent(folder, k):
    """The rounds in a site's own ledger."""
    ledger = fl.flower.client_ledger(folder / f"memory-{k}")
    return [] if ledger is None else [release.round for release in ledger.releases]


def children(process):
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def connections(process):
    try:
        return [x for x in process.net_connections("inet") if x.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []
