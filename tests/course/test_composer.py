"""The method composer: any method from its fields, named for what it is, and trained."""

import threading

import pytest
from wait_for_thread import WAIT, text, until

import fedlora_lab as fl
from fedlora_lab import methods
from fedlora_lab.course.widgets.composer import LABELS, composer_figure
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
    widget = fl.course.widgets.method_composer(task, plan=fl.Plan(rounds=2, local_steps=2, batch=8))
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


def test_the_figure_shows_the_diagram_and_refuses_none():
    row = methods.RoLoRA.replace(name="mine")
    assert "mine" in [each.get_text() for each in composer_figure(row).axes[0].texts]
    assert [each.get_text() for each in composer_figure(None).texts] == ["No valid method"]


def test_it_says_which_published_method_it_is(made):
    for knob in (
        made.begin_from,
        *made.fields.values(),
    ):  # a menu whose value is None is blank on the page
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
    for sign, words in dry_run.describe(dry_run.traits(made.row)):
        assert sign in made.picture.value and words in text(made.picture)
    assert text(made.sentence).startswith("Press Start to train it")
    assert made.row.precondition is filters.factor_space and made.picture.value != first
    made.bench.set(rounds=1)
    made.bench.start()
    until(lambda: not made.bench.alive)
    assert "ε spent: ∞" in made.bench.say, "what is not certified says so after a run too"


def test_fields_that_make_no_method_are_one_line(made):
    made.fields["train"].value = "*"
    assert made.settle(WAIT)
    assert "expected no '*' unless the server's rule chooses" in text(made.says)
    assert 'role="alert"' in made.says.value and "\n" not in text(made.says)
    assert made.row is None
    made.bench.act("start")
    assert "expected no '*'" in made.bench.status["error"] and not made.bench.rows
    made.fields["aggregate"].value = "by_layer(warmup=0.1)"
    assert text(made.says).startswith("This is AS-LoRA") and not made.bench.errors
    with pytest.raises(ValueError, match=r"^task="):
        fl.course.widgets.method_composer(fl.tasks.regression(clients=2))


def test_it_trains_beside_a_published_method(made):
    """The rate follows method and ε; a row keeps the fields it was trained with."""
    made.begin_from.value = "rolora"
    made.bench.set(epsilon=1)
    assert made.bench.config.plan.rate("B") == fl.tuned_rate("digits", "rolora", 1.0)
    assert "tuned for RoLoRA at ε = 1" in made.bench.advice["words"]
    made.bench.run_sweep("method", "my-method, ffa-lora", seeds=1)
    until(lambda: not made.bench.alive)
    mine, other = made.bench.rows
    assert mine.config.method.train == methods.RoLoRA.train
    assert other.config.plan.lr == fl.tuned_rate("digits", "ffa-lora", 1.0)
    assert [row["label"] for row in made.bench.table] == ["my method", "FFA-LoRA"]
    made.begin_from.value = "la-lora"
    assert mine.config.method.train == methods.RoLoRA.train
    assert made.bench.config.method.train == methods.LALoRA.train


def test_completion_offers_widgets_alone():
    assert dir(fl.course.widgets) == sorted(fl.course.widgets.__all__)
