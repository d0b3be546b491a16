"""A clip norm that follows a noised quantile, and contributions that are all rescaled to it."""

import math
from dataclasses import asdict
from itertools import product
from typing import Any

import pytest
import test_attack_neighbours as near
import torch
from flower_runs import apart, by_messages, protected
from test_attack_neighbours import CLIP, PERSONS, SIGMA, SIZES
from toy_tasks import LORA, PLAN, book, people, play, private, same_bits, tokens

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.cli.options import parse_clip
from fedlora_lab.federated.simulation import Federation
from fedlora_lab.lora.per_example import per_example_gradients
from fedlora_lab.methods.state import ParamKey
from fedlora_lab.privacy.config import AdaptiveClip, Privacy
from fedlora_lab.privacy.ledger import Ledger
from fedlora_lab.privacy.mechanism import clip_sum, row_norms

pytestmark = pytest.mark.filterwarnings("ignore:local_steps=1:UserWarning")

ADAPTIVE = AdaptiveClip(quantile=0.4, start=CLIP, rate=0.3, count_noise=1.5)
STEPS = fl.Plan(rounds=1, local_steps=1, batch=None, lr=0.2)
ROUND = fl.Plan(rounds=1, local_steps=2, batch=4, lr=20.0)
WAYS = [("example", "local"), ("person", "local")]
WAYS += [("client", trust) for trust in ("central", "secagg", "local")]


def left_out(unit: str, client: int, which: int) -> dict[int, list[int]]:
    """All examples of one unit of a client, or of the client."""
    if unit == "example":
        return {client: [which]}
    own = PERSONS[client]
    chosen = sorted(set(own))[which % len(set(own))]
    inside = [i for i, who in enumerate(own) if who == chosen or unit == "client"]
    return {client: inside}


def moved(slug: str, unit: str, trust: str, which: int, **fields: Any) -> tuple[float, float]:
    """How far one unit moves the sum, in units of sigma C of a plan with sigma, and the count."""
    row, plan = near.row_of(slug), ROUND if unit == "client" else STEPS
    privacy = near.private(unit, trust, honest=2 if trust == "secagg" else None, **fields)
    out = left_out(unit, 1, which)
    loud = {} if which % 2 or unit == "client" else out
    parts = row, privacy, plan, 3, 0
    run, whole = near.released(*parts, {}, loud)
    if unit == "client":  # it is not there: an update of zero would be within C
        got = near.voided(run, 1, 0)
        less, other = near.void(run, row, 1, 0), got.clip
    else:
        changed, less = near.released(*parts, out, loud)
        other = changed.state.clip
    sums = float(near.distance(row, run, whole, less).max())
    if privacy.adaptive is None:
        return sums, 0.0
    norms = [torch.as_tensor(one, dtype=torch.float64) for one in (run.state.clip, other)]
    shares = (norms[0] / norms[1]).log().abs() / privacy.adaptive.rate
    expected = len(SIZES) if unit == "client" else run.context.units[1]
    assert unit == "client" or not shares[[0, 2, 3]].any(), "each client's C is its own"
    return sums, float(shares.max()) * expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slug", "unit", "trust"),
    [(slug, *way) for slug, way in product(("fedlora", "la-lora"), WAYS)]
    + [(slug, "example", "local") for slug in ("deer", "fedsa-lora", "fedlpp", "dp-lora")],
)
def test_what_is_released_moves_by_at_most_what_sigma_says(slug, unit, trust):
    """Sum and count together, each in deviations of its own noise: a count that moves by 1, or is
    not in the budget, or a sum with the noise of sigma alone, goes too far."""
    privacy, found = near.private(unit, trust, clip_norm=ADAPTIVE), []
    noise: Any = privacy.noise_of_sum, privacy.noise_of_count
    assert noise[0] > SIGMA and noise[1] == 1.5
    for which in range(4):
        sums, count = moved(slug, unit, trust, which, clip_norm=ADAPTIVE)
        assert count == pytest.approx(0.5, abs=1e-9)
        found.append(math.hypot(sums * SIGMA / noise[0], count / noise[1]))
    assert 0.5 / SIGMA < max(found) <= (1 + 1e-6) / SIGMA
    if slug == "fedlora" and unit != "client":
        assert max(found) > 0.999 / SIGMA, "with sum and count both at their bounds"


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["example", "client"])
def test_the_noise_follows_c(unit):
    """Nobody has anything to say, and C is three times that of the start."""
    nothing, draws = {k: list(range(n)) for k, n in enumerate(SIZES)}, []
    privacy = near.private(unit, "local" if unit == "example" else "central", clip_norm=ADAPTIVE)

    clip = [3 * CLIP] * (len(SIZES) if unit == "example" else 1)
    own: Any = privacy.noise_of_sum
    for seed in range(8):
        run, noise = near.released(near.PLAIN, privacy, STEPS, seed, out=nothing, clip=clip)
        rows = torch.cat([x.flatten(1) for x in noise.values()], 1)
        draws.append(rows / torch.as_tensor(near.deviation(run)).view(-1, 1))
    values = torch.cat(draws, 1).flatten() / (3 * own / SIGMA)
    assert float(values.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * len(values)))


