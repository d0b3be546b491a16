"""Notebook 11: what is read from an upload is clipped as the upload is."""

import numpy as np
import torch

import fedlora_lab as fl
from fedlora_course.lesson_11 import figures, scans
from fedlora_course.lesson_11.theory import vanishing_noise
from fedlora_lab.audit import attacks


def test_an_upload_is_the_sum_of_the_traces():
    """Clipped alike, over the same factors, in the upload's order."""
    victim = attacks.Victim.from_task(scans.flattened_digits_task(), fl.Lora(8, 8.0), spread=0.2)
    x, y = victim.task.clients[0]
    pair = x[:6], y[:6]
    for factors, clip in (("A", 0.01), ("AB", 0.5)):
        upload = victim.upload(pair, factors, clip_norm=clip)
        sent = torch.cat([x.flatten() for x in upload.values()])
        traces = victim.traces(pair, factors, clip)
        torch.testing.assert_close(traces.sum(0), sent, rtol=1e-4, atol=1e-7)
        assert float(traces.norm(dim=1).max()) <= clip * (1 + 1e-5)


def test_an_image_is_lost_where_it_is_nearly_as_near_as_a_random_one():
    """Fault: the threshold of wide layers, at which |cos| is .33 here, was taken for the end."""
    rng = np.random.default_rng(0)
    signal = np.zeros((1500, 8, figures.PIXELS))
    signal[:, 0, 0] = 1.0
    chance = (2 / np.pi / figures.PIXELS) ** 0.5
    above = []
    for sigma in (figures.LOST, 0.5, vanishing_noise(8, 64, 1)):
        noised = signal + sigma * rng.standard_normal(signal.shape)
        above.append(abs(np.linalg.svd(noised)[2][:, 0, 0]).mean() - chance)
    assert above[0] < 0.03 < above[1] and above[2] > 0.2
