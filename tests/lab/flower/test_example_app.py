"""The example app as processes of this machine: a server and two sites."""

import os
import sys

import pytest
from commands import succeeded
from peft import AutoPeftModelForSequenceClassification
from places import ROOT

import fedlora_lab as fl

SCRIPT = ROOT / "examples" / "flower_app" / "local.py"


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.further
@pytest.mark.slow
@pytest.mark.waits
def test_the_example_plays_a_run_between_processes(tmp_path):
    """By its one command: the run comes to its end, the adapter loads in PEFT, and the ledgers of
    server and sites count every round.
    """
    succeeded(sys.executable, SCRIPT, tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    adapter = tmp_path / "out" / "adapter"
    AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3)
    server = fl.Ledger.load(tmp_path / "out" / "ledger.json")
    rounds = [entry.round for entry in server.releases]
    assert rounds == [1, 2, 3, 4, 5] and not server.reproducible
    assert server.epsilon() == pytest.approx(8, abs=0.05)
    for k in range(2):
        own = fl.flower.client_ledger(tmp_path / f"memory-{k}")
        assert own is not None and [entry.round for entry in own.releases] == rounds
        assert own.epsilon() <= server.epsilon(k) + 1e-9
