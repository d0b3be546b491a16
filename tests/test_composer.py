"""The method composer: any row from its fields, told for what it is, and trained beside another."""

import html
import re
import threading
from typing import Any

import pytest
from patience import WAIT, until

import fedlora_lab as fl
from fedlora_lab import ingredients, methods, rules, traits
from fedlora_lab.plots.composed import composed
from fedlora_lab.widgets.composer import LABELS, Pair

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


def said(place) -> str:
    return html.unescape(re.sub("<[^>]*>", "", place.value))


def choose(widget, field, words):
    widget.fields[field].value = words


# put together


def test_every_row_can_be_composed():
    menus = ingredients.offered()
    assert set(menus) == set(LABELS) == set(ingredients.COMPOSED)
    for slug, row in ROWS.items():
        choice = {field: getattr(row, field) for field in menus}
        assert all(value in [v for _, v in menus[field]] for field, value in choice.items())
        assert traits.identify(ingredients.compose("mine", choice)).same == slug
    for options in menus.values():
        names = [words for words, _ in options]
        assert len(set(names)) == len(names)


def test_a_composed_row_claims_what_it_does():
    plain = {field: options[0][1] for field, options in ingredients.offered().items()}
    for slug, row in ROWS.items():
        choice = {field: getattr(row, field) for field in plain}
        assert ingredients.compose("mine", choice).exact == row.exact, slug
    cut = {**plain, "train": fl.Cycle(("B A",)), "aggregate": methods.FLoRA.aggregate}
    assert ingredients.compose("mine", cut).exact
    assert not ingredients.compose("mine", {**cut, "aggregate": methods.FlexLoRA.aggregate}).exact
    with pytest.raises(ValueError, match=r"^train='R'"):
        ingredients.compose("mine", {**plain, "train": fl.Cycle(("R",))})


def test_words_of_the_traits():
    told: Any = lambda row: " ".join(words for _, words in traits.told(traits.traits(row)))  # noqa: E731
    assert "holds the mean" in told(methods.FFA)
    assert "never multiplies" in told(methods.FFA)
    assert "sends 8.2 kB and receives 8.2 kB" in told(methods.FFA)
    assert "misses the mean" in told(methods.FedLoRA)
    assert "no common product" in told(methods.FedSA)
    assert "certifies its ε" in told(methods.DEeR)
    assert "no ε is certified: the noise passes a map" in told(methods.DEeRLiteral)
    assert "never learns" in told(methods.FFA.replace(train=fl.Cycle(("A",))))
    assert "first step is noise alone" in told(ROWS["la-lora-a-first"])


# drawn


