"""Between clients and server: whose noise, how much of it, who sees what, and what a lost upload does."""

import math
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest
import steps
import torch
from small import PLAN, book, one_round, opened, play, private, regression, somewhere, tensors, tokens

import fedlora_lab as fl
from fedlora_lab import aggregate, engine, methods, upload
from fedlora_lab.loop import Federation
from fedlora_lab.method import Global, Slot
from fedlora_lab.record import Round
from fedlora_lab.streams import Streams

SIGMA, CLIP, TRUSTS = 1.3, 0.7, ["local", "secagg", "central"]


def standing(count=6, seed=0, clip=math.inf, participation=1.0, dropout=0.0):
    """Clients that stand at known places at the end of a round."""
    task = tokens("head", sizes=(4,) * count)
    model = steps.adapted(task.model, task.targets, task.head)
    start, way = somewhere(model.shapes), somewhere(model.shapes, seed=1)
    bank = {slot: torch.stack([x + 0.1 * (k + 1) * way[slot] for k in range(count)]) for slot, x in start.items()}
    plan = fl.Plan(participation=participation, dropout=dropout)
    none = (0.0,) * count
    setting = engine.Setting(task, model, methods.FedLoRA, plan, Streams(seed), clip, none, task.clients)
    clients = engine.Clients(tuple(range(count)), bank, {slot: x[None] for slot, x in start.items()})
    return setting, clients, tuple(start)


def sent(setting, clients, slots, arrived=None, t=0, sigma=SIGMA, **privacy):
    arrived = range(len(clients.ids)) if arrived is None else arrived
    plan = private("client", sigma=sigma, clip=CLIP, **privacy)
    begun = Global({slot: x[0] for slot, x in clients.start.items()})
    return upload.send(setting, plan, clients, torch.tensor(list(arrived), dtype=torch.int64), slots, begun, t)


def mean_change(received, clients):
    """What the server adds to its state, flat."""
    start = clients.start
    rows = {slot: x - start[slot] for slot, x in received.uploads.items()}
    return torch.cat([(received.weights @ x.flatten(1)).flatten() for x in rows.values()])


def spread(**options):
    """Standard deviation of the noise in the mean over many seeds, and its standard error."""
    found = []
    arrived = options.pop("arrived", None)
    for seed in range(60):
        setting, clients, slots = standing(seed=seed)
        pair = [sent(setting, clients, slots, arrived, sigma=level, **options) for level in (SIGMA, 0.0)]
        found.append(mean_change(pair[0], clients) - mean_change(pair[1], clients))
    xi = torch.stack(found)
    return float(xi.square().mean().sqrt()), 1 / math.sqrt(2 * xi.numel())


@pytest.mark.parametrize("trust", TRUSTS)
@pytest.mark.parametrize(
    "row", [methods.FedLoRA, methods.DEeR, methods.FedLPP, methods.RoLoRA], ids=lambda row: row.slug
)
def test_noise_of_each_trust_level(row, trust):
    """On the mean: sigma C / K where a sum is seen, sigma C / sqrt(K) where every upload is; whatever the method."""
    steps.noise_of_the_update(row, trust)


@pytest.mark.parametrize(
    ("trust", "options", "std"),
    [
        ("central", {}, SIGMA * CLIP / 6),
        ("local", {}, SIGMA * CLIP / math.sqrt(6)),
        ("secagg", {}, SIGMA * CLIP / 6),
        ("secagg", {"honest": 3}, SIGMA * CLIP / 6 * math.sqrt(2)),
        ("central", {"arrived": (0, 2)}, SIGMA * CLIP / 6),
        ("local", {"arrived": (0, 2)}, SIGMA * CLIP * math.sqrt(2) / 6),
        ("secagg", {"honest": 2, "arrived": (0, 2)}, SIGMA * CLIP / 6),
    ],
)
def test_noise_in_the_mean(trust, options, std):
    """Six clients; with the shares of three relied on, six upload twice the variance that is needed."""
    found, error = spread(trust=trust, **options)
    assert abs(found / std - 1) < 5 * error


