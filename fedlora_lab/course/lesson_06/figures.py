"""Figures of notebook 06: schedules of the factors, noise in the product, and its shape."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from fedlora_lab.methods.method import Method


def turns_path(records: Sequence[Any], method: Method, layer: str) -> list[dict[str, Any]]:
    """Follows a layer of rank 2 through a run in turns, a dictionary for each round.

    "moves" and "rests" name the factors, "stretches" and "angle" (in degrees) belong to the frozen
    one: its singular values, the larger first, and the direction of the first on the rank axes.
    "from" and "to" are the largest singular values of B and of A before and after the round.

    Args: records: of the run, from the start on; method: its row; layer: of the adapter.
    Guarantees: test_the_path_follows_the_factors.
    """

    def sizes(record: Any) -> list[float]:
        A, B = record.adapter[layer]
        return [float(torch.linalg.matrix_norm(factor, 2)) for factor in (B, A)]

    path = []
    for t, (before, after) in enumerate(pairwise(records)):
        A, B = (factor.double() for factor in before.adapter[layer])
        moves = method.sides_at_step(t, 0)
        values, vectors = torch.linalg.eigh(A @ A.mT if moves == "B" else B.mT @ B)
        first = vectors[:, -1]
        angle = math.degrees(math.atan2(float(first[1]), float(first[0]))) % 180
        one = {"moves": moves, "rests": "A" if moves == "B" else "B", "angle": angle}
        one |= {"stretches": values.clamp(min=0).sqrt().flip(0).tolist()}
        path.append(one | {"from": sizes(before), "to": sizes(after)})
    return path
