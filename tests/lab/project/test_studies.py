"""The laboratory still stands on the library; its own tests lie beside it, in studies/tests."""

from dataclasses import replace

import fedlora_lab as fl
from studies import protocol


def test_a_row_is_trained_at_each_rate_and_gets_a_card():
    """One round at two rates, as `python -m studies.table card FILE.py:ROW quick` tries a row."""
    name = "digits, example, epsilon 8"
    setting = replace(
        protocol.QUICK[name], clients=2, plan={"rounds": 1, "local_steps": 1, "batch": 8}
    )
    card = protocol.run_protocol(fl.methods.FFA, settings={name: setting}, seeds=(0,))
    found = card["settings"][name]
    assert [one["lr"] for one in found["rates"]] == list(setting.rates)
    assert found["rate"] in setting.rates and 7.9 < found["epsilon"] <= 8
