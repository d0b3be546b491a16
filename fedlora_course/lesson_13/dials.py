"""The dial of notebook 13: one promise under three kinds of trust."""

import math

from fedlora_course.lesson_13.theory import surviving_multiplier, trust_level
from fedlora_course.widgets.dial import Dial
from fedlora_course.widgets.scene import Scene, axis, bars, line, panel, text
from fedlora_lab import theory
from fedlora_lab._utils.rounding import round_up
from fedlora_lab._utils.trust import TRUST
from fedlora_lab.privacy.accounting import noise_multiplier

DELTA = 1e-5
TRUSTS = {"local": "nobody", "secagg": "secure aggregation", "central": "the server"}
SEARCH = 1e-6
"""How far, relative, the search for sigma ends beside the promise: 2.0000001 is 2."""
COLOURS = {"local": "pink", "secagg": "purple", "central": "teal"}


def epsilon_by_observer(trust: str, sigma: float, clients: int, colluders: int) -> dict[str, float]:
    """Computes ε of a release for the public, the server, and the server with some clients.

    Args:
        trust: of `TRUSTS`.
        sigma: noise multiplier of the sum, see `trust_level`.
        clients: that upload.
        colluders: clients that tell the server their own noise, below ``clients``.

    Returns: who -> epsilon at 1e-5; infinite for who sees an upload without noise.
    Guarantees: test_dials.py::test_the_epsilon_by_observer.
    """
    stated = theory.gdp_epsilon(1 / sigma, DELTA)
    if TRUST[trust].server_adds_noise:
        return {"public": stated, "server": math.inf, "together": math.inf}
    if TRUST[trust].uploads_are_seen:
        crowd = theory.gdp_epsilon(1 / sigma / math.sqrt(clients), DELTA)
        return {"public": crowd, "server": stated, "together": stated}
    remaining = surviving_multiplier(sigma, clients, clients - colluders)
    together = theory.gdp_epsilon(1 / remaining, DELTA)
    return {"public": stated, "server": stated, "together": together}


def _trust_scene(trust: str, clients: int, epsilon: float, colluders: int) -> Scene:
    """Draws the noise that a promise needs, and who faces which ε."""

    others = min(colluders, clients - 1)
    sigma = noise_multiplier(epsilon, DELTA, sample_rate=1.0, steps=1)
    faced = {
        who: value * (1 - SEARCH)
        for who, value in epsilon_by_observer(trust, sigma, clients, others).items()
    }
    levels = {kind: trust_level(kind, sigma, 1.0, clients).mean for kind in TRUSTS}
    noise = []
    for i, (kind, level) in enumerate(levels.items()):
        chosen = kind == trust
        noise.append(bars(1e-4, i - 0.28, level, i + 0.28, COLOURS[kind] if chosen else "pale"))
        ink = "ink" if chosen else "soft"
        noise.append(text(level, i, f"{level:.2g} C", ink, dx=6, dy=4, bold=chosen))
    seen = []
    for i, value in enumerate(faced.values()):
        colour = "green" if value <= epsilon else "red"
        end = min(value, 100)
        seen.append(bars(0.03, i - 0.28, end, i + 0.28, colour))
        words = round_up(value, ".2f") if math.isfinite(value) else "∞"
        seen.append(text(end, i, words, colour, dx=6, dy=4))
    observers = ["who sees the model", "the server", f"server + {others} clients"]
    panels = [
        panel(
            "The same promise needs other noise",
            axis("noise on the mean, in units of C", 1e-4, 100, log=True),
            axis(
                "", 2.6, -0.6, ticks=range(3), names=[f"trust {words}" for words in TRUSTS.values()]
            ),
            *noise,
            wide=True,
        ),
        panel(
            "Who faces which ε",
            axis("ε (dashed: promised)", 0.03, 3000, log=True),
            axis("", 2.6, -0.6, ticks=range(3), names=observers),
            *seen,
            line(epsilon, [2.6, -0.6], "ink", dash="4 3", width=1.6),
            wide=True,
        ),
    ]
    level = trust_level(trust, sigma, 1.0, clients)
    adds = f"each client adds {level.each:.2g} C"
    ending = f"; with {others} clients on its side the server faces "
    ending += f"ε = {round_up(faced['together'], '.2f')}."
    if TRUST[trust].server_adds_noise:
        adds = f"the server adds {level.server:.2g} C to the sum"
        ending = "; the server sees every update as it is."
    elif TRUST[trust].uploads_are_seen:
        more = levels[trust] / levels["central"]
        ending = f", {more:.2g} times what a trusted server needs; nobody faces more than "
        ending += f"ε = {epsilon:g}."
    start = f"ε = {epsilon:g} for {clients} clients, trust in {TRUSTS[trust]}: {adds}; "
    return panels, [f"{start}the mean carries {levels[trust]:.2g} C", ending]


def trust_explorer() -> Dial:
    """Makes a dial for trust, clients, promise and colluders: the noise, each observer's ε.

    Guarantees: noise and ε are `trust_level` and `epsilon_by_observer`
        (test_dials.py::test_a_dial_shows_what_its_scene_draws).
    """
    return Dial(
        "13/trust_explorer",
        _trust_scene,
        trust=TRUSTS,
        clients=(10, 50, 300, 1000),
        epsilon=(0.5, 1, 2, 4, 8),
        colluders=(0, 5, 10, 25, 45),
    )