def test_every_upload_is_protected_alone():
    """Under local trust each row that the server sees carries noise of its own, sigma C in every number."""
    seen = []
    for seed in range(40):
        setting, clients, slots = standing(seed=seed)
        noisy, clean = (sent(setting, clients, slots, sigma=level, trust="local") for level in (SIGMA, 0.0))
        assert noisy.alone
        seen.append(torch.cat([(noisy.uploads[slot] - clean.uploads[slot]).flatten(1) for slot in slots], 1))
    xi = torch.stack(seen)
    for k in range(6):
        assert abs(float(xi[:, k].std()) / (SIGMA * CLIP) - 1) < 5 / math.sqrt(2 * xi[:, k].numel())
        if k:
            steps.unrelated(xi[:, 0], xi[:, k], f"clients 0 and {k}")


@pytest.mark.parametrize("trust", ["central", "secagg"])
def test_only_a_sum_is_seen(trust):
    """One row, the noised mean, whatever the number of clients; the deviation of single clients stays unknown."""
    setting, clients, slots = standing()
    received = sent(setting, clients, slots, trust=trust)
    assert not received.alone
    assert received.weights.tolist() == [1.0]
    assert all(len(x) == 1 for x in received.uploads.values())
    assert all(math.isnan(record.deviation) for record in play(tokens(), "fedlora", private("client", trust=trust))[1:])


@pytest.mark.parametrize("arrived", [(), (0,), (1, 4)])
def test_secure_aggregation_with_too_few_uploads_releases_nothing(arrived):
    setting, clients, slots = standing()
    assert not sent(setting, clients, slots, arrived, trust="secagg", honest=3).uploads
    assert sent(setting, clients, slots, (0, 1, 2), trust="secagg", honest=3).uploads


def test_a_round_without_release_leaves_the_model_and_is_spent_all_the_same():
    privacy = private("client", trust="secagg", honest=3)
    records = play(tokens("head"), "fedlora", privacy, PLAN.replace(rounds=12, dropout=0.3))
    still = [a.index for b, a in pairwise(records) if all(map(torch.equal, tensors(a).values(), tensors(b).values()))]
    assert 0 < len(still) < 12
    assert [release.round for release in book(records[-1]).releases] == list(range(1, 13))
    assert all(math.isnan(record.deviation) for record in records if record.index in still), "there was nothing to see"


def test_a_trusted_server_releases_noise_when_nobody_comes():
    """Silence would tell that nobody came."""
    setting, clients, slots = standing()
    received = sent(setting, clients, slots, ())
    assert received.uploads
    change = mean_change(received, clients)
    assert float(change.std()) == pytest.approx(SIGMA * CLIP / 6, rel=0.3)
    assert not sent(setting, clients, slots, (), trust="local").uploads


@pytest.mark.parametrize("trust", TRUSTS)
def test_the_clip_is_one_over_all_tensors(trust):
    """Every client's whole change, head included, is scaled to C; the sum is divided by the expected number."""
    setting, clients, slots = standing(participation=0.5)
    options = {"honest": 2} if trust == "secagg" else {}
    received = sent(setting, clients, slots, (1, 3), sigma=0.0, trust=trust, **options)
    expected = 0.0
    for k in (1, 3):
        change = torch.cat([(clients.bank[slot][k] - clients.start[slot][0]).flatten() for slot in slots])
        assert change.norm() > CLIP or k == 0
        expected = expected + change * min(1.0, CLIP / float(change.norm()))
    torch.testing.assert_close(mean_change(received, clients), expected / (6 * 0.5))
    assert received.clipped == (2, 2, 0)


@dataclass(frozen=True)
class Looking:
    """A server rule that remembers what it was given."""

    seen: list = field(default_factory=list, hash=False, compare=False)

    def __call__(self, state, sent, uploads, weights):
        self.seen.append({slot: x.clone() for slot, x in uploads.items()})
        return aggregate.mean(state, sent, uploads, weights)


@pytest.mark.parametrize("unit", ["example", "client"])
@pytest.mark.parametrize("trust", TRUSTS)
def test_rules_see_noised_values_only(unit, trust):
    """What the server's rule gets with noise differs from what it would get without by that noise, in every number."""
    if unit == "example" and trust != "local":
        return
    got = []
    for sigma in (SIGMA, 0.0):
        rule = Looking()
        row = methods.FedLoRA.replace(aggregate=rule)
        play(tokens("head"), row, private(unit, sigma=sigma, trust=trust), PLAN.replace(rounds=1))
        got.append(rule.seen[0])
    for slot, x in got[0].items():
        assert ((x - got[1][slot]).abs() > 0).all(), slot