@pytest.mark.slow
def test_c_goes_to_the_quantile():
    """Of the norms of one client's gradients, which stand still; with half the rate more slowly."""
    task, row = tokens(sizes=(8,)), methods.get("fedlora")
    for quantile in (0.3, 0.8):
        clip = AdaptiveClip(quantile=quantile, start=50.0, rate=0.3)
        privacy = private("example", 0.0).replace(clip_norm=clip)
        plan = PLAN.replace(rounds=60, batch=None, lr=0.0)
        run = Federation.open(task, row, privacy, plan, lora=LORA)
        start = {key: x[None] for key, x in run.state.server.tensors.items()}
        keys = tuple(key for key in start if key.side in "AB")
        parts = run.context.adapted, start, keys, task.clients[0], torch.zeros(8).long()
        norms = row_norms(per_example_gradients(task, *parts)).sort().values
        last = [event for event in run.events() if isinstance(event, near.Round)][-1]
        found = last.clip_norm or 0.0
        assert abs(float((norms <= found).double().mean()) - quantile) <= 1 / 8
        assert 0.5 * float(norms[0]) < found < 2 * float(norms[-1])


@pytest.mark.slow
def test_a_count_spends_its_share_and_the_ledger_says_both():
    plain = Privacy(delta=1e-4, accountant="rdp")
    goal: Any = {"epsilon": 2.0, "task": tokens(), "plan": PLAN}
    one, other = (p.calibrate(**goal) for p in (plain, plain.replace(clip_norm=AdaptiveClip())))
    assert one.noise_multiplier == other.noise_multiplier, "epsilon is that of sigma"
    sums, counts, sigmas = other.noise_of_sum, other.noise_of_count, one.noise_multiplier
    assert isinstance(sums, tuple) and isinstance(counts, tuple) and isinstance(sigmas, tuple)
    for own, count, sigma in zip(sums, counts, sigmas, strict=True):
        assert own**-2 + (2 * count) ** -2 == pytest.approx(sigma**-2, rel=1e-12)
    ledger = other.ledger(releases=4)
    assert ledger.epsilon() == one.ledger(releases=4).epsilon()
    words = ledger.statement()
    assert f"noise multiplier {sums[0]:.4g} of the sum and noise {counts[0]:.4g} of the" in words
    assert f"count, 0.04 of the budget, together spend what {sigmas[0]:.4g} spends" in words
    assert Ledger.from_json(ledger.to_json()).statement() == words
    assert ledger.releases[0].count_noise == counts
    assert "count_noise" not in one.ledger(releases=4).to_json()
    assert "a count of" not in one.ledger(releases=4).statement()


def test_a_round_without_clients_has_no_count_to_state():
    """With a noise multiplier for each client its entry holds no number to describe."""
    ledger = Ledger()
    ledger.record(1, (), sample_rate=(), noise_multiplier=(), count_noise=())
    assert "a count of" not in ledger.statement()
    ledger.record(2, (3,), sample_rate=(0.1,), noise_multiplier=(1.0,), count_noise=(2.5,))
    assert "and noise 2.5 of the count, 0.04 of the budget" in ledger.statement()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "slug"), [("example", "fedlora"), ("person", "deer"), ("client", "la-lora")]
)
def test_an_adapted_run_goes_on_with_its_c(unit, slug, tmp_path):
    """To the bit, in chunks of clients too, and C is in every record; other terms are refused."""
    task, plan = people(), PLAN.replace(rounds=3, participation=0.7)
    privacy = private(unit, 1.0).replace(clip_norm=ADAPTIVE)
    whole = play(task, slug, privacy, plan)
    assert len({record.clip_norm for record in whole}) == 4
    assert whole[0].clip_norm == pytest.approx(CLIP, rel=1e-12)
    frame = fl.to_frame(whole)
    assert frame[frame["measure"] == "clip_norm"]["value"].tolist() == [r.clip_norm for r in whole]
    play(task, slug, privacy, plan.replace(rounds=1), checkpoint=tmp_path)
    same_bits(play(task, slug, privacy, plan, resume=tmp_path), whole[2:], "seconds")
    chunked = play(task, slug, privacy, plan, chunk_clients=1)
    assert chunked[-1].clip_norm == pytest.approx(whole[-1].clip_norm, rel=1e-9)
    assert apart(chunked, whole) < 1e-9
    other = privacy.replace(clip_norm=AdaptiveClip(start=CLIP))
    with pytest.raises(ValueError, match=r"expected the same privacy as in this run"):
        play(task, slug, other, plan, resume=tmp_path)
    assert play(task, slug, private(unit), plan.replace(rounds=1))[-1].clip_norm is None


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["example", "person"])
def test_a_client_of_flower_adapts_its_own_c(unit):
    """As in the loop: the server knows no C, and the uploads agree to the last round."""
    task, plan = people(), PLAN.replace(rounds=3, participation=0.8)
    for fields in ({"clip_norm": ADAPTIVE}, {"clipping": "normalise"}):
        privacy = protected(unit).replace(**fields)
        parts = task, "fedlora", privacy, plan
        records, others = by_messages(*parts), play(*parts)
        assert apart(records, others) <= 1e-9
        assert book(records[-1]).to_json() == book(others[-1]).to_json()
    words = r"^clip_norm=AdaptiveClip\(.*\): expected a number for unit='client' on Flower: counts"
    with pytest.raises(ValueError, match=words):
        by_messages(task, "fedlora", protected("client").replace(clip_norm=ADAPTIVE), plan)


