"""What is left to chance, the noise and the draws, against the law that the ledger claims for it."""

from itertools import combinations, pairwise

import numpy as np
import torch

from fedlora_lab import engine
from fedlora_lab.audit import laws
from fedlora_lab.audit.bench import CLIENTS, EXAMPLES, Bench, Rows, step, update, white
from fedlora_lab.audit.found import Found
from fedlora_lab.audit.watch import Watched
from fedlora_lab.method import Slot

DRAWS, BATCHES = 4, 300


def _noise(bench: Bench, t: int, s: int, draw: int) -> tuple[Rows, int]:
    """The noise of one release in units of what the ledger claims, slot -> (rows, noised numbers).

    And how many numbers carry a signal and no noise.
    """
    example = bench.run.asked.privacy is not None and bench.run.asked.privacy.unit == "example"
    batch = EXAMPLES // 2 if draw % 2 else 1  # small batches are empty now and then
    pair, claimed = [], torch.zeros(0)
    for sigma in (None, 0.0):
        run = bench.before(t, sigma=sigma, batch=batch if example else None, draw=draw)
        if example:
            run._spend(t, tuple(range(CLIENTS)))
        change, start = step(run, s) if example else update(run)
        pair.append({slot: x.flatten(1).double() for slot, x in white(run, change, start).items()})
        if sigma is None and run.ledger is not None and run.asked.privacy is not None and run.ledger.releases:
            multiplier = torch.tensor(run.ledger.releases[-1].noise_multiplier, dtype=torch.float64)
            claimed = multiplier.view(-1, 1) * run.asked.privacy.clip_norm
    bare, found = 0, {}
    for slot, signal in pair[1].items():
        noise = pair[0][slot] - signal
        noised = (noise != 0).any(0)
        bare += int(((signal != 0).any(0) & ~noised).sum())
        found[slot] = noise[:, noised] / (claimed if len(claimed) in (1, len(noise)) else torch.nan)
    return found, bare


def _related(seen: dict[tuple[int, int, int], Rows]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Pairs of samples that must have nothing to do with each other."""
    pairs: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"clients": [], "steps": [], "rounds": [], "layers": []}

    def add(name: str, one: torch.Tensor, other: torch.Tensor) -> None:
        short = min(one.shape[-1], other.shape[-1])
        pairs[name].append((one[..., :short].numpy().ravel(), other[..., :short].numpy().ravel()))

    for (d, t, s), rows in seen.items():
        for slot, x in rows.items():
            for a, b in combinations(range(len(x)), 2):
                add("clients", x[a], x[b])
            for name, other in (("steps", (d, t, s + 1)), ("rounds", (d, t + 1, s))):
                if other in seen and slot in seen[other]:
                    add(name, x, seen[other][slot])
        for one, other in pairwise(rows.values()):
            add("layers", one, other)
    return pairs


def noise_law(bench: Bench, rng: np.random.Generator) -> list[Found]:
    """The noise is normal with the standard deviation that the ledger claims, nothing shares it, nothing is without."""
    example = bench.run.asked.privacy is not None and bench.run.asked.privacy.unit == "example"
    steps = range(min(bench.run.setting.plan.local_steps, 2)) if example else (0,)
    trials = {(d, t, s): _noise(bench, t, s, d) for d in range(DRAWS) for t in (0, 1) for s in steps}
    seen, bare = {key: rows for key, (rows, _) in trials.items()}, sum(count for _, count in trials.values())
    pooled: dict[Slot, list[np.ndarray]] = {}
    for rows in seen.values():
        for slot, x in rows.items():
            pooled.setdefault(slot, []).append(x.numpy().ravel())
    values = {slot: np.concatenate(parts) for slot, parts in pooled.items()}
    found = [Found("noise law", "numbers that carry data and no noise", float(bare), 0.0)]
    found += [Found("noise law", f"spread of {slot}", laws.spread(x)) for slot, x in values.items() if len(x)]
    for side in dict.fromkeys(slot.side for slot, x in values.items() if len(x)):
        whole = np.concatenate([x for slot, x in values.items() if slot.side == side])
        found.append(Found("noise law", f"normal, side {side}", laws.normal(whole, rng)))
    for name, both in _related(seen).items():
        if both:
            one, other = (np.concatenate([pair[i] for pair in both]) for i in (0, 1))
            found.append(Found("noise law", f"independent between {name}", laws.unrelated(one, other)))
    return found


def sampling_law(run: Watched, rng: np.random.Generator) -> list[Found]:
    """Every example (client unit: client) is drawn on its own, with the rate that the ledger claims."""
    privacy = run.asked.privacy
    assert privacy is not None
    if privacy.unit == "client":
        size, clients = len(run.setting.task.sizes), (0,)
        drawn = np.zeros((BATCHES, 1, size), bool)
        for t in range(BATCHES):
            drawn[t, 0, list(run._participants(t))] = True
        rates = [float(run.setting.plan.participation)]
        sizes = [size]
    else:
        clients = tuple(range(min(CLIENTS, len(run.setting.task.sizes))))
        sizes = [run.setting.task.sizes[k] for k in clients]
        drawn = np.zeros((BATCHES, len(clients), max(sizes)), bool)
        for i in range(BATCHES):
            for k, index in enumerate(engine.poisson_batch(run.setting, i // 2, i % 2, clients)):
                drawn[i, k, index.numpy()] = True
        claim = privacy.entry(clients)["sample_rate"]
        rates = list(claim) if isinstance(claim, tuple) else [claim] * len(clients)
    found = []
    for k, (n, q) in enumerate(zip(sizes, rates, strict=True)):
        here, name = drawn[:, k, :n], "clients" if privacy.unit == "client" else f"client {clients[k]}"
        if q == 1:
            found.append(Found("sampling law", f"{name}: left out although q = 1", float((~here).sum()), 0.0))
            continue
        found.append(Found("sampling law", f"{name}: how many in all", laws.total(int(here.sum()), here.size, q)))
        found.append(Found("sampling law", f"{name}: sizes of batches", laws.counts(here.sum(1), n, q, rng)))
        found.append(Found("sampling law", f"{name}: everyone alike", laws.even(here.sum(0), BATCHES, q)))
        found.append(Found("sampling law", f"{name}: steps apart", laws.unrelated(here[:-1] * 1.0, here[1:] * 1.0)))
    apart = [(drawn[:, a, :n], drawn[:, b, :n]) for a, b in combinations(range(len(sizes)), 2)
             for n in [min(sizes[a], sizes[b])] if rates[a] < 1 and rates[b] < 1]  # fmt: skip
    if apart:
        one, other = (np.concatenate([pair[i].ravel() for pair in apart]) * 1.0 for i in (0, 1))
        found.append(Found("sampling law", "clients apart", laws.unrelated(one, other)))
    return found
