"""A review: its statistics, loaders and accounting, what it shows, and what it refuses."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from calls import refused
from gradient_steps import CLAIMS, DATA, SAMPLED, step_of, total
from places import ROOT
from scipy import stats

import dp_review
from dp_review.accounting import gaussian_epsilon
from dp_review.claims import CHECKS
from dp_review.neighbours import scale
from dp_review.noise import Noise, ties_within

sound = step_of()

# ---- statistics


def poisson(seed, rate=0.02, n=400):
    return [np.flatnonzero(row < rate) for row in np.random.default_rng(seed).random((50, n))]


@pytest.mark.further
def test_sound_steps_are_called_broken_no_more_often_than_stated():
    """Fault: an error rate that is asserted only: 40 reviews at a level of 20 %, where it shows."""
    options = {"loader": poisson, "significance": 0.2, "draws": 16}
    reviews = [dp_review.step(sound, DATA, SAMPLED, seed=s, **options) for s in range(40)]
    assert sum(not review.sound for review in reviews) <= stats.binom.ppf(0.999, 40, 0.2)


@pytest.mark.parametrize("turned", [1, -1])
@pytest.mark.parametrize("parts", [[10_000], [5000, 5000]])
def test_a_half_whose_noise_is_that_of_the_other_is_found(turned, parts):
    """Fault: halves of a tensor too large to be kept whole, or two tensors, that cancel."""
    half = np.random.default_rng(1).normal(size=(16, 5000))
    rows = np.hstack([half, -half[:, ::turned]])
    places = {f"to {end}": slice(end - size, end) for size, end in zip(parts, np.cumsum(parts))}
    ties = ties_within(Noise(rows, places))
    assert len(ties) * min(tie.p for tie in ties) < 1e-9


# ---- sampling, accounting


def shuffled(seed):
    return np.split(np.random.default_rng(seed).permutation(400), 50)


@pytest.mark.parametrize(
    ("loader", "cause"),
    [
        (poisson, ""),
        (shuffled, "do not vary"),
        (lambda seed: poisson(0), "every seed"),
        (lambda seed: poisson(seed, 0.025), "claimed rate"),
        (lambda seed: [x for x in poisson(seed) if len(x) > 4], "claimed rate"),
        (lambda seed: [[*x, *x] for x in poisson(seed)], "twice"),
        (lambda seed: [[*(2 * x), *(2 * x + 1)] for x in poisson(seed, n=200)], "do not vary"),
        (lambda seed: poisson(seed, np.linspace(0.01, 0.03, 400)), "an example is drawn"),
    ],
)
def test_a_loader_is_held_against_poisson_sampling(loader, cause):
    """Fault: a law that is not told from another, or without its cause; no step is needed."""
    found = dp_review.step(None, (), SAMPLED, loader=loader)["sampling"]
    assert found.verdict == ("broken" if cause else "sound") and cause in found.words, found


@pytest.mark.slow
def test_epsilon_given_is_that_of_what_was_measured():
    """Fault: the claimed epsilon stated for a larger move or another sampling. Where none is left:
    test_every_wrong_step_is_found."""
    claims = replace(SAMPLED, steps=100, delta=1e-5, epsilon=3.0)

    def spent(sigma, q, steps):
        return pytest.approx(gaussian_epsilon(sigma, q, steps, 1e-5))

    def reviewed(step, loader=poisson):
        return dp_review.step(step, DATA, claims, loader=loader, draws=32)

    right = reviewed(sound)
    assert right.epsilon == spent(1.1, 0.02, 100) and "at least" not in right.summary
    far = reviewed(step_of(lambda rows: 1.5 * total(rows)))
    assert far.broken == {"sensitivity"} and far["sensitivity"].number == pytest.approx(1.5)
    assert far.epsilon == spent(1.1 / 1.5, 0.02, 100) and "at least" in far.summary

    # Each in two of 100 batches, there twice: as good as in eight. None of these is empty.
    def no_empty(examples, seed):
        return step_of()(examples, 0 * (1 // len(examples)) + seed)

    cut = reviewed(no_empty, lambda seed: [[*x, *x] for x in shuffled(seed)])
    # Shuffling hides more than an order that is known: what holds without it is no lower bound.
    assert cut.epsilon == spent(1.1, 1.0, 8) and "at least" not in cut.summary
    assert "ε if denominator and" in reviewed(step_of(denominator=1.0)).summary


@pytest.mark.parametrize(
    ("terms", "verdict"),
    [
        ({"epsilon": 3.78}, "sound"),
        ({"epsilon": 3.67}, "broken"),  # a central-limit approximation
        ({"epsilon": 3.78, "delta": 0.01}, "broken"),
        ({"epsilon": 3.78, "sampling": None}, "broken"),
        ({}, "cannot tell"),
    ],
)
def test_a_stated_epsilon_is_held_against_an_accountant(terms, verdict):
    """Fault: an epsilon that sampling, steps and noise do not give, from claims alone."""
    claims = replace(SAMPLED, noise_multiplier=3.0, sample_rate=0.1, dataset_size=1000)
    claims = replace(claims, **{"steps": 512, "delta": 1e-6} | terms)
    found = dp_review.step(None, (), claims)
    assert found["accounting"].verdict == verdict and "ε of the claims" in found.summary


# ---- what is shown


def test_a_broken_check_says_what_mends_it():
    """Fault: no remedy, or a finite epsilon beside a number that is not noised."""
    name = "count"
    found = dp_review.step(
        lambda examples, seed: sound(examples, seed) | {name: float(len(examples))},
        DATA,
        replace(CLAIMS, steps=10, delta=1e-5, epsilon=20.0),
        draws=16,
    )
    assert found.broken == {"un-noised output"}
    assert name in str(found)
    assert CHECKS["un-noised output"].remedy in str(found) and "No finite ε" in found.summary
    assert found.epsilon == np.inf
    assert [finding.check for finding in found.findings] == [*CHECKS]


def test_every_check_is_explained_where_it_says():
    """Fault: a link of the table to a heading that was renamed."""
    for name, one in CHECKS.items():
        path, place = one.docs.split("#")
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text("utf-8"), re.M)
        kept = [re.sub(r"[^\w -]", "", heading.lower()) for heading in headings]
        assert place in [heading.replace(" ", "-") for heading in kept], name


REFUSED = {
    "clip_norm": lambda: replace(CLAIMS, clip_norm=0),
    "data": lambda: dp_review.step(sound, DATA[:3], CLAIMS),
    "claims": lambda: dp_review.step(sound, DATA, {}),  # type: ignore[arg-type]
    "function.*": lambda: dp_review.step(lambda *_: {"g": 1j * np.ones(2)}, DATA, CLAIMS),
    "others": lambda: dp_review.step(sound, DATA, CLAIMS, others=[sound]),  # type: ignore[arg-type]
    "loader": lambda: dp_review.step(None, (), SAMPLED, loader=[[1]]),  # type: ignore[arg-type]
    "frozen": lambda: dp_review.step(sound, DATA, replace(CLAIMS, frozen=("base",))),
    "optimizer": lambda: dp_review.opacus(torch.nn.Linear(1, 1), object(), [], None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_line(name):
    """Fault: a wrong argument that surfaces as somebody else's error, far inside."""
    with refused(f"^{name}=[^\n]*: expected [^\n]*$"):
        REFUSED[name]()


# ---- examples that are changed


def test_a_finite_example_stays_finite_when_it_is_scaled():
    """Fault: half precision overflows at 65,504, and data of NaN would blame a sound step."""
    half = torch.tensor([1.0, -3.0], dtype=torch.float16)
    for example in (half, half.numpy(), np.array([1, 2], np.float32), 2.0, [half, {"x": 1e200}]):
        for factor in (1e6, 1e300):
            assert "inf" not in str(scale(example, factor)).lower()
    assert torch.equal(scale(half, 2.0), 2 * half) and np.isinf(scale(2.0, np.inf))
