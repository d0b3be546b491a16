"""The method composer: any method from its fields, named for what it is, and trained."""

import threading

import numpy as np
import pytest
from wait_for_thread import WAIT, text, train, until

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.course.widgets.composer import LABELS, composer_figure, take_turns
from fedlora_lab.course.widgets.run_config import RunConfig
from fedlora_lab.experiments import method_guide
from fedlora_lab.federated import dry_run
from fedlora_lab.methods import filters

pytestmark = pytest.mark.slow
ROWS = methods.ALL | methods.VARIANTS


@pytest.fixture(scope="module")
def task():
    return fl.tasks.digits(clients=3, seed=1)


@pytest.fixture
def made(task):
    widget = fl.widgets.method_composer(task, plan=fl.Plan(rounds=2, local_steps=2, batch=8))
    yield widget
    widget.close()
    assert not any(thread.name == "composer" for thread in threading.enumerate())


def test_every_row_can_be_composed():
    """From its fields each row is identified as itself, and claims what it claims."""
    menus = method_guide.field_choices()
    assert set(menus) == set(LABELS) == set(method_guide.COMPOSED)
    for slug, row in ROWS.items():
        choice = {field: getattr(row, field) for field in menus}
        assert all(value in [v for _, v in menus[field]] for field, value in choice.items())
        composed = method_guide.compose("mine", choice)
        assert dry_run.identify(composed).identical == slug
        assert composed.exact == row.exact, slug
    for options in menus.values():
        names = [words for words, _ in options]
        assert len(set(names)) == len(names)
    plain = {field: options[0][1] for field, options in menus.items()}
    cut = {**plain, "train": fl.Cycle(("B A",)), "aggregate": methods.FLoRA.aggregate}
    assert method_guide.compose("mine", cut).exact
    assert not method_guide.compose("mine", {**cut, "aggregate": methods.FlexLoRA.aggregate}).exact
    with pytest.raises(ValueError, match=r"^train='R'"):
        method_guide.compose("mine", {**plain, "train": fl.Cycle(("R",))})


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (methods.FFA, "never multiplies"),
        (methods.FFA, "sends 8.2 kB and receives 8.2 kB"),
        (methods.FedLoRA, "misses the mean"),
        (methods.FedSA, "no common product"),
        (methods.DEeR, "certifies its ε"),
        (methods.DEeRLiteral, "no ε is certified: the noise passes a map"),
        (methods.FFA.replace(train=fl.Cycle(("A",))), "never learns"),
        (ROWS["la-lora-a-first"], "first step is noise alone"),
    ],
)
def test_properties_in_words(row, words):
    assert words in " ".join(line for _, line in dry_run.describe(dry_run.traits(row)))


def test_the_figure_stands_still():
    row, plan = methods.RoLoRA.replace(name="mine"), fl.Plan(rounds=1, local_steps=1)
    frame = fl.to_frame(fl.run(fl.tasks.digits(clients=2, seed=0), row, None, plan))
    lines = dry_run.describe(dry_run.traits(row))
    empty, full = (
        composer_figure(row, lines, frames, rounds=4, start=0.6) for frames in ({}, {"mine": frame})
    )
    for one, other in zip(empty.axes, full.axes, strict=True):
        assert (one.get_xlim(), one.get_ylim()) == (other.get_xlim(), other.get_ylim())
    value = frame.query("layer == 'all' and measure == 'accuracy'")["value"]
    assert any(np.array_equal(line.get_ydata(), value) for line in full.axes[1].lines)
    words = " ".join(each.get_text() for each in empty.texts).replace("\n", " ")
    assert "holds the mean of the products" in words


