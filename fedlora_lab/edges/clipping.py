"""Edges of clip and noise: how far one unit reaches, and what it reaches past the noise."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fedlora_lab import theory
from fedlora_lab.edges.edge import Edge
from fedlora_lab.mechanism import clip_sum, noise, row_norms
from fedlora_lab.method import Slot
from fedlora_lab.plan import Plan
from fedlora_lab.privacy import Privacy
from fedlora_lab.rules import Whitening, factor_space, product_space
from fedlora_lab.streams import Streams

Rows = dict[Slot, Tensor]
ONE = Slot("B", "layer")
CLIP = 1.0


def _sum(rows: Rows, clip: float) -> Rows:
    """The library's clip and sum, all rows of one owner; slot -> (...)."""
    count = len(next(iter(rows.values())))
    sums, _ = clip_sum(rows, clip, torch.zeros(count, dtype=torch.int64), 1)
    return {slot: total[0] for slot, total in sums.items()}


def _reach(release: Callable[[Rows], Rows], rows: Rows) -> float:
    """How far leaving out one row moves what is released, at most."""
    count, whole, far = len(next(iter(rows.values()))), release(rows), 0.0
    for i in range(count):
        kept = torch.arange(count) != i
        part = release({slot: x[kept] for slot, x in rows.items()})
        far = max(far, math.sqrt(sum(float((whole[slot] - part[slot]).square().sum()) for slot in whole)))
    return far


def clip_the_mean(rows: Rows, clip: float) -> Rows:
    """Takes the mean of 16 first and clips that; given back as a sum."""
    mean = {slot: x.sum(0, keepdim=True) / 16 for slot, x in rows.items()}
    return {slot: 16 * x for slot, x in _sum(mean, clip).items()}


def clip_each(rows: Rows, clip: float) -> Rows:
    """Clips every row over all its tensors and adds up."""
    return _sum(rows, clip)


def moved_by_one(release: Callable[[Rows, float], Rows]) -> float:
    """Largest move by one example, in units of C: fifteen gradients one way, a huge one against them."""
    rows = torch.zeros(16, 4, dtype=torch.float64)
    rows[:15, 0], rows[15, 0] = 2.0, -1e4
    return _reach(lambda part: release(part, CLIP), {ONE: rows}) / CLIP


def at_the_median(rows: Tensor, clip: float) -> tuple[Tensor, float]:
    """Takes the median norm of the batch for a threshold."""
    clip = float(row_norms({ONE: rows}).quantile(0.5))
    return _sum({ONE: rows}, clip)[ONE], clip


def at_the_plan_s(rows: Tensor, clip: float) -> tuple[Tensor, float]:
    """Takes the threshold of the plan."""
    return _sum({ONE: rows}, clip)[ONE], clip


def moved_in_thresholds(release: Callable[[Tensor, float], tuple[Tensor, float]]) -> float:
    """Largest move by one example, in units of the threshold that scales the noise."""
    rows = torch.zeros(17, 2, dtype=torch.float64)
    rows[:8, 0], rows[8:, 0] = 1.0, 100.0
    (whole, _), far = release(rows, CLIP), 0.0
    for i in range(17):
        part, clip = release(rows[torch.arange(17) != i], CLIP)
        far = max(far, float((whole - part).norm()) / clip)
    return far


def clip_each_tensor(rows: Rows, clip: float) -> Rows:
    """Clips every tensor to C by itself."""
    return {slot: _sum({slot: x}, clip)[slot] for slot, x in rows.items()}


def moved_over_tensors(release: Callable[[Rows, float], Rows]) -> float:
    """Largest move by one example over four tensors, in units of C."""
    random = torch.Generator().manual_seed(7)
    rows = {Slot("B", f"layer {i}"): 9 * torch.randn(5, 3, generator=random, dtype=torch.float64) for i in range(4)}
    return _reach(lambda part: release(part, CLIP), rows) / CLIP


def clip_the_weights(held: Tensor, start: Tensor, clip: float) -> Tensor:
    """Clips what the client holds; given back as the change that the server sees."""
    return _sum({ONE: held}, clip)[ONE] - start


def clip_the_change(held: Tensor, start: Tensor, clip: float) -> Tensor:
    """Clips the change since what the client received."""
    return _sum({ONE: held - start}, clip)[ONE]


def change_by_a_client(release: Callable[[Tensor, Tensor, float], Tensor]) -> float:
    """How far one client that trained a little moves a model of norm 3 C, in units of C."""
    start = torch.tensor([3.0, 0.0], dtype=torch.float64) * CLIP
    held = start + torch.tensor([0.0, 0.1], dtype=torch.float64) * CLIP
    return float(release(held[None], start, CLIP).norm()) / CLIP


