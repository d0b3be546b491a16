"""Edges of counting: how much noise, how many releases, of what, and what chance was left over."""

import math
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from fedlora_lab import accounting, theory
from fedlora_lab.audit import threshold
from fedlora_lab.edges.edge import Edge
from fedlora_lab.ledger import Ledger
from fedlora_lab.plan import Plan
from fedlora_lab.privacy import Privacy

DELTA = 1e-5


def last_round_s_ledger(rounds: int, steps: int, q: float, sigma: float) -> float:
    """Opens a ledger every round and asks the last."""
    book = Ledger(delta=DELTA, accountant="rdp")
    for t in range(rounds):
        book = Ledger(delta=DELTA, accountant="rdp")
        book.record(t, None, steps, sample_rate=q, noise_multiplier=sigma)
    return book.epsilon()


def one_ledger(rounds: int, steps: int, q: float, sigma: float) -> float:
    """Writes every round into the same ledger."""
    book = Ledger(delta=DELTA, accountant="rdp")
    for t in range(rounds):
        book.record(t, None, steps, sample_rate=q, noise_multiplier=sigma)
    return book.epsilon()


def stated(count: Callable[[int, int, float, float], float]) -> float:
    """Epsilon stated after 100 rounds of 125 steps, q = 32 / 4000, sigma = 1."""
    return count(100, 125, 32 / 4000, 1.0)


def sigma_for_a_round(epsilon: float, q: float, steps: int, rounds: int) -> float:
    """The noise under which one round spends epsilon."""
    return accounting.noise_multiplier(epsilon, DELTA, q, steps, "rdp")


def sigma_for_all_rounds(epsilon: float, q: float, steps: int, rounds: int) -> float:
    """The noise under which all rounds together spend epsilon."""
    return accounting.noise_multiplier(epsilon, DELTA, q, steps * rounds, "rdp")


def spent(choose: Callable[[float, float, int, int], float]) -> float:
    """Epsilon spent by sixty rounds, an epoch each, where 6 was meant."""
    sigma = choose(6.0, 1 / 400, 400, 60)
    return accounting.epsilon(((sigma, 1 / 400, 400 * 60),), DELTA, "rdp")


CLIENTS = SimpleNamespace(sizes=(6400,) * 12)


def sigma_from_examples(epsilon: float) -> float:
    """Noise for draws of 128 of 6,400 examples, to be put on whole updates."""
    plan = Plan(rounds=100, local_steps=50, batch=128)
    privacy = Privacy(unit="example", delta=1e-3 / 12, accountant="rdp")
    calibrated = privacy.calibrate(epsilon=epsilon, task=SimpleNamespace(sizes=(6400,)), plan=plan).noise_multiplier
    assert isinstance(calibrated, float)
    return calibrated


def sigma_for_clients(epsilon: float) -> float:
    """Noise for whole updates of clients who are there in every round."""
    plan = Plan(rounds=100)
    privacy = Privacy(unit="client", delta=1e-3 / 12, accountant="rdp", trust="local")
    calibrated = privacy.calibrate(epsilon=epsilon, task=CLIENTS, plan=plan).noise_multiplier
    assert isinstance(calibrated, float)
    return calibrated


def of_a_client(choose: Callable[[float], float]) -> float:
    """Epsilon of one client after a hundred noised updates, where 1 was meant."""
    return theory.gdp_epsilon(theory.gaussian_mu(choose(1.0), 100), 1e-3 / 12)


def one_over_units(units: int) -> float:
    """delta = 1 / K."""
    return 1 / units


def far_below(units: int) -> float:
    """A hundredth of that, as a plan accepts it."""
    delta = 0.01 / units
    task = SimpleNamespace(sizes=(1,) * units)
    return Privacy(unit="client", delta=delta, noise_multiplier=1.0).resolve(task, Plan()).delta


def someone_is_shown(choose: Callable[[int], float]) -> float:
    """Chance that somebody is published outright by a mechanism that (0, delta) allows: each with chance delta."""
    units, trials = 100, 20_000
    shown = np.random.default_rng(6).binomial(units, choose(units), trials)
    return float((shown > 0).mean())


def textbook_sigma(epsilon: float, delta: float) -> float:
    """The formula where it was never proven."""
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def exact_sigma(epsilon: float, delta: float) -> float:
    """From the accountant."""
    return accounting.noise_multiplier(epsilon, delta, 1.0, 1)


