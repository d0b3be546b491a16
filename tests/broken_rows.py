"""Rows and steps that break one clause of the contract each: they prove that it can fail.

A row cannot say through its fields that nothing is clipped or that a tensor stays without noise: rules only ever see
noised values. Those mistakes are made where they would be made, in a local step wrapped around the true one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedlora_lab import engine
from fedlora_lab.method import Method, Slot
from fedlora_lab.methods import FFA, FedLoRA, LALoRA
from fedlora_lab.rules import identity


def clips_nothing(setting: engine.Setting, clients: engine.Clients, t: int, s: int) -> None:
    """Adds up the examples' gradients as they are; the noise is that of the plan."""
    noise = {slot: -x for slot, x in _part(setting, clients, t, s, noise=True).items()}
    engine.local_step(replace(setting, clip_norm=math.inf, noise_multiplier=_none(setting)), clients, t, s)
    for slot, xi in noise.items():
        clients.bank[slot] = clients.bank[slot] - xi


def leaves_one_tensor_without_noise(setting: engine.Setting, clients: engine.Clients, t: int, s: int) -> None:
    """Forgets the last of the tensors that move."""
    noise = _part(setting, clients, t, s, noise=True)
    engine.local_step(setting, clients, t, s)
    moving = engine.moving_slots(clients.bank, setting.method.moves(t, s))
    clients.bank[moving[-1]] = clients.bank[moving[-1]] - noise[moving[-1]]


def smooths_before_the_noise(setting: engine.Setting, clients: engine.Clients, t: int, s: int) -> None:
    """Filters the clipped sum and then adds white noise: private, but the noise stays that the filter was for."""
    smooth = setting.method.smooth
    plain = replace(setting, method=setting.method.replace(smooth=identity))
    signal = _part(plain, clients, t, s, noise=False)
    engine.local_step(plain, clients, t, s)
    for slot, x in signal.items():
        if slot.side != "head":
            clients.bank[slot] = clients.bank[slot] - x + smooth(x, slot.side)


def _none(setting: engine.Setting) -> tuple[float, ...]:
    return (0.0,) * len(setting.noise_multiplier)


def _part(setting: engine.Setting, clients: engine.Clients, t: int, s: int, noise: bool) -> dict[Slot, Tensor]:
    """What the noise of the true step, or its signal, changes in every slot; the clients are left as they are."""

    def after(level: engine.Setting) -> Mapping[Slot, Tensor]:
        twin = replace(clients, bank=dict(clients.bank), noise={}, momentum={})
        engine.local_step(level, twin, t, s)
        return twin.bank

    silent = after(replace(setting, noise_multiplier=_none(setting)))
    from_, to = (silent, after(setting)) if noise else (clients.bank, silent)
    return {slot: to[slot] - from_[slot] for slot in to}


class SendsAFrozenFactor(Method):
    """Counts a factor as moved that its schedule never moves: it goes up, takes room, and is noised as an update."""

    def moved(self, t: int, local_steps: int) -> str:
        return "AB"


class Smuggler:
    """A pair of rules that are no functions: the penalty looks at gradients of single examples, the filter tells."""

    def __init__(self) -> None:
        self.seen = 0.0

    def penalty(self, rows: Mapping[Slot, Tensor], start: Mapping[Slot, Tensor]) -> Tensor:
        for row in rows.values():
            row.register_hook(self._look)
        return torch.zeros(len(next(iter(rows.values()))), dtype=torch.float64)

    def _look(self, gradient: Tensor) -> None:
        self.seen += float(gradient.nan_to_num().abs().clamp(max=1e6).sum())

    def smooth(self, tensor: Tensor, side: str) -> Tensor:
        return tensor + self.seen


sends_a_frozen_factor = SendsAFrozenFactor(**{name: getattr(FFA, name) for name in Method.__dataclass_fields__})
claims_exactness = FedLoRA.replace(name="claims exactness", exact=True)
filtered = LALoRA


def smuggles() -> Method:
    """Lets the filter tell what the penalty saw: a path from data to model round the clip."""
    rules = Smuggler()
    return FedLoRA.replace(name="smuggles", penalty=rules.penalty, smooth=rules.smooth)


Broken = tuple[str, Callable[[], Method], Callable, str]
BROKEN: list[Broken] = [
    ("clips nothing", lambda: FedLoRA, clips_nothing, "leaving_out_one_example"),
    ("sends a frozen factor", lambda: sends_a_frozen_factor, engine.local_step, "frozen_and_unsent_stay_put"),
    ("smooths before the noise", lambda: filtered, smooths_before_the_noise, "smoothing_comes_after_the_noise"),
    ("claims exactness", lambda: claims_exactness, engine.local_step, "deviates_unless_exact"),
    ("one tensor without noise", lambda: FedLoRA, leaves_one_tensor_without_noise, "noise_is_sigma_c_on_what_moves"),
    ("smuggles", smuggles, engine.local_step, "no_path_from_data_round_the_clip"),
]
"""Name, row, local step, and the clause that finds the mistake."""