def test_each_client_has_its_own_noise_in_the_example_unit():
    """A tuple of multipliers: client k's step is noised by sigma_k C."""
    task, sigma = tokens(sizes=(4, 4, 4)), (0.5, 1.0, 3.0)
    found = []
    for seed in range(40):
        ends = []
        for level in (sigma, (0.0,) * 3):
            setting, clients = steps.prepared(task, methods.FedLoRA, 0.0, seed)
            setting = replace(setting, noise_multiplier=level)
            ends.append(steps.released(setting, clients, 0, 0, engine.local_step))
        found.append(torch.cat([(ends[0][slot] - ends[1][slot]).flatten(1) for slot in ends[0]], 1))
    xi = torch.stack(found)
    for k, level in enumerate(sigma):
        assert abs(float(xi[:, k].std()) / (level * steps.CLIP) - 1) < 5 / math.sqrt(2 * xi[:, k].numel())


@pytest.mark.parametrize(("unit", "weights"), [("example", "uniform"), ("example", "size"), ("client", "uniform")])
@pytest.mark.parametrize("trust", ["local", "central"])
def test_denominators_are_fixed(unit, weights, trust):
    """Drop-outs and Poisson participation: what arrives is divided by what was expected, round by round, by hand."""
    if unit == "example" and trust == "central":
        return
    task = tokens("head")
    plan = fl.Plan(rounds=8, local_steps=1, batch=None, lr=0.4, participation=0.6, dropout=0.3, weights=weights)
    privacy = private(unit, sigma=0.0, clip=1e6, trust=trust)
    run = Federation.open(task, methods.FedLoRA, privacy, plan, lora=fl.Lora(rank=2, alpha=3.0))
    before, counts = None, set()
    for record in (event for event in run.events() if isinstance(event, Round)):
        now = tensors(record)
        if before is not None:
            t = record.index - 1
            ids = run._participants(t)
            arrived = [ids[i] for i in run._arrived(t, ids).tolist()]
            counts.add(len(arrived))
            share = {k: 1 / 3 if weights == "uniform" else task.sizes[k] / sum(task.sizes) for k in arrived}
            change = {name: torch.zeros_like(x) for name, x in now.items()}
            for k in arrived:
                alone = _alone(task, k, before, plan)
                for name in change:
                    change[name] += share[k] / 0.6 * (alone[name] - before[name])
            for name, x in now.items():
                torch.testing.assert_close(x, before[name] + change[name], rtol=1e-9, atol=1e-12)
        before = now
    assert {0, 1} < counts or {1, 2} <= counts


def _alone(task, k, state, plan):
    """Where client k's one full-batch step leads from a state."""
    run = opened(
        task.only(k),
        methods.FedLoRA,
        None,
        plan.replace(participation=1.0, dropout=0.0, weights="uniform"),
        0,
        Global(_slots(state)),
    )
    return tensors(one_round(run))


def _slots(state):
    found = {}
    for name, x in state.items():
        if name.startswith("head."):
            found[Slot("head", name.removeprefix("head."))] = x
        else:
            found[Slot(name[-1], name[:-2])] = x
    return found


def test_step_privacy_is_that_of_what_is_released():
    """Steps are noised in the example unit; in the client unit, and without privacy, they are not released."""
    assert upload.step_privacy(None, 2) == (math.inf, (0.0, 0.0))
    assert upload.step_privacy(private("client"), 2) == (math.inf, (0.0, 0.0))
    assert upload.step_privacy(private("example", sigma=2.0), 2) == (0.7, (2.0, 2.0))
    assert upload.step_privacy(fl.Privacy(noise_multiplier=(1.0, 2.0)), 2) == (1.0, (1.0, 2.0))


def test_a_diverging_client_adds_nothing():
    """In the client unit an update that is not finite counts as zero and is counted."""
    task = regression()
    wild = fl.Plan(rounds=1, local_steps=60, batch=None, lr=1e8)
    record = play(task, "fedlora", private("client", sigma=0.0), wild)[-1]
    assert all(x.isfinite().all() for x in tensors(record).values())
    assert record.nonfinite > 0
