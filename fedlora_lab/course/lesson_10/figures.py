"""The reader's server of notebook 10 as a server rule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedlora_lab import methods
from fedlora_lab.methods.aggregation import MeanWithResidual, Rule, Uploads, client_values
from fedlora_lab.methods.method import Method
from fedlora_lab.methods.state import ParamKey, ServerState

Serve = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class _Served(Rule):
    """Hands the uploads of each layer to ``serve``, all clients alike."""

    serve: Serve
    writes: ClassVar[tuple[str, ...]] = ("W",)

    def initial_state(self, state: ServerState) -> ServerState:
        return MeanWithResidual().initial_state(state)

    def __call__(
        self, state: ServerState, broadcast: ServerState, uploads: Uploads, weights: Tensor
    ) -> ServerState:
        changed = {}
        for layer in state.layers:
            keys = [ParamKey(side, layer) for side in "BAW"]
            factors = [client_values(state, broadcast, uploads, key) for key in keys[:2]]
            b, a, residual = self.serve(*(x.double().numpy() for x in factors))
            # Residuals add up in the frozen weight; the factors are replaced.
            total = state.tensors[keys[2]].double().numpy() + residual
            for key, value in zip(keys, (b, a, total), strict=True):
                changed[key] = torch.from_numpy(value).to(state.tensors[key])
        return state.replace_tensors(changed)


def served_by(serve: Serve) -> Method:
    """Makes FedEx-LoRA with a server of one's own.

    Args: serve: (B, A) of a layer -> mean B, mean A and the residual, as in exercise 10.1.
    Guarantees: test_lesson_10.py::test_the_readers_server_trains_as_the_library_s.
    """
    return methods.FedExLoRA.replace(name="my server", aggregate=_Served(serve))
