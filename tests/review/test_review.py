"""fl.review: planted mistakes are found, sound steps pass, and what it looked at is as before."""

import copy
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus import PrivacyEngine
from opacus.utils.batch_memory_manager import BatchMemoryManager
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import nn

import fedlora_lab as fl
from fedlora_lab.review.examples import to_array
from fedlora_lab.review.review import documentation_link, repository_address

Claims: Any = fl.review.Claims
review: Any = fl.review.step

SHAPES = {"weight": (4, 3), "bias": (3,), "head": (5,)}
SIZE, SIGMA, MEAN = 20, 1.1, 8.0
DATA = [(x, 0) for x in np.random.default_rng(0).normal(size=(16, SIZE))]
CLAIMS: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": SIGMA, "denominator": MEAN}
SAMPLED: dict[str, Any] = {"sampling": "poisson", "sample_rate": 0.02, "dataset_size": 400}


def split(vector):
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    parts = np.split(vector, ends[:-1])
    return {name: x.reshape(shape) for (name, shape), x in zip(SHAPES.items(), parts)}


def clip(x, norm=1.0):
    return x * min(1.0, norm / max(float(np.linalg.norm(x)), 1e-30))


def total(examples, norm=1.0):
    return sum((clip(x, norm) for x, _ in examples), np.zeros(SIZE))


def normal(seed, size: Any = SIZE):
    return SIGMA * np.random.default_rng(seed).normal(size=size)


def sound(examples, seed, denominator=MEAN):
    return split((total(examples) + normal(seed)) / denominator)


# ---- steps with one mistake each


def clips_each_tensor(examples, seed):
    parts = [np.concatenate([clip(t.ravel()) for t in split(x).values()]) for x, _ in examples]
    return split((sum(parts, np.zeros(SIZE)) + normal(seed)) / MEAN)


def clips_the_mean(examples, seed):
    mean = sum((x for x, _ in examples), np.zeros(SIZE)) / max(1, len(examples))
    return split(clip(mean) + normal(seed) / MEAN)


def threshold_of_the_batch(examples, seed):
    norm = float(np.median([np.linalg.norm(x) for x, _ in examples] or [1.0]))
    return split((total(examples, norm) + norm * normal(seed)) / MEAN)


def mean_of_the_realised_batch(examples, seed):
    return split(total(examples) / max(1, len(examples)) + normal(seed) / MEAN)


def all_of_it_by_the_realised_batch(examples, seed):
    return sound(examples, seed, max(1, len(examples)))


def sigma_without_the_clip_norm(examples, seed):
    return split((total(examples, 3.0) + normal(seed)) / MEAN)


def bias_without_noise(examples, seed):
    return sound(examples, seed) | {"bias": split(total(examples) / MEAN)["bias"]}


def noise_where_the_gradient_is_not_zero(examples, seed):  # as of the rows of an embedding
    rows = [np.maximum(x, 0.0) for x, _ in examples] or [np.zeros(SIZE)]
    noise = normal(seed) * (np.sum(rows, 0) > 0)
    return split((total([(x, 0) for x in rows]) + noise) / MEAN)


def half_the_noise_on_the_head(examples, seed):
    signal, noise = split(total(examples)), split(normal(seed))
    noise["head"] = noise["head"] / 2
    return {name: (signal[name] + noise[name]) / MEAN for name in signal}


def one_seed_for_all_tensors(examples, seed):
    parts = split(total(examples)).items()
    return {name: (x + normal(seed, x.shape)) / MEAN for name, x in parts}


def one_number_for_a_tensor(examples, seed):
    rng, parts = np.random.default_rng(seed), split(total(examples)).items()
    return {name: (x + SIGMA * rng.normal()) / MEAN for name, x in parts}


def seeds_that_come_again(examples, seed):
    return sound(examples, seed % 16)


def layer_and_step_added_up(examples, seed):
    parts = split(total(examples)).items()
    return {name: (x + normal(seed + i, x.shape)) / MEAN for i, (name, x) in enumerate(parts)}


def always_the_same_noise(examples, seed):
    return sound(examples, 7)


def laplace(examples, seed):
    noise = SIGMA / 2**0.5 * np.random.default_rng(seed).laplace(size=SIZE)
    return split((total(examples) + noise) / MEAN)


def loss_as_a_metric(examples, seed):
    return sound(examples, seed) | {"loss": sum(float(x @ x) for x, _ in examples)}