def test_it_says_which_published_method_it_is(made):
    for knob in made.knobs:  # a menu whose value is None is blank on the page
        assert None not in [
            o[1] if isinstance(o, tuple) else o for o in getattr(knob, "options", ())
        ]
    assert text(made.says).startswith("This is FedLoRA (arXiv:2305.05644")
    made.fields["train"].value = "B"
    assert text(made.says).startswith("This is FFA-LoRA")
    made.fields["filter"].value = "Binomial(taps=5)"
    assert text(made.says) == (
        "Nobody has published this as far as the table knows. "
        "Nearest is FFA-LoRA: it differs in the smoothing."
    )
    first = made.picture.value
    for slug in ("fedlpp", "fed-sb", "as-lora", "sdflora", "fedask-wide", "deer-literal"):
        made.begin_from.value = slug
        assert dry_run.identify(made.row).identical == slug
    assert len(made.begin_from.options) == len(ROWS)
    assert made.settle(WAIT)
    assert text(made.says).startswith("This is DEeR literal")
    assert text(made.sentence) == (
        "Exact server; noise multiplies over rounds; no ε certified; "
        "8.2 kB up, 8.2 kB down a round. Press Start to train it."
    )
    assert made.row.precondition is filters.factor_space and made.picture.value != first
    made.rounds.value = 1
    train(made)
    assert "ε spent: ∞" in text(made.sentence), "what is not certified says so after a run too"


def test_fields_that_make_no_method_are_one_line(made):
    made.fields["train"].value = "*"
    assert made.settle(WAIT)
    assert "expected no '*' unless the server's rule chooses" in text(made.says)
    assert 'role="alert"' in made.says.value and "\n" not in text(made.says)
    assert made.row is None and made.buttons["start"].disabled
    with pytest.raises(ValueError, match=r"expected no '\*'"):
        made.start()
    made.fields["aggregate"].value = "by_layer(warmup=0.1)"
    assert text(made.says).startswith("This is AS-LoRA") and not made.buttons["start"].disabled
    with pytest.raises(ValueError, match=r"^task="):
        fl.widgets.method_composer(fl.tasks.regression(clients=2))


def test_it_trains_both(made):
    """The rate follows ε until the reader sets it; a change after a run is told."""
    made.begin_from.value, made.baseline.value = "rolora", "ffa-lora"
    made.epsilon.value = 1.0
    assert made.lr.value == fl.tuned_rate("digits", "rolora", 1.0)
    assert "learning rate 0.05: tuned for RoLoRA at ε = 1" in text(made.status)
    made.buttons["start"].click()
    assert made.lr.disabled
    until(lambda: not made.alive)
    assert made.settle(WAIT)
    assert sorted(map(len, made.records.values())) == [3, 3]
    assert text(made.status).startswith("finished · round 2 of 2")
    assert made.progress.value == 2 * 2 * 2
    last = made.records["my-method"][-1]
    assert f"my method {last.metrics['accuracy']:.3f}" in text(made.sentence)
    assert "ε spent: 1.00 against whoever sees the uploads" in text(made.sentence)
    assert last.epsilon == made.records["ffa-lora"][-1].epsilon
    assert made._runs[0].plan.lr == fl.tuned_rate("digits", "ffa-lora", 1.0)
    made.lr.value = 0.3
    assert text(made.status).startswith(
        "controls have changed since: press Start · learning rate 0.3, your own"
    )
    assert made.records == {}, "the curves of another row would stand beside this one"
    made.epsilon.value = 8.0
    assert made.lr.value == 0.3
    made.reset()
    assert made.settle(WAIT)
    assert not made.records and text(made.says).startswith("This is FedLoRA")


def test_the_runs_take_turns(task):
    rows = (methods.FedLoRA, methods.FFA.replace(name="mine"))
    plan = fl.Plan(rounds=2, local_steps=1, batch=8)
    runs = [RunConfig(task, row, plan, fl.Privacy(delta=1e-4), None) for row in rows]
    records = [(slug, event.index) for slug, event in take_turns(runs) if hasattr(event, "metrics")]
    assert records == [(slug, t) for t in range(3) for slug in ("fedlora", "mine")]