def test_the_figure_stands_still():
    row = methods.RoLoRA.replace(name="mine")
    frame: Any = fl.to_frame(fl.run(fl.tasks.digits(clients=2, seed=0), row, None, fl.Plan(rounds=1, local_steps=1)))
    empty, full = (
        composed(row, traits.told(traits.traits(row)), given, rounds=4, start=0.6) for given in ({}, {"mine": frame})
    )
    for one, other in zip(empty.axes, full.axes, strict=True):
        assert (one.get_xlim(), one.get_ylim()) == (other.get_xlim(), other.get_ylim())
    drawn: Any = full.axes[1].lines
    lines = [line for line in drawn if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
    value = frame[(frame["layer"] == "all") & (frame["measure"] == "accuracy")]["value"]
    assert any(list(line.get_ydata()) == list(value) for line in lines)
    text = " ".join(each.get_text() for each in empty.texts)
    assert "holds the mean of the products" in text.replace("\n", " ")


# the widget


def test_it_says_which_published_method_it_is(made):
    assert said(made.says).startswith("This is FedLoRA (arXiv:2305.05644")
    choose(made, "train", "B")
    assert said(made.says).startswith("This is FFA-LoRA")
    choose(made, "smooth", "Binomial(taps=5)")
    assert said(made.says) == (
        "Nobody has published this as far as the table knows. Nearest is FFA-LoRA: it differs in the smoothing."
    )
    first = made.picture.value
    made.begin_from.value = "deer-literal"
    assert made.settle(WAIT)
    assert said(made.says).startswith("This is DEeR literal")
    assert said(made.sentence) == (
        "Exact server; noise multiplies over rounds; no ε certified; 8.2 kB up, 8.2 kB down a round. "
        "Press Start to train it."
    )
    assert made.row is not None
    assert made.row.whiten is rules.factor_space
    assert made.picture.value != first


def test_every_row_can_be_begun_from(made):
    assert len(made.begin_from.options) == len(ROWS)
    for slug in ("fedlpp", "fed-sb", "as-lora", "sdflora", "fedask-wide"):
        made.begin_from.value = slug
        assert traits.identify(made.row).same == slug
    assert made.settle(WAIT)


def test_every_menu_shows_what_is_chosen(made):
    """A menu whose value is None is blank on the page."""
    for knob in (*made.fields.values(), made.epsilon, made.baseline, made.begin_from):
        values = [option[1] if isinstance(option, tuple) else option for option in knob.options]
        assert None not in values
    made.epsilon.value = float("inf")
    made.start()
    until(lambda: not made.alive)
    assert made.settle(WAIT)
    assert made.records["fedlora"][-1].ledger is None


def test_what_cannot_be_is_one_line(made):
    choose(made, "train", "*")
    assert made.settle(WAIT)
    assert "expected no '*' unless the server's rule chooses" in said(made.says)
    assert 'role="alert"' in made.says.value
    assert "\n" not in said(made.says)
    assert made.row is None
    assert made.buttons["start"].disabled
    made.start()
    until(lambda: not made.alive)
    assert "expected no '*'" in said(made.status)
    choose(made, "aggregate", "by_layer(warmup=0.1)")
    assert said(made.says).startswith("This is AS-LoRA")
    assert not made.buttons["start"].disabled


def test_it_trains_both(made):
    choose(made, "train", "B A")
    made.baseline.value = "ffa-lora"
    made.buttons["start"].click()
    assert made.lr.disabled
    until(lambda: not made.alive)
    assert made.settle(WAIT)
    assert {slug: len(found) for slug, found in made.records.items()} == {"ffa-lora": 3, "my-method": 3}
    assert said(made.status).startswith("finished · round 2 of 2")
    last = made.records["my-method"][-1]
    assert f"my method {last.metrics['accuracy']:.3f}" in said(made.sentence)
    assert "ε spent: 8.00" in said(made.sentence)
    assert last.epsilon == made.records["ffa-lora"][-1].epsilon
    assert made.progress.value == 2 * 2 * 2
    made.reset()
    assert made.settle(WAIT)
    assert not made.records
    assert said(made.says).startswith("This is FedLoRA")


def test_it_stops(made):
    made.rounds.value = 30
    made.start()
    until(lambda: made._ticks > 0)
    done = made._ticks
    assert made.stop(WAIT)
    assert made._ticks <= done + 2
    assert said(made.status).startswith("stopped")


def test_a_private_run_of_what_is_not_certified_says_so(made):
    made.begin_from.value = "deer-literal"
    made.start()
    until(lambda: not made.alive)
    assert made.settle(WAIT)
    assert "ε spent: ∞" in said(made.sentence)


def test_the_runs_take_turns(task):
    row = methods.FFA.replace(name="mine")
    plan = fl.Plan(rounds=2, local_steps=1, batch=8)
    pair = Pair(task, (methods.FedLoRA, row), {"fedlora": 0.1, "mine": 0.2}, plan, fl.Privacy(delta=1e-4), None)
    records = [(slug, event.index) for slug, event in pair.events() if hasattr(event, "metrics")]
    assert records == [(slug, t) for t in range(3) for slug in ("fedlora", "mine")]


def test_a_task_without_accuracy_is_refused():
    with pytest.raises(ValueError, match=r"^task="):
        fl.widgets.method_composer(fl.tasks.regression(clients=2))


def test_the_rate_follows_epsilon_and_a_change_after_a_run_is_told(made):
    made.begin_from.value = "rolora"
    made.epsilon.value = 1.0
    assert made.lr.value == fl.tuned("digits", "rolora", 1.0)
    assert "learning rate 0.05: tuned for RoLoRA at ε = 1" in said(made.status)
    made.start()
    until(lambda: not made.worker.alive)
    assert made.settle(WAIT)
    assert made._pair.rates["fedlora"] == fl.tuned("digits", "fedlora", 1.0)
    assert "against whoever sees the uploads" in said(made.sentence)
    made.lr.value = 0.3
    assert said(made.status).startswith("controls have changed since: press Start · learning rate 0.3, your own")
    assert made.records == {}, "the curves of another row would stand beside this one"
    made.epsilon.value = 8.0
    assert made.lr.value == 0.3