def running_mean(examples, seed):
    mean = np.mean([x for x, _ in examples] or [np.zeros(SIZE)], 0)
    return sound(examples, seed) | {"running mean": 0.1 * mean}


def share_of_clipped_examples(examples, seed):  # the same in every batch of loud examples
    loud = [np.linalg.norm(x) > 1 for x, _ in examples]
    return sound(examples, seed) | {"clipped": np.mean(loud) if loud else 0.0}


def sum_loss_under_the_rule_for_means(examples, seed):  # Opacus multiplies by the batch's size
    return sound([(x * len(examples) / 10, y) for x, y in examples], seed)


def one_draw_and_its_negative(examples, seed):
    noise = normal(seed, SIZE // 2)
    return {"vector": (total(examples) + np.concatenate([noise, -noise])) / MEAN}


def one_number_for_each_example(examples, seed):
    return sound(examples, seed) | {"losses": np.zeros(len(examples))}


def empty_gives_zeros(examples, seed):
    return sound(examples, seed) if examples else split(np.zeros(SIZE))


def empty_is_refused(examples, seed):
    return sound(examples, 0 * (1 // len(examples)) + seed)


def nothing_learned(examples, seed):
    return split(normal(seed) / MEAN)


def noise_on_what_is_frozen(examples, seed):
    return sound(examples, seed) | {"base": np.zeros(3) + 1e-3 * normal(seed, 3)}


MISTAKES: list[tuple[Callable[..., Any], dict[str, Any], set[str]]] = [
    (clips_each_tensor, {}, {"reach"}),
    (clips_the_mean, {}, {"reach", "denominator"}),
    (threshold_of_the_batch, {}, {"reach", "noise size"}),
    (mean_of_the_realised_batch, {}, {"denominator", "reach"}),
    (all_of_it_by_the_realised_batch, {}, {"denominator"}),
    (all_of_it_by_the_realised_batch, {"denominator": None}, {"denominator"}),
    (sigma_without_the_clip_norm, {"clip_norm": 3.0}, {"noise size"}),
    (bias_without_noise, {}, {"un-noised output"}),
    (noise_where_the_gradient_is_not_zero, {}, {"noise size"}),
    (half_the_noise_on_the_head, {}, {"noise per tensor"}),
    (one_seed_for_all_tensors, {}, {"noise independence"}),
    (one_number_for_a_tensor, {}, {"noise independence"}),
    (seeds_that_come_again, {}, {"noise independence"}),
    (layer_and_step_added_up, {}, {"noise independence"}),
    (always_the_same_noise, {}, {"noise independence", "noise size", "un-noised output"}),
    (laplace, {}, {"noise law"}),
    (loss_as_a_metric, {}, {"un-noised output"}),
    (running_mean, {}, {"un-noised output"}),
    (one_number_for_each_example, {}, {"un-noised output"}),
    (share_of_clipped_examples, {}, {"un-noised output"}),
    (sum_loss_under_the_rule_for_means, {}, {"denominator"}),
    (one_draw_and_its_negative, {}, {"noise independence"}),
    (empty_gives_zeros, SAMPLED, {"empty batch"}),
    (empty_is_refused, SAMPLED, {"empty batch"}),
    (nothing_learned, {}, {"signal"}),
    (noise_on_what_is_frozen, {"frozen": ("base",)}, {"frozen"}),
    (sound, {"finite": False}, {"non-finite"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("step", "changes", "broken"), MISTAKES)
def test_every_planted_mistake_is_found(step, changes, broken):
    """A check that lost its teeth: each mistake is caught by the checks named beside it."""
    found = review(step, DATA, Claims(**CLAIMS | changes))
    assert broken <= found.broken, found


@pytest.mark.slow
def test_batches_of_one_public_size_may_be_divided_by_their_size():
    """The noise of an empty batch held against a step that never gets one: a false alarm."""
    terms: dict[str, Any] = {"sampling": "fixed", "relation": "replace"}
    claims = Claims(**CLAIMS | SAMPLED | terms | {"dataset_size": 400, "sample_rate": 0.02})
    found = review(all_of_it_by_the_realised_batch, DATA, claims)
    assert found["empty batch"].verdict == "sound" and found.sound, found


UNSEEDED = [sound, clips_each_tensor, clips_the_mean, mean_of_the_realised_batch]


@pytest.mark.slow
@pytest.mark.parametrize("step", UNSEEDED)
def test_a_step_that_cannot_be_seeded_is_judged_by_statistics(step):
    """Without coupled noise the direction is learned on other calls than it is measured on."""
    again = iter(range(10**9))
    claims = Claims(**CLAIMS, seeded=False)
    found = review(lambda examples, seed: step(examples, 10**6 + next(again)), DATA, claims)
    assert found["reach"].verdict == ("sound" if step is sound else "broken"), found
    assert found.sound == (step is sound)


def dropout(examples, seed, leak=0.0):
    rng = np.random.default_rng(seed)
    kept = [(x * (rng.random(SIZE) < 0.5), y) for x, y in examples]
    sums = total(kept) + SIGMA * rng.normal(size=SIZE)
    return split(sums / MEAN) | (
        {"loss": leak * sum(float(x @ x) for x, _ in kept)} if leak else {}
    )


@pytest.mark.slow
def test_the_chance_of_dropout_is_taken_for_no_noise():
    """Dropout varies with the seed: it is no noise of a wrong size, and hides no loss."""
    assert review(dropout, DATA, Claims(**CLAIMS)).sound
    found = review(lambda x, seed: dropout(x, seed, leak=1.0), DATA, Claims(**CLAIMS))
    assert found.broken == {"un-noised output"}


@pytest.mark.slow
def test_sound_steps_are_called_broken_no_more_often_than_stated():
    """An error rate that is asserted only: 60 reviews at a level of 20 %, where it would show."""
    claims = Claims(**CLAIMS | SAMPLED)

    def loader(seed):
        return [np.flatnonzero(row < 0.02) for row in np.random.default_rng(seed).random((50, 400))]

    options: Any = {"loader": loader, "significance": 0.2, "draws": 16}
    alarms = sum(not review(sound, DATA, claims, seed=s, **options).sound for s in range(60))
    assert alarms <= stats.binom.ppf(0.999, 60, 0.2)


def test_a_copy_of_a_released_gradient_is_no_second_release():
    """Momentum after a first step: without the rule its noise would count as drawn twice."""

    def step(examples, seed):
        sent = sound(examples, seed)
        return sent | {f"momentum of {name}": 0.9 * x for name, x in sent.items()}

    assert review(step, DATA, Claims(**CLAIMS)).sound


def test_noise_of_another_worker_must_be_its_own():
    """Two clients with one seed: their difference is free of noise."""
    claims = Claims(**CLAIMS)
    other = {"client 1": lambda examples, seed: sound(examples[1:], seed)}
    assert review(sound, DATA, claims, others=other).broken == {"noise independence"}
    other = {"client 1": lambda examples, seed: sound(examples[1:], seed + 10**8)}
    assert review(sound, DATA, claims, others=other).sound


# ---- sampling, accounting, preparation


def poisson(seed, rate=0.02, n=400):
    return [np.flatnonzero(row < rate) for row in np.random.default_rng(seed).random((50, n))]


def shuffled(seed, n=400):
    return np.split(np.random.default_rng(seed).permutation(n), 50)


def fixed(seed, n=400):
    rng = np.random.default_rng(seed)
    return [rng.choice(n, 8, replace=False) for _ in range(50)]


LOADERS: list[tuple[Any, str, bool]] = [
    (poisson, "poisson", True),
    (shuffled, "poisson", False),
    (fixed, "poisson", False),
    (lambda seed: poisson(0), "poisson", False),
    (lambda seed: poisson(seed, 0.025), "poisson", False),
    (lambda seed: [x for x in poisson(seed, 0.005) if len(x)], "poisson", False),
    (lambda seed: [[*x, *x] for x in poisson(seed)], "poisson", False),
    (fixed, "fixed", True),
    (shuffled, "fixed", False),
    (poisson, "fixed", False),
    (shuffled, "shuffle", True),
    (fixed, "shuffle", False),
]


@pytest.mark.parametrize(("loader", "law", "right"), LOADERS)
def test_a_loader_is_held_against_its_law(loader, law, right):
    """Each loader under each claim that it does or does not keep; no step is needed."""
    claims = Claims(**CLAIMS | SAMPLED | {"sampling": law})
    if loader(0) and min(map(len, loader(0))) < 2 and not right:
        claims = Claims(**CLAIMS | SAMPLED | {"sample_rate": 0.005})
    found = review(None, (), claims, loader=loader)["sampling"]
    assert found.verdict == ("sound" if right else "broken"), found


@pytest.mark.slow
def test_epsilon_given_is_that_of_what_was_measured():
    """Of the claim, of a larger reach, without amplification, and of what leaves bare."""
    terms: dict[str, Any] = {"steps": 100, "delta": 1e-5, "epsilon": 3.0}
    claims = Claims(**CLAIMS | SAMPLED | terms)
    exact = fl.privacy.accounting.epsilon
    right = review(sound, DATA, claims, loader=poisson)
    assert right.epsilon == pytest.approx(exact(((SIGMA, 0.02, 100),), 1e-5))
    twice = review(clips_each_tensor, DATA, claims, loader=poisson)
    reach = twice["reach"].number
    assert 1.5 < reach < 3**0.5 + 0.01 and twice.broken == {"reach"}
    assert twice.epsilon == pytest.approx(exact(((SIGMA / reach, 0.02, 100),), 1e-5))
    cut = review(sound, DATA, claims, loader=shuffled)
    assert cut.epsilon == pytest.approx(exact(((SIGMA, 1.0, 2),), 1e-5))
    assert "at least" in twice.summary and "at least" not in right.summary
    # Shuffling hides more than an order that is known: what holds without it is no lower bound.
    assert "ε without amplification: " in cut.summary and "at least" not in cut.summary
    assert review(loss_as_a_metric, DATA, claims).epsilon == np.inf
    # Halves that cancel: whatever the bulk's correlation, their sum has no noise at all.
    assert review(one_draw_and_its_negative, DATA, claims).epsilon == np.inf


@pytest.mark.parametrize(
    ("terms", "verdict"),
    [
        ({"epsilon": 3.78}, "sound"),
        ({"epsilon": 3.67}, "broken"),  # a central-limit approximation
        ({"epsilon": 3.78, "delta": 0.01}, "broken"),
        ({"epsilon": 3.78, "sampling": "shuffle"}, "broken"),
        ({}, "cannot tell"),
    ],
)
def test_a_stated_epsilon_is_held_against_another_accountant(terms, verdict):
    """Sharp edges 6, 14 and 22 from claims alone."""
    claims: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 3.0, "sampling": "poisson"}
    claims |= {"sample_rate": 0.1, "steps": 512, "delta": 1e-6, "dataset_size": 1000}
    found = review(None, (), Claims(**claims | terms))
    assert found["accounting"].verdict == verdict


def test_preparation_from_private_statistics_is_found():
    """Edge 28: centred by its own mean, every example changes with every other one."""
    raw = [x for x, _ in DATA]
    for prepare, verdict in (
        (lambda data: [(x - np.mean(data, 0), 0) for x in data], "broken"),
        (lambda data: [(x / 16, 0) for x in data], "sound"),
    ):
        found = review(sound, raw, Claims(**CLAIMS), prepare=prepare)
        assert found["preparation"].verdict == verdict
        assert found.sound == (verdict == "sound")


# ---- adapters


def private_parts(kind="flat", poisson=True):
    """Engine, module, optimizer, loader and criterion, after one step of training."""
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    net: Any = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    if kind == "peft":
        net = get_peft_model(net, LoraConfig(r=2, target_modules=["0", "2"]))
    criterion: Any = nn.CrossEntropyLoss()
    loader: Any = torch.utils.data.DataLoader(data, batch_size=10, shuffle=True)
    options: dict[str, Any] = {"max_grad_norm": 1.0, "poisson_sampling": poisson}
    if kind == "per_layer":
        options |= {"clipping": kind, "max_grad_norm": [0.5] * 4}
    if kind == "ghost":
        options |= {"grad_sample_mode": kind, "criterion": criterion}
    engine = PrivacyEngine()
    optimizer: Any = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    parts: Any = engine.make_private(
        module=net, optimizer=optimizer, data_loader=loader, noise_multiplier=1.1, **options
    )
    module, optimizer, loader = parts[0], parts[1], parts[-1]
    criterion = parts[2] if kind == "ghost" else criterion
    inputs, targets = next(iter(loader))
    optimizer.zero_grad()
    criterion(module(inputs), targets).backward()
    optimizer.step()
    return engine, module, optimizer, loader, criterion


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["flat", "per_layer", "ghost", "peft"])
def test_opacus_passes(kind):
    """What everybody uses is called sound, whatever it clips by, with its own accountant."""
    _, *parts = private_parts(kind)
    steps: dict[str, Any] = {"steps": 100, "epsilon": 3.4, "delta": 1e-5}
    found = fl.review.opacus(*parts, **steps, draws=32)
    assert found.sound, found
    told = {one.check for one in found.findings if one.verdict == "sound"}
    assert told >= {"reach", "denominator", "sampling", "empty batch", "accounting"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_batches_that_are_cut_to_fit_the_memory_are_read_whole():
    """Pieces of Poisson batches taken for the batches of a wrong sampler."""
    _, module, optimizer, loader, criterion = private_parts()
    cut = BatchMemoryManager(data_loader=loader, max_physical_batch_size=4, optimizer=optimizer)
    with cut as pieces:
        found = fl.review.opacus(module, optimizer, pieces, criterion, draws=16)
    assert found["sampling"].verdict == "sound" and found.claims.sample_rate == loader.sample_rate


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_review_leaves_no_trace():
    """A review in the middle of training that changed it, or was counted by the accountant."""
    engine, module, optimizer, loader, criterion = private_parts()
    history = engine.accountant.history
    before: Any = copy.deepcopy((module.state_dict(), optimizer.state_dict(), history))
    numpys: Any = np.random.get_state
    random = torch.get_rng_state(), numpys()[1].copy()
    fl.review.opacus(module, optimizer, loader, criterion, draws=16)
    after = module.state_dict(), optimizer.state_dict(), engine.accountant.history
    assert all(torch.equal(x, after[0][name]) for name, x in before[0].items())
    states = zip(before[1]["state"].values(), after[1]["state"].values(), strict=True)
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in states)
    assert after[2] == before[2] and torch.equal(torch.get_rng_state(), random[0])
    assert np.array_equal(numpys()[1], random[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_what_a_script_with_opacus_does_wrong_is_found():
    """Shuffled batches, a logged loss, and an optimiser that adds what nobody clipped."""
    _, module, optimizer, loader, criterion = private_parts(poisson=False)
    log = lambda loss, module, batch: {"loss": loss.item()}  # noqa: E731
    found = fl.review.opacus(module, optimizer, loader, criterion, metrics=log, draws=16)
    assert found.broken == {"sampling", "empty batch", "un-noised output"}

    _, module, optimizer, loader, criterion = private_parts()
    plain = optimizer.original_optimizer.step

    def step(*args):
        first = next(module.parameters())
        if first.grad_sample is not None:
            with torch.no_grad():
                first.add_(first.grad_sample.sum(0), alpha=1e-3)
        return plain(*args)

    optimizer.original_optimizer.step = step
    found = fl.review.opacus(module, optimizer, loader, criterion, draws=16)
    assert found.broken == {"un-noised output"}
    assert "besides the gradient" in found["un-noised output"].words


def sent_by_a_client(examples):
    noise = 1.5 * np.random.normal(size=13)  # noqa: NPY002
    sums = sum((clip(x) for x in examples), np.zeros(13))
    change = 0.1 * (sums + noise) / 8
    return [change[:10].reshape(5, 2), change[10:]]


def numpy_client(examples):
    assert fl.flower  # imports Flower without its warnings
    from flwr.client import NumPyClient

    class Client(NumPyClient):
        def fit(self, parameters, config):
            arrays = [a - b for a, b in zip(parameters, sent_by_a_client(examples))]
            return arrays, len(examples), {}

    return Client()


def client_app(examples):
    assert fl.flower
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp

    app = ClientApp()

    @app.train()
    def _(message, context):
        sent: Any = message.content["arrays"]
        start = sent.to_numpy_ndarrays()
        arrays = [a - b for a, b in zip(start, sent_by_a_client(examples))]
        count = MetricRecord({"num-examples": len(examples)})
        return Message(RecordDict({"a": ArrayRecord(arrays), "m": count}), reply_to=message)

    return app


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "count"), [(numpy_client, "num_examples"), (client_app, "m num-examples")]
)
def test_a_flower_client_is_reviewed_as_its_server_sees_it(client, count):
    """Changes of the parameters in clip norms, and the number of examples beside them."""
    data = list(np.random.default_rng(0).normal(size=(16, 13)))
    claims: dict[str, Any] = {"clip_norm": 1.0, "noise_multiplier": 1.5, "denominator": 80.0}
    start: Any = [np.zeros((5, 2)), np.zeros(3)]
    found = fl.review.flower(client, data, Claims(**claims), parameters=start, draws=32)
    assert found.broken == {"un-noised output"} and count in found["un-noised output"].words
    claims["public"] = (count,)
    found = fl.review.flower(client, data, Claims(**claims), parameters=start, draws=32)
    assert found.sound and found["reach"].number == pytest.approx(1.0)


# ---- what is shown


class Text(HTMLParser):
    """Tags of a page, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = set(), ""
        self.links, self.places = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        given = dict(attrs)
        self.links += [given["href"]] if "href" in given else []
        self.places += [given["id"]] if "id" in given else []

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_what_to_mend_and_shows_any_name_as_text(tmp_path):
    """An output's name is the author's own text, and no tag."""
    name = "<script>alert(1)</script>"
    found = review(
        lambda examples, seed: sound(examples, seed) | {name: float(len(examples))},
        DATA,
        Claims(**CLAIMS, steps=10, delta=1e-5, epsilon=20.0),
    )
    page = Text(found.save(tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags and name in page.text
    assert fl.review.CHECKS["un-noised output"].remedy in page.text
    assert name in Text(found._repr_html_()).text and "No finite ε" in page.text
    assert [*found.table().index] == [*fl.review.CHECKS]


def test_every_reference_of_a_page_is_a_link_that_leads_somewhere():
    """References as plain text, places that are not on the page, an owner that is no address."""
    found = review(None, (), Claims(**CLAIMS))
    page = Text(found.page())
    assert len(page.places) == len({*page.places}) == len(fl.review.CHECKS)
    inside = [link[1:] for link in page.links if link.startswith("#")]
    assert {*inside} == {*page.places} and len(inside) >= len(found.findings)
    public = [link for link in page.links if not link.startswith("#")]
    explained = {documentation_link(one.docs, repository_address()) for one in found.findings}
    assert {*public} == explained - {None} and not any("OWNER" in link for link in public)
    for one in fl.review.CHECKS.values():
        assert one.asks in page.text and one.remedy in page.text and one.docs in page.text


@pytest.mark.parametrize(
    ("repository", "link"),
    [
        ("https://github.com/OWNER/fedlora_lab", None),
        ("", None),
        ("https://github.com/somebody/fedlora_lab", "/blob/main/docs/review.md#peft"),
    ],
)
def test_documentation_is_linked_once_the_project_has_an_address(repository, link):
    """A link to a placeholder, or none when there is an address."""
    assert documentation_link("docs/review.md#peft", repository) == (link and repository + link)


def test_every_check_is_explained_where_it_says():
    """A link of the table to a heading that was renamed."""
    root = Path(__file__).parents[2]
    for one in fl.review.CHECKS.values():
        path, place = one.docs.split("#")
        headings = re.findall(r"^#+ (.*)$", (root / path).read_text("utf-8"), re.M)
        kept = ["".join(c for c in h.lower() if c.isalnum() or c in "_- ") for h in headings]
        assert place in [heading.replace(" ", "-") for heading in kept], one


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Claims(clip_norm=0, noise_multiplier=1.0), "clip_norm=0: expected"),
        (lambda: review(sound, DATA[:3], Claims(**CLAIMS)), "data='3 examples'"),
        (lambda: review(sound, DATA, CLAIMS), "claims="),
        (lambda: review(total, DATA, Claims(**CLAIMS)), "function="),
        (lambda: review(lambda *_: {"g": None}, DATA, Claims(**CLAIMS)), "step['g']='NoneType'"),
        (lambda: review(sound, DATA, Claims(**CLAIMS, noise_std={"g": 1.0})), "noise_std='g'"),
        (lambda: review(sound, DATA, Claims(**CLAIMS), prepare=lambda x: None), "prepare="),
        (lambda: review(sound, DATA, Claims(**CLAIMS), others=[sound]), "others='list'"),
        (lambda: review(None, (), Claims(**CLAIMS | SAMPLED), loader=lambda s: None), "loader="),
        (
            lambda: review(sound, DATA, Claims(**CLAIMS, frozen=("base",))),
            "frozen='base': expected one of weight, bias, head",
        ),
        (
            lambda: fl.review.opacus(nn.Linear(1, 1), object(), [], None),
            "optimizer='object': expected an optimizer that make_private returned",
        ),
    ],
)
def test_bad_reviews_are_refused_in_one_line(call, message):
    """A wrong argument that surfaces as somebody else's error, far inside."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}") as error:
        call()
    assert "\n" not in str(error.value)


def test_numbers_of_any_library_are_read():
    """bfloat16 tensors have no NumPy form, and numbers no shape."""
    values = (torch.ones(2, dtype=torch.bfloat16), torch.ones(2).requires_grad_(), 1.0, np.ones(2))
    assert all(np.all(to_array(value) == 1.0) for value in values)
