"""AS-LoRA against its description: training with given modes, scores, and how modes are drawn."""

import math
from itertools import pairwise

import pytest
import torch
import transcribed_family as family
from scipy.stats import binomtest
from small import regression, tokens
from traced import agree, follow, open_run, state_of

import fedlora_lab as fl
from fedlora_lab.method import Global, Slot
from fedlora_lab.streams import Streams

TASKS = {"least squares": lambda: regression(heterogeneity=0.1), "tokens with head": lambda: tokens("head")}
SETTINGS = {"by size": (0.0, "size", "example"), "client unit": (0.6, "uniform", "client")}


def modes_of(server: Global) -> dict[str, str]:
    """Layer -> what moves in the round to come."""
    return {name: "BA"[int(mode)] for name, mode in server.side("mode").items()}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("clip", [0.3, 1e6], ids=["clip bites", "clip is loose"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_training_and_scores(task, clip, setting):
    """With the library's modes the loop ends where it does, and its scores are the running means of the active side."""
    run = follow(open_run(TASKS[task](), "as-lora", clip, SETTINGS[setting], rounds=8))
    modes, score = [modes_of(server) for server in run.states[:-1]], {}
    states, ends = family.as_lora(run.oracle, run.start, run.clients, run.work, modes)
    rounds = zip(pairwise(states), modes, ends, run.states[1:], strict=True)
    for (before, end), mode, arrived, server in rounds:
        agree(state_of(server), end, run.start)
        for name, side in mode.items():
            new = family.agreement([one[side, name] - before[side, name] for one in arrived])
            score[side, name] = 0.9 * score[side, name] + 0.1 * new if (side, name) in score else new
            for each in "AB":
                found = float(server.tensors[Slot(f"score {each}", name)])
                assert found == pytest.approx(score.get((each, name), math.nan), rel=1e-6, abs=1e-18, nan_ok=True)
    assert max(score.values()) > 0


@pytest.mark.parametrize("rounds", [12, 20, 25, 60])
def test_warm_up(rounds):
    """All layers take turns, B first, in the first tenth of the rounds; later they choose on their own."""
    warm, runs = math.ceil(0.1 * rounds), []
    for seed in range(3):
        states = follow(
            open_run(tokens("head"), "as-lora", math.inf, SETTINGS["by size"], rounds=rounds, seed=seed)
        ).states
        runs.append([modes_of(server) for server in states[:-1]])
        assert [set(mode.values()) for mode in runs[-1][:warm]] == [{"BA"[t % 2]} for t in range(warm)]
    assert any(len(set(mode.values())) == 2 for run in runs for mode in run[warm:])


def drawn(scores: dict[str, float], step: float, t: int, seed: int, layers: int = 1000) -> tuple[int, float]:
    """How many of some equal layers choose A after round t, in which B moved by ``step``; and the new score of B."""
    tensors, number = {}, lambda x: torch.tensor(x, dtype=torch.float64)
    names = [f"layer{i}" for i in range(layers)]
    for name in names:
        tensors |= {Slot(side, name): torch.zeros(1, 1, dtype=torch.float64) for side in "AB"}
        tensors |= {Slot(f"score {side}", name): number(value) for side, value in scores.items()}
        tensors[Slot("mode", name)] = number(0.0)
    state = Global(tensors, round=t, planned=20, streams=Streams(seed))
    uploads = {Slot("B", name): torch.full((2, 1, 1), step, dtype=torch.float64) for name in names}
    after = fl.methods.get("as-lora").aggregate(state, state, uploads, number([0.5, 0.5]))
    new = {float(x) for x in after.side("score B").values()}
    return sum(int(x) for x in after.side("mode").values()), new.pop()


@pytest.mark.parametrize(("a", "b", "t"), [(0.3, 0.1, 2), (0.3, 0.1, 21), (1e-8, 3e-8, 21), (0.1, 0.12, 80)])
def test_modes_follow_the_sigmoid(a, b, t):
    """Over many layers and seeds A is chosen as often as its probability says (exact binomial test)."""
    warm, seeds = 2, 10  # of 20 planned rounds
    found = [drawn({"A": a, "B": b}, math.sqrt(b), t, seed) for seed in range(seeds)]
    (score,) = {new for _, new in found}
    assert score == pytest.approx(b, rel=1e-9)  # 0.9 b + 0.1 b
    chance = family.chance_of_a(a, b, t + 2 - warm)  # the round to come is number t + 2
    assert binomtest(sum(count for count, _ in found), 1000 * seeds, chance).pvalue > 1e-3


def test_the_unseen_factor_comes_first():
    """A factor without a score is chosen for certain, whatever the other's score."""
    assert drawn({"A": math.nan, "B": 0.1}, 1.0, 30, 0)[0] == 1000
