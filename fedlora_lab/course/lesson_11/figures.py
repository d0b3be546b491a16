"""What notebook 11 measures: scans read from updates, what is left beyond the threshold, and how
well a small decoder remembers one message.
"""

import math
import tempfile
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, mannwhitneyu, norm

from fedlora_lab import tasks, theory
from fedlora_lab._utils.validation import check_whole
from fedlora_lab.attacks.reconstruction import (
    Victim,
    flattened_digits_task,
    input_from_a_gradient,
    similarity,
)
from fedlora_lab.federated.records import Round, predict
from fedlora_lab.lora.source import require_source
from fedlora_lab.methods.plan import Lora
from fedlora_lab.plots.tidy import confidence_interval
from fedlora_lab.tasks.prompts import encode_pairs

CLIP = 0.01
PIXELS = 64
NOISES = (0.05, 0.1, 0.15, 0.22, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
"""In units of C."""
LOST = 0.7
"""Noise multiplier from which a scan of 64 pixels that is read from one update of rank 8 has, on
average, a |cos| within 0.03 of a random direction's (test_lesson_11.py)."""
DRAWS = 1000
"""Of each noise, with another scan and noise."""
PHRASES = """\
see you | at the station at noon
thank you | so much for your help
good night | and sleep well
on my way | home with the bread
please call | me in the evening
the train | is late again
can you | bring some milk
i am | at work until six
dinner is | ready come home
happy birthday | my dear friend
happy new | year to all of you
meeting at | ten in the room"""
"""What many clients write, and how it goes on."""
START = "my code is"
CODES = [" ".join(f"{code:03}") for code in range(1000)]
SECRET = 472


class AttackedClient:
    """Holds one client whose noised updates for single scans are attacked.

    The network is that of `attacks.flattened_digits_task`; only A of its first layer is sent, and
    the clip cuts every gradient.
    """

    def __init__(self) -> None:
        task = self.task = flattened_digits_task()
        self.victim = cache(lambda r: Victim.from_task(task, Lora(r, float(r)), spread=0.2))

    def read(
        self, noise: float, releases: int = 1, rank: int = 8, scan: int = 0, draw: int = 0
    ) -> tuple[Any, float]:
        """Attacks the update: returns the direction read, (64,), and its |cosine| with the scan.

        The mean of T releases of one gradient is drawn as one release with sigma / sqrt(T): the
        same distribution.

        Args: noise, releases, rank: of the updates; scan: which one; draw: seed of the noise.
        """
        check_whole("releases", releases, 1)
        x, y = (part[scan : scan + 1] for part in self.task.clients[0])
        victim = self.victim(rank)
        sigma = noise / releases**0.5
        upload = victim.upload((x, y), clip_norm=CLIP, noise_multiplier=sigma, draw=draw)
        image = input_from_a_gradient(upload[victim.layer(upload)])
        return image, similarity(image, x)


_client = cache(AttackedClient)


def beyond_threshold() -> pd.DataFrame:
    """Measures three attacks on one noised gradient of A, rank 8: image, name and presence.

    The image is the first singular vector; the name is the candidate, of all clients' scans, that
    explains the gradient best; presence is whether a given scan's gradient is there at all.

    Returns: columns attack (in brackets its success by chance), noise, mean, low, high (95 %), and
        closed: what theory says of the attack, for names what no attack exceeds.
    """
    client = _client()
    victim = client.victim(8)
    inputs, labels = (torch.cat(part) for part in zip(*client.task.clients, strict=True))
    traces = victim.traces((inputs, labels), "A", CLIP).double() / CLIP
    random = torch.Generator().manual_seed(11)
    chance = 1 / len(traces)
    rows: list[tuple] = []
    for sigma in NOISES:
        who = torch.randint(len(traces), (DRAWS,), generator=random)
        noise = sigma * torch.randn(2, *traces[who].shape, generator=random, dtype=traces.dtype)
        sent = traces[who] + noise[0]

        seen = torch.linalg.svd(sent[:300].view(-1, 8, PIXELS), full_matrices=False)[2][:, 0]
        scans = torch.nn.functional.normalize(inputs[who[:300]].flatten(1).double(), dim=1)
        image = (seen * scans).sum(1).abs().numpy()
        overlap = theory.gradient_overlap(sigma, 8, PIXELS)
        rows.append(
            ("image, |cos| (0.1)", sigma, image.mean(), *confidence_interval(image), overlap)
        )

        # The log-likelihood of each candidate, up to what all candidates share.
        fits = sent @ traces.T - traces.square().sum(1) / 2
        right = int((fits.argmax(1) == who).sum())
        exact = binomtest(right, DRAWS).proportion_ci()  # Clopper and Pearson's
        most = float(norm.cdf(norm.ppf(chance) + 1 / sigma))
        rows.append(("named (1/1,257)", sigma, right / DRAWS, *exact, most))

        present, absent = ((given * traces[who]).sum(1).numpy() for given in (sent, noise[1]))
        pairs = zip(np.split(present, 10), np.split(absent, 10), strict=True)
        areas = [mannwhitneyu(*pair).statistic / len(pair[0]) ** 2 for pair in pairs]
        best = float(norm.cdf(0.5**0.5 / sigma))
        rows.append(
            ("presence, AUC (0.5)", sigma, np.mean(areas), *confidence_interval(areas), best)
        )
    return pd.DataFrame(rows, columns=["attack", "noise", "mean", "low", "high", "closed"])


def messages() -> tasks.Task:
    """Makes a task of three clients' messages for a random decoder; one holds a secret code."""
    phrases = [phrase.split(" | ") for phrase in PHRASES.splitlines()]
    drawn = np.random.default_rng(0).choice(phrases, 600)
    frame = pd.DataFrame(drawn, columns=["start", "end"])
    frame["client"] = frame.index % 3
    frame.loc[0, ["start", "end"]] = [START, CODES[SECRET]]
    with tempfile.TemporaryDirectory() as folder:
        path = tasks.tiny(
            "llama",
            folder,
            [PHRASES, START, *CODES],
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=1,
            # With small weights a random model hardly tells one text from another.
            initializer_range=0.3,
        )
        return tasks.prompts(
            path,
            frame,
            prompt="start",
            answer="end",
            by="client",
            targets=["up_proj", "down_proj"],
            public_test=True,
        )


@cache
def _encoded_codes(task: tasks.Task) -> Any:
    """Encodes all codes as answers, once for a task: every round asks for them."""
    pairs = [(START, code) for code in CODES]
    assert task.generation is not None  # the task of `messages`
    return encode_pairs(task.generation, task.model, pairs, None, CODES)


def exposure(record: Round) -> float:
    """Computes by how many bits a model singles out its secret: log2(1,000 / rank of all codes).

    Args: record: of a run on `messages`.
    """
    task, _, _ = require_source(record)
    x, y, _ = _encoded_codes(task)
    with torch.inference_mode():
        losses = task.loss(predict(task, record, x), y)
    return math.log2(len(CODES) / int((losses <= losses[SECRET]).sum()))
