"""Small experiments, repeated over seeds, that the course holds its closed forms against.

They look at private values as they are (gradients before the clip, noise by itself): for the laboratory, never for a
release.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float

from fedlora_lab import adapters, passes
from fedlora_lab.averaged import averaged_noise as averaged_noise
from fedlora_lab.checks import check, check_number, check_one_of, check_whole
from fedlora_lab.measures import noise_energies
from fedlora_lab.mechanism import clip_sum, noise
from fedlora_lab.method import Slot
from fedlora_lab.quantised import fedlpp as fedlpp
from fedlora_lab.quantised import quantised_runs as quantised_runs
from fedlora_lab.shuffled import shuffled as shuffled
from fedlora_lab.streams import Streams
from fedlora_lab.tasks.task import take, together

if TYPE_CHECKING:
    from fedlora_lab.record import Round

ROWS = Slot("AB", "all layers")


def example_gradients(record: "Round", sides: str = "AB") -> Float[np.ndarray, "n p"]:
    """Every private example's own gradient at a record's global adapter, all layers in one row, before any clip.

    Args:
        record: as `run` yields it.
        sides: which factors: "A", "B" or "AB".

    Returns: (n, p), clients one after the other; p counts the numbers that a release would carry.

    Guarantees: the mean row is the gradient of the mean loss (test_example_gradients_average_to_the_gradient).
    """
    check(record.source is not None, "record", "a copy without its task", "a record as run() yields it")
    check_one_of("sides", sides, ("A", "B", "AB"))
    task, lora, state = record.source  # type: ignore[misc]
    adapted = adapters.adapt(task.model, task.targets, task.head, lora)
    moving = tuple(slot for slot in adapted.places if slot.side in sides)
    bank = {slot: tensor[None] for slot, tensor in state.tensors.items()}
    x, y = together(task.clients)
    parts = []
    for index in torch.arange(len(y)).split(256):
        data = (take(x, index), y[index])
        rows = passes.per_example_gradients(task, adapted, bank, moving, data, torch.zeros_like(index))
        parts.append(torch.cat([tensor.flatten(1) for tensor in rows.values()], 1))
    return torch.cat(parts).numpy()


def released_mean(
    rows: Float[np.ndarray, "n p"], clip_norm: float, noise_multiplier: float, batch: float, seed: int = 0
) -> Float[np.ndarray, " p"]:
    """One release by the library's own clip and noise: Poisson draw, clip, sum, noise, division by ``batch``.

    Args: as `theory.clip_terms`; seed: of draw and noise.

    Guarantees: its mean error is `theory.clip_terms` (test_releases_follow_the_closed_form).
    """
    check_number("batch", batch, 0, len(rows), open_low=True)
    streams = Streams(seed)
    drawn = torch.from_numpy(rows[streams.numpy("sampling").random(len(rows)) < batch / len(rows)])
    total, _ = clip_sum({ROWS: drawn}, clip_norm, torch.zeros(len(drawn), dtype=torch.int64), 1)
    xi = noise({ROWS: torch.Size([rows.shape[1]])}, [noise_multiplier * clip_norm], streams, [()])
    return ((total[ROWS] + xi[ROWS])[0] / batch).numpy()


def release_errors(
    rows: Float[np.ndarray, "n p"],
    clip_norms: Sequence[float],
    noise_multipliers: Sequence[float],
    batch: float,
    seeds: int = 100,
) -> Any:
    """Squared distance of released means from the mean of all rows, over thresholds, noise levels and seeds.

    Returns: columns noise_multiplier, clip_norm, seed, value. Every cell has random numbers of its own.
    """
    import pandas as pd

    check_whole("seeds", seeds, 2)
    truth, found = rows.mean(0), []
    for i, sigma in enumerate(noise_multipliers):
        for j, clip in enumerate(clip_norms):
            for seed in range(seeds):
                gap = released_mean(rows, clip, sigma, batch, 10_000 * (i * len(clip_norms) + j) + seed) - truth
                found.append((sigma, clip, seed, float(gap @ gap)))
    return pd.DataFrame(found, columns=["noise_multiplier", "clip_norm", "seed", "value"])


def noise_draws(
    B: Float[np.ndarray, "d_out r"],
    A: Float[np.ndarray, "r d_in"],
    stds: Sequence[float],
    seeds: int = 100,
    scaling: float = 1.0,
) -> Any:
    """Energies of scaling xi_B A, scaling B xi_A and scaling xi_B xi_A, measured on drawn noise of equal std.

    Returns: columns std, seed, term ("noise_B", "noise_A", "noise_BA"), value.

    Guarantees: means follow `theory.noise_terms`, spreads `theory.noise_spread` (test_draws_follow_the_closed_form).
    """
    import pandas as pd

    check_whole("seeds", seeds, 2)
    a, b, found = torch.from_numpy(A), torch.from_numpy(B), []
    for i, std in enumerate(stds):
        for seed in range(seeds):
            rng = Streams(seed).numpy("noise draws", i)
            xi_b, xi_a = (torch.from_numpy(std * rng.standard_normal(factor.shape)) for factor in (B, A))
            terms = noise_energies(a, b, xi_a, xi_b, scaling)
            found += [(float(std), seed, term, value) for term, value in terms.items()]
    return pd.DataFrame(found, columns=["std", "seed", "term", "value"])


def start_draws(
    widths: Sequence[int],
    ranks: Sequence[int],
    stds: Sequence[float],
    seeds: int = 100,
    *,
    start: str = "kaiming",
    d_out: int = 64,
) -> Any:
    """As `noise_draws` at the start of training: B = 0, and a fresh A for every draw; scaling 1.

    Args: widths: d_in. start: rows of A "orthonormal", or "kaiming" as PEFT draws them, uniform in +-1 / sqrt(d_in).

    Returns: columns d_in, rank, std, seed, term, value.
    """
    import pandas as pd

    check_one_of("start", start, ("kaiming", "orthonormal"))
    frames = []
    for d_in in widths:
        for rank in ranks:
            for std in stds:
                for seed in range(seeds):
                    rng = Streams(seed).numpy("start draws", d_in, rank, round(1e9 * std), start == "kaiming")
                    A = rng.uniform(-1, 1, (rank, d_in)) / d_in**0.5
                    if start == "orthonormal":
                        A = np.linalg.qr(rng.standard_normal((d_in, rank)))[0].T
                    xi_b, xi_a = (torch.from_numpy(std * rng.standard_normal(x)) for x in ((d_out, rank), A.shape))
                    terms = noise_energies(torch.from_numpy(A), torch.zeros(d_out, rank), xi_a, xi_b, 1.0)
                    frames += [(d_in, rank, std, seed, term, value) for term, value in terms.items()]
    return pd.DataFrame(frames, columns=["d_in", "rank", "std", "seed", "term", "value"])
