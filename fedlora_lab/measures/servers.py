"""One round's uploads given to other servers: what each of them would have held."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float

from fedlora_lab.aggregate import sketch
from fedlora_lab.checks import check, check_whole
from fedlora_lab.measures.clients import Seen
from fedlora_lab.measures.products import Deviation, deviation
from fedlora_lab.measures.residual import shifted_deviation
from fedlora_lab.method import Method, Slot
from fedlora_lab.streams import Streams

if TYPE_CHECKING:
    import numpy as np


def served(seen: Seen, server: "Method | Any", layer: str) -> Deviation:
    """How far this server's product would have been from the mean of the products, had it been given these uploads.

    Args:
        seen: of a round, as `watch` keeps it.
        server: a row, whose server's rule is taken, or a rule.
        layer: name of a layer.

    Guarantees: of the row that was run it is the run's own deviation (test_lesson_10.py::test_served_is_the_run_s).
    """
    rule: Any = server.aggregate if isinstance(server, Method) else server
    check(layer in seen.state.layers, "layer", layer, "one of " + ", ".join(seen.state.layers))
    before = rule.open(seen.state) if hasattr(rule, "open") else seen.state
    after = rule(before, seen.sent, seen.uploads, seen.weights)
    a, b, w = (Slot(side, layer) for side in "ABW")
    given = seen.server(layer), (after.tensors[a], after.tensors[b]), seen.factors(layer), seen.weights
    if w not in after.tensors:
        return deviation(*given)
    return shifted_deviation(*given, after.tensors[w] - before.tensors[w])


def mean_spectrum(seen: Seen, layer: str) -> "Float[np.ndarray, ' n']":
    """Singular values of the mean of the clients' products of a layer, largest first.

    Guarantees: test_lesson_10.py::test_the_spectrum_is_that_of_the_matrix.
    """
    a, b = (x.double() for x in seen.factors(layer))
    count = len(seen.weights)
    a, b = a.expand(count, *a.shape[1:]), b.expand(count, *b.shape[1:])
    return torch.linalg.svdvals(torch.einsum("k,kor,kri->oi", seen.weights.double(), b, a)).numpy()


def sketched(seen: Seen, layer: str, widths: Sequence[int], seeds: int = 10) -> Any:
    """Relative error of FedASK's server over the width of its sketch, for several public draws of the sketch.

    Returns: columns width, seed, value.
    """
    import pandas as pd

    check_whole("seeds", seeds, 1)
    found = []
    for width in widths:
        for seed in range(seeds):
            drawn = seen._replace(state=replace(seen.state, streams=Streams(seed)))
            found.append((width, seed, served(drawn, sketch(width), layer).relative))
    return pd.DataFrame(found, columns=["width", "seed", "value"])
