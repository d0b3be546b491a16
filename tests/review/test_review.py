"""A review: its statistics, loaders and accounting, what it shows, and what it refuses."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from test_wrong_steps import CLAIMS, DATA, SAMPLED, TIED, in_tensors, normal, step_of

import fedlora_lab as fl
from fedlora_lab.privacy import accounting
from fedlora_lab.review.claims import CHECKS, Evidence
from fedlora_lab.review.mistakes.model import clip_each
from fedlora_lab.review.neighbours import only_largest, scale, to_array
from fedlora_lab.review.noise import Noise, kept_places
from fedlora_lab.review.verdicts import is_doubtful, judge_evidence

ROOT = Path(__file__).parents[2]
sound = step_of()

# ---- statistics


def poisson(seed, rate=0.02, n=400):
    return [np.flatnonzero(row < rate) for row in np.random.default_rng(seed).random((50, n))]


@pytest.mark.slow
def test_sound_steps_are_called_broken_no_more_often_than_stated():
    """Fault: an error rate that is asserted only: 40 reviews at a level of 20 %, where it shows."""
    options = {"loader": poisson, "significance": 0.2, "draws": 16}
    reviews = [fl.review.step(sound, DATA, SAMPLED, seed=s, **options) for s in range(40)]
    assert sum(not review.sound for review in reviews) <= stats.binom.ppf(0.999, 40, 0.2)


def test_independent_noise_shows_no_ties():
    """Fault: a p-value that is smaller than chance makes it, of all ties together."""
    rng = np.random.default_rng(0)
    shapes = {"a": (4, 3), "b": (3,), "c": (5,)}
    columns = {name: np.arange(int(np.prod(shape))) for name, shape in shapes.items()}
    small = 0
    for _ in range(40):
        one, other = (Noise(rng.normal(2, 1, (16, 20)), columns, shapes) for _ in range(2))
        assert not one.exact_tie()
        ties = [*one.ties(), *one.ties_with(other, "")]
        small += len(ties) * min(tie.p for tie in ties) <= 0.1
    assert small <= stats.binom.ppf(0.999, 40, 0.1)


@pytest.mark.parametrize("turned", [1, -1])
@pytest.mark.parametrize("split", [False, True])
def test_a_half_whose_noise_is_that_of_the_other_is_found(turned, split):
    """Fault: halves of a tensor too large to be kept whole, or two tensors, that cancel."""
    half = np.random.default_rng(1).normal(size=(16, 5000))
    rows = np.hstack([half, -half[:, ::turned]])
    size = 5000 if split else 10_000
    names = ["a", "b"] if split else ["a"]
    columns = {name: kept_places(size, 4096 // len(names)) for name in names}
    flat = np.concatenate([i * size + x for i, x in enumerate(columns.values())])
    ties = Noise(rows[:, flat], columns, dict.fromkeys(names, (size,))).ties()
    assert len(ties) * min(tie.p for tie in ties) < 1e-9


def look(**p_values) -> list[Evidence]:
    """Evidence of all checks, sound or with a p-value."""
    given = {name.replace("_", " "): p for name, p in p_values.items()}
    return [Evidence(name, "", p=given.get(name)) for name in CHECKS]


def broken(*looks) -> set[str]:
    return {one.check for one in judge_evidence(looks, 0.01) if one.verdict == "broken"}


def test_what_one_look_shows_beyond_chance_the_other_does_not_take_back():
    """Fault: a second look that replaces the first: noise that cancels in pairs shows in one."""
    plain = [Evidence("reach", "", verdict="broken"), *look()]
    strong = look(noise_independence=1e-9)
    weak = look(noise_independence=5e-3)
    nothing = look(noise_independence=0.7)
    assert broken(strong) == broken(strong, nothing) == {"noise independence"}
    assert broken(nothing, strong) == {"noise independence"} and not is_doubtful(strong, 0.01)
    assert broken(plain, nothing) == broken(nothing, plain) == {"reach"}
    # What chance may well have shown is looked at again, and stays only if it is seen again.
    assert is_doubtful(weak, 0.01) and not broken(weak) and not broken(weak, nothing)
    assert broken(weak, weak) == {"noise independence"}


def test_two_looks_raise_no_more_false_alarms_than_stated():
    """Fault: a second look for what the first one found, and alarms from either."""
    rng = np.random.default_rng(0)
    names = [*CHECKS][:8]
    alarms = 0
    for _ in range(1000):
        looks = [[Evidence(name, "", p=p) for name, p in zip(names, rng.random(8))]]
        looks[0] += [Evidence(name, "") for name in CHECKS]
        if is_doubtful(looks[0], 0.2):
            looks.append([Evidence(name, "", p=p) for name, p in zip(names, rng.random(8))])
        alarms += any(one.verdict == "broken" for one in judge_evidence(looks, 0.2))
    assert alarms <= stats.binom.ppf(0.999, 1000, 0.2)


# ---- sampling, accounting, preparation


def shuffled(seed, n=400):
    return np.split(np.random.default_rng(seed).permutation(n), 50)


def fixed(seed, n=400):
    rng = np.random.default_rng(seed)
    return [rng.choice(n, 8, replace=False) for _ in range(50)]


@pytest.mark.parametrize(
    ("loader", "law", "right"),
    [
        (poisson, "poisson", True),
        (shuffled, "poisson", False),
        (fixed, "poisson", False),
        (lambda seed: poisson(0), "poisson", False),
        (lambda seed: poisson(seed, 0.025), "poisson", False),
        (lambda seed: [x for x in poisson(seed) if len(x) > 4], "poisson", False),
        (lambda seed: [[*x, *x] for x in poisson(seed)], "poisson", False),
        (fixed, "fixed", True),
        (shuffled, "fixed", False),
        (poisson, "fixed", False),
    ],
)
def test_a_loader_is_held_against_its_law(loader, law, right):
    """Fault: a law that is not told from another; no step is needed."""
    found = fl.review.step(None, (), replace(SAMPLED, sampling=law), loader=loader)["sampling"]
    assert found.verdict == ("sound" if right else "broken"), found


@pytest.mark.slow
def test_epsilon_given_is_that_of_what_was_measured():
    """Fault: the claimed epsilon stated for a larger reach, another sampling, or a bare output."""
    claims = replace(SAMPLED, steps=100, delta=1e-5, epsilon=3.0)

    def spent(sigma, q, steps):
        return pytest.approx(accounting.epsilon(((sigma, q, steps),), 1e-5))

    def reviewed(step, loader=poisson):
        return fl.review.step(step, DATA, claims, loader=loader, draws=32)

    def twice(examples, seed):
        rows = {name: np.array([x[part] for x, _ in examples]) for name, part in halves.items()}
        clipped = clip_each({name: x.reshape(len(examples), 10) for name, x in rows.items()})
        sums = np.concatenate([x.sum(0) for x in clipped.values()])
        return {"gradient": (sums + normal(seed)) / 8}

    halves = {"a": slice(0, 10), "b": slice(10, 20)}
    assert reviewed(sound).epsilon == spent(1.1, 0.02, 100)
    far = reviewed(twice)
    assert far.broken == {"reach"} and far["reach"].number == pytest.approx(2**0.5, abs=1e-3)
    assert far.epsilon == spent(1.1 / far["reach"].number, 0.02, 100)
    assert "at least" in far.summary and "at least" not in reviewed(sound).summary
    cut = reviewed(sound, shuffled)
    # Shuffling hides more than an order that is known: what holds without it is no lower bound.
    assert cut.epsilon == spent(1.1, 1.0, 2) and "ε without amplification: " in cut.summary
    bare = reviewed(lambda e, s: sound(e, s) | {"loss": sum(float(x @ x) for x, _ in e)})
    tied = reviewed(step_of(noise=TIED["one draw and its negative"]))
    assert bare.epsilon == tied.epsilon == np.inf


@pytest.mark.parametrize(
    ("terms", "verdict"),
    [
        ({"epsilon": 3.78}, "sound"),
        ({"epsilon": 3.67}, "broken"),  # a central-limit approximation
        ({"epsilon": 3.78, "delta": 0.01}, "broken"),
        ({"epsilon": 3.78, "sampling": None}, "broken"),
        ({"epsilon": 30.0, "sampling": "fixed", "relation": "replace"}, "sound"),
        ({}, "cannot tell"),
    ],
)
def test_a_stated_epsilon_is_held_against_an_accountant(terms, verdict):
    """Fault: an epsilon that sampling, steps and noise do not give, from claims alone."""
    claims = replace(SAMPLED, noise_multiplier=3.0, sample_rate=0.1, dataset_size=1000)
    claims = replace(claims, **{"steps": 512, "delta": 1e-6} | terms)
    assert fl.review.step(None, (), claims)["accounting"].verdict == verdict


@pytest.mark.parametrize("verdict", ["broken", "sound"])
def test_preparation_from_private_statistics_is_found(verdict):
    """Fault: centred by its own mean, every example changes with every other one."""

    def prepare(data):
        centre = np.mean(data, 0) if verdict == "broken" else 0.0
        return [((x - centre) / 16, 0) for x in data]

    raw = [x for x, _ in DATA]
    found = fl.review.step(sound, raw, CLAIMS, prepare=prepare, draws=16)
    assert found["preparation"].verdict == verdict and found.sound == (verdict == "sound")


# ---- what is shown


class Text(HTMLParser):
    """Tags of a page, its links and places, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.links, self.places = set(), "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name == "href"]
        self.places += [value for name, value in attrs if name == "id"]

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_what_to_mend_and_shows_any_name_as_text(tmp_path):
    """Fault: an output's name, the author's own text, that becomes a tag; a link to nowhere."""
    name = "<script>alert(1)</script>"
    found = fl.review.step(
        lambda examples, seed: in_tensors(examples, seed) | {name: float(len(examples))},
        DATA,
        replace(CLAIMS, steps=10, delta=1e-5, epsilon=20.0),
        draws=16,
    )
    page = Text(found.save(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and name in page.text
    assert name in Text(found._repr_html_()).text and "No finite ε" in page.text
    assert [*found.table().index] == [*CHECKS]
    assert {link[1:] for link in page.links} == {*page.places} and len(page.places) == len(CHECKS)
    for one in CHECKS.values():
        assert one.asks in page.text and one.remedy in page.text and one.docs in page.text


def test_every_check_is_explained_where_it_says():
    """Fault: a link of the table to a heading that was renamed."""
    for one in CHECKS.values():
        path, place = one.docs.split("#")
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text("utf-8"), re.M)
        kept = ["".join(c for c in h.lower() if c.isalnum() or c in "_- ") for h in headings]
        assert place in [heading.replace(" ", "-") for heading in kept], one


REFUSED = {
    "clip_norm": lambda: replace(CLAIMS, clip_norm=0),
    "data": lambda: fl.review.step(sound, DATA[:3], CLAIMS),
    "claims": lambda: fl.review.step(sound, DATA, {}),  # type: ignore[arg-type]
    "function": lambda: fl.review.step(lambda *_: 3, DATA, CLAIMS),  # type: ignore[arg-type]
    "prepare": lambda: fl.review.step(sound, DATA, CLAIMS, prepare=lambda x: None),  # type: ignore[arg-type]
    "others": lambda: fl.review.step(sound, DATA, CLAIMS, others=[sound]),  # type: ignore[arg-type]
    "loader": lambda: fl.review.step(None, (), SAMPLED, loader=lambda s: None),  # type: ignore[arg-type]
    "frozen": lambda: fl.review.step(sound, DATA, replace(CLAIMS, frozen=("base",))),
    "optimizer": lambda: fl.review.opacus(torch.nn.Linear(1, 1), object(), [], None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_one_line(name):
    """Fault: a wrong argument that surfaces as somebody else's error, far inside."""
    with pytest.raises(ValueError, match=f"^{name}=[^\n]*: expected [^\n]*$"):
        REFUSED[name]()


# ---- examples that are changed


def test_a_finite_example_stays_finite_when_it_is_scaled():
    """Fault: half precision overflows at 65,504, and data of NaN would blame a sound step."""
    half = torch.tensor([1.0, -3.0], dtype=torch.float16)
    for example in (half, half.numpy(), np.array([1, 2], np.float32), 2.0, [half, {"x": 1e200}]):
        for factor in (1e6, 1e300):
            assert "inf" not in str(scale(example, factor)).lower()
    assert torch.equal(scale(half, 2.0), 2 * half) and np.isinf(scale(2.0, np.inf))


def test_one_number_of_an_example_is_kept_or_spoilt():
    """Fault: a NaN elsewhere than where it was meant, or none."""
    for x in (np.array([[1.0, 5.0], [2.0, -9.0]]), torch.tensor([[1.0, 5.0], [2.0, -9.0]])):
        kept, label = only_largest((x, 3))
        assert np.asarray(kept).tolist() == [[0, 5], [0, 0]] and label == 3
        spoilt = np.asarray(only_largest(x, spoilt=True))
        assert np.isnan(spoilt).tolist() == [[False, True], [False, False]]


def test_numbers_of_any_library_are_read():
    """Fault: bfloat16 tensors have no NumPy form, and numbers no shape."""
    values = (torch.ones(2, dtype=torch.bfloat16), torch.ones(2).requires_grad_(), 1.0, np.ones(2))
    assert all(np.all(to_array(value) == 1.0) for value in values)
