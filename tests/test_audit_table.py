"""The audit of the whole table: what is committed holds, and a run that was cut short goes on."""

import csv
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fedlora_lab as fl

ROOT = Path(__file__).resolve().parent.parent


def script() -> Any:
    spec = importlib.util.spec_from_file_location("audit_table", ROOT / "scripts" / "audit_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_committed_audit_exceeds_its_ledger():
    """At least twenty seeds of every method in both units, at 99 %; none above its ceiling either."""
    rows = script().kept(ROOT / "results" / "audit.csv")
    seeds = Counter((row["method"], row["unit"], row["noise_multiplier"]) for row in rows)
    assert min(seeds.values()) >= 20
    assert len({method for method, *_ in seeds} & set(fl.methods.ALL)) >= 20
    for row in rows:
        lower, ceiling, upper = (float(row[name]) for name in ("epsilon_lower", "ceiling", "epsilon_upper"))
        assert lower <= min(ceiling, upper), row
        assert float(row["confidence"]) == 0.99
        assert not row["invalid"]
    assert max(float(row["epsilon_lower"]) for row in rows) > 1


def test_a_table_that_was_cut_short_goes_on(tmp_path, monkeypatch, capsys):
    module, out = script(), tmp_path / "audit.csv"
    few = {slug: fl.methods.ALL[slug] for slug in ("fedlora", "ffa-lora")}
    monkeypatch.setattr(fl.methods, "ALL", few)
    module.PLAN, module.NOISE, module.CANARIES = module.PLAN.replace(rounds=1), (2.0,), 8
    monkeypatch.setattr(sys, "argv", ["audit_table.py", "--seeds", "2", "--out", str(out)])

    def played() -> int:
        try:
            module.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return -1

    assert played() == 0
    whole = out.read_text()
    assert len(whole.splitlines()) == 1 + 2 * 2 * 2
    out.write_text(whole[: whole.rindex(",")])  # the last row was being written
    assert played() == 0
    said = capsys.readouterr().out
    assert "8 audits, 0 above the ledger's epsilon, 0 invalid" in said
    assert "none of these could have contradicted it" in said
    with open(out, newline="") as file:
        assert list(csv.DictReader(file)) == list(csv.DictReader(whole.splitlines()))
