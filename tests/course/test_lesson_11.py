"""Notebook 11: what is read from an upload is clipped as the upload is."""

import torch

import fedlora_lab as fl
from fedlora_lab import attacks


def test_an_upload_is_the_sum_of_the_traces():
    """Clipped alike, over the same sides, in the upload's order."""
    victim = attacks.Victim.from_task(attacks.flattened_digits_task(), fl.Lora(8, 8.0), spread=0.2)
    x, y = victim.task.clients[0]
    pair = x[:6], y[:6]
    for sides, clip in (("A", 0.01), ("AB", 0.5)):
        upload = victim.upload(pair, sides, clip_norm=clip)
        sent = torch.cat([x.flatten() for x in upload.values()])
        traces = victim.traces(pair, sides, clip)
        torch.testing.assert_close(traces.sum(0), sent, rtol=1e-4, atol=1e-7)
        assert float(traces.norm(dim=1).max()) <= clip * (1 + 1e-5)