def weighted_by_size(updates: Tensor, there: Tensor, sizes: Tensor) -> Tensor:
    """Mean of clipped updates with weights n_k / n."""
    return (sizes / sizes.sum() * there) @ updates


def weighted_equally(updates: Tensor, there: Tensor, sizes: Tensor) -> Tensor:
    """Mean of clipped updates with weights 1 / K, whoever is there."""
    return (there / len(updates)) @ updates


def moved_in_shares(mean: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
    """Largest move of the mean by one of eight clients, in units of C / K, which the noise is made for."""
    sizes = torch.tensor([400.0, 100, 80, 60, 40, 40, 20, 10], dtype=torch.float64)
    updates, everyone = CLIP * torch.eye(8, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    whole = mean(updates, everyone, sizes)
    parts = [whole - mean(updates, everyone - torch.eye(8, dtype=torch.float64)[k], sizes) for k in range(8)]
    return max(float(part.norm()) for part in parts) / (CLIP / 8)


def share_of_the_noise(sigma: float, clients: int) -> float:
    """Standard deviation of what each adds for a sum that nobody takes apart."""
    return _each(Privacy(unit="client", trust="secagg", noise_multiplier=sigma, delta=1e-3), clients)


def noise_of_its_own(sigma: float, clients: int) -> float:
    """Standard deviation of what each adds when its upload is seen."""
    return _each(Privacy(unit="client", trust="local", noise_multiplier=sigma, delta=1e-3), clients)


def _each(privacy: Privacy, clients: int) -> float:
    each = privacy.noise(clients, Plan()).each
    assert isinstance(each, float)
    return each


def seen_alone(choose: Callable[[float, int], float]) -> float:
    """Epsilon of one of a hundred uploads for a server that looks at it; sigma = 4, delta = 1e-5."""
    return theory.gdp_epsilon(CLIP / choose(4.0, 100), 1e-5)


def worst_shift(rule: Callable[[Tensor], Whitening]) -> float:
    """How many noise deviations an allowed change stands out at most, in units of 1 / sigma; peer of norm 3."""
    peer = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    found = rule(peer @ peer.mT)
    return float(torch.linalg.matrix_norm(torch.linalg.pinv(found.noise) @ found.after, ord=2))


def with_a_raw_score(rows: Tensor, clip: float) -> Tensor:
    """Uploads the noised sum, and beside it how large the gradients were."""
    return torch.cat([noised(rows, clip), rows.norm().reshape(1)])


def with_a_noised_score(rows: Tensor, clip: float) -> Tensor:
    """Uploads the noised sum, and beside it how large that is."""
    sent = noised(rows, clip)
    return torch.cat([sent, sent.norm().reshape(1)])


def noised(rows: Tensor, clip: float) -> Tensor:
    """Clipped sum plus noise, whatever the clip."""
    xi = noise({ONE: rows.shape[1:]}, [1.0], Streams(15), [(0, 0, 0)])[ONE][0]
    return _sum({ONE: rows}, clip)[ONE] + xi


def depend_on_data(release: Callable[[Tensor, float], Tensor]) -> float:
    """How many released numbers differ between two data sets although C = 0 lets nothing through."""
    one, other = (torch.tensor(np.random.default_rng(seed).standard_normal((6, 5))) for seed in (0, 1))
    return float((release(one, 0.0) != release(other, 0.0)).sum())


COUNTED = "Counting"
EDGES = (
    Edge(
        number=3, title="Clipping the mean gradient of a batch", severity="fatal", group=COUNTED,
        wrong="The noise assumes that one example moves the mean by C/b. If only the mean is clipped, one example "
        "moves it by up to 2C.",
        library="**Cannot say it.** The engine clips each example's gradient before the sum; for every row, leaving "
        "out one example is tried and the sum moves by C at most "
        "(`test_leaving_out_one_example_moves_the_sum_by_at_most_c`). A loss or a layer that mixes examples is refused "
        "(`test_nothing_mixes_examples`).",
        what="largest move of the sum by one of 16 examples, in units of C",
        broken=clip_the_mean, fixed=clip_each, measure=moved_by_one, line=1 + 1e-9,
    ),
    Edge(
        number=4, title="A threshold taken from the batch", severity="fatal", group=COUNTED,
        wrong="A median of the norms, say. The threshold is then itself a release without noise, and the sensitivity "
        "has no value.",
        library="**Cannot say it.** `clip_norm` is a number of the plan (`test_a_clip_norm_is_a_number_fixed_before`). "
        "With C = 0 two data sets must give the same bits (`test_no_path_from_data_round_the_clip`).",
        what="largest move by one of 17 examples, in units of the threshold that scales the noise",
        broken=at_the_median, fixed=at_the_plan_s, measure=moved_in_thresholds, line=1 + 1e-9,
    ),
    Edge(
        number=7, title="A clip for each tensor, one release counted", severity="serious", group=COUNTED,
        wrong="L tensors, each within C, are together within √L·C.",
        library="**Cannot say it.** There is one norm over all tensors that move, or p parts clipped to C/√p each "
        "(`test_the_clip_is_one_over_all_tensors`).",
        what="largest move by one example over four tensors, in units of C",
        broken=clip_each_tensor, fixed=clip_each, measure=moved_over_tensors, line=1 + 1e-9,
    ),
    Edge(
        number=8, title="Clipping the weights instead of the update", severity="serious", group=COUNTED,
        wrong="The model shrinks, and what one client can change is not bounded by C.",
        library="**Cannot say it.** In the client unit it is the change since what the client received that is clipped "
        "(`test_leaving_out_one_client_moves_the_sum_by_at_most_c`).",
        what="how far a client that trained a little moves a model of norm 3C, in units of C",
        broken=clip_the_weights, fixed=clip_the_change, measure=change_by_a_client, line=1 + 1e-9,
    ),
    Edge(
        number=10, title="Weights by size under noise for equal weights", severity="serious", group=COUNTED,
        wrong="With weights w the sum moves by C times the largest w, not by C/K.",
        library="**Cannot say it.** Where noise protects a sum (`secagg`, `central`), the sum is of equally weighted "
        "updates with a fixed denominator; where every upload is protected alone, weights come after the noise "
        "(`test_denominators_are_fixed`). `weights=\"size\"` is refused in the client unit.",
        what="largest move of the mean by one of eight clients, in units of C/K",
        broken=weighted_by_size, fixed=weighted_equally, measure=moved_in_shares, line=1 + 1e-9,
    ),
    Edge(
        number=11, title="A share of noise, seen alone", severity="serious", group=COUNTED,
        wrong="σC/√K from each of K clients protects their sum. A server that sees one upload faces σ/√K.",
        library="**Cannot say it** by accident: `trust` says who sees what. Under `secagg` the server's rule is handed "
        "the sum only, and a round with too few uploads releases nothing (`test_trust_levels_add_up`, "
        "`test_a_share_seen_alone_is_weak`, `test_secure_aggregation_with_too_few_uploads_releases_nothing`). Clients "
        "that may tell their noise are counted apart (`colluding`), and the stated ε is the server's, which knows who "
        "sends: participation amplifies nothing against it (`test_the_aggregator_is_not_amplified_against`). Whether "
        "the world keeps the promise of secure aggregation is not checked: no cryptography runs in a run. `fl.masks` "
        "shows it at work.",
        what="ε of one of 100 uploads for who looks at it, where the sum has 0.93",
        broken=share_of_the_noise, fixed=noise_of_its_own, measure=seen_alone, line=0.93,
    ),
    Edge(
        number=12, title="Noise shaped by a pseudo-inverse, clip on the factor", severity="serious", group=COUNTED,
        wrong="Along the largest direction of the other factor the noise is smaller by its size. Privacy is weaker "
        "than nominal when that exceeds 1.",
        library="**Refuses** an ε for it (`deer-literal`), and has the sound form beside it, which clips the product "
        "(`test_the_published_form_is_certified_by_nobody`, `test_product_space_is_post_processing`). A rule that "
        "shows its sound side only to the question is refused in the first step "
        "(`test_a_two_faced_whitening_is_refused`).",
        what="noise deviations by which the worst allowed change stands out, in units of 1/σ; other factor of norm 3",
        broken=factor_space, fixed=product_space, measure=worst_shift, line=1 + 1e-9,
    ),
    Edge(
        number=15, title="A score computed from raw gradients and uploaded", severity="fatal", group=COUNTED,
        wrong="Curvature, norms, a choice of layer: each is a second release that nobody counts.",
        library="**Cannot say it** with a rule of a row: rules are handed noised values, a penalty is clipped with its "
        "example (`test_rules_see_noised_values_only`, and a row that smuggles is caught by the contract and by "
        "`fl.audit.self_check`: `test_a_row_that_smuggles_is_caught_by_the_self_check`). Diagnostics that read private "
        "values exist in teaching mode only "
        "([decision 0009](decisions/0009-diagnostics-and-release-mode.md)).",
        what="released numbers that differ between two data sets although C = 0",
        broken=with_a_raw_score, fixed=with_a_noised_score, measure=depend_on_data, line=0.0,
    ),
)  # fmt: skip