def delta_given(choose: Callable[[float, float], float]) -> float:
    """delta that one release really has at epsilon = 12, in units of the delta that was meant."""
    return theory.gdp_delta(1 / choose(12.0, DELTA), 12.0) / DELTA


ROUNDS, SHARE, STEPS, Q = 40, 0.25, 5, 0.1


def sigma_for_the_expected(epsilon: float) -> float:
    """Noise for the ten rounds that a client has on average."""
    return accounting.noise_multiplier(epsilon, DELTA, Q, int(ROUNDS * SHARE) * STEPS, "rdp")


def sigma_for_every_round(epsilon: float) -> float:
    """Noise as `Privacy.calibrate` takes it: for a client who is there every time."""
    plan, task = Plan(rounds=ROUNDS, local_steps=STEPS, batch=10, participation=SHARE), SimpleNamespace(sizes=(100,))
    privacy = Privacy(delta=DELTA, accountant="rdp").calibrate(epsilon=epsilon, task=task, plan=plan)
    assert isinstance(privacy.noise_multiplier, float)
    return privacy.noise_multiplier


def of_the_unlucky(choose: Callable[[float], float]) -> float:
    """Largest epsilon among 100 clients drawn round by round, where 2 was meant."""
    often = int(np.random.default_rng(13).binomial(ROUNDS, SHARE, 100).max())
    return accounting.epsilon(((choose(2.0), Q, often * STEPS),), DELTA, "rdp")


