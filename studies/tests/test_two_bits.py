"""What a client of FedLPP holds who keeps the broadcasts: the rule, the runs, the predictions."""

import numpy as np
import pandas as pd
import torch
from scipy.stats import t

from fedlora_lab.methods.quantization import NormalFloat
from studies import two_bits


def test_a_fresh_dither_is_right_on_average():
    """And rounds what is sent again alike; the other kind has its thresholds once for all."""
    x = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:64] = 0
    code = NormalFloat(2)
    drawn = torch.stack([two_bits.Dithered(code, True, secret)(x) for secret in range(600)])
    errors = drawn.mean(0) - x
    band = t.ppf(1 - 1e-6, 599) * drawn.std(0) / 600**0.5
    assert (errors.abs() <= band + 1e-12).all() and not drawn[:, :64].any()
    for fresh in (True, False):
        rule = two_bits.Dithered(code, fresh)
        assert torch.equal(rule(x), rule(x))
        moved = ((rule(x) - rule(x + 1e-9)).abs() > 1e-6).double().mean()
        assert moved > 0.1 if fresh else moved < 0.01


def test_the_committed_runs_are_those_declared():
    done = pd.read_csv(two_bits.FILE)
    assert not two_bits.missing(done) and not done.duplicated([*two_bits.Run._fields]).any()
    private = done["epsilon"].notna()
    assert (
        done["spent"][private].between(7.9, 8.0).all() and np.isinf(done["spent"][~private]).all()
    )
    full = done[done["method"] == "FedLoRA"]
    assert full["server"].equals(full["copies_1"])
