"""Rows and steps that break one clause of the contract each: they prove that it can fail.

A row cannot say through its fields that nothing is clipped or that a tensor stays without noise:
rules only ever see noised values. Those mistakes are made in a step wrapped around the true one.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from fedlora_lab.federated.config import moving_keys
from fedlora_lab.federated.local_training import local_step
from fedlora_lab.methods.filters import Preconditioner
from fedlora_lab.methods.method import Cycle, Method
from fedlora_lab.methods.published import FFA, FedLoRA


def _unnoised(prepared, **privacy):
    config = prepared.config
    silent = config.privacy.replace(noise_multiplier=0.0, **privacy)
    return replace(prepared, config=replace(config, privacy=silent))


def _noise(prepared, clients, t, s):
    """What the noise of the true step changes; the clients are left as they are."""

    def after(level):
        twin = replace(
            clients, params=dict(clients.params), noise={}, optimizer={}, noise_optimizer={}
        )
        local_step(level, twin, t, s)
        return twin.params

    silent = after(_unnoised(prepared))
    return {key: x - silent[key] for key, x in after(prepared).items()}


def clips_nothing(prepared, clients, t, s):
    """Adds up the examples' gradients as they are; the noise is that of the plan."""
    noise = _noise(prepared, clients, t, s)
    local_step(_unnoised(prepared, clip_norm=math.inf), clients, t, s)
    for key, xi in noise.items():
        clients.params[key] = clients.params[key] + xi


def leaves_one_tensor_without_noise(prepared, clients, t, s):
    """Forgets the last of the tensors that move."""
    noise = _noise(prepared, clients, t, s)
    local_step(prepared, clients, t, s)
    last = moving_keys(tuple(clients.params), prepared.config.method.factors_at_step(t, s))[-1]
    clients.params[last] = clients.params[last] - noise[last]


class SendsAFrozenFactor(Method):
    """Counts a factor as moved that its schedule never moves: it is sent, and noised."""

    def factors_in_round(self, t, local_steps):
        return "AB"


class Smuggler:
    """Rules that are no functions: the maps look at a client's own factors, the filter tells."""

    def __init__(self):
        self.seen = 0.0

    def maps(self, gram):
        self.seen += float(gram.nan_to_num().abs().clamp(max=1e6).sum())
        eye = torch.eye(gram.shape[-1]).to(gram).expand_as(gram)
        return Preconditioner(eye, eye)

    def smooth(self, tensor, name):
        return tensor * (1 + self.seen)


RULES = Smuggler()
SMUGGLES = FedLoRA.replace(
    name="smuggles", schedule=Cycle(("B A",)), precondition=RULES.maps, filter=RULES.smooth
)
"""Lets the filter tell what the maps saw of un-noised local steps: a path round the clip."""
FFA_FIELDS = {name: getattr(FFA, name) for name in Method.__dataclass_fields__}
CLAIMS = FedLoRA.replace(name="claims exactness", exact=True)
_SUM = "test_leaving_out_one_example_moves_the_sum_by_at_most_c"
# Name: row, local step, unit, and the clause that finds the mistake.
BROKEN: dict[str, tuple[Method, Callable, str, str]] = {
    "clips nothing": (FedLoRA, clips_nothing, "example", _SUM),
    "sends a frozen factor": (
        SendsAFrozenFactor(**FFA_FIELDS),
        local_step,
        "example",
        "test_frozen_and_unsent_factors_never_change_on_the_server",
    ),
    "claims exactness": (CLAIMS, local_step, "example", "test_deviates_unless_exact"),
    "one tensor without noise": (
        FedLoRA,
        leaves_one_tensor_without_noise,
        "example",
        "test_noise_is_sigma_c_on_what_moves",
    ),
    "smuggles": (SMUGGLES, local_step, "client", "test_no_path_from_data_round_the_clip"),
}