def in_turn(runs: int, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the examples into batches once; whoever knows the order knows the step."""
    own = np.arange(steps) == steps // 2
    return np.tile(own, (runs, 1)), own.astype(float)


def poisson(runs: int, steps: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws every example for every step on its own."""
    return rng.random((runs, steps)) < 1 / steps, np.full(steps, 1 / steps)


def proved_of_batches(draw: Callable[..., tuple[np.ndarray, np.ndarray]]) -> float:
    """What 2 x 20,000 independent runs of 200 noised steps prove about epsilon (95 %); sigma 0.8, q = 1 / 200.

    The attacker weighs each step by the chance, known to him, that the example is in it: the likelihood ratio.
    """
    runs, steps, sigma, rng, found = 20_000, 200, 0.8, np.random.default_rng(14), []
    for there in (1, 0):
        member, chance = draw(runs, steps, rng)
        seen = there * member + sigma * rng.standard_normal((runs, steps))
        found.append(np.log1p(chance * np.expm1((2 * seen - 1) / (2 * sigma**2))).sum(1))
    return threshold.split(found[0], found[1], DELTA, 0.05)


def central_limit(q: float, sigma: float, steps: int, delta: float) -> float:
    """Epsilon of the central limit of Gaussian DP."""
    return theory.gdp_epsilon(theory.clt_mu(q, sigma, steps), delta)


def accountant(q: float, sigma: float, steps: int, delta: float) -> float:
    """Epsilon of the library's accountant."""
    return accounting.epsilon(((sigma, q, steps),), delta)


def of_many_draws(count: Callable[[float, float, int, float], float]) -> float:
    """Epsilon stated for q = 0.1, sigma = 3, 512 steps, delta = 1e-6."""
    return count(0.1, 3.0, 512, 1e-6)


COUNTED = "Counting"
EDGES = (
    Edge(
        number=1, title="A new accountant for every round or message", severity="fatal", group=COUNTED,
        wrong="Each accountant knows of its own round only, and the last one is asked.",
        library="**Cannot say it.** A run has one ledger, which every round writes to before its values are used, and "
        "nothing else states ε (`test_edge_a_new_accountant_every_round_counts_only_the_last`). A ledger that lost "
        "rounds, or stands for other terms, is refused on resuming; what is read from a record cannot be changed "
        "(`test_a_ledger_of_other_terms_is_refused`, `test_nothing_that_a_ledger_states_can_be_set`).",
        what="ε stated for 100 rounds of 125 steps at q = 32/4000, σ = 1; another accountant's exact value is 5.42",
        broken=last_round_s_ledger, fixed=one_ledger, measure=stated, line=5.42, side="at least",
    ),
    Edge(
        number=2, title="Noise chosen for one round, used for sixty", severity="fatal", group=COUNTED,
        wrong="The promise is then kept sixty times over, and each time it costs.",
        library="**Cannot say it.** `calibrate` asks for the plan and counts all its rounds and steps "
        "(`test_calibrate_counts_every_round_and_step`, `test_edge_sigma_for_one_round_used_for_sixty`). A longer "
        "plan than that is refused (`test_a_plan_longer_than_its_calibration_is_refused`), and noise taken from "
        "another plan is what the ledger says it is (`test_noise_of_a_shorter_plan_is_counted_in_full`).",
        what="ε spent by 60 rounds where 6 was meant",
        broken=sigma_for_a_round, fixed=sigma_for_all_rounds, measure=spent, line=6.0,
    ),
    Edge(
        number=5, title="Counting examples, adding noise to whole clients", severity="fatal", group=COUNTED,
        wrong="q = batch/n belongs to draws of examples. Noise on a client's update hides clients, who may all be "
        "there every round. A published nominal ε = 1, with σ = 1.12 for a hundred releases, was about 51 for a "
        "client.",
        library="**Cannot say it.** `unit` decides at once where the clip and the noise are and what q means "
        "(`test_edge_example_accounting_for_noise_on_client_updates`). A rate carried over from the other unit is "
        "refused (`test_a_rate_of_examples_does_not_pass_for_clients`).",
        what="ε of a client after 100 noised updates where 1 was meant",
        broken=sigma_from_examples, fixed=sigma_for_clients, measure=of_a_client, line=1.0,
    ),
    Edge(
        number=6, title="δ as large as one over the number of units", severity="fatal", group=COUNTED,
        wrong="With δ = 1/K, publishing one random client outright is allowed.",
        library="**Refuses.** δ must lie below one over the number of examples or clients, whichever the unit is "
        "(`test_delta_must_lie_below_one_over_units`, `test_no_way_to_a_large_delta`).",
        what="chance that one of 100 clients is published outright by a mechanism that δ allows",
        broken=one_over_units, fixed=far_below, measure=someone_is_shown, line=0.02,
    ),
    Edge(
        number=9, title="The textbook σ outside its range", severity="serious", group=COUNTED,
        wrong="σ = √(2 ln(1.25/δ))/ε is proven for ε below 1 and for one release.",
        library="**Refuses.** `theory.classical_sigma` answers below 1 only; plans are calibrated with an accountant "
        "over all releases (`test_edge_the_textbook_sigma_without_composition`).",
        what="δ that one release really has at ε = 12, in units of the δ that was meant",
        broken=textbook_sigma, fixed=exact_sigma, measure=delta_given, line=1.0,
    ),
    Edge(
        number=13, title="Noise for the expected number of participations", severity="serious", group=COUNTED,
        wrong="Who is drawn more often than expected overspends.",
        library="**Cannot say it.** In the example unit calibration assumes that a client takes part in every round, "
        "and the ledger counts each client's own (`test_example_unit_counts_rounds_one_took_part_in`).",
        what="largest ε among 100 clients, drawn for a quarter of 40 rounds, where 2 was meant",
        broken=sigma_for_the_expected, fixed=sigma_for_every_round, measure=of_the_unlucky, line=2.0,
    ),
    Edge(
        number=14, title="Shuffled batches under Poisson accounting; empty batches skipped", severity="serious",
        group=COUNTED,
        wrong="The bonus for drawing at random is proven for independent draws. And whether a batch is empty is "
        "private.",
        library="**Cannot say it.** Batches are Poisson, the divisor is the expected size, an empty batch adds its "
        "noise (`test_a_batch_is_poisson`, `test_an_empty_batch_still_adds_noise`).",
        what="ε that an audit of 20,000 runs with an example and as many without proves of batches cut once, where "
        "Poisson accounting states 1.00",
        broken=in_turn, fixed=poisson, measure=proved_of_batches, line=1.0,
    ),
    Edge(
        number=22, title="A central-limit approximation reported as ε", severity="serious", group=COUNTED,
        wrong="μ-GDP in the limit of many small steps is no bound, and here it is too small.",
        library="**Cannot say it.** `accountant` is `\"prv\"` with its error bound added, or `\"rdp\"`; both are upper "
        "bounds (`test_edge_the_central_limit_understates`).",
        what="ε stated for q = 0.1, σ = 3, 512 steps, δ = 1e-6; another accountant's exact value is 3.77",
        broken=central_limit, fixed=accountant, measure=of_many_draws, line=3.77, side="at least",
    ),
)  # fmt: skip