@pytest.mark.slow
@pytest.mark.parametrize(("unit", "trust"), WAYS)
def test_a_normalised_unit_moves_a_release_by_at_most_c(unit, trust):
    """Quiet ones too, which are made longer; without the stabiliser they would count in full."""
    for slug in ("fedlora", "deer"):
        fields: Any = {"clipping": "normalise", "stabiliser": 0.05}
        found = [moved(slug, unit, trust, which, **fields)[0] for which in range(4)]
        assert 0.3 / SIGMA < max(found) <= (1 + 1e-6) / SIGMA


def test_rows_are_rescaled_as_the_stabiliser_says():
    key, each = ParamKey("A", "x"), [[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0], [math.nan, 1.0]]
    alone = torch.arange(4)
    sums, counts = clip_sum({key: torch.tensor(each)}, 2.0, alone, 4, stabiliser=0.5)
    expected = torch.tensor([[6.0, 8.0], [0.0, 0.0], [2e-3 * 5.5 / 0.501, 0.0], [0.0, 0.0]]) / 5.5
    torch.testing.assert_close(sums[key], expected)
    assert (counts.rows, counts.scaled, counts.nonfinite) == (4, 1, 1)


def test_settings_hold_what_was_chosen_and_nothing_new_of_a_plain_plan():
    privacy = Privacy(clip_norm=ADAPTIVE)
    assert Privacy(**privacy.settings()) == privacy
    assert privacy.settings()["clip_norm"] == asdict(ADAPTIVE)
    assert not {"clipping", "stabiliser"} & Privacy().settings().keys()
    assert Privacy(clipping="normalise").settings()["clipping"] == "normalise"
    assert parse_clip("0.5") == 0.5 and parse_clip("adaptive") == AdaptiveClip()
    assert parse_clip("adaptive:quantile=0.7,rate=0.1") == AdaptiveClip(quantile=0.7, rate=0.1)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"clipping": "auto"}, "^clipping='auto': expected one of 'threshold', 'normalise'"),
        ({"stabiliser": 0.1}, "^stabiliser=0.1: expected 0.01 unless clipping='normalise'$"),
        ({"clipping": "normalise", "stabiliser": 0}, "^stabiliser=0: expected a number"),
        ({"clipping": "normalise", "clip_norm": math.inf}, "^clip_norm=inf: expected a finite"),
        ({"clipping": "normalise", "clip_norm": ADAPTIVE}, "^clipping='normalise': expected 'thr"),
        ({"clip_norm": {"quantil": 0.5}}, "^clip_norm={'quantil': 0.5}: expected keys among"),
        (
            {"clip_norm": ADAPTIVE, "noise_multiplier": 3.0},
            "^count_noise=1.5: expected > 1.5 = noise_multiplier / 2, or None for 2.5 of it$",
        ),
    ],
)
def test_clips_that_are_none_are_refused(fields, line):
    with pytest.raises(ValueError, match=line):
        Privacy(**fields)
    for name, value in (("quantile", 1.2), ("start", 0), ("rate", -1), ("count_noise", 0)):
        with pytest.raises(ValueError, match=f"^{name}={value}: expected a number"):
            AdaptiveClip(**{name: value})


def test_what_holds_c_fixed_refuses_one_that_adapts():
    privacy = private("example").replace(clip_norm=ADAPTIVE)
    adaptive = r"^clip_norm=AdaptiveClip\(.*: expected a number: the"
    with pytest.raises(ValueError, match=f"{adaptive} trials hold it fixed$"):
        fl.audit.self_check(tokens(), "fedlora", privacy, PLAN, lora=LORA)
    with pytest.raises(ValueError, match=f"{adaptive} noise of one that adapts"):
        fl.suggest_lr(tokens(), "fedlora", privacy, PLAN, LORA)
    with pytest.raises(ValueError, match=r"^bug=.*: expected None with an AdaptiveClip"):
        fl.run(tokens(), "fedlora", privacy, PLAN, lora=LORA, bug=clip_sum)
    unknown = play(tokens(), "fedlora", privacy, PLAN)[-1].unmeasured["amplification"]
    assert unknown == "the clip norm, and the noise with it, adapts during the run"
